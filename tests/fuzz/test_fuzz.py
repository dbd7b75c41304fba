"""Whatever is in a file, the product works or refuses it in one line that names it; and these tests find bugs."""

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pipeline.files import read_json
from tests.fuzz.cases import Failure, check, run_case, workspace
from tests.fuzz.kinds import KINDS

EXAMPLES = 15


@pytest.fixture(scope="module")
def space() -> Iterator[Path]:
    with workspace() as directory:
        yield directory


@pytest.mark.parametrize("name", KINDS)
def test_a_damaged_file_is_refused_in_one_line_that_names_it(name: str, space: Path) -> None:
    assert run_case(space, name, None) == "worked"

    # Without shrinking, which can take minutes; the failure shows the content.
    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.randoms(use_true_random=False))
    def damaged(rng: random.Random) -> None:
        try:
            run_case(space, name, rng)
        except Failure as failure:
            failure.add_note(repr((space / "damaged").read_bytes()[:1000]))
            raise

    damaged()


def refuse(message: str) -> None:
    raise OSError(message)


def allocate() -> None:
    bytearray(2**40)


@pytest.mark.parametrize(
    ("use", "expected"),
    [
        (lambda: [0][1], r"IndexError: .*out of range"),
        (lambda: time.sleep(9), r"longer than 0.1 s"),
        (lambda: refuse("it is damaged"), r"does not name the file"),
        (lambda: refuse("a.json: damaged\nwhat now?"), r"more than one line"),
        (allocate, r"MemoryError"),
        (lambda: print("\ud800"), r"UnicodeEncodeError"),
    ],
)
def test_bugs_are_found(use: Callable[[], object], expected: str, tmp_path: Path) -> None:
    with pytest.raises(Failure, match=expected):
        check(tmp_path, "a.json", use, limit_s=0.1)


def test_errors_of_the_right_form_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    assert check(tmp_path, "a.json", lambda: read_json(Path("a.json"))) == "refused"
    assert check(tmp_path, "a.json", lambda: Path("b/a.json").read_text()) == "refused"
    assert check(tmp_path, "a.json", lambda: refuse("a.json has mistakes:\n  one\n  two")) == "refused"
