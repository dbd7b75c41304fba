"""A text coloured by surprisal: how little the model expected each token, in nats (-ln of its probability)."""

import math
from collections.abc import Sequence
from html import escape

from pipeline import markdown as md
from pipeline.formatting import fixed, percent, power_of_ten, significant

Tokens = Sequence[tuple[str, float]]
"""The tokens of a text with their nats."""

SCALE = 10
"""Nats of the strongest colour: a probability of 1 in 22,000. The same in every report, so that two can be compared."""

SHOWN = 600
"""Most tokens in the coloured text."""


def hardest(tokens: Tokens, number: int = 5) -> list[tuple[str, float]]:
    """The least expected tokens, as they are named in a sentence."""
    return [(name(token), nats) for token, nats in sorted(tokens, key=lambda token: -token[1])[:number]]


def html(tokens: Tokens) -> str:
    """The text as one line of HTML, as an empty line would end the block in markdown. STYLE has its colours."""
    spans = []
    for token, nats in tokens[:SHOWN]:
        text = escape(md.printable(token)).replace("\n", "<i></i>&#10;")
        share = round(100 * min(max(nats, 0) / SCALE, 1))
        spans.append(f'<span style="--share:{share}%" title="{escape(describe(token, nats))}">{text}</span>')
    legend = f'<div class="legend">0 nats <span></span> {SCALE} nats or more</div>'
    return f'<div class="surprisal">{legend}<div class="text">{"".join(spans)}</div></div>'


def describe(token: str, nats: float) -> str:
    """What the mouse shows on a token: `lord: 2.26 nats, probability 10.4 %`."""
    probability = math.exp(-nats)
    if probability >= 0.01:
        share = percent(probability)
    else:
        share = f"{significant(100 * probability, 2)} %" if probability > 1e-6 else power_of_ten(probability)
    return f"{name(token)}: {fixed(nats, 2)} nats, probability {share}"


def name(token: str) -> str:
    """A token in a sentence: without spaces around it, unless it is all spaces; newlines as ↵."""
    return md.printable(token).strip(" ").replace("\n", "↵").replace("\t", "⇥") or "␣" * len(token)


STYLE = """\
.surprisal { --hot: #f0883e; margin: 1em 0; }
@media (prefers-color-scheme: dark) { .surprisal { --hot: #9b4a04; } }
.surprisal .text { font: 14px/1.8 ui-monospace, Menlo, Consolas, monospace; }
.surprisal .text { white-space: pre-wrap; overflow-wrap: anywhere; }
.surprisal .text span {
  background: color-mix(in oklab, var(--hot) var(--share), transparent);
  border-right: 1px solid var(--background); border-radius: 2px; padding: 0.15em 0; box-decoration-break: clone;
}
.surprisal i::after { content: "↵"; font-style: normal; }
.surprisal .legend { color: var(--muted); font-size: 12px; margin-bottom: 1em; }
.surprisal .legend span {
  display: inline-block; width: 10em; height: 0.8em; vertical-align: middle;
  background: linear-gradient(to right, var(--background), var(--hot));
}
"""
"""A newline is marked by what a copy of the text leaves out."""
