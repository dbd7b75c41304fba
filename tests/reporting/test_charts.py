"""Charts: smoothing and thinning, what the specs hold, and how they become SVGs and HTML."""

import io
import json
import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.charts import pages, specs
from pipeline.charts.pages import DARK, LIGHT
from pipeline.charts.specs import Axis, Chart
from pipeline.curves import parse_curves, read_curves
from pipeline.log import UserError


def layers(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """All unit specs of a chart, nested ones too, each with its rows as `values`."""

    def units(part: dict[str, Any], data: str) -> list[dict[str, Any]]:
        data = part.get("data", {}).get("name", data)
        parts = [inner for kind in ("layer", "hconcat") for inner in part.get(kind, [])]
        if not parts:
            return [{**part, "values": spec["datasets"][data]}]
        return [unit for inner in parts for unit in units(inner, data)]

    return units(spec, "")


@pytest.fixture
def rich_chart() -> Chart:
    """A chart with everything that charts can have."""
    x, y = Axis("x", log=True, numbers="power"), Axis("y", (math.nan, 5.0))
    names = ["</script>", "b"]
    frame = pd.DataFrame({"x": [1.0, 10.0, 100.0], "y": [3.0, math.nan, 2.0], "series": names[0]})
    errors = frame.fillna(2.5)
    errors = errors.assign(series="b", low=errors["y"] - 0.1, high=errors["y"] + 0.1, label=["a & b", "<c>", "$d$"])
    first = (
        specs.lines(frame, x, y, names, "faint")
        + specs.lines(frame.assign(run="1"), x, y, names, dots=True)
        + specs.points(errors, x, y, names)
        + specs.end_labels(errors.tail(1), x, y, names)
        + specs.rules([(2.0, "level")], y, "y", end="left")
        + specs.rules([(10.0, "place")], x, "x")
        + specs.hover(frame, x, y, names, ("", "x", "y"))
    )
    second = specs.lines(frame, Axis("z"), Axis("y"), names, "dashed")
    return Chart("rich", 'All "there" is', first.properties(height=100) | second.properties(height=100), names)


def test_a_spec_holds_the_values_and_no_colours(rich_chart: Chart) -> None:
    spec = rich_chart.to_dict()
    faint = layers(spec)[0]
    assert faint["values"][:2] == [
        {"x": 1.0, "y": 3.0, "series": "</script>"},
        {"x": 10.0, "y": None, "series": "</script>"},
    ]
    assert faint["encoding"]["x"]["scale"]["type"] == "log"
    assert "domainMin" not in faint["encoding"]["y"]["scale"]
    assert faint["encoding"]["y"]["scale"]["domainMax"] == 5.0
    assert faint["encoding"]["color"]["scale"]["domain"] == ["</script>", "b"]
    assert re.findall(r"#[0-9a-f]{6}\b", json.dumps(spec)) == []


def test_numbers_have_six_digits() -> None:
    frame = pd.DataFrame({"x": [1 / 3], "y": [2e7 / 3], "series": "a"})
    spec = Chart("a", "", specs.lines(frame, Axis("x"), Axis("y"), ["a"])).to_dict()
    assert layers(spec)[0]["values"] == [{"x": 0.333333, "y": 6.66667e6, "series": "a"}]


def test_svgs_are_well_formed_deterministic_and_in_both_themes(rich_chart: Chart, tmp_path: Path) -> None:
    written = []
    for _ in range(2):
        pages.write_svgs(tmp_path / "figures", [rich_chart])
        written.append({path.name: path.read_bytes() for path in (tmp_path / "figures").iterdir()})
    assert written[0] == written[1]
    assert set(written[0]) == {"rich.svg", "rich-dark.svg"}
    for name, theme in (("rich.svg", LIGHT), ("rich-dark.svg", DARK)):
        root = ET.fromstring(written[0][name])
        assert abs(int(root.attrib["width"]) - 864) <= 12
        colours = set(re.findall(r"#[0-9a-f]{6}", written[0][name].decode()))
        expected = {theme["background"], *theme["range"]["category"][:2], theme["axis"]["labelColor"]}
        assert expected <= colours
        texts = {"".join(text.itertext()) for text in root.iter("{http://www.w3.org/2000/svg}text")}
        assert {"a & b", "<c>", "$d$", "level", "place"} <= texts


def test_a_page_escapes_what_it_shows(rich_chart: Chart) -> None:
    page = pages.html_page("<script>alert(1)</script>", pages.html_figure(rich_chart), [rich_chart])
    assert "<title>&lt;script&gt;alert(1)&lt;/script&gt;</title>" in page
    assert 'aria-label="All &quot;there&quot; is"' in page
    assert page.count("<script") == page.count("</script>") == 3
    data = re.search(r'<script type="application/json" id="charts">(.*?)</script>', page)
    assert data is not None
    assert json.loads(data[1])["charts"]["chart-rich"] == rich_chart.to_dict()


def test_only_the_scripts_of_the_page_may_run_and_nothing_is_loaded() -> None:
    closed = "default-src 'none'; base-uri 'none'; form-action 'none'"
    policy = r'Content-Security-Policy" content="([^"]*)"'
    match = re.search(policy, pages.html_page("A page", "text", []))
    assert match is not None
    assert match[1] == f"{closed}; style-src 'unsafe-inline'; img-src data:; script-src 'none'"


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300), st.integers(4, 50))
def test_a_thinned_curve_is_short_and_keeps_its_extremes(numbers: list[float], most: int) -> None:
    thin = specs.thinned(pd.DataFrame({"x": range(len(numbers)), "y": numbers}), most)
    assert len(thin) <= most
    assert thin["y"].min() == min(numbers)
    assert thin["y"].max() == max(numbers)
    assert thin["x"].is_monotonic_increasing


