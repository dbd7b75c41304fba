"""docs/experiments: what an experiment's README says in numbers stands in the page beside it."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2] / "docs/experiments"
WITH_ERROR = re.compile(r"(\d\.\d+) ± (\d\.\d+)")


def test_every_number_with_an_error_is_one_of_the_page_rounded_as_it_is_written() -> None:
    found = 0
    for readme in ROOT.glob("*/README.md"):
        page = WITH_ERROR.findall((readme.parent / "compare.md").read_text(encoding="utf-8"))
        for value, error in WITH_ERROR.findall(readme.read_text(encoding="utf-8")):
            digits = len(value.partition(".")[2])
            assert (value, error) in {(f"{float(v):.{digits}f}", f"{float(e):.{digits}f}") for v, e in page}, readme
            found += 1
    assert found > 10


def test_a_kept_page_sends_nobody_to_experiments_that_they_do_not_have() -> None:
    pages = [path.read_text(encoding="utf-8") for path in ROOT.glob("*/compare.md")]
    assert pages
    for page in pages:
        assert "Run from commit" in page
        assert "dvc exp run -S" in page
        assert "exp apply" not in page
