"""Values as text: counts, percentages, durations, bytes, arguments of DVC. What is no finite number is a dash."""

import json
import math
import re
import sys
from typing import Any

DASH = "–"

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def missing(value: object) -> bool:
    """Whether there is no number that a float can represent: None, text, NaN, infinity, an integer of 400 digits."""
    return not isinstance(value, int | float) or not abs(value) <= sys.float_info.max


def count(value: float | None) -> str:
    """A short count: 950, 12.3 K, 4.21 M, 1.56 B."""
    if value is None or missing(value):
        return DASH
    for factor, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(value) >= 0.9995 * factor:
            return f"{significant(value / factor, 3)} {letter}"
    return f"{value:.0f}"


def exact(value: float | None) -> str:
    """An integer with separators: 1,234,567."""
    return DASH if value is None or missing(value) else f"{value:,.0f}"


def fixed(value: float | None, digits: int) -> str:
    """A number with a fixed number of decimals: 3.912."""
    return DASH if value is None or missing(value) else f"{value:,.{digits}f}"


def significant(value: float | None, digits: int) -> str:
    """A number rounded to significant digits, with trailing zeros and without exponent: 3.50, 35.0, 350."""
    if value is None or missing(value):
        return DASH
    if value == 0:
        return "0"
    decimals = digits - 1 - math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}"))))
    return f"{round(value, decimals):,.{max(decimals, 0)}f}"


def percent(share: float | None, digits: int = 1) -> str:
    """A fraction as a percentage: 0.342 is 34.2 %."""
    return DASH if share is None or missing(share) else f"{100 * share:.{digits}f} %"


def power_of_ten(value: float | None) -> str:
    """A large number in scientific notation: 3.42 × 10¹⁵."""
    if value is None or missing(value):
        return DASH
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa} × 10{str(int(exponent)).translate(_SUPERSCRIPTS)}"


def format_duration(seconds: float | None) -> str:
    """`95.2` as `1 min 35 s`; hours and minutes from an hour on; days and hours from two days on."""
    if seconds is None or missing(seconds):
        return DASH
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def format_bytes(count_of_bytes: float | None) -> str:
    """Bytes in kB, MB or GB: powers of ten, as DVC and disks count."""
    if count_of_bytes is None or missing(count_of_bytes):
        return DASH
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count_of_bytes >= factor:
            return f"{significant(count_of_bytes / factor, 3)} {unit}"
    return f"{count_of_bytes:.0f} B"


def hydra_value(value: Any) -> str:
    """A value as `dvc exp run -S` reads it: https://hydra.cc/docs/advanced/override_grammar/basic

    >>> hydra_value([None, True, 6e-4, "gpt2", "1e3", "it's"])
    "[null,true,0.0006,gpt2,'1e3','it\\\\'s']"
    """
    if isinstance(value, list | tuple):
        return f"[{','.join(map(hydra_value, value))}]"
    if not isinstance(value, str):
        return json.dumps(value, default=str)  # a date of YAML
    keywords = ("null", "true", "false", "inf", "nan")
    if re.fullmatch(r"[A-Za-z][\w./-]*", value, re.ASCII) and value.lower() not in keywords:
        return value
    # Backslashes are literal, except before a quote.
    return "'" + re.sub(r"(\\*)('|$)", lambda match: 2 * match[1] + match[2].replace("'", r"\'"), value) + "'"
