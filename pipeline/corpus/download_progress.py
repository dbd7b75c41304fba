"""How far a download is: a bar or lines with an ETA where its size is known, else the count at intervals."""

import time
from types import TracebackType
from typing import Self

from pipeline.log import logger
from pipeline.progress import PLAIN_INTERVAL_S, Progress


class DownloadProgress:
    """Counts the documents that come and their bytes.

    with DownloadProgress(expected_documents, None, documents=0, utf8_bytes=0) as progress:
        progress.advance(len(text.encode()))
    """

    def __init__(
        self, expected_documents: int | None, expected_bytes: int | None, documents: int, utf8_bytes: int
    ) -> None:
        """What is expected in all, as far as it is known (the documents, where both are), and what is there already."""
        self.documents, self.utf8_bytes, self._last_line = documents, utf8_bytes, time.monotonic()
        self._progress: Progress | None = None
        self._counts_bytes = expected_documents is None
        if expected_documents is not None:
            self._progress = Progress("download", expected_documents, "docs", start=documents)
        elif expected_bytes is not None:
            self._progress = Progress("download", expected_bytes, "B", start=utf8_bytes)

    def advance(self, utf8_bytes: int) -> None:
        """Counts one document of so many bytes."""
        self.documents += 1
        self.utf8_bytes += utf8_bytes
        if self._progress is not None:
            count = utf8_bytes if self._counts_bytes else 1
            self._progress.advance(count, text=f"{self.utf8_bytes / 1e6:,.1f} MB")
        elif time.monotonic() - self._last_line >= PLAIN_INTERVAL_S:
            self.write(f"download: {self}")

    def write(self, text: str) -> None:
        """Prints a line without tearing the bar."""
        self._last_line = time.monotonic()
        if self._progress is not None:
            self._progress.write(text)
        else:
            logger.info("%s", text)

    def __str__(self) -> str:
        return f"{self.documents:,} documents, {self.utf8_bytes / 1e6:,.1f} MB"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.__exit__(kind, error, trace)
