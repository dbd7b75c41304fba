"""The learning rate at exact steps."""

import math

import pytest

from pipeline.training.schedule import lr_ratio


def ratio(step: int, schedule: str = "cosine") -> float:
    return lr_ratio(step, schedule, max_steps=100, warmup_steps=10, min_lr_ratio=0.1, decay_fraction=0.2)


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "linear", "constant"])
def test_warmup_is_linear_and_its_last_step_is_the_maximum(schedule: str) -> None:
    assert ratio(0, schedule) == 0.1
    assert ratio(4, schedule) == 0.5
    assert ratio(9, schedule) == 1.0


def test_cosine_starts_at_the_maximum_passes_its_middle_and_ends_at_the_minimum() -> None:
    assert ratio(10) == 1.0
    assert ratio(55) == pytest.approx(0.55)
    assert ratio(70) == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * 60 / 90)))
    assert ratio(100) == pytest.approx(0.1)
    assert ratio(10_000) == pytest.approx(0.1)


def test_cosine_equals_the_reference_recipe_at_its_published_steps() -> None:
    # build-nanogpt: max_lr 6e-4, min_lr 6e-5, warmup 715, max_steps 19073
    def lr(step: int) -> float:
        return 6e-4 * lr_ratio(step, "cosine", 19073, 715, 0.1, 0.2)

    assert lr(0) == pytest.approx(6e-4 / 715)
    assert lr(714) == pytest.approx(6e-4)
    assert lr((19073 + 715) // 2) == pytest.approx(3.3e-4)
    assert lr(19073) == pytest.approx(6e-5)


def test_linear_falls_by_the_same_amount_each_step() -> None:
    assert ratio(10, "linear") == 1.0
    assert ratio(55, "linear") == pytest.approx(0.55)
    assert ratio(100, "linear") == pytest.approx(0.1)


def test_wsd_is_flat_and_falls_linearly_over_its_last_part() -> None:
    assert ratio(10, "wsd") == ratio(79, "wsd") == ratio(80, "wsd") == 1.0
    assert ratio(90, "wsd") == pytest.approx(0.55)
    assert ratio(100, "wsd") == pytest.approx(0.1)


def test_constant_never_falls() -> None:
    assert {ratio(step, "constant") for step in range(9, 200)} == {1.0}


def test_no_warmup_starts_at_the_maximum() -> None:
    assert lr_ratio(0, "cosine", 10, 0, 0.0, 0.2) == 1.0
