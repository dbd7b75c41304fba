"""The choice of a token: greedy, temperature, top-k, top-p, one random number each."""

import numpy as np
import pytest
import torch

from pipeline.generation.choosing import choose, random_stream

LOGITS = torch.log(torch.tensor([[0.1, 0.4, 0.2, 0.3]]))


def counts(draws: int = 4000, **settings: float) -> list[float]:
    """How often each of four tokens is drawn, for uniform numbers spread evenly."""
    uniforms = (torch.arange(draws, dtype=torch.float64) + 0.5) / draws
    arguments = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} | settings
    tokens = choose(LOGITS.expand(draws, 4), uniforms=uniforms, **arguments)  # type: ignore[arg-type]
    return (torch.bincount(tokens, minlength=4) / draws).tolist()


def test_tokens_are_drawn_as_often_as_the_model_says() -> None:
    assert counts() == pytest.approx([0.1, 0.4, 0.2, 0.3], abs=1e-3)


def test_temperature_zero_takes_the_likeliest() -> None:
    assert counts(temperature=0) == [0, 1, 0, 0]


@pytest.mark.parametrize("offset", [0.0, -1e4])
def test_any_temperature_draws_from_what_the_model_allows(offset: float) -> None:
    logits = torch.cat((LOGITS + offset, torch.tensor([[-torch.inf]])), dim=-1)  # the last: a padded id
    uniforms = torch.tensor([0.999], dtype=torch.float64)
    for temperature, expected in ((5e-324, [1]), (1e-37, [1]), (1e37, [0, 3]), (1e308, [0, 3])):
        for top_k, top_p in ((0, 1.0), (5, 1.0), (0, 0.9999)):
            assert int(choose(logits, temperature, top_k, top_p, uniforms)) in expected, (temperature, top_k, top_p)


def test_temperature_two_flattens() -> None:
    roots = np.sqrt([0.1, 0.4, 0.2, 0.3])
    assert counts(temperature=2.0) == pytest.approx(roots / roots.sum(), abs=1e-3)


def test_top_k_keeps_the_k_likeliest_in_their_proportion() -> None:
    assert counts(top_k=2) == pytest.approx([0, 4 / 7, 0, 3 / 7], abs=1e-3)
    assert counts(top_k=1) == [0, 1, 0, 0]
    assert counts(top_k=100) == pytest.approx([0.1, 0.4, 0.2, 0.3], abs=1e-3)


def test_top_p_keeps_the_fewest_tokens_that_reach_it() -> None:
    assert counts(top_p=0.3) == [0, 1, 0, 0]  # the likeliest has 0.4 by itself
    assert counts(top_p=0.5) == pytest.approx([0, 4 / 7, 0, 3 / 7], abs=1e-3)
    assert counts(top_p=0.75) == pytest.approx([0, 4 / 9, 2 / 9, 3 / 9], abs=1e-3)
    assert counts(top_p=1e-9) == [0, 1, 0, 0]


def test_top_p_counts_what_top_k_left() -> None:
    assert counts(top_k=2, top_p=0.5) == [0, 1, 0, 0]  # 0.4 of 0.7 reach a half


@pytest.mark.parametrize("settings", [{}, {"top_k": 3}, {"top_p": 0.99}])
@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-53])
def test_a_token_of_probability_zero_is_never_drawn(settings: dict[str, float], uniform: float) -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]])
    arguments = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} | settings
    drawn = choose(logits, uniforms=torch.tensor([uniform], dtype=torch.float64), **arguments)  # type: ignore[arg-type]
    assert int(drawn) in (1, 3)


def test_prompts_that_differ_in_zeros_at_their_end_have_other_random_numbers() -> None:
    streams = [random_stream(seed, [0] * zeros, 0) for seed in (0, 1, 2**32) for zeros in range(6)]
    assert len({tuple(stream.random(3)) for stream in streams}) == len(streams)


def test_a_sample_has_random_numbers_of_its_own() -> None:
    first = random_stream(1, [5, 6], 0).random(3).tolist()
    assert random_stream(1, [5, 6], 0).random(3).tolist() == first
    others = [random_stream(2, [5, 6], 0), random_stream(1, [5, 6], 1), random_stream(1, [5, 7], 0)]
    assert all(other.random(3).tolist() != first for other in others)
