"""A text coloured by how hard the model found each token: as SVG for markdown, as text to read and select for HTML.

The scale has one step for each nat (-ln of the probability that the model gave the token) and is the same in every
report, so that two can be laid beside each other. Its steps are even in lightness, which every eye tells apart.
"""

import math
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from pipeline.reporting import markdown as md
from pipeline.reporting.figure import DARK, LIGHT, Palette
from pipeline.reporting.numbers import exact, fixed, missing, percent, power_of_ten, significant

Tokens = Sequence[tuple[str, float | None]]
"""Pieces of a text in their order, with their nats; None or NaN where there is no number."""

BLACK, WHITE = "#000000", "#ffffff"
# Of 0, 1, 2 ... nats: background and ink in light, background and ink in dark. The first background is the page's, the
# last row is of all nats above, and the ink is what stands out more.
STEPS = (
    ("#ffffff", BLACK, "#0d1117", WHITE),
    ("#f6ead6", BLACK, "#2f1b16", WHITE),
    ("#efd3ad", BLACK, "#4f2616", WHITE),
    ("#e9bb85", BLACK, "#6f3208", WHITE),
    ("#e4a15d", BLACK, "#894401", WHITE),
    ("#df862f", BLACK, "#a05a03", WHITE),
    ("#d36d02", BLACK, "#b77103", BLACK),
    ("#be5904", BLACK, "#ce8906", BLACK),
    ("#ab4501", WHITE, "#e1a31e", BLACK),
    ("#973201", WHITE, "#f2be3e", BLACK),
    ("#821e00", WHITE, "#ffdb69", BLACK),
)
COLOURS = {LIGHT.name: [row[:2] for row in STEPS], DARK.name: [row[2:] for row in STEPS]}
LAST = len(STEPS) - 1
PROBABILITIES = "0: certain, 2.3: 1 in 10, 4.6: 1 in 100, 9.2: 1 in 10,000"

HARDEST = 5  # tokens named in the sentence
MOST_TOKENS, MOST_LINES = 600, 30  # shown

# The SVG, in CSS pixels: as wide as the other figures, in a font that is 0.6 as wide as high.
FONTS = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
FONT, COLUMN, COLUMNS = 14, 8.4, 100
WIDTH, MARGIN, LINE, BOX, LEGEND = 864, 12, 24, 20, 48


@dataclass(frozen=True)
class Part:
    """As much of a token as stands in one line of a fixed-width font."""

    token: int
    text: str
    line: int
    column: int
    columns: int


def caption(tokens: Tokens) -> str:
    """What is coloured, which tokens were hardest, and what is left out; markdown."""
    known = [(piece, nats) for piece, nats in tokens if nats is not None and not missing(nats)]
    told = "Each token is coloured by its cross entropy in nats, that is by how little the model expected it"
    if known:
        mean = math.fsum(nats for _, nats in known) / len(known)
        hardest = sorted(known, key=lambda token: -token[1])[:HARDEST]
        named = md.listing([f"{md.code(named_token(piece))} ({fixed(nats, 1)})" for piece, nats in hardest])
        told += f": {fixed(mean, 2)} in the mean, and most at {named}"
    told += "."
    if len(known) < len(tokens):
        told += f" {exact(len(tokens) - len(known))} of {exact(len(tokens))} tokens have no number."
    if (shown := len(shown_tokens(tokens))) < len(tokens):
        told += f" The first {exact(shown)} of {exact(len(tokens))} tokens are shown."
    return told


def alternative(tokens: Tokens) -> str:
    """The picture in words."""
    text = " ".join("".join(piece for piece, _ in shown_tokens(tokens)).split())
    return f"A text, each token coloured by its cross entropy in nats: {visible(text)}"


def svg(tokens: Tokens, palette: Palette) -> str:
    """The picture of a text, an SVG document in the colours of `palette`."""
    tokens = shown_tokens(tokens)
    parts = list(laid_out(tokens))
    height = LEGEND + LINE * (1 + max((part.line for part in parts), default=0)) + MARGIN
    rules = "".join(f".{name} rect{{fill:{back}}}.{name} text{{fill:{ink}}}" for name, back, ink in _rules(palette))
    rows = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        f'font-family="{FONTS}" font-size="{FONT}" xml:space="preserve">',
        f"<style>{rules}</style>",
        f'<rect width="{WIDTH}" height="{height}" fill="{palette.background}"/>',
        *_svg_legend(palette),
        *(_svg_part(part, step_of(tokens[part.token][1])) for part in parts),
        "</svg>\n",
    ]
    return "\n".join(rows)


def html(tokens: Tokens) -> str:
    """The text itself, one line of HTML (markdown would end its block at an empty one); STYLE has its colours."""
    steps = [f'<span class="n{step}">{_named(step)}</span>' for step in range(LAST + 1)]
    legend = f'<div class="legend">nats {"".join(steps)} {PROBABILITIES}</div>'
    spans = []
    for piece, nats in shown_tokens(tokens):
        text = escape(visible(piece)).replace("\n", '<i class="newline"></i><br>')
        spans.append(f'<span class="{step_of(nats)}" title="{escape(described(piece, nats))}">{text}</span>')
    return f'<div class="surprise">{legend}<div class="text">{"".join(spans)}</div></div>'


