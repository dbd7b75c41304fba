"""Pieces of GitHub markdown, safe for any text: tables, fences, folded parts, pictures in two colour schemes."""

import json
import re
from collections.abc import Sequence

_SPECIAL = re.compile(r"([\\`*_\[\]<>|#~$])")


def text(value: str) -> str:
    """Any text as one line of plain words in markdown: nothing in it is read as markup."""
    return _SPECIAL.sub(r"\\\1", " ".join(value.split()))


def code(value: object) -> str:
    """Any value as inline code, in a table too."""
    shown = " ".join(printable(str(value)).split()) or " "
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    pad = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{ticks}{pad}{shown}{pad}{ticks}".replace("|", "\\|")


def setting(value: object) -> str:
    """A value of params.yaml as inline code, written as YAML would: `null`, `true`, `[0.9, 0.95]`."""
    return code(said(value))


def said(value: object) -> str:
    """A value of params.yaml as plain text."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def printable(value: str) -> str:
    """The text with its control characters shown as symbols; newlines and tabs stay, and what is no character is �."""
    value = re.sub("[\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "\ufffd", value)
    return re.sub(r"[\x00-\x08\x0b-\x1f]", lambda found: chr(0x2400 + ord(found[0])), value)


def fence(value: str, language: str = "") -> str:
    """A block of literal text; its fence is longer than any in the text."""
    longest = max((len(run) for run in re.findall("`+", value)), default=0)
    ticks = "`" * max(3, longest + 1)
    return f"{ticks}{language}\n{printable(value)}\n{ticks}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers_from: int = 1) -> str:
    """A table; columns from `numbers_from` on are aligned to the right. Cells are markdown already."""
    rule = ["---:" if place >= numbers_from else "---" for place in range(len(header))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *rows))


def folded(title: str, body: str) -> str:
    """A part that opens on a click."""
    return f"<details>\n<summary>{title}</summary>\n\n{body}\n\n</details>"


def picture(name: str, alt: str, folder: str) -> str:
    """A figure's two SVGs: the one that fits the reader's colour scheme is shown."""
    alt = alt.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return (
        "<picture>\n"
        f'  <source media="(prefers-color-scheme: dark)" srcset="{folder}/{name}-dark.svg">\n'
        f'  <img alt="{alt}" src="{folder}/{name}.svg">\n'
        "</picture>"
    )


def listing(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
