"""AdamW, or Muon for the hidden matrices with AdamW for the rest, behind one step that can be skipped."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.training.parallel import own_share

MUON_MOMENTUM = 0.95


class Optimizer:
    """The optimizers of a model, stepped together."""

    def __init__(
        self,
        model: nn.Module,
        kind: str,
        weight_decay: float,
        betas: tuple[float, float],
        eps: float,
        device: torch.device,
    ) -> None:
        """`kind`: "adamw" or "muon". Weight decay falls on tensors of two dimensions or more, as in GPT-2's trainers.

        Muon (Jordan et al., kellerjordan.github.io/posts/muon) is PyTorch's own; its updates are scaled to AdamW's size
        (Moonlight, arXiv:2502.16982), so that one learning rate serves both.
        """
        parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        hidden = hidden_matrices(parameters) if kind == "muon" else {}
        rest = [p for name, p in parameters.items() if name not in hidden]
        groups = [
            {"params": [p for p in rest if p.dim() >= 2], "weight_decay": weight_decay},
            {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        self._adamw = torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=eps, fused=device.type in ("cpu", "cuda"))
        self._muon = None
        if hidden:
            self._muon = torch.optim.Muon(
                list(hidden.values()),
                lr=0.0,
                weight_decay=weight_decay,
                momentum=MUON_MOMENTUM,
                adjust_lr_fn="match_rms_adamw",
            )
        self._all: list[torch.optim.Optimizer] = [self._adamw, *([self._muon] if self._muon else [])]
        self.parameters = list(parameters.values())
        self.asks_host = device.type != "cuda"
        """Whether `step` waits for its decision; else the device undoes what it should not have done."""

    def step(self, lr: float, skip: Tensor) -> None:
        """One update at learning rate `lr`, or none, weights and moments untouched, where `skip` is set.

        `skip` is a bool scalar on the device, the same on every rank. On CUDA the host does not wait for it.
        """
        for optimizer in self._all:
            for group in optimizer.param_groups:
                group["lr"] = lr
        if self.asks_host:
            if not skip.item():
                for optimizer in self._all:
                    optimizer.step()
            return
        # Fused AdamW leaves everything as it was where the device says so.
        self._adamw.grad_scale, self._adamw.found_inf = None, skip.float()  # type: ignore[attr-defined]
        self._adamw.step()
        if self._muon:
            step_unless(skip, self._muon)

    def zero_grad(self) -> None:
        """Frees the gradients."""
        for optimizer in self._all:
            optimizer.zero_grad(set_to_none=True)

    def indexed_parameters(self) -> list[list[Tensor]]:
        """The parameters of each optimizer, as the indices in its state count them."""
        return [[p for group in optimizer.param_groups for p in group["params"]] for optimizer in self._all]

    def state_dict(self) -> list[dict[str, Any]]:
        """The optimizers' states, in a fixed order."""
        return [optimizer.state_dict() for optimizer in self._all]

    def load_state_dict(self, states: Iterable[Mapping[str, Any]]) -> None:
        """Takes up states that `state_dict` gave."""
        for optimizer, state in zip(self._all, states, strict=True):
            optimizer.load_state_dict(dict(state))


def step_unless(skip: Tensor, muon: torch.optim.Muon) -> None:
    """Muon's step, undone on the device where `skip` is set, so that the host need not know.

    Muon itself takes no such decision. It steps one matrix at a time here, so that the copies need no room to speak of.
    """
    groups = muon.param_groups
    try:
        for group in groups:
            for p in group["params"]:
                if "momentum_buffer" not in muon.state[p]:
                    muon.state[p]["momentum_buffer"] = torch.zeros_like(p, memory_format=torch.preserve_format)
                own = [own_share(tensor) for tensor in (p.detach(), muon.state[p]["momentum_buffer"])]
                before = [tensor.clone() for tensor in own]
                muon.param_groups = [{**group, "params": [p]}]
                muon.step()
                for tensor, old in zip(own, before, strict=True):
                    tensor.copy_(torch.where(skip, old, tensor))  # a choice: what is not finite leaves no trace
    finally:
        muon.param_groups = groups


def hidden_matrices(parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """The matrices inside the blocks: Muon's share. Embeddings and head stay with AdamW, as Muon's authors advise."""
    return {name: p for name, p in parameters.items() if p.dim() == 2 and name.startswith("transformer.h.")}
