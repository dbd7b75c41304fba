"""Progress of long work: a bar with an ETA in a terminal, one plain line at intervals in a log."""

import sys
import time
from collections import deque
from typing import Any, Self

from tqdm import tqdm

from pipeline.formatting import format_duration
from pipeline.log import StandardOutput, logger, rank

PLAIN_INTERVAL_S = 10.0
RATE_WINDOW_S = 60.0  # the rate, and so the ETA, is that of the last minute


class Progress:
    """Counts work in a unit of the caller's and shows the rate and the time left. Silent on ranks other than 0.

    with Progress("tokenize", total=n, unit="tok") as progress:
        progress.advance(len(tokens), loss="3.21")
    """

    def __init__(self, label: str, total: int | None, unit: str = "", start: int = 0) -> None:
        """`total`: None where it is not known. `unit`: without one, only the share of the total is shown, for a caller
        that knows the time left better. `start`: done by an earlier run; not part of the rate.
        """
        self.label, self.total, self.unit = label, total, unit
        self.done = start
        self.last_line = time.monotonic()
        self._recent: deque[tuple[float, int]] = deque([(self.last_line, start)])  # time, work done by then
        self.note = ""
        self.bar: tqdm[Any] | None = None
        if sys.stderr.isatty() and rank() == 0:
            StandardOutput.around = tqdm.external_write_mode  # otherwise a logged line corrupts the bar
            self.bar = tqdm(
                total=total,
                initial=start,
                desc=label,
                unit=f" {unit}",
                unit_scale=True,
                dynamic_ncols=True,
                leave=True,
                bar_format=None if unit else "{desc}: {percentage:3.0f}%{postfix} |{bar}|",
            )

    def advance(self, count: int = 1, **values: str) -> None:
        """Adds `count` to the work done; `values` are short named texts to show beside it."""
        self.done += count
        if values:
            self.note = ", ".join(f"{name} {value}" for name, value in values.items())
        if self.bar is not None:
            self.bar.set_postfix_str(self.note, refresh=False)
            self.bar.update(count)
        elif time.monotonic() - self.last_line >= PLAIN_INTERVAL_S:
            self._log_line()

    def _log_line(self) -> None:
        now = time.monotonic()
        self.last_line = now
        self._recent.append((now, self.done))
        while len(self._recent) > 2 and now - self._recent[0][0] > RATE_WINDOW_S:
            self._recent.popleft()
        since, before = self._recent[0]
        rate = (self.done - before) / max(now - since, 1e-9)
        columns = [f"{self.label} {self.done} {self.unit}", f"{rate:,.1f} {self.unit}/s"]
        if self.total is not None:
            percent = f"{100 * self.done // max(self.total, 1)}%"
            left = (self.total - self.done) / rate if rate > 0 else float("inf")
            columns[0] = f"{self.label} {self.done}/{self.total} {self.unit} ({percent})"
            columns.append(f"ETA {format_duration(left)}")
            if not self.unit:
                columns = [f"{self.label} {percent}"]
        if self.note:
            columns.append(self.note)
        logger.info("%s", " | ".join(columns))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()
