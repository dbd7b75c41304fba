"""Muon (kellerjordan.github.io/posts/muon): momentum whose matrices are orthogonalised before each update.

It computes what torch.optim.Muon does, with three differences:
- Matrices that the model fuses for speed (queries, keys and values; gate and value) are orthogonalised one by one: each
  is a map of its own, and as one matrix they reach a greater loss.
- Matrices of one shape are multiplied in one batch, and ranks share the batch.
- A step can be skipped on the device, so that the host need not wait.

Two variants: NorMuon (arXiv 2510.05491) divides each row of the orthogonalised matrix by the root of its running mean
square, then restores the norm of the matrix. Cautious decay (arXiv 2510.12402) spares the weights that the update
itself does not shrink.

Rejected: iterating on the Gram matrix of a rectangular matrix, 39 % fewer FLOPs. It squares the singular values, of
which bfloat16 then loses the small ones, and in float32 the products of a CPU take twice as long.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.distributed import Group
from pipeline.training.parallel import full_like, shard_like, to_local

MOMENTUM = 0.95  # Keller Jordan's value
START_MOMENTUM = 0.85  # of a warm-up: that of modded-nanogpt
ROW_DECAY = 0.95  # of NorMuon's mean squares: the paper's value
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic, also his; singular values end between about 0.7 and 1.2
ITERATIONS = 5
BATCH_ELEMENTS = 2**26  # per rank, at most: bounds the memory of a step


class Muon(torch.optim.Optimizer):
    """Steps matrices of shape (rows, columns); the state of each is its momentum, and NorMuon's (rows, 1)."""

    def __init__(
        self,
        parts: Mapping[nn.Parameter, tuple[int, ...]],
        weight_decay: float,
        group: Group,
        *,
        normuon: bool = False,
        cautious: bool = False,
    ) -> None:
        """`parts`: for each matrix, the numbers of rows of the matrices that are fused in it."""
        super().__init__(list(parts), {"lr": 0.0, "momentum": MOMENTUM, "weight_decay": weight_decay})
        self.group, self.normuon, self.cautious = group, normuon, cautious
        alike: dict[tuple[Any, ...], list[nn.Parameter]] = {}
        for p, rows in parts.items():
            alike.setdefault((p.shape, rows), []).append(p)
        self.batches: list[tuple[tuple[int, ...], list[nn.Parameter]]] = []
        for (shape, rows), parameters in alike.items():
            size = max(BATCH_ELEMENTS * group.world_size // shape.numel(), 1)
            self.batches += [(rows, parameters[n : n + size]) for n in range(0, len(parameters), size)]

    @torch.no_grad()
    def step(self, closure: None = None, *, skip: Tensor | None = None) -> None:  # type: ignore[override]
        """One update; none, with weights and state untouched, where the bool scalar `skip` is set."""
        lr, weight_decay = self.param_groups[0]["lr"], self.param_groups[0]["weight_decay"]
        keep = 1.0 if skip is None else 1.0 - skip.float()
        for rows, parameters in self.batches:
            matrices = [part for p in parameters for part in self._direction(p, skip).split(rows)]
            orthogonal = orthogonalize(matrices, self.group)
            for number, p in enumerate(parameters):
                parts = [part.float() for part in orthogonal[number * len(rows) : (number + 1) * len(rows)]]
                if self.normuon:
                    parts = self._normalized_rows(p, parts, keep)
                # match_rms_adamw of Moonlight (arXiv:2502.16982): as large as AdamW's updates, so both share one rate
                update = torch.cat([part * (0.2 * max(part.shape) ** 0.5) for part in parts])
                local, local_update = to_local(p.detach()), to_local(shard_like(update, p))
                if self.cautious:
                    local.sub_(local * (local_update * local > 0) * (lr * weight_decay * keep))
                else:
                    local.mul_(1 - lr * weight_decay * keep)
                local.sub_(local_update * (lr * keep))

    def initial_state(self, p: Tensor) -> dict[str, Tensor]:
        """The state of a matrix before its first step: zeros."""
        state = {"momentum_buffer": torch.zeros_like(p, memory_format=torch.preserve_format)}
        if self.normuon:
            state["row_mean_square"] = torch.zeros(p.size(0), 1, device=p.device)
        return state

    def _direction(self, p: nn.Parameter, skip: Tensor | None) -> Tensor:
        """Updates the momentum; returns Nesterov's direction, the whole of it in bfloat16."""
        assert p.grad is not None
        if not self.state[p]:
            self.state[p].update(self.initial_state(p))
        gradient, buffer = to_local(p.grad), to_local(self.state[p]["momentum_buffer"])
        momentum = self.param_groups[0]["momentum"]
        if skip is not None:  # a selection: NaN in the gradient cannot leak
            gradient.copy_(torch.where(skip, buffer, gradient))
        buffer.lerp_(gradient, 1 - momentum)
        return full_like(gradient.lerp(buffer, momentum).bfloat16(), p)

    def _normalized_rows(self, p: nn.Parameter, parts: Sequence[Tensor], keep: float | Tensor) -> list[Tensor]:
        """NorMuon: each row over the root of its running mean square; each part keeps its norm."""
        mean_square = self.state[p]["row_mean_square"]
        mean_square.lerp_(
            torch.cat([part.square().mean(dim=-1, keepdim=True) for part in parts]), (1 - ROW_DECAY) * keep
        )
        scales = mean_square.clamp(min=1e-10).rsqrt().split([part.size(0) for part in parts])
        scaled = [part * scale for part, scale in zip(parts, scales, strict=True)]
        return [
            after * (part.norm() / after.norm().clamp(min=1e-10)) for part, after in zip(parts, scaled, strict=True)
        ]


def orthogonalize(matrices: Sequence[Tensor], group: Group) -> list[Tensor]:
    """Roughly the nearest matrix with orthonormal rows or columns to each of `matrices` (bfloat16).

    Every rank passes the same matrices and gets all results; it computes its share of those of one shape.
    """
    shapes: dict[torch.Size, list[int]] = {}
    for number, matrix in enumerate(matrices):
        shapes.setdefault(matrix.shape, []).append(number)
    results = list(matrices)
    for (rows, columns), numbers in shapes.items():
        batch = torch.stack([matrices[number] for number in numbers])
        wide = _on_all_ranks(batch.mT if rows > columns else batch, group)
        for number, result in zip(numbers, wide.mT if rows > columns else wide, strict=False):  # without the filling
            results[number] = result
    return results


def _on_all_ranks(batch: Tensor, group: Group) -> Tensor:
    """newton_schulz of a batch (n, rows, columns), each rank computing its share; at least n results."""
    if group.world_size == 1:
        return newton_schulz(batch)
    share = -(-len(batch) // group.world_size)
    own = batch[group.rank * share : (group.rank + 1) * share]
    filled = batch.new_zeros(share, *batch.shape[1:])
    filled[: len(own)] = newton_schulz(own)
    results = batch.new_empty(share * group.world_size, *batch.shape[1:])
    dist.all_gather(list(results.chunk(group.world_size)), filled)
    return results


def newton_schulz(batch: Tensor) -> Tensor:
    """Moves all singular values towards 1: (n, rows, columns) with rows <= columns -> the same shape."""
    a, b, c = COEFFICIENTS
    x = batch / batch.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x
