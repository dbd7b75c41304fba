"""Generation with a cache is generation without one; batches, samples and seeds do not meet."""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import product

import pytest
import torch

from pipeline.generation.decoder import Decoder, window_start
from pipeline.generation.sampler import Settings, generate, stream
from pipeline.model.gpt import GPT
from pipeline.model.inference import for_inference
from tests.model.configs import OPTIONS, option

EOT = 60  # the last id with a text; 61 to 63 are padding
PROMPTS = [[1, 2, 3], [7], [4, 5, 6, 8, 9, 10, 11], []]


def model_of(name: str = "gpt2", scale: float = 6.0, **changes: object) -> GPT:
    """A tiny model whose weights are large enough that its choices do not repeat themselves."""
    torch.manual_seed(3)
    model = GPT(option(name).changed(**changes))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.02 * scale)
    return model


def settings(tokens: int = 40, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, seed: int = 1) -> Settings:
    return Settings(tokens, temperature, top_k, top_p, seed)


def sample(
    model: GPT, prompts: Sequence[Sequence[int]], how: Settings, samples: int = 1, eot_id: int = EOT
) -> list[list[list[int]]]:
    return generate(model, prompts, how, eot_id=eot_id, dtype=torch.float32, samples_per_prompt=samples)


@torch.no_grad()
def recomputed(model: GPT, prompt: Sequence[int], tokens: int, eot_id: int = EOT) -> list[int]:
    """Greedy without a cache: the whole window at each step."""
    text = list(prompt) or [EOT]
    begin = len(text)
    for _ in range(tokens):
        start = window_start(len(text), model.config.context_limit)
        token = int(model.eval()(torch.tensor([text[start:]]))[0][0, -1].argmax())
        if token == eot_id:
            break
        text.append(token)
    return text[begin:]


@pytest.mark.parametrize("name", OPTIONS)
def test_cached_is_recomputed_for_ragged_prompts_and_past_the_context(name: str) -> None:
    model = model_of(name)
    assert model.config.block_size == 16
    found = sample(model, PROMPTS, settings(tokens=40, temperature=0))
    assert [one for (one,) in found] == [recomputed(model, prompt, 40) for prompt in PROMPTS]


@pytest.mark.parametrize("position", ["learned", "sinusoidal", "rope", "alibi"])
@pytest.mark.parametrize("heads", [None, 2, 1])
def test_cached_is_recomputed_wherever_positions_key_heads_and_norms_meet(position: str, heads: int | None) -> None:
    for norm, placement, qk_norm in product(("layernorm", "rmsnorm"), ("pre", "post"), (False, True)):
        chosen = {"norm": norm, "norm_placement": placement, "qk_norm": qk_norm}
        model = model_of(position=position, n_kv_head=heads, **chosen)
        found = sample(model, PROMPTS[:2], settings(tokens=30, temperature=0), eot_id=99)
        assert [one for (one,) in found] == [recomputed(model, prompt, 30, eot_id=99) for prompt in PROMPTS[:2]], chosen


@pytest.mark.parametrize("length", [15, 16, 17, 40])
def test_a_prompt_as_long_as_the_context_or_longer_is_continued(length: int) -> None:
    model, prompt = model_of(), [token % 50 for token in range(length)]
    assert sample(model, [prompt], settings(tokens=12, temperature=0)) == [[recomputed(model, prompt, 12)]]


def test_the_window_keeps_its_newer_half_when_it_is_full() -> None:
    assert [window_start(tokens, 16) for tokens in (1, 16, 17, 24, 25, 33)] == [0, 0, 8, 8, 16, 24]
    assert [window_start(tokens, 5) for tokens in (5, 6, 8, 9)] == [0, 3, 3, 6]
    assert [window_start(tokens, 1) for tokens in (1, 2, 3)] == [0, 1, 2]
    assert window_start(10**6, None) == 0
    for limit in range(1, 12):
        for tokens in range(1, 50):
            start = window_start(tokens, limit)
            assert 0 < tokens - start <= limit
            assert start == 0 or tokens - start > limit // 2


def tokens_read(model: GPT, prompts: Sequence[Sequence[int]], tokens: int) -> list[tuple[int, ...]]:
    """The shape of what goes through the model at each pass of a greedy continuation."""
    passed: list[tuple[int, ...]] = []
    model, hidden = model.eval(), model.hidden
    model.hidden = lambda idx, cache=None: (passed.append(tuple(idx.shape)), hidden(idx, cache))[1]  # type: ignore[assignment,func-returns-value]
    decoder = Decoder(model, prompts, max(map(len, prompts)) + tokens)
    for _ in range(tokens):
        decoder.append(decoder.logits().argmax(dim=-1).tolist())
    return passed


def test_the_cache_saves_all_but_the_readings_that_the_window_asks_for() -> None:
    # 16 tokens one by one; then, whenever the window of 16 is full, its newer half at once and eight more one by one.
    one = (1, 1)
    assert tokens_read(model_of(), [[1]], 40) == [one] * 16 + ([(1, 8)] + [one] * 8) * 3


