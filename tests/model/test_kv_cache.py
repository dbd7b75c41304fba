"""Results with the key/value cache equal those without, in chunks, padded batches and shared contexts."""

import pytest
import torch
from torch import Tensor

from pipeline.model.config import GPTConfig
from pipeline.model.gpt import GPT
from tests.model.configs import OPTIONS, TINY, option

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def make(config: GPTConfig) -> GPT:
    """Weights so large that a wrong mask or position changes the result."""
    torch.manual_seed(0)
    model = GPT(config.changed(init="normal")).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8)
    return model


def ids(*shape: int) -> Tensor:
    return torch.randint(0, 61, shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", OPTIONS)
@torch.no_grad()
def test_chunks_through_the_cache_equal_one_pass(name: str) -> None:
    model, idx = make(option(name)), ids(3, 16)
    cache = model.new_cache(3, 16)
    chunks = [model.hidden(chunk, cache) for chunk in idx.split([5, 1, 1, 4, 5], dim=1)]
    torch.testing.assert_close(torch.cat(chunks, dim=1), model.hidden(idx), **CLOSE)
    assert cache.length == 16


@pytest.mark.parametrize("name", OPTIONS)
@torch.no_grad()
def test_padding_is_not_attended_to(name: str) -> None:
    model, idx = make(option(name)), ids(3, 10)
    padding = torch.tensor([0, 3, 7])
    left_padded = torch.stack(
        [torch.cat((torch.full((n,), 60), row[: 10 - n])) for row, n in zip(idx, padding, strict=True)]
    )
    cache = model.new_cache(3, 16, padding)
    first = model.hidden(left_padded[:, :8], cache)
    second = model.hidden(left_padded[:, 8:], cache)
    hidden = torch.cat((first, second), dim=1)
    assert hidden.isfinite().all()
    for row, n in enumerate(padding.tolist()):
        alone = model.hidden(idx[row : row + 1, : 10 - n])
        torch.testing.assert_close(hidden[row : row + 1, n:], alone, **CLOSE)


@pytest.mark.parametrize("name", ["gpt2", "rope", "alibi", "gqa"])
@torch.no_grad()
def test_take_shares_one_context_among_several_continuations(name: str) -> None:
    model, idx = make(option(name)), ids(2, 6)
    padding = torch.tensor([0, 2])
    cache = model.new_cache(2, 6, padding)
    model.hidden(idx, cache)
    endings = ids(2 * 4, 5)
    shared = cache.take(torch.arange(2).repeat_interleave(4), slots=11)
    hidden = model.hidden(endings, shared)
    for i, ending in enumerate(endings):
        context = idx[i // 4, padding[i // 4] :]
        alone = model.hidden(torch.cat((context, ending))[None])
        torch.testing.assert_close(hidden[i], alone[0, -5:], **CLOSE)
    assert cache.length == 6


@pytest.mark.parametrize("name", ["gpt2", "rope", "alibi", "gqa"])
@torch.no_grad()
def test_replace_changes_only_the_given_rows(name: str) -> None:
    model, idx, other, then = make(option(name)), ids(3, 10), ids(2, 6).flip(0), ids(3, 3)
    cache, texts = model.new_cache(3, 13), model.new_cache(2, 6)
    model.hidden(idx, cache)
    model.hidden(other, texts)
    cache.replace(torch.tensor([0, 2]), texts)
    hidden = model.hidden(then, cache)
    for row, before in enumerate((other[0], idx[1], other[1])):
        alone = model.hidden(torch.cat((before, then[row]))[None])
        torch.testing.assert_close(hidden[row], alone[0, -3:], **CLOSE)


@torch.no_grad()
def test_trim_removes_slots_that_are_padding_in_every_row() -> None:
    model, idx, then = make(TINY), ids(3, 10), ids(3, 2)
    cache = model.new_cache(3, 10, torch.tensor([0, 4, 6]))
    model.hidden(idx, cache)
    cache.trim()
    assert cache.length == 10  # the first row uses all
    for rows, length, padding in (([1, 2], 6, [0, 2]), ([2], 4, None)):
        cache = cache.take(torch.tensor(rows) - (3 - cache.batch))
        cache.trim()
        assert cache.length == length
        assert cache.padding is None if padding is None else cache.padding.tolist() == padding
    hidden = model.hidden(then[2:], cache)
    alone = model.hidden(torch.cat((idx[2, 6:], then[2]))[None])
    torch.testing.assert_close(hidden, alone[:, -2:], **CLOSE)


@torch.no_grad()
def test_alibi_continues_past_the_context_through_the_cache() -> None:
    model, idx = make(TINY.changed(position="alibi")), ids(1, 40)
    cache = model.new_cache(1, 40)
    chunks = [model.hidden(chunk, cache) for chunk in idx.split(8, dim=1)]
    torch.testing.assert_close(torch.cat(chunks, dim=1), model.hidden(idx), **CLOSE)


@torch.no_grad()
def test_bfloat16_autocast() -> None:
    model, idx = make(TINY.changed(position="rope", qk_norm=True)), ids(2, 8)
    with torch.autocast("cpu", torch.bfloat16):
        cache = model.new_cache(2, 8)
        model.hidden(idx[:, :5], cache)
        last = model.hidden(idx[:, 5:], cache)
        whole = model.hidden(idx)
    assert cache.layers[0].keys.dtype == torch.bfloat16
    assert (last - whole[:, 5:]).abs().max() < 0.1


def test_sizes_that_do_not_fit_are_refused() -> None:
    model = make(TINY)
    with pytest.raises(ValueError, match=r"9.*8"):
        model.hidden(ids(1, 9), model.new_cache(1, 8))
    with pytest.raises(ValueError, match=r"2.*1"):
        model.hidden(ids(2, 3), model.new_cache(1, 8))
