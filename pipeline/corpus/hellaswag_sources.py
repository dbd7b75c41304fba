"""Where the items for data/hellaswag come from: the hub, a file, or the validation documents.

Items from documents stand in where HellaSwag itself cannot be had. They measure something simpler, whether the model
prefers the text that follows to text from elsewhere, and are called what they are wherever they are reported.
"""

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.corpus.hellaswag_items import (
    ENDINGS,
    ITEMS_FILE,
    SOURCE_FILE,
    HellaswagParams,
    Item,
    ItemSource,
    parse_item,
    read_items,
    read_source,
    write_items,
)
from pipeline.corpus.hub import HubStream
from pipeline.corpus.raw import RawCorpus, texts
from pipeline.files import atomic_directory

HUB_PATH = "Rowan/hellaswag"
HUB_ITEMS = 10_042  # of the validation split
CONTEXT_CHARACTERS = 200
ENDING_CHARACTERS = 60
SPACING = 1_000  # characters between items, at least
NEAREST = 50  # false endings are looked for among so many longer and so many shorter ones
DRAWN_FROM = 12


@dataclass(frozen=True)
class _Cut:
    """A place in a document where a context ends and its continuation begins."""

    document: int
    label: str
    context: str
    ending: str


def fetch_items(params: HellaswagParams, root: Path, raw: Path, out: Path) -> ItemSource:
    """Writes hellaswag_val.jsonl and source.json to `out` (data/hellaswag), which is replaced as a whole.

    `root`: the repository's root, from which a relative `path` is seen. `raw`: data/raw, for source `documents`.
    Raises ValueError, FileNotFoundError or Stop that names what is missing or bad.
    """
    if params.source == "documents":
        items, name = list(next_lines(raw, params.items)), "Next lines of the validation documents"
    elif params.source == "file":
        items, name = read_items(root / str(params.path)), "HellaSwag"
    else:
        items, name = list(_hub_items()), "HellaSwag"
    with atomic_directory(out, (ITEMS_FILE, SOURCE_FILE)) as directory:
        write_items(directory, items[: params.items], name, is_hellaswag=params.source != "documents")
    return read_source(out)


def next_lines(raw: Path, limit: int | None) -> Iterator[Item]:
    """Items from the validation documents in data/raw, spread evenly over them, at most `limit`; always the same ones.

    A context of about 200 characters ends at a space within a line; its true ending is the 60 characters that follow.
    The three false endings are other items' true ones: of like length, and from other documents where there are enough.

    Raises ValueError when the validation documents are too short for four items.
    """
    corpus = RawCorpus.read(raw)
    spacing = max(SPACING, corpus.utf8_bytes("val") // limit if limit else 0)
    cuts = list(itertools.islice(_cuts(texts(raw, corpus.splits.get("val", [])), spacing), limit))
    if len(cuts) < ENDINGS:
        raise ValueError(
            f"hellaswag.source (documents): the {corpus.utf8_bytes('val')} bytes of validation documents give "
            f"{len(cuts)} items, fewer than {ENDINGS}: hold out more (data.val_every), or take items from hub or file"
        )
    by_length = sorted(cuts, key=lambda cut: (len(cut.ending), cut.document, cut.context))
    places = {id(cut): place for place, cut in enumerate(by_length)}
    for number, cut in enumerate(cuts):
        chance = random.Random(number)
        endings = [cut.ending, *chance.sample(_others(places[id(cut)], by_length), ENDINGS - 1)]
        order = chance.sample(range(ENDINGS), ENDINGS)
        yield Item(
            ind=number,
            activity_label=cut.label,
            ctx_a=cut.context,
            ctx_b="",
            ctx=cut.context,
            endings=tuple(endings[index] for index in order),
            label=order.index(0),
        )


def _others(place: int, by_length: list[_Cut]) -> list[str]:
    """The endings nearest in length: from other documents, or where those are too few from other places."""
    cut = by_length[place]
    window = range(max(0, place - NEAREST), min(len(by_length), place + NEAREST + 1))
    near = [by_length[index] for index in sorted(window, key=lambda index: abs(index - place))]
    elsewhere = dict.fromkeys(other.ending for other in near if other.document != cut.document)
    anywhere = dict.fromkeys(other.ending for other in near)
    for endings in (elsewhere, anywhere):
        endings.pop(cut.ending, None)
        if len(endings) >= ENDINGS - 1:
            return list(endings)[:DRAWN_FROM]
    raise ValueError("hellaswag.source (documents): the validation documents repeat one line: no false endings")


def _cuts(documents: Iterator[str], spacing: int) -> Iterator[_Cut]:
    """One cut in each stretch of `spacing` characters of the documents laid end to end."""
    due = spacing // 2  # characters from the start of this document to the next place to cut
    for number, text in enumerate(documents):
        while due < len(text):
            if cut := _cut(number, text, due):
                yield cut
            due += spacing
        due -= len(text)


def _cut(document: int, text: str, place: int) -> _Cut | None:
    """Cuts at the first space within a line after `place`; None where too little text stands around it."""
    middle = text.find(" ", place)
    if middle < CONTEXT_CHARACTERS or middle + ENDING_CHARACTERS >= len(text):
        return None
    # Both ends at word boundaries: the context begins a word, the ending completes one.
    begin = text.find("\n", middle - CONTEXT_CHARACTERS, middle)
    begin = begin if begin >= 0 else text.find(" ", middle - CONTEXT_CHARACTERS, middle)
    end = _word_end(text, middle + ENDING_CHARACTERS)
    context, ending = text[begin + 1 : middle].strip(), text[middle + 1 : end].strip()
    if not context or len(ending) < ENDING_CHARACTERS // 2:
        return None
    return _Cut(document, text[:ENDING_CHARACTERS].split("\n")[0].strip() or "Text", context, ending)


def _word_end(text: str, start: int) -> int:
    """The first place from `start` on where a space, a line's end or the text's end is."""
    return next((index for index in range(start, min(start + 40, len(text))) if text[index].isspace()), start)


def _hub_items() -> Iterator[Item]:
    """HellaSwag's validation split from the hub, its labels being public. Raises Stop or ValueError."""
    stream = HubStream(HUB_PATH, None, "validation", "main")
    number = 0
    for number, row in enumerate(stream.rows(), start=1):
        try:
            yield parse_item(row)
        except ValueError as error:
            raise ValueError(f"{HUB_PATH}: row {number - 1}: {error}") from None
    if number != HUB_ITEMS:
        raise ValueError(f"{HUB_PATH}: {number} items came, but its validation split has {HUB_ITEMS:,}")
