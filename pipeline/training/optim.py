"""AdamW, or Muon for the hidden matrices with AdamW for the rest, behind one step that can be skipped."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

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
        self._all: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=eps, fused=device.type in ("cpu", "cuda"))
        ]
        if hidden:
            muon = torch.optim.Muon(
                list(hidden.values()),
                lr=0.0,
                weight_decay=weight_decay,
                momentum=MUON_MOMENTUM,
                adjust_lr_fn="match_rms_adamw",
            )
            self._all.append(muon)
        self.parameters = list(parameters.values())
        # Fused AdamW leaves everything as it was where the device says so, without asking the host.
        self._skips_on_device = device.type == "cuda" and not hidden

    def step(self, lr: float, skip: Tensor) -> None:
        """One update at learning rate `lr`, or none, weights and moments untouched, where `skip` is set.

        `skip` is a bool scalar on the device, the same on every rank. On CUDA with AdamW alone the host does not wait
        for it.
        """
        for optimizer in self._all:
            for group in optimizer.param_groups:
                group["lr"] = lr
        if self._skips_on_device:
            adamw = self._all[0]
            adamw.grad_scale, adamw.found_inf = None, skip.float()  # type: ignore[attr-defined]
            adamw.step()
        elif not skip.item():
            for optimizer in self._all:
                optimizer.step()

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


def hidden_matrices(parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """The matrices inside the blocks: Muon's share. Embeddings and head stay with AdamW, as Muon's authors advise."""
    return {name: p for name, p in parameters.items() if p.dim() == 2 and name.startswith("transformer.h.")}
