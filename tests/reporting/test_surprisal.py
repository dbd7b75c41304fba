"""A text coloured by surprisal: whole and well-formed whatever the text, and legible in both schemes."""

import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from pipeline import markdown as md
from pipeline.charts.pages import DARK, LIGHT
from pipeline.reporting.report import MAX_TOKENS, SURPRISAL_STYLE, hardest, surprisal_html

texts = st.text() | st.text(st.sampled_from(" \n\t<&日\u0301"))
tokens = st.lists(st.tuples(texts, st.floats(min_value=0, max_value=1e6)), max_size=80)


class Page(HTMLParser):
    """The text of some HTML, and its titles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.titles = "", [""]
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.titles += [value for name, value in attrs if name == "title" and value]

    def handle_data(self, data: str) -> None:
        self.text += data


@given(tokens)
def test_any_text_is_whole_and_one_block_of_markdown(tokens: list[tuple[str, float]]) -> None:
    html = str(surprisal_html(tokens))
    assert Page(html.split('<div class="text">')[1]).text == "".join(md.printable(token) for token, _ in tokens)
    assert MarkdownIt("commonmark", {"html": True}).render(f"before\n\n{html}\n\nafter").count(html) == 1


def test_a_long_text_is_cut() -> None:
    assert surprisal_html([("ab ", 1.0)] * 5000).count("ab </span>") == MAX_TOKENS


def test_the_hardest_tokens_come_first() -> None:
    tokens = [(" the", 0.5), ("\n", 8.25), (" ", 7.0), ("plain", 3.25)]
    assert hardest(tokens, 3) == [("↵", 8.25), ("␣", 7.0), ("plain", 3.25)]


@pytest.mark.parametrize(
    ("token", "nats", "title"),
    [
        (" lord", 3.21, "lord: 3.21 nats, probability 4.0 %"),
        ("\n", 0.0, "↵: 0.00 nats, probability 100.0 %"),
        ("  ", 7.0, "␣␣: 7.00 nats, probability 0.091 %"),
        ("ph", 20.0, "ph: 20.00 nats, probability 2.06 × 10⁻⁹"),
        ("ph", 900.0, "ph: 900.00 nats, probability 0"),
        ('"<', 0.0, '"<: 0.00 nats, probability 100.0 %'),
    ],
)
def test_the_title_of_a_token_has_its_nats_and_probability(token: str, nats: float, title: str) -> None:
    assert Page(surprisal_html([(token, nats)])).titles[1:] == [title]


def test_the_colour_grows_with_the_nats_up_to_the_scales_end() -> None:
    html = surprisal_html([("a", -0.0), ("b", 2.5), ("c", 10.0), ("d", 400.0)])
    assert re.findall(r"--share:(\d+)%", html) == ["0", "25", "100", "100"]


@pytest.mark.parametrize(("theme", "number"), [(LIGHT, 0), (DARK, 1)])
def test_text_on_the_strongest_colour_is_legible(theme: dict[str, Any], number: int) -> None:
    """WCAG asks for a contrast of 4.5; https://www.w3.org/TR/WCAG21/#contrast-minimum"""
    hot = re.findall(r"--hot: (#\w+)", SURPRISAL_STYLE)[number]
    lighter, darker = sorted((luminance(hot), luminance(theme["style"]["label"]["color"])), reverse=True)
    assert (lighter + 0.05) / (darker + 0.05) > 4.5


def luminance(colour: str) -> float:
    """WCAG's relative luminance, 0 to 1."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    r, g, b = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b