def described(piece: str, nats: float | None) -> str:
    """What the mouse finds on a token: `lord, 2.26 nats, probability 10.4 %`."""
    if nats is None or missing(nats):
        return f"{named_token(piece)}, no number"
    share = math.exp(-nats)
    if share >= 0.01:
        shown = percent(share)
    else:
        shown = f"{significant(100 * share, 2)} %" if share > 1e-6 else power_of_ten(share)
    return f"{named_token(piece)}, {fixed(nats, 2)} nats, probability {shown}"


def named_token(piece: str) -> str:
    """A token in a sentence: without the spaces at its ends, unless it has nothing else; line ends as ↵."""
    return visible(piece).strip(" ").replace("\n", "↵") or "␣" * len(piece)


def visible(piece: str) -> str:
    """The text as it can stand in XML and be seen; newlines stay, tabs become arrows."""
    return md.printable(piece).replace("\t", "⇥")


def step_of(nats: float | None) -> str:
    """The class of a token's colour: n0 to n10; nx without a number."""
    return "nx" if nats is None or missing(nats) else f"n{min(max(int(nats), 0), LAST)}"


def shown_tokens(tokens: Tokens) -> Tokens:
    """The first tokens: at most MOST_TOKENS, and those that fit MOST_LINES."""
    tokens = tokens[:MOST_TOKENS]
    beyond = (part.token for part in laid_out(tokens) if part.line >= MOST_LINES)
    return tokens[: next(beyond, len(tokens))]


def laid_out(tokens: Tokens) -> Iterator[Part]:
    """The tokens in lines of at most COLUMNS; a token goes to the next line where it does not fit, or ends one."""
    line = column = 0
    for number, (piece, _) in enumerate(tokens):
        for part in re.findall(r"[^\n]*\n|[^\n]+", visible(piece)):
            for text, columns in _pieces(part.replace("\n", "↵")):
                if column + columns > COLUMNS:
                    line, column = line + 1, 0
                yield Part(number, text, line, column, columns)
                column += columns
            if part.endswith("\n"):
                line, column = line + 1, 0


def _pieces(text: str) -> Iterator[tuple[str, int]]:
    """A text in pieces of at most COLUMNS columns, nearly always one: (piece, its columns)."""
    piece, columns = "", 0
    for character in text:
        wide = columns_of(character)
        if columns + wide > COLUMNS:
            yield piece, columns
            piece, columns = "", 0
        piece, columns = piece + character, columns + wide
    yield piece, columns


def columns_of(character: str) -> int:
    """0 for what stands on the character before, 2 for what is as wide as it is high, else 1."""
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _svg_part(part: Part, step: str) -> str:
    """One box with its text, which is stretched to fill its columns whatever font the reader has."""
    x, y, width = MARGIN + COLUMN * part.column, LEGEND + LINE * part.line, COLUMN * part.columns
    drawn = f'<rect x="{x:.1f}" y="{y}" width="{width - 1:.1f}" height="{BOX}" rx="2"/>' if width else ""
    if text := part.text.strip(" "):
        x += COLUMN * (len(part.text) - len(part.text.lstrip(" ")))
        length = COLUMN * sum(map(columns_of, text))
        fit = f' textLength="{length:.1f}" lengthAdjust="spacingAndGlyphs"' if length else ""
        drawn += f'<text x="{x:.1f}" y="{y + 15}"{fit}>{escape(text)}</text>'
    return f'<g class="{step}">{drawn}</g>'


def _svg_legend(palette: Palette) -> Iterator[str]:
    yield f'<g font-size="12"><text x="{MARGIN}" y="26" fill="{palette.muted}">nats</text>'
    for step in range(LAST + 1):
        x = 52 + 32 * step
        box = f'<rect x="{x}" y="12" width="31" height="{BOX}" rx="2"/>'
        yield f'<g class="n{step}">{box}<text x="{x + 15.5}" y="26" text-anchor="middle">{_named(step)}</text></g>'
    yield f'<text x="{52 + 32 * (LAST + 1) + 10}" y="26" fill="{palette.muted}">{PROBABILITIES}</text></g>'


def _named(step: int) -> str:
    return f"{step}+" if step == LAST else f"{step}"


def _rules(palette: Palette) -> Iterator[tuple[str, str, str]]:
    """(class, background, ink) of every step."""
    yield "nx", palette.background, palette.muted
    for step, (back, ink) in enumerate(COLOURS[palette.name]):
        yield f"n{step}", back, ink


def _css(palette: Palette) -> str:
    rules = (f".surprise .{name} {{ background: {back}; color: {ink}; }}" for name, back, ink in _rules(palette))
    return "\n".join(rules)


STYLE = f"""\
.surprise {{ font: {FONT}px/1.8 {FONTS}; margin: 1em 0; }}
.surprise .legend {{ color: var(--muted); font-size: 12px; margin-bottom: 1em; }}
.surprise .legend span {{ display: inline-block; min-width: 2.2em; margin-right: 1px; text-align: center; }}
.surprise .text {{ white-space: pre-wrap; overflow-wrap: anywhere; }}
.surprise span {{ border-radius: 2px; padding: 0.15em 0; box-decoration-break: clone; }}
.surprise .text span {{ border-right: 1px solid var(--background); }}
.surprise .newline::after {{ content: "↵"; font-style: normal; }}
{_css(LIGHT)}
@media (prefers-color-scheme: dark) {{
{_css(DARK)}
}}
"""
"""Of the HTML: newlines are marked by what a copy of the text leaves out."""
