"""The learning rate at exact steps."""

import math

import pytest
import torch

from pipeline.model.gpt import GPT
from pipeline.training.optim import Optimizer, learning_rate, momentum
from pipeline.training.params import TrainParams
from tests.model.configs import TINY
from tests.training.conftest import ONE_RANK, TRAIN


def lr(done: int, schedule: str = "cosine", **changes: float) -> float:
    """The learning rate of the step after `done` steps, of 100 with a warmup of 10."""
    params = {"max_lr": 1.0, "max_steps": 100, "warmup_steps": 10, "min_lr_ratio": 0.1, "decay_fraction": 0.2}
    train = TrainParams.model_validate({**TRAIN, **params, "schedule": schedule, **changes})
    return learning_rate(done + 1, train)


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "linear", "constant"])
def test_warmup_is_linear_and_its_last_step_is_the_maximum(schedule: str) -> None:
    assert lr(0, schedule) == 0.1
    assert lr(4, schedule) == 0.5
    assert lr(9, schedule) == 1.0


def test_cosine_decays_from_the_maximum_to_the_minimum() -> None:
    assert lr(10) == 1.0
    assert lr(55) == pytest.approx(0.55)
    assert lr(70) == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * 60 / 90)))
    assert lr(100) == pytest.approx(0.1)
    assert lr(10_000) == pytest.approx(0.1)


def test_cosine_equals_build_nanogpts_at_its_published_steps() -> None:
    recipe = {"max_lr": 6e-4, "max_steps": 19073, "warmup_steps": 715}  # and min_lr 6e-5
    assert lr(0, **recipe) == pytest.approx(6e-4 / 715)
    assert lr(714, **recipe) == pytest.approx(6e-4)
    assert lr((19073 + 715) // 2, **recipe) == pytest.approx(3.3e-4)
    assert lr(19073, **recipe) == pytest.approx(6e-5)


def test_linear_falls_by_the_same_amount_each_step() -> None:
    assert lr(10, "linear") == 1.0
    assert lr(55, "linear") == pytest.approx(0.55)
    assert lr(100, "linear") == pytest.approx(0.1)


def test_wsd_is_flat_and_falls_linearly_at_the_end() -> None:
    assert lr(10, "wsd") == lr(79, "wsd") == lr(80, "wsd") == 1.0
    assert lr(90, "wsd") == pytest.approx(0.55)
    assert lr(100, "wsd") == pytest.approx(0.1)


def test_constant_never_falls() -> None:
    assert {lr(done, "constant") for done in range(9, 200)} == {1.0}


def test_a_run_shorter_than_its_warmup_ends_during_it() -> None:
    for schedule in ("constant", "cosine", "linear", "wsd"):
        assert [lr(done, schedule, max_steps=3, warmup_steps=4) for done in range(3)] == [0.25, 0.5, 0.75]


def test_the_momentum_rises_linearly_over_its_warmup() -> None:
    train = TrainParams.model_validate({**TRAIN, "momentum_warmup_steps": 10})
    assert [momentum(step, train) for step in (5, 10, 11)] == [pytest.approx(0.9), 0.95, 0.95]
    assert momentum(1, TrainParams.model_validate(TRAIN)) == 0.95


@pytest.mark.parametrize("tied", [True, False])
def test_each_group_of_parameters_has_its_own_peak(tied: bool) -> None:
    """The first step of AdamW moves each weight by its learning rate, here half the peak: warmup takes two steps."""
    rates = {"max_lr": 0.008, "embedding_lr": 0.02, "head_lr": 0.002, "vector_lr": 0.04}
    train = TrainParams.model_validate({**TRAIN, **rates, "weight_decay": 0.0, "warmup_steps": 2})
    model = GPT(TINY.changed(tie_embeddings=tied))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    Optimizer(model, train, ONE_RANK).step(1, skip=torch.tensor(False))
    for name, p in model.named_parameters():
        kind = "vector_lr" if p.dim() == 1 else "embedding_lr" if ".w" in name[:14] else "max_lr"
        kind = "head_lr" if name.startswith("lm_head") else kind
        torch.testing.assert_close(before[name] - p.detach(), torch.full_like(p, rates[kind] / 2), rtol=1e-3, atol=1e-6)


def test_no_warmup_starts_at_the_maximum() -> None:
    assert lr(0, max_steps=10, warmup_steps=0) == 1.0
