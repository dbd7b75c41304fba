"""The HTML pages in a real browser: nothing in the console, every figure drawn, values under the mouse."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest

from pipeline.reporting.compare import write_comparison
from pipeline.reporting.report import write_report

from . import fixtures
from .test_compare import seeds, sizes

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")]


OVERLAPPING = """
const found = [];
for (const figure of document.querySelectorAll(".figure")) {
  const words = [...figure.querySelectorAll(".infolayer text")].filter(text => text.textContent);
  const boxes = [...words, figure.querySelector(".modebar")].map(part => [part, part.getBoundingClientRect()]);
  for (const [place, [part, one]] of boxes.entries())
    for (const [other, two] of boxes.slice(place + 1))
      if (one.left < two.right && two.left < one.right && one.top < two.bottom && two.top < one.bottom)
        found.push([part.textContent, other.textContent || "buttons"]);
}
const buttons = [...document.querySelectorAll(".modebar-btn")].map(button => button.dataset.title);
document.title = JSON.stringify({ overlapping: found, buttons: [...new Set(buttons)].sort() });
"""
"""Sets the page's title to the pairs of words and buttons, in one figure, that cover each other, and to all buttons."""


def browse(page: Path, profile: Path, width: int = 1200) -> tuple[str, list[str]]:
    """Opens a page from disk in a window so wide; (the document as it stands then, the console's lines)."""
    done = subprocess.run(
        [
            str(CHROMIUM),
            *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
            *("--enable-logging=stderr", "--virtual-time-budget=5000", f"--user-data-dir={profile}", "--dump-dom"),
            f"--window-size={width},900",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def with_script(page: Path, script: str) -> Path:
    """A copy of the page that runs one more script at its end."""
    copy = page.with_name(f"scripted-{page.name}")
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", f"<script>{script}</script></body>"))
    return copy


def test_the_report_opens_from_disk_with_every_figure_drawn_and_a_silent_console(tmp_path: Path) -> None:
    root = fixtures.write_run(tmp_path / "run", fixtures.curves(200))
    write_report(root, "A model", 0.9)
    page = root / "reports/report.html"
    hover = "Plotly.Fx.hover('figure-loss', [{curveNumber: 1, pointNumber: 100}]);"
    document, console = browse(with_script(page, hover), tmp_path / "profile")
    assert console == []
    body = document[document.rindex("<main>") :]
    assert body.count('class="main-svg"') >= 2 * body.count('class="figure') > 0
    hovered = re.sub(r"<[^>]*>", "", body[body.index('class="hoverlayer"') :])
    assert re.search(r"training, smoothed[ :]*\d\.\d\d", hovered), hovered[:300]
    assert "http" not in "".join(part.split('"')[0] for part in body.split('src="')[1:])


@pytest.mark.parametrize("width", [1200, 500])
def test_in_a_wide_and_a_narrow_window_nothing_in_a_figure_covers_its_words(tmp_path: Path, width: int) -> None:
    root = fixtures.write_run(tmp_path / "run", fixtures.curves(200))
    write_report(root, "A model", 0.9)
    document, _ = browse(with_script(root / "reports/report.html", OVERLAPPING), tmp_path / "profile", width)
    found = json.loads(unescape(document[document.index("<title>") + 7 : document.index("</title>")]))
    assert found == {"overlapping": [], "buttons": ["Download plot as a PNG", "Pan", "Reset axes", "Zoom"]}


def test_in_a_narrow_window_a_number_stays_on_one_line_with_its_unit(tmp_path: Path) -> None:
    root = fixtures.write_run(tmp_path / "run", fixtures.curves(20, accuracy="hellaswag"), is_hellaswag=True)
    write_report(root, "A model", 0.9)
    broken = """
        const texts = document.evaluate('//td[contains(@style, "right")]//text()', document, null, 7);
        const broken = [];
        for (let place = 0; place < texts.snapshotLength; place++) {
          const range = new Range();
          range.selectNode(texts.snapshotItem(place));
          if (range.getClientRects().length > 1) broken.push(range.toString());
        }
        document.title = `${texts.snapshotLength} texts, broken: ${broken}`;
    """
    document, _ = browse(with_script(root / "reports/report.html", broken), tmp_path / "profile", width=500)
    title = document[document.index("<title>") + 7 : document.index("</title>")]
    assert re.fullmatch(r"\d\d texts, broken: ", title), title


def test_the_coloured_text_is_selected_as_it_is(tmp_path: Path) -> None:
    root = fixtures.write_run(tmp_path / "run", fixtures.curves(20))
    write_report(root, "A model", 0.9)
    select = "const text = document.querySelector('.surprise .text'); getSelection().selectAllChildren(text);"
    shown = (
        "document.title = JSON.stringify([getSelection().toString(), getComputedStyle(text.lastChild).backgroundColor])"
    )
    page = with_script(root / "reports/report.html", select + shown)
    document, console = browse(page, tmp_path / "profile")
    assert console == []
    assert '<title>["KING\\nThe telephone","rgb(130, 30, 0)"]</title>' in document


def test_a_broken_page_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<body><script>throw new Error('broken')</script></body>")
    _, console = browse(page, tmp_path / "profile")
    assert any("broken" in line for line in console)


@pytest.mark.parametrize("kind", ["seeds", "sizes"])
def test_the_comparison_opens_from_disk_with_a_silent_console(tmp_path: Path, kind: str) -> None:
    found = seeds("rope", [3.5, 3.51]) + seeds("learned", [3.6, 3.61]) if kind == "seeds" else sizes(1, 2, 4, 8)
    write_comparison(tmp_path, found, "A question", 0.9, html=True)
    document, console = browse(tmp_path / "compare.html", tmp_path / "profile")
    assert console == []
    body = document[document.rindex("<main>") :]
    assert body.count('class="main-svg"') >= 2 * body.count('class="figure')
