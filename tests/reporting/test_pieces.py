"""The pieces of the report: numbers, curves, markdown, figures."""

import io
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from pipeline.reporting import curves, markdown, numbers
from pipeline.reporting.figure import DARK, LIGHT, Axis, Figure, Panel, Rule, Series, axis_of, floats
from pipeline.reporting.interactive import plotly_figure
from pipeline.reporting.lock import ABSENT, differing, parse
from pipeline.reporting.origin import override
from pipeline.reporting.svg import render

from . import fixtures


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        (numbers.count(124_439_808), "124 M"),
        (numbers.count(999_999), "1.00 M"),
        (numbers.count(950), "950"),
        (numbers.count(1_557_611_200), "1.56 B"),
        (numbers.duration(95.2), "1 min 35 s"),
        (numbers.duration(0.42), "0.4 s"),
        (numbers.duration(7322), "2 h 2 min"),
        (numbers.duration(3 * 86400 + 7300), "3 d 2 h"),
        (numbers.power_of_ten(2.62e14), "2.62 × 10¹⁴"),
        (numbers.percent(0.3425), "34.2 %"),
        (numbers.significant(9.996, 3), "10.0"),
        (numbers.significant(1234.5, 2), "1,200"),
        (numbers.energy(3.6e6), "1.00 kWh"),
        (numbers.size(17_100_000), "17.1 MB"),
    ],
)
def test_numbers_read_as_people_write_them(shown: str, words: str) -> None:
    assert shown == words


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_what_is_no_number_is_a_dash_in_every_format(value: float | None) -> None:
    formats = (numbers.count, numbers.exact, numbers.percent, numbers.power_of_ten, numbers.duration, numbers.energy)
    assert {shown(value) for shown in formats} == {numbers.DASH}


def test_a_smoothed_curve_neither_lags_nor_leads() -> None:
    falling = np.linspace(8.0, 4.0, 101)
    inside = slice(40, -40)
    assert curves.smoothed(falling, 0.9)[inside] == pytest.approx(falling[inside], abs=1e-3)
    values = floats([5.0, 4.0, 1.0, 3.0])
    assert curves.smoothed(values, 0.7) == pytest.approx(curves.smoothed(values[::-1], 0.7)[::-1])


def test_smoothing_averages_by_distance_and_passes_over_what_is_no_number() -> None:
    assert curves.smoothed(floats([2.0, 1.0]), 0.0).tolist() == [2.0, 1.0]
    assert curves.smoothed(floats([2.0, 1.0]), 0.5).tolist() == pytest.approx([2.25 / 1.25, 1.5 / 1.25])
    for gap in (math.nan, math.inf):
        smooth = curves.smoothed(floats([4.0, gap, 1.0]), 0.5)
        assert smooth == pytest.approx([4.0625 / 1.0625, math.nan, 1.25 / 1.0625], nan_ok=True)
    assert curves.smoothed(floats([math.nan]), 0.0).tolist() == pytest.approx([math.nan], nan_ok=True)
    assert len(curves.smoothed(floats([]), 0.9)) == 0


def test_a_spike_raises_a_smoothed_curve_on_both_its_sides_alike() -> None:
    values = np.full(41, 4.0)
    values[20] = 60.0
    smooth = curves.smoothed(values, 0.9)
    assert smooth[20] == smooth.max() < 10
    assert smooth[:20] == pytest.approx(smooth[:20:-1])


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300), st.integers(4, 50))
def test_a_thinned_curve_is_short_and_keeps_its_extremes(values: list[float], most: int) -> None:
    x, y = curves.thinned(np.arange(len(values), dtype=np.float64), floats(values), most)
    assert len(x) <= most
    assert y.min() == min(values)
    assert y.max() == max(values)
    assert (np.diff(x) > 0).all()


def test_a_spike_is_found_once_and_noise_is_not() -> None:
    frame = fixtures.curves()
    assert curves.spikes(frame) == []
    frame.loc[[700, 701], "train/loss"] = [5.0, 5.3]
    assert curves.spikes(frame) == [701]
    frame.loc[300, "event"] = "spike"
    assert curves.spikes(frame) == [300], "what training marked counts before what is guessed"


def test_curves_with_rows_in_disorder_and_empty_cells_are_read_in_order() -> None:
    frame = curves.parse_curves(io.StringIO("step,tokens,train/loss,event\n2,20,,resumed\n1,10,5.0,\n"), "curves.csv")
    assert frame["step"].tolist() == [1.0, 2.0]
    assert curves.column(frame, "train/loss")[1].tolist() == [5.0]
    assert curves.events(frame, "resumed") == [1]
    assert len(curves.column(frame, "val/loss")[0]) == 0


