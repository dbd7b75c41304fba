"""The samples as a page to read, samples.md, and as data for the report, samples.json."""

from collections.abc import Sequence
from typing import Any

from pipeline.reporting import markdown

HARDEST = 5  # tokens named in the page


def page(samples: dict[str, Any]) -> str:
    """samples.md for the values of samples.json: every prompt with its continuations, then the surprising tokens."""
    settings = samples["settings"]
    shown = ", ".join(f"{name} {value}" for name, value in settings.items())
    lines = ["# Samples", "", f"Settings: {shown}.", ""]
    for prompt in samples["prompts"]:
        lines += [f"## {heading(prompt['prompt'])}", ""]
        for number, text in enumerate(prompt["continuations"], start=1):
            if len(prompt["continuations"]) > 1:
                lines += [f"### {number}", ""]
            lines += [fenced((prompt["prompt"] or "") + text), ""]
    tokens = samples["surprise"]["tokens"]
    if tokens:
        mean = sum(nats for _, nats in tokens) / len(tokens)
        lines += ["## What the model found hard", "", fenced("".join(piece for piece, _ in tokens)), ""]
        lines += [f"{mean:.2f} nats per token in the mean. The hardest: {hardest(tokens)}.", ""]
    return "\n".join(lines)


def heading(prompt: str | None) -> str:
    """A prompt as a title of one line."""
    if prompt is None:
        return "No prompt: the model starts a document"
    line = " ".join(prompt.split())
    return markdown.code(f"{line[:60]}{'…' if len(line) > 60 else ''}") if line else "(white space)"


def hardest(tokens: Sequence[tuple[str, float]]) -> str:
    """The most surprising tokens and their nats, in words."""
    most = sorted(tokens, key=lambda token: -token[1])[:HARDEST]
    return ", ".join(f"{markdown.code(piece.strip() or repr(piece))} ({nats:.1f})" for piece, nats in most)


def fenced(text: str) -> str:
    """A text as it is, in a block of its own."""
    return markdown.fence(text.strip("\n"), "text")
