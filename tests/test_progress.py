"""Progress bars, and the plain lines in their place where there is no terminal."""

import re
import sys
from contextlib import nullcontext

import pytest

from pipeline.log import StandardOutput, logger
from pipeline.progress import Progress


def test_the_bar_is_cleared_before_a_line_is_logged(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(StandardOutput, "around", nullcontext)  # as before the first bar
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress("train", 10, "tok") as progress:
        progress.advance(5)
        capsys.readouterr()
        logger.info("step 5: validation loss 6.9861")
        output, bar = capsys.readouterr()
    assert output == "step 5: validation loss 6.9861\n"
    assert re.match(r"\r +\r", bar), repr(bar)


@pytest.mark.parametrize(
    ("total", "line"),
    [
        (20, r"train 15/20 tok \(75%\) \| [\d,.]+ tok/s \| ETA \S+ s \| loss 3\.2\n"),
        (None, r"train 15 tok \| [\d,.]+ tok/s \| loss 3\.2\n"),
    ],
)
def test_without_a_terminal_lines_have_share_rate_and_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], total: int | None, line: str
) -> None:
    with Progress("train", total, "tok", start=10) as progress:
        progress.advance(2)
        monkeypatch.setattr("pipeline.progress.PLAIN_INTERVAL_S", 0)
        progress.advance(3, loss="3.2")
    assert re.fullmatch(line, capsys.readouterr().out)
