"""A text coloured by surprise: legible to everyone, whole whatever the text, bounded, and no more than the numbers."""

import math
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from pipeline.files import read_json
from pipeline.reporting import surprise
from pipeline.reporting.figure import LIGHT, PALETTES, Palette
from pipeline.reporting.report import write_report

from . import fixtures

SVG = "{http://www.w3.org/2000/svg}"
WILD = [("\x00\x1b", 1.0), ("\ud800", 2.0), ("</text>&\"'", 3.0), ("\n\n", 4.0), ("\t é", 0.0), ("\u0301", 99.0)]

texts = st.text() | st.text(st.sampled_from(" \n\t<&日\u0301"))
tokens = st.lists(st.tuples(texts, st.sampled_from([None, math.nan]) | st.floats(min_value=0)), max_size=80)


class Words(HTMLParser):
    """What a reader of the HTML selects, and the titles that he finds under the mouse."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.titles = "", [""]
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.titles += [title for name, title in attrs if name == "title" and title]
        self.text += "\n" * (tag == "br")

    def handle_data(self, data: str) -> None:
        self.text += data


def linear(colour: str) -> list[float]:
    """sRGB as light: (r, g, b), each 0 to 1."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    return [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]


def lightness(colour: str) -> float:
    """L of OKLab (https://bottosson.github.io/posts/oklab/), 0 to 1, in which equal steps look equal."""
    r, g, b = linear(colour)
    long = 0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b
    medium = 0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b
    short = 0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b
    return 0.2104542553 * math.cbrt(long) + 0.7936177850 * math.cbrt(medium) - 0.0040720468 * math.cbrt(short)


