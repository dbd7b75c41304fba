"""curves.csv and samples.json survive kills: only whole rows, each step once."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.artifacts import TrainingSamples
from pipeline.curves import Curves, SampleLog, typed


def row(step: int, **cells: object) -> dict[str, object]:
    return {"step": step, "tokens": step * 8, "train/loss": 5 - step / 10, "event": "", **cells}


@pytest.fixture
def curves(tmp_path: Path) -> Curves:
    curves = Curves(tmp_path / "state" / "curves.csv", tmp_path / "reports" / "curves.csv", ("next_lines/acc",))
    curves.rewind(0)
    return curves


def steps(path: Path) -> list[int]:
    with path.open(newline="") as file:
        return [int(row["step"]) for row in csv.DictReader(file)]


def test_rows_are_kept_and_published(curves: Curves) -> None:
    curves.record([row(1), row(2, **{"val/loss": 4.5, "next_lines/acc": 0.3})])
    curves.flush()
    assert curves.published.read_bytes() == curves.path.read_bytes()
    with curves.published.open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
    assert (last["val/loss"], last["next_lines/acc"], last["train/grad_norm"]) == ("4.5", "0.3", "")


def test_a_resumed_run_writes_no_step_twice(curves: Curves) -> None:
    curves.record([row(step) for step in range(1, 8)])
    again = Curves(curves.path, curves.published, ("next_lines/acc",))
    again.rewind(5)
    again.record([row(step) for step in range(6, 9)])
    assert steps(curves.path) == list(range(1, 9))


def test_a_resumed_run_without_steps_left_publishes_its_rows(curves: Curves) -> None:
    curves.record([row(1), row(2)])
    curves.flush()
    curves.published.unlink()  # as DVC does before it runs the stage
    Curves(curves.path, curves.published, ("next_lines/acc",)).rewind(2)
    assert steps(curves.published) == [1, 2]


def test_an_incomplete_row_is_dropped(curves: Curves) -> None:
    curves.record([row(1), row(2)])
    content = curves.path.read_bytes()
    curves.path.write_bytes(content + b"3,24,4.")
    assert [row["step"] for row in curves.rows()] == ["1", "2"]
    curves.rewind(2)
    assert curves.path.read_bytes() == content


@pytest.mark.parametrize(
    ("damage", "missing"),
    [
        (lambda content: None, "5 rows, the first of step 1"),
        (lambda content: b"", "5 rows, the first of step 1"),
        (lambda content: content[: content.index(b"\n4,") + 3], "2 rows, the first of step 4"),
        (lambda content: content.replace(b"\n2,", b"\n\xff,"), "1 rows, the first of step 2"),
        (lambda content: content.replace(b"\n2,", b'\n2,"'), "1 rows, the first of step 2"),
        (lambda content: content.replace(b"\n2,", b"\n2\0"), "1 rows, the first of step 2"),
        (lambda content: content.replace(b"\n2,", b"\n,"), "1 rows, the first of step 2"),
        (lambda content: content.replace(b"\n2,", b"\n" + 200_000 * b"2"), "1 rows, the first of step 2"),
    ],
)
def test_missing_rows_are_one_warning(
    curves: Curves, damage: Callable[[bytes], bytes | None], missing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    curves.record([row(step) for step in range(1, 8)])
    curves.rewind(5)
    content = damage(curves.path.read_bytes())
    assert capsys.readouterr().out == ""
    if content is None:
        curves.path.unlink()
    else:
        curves.path.write_bytes(content)
    curves.rewind(5)
    assert missing in capsys.readouterr().out
    assert curves.path.read_text().splitlines()[0] == ",".join(curves.columns)
    curves.record([row(6)])
    assert steps(curves.path)[-1] == 6


def test_rows_of_other_columns_are_kept(curves: Curves) -> None:
    curves.record([row(1, **{"next_lines/acc": 0.5})])
    again = Curves(curves.path, curves.published, ("hellaswag/acc",))
    again.rewind(1)
    assert [(cells["step"], cells["hellaswag/acc"]) for cells in again.rows()] == [("1", "")]


def test_a_new_run_begins_an_empty_file(curves: Curves) -> None:
    curves.record([row(1)])
    curves.rewind(0)
    assert steps(curves.path) == []


def test_typed_rows_equal_the_recorded_ones(curves: Curves) -> None:
    recorded = row(1, **{"val/loss": 4.25, "train/mfu": None, "event": "spike"})
    curves.record([recorded])
    (read,) = (typed(cells) for cells in curves.rows())
    assert read == dict.fromkeys(curves.columns) | recorded


def test_a_resumed_run_keeps_each_sample_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, published = tmp_path / "state" / "samples.json", tmp_path / "reports" / "samples.json"

    def resume(step: int, *sampled: int) -> list[tuple[int, int, str]]:
        log = SampleLog(path, published)
        log.rewind(step)
        log.record([row(step), *(row(step, sample=f"text {step}") for step in sampled)])
        assert published.read_bytes() == path.read_bytes()
        return [(sample.step, sample.tokens, sample.text) for sample in TrainingSamples.read(published).samples]

    assert resume(0, 0, 4, 8) == [(step, 8 * step, f"text {step}") for step in (0, 4, 8)]
    published.unlink()  # as DVC may do before it runs the stage
    assert resume(4, 8, 12) == [(step, 8 * step, f"text {step}") for step in (0, 4, 8, 12)]
    assert resume(12) == resume(12, 12)[:4]
    assert resume(0) == []
    path.write_bytes(b"[")
    assert resume(4, 8) == [(8, 64, "text 8")]
    assert "samples.json" in capsys.readouterr().out