def test_smoothing_weighs_by_distance_on_both_sides() -> None:
    assert specs.smoothed(np.array([2.0, 1.0]), 0.0).tolist() == [2.0, 1.0]
    assert specs.smoothed(np.array([2.0, 1.0]), 0.5).tolist() == pytest.approx([2.25 / 1.25, 1.5 / 1.25])
    assert len(specs.smoothed(np.array([]), 0.9)) == 0
    falling = np.linspace(8.0, 4.0, 101)
    assert specs.smoothed(falling, 0.9)[40:-40] == pytest.approx(falling[40:-40], abs=1e-3), "no lag"


def test_a_curve_leaves_out_what_is_not_finite() -> None:
    frame = pd.DataFrame({"tokens": [1.0, 2.0, 3.0, 4.0], "loss": [5.0, math.nan, math.inf, 4.0]})
    assert specs.curve(frame, "loss").to_dict("list") == {"x": [1.0, 4.0], "y": [5.0, 4.0]}
    assert specs.curve(frame, "absent").empty


def test_curves_are_read_in_the_order_of_steps() -> None:
    frame = parse_curves(io.StringIO("step,tokens,train/loss,event\n2,20,,spike\n1,10,5.0,\n"), "curves.csv")
    assert frame["step"].tolist() == [1.0, 2.0]
    assert frame["event"].tolist() == ["", "spike"]
    assert specs.curve(frame, "train/loss")["y"].tolist() == [5.0]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", r"x/curves\.csv"),
        ("step\n1\n", r"x/curves\.csv.*tokens"),
        ("step,tokens,a\n1,2,x\n", r"x/curves\.csv.*x"),
        ("step,tokens\n1,\n", r"x/curves\.csv"),
        ("step,tokens\n1,1e400\n", r"x/curves\.csv"),
    ],
)
def test_a_damaged_curves_file_is_named(text: str, match: str) -> None:
    with pytest.raises(UserError, match=match):
        parse_curves(io.StringIO(text), "x/curves.csv")


def test_missing_curves_name_the_stage(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"curves\.csv.*dvc repro train"):
        read_curves(tmp_path / "curves.csv")
