"""The log-likelihoods of endings after contexts, in few forward passes.

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
from pipeline.evaluation.surprisal import row_sums, target_hidden, token_margins, token_nats
from pipeline.inference import for_inference
from pipeline.model.gpt import GPT
from pipeline.progress import Progress

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Request:
    """Endings to score, each after a context of at least one token."""

    contexts: list[list[int]]
    """One that all endings share, or one for each."""
    endings: list[list[int]]
    margins: bool = False
    """Whether to compute the margin of each ending too."""

    def pairs(self) -> list[tuple[list[int], list[int]]]:
        """(context, ending) of each ending."""
        contexts = self.contexts * (len(self.endings) // len(self.contexts))
        return list(zip(contexts, self.endings, strict=True))

    def only(self, rows: Sequence[int]) -> "Request":
        """The request for some of the endings."""
        contexts = self.contexts if len(self.contexts) == 1 else [self.contexts[row] for row in rows]
        return Request(contexts, [self.endings[row] for row in rows], self.margins)

    def fits(self, block_size: int) -> bool:
        """Whether each context fits the window with its ending. The last token is never an input."""
        return all(len(context) + len(ending) - 1 <= block_size for context, ending in self.pairs())


@dataclass(frozen=True)
class _Task:
    """A request, or a part of one, that fits the model's window."""

    context: list[int]
    endings: list[list[int]]
    rows: list[int]
    """Where the score of each ending goes."""
    margins: bool


@torch.no_grad()
def score_requests(
    model: GPT,
    requests: Sequence[Request],
    *,
    batch_size: int,
    dtype: torch.dtype,
    group: Group,
    progress: Progress | None = None,
) -> list[Scores]:
    """The scores of the endings of each request.  # (endings, 2)

    The first column is the summed cross entropy in nats, the negative log-likelihood. The second is the margin: how far
    the logit of the ending's least certain token is above those of all other tokens, positive where greedy sampling
    gives the ending; 0 unless the request asks for margins.

    Called by every rank; all return the same result. `batch_size`: full sequences per forward pass of a rank; on a GPU,
    as many shorter ones as have that many tokens. `dtype` of matrix products. `progress` is advanced by the endings of
    all ranks' batches when this rank has finished its own. Batches are cut before they are assigned to ranks, so the
    scores do not depend on the world size.

    An ending of no tokens has 0 nats. Where a request does not fit the model's window, each ending is scored after the
    newest part of the context that fits, as in lm-evaluation-harness; of an ending longer than the window, the last
    `block_size` tokens are scored.
    """
    first_rows = np.cumsum([0, *(len(request.endings) for request in requests)])
    tasks = [
        task
        for request, row in zip(requests, first_rows.tolist(), strict=False)
        for task in _split(request, row, model.config.block_size)
    ]
    # The longest contexts first, so that running out of memory shows at once.
    tasks.sort(key=lambda task: (-len(task.context), sum(map(len, task.endings)), task.rows))
    batches: list[list[_Task]] = []
    while tasks:
        size = rows_at_once(batch_size, model.config.block_size, len(tasks[0].context), group.device)
        batches.append(tasks[:size])
        del tasks[:size]

    fast = for_inference(model, dtype)
    scores = torch.zeros(int(first_rows[-1]), 2, dtype=torch.float64)
    for begin in range(0, len(batches), group.world_size):
        at_once = batches[begin : begin + group.world_size]  # a batch for each rank
        if group.rank < len(at_once):
            for rows, part in _score_batch(fast, at_once[group.rank], batch_size, group.device):
                scores[rows] = part
        if progress is not None:
            progress.advance(sum(len(task.rows) for batch in at_once for task in batch))
    group.sum_(scores)  # each row is nonzero on one rank only, so this sum is exact
    return np.split(scores.numpy(), first_rows[1:-1]) if requests else []


def rows_at_once(batch_size: int, block_size: int, length: int, device: torch.device) -> int:
    """How many rows of `length` tokens to compute at once: on a GPU, `batch_size` times `block_size` tokens."""
    if device.type == "cpu":
        return batch_size  # the activations of small batches stay in its cache
    return max(batch_size, batch_size * block_size // length)


def _split(request: Request, first_row: int, block_size: int) -> Iterator[_Task]:
    """The request as one task if its endings share a context and fit the window, else as one task for each ending."""
    if len(request.contexts) == 1 and request.fits(block_size):
        rows = list(range(first_row, first_row + len(request.endings)))
        yield _Task(request.contexts[0], request.endings, rows, request.margins)
        return
    for row, (context, ending) in enumerate(request.pairs(), start=first_row):
        text = (context + ending)[-(block_size + 1) :]  # the last token is a target only
        cut = max(1, len(text) - len(ending))
        yield _Task(text[:cut], [text[cut:]], [row], request.margins)


def _score_batch(
    model: GPT, tasks: Sequence[_Task], batch_size: int, device: torch.device
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """(rows, scores (n, 2)) of the endings with tokens, `rows_at_once` at a time."""
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
    longest = shared + max((len(inputs) for inputs, *_ in endings), default=1)
    size = rows_at_once(batch_size, model.config.block_size, longest, device)
    for first in range(0, len(endings), size):
        inputs, targets, contexts, rows = zip(*endings[first : first + size], strict=True)
        part = None
        if cache is not None:
            part = cache.take(torch.tensor(contexts, device=device), cache.length + max(map(len, inputs)))
        hidden, expected, scored = target_hidden(model, list(zip(inputs, targets, strict=True)), device, part)
        scores = torch.zeros(len(rows), 2, dtype=torch.float64, device=device)
        scores[:, 0] = row_sums(token_nats(model, hidden, expected), scored)
        if any(task.margins for task in tasks):
            margins = torch.full(scored.shape, torch.inf, dtype=torch.float64, device=device)
            margins[scored] = token_margins(model, hidden, expected).double()
            scores[:, 1] = margins.amin(dim=1)
        yield list(rows), scores.cpu()
