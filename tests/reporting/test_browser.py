"""The HTML pages in a real browser: a silent console, every chart drawn, values under the mouse, both schemes."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from pipeline.charts.pages import DARK, LIGHT
from pipeline.comparison.page import write_comparison
from pipeline.reporting.report import write_report
from tests.comparison.builders import run

from . import fixtures

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    frame = fixtures.curves(200, accuracy="hellaswag")
    frame.loc[[0, 100, 199], "hellaswag/acc_norm"] = [0.25, 0.28, 0.3]
    metrics = fixtures.evaluation_metrics("hellaswag")
    root = fixtures.write_run(tmp_path_factory.mktemp("run"), frame, metrics=metrics)
    return root / write_report(root, "A model", 0.9).with_suffix(".html")


def browse(page: Path, script: str = "", style: str = "", dark: bool = False) -> tuple[Any, list[str]]:
    """Opens a page from disk. Returns (what `script`, the body of an async function, returns, the console's lines).

    The script waits until every chart is drawn. `style`: more CSS.
    """
    text = page.read_text(encoding="utf-8")
    script = (
        "(async () => { const drawn = () => document.querySelectorAll('.chart svg.marks').length === "
        "document.querySelectorAll('.chart').length; while (!drawn()) await new Promise(r => setTimeout(r, 50));"
        f"const run = async () => {{ {script} }}; document.title = JSON.stringify((await run()) ?? null); }})();"
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = text.replace("script-src", f"script-src 'sha256-{digest}'", 1).replace("</style>", f"{style}</style>", 1)
    start, _, end = text.rpartition("</body>")
    copy = page.with_name("scripted.html")
    copy.write_text(f"{start}<script>{script}</script></body>{end}", encoding="utf-8")
    result = subprocess.run(
        [
            str(CHROMIUM),
            *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
            *("--enable-logging=stderr", "--virtual-time-budget=10000", "--dump-dom", "--window-size=1200,900"),
            f"--user-data-dir={page.parent / 'profile'}",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            copy.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    title = unescape(result.stdout.partition("<title>")[2].partition("</title>")[0])
    return json.loads(title), [line for line in result.stderr.splitlines() if "CONSOLE" in line]


def test_every_chart_is_drawn_and_shows_values_under_the_mouse(page: Path) -> None:
    hover = """
        const box = document.querySelector("#chart-loss svg.marks").getBoundingClientRect();
        const place = { clientX: box.left + box.width / 2, clientY: box.top + box.height / 2, bubbles: true };
        const element = document.elementFromPoint(place.clientX, place.clientY);
        for (const type of ["pointerover", "pointermove", "mouseover", "mousemove"])
          element.dispatchEvent(new PointerEvent(type, place));
        await new Promise(resolve => setTimeout(resolve, 300));
        const tooltip = document.querySelector("#vg-tooltip-element");
        return [document.querySelectorAll(".chart svg.marks").length, tooltip?.textContent];
    """
    (charts, tooltip), console = browse(page, hover)
    assert console == []
    assert charts == 3
    assert re.fullmatch(r"series(training|validation.*)tokens[\d.]+[kM]loss\d\.\d+", tooltip)


@pytest.mark.parametrize(("dark", "theme"), [(False, LIGHT), (True, DARK)], ids=["light", "dark"])
def test_the_colours_are_those_of_the_readers_scheme(page: Path, dark: bool, theme: dict[str, Any]) -> None:
    colours = """
        const color = document.querySelector("#chart-loss svg.marks").style.backgroundColor;
        return "#" + color.match(/\\d+/g).map(part => Number(part).toString(16).padStart(2, "0")).join("");
    """
    background, _ = browse(page, colours, dark=dark)
    assert background == theme["background"]


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of ten runs with long names, of which one is short."""
    runs = [
        run(
            f"position=rope,norm=rmsnorm,mlp=swiglu,max_lr={n / 1e3},warmup_steps=30",
            3.5 + n / 10,
            curves=fixtures.curves(60 if n else 6),
            train__max_lr=n / 1e3,
        )
        for n in range(10)
    ]
    folder = tmp_path_factory.mktemp("comparison")
    return write_comparison(folder, runs, "Ten runs", 0.9, html=True).with_suffix(".html")


@pytest.mark.parametrize("width", [1100, 420])
@pytest.mark.parametrize("pages", ["page", "comparison"])
def test_nothing_overlaps_or_is_cut_off(pages: str, width: int, request: pytest.FixtureRequest) -> None:
    page: Path = request.getfixturevalue(pages)
    overlaps = """
        const pairs = [];
        for (const chart of document.querySelectorAll(".chart")) {
          const boxes = [...chart.querySelectorAll("svg.marks text"), chart.querySelector("summary")]
            .filter(part => part.tagName === "SUMMARY" || part.textContent.trim())
            .filter(part => part.getAttribute("opacity") !== "0")
            .map(part => [part.textContent.trim(), part.getBoundingClientRect()]);
          const frame = chart.getBoundingClientRect();
          for (const [index, [text, a]] of boxes.entries()) {
            if (a.right > frame.right + 1) pairs.push([text, "edge"]);
            for (const [other, b] of boxes.slice(index + 1))
              if (a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom)
                pairs.push([text, other]);
          }
        }
        const headings = [...document.querySelectorAll("th")].map(cell => cell.getBoundingClientRect().height);
        return [pairs, document.documentElement.scrollWidth, Math.max(...headings)];
    """
    style = f"body {{ width: {width}px !important; }}"
    (pairs, scroll_width, highest), console = browse(page, overlaps, style=style)
    assert console == []
    assert pairs == []
    assert scroll_width <= 1200
    assert highest < 100, "a heading is not broken into letters"


def test_the_coloured_text_can_be_copied_as_it_is(page: Path) -> None:
    select = """
        const text = document.querySelector(".surprisal .text");
        getSelection().selectAllChildren(text);
        return getSelection().toString();
    """
    assert browse(page, select)[0] == "KING\nThe telephone"


def test_foreign_scripts_do_not_run(page: Path) -> None:
    script = (
        "const s = document.createElement('script'); s.textContent = 'window.foreign = 1'; document.body.append(s);"
    )
    ran, console = browse(page, f"{script} return window.foreign ?? 0;")
    assert ran == 0
    assert len(console) == 1, "a broken page is noticed"