def contrast(one: str, other: str) -> float:
    """WCAG's contrast ratio, 1 to 21; 4.5 is asked of text."""
    dark, light = sorted(0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in (linear(one), linear(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("palette", PALETTES, ids=lambda palette: palette.name)
def test_the_steps_are_even_in_lightness_and_what_is_written_on_them_is_legible(palette: Palette) -> None:
    colours = surprise.COLOURS[palette.name]
    backgrounds = [lightness(background) for background, _ in colours]
    steps = [after - before for before, after in pairwise(backgrounds)]
    assert steps == pytest.approx([sum(steps) / len(steps)] * len(steps), abs=0.004)
    assert abs(sum(steps)) > 0.55
    assert colours[0][0] == palette.background
    assert min(contrast(*colour) for colour in colours) > 4.5


@given(tokens)
def test_any_text_is_well_formed_and_whole(tokens: list[tuple[str, float | None]]) -> None:
    shown = surprise.shown_tokens(tokens)
    page = surprise.html(tokens)
    whole = "".join(surprise.visible(piece) for piece, _ in shown)
    assert Words(page.split('<div class="text">')[1]).text == whole
    assert MarkdownIt("commonmark", {"html": True}).render(f"before\n\n{page}\n\nafter").count(page) == 1
    drawn = ET.fromstring(surprise.svg(tokens, LIGHT)).findall(f"{SVG}g")[1:]
    words = "".join(text.text or "" for part in drawn for text in part.findall(f"{SVG}text"))
    assert words.replace(" ", "") == whole.replace("\n", "↵").replace(" ", "")


def test_what_xml_and_html_cannot_hold_is_replaced() -> None:
    root = ET.fromstring(surprise.svg(WILD, LIGHT))
    words = [text.text for text in root.iter(f"{SVG}text")][-7:]
    assert words == ["␀␛", "�", "</text>&\"'", "↵", "↵", "⇥ é", "\u0301"]
    assert "�" in surprise.html(WILD)


@given(tokens)
def test_no_line_is_longer_than_the_picture_and_no_more_lines_are_shown_than_said(
    tokens: list[tuple[str, float | None]],
) -> None:
    parts = list(surprise.laid_out(surprise.shown_tokens(tokens)))
    assert all(part.column + part.columns <= surprise.COLUMNS for part in parts)
    assert all(part.line < surprise.MOST_LINES for part in parts)
    ends: dict[int, int] = {}
    for part in parts:
        assert part.column == ends.get(part.line, 0), "parts stand side by side"
        ends[part.line] = part.column + part.columns


@pytest.mark.parametrize(
    ("tokens", "shown"),
    [
        ([("\n", 1.0)] * 50, surprise.MOST_LINES),
        ([("ab ", 1.0)] * 5000, surprise.MOST_TOKENS),
        ([("a" * 100, 1.0)] * 40, surprise.MOST_LINES),
        ([("日" * 50, 1.0)] * 40, surprise.MOST_LINES),
        ([("one", 1.0)] * 3, 3),
        ([], 0),
    ],
)
def test_a_long_text_is_cut_and_the_cut_is_stated(tokens: list[tuple[str, float]], shown: int) -> None:
    assert len(surprise.shown_tokens(tokens)) == shown
    cut = f"The first {shown} of {len(tokens):,} tokens are shown."
    assert (cut in surprise.caption(tokens)) == (shown < len(tokens))
    assert len(surprise.svg(tokens, LIGHT)) < 150_000


def test_the_sentence_names_the_hardest_tokens_with_their_numbers() -> None:
    told = surprise.caption([(" the", 0.5), ("\n", 8.25), (" ", 7.0), ("�", math.nan), ("plain", 3.25), ("x", None)])
    assert "4.75 in the mean, and most at `↵` (8.2), `␣` (7.0), `plain` (3.2) and `the` (0.5)." in told
    assert "2 of 6 tokens have no number." in told
    assert "nan" not in surprise.html([("a", math.nan)]).lower().replace('class="nx"', "")
    assert "in the mean" not in surprise.caption([("a", math.nan)])


@pytest.mark.parametrize(
    ("piece", "nats", "told"),
    [
        (" lord", 3.21, "lord, 3.21 nats, probability 4.0 %"),
        ("\n", 0.0, "↵, 0.00 nats, probability 100.0 %"),
        ("  ", 7.0, "␣␣, 7.00 nats, probability 0.091 %"),
        ("ph", 20.0, "ph, 20.00 nats, probability 2.06 × 10⁻⁹"),
        ("ph", 900.0, "ph, 900.00 nats, probability 0"),
        ("a", None, "a, no number"),
    ],
)
def test_under_the_mouse_stands_the_token_with_its_nats_and_probability(
    piece: str, nats: float | None, told: str
) -> None:
    assert Words(surprise.html([(piece, nats)])).titles[1:] == [told]


def test_a_token_is_coloured_by_its_whole_nats_up_to_the_last_step() -> None:
    steps = {-0.0: "n0", 0.99: "n0", 1.0: "n1", 9.99: "n9", 10.0: "n10", 400.0: "n10"}
    assert {nats: surprise.step_of(nats) for nats in steps} == steps
    assert [surprise.step_of(nats) for nats in (None, math.nan, math.inf)] == ["nx"] * 3


def test_the_report_shows_the_text_as_a_picture_and_as_itself(tmp_path: Path) -> None:
    root = fixtures.write_run(tmp_path)
    page = (root / write_report(root, "A model", 0.9)).read_text(encoding="utf-8")
    assert "and most at `telephone` (11.2), `KING` (6.0)" in page
    assert 'src="figures/surprise.svg"' in page
    assert ET.parse(root / "reports/figures/surprise-dark.svg").getroot().tag == f"{SVG}svg"
    html = (root / "reports/report.html").read_text(encoding="utf-8")
    assert '<span class="n10" title="telephone, 11.20 nats, probability 0.0014 %"> telephone</span>' in html
    assert "surprise.svg" not in html


@pytest.mark.parametrize("samples", [{}, {"surprise": {"text": "", "tokens": []}}])
def test_samples_of_before_there_was_such_a_text_have_a_report(tmp_path: Path, samples: dict[str, object]) -> None:
    root = fixtures.write_run(tmp_path)
    path = root / "reports/sample/samples.json"
    kept = {key: value for key, value in read_json(path).items() if key != "surprise"}
    fixtures.write_json(path, kept | samples)
    page = (root / write_report(root, "A model", 0.9)).read_text(encoding="utf-8")
    assert "found hard" not in page
    assert not (root / "reports/figures/surprise.svg").exists()
