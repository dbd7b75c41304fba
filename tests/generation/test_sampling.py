"""Token sampling and generation: cached equals recomputed, and samples are independent of each other."""

from collections import Counter
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.artifacts import SampleSettings
from pipeline.generation.sampling import Decoder, generate, random_stream, sample_token, stream, window_start
from pipeline.inference import for_inference
from pipeline.log import UserError
from pipeline.model.gpt import GPT
from tests.model.configs import OPTIONS, option

LOGITS = torch.log(torch.tensor([[0.1, 0.4, 0.2, 0.3]]))
EOT = 60  # the last id with a text; 61 to 63 are padding
NEVER = 99  # an end-of-text id that no model draws
PROMPTS = [[1, 2, 3], [7], [4, 5, 6, 8, 9, 10, 11], []]


# The choice of a token.


def draw(logits: torch.Tensor, uniforms: torch.Tensor, **changes: float) -> torch.Tensor:
    arguments = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} | changes
    return sample_token(logits, uniforms=uniforms, **arguments)  # type: ignore[arg-type]


def frequencies(draws: int = 4000, **changes: float) -> list[float]:
    """How often each of four tokens is drawn, for evenly spread uniform numbers."""
    uniforms = (torch.arange(draws, dtype=torch.float64) + 0.5) / draws
    return (torch.bincount(draw(LOGITS.expand(draws, 4), uniforms, **changes), minlength=4) / draws).tolist()


ROOTS = np.sqrt([0.1, 0.4, 0.2, 0.3])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [0.1, 0.4, 0.2, 0.3]),
        ({"temperature": 0}, [0, 1, 0, 0]),
        ({"temperature": 2.0}, ROOTS / ROOTS.sum()),
        ({"top_k": 1}, [0, 1, 0, 0]),
        ({"top_k": 2}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_k": 100}, [0.1, 0.4, 0.2, 0.3]),
        ({"top_p": 1e-9}, [0, 1, 0, 0]),
        ({"top_p": 0.3}, [0, 1, 0, 0]),  # the most likely token has 0.4 alone
        ({"top_p": 0.5}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_p": 0.75}, [0, 4 / 9, 2 / 9, 3 / 9]),
        ({"top_k": 2, "top_p": 0.5}, [0, 1, 0, 0]),  # 0.4 of the remaining 0.7 reach a half
    ],
)
def test_frequencies_of_drawn_tokens(changes: dict[str, float], expected: list[float]) -> None:
    assert frequencies(**changes) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("spread", [0.5, 4.0])  # many likely tokens, few
@pytest.mark.parametrize("top_p", [0.3, 0.9, 1 - 1e-9])
def test_the_nucleus_of_a_large_vocabulary_equals_that_of_the_sorted_one(spread: float, top_p: float) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = spread * torch.randn(3, 5000, generator=generator)
    logits[0] *= 2
    sorted_logits, ids = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = sorted_logits.double().softmax(dim=-1)
    kept = probabilities.where(probabilities.cumsum(dim=-1) - probabilities < top_p, 0.0)
    for uniform in (0.0, 0.4, 0.999):
        uniforms = torch.full((3,), uniform, dtype=torch.float64)
        index = (kept.cumsum(dim=-1) <= uniform * kept.sum(dim=-1, keepdim=True)).sum(dim=-1)
        assert draw(logits, uniforms, top_p=top_p).tolist() == ids.gather(1, index[:, None]).squeeze(1).tolist()


@pytest.mark.parametrize("offset", [0.0, -1e4])
def test_extreme_temperatures_draw_only_allowed_tokens(offset: float) -> None:
    logits = torch.cat((LOGITS + offset, torch.tensor([[-torch.inf]])), dim=-1)  # the last: a padded id
    uniforms = torch.tensor([0.999], dtype=torch.float64)
    for temperature, allowed in ((5e-324, [1]), (1e-37, [1]), (1e37, [0, 3]), (1e308, [0, 3])):
        for top_k, top_p in ((0, 1.0), (5, 1.0), (0, 0.9999)):
            changes = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
            assert int(draw(logits, uniforms, **changes)) in allowed, changes


@pytest.mark.parametrize("changes", [{}, {"top_k": 3}, {"top_p": 0.99}])
@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-53])
def test_a_token_of_probability_zero_is_never_drawn(changes: dict[str, float], uniform: float) -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]])
    assert int(draw(logits, torch.tensor([uniform], dtype=torch.float64), **changes)) in (1, 3)


def test_random_streams_differ_by_seed_prompt_and_sample() -> None:
    arguments = [(seed, [0] * zeros, 0) for seed in (0, 1, 2**32) for zeros in range(6)]
    arguments += [(1, [5, 6], 0), (2, [5, 6], 0), (1, [5, 6], 1), (1, [5, 7], 0)]
    numbers = [tuple(random_stream(*key).random(3)) for key in arguments]
    assert len(set(numbers)) == len(numbers)
    assert numbers == [tuple(random_stream(*key).random(3)) for key in arguments]


