"""Where the items of data/benchmarks come from: the hub, files, or the validation documents.

Items made from documents (the task next_lines) are the offline substitute for HellaSwag. They test something simpler:
whether the model prefers a text's true continuation to text from elsewhere. They are never reported as HellaSwag.
"""

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.artifacts import SOURCE_FILE, BenchmarkSource, RawCorpus, TaskSource
from pipeline.corpus.benchmarks import (
    ENDINGS,
    TASKS,
    HellaSwagItem,
    Item,
    items_file,
    parse_item,
    read_items,
    subset,
    write_items,
)
from pipeline.corpus.documents import read_texts
from pipeline.corpus.params import BenchmarkParams
from pipeline.corpus.readers import HubStream
from pipeline.files import atomic_directory, parsing
from pipeline.log import UserError

CONTEXT_CHARACTERS = 200
ENDING_CHARACTERS = 60
MIN_SPACING = 1_000  # characters between items
NEIGHBORS = 50  # false endings are taken from this many shorter and this many longer ones
CANDIDATES = 12  # of those, the nearest in length


def fetch_benchmarks(params: BenchmarkParams, root: Path, raw: Path, out: Path) -> BenchmarkSource:
    """Writes <task>.jsonl for each task, and source.json, to `out` (data/benchmarks), which is replaced as a whole.

    `root`: the repository's root, to which `directory` is relative. `raw`: data/raw, for next_lines.
    Raises UserError or OSError that names the cause.
    """
    sources: dict[str, TaskSource] = {}
    with atomic_directory(out, ("*.jsonl", SOURCE_FILE)) as directory:
        for task in params.tasks:
            items, origin = _items(task, params, root, raw)
            items = subset(items, params.items)
            write_items(items_file(directory, task), items)
            sources[task] = TaskSource(items=len(items), origin=origin)
        source = BenchmarkSource(tasks=sources)
        source.write(directory / SOURCE_FILE)
    return source


def _items(task: str, params: BenchmarkParams, root: Path, raw: Path) -> tuple[list[Item], str]:
    """The items of a task and their origin."""
    if task == "next_lines":
        return list(next_lines(raw, params.items)), "validation documents"
    if params.directory is not None:
        path = items_file(root / params.directory, task)
        if not path.is_file():
            raise UserError(f"benchmarks.directory ({params.directory}): no file {path}")
        return read_items(path, task), str(Path(params.directory, path.name))
    stream = HubStream(TASKS[task].hub_path, TASKS[task].hub_name, TASKS[task].hub_split, "main")
    return list(_hub_items(task, stream)), f"{stream.path} at {stream.commit}"


def _hub_items(task: str, stream: HubStream) -> Iterator[Item]:
    """The split of the hub's dataset whose answers are public. Raises UserError."""
    number, expected = 0, TASKS[task].hub_items
    for number, row in enumerate(stream.rows(), start=1):
        with parsing(f"{stream.path}: row {number - 1}"):
            item = parse_item(row, task)
        yield item
    if number != expected:
        raise UserError(f"{stream.path}: {number} items, but the {TASKS[task].hub_split} split has {expected:,}")


@dataclass(frozen=True)
class _Excerpt:
    """A context and its true ending, from one document."""

    document: int
    label: str
    context: str
    ending: str


def next_lines(raw: Path, limit: int | None) -> Iterator[HellaSwagItem]:
    """At most `limit` items from the validation documents in data/raw, evenly spaced and deterministic.

    A context of about 200 characters ends at a space within a line. Its true ending is the next 60 characters, up to a
    word boundary. The false endings are true endings of other items, of similar length and, where possible, from other
    documents. Raises UserError when the validation documents are too short for four items.
    """
    corpus = RawCorpus.read(raw / SOURCE_FILE)
    files = corpus.splits.get("val", [])
    characters = sum(len(text) for text in read_texts(raw, files)) if limit else 0
    spacing = max(MIN_SPACING, characters // limit) if limit else MIN_SPACING
    excerpts = list(itertools.islice(_excerpts(read_texts(raw, files), spacing), limit))
    if len(excerpts) < ENDINGS:
        raise UserError(
            f"benchmarks.tasks (next_lines): the {corpus.utf8_bytes('val')} bytes of validation documents give "
            f"{len(excerpts)} items, fewer than {ENDINGS}: hold out more (data.val_every), or leave next_lines out"
        )
    by_length = sorted(excerpts, key=lambda excerpt: (len(excerpt.ending), excerpt.document, excerpt.context))
    ranks = {id(excerpt): rank for rank, excerpt in enumerate(by_length)}
    for number, excerpt in enumerate(excerpts):
        rng = random.Random(number)
        endings = [excerpt.ending, *rng.sample(_false_endings(ranks[id(excerpt)], by_length), ENDINGS - 1)]
        order = rng.sample(range(ENDINGS), ENDINGS)
        yield HellaSwagItem(
            ind=number,
            activity_label=excerpt.label,
            ctx_a=excerpt.context,
            ctx_b="",
            ctx=excerpt.context,
            endings=tuple(endings[index] for index in order),
            label=order.index(0),
        )


def _false_endings(rank: int, by_length: list[_Excerpt]) -> list[str]:
    """The other endings nearest in length: from other documents, or from anywhere if those are too few."""
    excerpt = by_length[rank]
    window = range(max(0, rank - NEIGHBORS), min(len(by_length), rank + NEIGHBORS + 1))
    nearest = [by_length[index] for index in sorted(window, key=lambda index: abs(index - rank))]
    elsewhere = dict.fromkeys(other.ending for other in nearest if other.document != excerpt.document)
    anywhere = dict.fromkeys(other.ending for other in nearest)
    for endings in (elsewhere, anywhere):
        endings.pop(excerpt.ending, None)
        if len(endings) >= ENDINGS - 1:
            return list(endings)[:CANDIDATES]
    raise UserError("benchmarks.tasks (next_lines): the validation documents repeat one line, so no ending is wrong")


def _excerpts(documents: Iterator[str], spacing: int) -> Iterator[_Excerpt]:
    """At most one excerpt per `spacing` characters of the concatenated documents."""
    position = spacing // 2  # of the next excerpt, in characters from the start of the current document
    for number, text in enumerate(documents):
        while position < len(text):
            if excerpt := _excerpt(number, text, position):
                yield excerpt
            position += spacing
        position -= len(text)


def _excerpt(document: int, text: str, position: int) -> _Excerpt | None:
    """The excerpt around the first space after `position`; None where there is too little text around it."""
    middle = text.find(" ", position, position + MIN_SPACING)  # no further, else two positions give the same excerpt
    if middle < CONTEXT_CHARACTERS or middle + ENDING_CHARACTERS >= len(text):
        return None
    # Both ends are at word boundaries if there are any: the context begins with a word, the ending completes one.
    earliest = middle - CONTEXT_CHARACTERS
    breaks = (text.find(character, earliest, middle) for character in "\n ")
    begin = next((index for index in breaks if index >= 0), earliest - 1)
    end = middle + ENDING_CHARACTERS
    end = next((index for index in range(end, min(end + 40, len(text))) if text[index].isspace()), end)
    context, ending = text[begin + 1 : middle].strip(), text[middle + 1 : end].strip()
    if not context or len(ending) < ENDING_CHARACTERS // 2:
        return None
    return _Excerpt(document, text[:ENDING_CHARACTERS].split("\n")[0].strip() or "Text", context, ending)
