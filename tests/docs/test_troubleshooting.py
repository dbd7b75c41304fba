"""The texts that docs/troubleshooting.md quotes are those that the programs say."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dag.imports import modules
from tests.docs.commands import ROOT, lines_of_blocks

# Of other programs, as they printed them: the version is in requirements.txt.
OTHERS = (
    "ERROR: ",  # DVC
    "\tdvc exp run -f",
    "To append to your config use +",
    "  (PID ",
    "If there are no processes with such PIDs",
    "Is your cache up to date?",
    "<https://error.dvc.org/missing-files>",
    "data/model",
    "torch.OutOfMemoryError: CUDA out of memory.",
)


def quoted() -> list[str]:
    """The lines of the page's blocks of plain text."""
    text = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    return [line for _, line in lines_of_blocks(text, "```") if line]


STAGE = r"\s*(?:[a-z.]+: )?"  # who speaks: "train: "


def said(module: Path) -> Iterator[re.Pattern[str]]:
    """What a module may say: its texts of some length, with whatever stands in placeholders, where a line begins."""
    for node in ast.walk(ast.parse((ROOT / module).read_text(encoding="utf-8"))):
        parts = node.values if isinstance(node, ast.JoinedStr) else [node]
        texts = [part.value if isinstance(part, ast.Constant) else "%s" for part in parts]
        line = "".join(text for text in texts if isinstance(text, str)).partition("\n")[0]
        if len(re.sub(r"%[sd]", "", line)) >= 12:
            yield re.compile(STAGE + re.sub(r"%[sd]", ".*", re.escape(line)))


SAID = [text for module in modules() for text in said(module)]


@pytest.mark.parametrize("line", quoted())
def test_a_quoted_text_is_one_that_the_code_says(line: str) -> None:
    if not line.startswith(OTHERS):
        assert any(text.match(line) for text in SAID), f"nothing in pipeline/ or stages/ says: {line}"


def test_a_text_that_the_code_does_not_say_is_noticed() -> None:
    assert len(quoted()) > 30
    for line in (
        "train: the moon is full, wait for another night",
        "train: is used by process 6706: the same setting is trained",
        "W&B: CommError: deadline exceeded; nothing is lost, the curves are in reports/train/curves.csv",
    ):
        assert not any(text.match(line) for text in SAID)
