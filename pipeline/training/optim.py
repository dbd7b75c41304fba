"""The learning rate of a step, and the optimizer: AdamW, or Muon for hidden matrices with AdamW for the rest."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.distributed import Group
from pipeline.model.config import GPTConfig
from pipeline.model.gpt import GPT
from pipeline.training.muon import MOMENTUM, START_MOMENTUM, Muon
from pipeline.training.params import TrainParams


def learning_rate(step: int, train: TrainParams) -> float:
    """The learning rate of optimizer step `step`, counted from 1.

    Linear warmup, step / warmup_steps, so that the first step already learns. Then max_lr times, with r = min_lr_ratio
    and p the fraction of the remaining steps that are done:
      cosine    r + (1 - r) (1 + cos(pi p)) / 2  (GPT-3, arXiv:2005.14165, appendix B)
      linear    1 - (1 - r) p
      wsd       1, then linearly to r over the last decay_fraction of max_steps (MiniCPM, arXiv:2404.06395)
      constant  1
    """
    return train.max_lr * _lr_ratio(step - 1, train)


def _lr_ratio(done: int, train: TrainParams) -> float:
    """The learning rate after `done` steps, divided by max_lr."""
    if done < train.warmup_steps:
        return (done + 1) / train.warmup_steps
    if train.schedule == "constant":
        return 1.0
    start = decay_start(train) if train.schedule == "wsd" else train.warmup_steps
    progress = min(max(done - start, 0) / max(train.max_steps - start, 1), 1.0)
    remaining = (1 + math.cos(math.pi * progress)) / 2 if train.schedule == "cosine" else 1 - progress
    return train.min_lr_ratio + (1 - train.min_lr_ratio) * remaining


def momentum(step: int, train: TrainParams) -> float:
    """Muon's momentum in optimizer step `step`, counted from 1: rises linearly over momentum_warmup_steps."""
    left = max(1 - step / max(train.momentum_warmup_steps, 1), 0.0)
    return MOMENTUM - (MOMENTUM - START_MOMENTUM) * left


def decay_start(train: TrainParams) -> int:
    """The steps that wsd takes before its decay."""
    return max(train.warmup_steps, train.max_steps - round(train.decay_fraction * train.max_steps))


class Optimizer:
    """One or two torch optimizers that step together, or leave a step out."""

    def __init__(self, model: GPT, train: TrainParams, group: Group) -> None:
        """Weight decay applies to tensors with two or more dimensions, as in GPT-2's trainers."""
        self._train = train
        parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        hidden = _hidden_matrices(parameters, model.config)
        muon = {} if train.optimizer == "adamw" else hidden
        groups: dict[tuple[float, bool], list[nn.Parameter]] = {}  # by peak learning rate and decay
        for name, p in parameters.items():
            if p in muon:
                continue
            peak = train.max_lr if p in hidden else _peak_lr(name, p, train)
            groups.setdefault((peak, p.dim() >= 2), []).append(p)
        self._adamw = torch.optim.AdamW(
            [
                {"params": members, "lr_ratio": peak / train.max_lr, "weight_decay": train.weight_decay * decays}
                for (peak, decays), members in groups.items()
            ],
            lr=0.0,
            betas=train.betas,
            eps=train.eps,
            fused=group.device.type in ("cpu", "cuda"),
        )
        variant = {"normuon": train.optimizer == "normuon", "cautious": train.cautious_decay}
        self._muon = Muon(muon, train.weight_decay, group, **variant) if muon else None
        self._all: list[torch.optim.Optimizer] = [self._adamw, *([self._muon] if self._muon else [])]
        self.parameters = list(parameters.values())
        self.skips_on_host = group.device.type != "cuda"
        """Whether `step` waits for `skip`; on CUDA the device undoes the update instead."""

    def step(self, step: int, skip: Tensor) -> None:
        """The update of `step`, counted from 1; none, with weights and moments untouched, where `skip` is set.

        `skip`: bool scalar on the device, the same on every rank. On CUDA the host does not wait for it.
        """
        lr = learning_rate(step, self._train)
        for group in self._adamw.param_groups:
            group["lr"] = lr * group["lr_ratio"]
        if self._muon:
            (group,) = self._muon.param_groups
            group["lr"], group["momentum"] = lr, momentum(step, self._train)
        if self.skips_on_host:
            if not skip.item():
                for optimizer in self._all:
                    optimizer.step()
            return
        # Fused AdamW changes nothing where found_inf is set, as GradScaler uses it.
        self._adamw.grad_scale, self._adamw.found_inf = None, skip.float()  # type: ignore[attr-defined]
        self._adamw.step()
        if self._muon:
            self._muon.step(skip=skip)

    def zero_grad(self) -> None:
        """Frees the gradients."""
        for optimizer in self._all:
            optimizer.zero_grad(set_to_none=True)

    def indexed_parameters(self) -> list[list[Tensor]]:
        """Each optimizer's parameters, in the order of the indices in its state dict."""
        return [[p for group in optimizer.param_groups for p in group["params"]] for optimizer in self._all]

    def state_dict(self) -> list[dict[str, Any]]:
        """One state dict per optimizer: AdamW, then Muon if there is one."""
        return [optimizer.state_dict() for optimizer in self._all]

    def load_state_dict(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Loads the moments that `state_dict` returned. Hyperparameters stay: they follow from the params."""
        for optimizer, state in zip(self._all, states, strict=True):
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state["state"]})

    def expected_state(self) -> list[dict[int, dict[str, Tensor]]]:
        """The `state` in each optimizer's state dict after a step, with other tensors of the same shape and dtype."""
        step = torch.tensor(0.0)
        adamw, *muon = self.indexed_parameters()
        return [
            {index: {"step": step, "exp_avg": p, "exp_avg_sq": p} for index, p in enumerate(adamw)},
            *({n: self._muon.initial_state(p) for n, p in enumerate(matrices)} for matrices in muon if self._muon),
        ]


def _peak_lr(name: str, parameter: nn.Parameter, train: TrainParams) -> float:
    """The learning rate after warmup of a parameter outside the hidden matrices."""
    if parameter.dim() < 2:
        own = train.vector_lr
    else:
        own = train.head_lr if name == "lm_head.weight" else train.embedding_lr
    return train.max_lr if own is None else own


def _hidden_matrices(parameters: Mapping[str, nn.Parameter], config: GPTConfig) -> dict[nn.Parameter, tuple[int, ...]]:
    """The matrices inside the blocks, with the rows of those fused in each. Muon's authors leave the rest to AdamW."""
    kv = config.kv_heads * config.head_size
    fused: dict[str, tuple[int, ...]] = {"attn.c_attn.weight": (config.n_embd, kv, kv)}
    if config.gated:
        fused["mlp.c_fc.weight"] = (config.mlp_width, config.mlp_width)
    return {
        p: fused.get(name.partition("h.")[2].partition(".")[2], (p.size(0),))
        for name, p in parameters.items()
        if p.dim() == 2 and name.startswith("transformer.h.")
    }
