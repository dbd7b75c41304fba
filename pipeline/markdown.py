"""GitHub markdown that is safe for any text, and the Jinja2 templates that use it."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline import formatting

_SPECIAL = re.compile(r"([\\`*_\[\]<>|#~$])")


def text(value: str) -> str:
    """Any text as one line without markup, also in a table cell."""
    return _SPECIAL.sub(r"\\\1", printable(" ".join(value.split())))


def code(value: object) -> str:
    """Any value as inline code, also in a table cell."""
    line = " ".join(printable(str(value)).split()) or " "
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{ticks}{pad}{line}{pad}{ticks}".replace("|", "\\|")


def link(label: str, url: str) -> str:
    """A link from any text to any URL, also in a table cell."""
    return f"[{text(label)}]({quote(url, safe=':/?=&%#~')})"


def setting(value: object) -> str:
    """A value of params.yaml as inline code, written as YAML would: `null`, `true`, `[0.9, 0.95]`."""
    return code(yaml_text(value))


def yaml_text(value: object) -> str:
    """A value of params.yaml as plain text."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def printable(value: str) -> str:
    """The text with control characters as symbols, except newlines and tabs; invalid code points become U+FFFD."""
    value = re.sub("[\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "\ufffd", value)
    return re.sub(r"[\x00-\x08\x0b-\x1f]", lambda match: chr(0x2400 + ord(match[0])), value)


def fence(value: str, language: str = "") -> str:
    """A fenced block of literal text; the fence is longer than any in the text."""
    longest = max((len(run) for run in re.findall("`+", value)), default=0)
    ticks = "`" * max(3, longest + 1)
    return f"{ticks}{language}\n{printable(value)}\n{ticks}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers_from: int = 1) -> str:
    """A table; columns from `numbers_from` on are right-aligned. Cells are markdown already."""
    rule = ["---:" if column >= numbers_from else "---" for column in range(len(header))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *rows))


def listing(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


_FILTERS = (
    *(text, code, setting, printable, fence, listing, formatting.exact, formatting.fixed, formatting.significant),
    *(formatting.percent, formatting.power_of_ten, formatting.format_duration, formatting.format_bytes),
    formatting.count,  # hides Jinja2's own `count`, an alias of its `length`
)


def render(template: Path, context: Mapping[str, Any], *, html: bool = False) -> str:
    """Fills in a Jinja2 template. Undefined variables raise; `html`: values are escaped.

    Filters: text, code, setting, printable, fence and listing of this module, and pipeline.formatting's functions.
    Function: table. `text` and `code` are safe in a table cell.
    """
    environment = Environment(
        loader=FileSystemLoader(template.parent),
        undefined=StrictUndefined,
        autoescape=html,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update({function.__name__: function for function in _FILTERS})
    environment.globals["table"] = table
    return environment.get_template(template.name).render(context)
