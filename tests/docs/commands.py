"""The commands that the documentation tells people to type: the lines of its ```sh blocks."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = (
    "README.md",
    "docs/cookbook.md",
    "docs/sharing.md",
    "docs/scaling.md",
    "docs/recipes.md",
    "docs/troubleshooting.md",
)


class Command(NamedTuple):
    """A command as it stands in a page."""

    page: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"


def all_commands() -> list[Command]:
    """The commands of all pages."""
    return [command for page in PAGES for command in commands_in(page, (ROOT / page).read_text(encoding="utf-8"))]


def commands_in(page: str, text: str) -> list[Command]:
    """The commands in a page's text: without remarks, continued lines as one."""
    found: list[Command] = []
    begun = ""
    for number, line in lines_of_blocks(text, "```sh"):
        line = begun + re.sub(r"(^|\s+)# .*", "", line).strip()
        begun = line.removesuffix("\\") if line.endswith("\\") else ""
        if line and not begun:
            found.append(Command(page, number, line))
    return found


def lines_of_blocks(text: str, opening: str) -> Iterator[tuple[int, str]]:
    """Number and text of the lines in those of a page's blocks that begin with the line `opening`."""
    inside = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith("```"):
            inside = "" if inside else line
        elif inside == opening:
            yield number, line