@given(st.text())
def test_any_text_stands_in_a_table_cell_and_a_fence_without_breaking_them(text: str) -> None:
    page = markdown.table(["a", "b"], [[markdown.text(text), markdown.code(text)]])
    html = MarkdownIt("commonmark").enable("table").render(page)
    assert html.count("<td") == 2
    assert html.count("<tr>") == 2
    assert "<script" not in html
    fenced = MarkdownIt("commonmark").render(markdown.fence(text) + "\n\nend")
    assert fenced.endswith("</code></pre>\n<p>end</p>\n")


def test_settings_differ_by_value_and_absent_ones_are_shown_as_such() -> None:
    old = {"a": 1, "b": 1e-3, "c": True, "gone": 3}
    new = {"a": 1.0, "b": 0.001, "c": 1, "new": None}
    assert differing(old, new) == [("c", True, 1), ("new", ABSENT, None), ("gone", 3, ABSENT)]


def test_a_lock_that_cannot_be_read_is_no_lock() -> None:
    assert parse(None) is None
    assert parse("a: [") is None
    assert parse("schema: '2.0'") is None


@pytest.mark.parametrize(
    ("value", "argument"),
    [
        (2e-3, "a.b=0.002"),
        (None, "a.b=null"),
        (True, "a.b=true"),
        ("rope", "a.b=rope"),
        ("HuggingFaceFW/fineweb-edu", "a.b=HuggingFaceFW/fineweb-edu"),
        ("two words", "'a.b=\"two words\"'"),
        ("null", "'a.b=\"null\"'"),
        ([0.9, 0.95], "'a.b=[0.9,0.95]'"),
        ("two\nlines", None),
    ],
)
def test_an_override_says_a_value_as_dvc_takes_it(value: object, argument: str | None) -> None:
    assert override("a.b", value) == argument


@pytest.fixture
def rich_figure() -> Figure:
    """A figure with everything that a figure can have."""
    x = floats([1.0, 10.0, 100.0])
    series = (
        Series("raw", x, floats([3.0, math.nan, 2.0]), "faint"),
        Series("one", floats([10.0]), floats([2.5]), "line", 9),
        Series("sizes", x, x, "points", 1, error=floats([0.1, 0.2, 0.3]), labels=("a & b", "<c>", "$d$")),
        Series("fit", x, x, "dashes", 1),
    )
    rules = (Rule("level", 2.0), Rule("place", 10.0, "x"), Rule("part", 5.0, "x", between=(1.0, 2.0)))
    named = Panel(Axis("x"), Axis("", categories=("p", "q")), (Series("", floats([1, 2]), floats([0, 1]), "points"),))
    return Figure("rich", "All there is", (Panel(Axis("x", log=True), Axis("y", log=True), series, rules), named))


def test_a_figure_with_everything_is_drawn_the_same_each_time(rich_figure: Figure) -> None:
    light, dark = render(rich_figure, LIGHT), render(rich_figure, DARK)
    assert light == render(rich_figure, LIGHT)
    assert LIGHT.background in light
    assert DARK.background in dark
    assert "<text" not in light, "fonts are paths"
    assert "<dc:date>" not in light


def test_the_interactive_figure_holds_the_same_values(rich_figure: Figure) -> None:
    drawn = plotly_figure(rich_figure)
    assert [trace["y"] for trace in drawn["data"][:2]] == [[3.0, None, 2.0], [2.5]]
    assert drawn["data"][2]["error_y"]["array"] == [0.1, 0.2, 0.3]
    shapes = drawn["layout"]["shapes"]
    assert len(shapes) == 3
    assert {(shape["layer"], shape["line"]["color"]) for shape in shapes} == {("above", "@text")}, "seen on a grid line"
    assert drawn["layout"]["yaxis2"]["ticktext"] == ["p", "q"]


def test_axes_have_short_numbers_and_say_their_unit() -> None:
    assert axis_of("tokens", 9.8e6) == (Axis("tokens (millions)"), 1e6)
    assert axis_of("tokens", 900) == (Axis("tokens"), 1.0)


def test_an_empty_curve_file_is_named() -> None:
    with pytest.raises(ValueError, match=r"x/curves\.csv is no table"):
        curves.parse_curves(io.StringIO(""), "x/curves.csv")
    assert isinstance(curves.parse_curves(io.StringIO("step,tokens\n"), "x"), pd.DataFrame)