# Generation.


def model_of(name: str = "gpt2", **changes: object) -> GPT:
    """A tiny model with weights large enough that its texts do not repeat themselves."""
    torch.manual_seed(3)
    model = GPT(option(name).changed(**changes))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.12)
    return model


def settings(tokens: int = 40, **changes: Any) -> SampleSettings:
    values = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": 1, **changes}
    return SampleSettings(max_new_tokens=tokens, **values)


def sample(
    model: GPT, prompts: Sequence[Sequence[int]], how: SampleSettings, samples: int = 1, eot_id: int = EOT
) -> list[list[list[int]]]:
    return generate(model, prompts, how, eot_id=eot_id, dtype=torch.float32, samples_per_prompt=samples)


def greedy(model: GPT, prompts: Sequence[Sequence[int]], tokens: int, eot_id: int = EOT) -> list[list[int]]:
    return [text for (text,) in sample(model, prompts, settings(tokens, temperature=0), eot_id=eot_id)]


@torch.no_grad()
def recomputed(model: GPT, prompts: Sequence[Sequence[int]], tokens: int, eot_id: int = EOT) -> list[list[int]]:
    """Greedy without a cache: each text alone, its whole window at each step."""
    texts = []
    for prompt in prompts:
        text = list(prompt) or [eot_id]
        begin = len(text)
        for _ in range(tokens):
            start = window_start(len(text), model.config.context_limit)
            token = int(model.eval()(torch.tensor([text[start:]]))[0, -1].argmax())
            if token == eot_id:
                break
            text.append(token)
        texts.append(text[begin:])
    return texts


@pytest.mark.parametrize("name", OPTIONS)
def test_cached_equals_recomputed_for_ragged_prompts_past_the_context(name: str) -> None:
    model = model_of(name)
    assert model.config.block_size == 16
    assert greedy(model, PROMPTS, 40) == recomputed(model, PROMPTS, 40)


@pytest.mark.parametrize("position", ["learned", "sinusoidal", "rope", "alibi"])
@pytest.mark.parametrize("heads", [None, 2, 1])
def test_cached_equals_recomputed_for_combinations_of_options(position: str, heads: int | None) -> None:
    for norm, placement, qk_norm in product(("layernorm", "rmsnorm"), ("pre", "post"), (False, True)):
        changes = {"norm": norm, "norm_placement": placement, "qk_norm": qk_norm}
        model = model_of(position=position, n_kv_head=heads, **changes)
        assert greedy(model, PROMPTS[:2], 30, NEVER) == recomputed(model, PROMPTS[:2], 30, NEVER), changes


@pytest.mark.parametrize("length", [15, 16, 17, 40])
def test_a_prompt_longer_than_the_context_is_continued(length: int) -> None:
    model, prompt = model_of(), [token % 50 for token in range(length)]
    assert greedy(model, [prompt], 12) == recomputed(model, [prompt], 12)


@pytest.mark.parametrize("block_size", [1, 2, 5])
def test_rows_whose_windows_move_at_different_steps_match_each_row_alone(block_size: int) -> None:
    model, prompts = model_of(block_size=block_size), [[1], [2, 3], [4, 5, 6], [7, 8, 9, 10]]
    texts = greedy(model, prompts, 20, NEVER)
    assert texts == recomputed(model, prompts, 20, NEVER)
    eot = texts[3][6]  # the longest text ends, and the others move on in the slots that it needed
    assert greedy(model, prompts, 20, eot) == recomputed(model, prompts, 20, eot)


def test_window_start() -> None:
    assert [window_start(tokens, 16) for tokens in (1, 16, 17, 24, 25, 33)] == [0, 0, 8, 8, 16, 24]
    assert [window_start(tokens, 5) for tokens in (5, 6, 8, 9)] == [0, 3, 3, 6]
    assert [window_start(tokens, 1) for tokens in (1, 2, 3)] == [0, 1, 2]
    assert window_start(10**6, None) == 0
    for limit in range(1, 12):
        for tokens in range(1, 50):
            start = window_start(tokens, limit)
            assert 0 < tokens - start <= limit
            assert start == 0 or tokens - start > limit // 2


def forward_passes(model: GPT, prompts: Sequence[Sequence[int]], tokens: int) -> list[tuple[int, ...]]:
    """The input shape of each forward pass of a greedy continuation."""
    shapes: list[tuple[int, ...]] = []
    model, hidden = model.eval(), model.hidden
    model.hidden = lambda idx, cache=None: (shapes.append(tuple(idx.shape)), hidden(idx, cache))[1]  # type: ignore[assignment,func-returns-value]
    decoder = Decoder(model, prompts, max(map(len, prompts)) + tokens)
    for _ in range(tokens):
        decoder.append(decoder.logits().argmax(dim=-1).tolist())
    return shapes


