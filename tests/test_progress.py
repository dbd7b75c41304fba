"""Progress and the lines that are printed beside it."""

import re
import sys
from contextlib import nullcontext

import pytest

from pipeline.log import StandardOutput, logger
from pipeline.progress import Progress


def test_a_logged_line_finds_the_bar_cleared(
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
