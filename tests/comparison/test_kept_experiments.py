"""docs/experiments: the numbers in an experiment's README are those of its pages."""

import re

from tests.dag.imports import ROOT

EXPERIMENTS = ROOT / "docs/experiments"
WITH_ERROR = re.compile(r"(\d\.\d+) ± (\d\.\d+)")


def test_numbers_with_an_error_are_those_of_the_pages_rounded() -> None:
    checked = 0
    for readme in EXPERIMENTS.glob("*/README.md"):
        pages = "".join(page.read_text(encoding="utf-8") for page in readme.parent.rglob("compare.md"))
        for value, error in WITH_ERROR.findall(readme.read_text(encoding="utf-8")):
            digits = len(value.partition(".")[2])
            measured = {(f"{float(v):.{digits}f}", f"{float(e):.{digits}f}") for v, e in WITH_ERROR.findall(pages)}
            assert (value, error) in measured, readme
            checked += 1
    assert checked > 10


def test_a_kept_page_needs_no_experiments_of_another_clone() -> None:
    pages = [path.read_text(encoding="utf-8") for path in EXPERIMENTS.rglob("compare.md")]
    assert pages
    for page in pages:
        assert "git checkout" in page
        assert "dvc exp run -S" in page
        assert "exp apply" not in page


def test_figures_of_a_kept_page_exist() -> None:
    for page in EXPERIMENTS.rglob("compare.md"):
        for path in re.findall(r'(?:src|srcset)="([^"]+)"', page.read_text(encoding="utf-8")):
            assert (page.parent / path).exists(), path