def test_a_new_token_costs_one_pass_of_one_token_except_when_the_window_moves() -> None:
    one = (1, 1)
    assert forward_passes(model_of(), [[1]], 40) == [one] * 16 + ([(1, 8)] + [one] * 8) * 3


def test_only_the_rows_whose_windows_move_are_read_again() -> None:
    prompts = [list(range(length)) for length in (4, 2, 1)]  # their windows are full at different steps
    assert Counter(forward_passes(model_of(), prompts, 40)) == {(3, 4): 1, (3, 1): 39, (1, 8): 11}


@pytest.mark.parametrize("name", ["gpt2", "sinusoidal", "rope", "alibi", "llama"])
def test_a_batch_gives_what_each_prompt_gives_alone(name: str) -> None:
    model = model_of(name)
    together = sample(model, PROMPTS, settings(), samples=2)
    assert together == [sample(model, [prompt], settings(), samples=2)[0] for prompt in PROMPTS]
    assert together[::-1] == sample(model, PROMPTS[::-1], settings(), samples=2)


def test_more_samples_do_not_change_the_first_ones() -> None:
    few, many = (sample(model_of(), PROMPTS, settings(), samples=count) for count in (1, 3))
    assert [samples[:1] for samples in many] == few
    assert all(len({tuple(text) for text in samples}) == 3 for samples in many)


def test_the_same_seed_gives_the_same_texts_and_another_seed_others() -> None:
    assert sample(model_of(), PROMPTS, settings(seed=4)) == sample(model_of(), PROMPTS, settings(seed=4))
    assert sample(model_of(), PROMPTS, settings(seed=4)) != sample(model_of(), PROMPTS, settings(seed=5))


def test_a_text_stops_at_end_of_text_and_the_others_continue() -> None:
    model, prompts, how = model_of(), PROMPTS[:3], settings(tokens=30)
    unstopped = [text for (text,) in sample(model, prompts, how, eot_id=NEVER)]
    eot = next(token for token in unstopped[0] if not all(token in text for text in unstopped))
    stopped = [text for (text,) in sample(model, prompts, how, eot_id=eot)]
    assert stopped == [text[: text.index(eot)] if eot in text else text for text in unstopped]
    assert len(stopped[0]) < len(unstopped[0])


def test_padded_ids_are_never_sampled() -> None:
    model = model_of("untied")
    with torch.no_grad():
        model.lm_head.weight[61:] = 50 * torch.randn(3, 32)  # without the mask they would win often
    (texts,) = sample(model, [[1]], settings(tokens=60, temperature=5.0), samples=8, eot_id=NEVER)
    assert max(map(max, texts)) <= 60


def test_log_probabilities_are_those_of_the_model() -> None:
    model = model_of()
    how = settings(tokens=10, top_k=5, temperature=0.7)
    tokens = list(stream(for_inference(model, torch.float32), [[1, 2]], how, eot_id=NEVER))
    idx = torch.tensor([[1, 2, *(new.token for new in tokens)]])
    with torch.no_grad():
        logprobs = model.eval().logits(model.hidden(idx[:, :-1])).log_softmax(-1)[0, 1:]
    expected = logprobs.gather(-1, idx[0, 2:, None]).squeeze(-1).tolist()
    assert [new.logprob for new in tokens] == pytest.approx(expected, abs=1e-4)


def test_tokens_stream_in_the_order_of_steps() -> None:
    model, how = for_inference(model_of(), torch.float32), settings(tokens=5)
    tokens = list(stream(model, [[1], [2]], how, eot_id=NEVER, samples_per_prompt=2))
    assert [(new.prompt, new.sample) for new in tokens] == [(0, 0), (0, 1), (1, 0), (1, 1)] * 5
    second = list(stream(model, [[1]], how, eot_id=NEVER, first_sample=1))
    assert [new.token for new in second] == [new.token for new in tokens if (new.prompt, new.sample) == (0, 1)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_generation_leaves_the_model_and_the_random_state_alone(dtype: torch.dtype) -> None:
    model = model_of("dropout").train()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    how = settings(tokens=20, top_k=5, top_p=0.9)
    first = generate(model, PROMPTS, how, eot_id=EOT, dtype=dtype, samples_per_prompt=1)
    assert generate(model, PROMPTS, how, eot_id=EOT, dtype=dtype, samples_per_prompt=1) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_a_prompt_with_an_id_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(UserError, match=r"prompt 1: token id 61 .*\(61\)"):
        sample(model_of(), [[1], [2, 61]], settings())


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_with_nan_logits_is_refused(temperature: float) -> None:
    model = model_of()
    with torch.no_grad():
        model.transformer.ln_f.bias[0] = torch.nan
    with pytest.raises(UserError, match="NaN"):
        sample(model, [[1]], settings(temperature=temperature))
