"""Experiments to compare, with results built from the records' own classes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from pipeline.artifacts import Samples, ValidationMetrics
from pipeline.comparison.experiments import Experiment, Run, State
from pipeline.dvc_lock import flat
from tests.reporting import fixtures

PARAMS = flat(fixtures.PARAMS)


def run(
    name: str,
    loss: float = 3.6,
    *,
    bpb: float | None = None,
    val_tokens: int = 61_234,
    parameters: int = 4_000_000,
    curves: pd.DataFrame | None = None,
    samples: Samples | None = None,
    summary: dict[str, Any] | None = None,
    metrics: dict[str, Any] | None = None,
    committed: bool = False,
    rev: str = "0123456789" * 4,
    base: str = "base",
    date: str | None = None,
    changed: dict[str, Any] | None = None,
    **params: Any,
) -> Run:
    """A finished experiment. `params`: settings of its own, `model__position` for model.position."""
    val = ValidationMetrics(loss=loss, perplexity=36.0, bpb=loss / 1.55 if bpb is None else bpb, tokens=val_tokens)
    size = {"total": parameters, "without_embeddings": parameters // 2}
    fields: dict[str, Any] = {"flops": int(6 * parameters * 1e7), "parameters": size}
    return Run(
        name,
        rev,
        "done",
        PARAMS | {key.replace("__", "."): value for key, value in params.items()},
        base,
        committed,
        changed or {},
        date,
        summary=fixtures.run_summary(**fields | (summary or {})),
        evaluation=fixtures.evaluation_metrics(**{"val": val} | (metrics or {})),
        samples=fixtures.samples(prompts=[]) if samples is None else samples,
        curves=fixtures.curves(2) if curves is None else curves,
    )


def validation_curve(*losses: float, tokens: Sequence[int] = (100, 200, 300, 400)) -> pd.DataFrame:
    """Validation losses at some tokens; the time in seconds is a tenth of the tokens."""
    tokens = tokens[: len(losses)]
    frame = {"step": tokens, "tokens": tokens, "time_s": [token / 10 for token in tokens], "val/loss": losses}
    return pd.DataFrame(frame).assign(event="")


def unfinished(name: str, state: State, **params: Any) -> Experiment:
    """An experiment without results."""
    settings = PARAMS | {key.replace("__", "."): value for key, value in params.items()}
    return Experiment(name, "f" * 40, state, settings, "base", problem="a|b.json: val" if state == "unreadable" else "")


def seeds(position: str, losses: list[float], **params: Any) -> list[Run]:
    """A run of each seed 1, 2, ... of a configuration."""
    return [
        run(f"{position}-{seed}", loss, model__position=position, train__seed=seed, **params)
        for seed, loss in enumerate(losses, 1)
    ]


def scaling_loss(parameters: Any, tokens: Any) -> Any:
    """A scaling law, for numbers or arrays."""
    return 2.5 + 60 / parameters**0.34 + 200 / tokens**0.4


def scaling_runs(
    sizes: Sequence[float] = (1e6, 2e6, 4e6), steps: Sequence[int] = (300, 600, 1200), noise: float = 0.0, **params: Any
) -> list[Run]:
    """A run of each size for each number of steps, with losses of `scaling_loss`. `noise`: of the log of the loss."""
    random = np.random.default_rng(1)
    return [
        run(
            f"{size:g}-{number}",
            scaling_loss(size, 2048 * number) * float(np.exp(noise * random.normal())),
            parameters=int(size),
            summary={"tokens": 2048 * number, "flops": int(6.4 * size * 2048 * number)},
            model__n_layer=layers,
            train__max_steps=number,
            **params,
        )
        for layers, size in enumerate(sizes)
        for number in steps
    ]
