"""Numbers as text, and markdown that any text can be put into."""

import math
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from pipeline import formatting, markdown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (formatting.count(124_439_808), "124 M"),
        (formatting.count(999_999), "1.00 M"),
        (formatting.count(950), "950"),
        (formatting.count(1_557_611_200), "1.56 B"),
        (formatting.format_duration(95.2), "1 min 35 s"),
        (formatting.format_duration(0.42), "0.4 s"),
        (formatting.format_duration(7322), "2 h 2 min"),
        (formatting.format_duration(3 * 86400 + 7300), "3 d 2 h"),
        (formatting.power_of_ten(2.62e14), "2.62 × 10¹⁴"),
        (formatting.percent(0.3425), "34.2 %"),
        (formatting.significant(9.996, 3), "10.0"),
        (formatting.significant(1234.5, 2), "1,200"),
        (formatting.format_bytes(17_100_000), "17.1 MB"),
    ],
)
def test_numbers(text: str, expected: str) -> None:
    assert text == expected


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_a_missing_number_is_a_dash(value: float | None) -> None:
    formats = (formatting.count, formatting.exact, formatting.percent, formatting.power_of_ten)
    assert {format_number(value) for format_number in (*formats, formatting.format_duration)} == {formatting.DASH}


def test_a_date_is_text_for_hydra() -> None:
    assert formatting.hydra_value(date(2020, 1, 2)) == '"2020-01-02"'


@given(st.text())
def test_any_text_fits_in_a_table_cell_and_a_fence(text: str) -> None:
    page = markdown.table(["a", "b"], [[markdown.text(text), markdown.code(text)]])
    html = MarkdownIt("commonmark").enable("table").render(page)
    assert html.count("<td") == 2
    assert html.count("<tr>") == 2
    assert "<script" not in html
    fenced = MarkdownIt("commonmark").render(markdown.fence(text, "text") + "\n\nend")
    assert fenced.endswith("</code></pre>\n<p>end</p>\n")
