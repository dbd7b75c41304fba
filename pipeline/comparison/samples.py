"""What the runs of a comparison wrote: continuations of the same prompts, and the surprisal of the same text."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

from pipeline import markdown as md
from pipeline.comparison.configurations import Configuration, Mean, mean
from pipeline.comparison.experiments import Run

MAX_SAMPLES, MAX_CHARACTERS, MAX_LINES = 12, 500, 16


def by_configuration(groups: Sequence[Configuration]) -> bool:
    """Whether samples and surprisals are shown by configuration: there are several, and seeds of one."""
    return len(groups) > 1 and any(len(group.seeds) > 1 for group in groups)


@dataclass(frozen=True)
class SampleTable:
    """Continuations of the same prompts."""

    prompts: list[tuple[str, list[tuple[str, str]]]]
    """(prompt on one line, cells), each cell a name and the continuation as HTML; "" starts a document."""
    settings: list[tuple[str, Markup]]
    """(name, sampling settings); one if all are the same."""
    seed: str | None
    """The train.seed of the runs shown, one of each configuration."""
    available: int
    """Continuations of a prompt, of which MAX_SAMPLES are in the table."""


def samples(runs: Sequence[Run], groups: Sequence[Configuration]) -> SampleTable | None:
    """The first continuation of every prompt that several runs have; one run of each configuration if seeds repeat."""
    seed, shown = None, [(run.name, run) for run in runs]
    if by_configuration(groups):
        counts = Counter(seed for group in groups for seed in {run.seed for run in group.runs})
        seed = min(counts, key=lambda seed: (-counts[seed], seed))
        shown = [
            (group.label, next((run for run in group.runs if run.seed == seed), group.runs[0])) for group in groups
        ]
    texts: dict[str, list[tuple[str, str]]] = {}
    for name, run in shown:
        for prompt in run.samples.prompts:
            if prompt.continuations:
                texts.setdefault(prompt.prompt or "", []).append((name, _sample_html(prompt.continuations[0])))
    prompts = [(" ".join(prompt.split()), cells) for prompt, cells in texts.items() if len(cells) > 1]
    if not prompts:
        return None
    settings = {
        name: Markup(", ".join(f"{md.code(key)} {value}" for key, value in run.samples.settings.model_dump().items()))
        for name, run in shown
        if run.samples.prompts
    }
    return SampleTable(
        [(prompt, cells[:MAX_SAMPLES]) for prompt, cells in prompts],
        list(settings.items()) if len(set(settings.values())) > 1 else list(settings.items())[:1],
        seed,
        max(len(cells) for _, cells in prompts),
    )


def _sample_html(text: str) -> Markup:
    """The beginning of a text as one line of HTML that keeps line breaks and indentation; … marks a cut."""
    text = text.strip("\n")
    beginning = "\n".join(text[:MAX_CHARACTERS].split("\n")[:MAX_LINES])
    lines = escape(md.printable(beginning if beginning == text else f"{beginning} …").expandtabs(4)).split("\n")
    return Markup("<br>".join("&nbsp;" * (len(line) - len(line.lstrip(" "))) + line.lstrip(" ") for line in lines))


@dataclass(frozen=True)
class SurprisalRow:
    """The cross entropy of the same text, by run or by configuration."""

    name: str
    tokens: list[int]
    """How many the text has, one number for each tokenizer."""
    nats_per_token: Mean
    bits_per_byte: Mean


def surprisal(runs: Sequence[Run], groups: Sequence[Configuration]) -> list[SurprisalRow]:
    """A row for each run, or each configuration if seeds repeat; none unless several runs scored the same text."""
    readers = [run for run in runs if run.samples.surprisal.tokens]
    if len(readers) < 2 or len({run.samples.surprisal.text for run in readers}) > 1:
        return []
    size = len(readers[0].samples.surprisal.text.encode("utf-8", "replace"))
    members = [(run.name, [run]) for run in readers]
    if by_configuration(groups):
        members = [(group.label, [run for run in group.runs if run in readers]) for group in groups]
    rows = []
    for name, scored in members:
        by_seed = {run.seed: [nats for _, nats in run.samples.surprisal.tokens] for run in scored}
        per_token = mean([math.fsum(nats) / len(nats) for nats in by_seed.values()])
        per_byte = mean([math.fsum(nats) / math.log(2) / size for nats in by_seed.values()])
        rows.append(SurprisalRow(name, sorted({len(nats) for nats in by_seed.values()}), per_token, per_byte))
    return [row for row in rows if row.tokens]
