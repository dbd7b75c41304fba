"""What the runs wrote after the same prompts, side by side, and how hard each found the same text."""

import math
from collections.abc import Sequence
from html import escape

from pipeline.reporting import markdown as md
from pipeline.reporting.comparison.experiments import Experiment
from pipeline.reporting.numbers import DASH, exact, fixed, missing
from pipeline.reporting.run import Surprise

MOST_RUNS, MOST_CHARACTERS, MOST_LINES = 12, 500, 16
ACROSS = 3  # runs beside each other, in columns that still hold a line of verse


def same_prompts(runs: Sequence[Experiment]) -> list[str]:
    """The first continuation of every prompt that two runs or more have, folded, in the order of `runs`; or nothing."""
    written = [
        (one, {prompt.prompt or "": prompt.continuations[0] for prompt in one.samples.prompts if prompt.continuations})
        for one in runs
    ]
    shown, most = [], 0
    for prompt in dict.fromkeys(prompt for _, texts in written for prompt in texts):
        found = [(one.name, texts[prompt]) for one, texts in written if prompt in texts]
        if len(found) > 1:
            shown.append(_side_by_side(prompt, found[:MOST_RUNS]))
            most = max(most, len(found))
    if not shown:
        return []
    told = f"{_settings([one for one, texts in written if texts])} … marks a cut, after {MOST_CHARACTERS} characters "
    told += f"or {MOST_LINES} lines."
    if most > MOST_RUNS:
        told += f" The first {MOST_RUNS} of {most} runs are shown."
    return ["## The same prompts", told, *shown]


def same_text(runs: Sequence[Experiment]) -> list[str]:
    """How hard each run found the text that they read, where all read the same; or nothing."""
    readers = [one for one in runs if one.samples.surprise.tokens]
    if len(readers) < 2 or len({one.samples.surprise.text for one in readers}) > 1:
        return []
    rows = [[md.code(one.name), *_hardness(one.samples.surprise)] for one in readers]
    told = "How hard each run found `sample.surprise_text`; where their tokens differ, bits per byte compare."
    return ["## The same text", told, md.table(["Run", "Tokens", "Nats per token", "Bits per byte"], rows)]


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


def _hardness(read: Surprise) -> list[str]:
    """Tokens, their mean nats, and bits per byte of the text; dashes where a token has no number."""
    known = [nats for _, nats in read.tokens if nats is not None and not missing(nats)]
    if len(known) < len(read.tokens):
        return [exact(len(read.tokens)), DASH, DASH]
    nats, size = math.fsum(known), len(read.text.encode("utf-8", "replace"))
    return [exact(len(known)), fixed(nats / len(known), 3), fixed(nats / math.log(2) / size if size else None, 3)]