def test_a_window_that_moves_has_its_own_row_read_again_and_no_other() -> None:
    prompts = [list(range(length)) for length in (4, 2, 1)]  # their windows are full at different steps
    moves = sum(window_start(len(prompt) + 39, 16) // 8 for prompt in prompts)
    assert moves == 11
    assert Counter(tokens_read(model_of(), prompts, 40)) == {(3, 4): 1, (3, 1): 39, (1, 8): moves}


@pytest.mark.parametrize("block_size", [1, 2, 5])
def test_rows_whose_windows_move_at_different_times_give_what_each_gives_alone(block_size: int) -> None:
    model, prompts = model_of(block_size=block_size), [[1], [2, 3], [4, 5, 6], [7, 8, 9, 10]]
    how = settings(tokens=20, temperature=0)
    found = sample(model, prompts, how, eot_id=99)
    assert found == [[recomputed(model, prompt, 20, eot_id=99)] for prompt in prompts]
    eot = found[3][0][6]  # the longest text ends, and the others move on in the slots that it needed
    assert sample(model, prompts, how, eot_id=eot) == [[recomputed(model, prompt, 20, eot)] for prompt in prompts]


@pytest.mark.parametrize("name", ["gpt2", "sinusoidal", "rope", "alibi", "llama"])
def test_a_batch_gives_what_each_prompt_gives_alone(name: str) -> None:
    model = model_of(name)
    together = sample(model, PROMPTS, settings(), samples=2)
    assert together == [sample(model, [prompt], settings(), samples=2)[0] for prompt in PROMPTS]
    assert together[::-1] == sample(model, PROMPTS[::-1], settings(), samples=2)


def test_more_samples_do_not_change_the_first_ones() -> None:
    few, many = (sample(model_of(), PROMPTS, settings(), samples=count) for count in (1, 3))
    assert [samples[:1] for samples in many] == few
    assert all(len({tuple(one) for one in samples}) == 3 for samples in many)


def test_a_seed_gives_the_same_texts_and_another_gives_others() -> None:
    assert sample(model_of(), PROMPTS, settings(seed=4)) == sample(model_of(), PROMPTS, settings(seed=4))
    assert sample(model_of(), PROMPTS, settings(seed=4)) != sample(model_of(), PROMPTS, settings(seed=5))


def test_a_text_stops_at_end_of_text_and_the_others_go_on() -> None:
    model, prompts, how = model_of(), PROMPTS[:3], settings(tokens=30)
    free = sample(model, prompts, how, eot_id=99)  # an id that never comes
    eot = next(token for token in free[0][0] if not all(token in one for (one,) in free))
    stopped = sample(model, prompts, how, eot_id=eot)
    assert stopped == [[whole[: whole.index(eot)] if eot in whole else whole] for (whole,) in free]
    assert len(stopped[0][0]) < len(free[0][0])


def test_padded_ids_are_never_sampled() -> None:
    model = model_of("untied")
    with torch.no_grad():
        model.lm_head.weight[61:] = 50 * torch.randn(3, 32)  # without the mask they would win often
    tokens = sample(model, [[1]], settings(tokens=60, temperature=5.0), samples=8, eot_id=99)
    assert max(max(one) for one in tokens[0]) <= 60


def test_log_probabilities_are_the_models_own() -> None:
    model = model_of()
    how = settings(tokens=10, top_k=5, temperature=0.7)
    found = list(stream(for_inference(model, torch.float32), [[1, 2]], how, eot_id=99))
    idx = torch.tensor([[1, 2, *(new.token for new in found)]])
    with torch.no_grad():
        logprobs = model.eval().logits(model.hidden(idx[:, :-1])).log_softmax(-1)[0, 1:]
    expected = logprobs.gather(-1, idx[0, 2:, None]).squeeze(-1).tolist()
    assert [new.logprob for new in found] == pytest.approx(expected, abs=1e-4)


def test_tokens_stream_in_the_order_of_steps() -> None:
    model, how = for_inference(model_of(), torch.float32), settings(tokens=5)
    tokens = list(stream(model, [[1], [2]], how, eot_id=99, samples_per_prompt=2))
    assert [(new.prompt, new.sample) for new in tokens] == [(0, 0), (0, 1), (1, 0), (1, 1)] * 5
    second = list(stream(model, [[1]], how, eot_id=99, first_sample=1))
    assert [new.token for new in second] == [new.token for new in tokens if (new.prompt, new.sample) == (0, 1)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_and_the_random_state_are_left_alone(dtype: torch.dtype) -> None:
    model = model_of("dropout").train()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    how = settings(tokens=20, top_k=5, top_p=0.9)
    first = generate(model, PROMPTS, how, eot_id=EOT, dtype=dtype, samples_per_prompt=1)
    assert generate(model, PROMPTS, how, eot_id=EOT, dtype=dtype, samples_per_prompt=1) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_a_prompt_with_an_id_that_the_model_has_not_is_refused() -> None:
    with pytest.raises(ValueError, match=r"prompt 1: token id 61 is outside the model's vocabulary \(61\)"):
        sample(model_of(), [[1], [2, 61]], settings())


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_whose_logits_are_no_numbers_writes_nothing(temperature: float) -> None:
    model = model_of()
    with torch.no_grad():
        model.transformer.ln_f.bias[0] = torch.nan
    with pytest.raises(ValueError, match="logits are no numbers"):
        sample(model, [[1]], settings(temperature=temperature))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": -1.0}, r"temperature \(-1.0\) must be at least 0 and finite"),
        ({"temperature": math.inf}, r"temperature \(inf\) must be at least 0 and finite"),
        ({"temperature": math.nan}, r"temperature \(nan\) must be at least 0 and finite"),
        ({"seed": -1}, r"seed \(-1\) must be at least 0"),
        ({"top_p": 0.0}, r"top_p \(0.0\) must be above 0"),
        ({"tokens": 0}, r"max_new_tokens \(0\) must be at least 1"),
    ],
)
def test_settings_outside_their_range_are_refused(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(**wrong)  # type: ignore[arg-type]
