"""GitHub markdown that is safe for any text, and the Jinja2 templates that use it.

Whatever a template outputs is escaped, unless it is Markup: the type of text that is markdown or HTML already, which
the functions here return.
"""

import json
import re
from collections.abc import Container, Mapping, Sequence
from html import escape
from pathlib import Path
from shlex import quote as shell_quote
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline import formatting

_SPECIAL = re.compile(r"([\\`*_\[\]|#~$])")


def text(value: object) -> Markup:
    """Any value as text without markup on one line, also in a table cell or an HTML element. Markup stays as it is."""
    if isinstance(value, Markup):
        return value
    return Markup(_SPECIAL.sub(r"\\\1", escape(one_line(str(value)), quote=False)))


def code(value: object) -> Markup:
    """Any value as inline code, also in a table cell."""
    line = one_line(str(value)).strip() or " "
    if "|" in line:  # parsers differ in what \| is between backticks, inside a table and outside
        return Markup(f"<code>{re.sub('[^A-Za-z0-9 ]', lambda match: f'&#{ord(match[0])};', line)}</code>")
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return Markup(f"{ticks}{pad}{line}{pad}{ticks}")


def link(label: str, url: str) -> Markup:
    """A link from any text, also in a table cell; only the text if the URL is not of the web, such as `javascript:`."""
    if not re.match("https?://", url):
        return text(label)
    return Markup(f"[{text(label)}]({quote(url, safe=':/?=&%#~', errors='replace')})")


def setting(value: object) -> Markup:
    """A value of params.yaml as inline code, written as YAML would: `null`, `true`, `[0.9, 0.95]`."""
    return code(yaml_text(value))


def yaml_text(value: object) -> str:
    """A value of params.yaml as plain text."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def printable(value: str) -> str:
    """The text with control characters as symbols, except newlines and tabs.

    Invalid code points, and controls that change the direction of the text around them, become U+FFFD.
    """
    value = re.sub("[\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]", "\ufffd", value)
    return re.sub(r"[\x00-\x08\x0b-\x1f]", lambda match: chr(0x2400 + ord(match[0])), value)


def one_line(value: str) -> str:
    """The printable text with spaces in place of newlines and tabs. Two spaces become one; no-break spaces stay."""
    return printable(re.sub(r"[^\S\xa0]+", " ", value))


def fence(value: str, language: str) -> Markup:
    """A fenced block of literal text; the fence is longer than any in the text."""
    longest = max((len(run) for run in re.findall("`+", value)), default=0)
    ticks = "`" * max(3, longest + 1)
    return Markup(f"{ticks}{language}\n{printable(value)}\n{ticks}")


def table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: Container[int] = ()) -> Markup:
    """A table; the columns in `numbers` are right-aligned."""
    rule = [Markup("---:" if column in numbers else "---") for column in range(len(header))]
    return Markup("\n".join("| " + " | ".join(map(text, row)) + " |" for row in (header, rule, *rows)))


def listing(words: Sequence[str]) -> Markup:
    """`a`, `a and b`, `a, b and c`."""
    *most, last = map(text, words)
    return Markup(" and ").join([Markup(", ").join(most), last] if most else [last])


_FILTERS = (
    *(text, code, setting, one_line, fence, listing, formatting.exact, formatting.fixed, formatting.significant),
    *(formatting.percent, formatting.power_of_ten, formatting.format_duration, formatting.format_bytes),
    formatting.count,  # hides Jinja2's own `count`, an alias of its `length`
)


def render(template: Path, context: Mapping[str, Any], *, html: bool = False) -> str:
    """Fills in a Jinja2 template. Values are escaped for markdown, or for HTML; undefined variables raise.

    Filters: text, code, setting, one_line, fence, listing and shell_quote, and pipeline.formatting's functions.
    Function: table.
    """
    environment = Environment(
        loader=FileSystemLoader(template.parent),
        undefined=StrictUndefined,
        autoescape=True,  # for HTML; leaves the Markup that `finalize` returns as it is
        finalize=None if html else text,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update({function.__name__: function for function in _FILTERS}, shell_quote=shell_quote)
    environment.globals["table"] = table
    return environment.get_template(template.name).render(context)
