"""Log-likelihoods of endings after contexts, many at a time.

The endings of a question share their context, so it goes through the model once, and its keys and values are reused;
the head, which for a small model is a third of the work, sees only the positions that predict an ending's tokens.
Questions of like length stand in one batch, and so do endings of like length. No token is padded on the left:

    contexts   the first tokens of each, as many as the shortest of the batch has but one      (B, shared)
    endings    the rest of the context, then the ending                                        (rows, width)
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from pipeline.evaluation.windows import token_nats
from pipeline.model.cache import KVCache
from pipeline.model.gpt import GPT


@dataclass(frozen=True)
class Task:
    """A context, at least one token, and the endings to score after it. `rows`: where each ending's score goes."""

    context: list[int]
    endings: list[list[int]]
    rows: list[int]


@dataclass(frozen=True)
class _Row:
    """An ending in a batch: the inputs that follow the shared tokens, and the targets, which end where they end."""

    inputs: list[int]
    targets: list[int]
    context: int
    """Which of the batch's contexts it follows."""
    row: int


def tasks_of(context: list[int], endings: Sequence[list[int]], first_row: int, block_size: int) -> Iterator[Task]:
    """One question as tasks that fit the model's window of `block_size` tokens.

    Where the context and the longest ending fit, that is one task. Else each ending gets one of its own, with the
    newest part of the context that fits before it, as lm-evaluation-harness has it; of an ending that is itself longer
    than the window, its last `block_size` tokens are scored.
    """
    if fits(context, endings, block_size):
        yield Task(context, list(endings), list(range(first_row, first_row + len(endings))))
        return
    for row, ending in enumerate(endings, start=first_row):
        text = (context + ending)[-(block_size + 1) :]  # the last token is a target only
        cut = max(1, len(text) - len(ending))
        yield Task(text[:cut], [text[cut:]], [row])


def fits(context: list[int], endings: Sequence[list[int]], block_size: int) -> bool:
    """Whether the context and its longest ending, without the last token, which is no input, fit the window."""
    return len(context) + max(len(ending) for ending in endings) - 1 <= block_size


def batches_of(tasks: Sequence[Task], batch_size: int) -> list[list[Task]]:
    """Tasks in batches of like lengths, the longest contexts first: what does not fit the memory fails at once."""
    ordered = sorted(tasks, key=lambda task: (-len(task.context), sum(map(len, task.endings)), task.rows))
    return [ordered[first : first + batch_size] for first in range(0, len(ordered), batch_size)]


def score_batch(
    model: GPT, tasks: Sequence[Task], batch_size: int, device: torch.device
) -> Iterator[tuple[int, float]]:
    """(row, nats) for every ending in one batch of tasks: the summed cross entropy, in float64, of its tokens.

    At most `batch_size` endings go through the model at a time. An ending of no tokens has 0 nats.
    """
    shared = min(len(task.context) for task in tasks) - 1
    cache = None
    if shared:
        cache = model.new_cache(len(tasks), shared)
        model.hidden(torch.tensor([task.context[:shared] for task in tasks], device=device), cache)
    rows = [
        _Row([*task.context[shared:], *ending][:-1], ending, context, row)
        for context, task in enumerate(tasks)
        for ending, row in zip(task.endings, task.rows, strict=True)
        if ending
    ]
    rows.sort(key=lambda row: len(row.inputs))
    for first in range(0, len(rows), batch_size):
        yield from _score_rows(model, rows[first : first + batch_size], cache, device)


def _score_rows(
    model: GPT, rows: Sequence[_Row], cache: KVCache | None, device: torch.device
) -> Iterator[tuple[int, float]]:
    """(row, nats) for endings that go through the model together, after their contexts in `cache`."""
    width = max(len(row.inputs) for row in rows)
    idx = torch.zeros(len(rows), width, dtype=torch.int64)  # padded behind, where no token looks
    targets = torch.zeros_like(idx)
    scored = torch.zeros_like(idx, dtype=torch.bool)
    for index, row in enumerate(rows):
        end = len(row.inputs)
        idx[index, :end] = torch.tensor(row.inputs)
        targets[index, end - len(row.targets) : end] = torch.tensor(row.targets)
        scored[index, end - len(row.targets) : end] = True
    idx, targets, scored = idx.to(device), targets.to(device), scored.to(device)
    if cache is not None:
        cache = cache.take(torch.tensor([row.context for row in rows], device=device), cache.length + width)
    hidden = model.hidden(idx, cache)[scored]  # (N, C)
    nats = torch.zeros(idx.shape, dtype=torch.float64, device=device)
    nats[scored] = token_nats(model, hidden, targets[scored]).double()
    yield from zip((row.row for row in rows), nats.sum(dim=1).tolist(), strict=True)
