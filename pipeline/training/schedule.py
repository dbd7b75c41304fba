"""The learning rate of a step, as a share of its maximum."""

import math


def lr_ratio(
    step: int, schedule: str, max_steps: int, warmup_steps: int, min_lr_ratio: float, decay_fraction: float
) -> float:
    """The learning rate of optimizer step `step` (from 0) divided by max_lr.

    Warmup is linear, (step + 1) / warmup_steps, so that the first step already learns. Then, with r = min_lr_ratio:
      cosine    r + (1 - r) (1 + cos(pi p)) / 2, p the share of the steps after the warmup that are done (GPT-3, App. B)
      linear    1 - (1 - r) p
      wsd       1, then linearly to r over the last decay_fraction of max_steps (MiniCPM, arXiv:2404.06395)
      constant  1
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    start = warmup_steps
    if schedule == "wsd":
        start = max(warmup_steps, max_steps - round(decay_fraction * max_steps))
    progress = min(max(step - start, 0) / max(max_steps - start, 1), 1.0)
    remaining = (1 + math.cos(math.pi * progress)) / 2 if schedule == "cosine" else 1 - progress
    return min_lr_ratio + (1 - min_lr_ratio) * remaining
