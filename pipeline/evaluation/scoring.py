"""Log-likelihoods of endings after contexts, in batches.

The endings of a request share their context, so it goes through the model once and its keys and values are reused. The
lm_head, a third of the work of a small model, sees only the positions that predict a token of an ending. Requests of
similar length share a batch, and so do endings of similar length. Nothing is padded on the left:

    contexts   the first tokens of each: one fewer than the batch's shortest context    (B, shared)
    endings    the rest of the context, then the ending                                 (rows, width)
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from pipeline.distributed import Group
from pipeline.evaluation.surprisal import summed_nats
from pipeline.inference import for_inference
from pipeline.model.gpt import GPT
from pipeline.progress import Progress

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Request:
    """A context of at least one token, and the endings to score after it."""

    context: list[int]
    endings: list[list[int]]

    def fits(self, block_size: int) -> bool:
        """Whether the context and the longest ending fit the window. The last token is never an input."""
        return len(self.context) + max(len(ending) for ending in self.endings) - 1 <= block_size


@dataclass(frozen=True)
class _Task:
    """A request, or a part of one, that fits the model's window."""

    context: list[int]
    endings: list[list[int]]
    rows: list[int]
    """Where the score of each ending goes."""


@torch.no_grad()
def score_requests(
    model: GPT,
    requests: Sequence[Request],
    *,
    batch_size: int,
    dtype: torch.dtype,
    group: Group,
    progress: Progress | None = None,
) -> Scores:
    """The summed cross entropy of every ending, in nats: its negative log-likelihood.  # (requests, endings)

    All requests have the same number of endings. Called by every rank; all return the same result. `batch_size`:
    sequences per forward pass of a rank. `progress` is advanced by the endings of all ranks' batches when this rank has
    finished its own. Batches are cut before they are assigned to ranks, so the scores do not depend on the world size.

    An ending of no tokens has 0 nats. Where a request does not fit the model's window, each ending is scored after the
    newest part of the context that fits, as in lm-evaluation-harness; of an ending longer than the window, the last
    `block_size` tokens are scored.
    """
    endings = len(requests[0].endings) if requests else 0
    tasks = [
        task
        for number, request in enumerate(requests)
        for task in _split(request, number * endings, model.config.block_size)
    ]
    # The longest contexts first: if memory does not suffice, that shows at once.
    tasks.sort(key=lambda task: (-len(task.context), sum(map(len, task.endings)), task.rows))
    batches = [tasks[first : first + batch_size] for first in range(0, len(tasks), batch_size)]

    fast = for_inference(model, dtype)
    nats = torch.zeros(len(requests) * endings, dtype=torch.float64)
    for begin in range(0, len(batches), group.world_size):
        at_once = batches[begin : begin + group.world_size]  # a batch for each rank
        if group.rank < len(at_once):
            for row, value in _score_batch(fast, at_once[group.rank], batch_size, group.device):
                nats[row] = value
        if progress is not None:
            progress.advance(sum(len(task.rows) for batch in at_once for task in batch))
    group.sum_(nats)  # each row is nonzero on one rank only, so this sum is exact
    return nats.view(len(requests), endings).numpy()


def _split(request: Request, first_row: int, block_size: int) -> Iterator[_Task]:
    """The request as one task if it fits the window, else as one task for each ending."""
    rows = list(range(first_row, first_row + len(request.endings)))
    if request.fits(block_size):
        yield _Task(request.context, request.endings, rows)
        return
    for row, ending in zip(rows, request.endings, strict=True):
        text = (request.context + ending)[-(block_size + 1) :]  # the last token is a target only
        cut = max(1, len(text) - len(ending))
        yield _Task(text[:cut], [text[cut:]], [row])


def _score_batch(
    model: GPT, tasks: Sequence[_Task], batch_size: int, device: torch.device
) -> Iterator[tuple[int, float]]:
    """(row, nats) of every ending with tokens. At most `batch_size` endings go through the model at a time."""
    shared = min(len(task.context) for task in tasks) - 1
    cache = None
    if shared:
        cache = model.new_cache(len(tasks), shared)
        model.hidden(torch.tensor([task.context[:shared] for task in tasks], device=device), cache)
    endings = [
        ([*task.context[shared:], *ending][:-1], ending, context, row)
        for context, task in enumerate(tasks)
        for ending, row in zip(task.endings, task.rows, strict=True)
        if ending
    ]
    endings.sort(key=lambda ending: len(ending[0]))
    for first in range(0, len(endings), batch_size):
        inputs, targets, contexts, rows = zip(*endings[first : first + batch_size], strict=True)
        part = None
        if cache is not None:
            part = cache.take(torch.tensor(contexts, device=device), cache.length + max(map(len, inputs)))
        nats = summed_nats(model, list(zip(inputs, targets, strict=True)), device, part)
        yield from zip(rows, nats.tolist(), strict=True)
