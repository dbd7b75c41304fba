"""Progress of long work: a bar with an ETA in a terminal, one plain line at intervals in a log."""

import sys
import time
from collections import deque
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

from pipeline.log import StandardOutput, logger, rank

PLAIN_INTERVAL_S = 10.0
RATE_WINDOW_S = 60.0  # the rate, and so the ETA, is that of the last minute


class Progress:
    """Counts work done out of `total` units and shows the rate and the time left. Silent on ranks other than 0.

    with Progress("tokenize", total=n, unit="tok") as progress:
        progress.advance(len(tokens), loss="3.21")
    """

    def __init__(self, label: str, total: int, unit: str, start: int = 0) -> None:
        """`start`: units that an earlier run had done; they do not count towards the rate."""
        self.label, self.total, self.unit = label, total, unit
        self.done = start
        self.last_line = time.monotonic()
        self._recent: deque[tuple[float, int]] = deque([(self.last_line, start)])  # when, how much was done
        self.note = ""
        self.bar: tqdm[Any] | None = None
        if sys.stderr.isatty() and rank() == 0:
            StandardOutput.around = tqdm.external_write_mode  # else a line that is logged tears the bar
            self.bar = tqdm(
                total=total, initial=start, desc=label, unit=unit, unit_scale=True, dynamic_ncols=True, leave=True
            )

    def advance(self, count: int = 1, **shown: str) -> None:
        """Adds `count` units; `shown` are short named values to print beside the bar."""
        self.done += count
        if shown:
            self.note = ", ".join(f"{name} {value}" for name, value in shown.items())
        if self.bar is not None:
            self.bar.set_postfix_str(self.note, refresh=False)
            self.bar.update(count)
        elif time.monotonic() - self.last_line >= PLAIN_INTERVAL_S:
            self._line()

    def write(self, text: str) -> None:
        """Prints a line without tearing the bar."""
        if rank() != 0:
            return
        if self.bar is not None:
            self.bar.write(text)
        else:
            logger.info("%s", text)

    def _line(self) -> None:
        now = time.monotonic()
        self.last_line = now
        self._recent.append((now, self.done))
        while len(self._recent) > 2 and now - self._recent[0][0] > RATE_WINDOW_S:
            self._recent.popleft()
        since, before = self._recent[0]
        rate = (self.done - before) / max(now - since, 1e-9)
        left = (self.total - self.done) / rate if rate > 0 else float("inf")
        share = 100 * self.done / max(self.total, 1)
        note = f" | {self.note}" if self.note else ""
        logger.info(
            "%s %d/%d %s (%.0f%%) | %s/s | ETA %s%s",
            self.label,
            self.done,
            self.total,
            self.unit,
            share,
            f"{rate:,.1f} {self.unit}",
            format_duration(left),
            note,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.close()


def format_duration(seconds: float) -> str:
    """`95.2` as `1m35s`; infinity as `?`."""
    if seconds == float("inf"):
        return "?"
    seconds = round(seconds)
    hours, minutes, seconds = seconds // 3600, seconds % 3600 // 60, seconds % 60
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{seconds:02d}s" if minutes else f"{seconds}s"
