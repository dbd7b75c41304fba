"""What the runs wrote after the same prompts, side by side, and how hard each found the same text."""

import math
from collections import Counter
from collections.abc import Sequence
from functools import partial
from html import escape

from pipeline.reporting import markdown as md
from pipeline.reporting.comparison.experiments import Experiment
from pipeline.reporting.comparison.groups import Configuration
from pipeline.reporting.comparison.statistics import mean
from pipeline.reporting.comparison.tables import with_error
from pipeline.reporting.numbers import DASH, exact, fixed, missing
from pipeline.reporting.run import Surprise

MOST_RUNS, MOST_CHARACTERS, MOST_LINES = 12, 500, 16
HARDNESS = ("Tokens", "Nats per token", "Bits per byte")
ACROSS = 3  # runs beside each other, in columns that still hold a line of verse


def same_prompts(runs: Sequence[Experiment], groups: Sequence[Configuration]) -> list[str]:
    """The first continuation of every prompt that two runs or more have, folded, in the order of `runs`; or nothing.

    Where seeds repeat, one run of each configuration stands for it.
    """
    repeated = _repeated(groups)
    seed, chosen = _representatives(groups) if repeated else ("", runs)
    written = [
        (one, {prompt.prompt or "": prompt.continuations[0] for prompt in one.samples.prompts if prompt.continuations})
        for one in chosen
    ]
    shown, most = [], 0
    for prompt in dict.fromkeys(prompt for _, texts in written for prompt in texts):
        found = [(_cell_name(one, groups), texts[prompt]) for one, texts in written if prompt in texts]
        if len(found) > 1:
            shown.append(_side_by_side(prompt, found[:MOST_RUNS]))
            most = max(most, len(found))
    if not shown:
        return []
    told = f"{_settings([one for one, texts in written if texts])} … marks a cut, after {MOST_CHARACTERS} characters "
    told += f"or {MOST_LINES} lines."
    if repeated:
        told += f" Of each configuration one run is shown, of seed {seed} where there is one."
    if most > MOST_RUNS:
        told += f" The first {MOST_RUNS} of {most} are shown."
    return ["## The same prompts", told, *shown]


def same_text(runs: Sequence[Experiment], groups: Sequence[Configuration]) -> list[str]:
    """How hard each run found the text that they read, where all read the same; or nothing.

    Where seeds repeat, the mean of each configuration with its standard error.
    """
    readers = [one for one in runs if one.samples.surprise.tokens]
    if len(readers) < 2 or len({one.samples.surprise.text for one in readers}) > 1:
        return []
    told = "How hard each run found `sample.surprise_text`; where their tokens differ, bits per byte compare."
    if not _repeated(groups):
        rows = [[md.code(one.name), *_hardness([one])] for one in readers]
        return ["## The same text", told, md.table(["Run", *HARDNESS], rows)]
    rows = [
        [md.code(group.label), *_hardness(found)]
        for group in groups
        if (found := [one for one in group.experiments if one.samples.surprise.tokens])
    ]
    return ["## The same text", f"{told} ± is one standard error.", md.table(["Configuration", *HARDNESS], rows)]


def _repeated(groups: Sequence[Configuration]) -> bool:
    """Whether there are configurations to compare, rather than runs."""
    return len(groups) > 1 and any(len(group.experiments) > 1 for group in groups)


def _representatives(groups: Sequence[Configuration]) -> tuple[str, list[Experiment]]:
    """The seed that most configurations have samples of, and one run of each: of that seed where there is one."""
    written = [found for group in groups if (found := [one for one in group.experiments if one.samples.prompts])]
    often = Counter(seed for found in written for seed in {repr(one.seed) for one in found})
    shared = min(often, key=lambda seed: (-often[seed], seed), default="")
    return shared, [next((one for one in found if repr(one.seed) == shared), found[0]) for found in written]


def _cell_name(one: Experiment, groups: Sequence[Configuration]) -> str:
    """The run's name; its configuration's where it stands for that."""
    if not _repeated(groups):
        return one.name
    return next(group.label for group in groups if one in group.experiments)


def _side_by_side(prompt: str, found: Sequence[tuple[str, str]]) -> str:
    """A table of (run, continuation), without an empty line, which would end the HTML."""
    across = min(ACROSS, len(found))
    cell = f'<td valign="top" width="{100 // across}%">'
    cells = [f"{cell}<code>{escape(name)}</code><br>{_html(_beginning(text))}</td>" for name, text in found]
    rows = ["".join(cells[first : first + across]) for first in range(0, len(cells), across)]
    table = "\n".join(f"<tr>{row}</tr>" for row in rows)
    line = " ".join(prompt.split())
    title = f"After <code>{_html(line[:60])}{'…' * (len(line) > 60)}</code>" if line else "From the start of a document"
    return md.folded(title, f"<table>\n{table}\n</table>")


def _settings(runs: Sequence[Experiment]) -> str:
    """What the continuations were drawn with: once where all agree, else by run."""
    said = [
        ", ".join(f"{md.code(key)} {md.said(value)}" for key, value in one.samples.settings.items()) for one in runs
    ]
    if len(set(said)) == 1:
        return f"The first continuation of each, drawn with {said[0] or 'unknown settings'}."
    each = "; ".join(f"{md.code(one.name)}: {settings}" for one, settings in zip(runs, said, strict=True))
    return f"The first continuation of each. **They were drawn with different settings**: {each}."


def _beginning(text: str) -> str:
    """At most MOST_CHARACTERS and MOST_LINES of a text, with … where it goes on."""
    text = text.strip("\n")
    shown = "\n".join(text[:MOST_CHARACTERS].split("\n")[:MOST_LINES])
    return shown if shown == text else f"{shown} …"


def _html(text: str) -> str:
    """A text as one line of HTML that keeps its lines and the spaces that they begin with."""
    lines = escape(md.printable(text).expandtabs(4)).split("\n")
    return "<br>".join("&nbsp;" * (len(line) - len(line.lstrip(" "))) + line.lstrip(" ") for line in lines)


def _hardness(readers: Sequence[Experiment]) -> list[str]:
    """Tokens, their mean nats, and bits per byte of the text; dashes where a token has no number."""
    counts = {len(one.samples.surprise.tokens) for one in readers}
    measured = {repr(one.seed): found for one in readers if (found := _nats(one.samples.surprise)) is not None}
    shown = [", ".join(exact(count) for count in sorted(counts))]
    if not measured:
        return [*shown, DASH, DASH]
    size = len(readers[0].samples.surprise.text.encode("utf-8", "replace"))
    per_token = [nats / count for nats, count in measured.values()]
    per_byte = [nats / math.log(2) / size for nats, _ in measured.values()] if size else []
    three = partial(fixed, digits=3)
    return [*shown, with_error(mean(per_token), three), with_error(mean(per_byte) if per_byte else None, three)]


def _nats(read: Surprise) -> tuple[float, int] | None:
    """All nats of the text and how many tokens they are of; None where a token has no number."""
    known = [nats for _, nats in read.tokens if nats is not None and not missing(nats)]
    return (math.fsum(known), len(known)) if len(known) == len(read.tokens) else None
