"""sdpa and the manual softmax are the same function, forward and backward; grouped heads are shared heads."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.model.attention import manual, sdpa
from pipeline.model.gpt import GPT
from pipeline.model.inference import for_inference
from tests.model.configs import OPTIONS, TINY, option


@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "dropout"])
def test_sdpa_equals_manual_forward_and_backward(name: str) -> None:
    config = option(name).changed(init="flat")
    fused, written_out = GPT(config.changed(attention="sdpa")), GPT(config.changed(attention="manual"))
    written_out.load_state_dict(fused.state_dict())
    idx = torch.randint(0, 61, (2, 17))
    results = []
    for model in (fused, written_out):
        logits, loss = model(idx[:, :-1], idx[:, 1:])
        loss.backward()
        results.append((logits[..., :61], {n: p.grad for n, p in model.named_parameters()}))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-6)


def random_qkv(queries: int, keys: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(2, 4, queries, 8), torch.randn(2, kv_heads, keys, 8), torch.randn(2, kv_heads, keys, 8)


@pytest.mark.parametrize("attend", [sdpa, manual])
def test_grouped_heads_are_repeated_heads(attend: object) -> None:
    q, k, v = random_qkv(6, 6, kv_heads=2)
    assert callable(attend)
    grouped = attend(q, k, v, None, 0.0)
    repeated = attend(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1), None, 0.0)
    torch.testing.assert_close(grouped, repeated)


@pytest.mark.parametrize(("queries", "keys"), [(6, 6), (1, 6)])
@pytest.mark.parametrize("attend", [sdpa, manual])
def test_without_a_mask_a_query_sees_itself_and_everything_before_it(attend: object, queries: int, keys: int) -> None:
    q, k, v = random_qkv(queries, keys, kv_heads=4)
    assert callable(attend)
    mask = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    torch.testing.assert_close(attend(q, k, v, None, 0.0), attend(q, k, v, mask, 0.0))


@pytest.mark.parametrize("name", OPTIONS)
@torch.no_grad()
def test_the_fused_kernels_get_a_mask_in_the_dtype_of_the_queries(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's take no other; a CPU's do, so a result here would not show it."""
    seen: list[tuple[torch.dtype, torch.dtype]] = []
    fused = F.scaled_dot_product_attention

    def spy(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *args: float, **kwargs: bool) -> Tensor:
        seen.append((q.dtype, q.dtype if mask is None or mask.dtype == torch.bool else mask.dtype))
        return fused(q, k, v, mask, *args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    model = for_inference(GPT(option(name).changed(attention="sdpa")), torch.bfloat16)
    idx = torch.randint(0, 61, (2, 8))
    model.hidden(idx)
    for padding in (None, torch.tensor([0, 3])):
        cache = model.new_cache(2, 9, padding)
        model.hidden(idx, cache)
        model.hidden(idx[:, :1], cache)
    assert seen == [(torch.bfloat16, torch.bfloat16)] * 5 * model.config.n_layer


def test_dropout_drops_in_training_alone() -> None:
    model = GPT(TINY.changed(dropout=0.5))
    idx = torch.randint(0, 61, (1, 16))
    assert not torch.equal(model.hidden(idx), model.hidden(idx))
    model.eval()
    assert torch.equal(model.hidden(idx), model.hidden(idx))


@pytest.mark.parametrize("place", ["embedding", "attention", "residual"])
def test_dropout_acts_on_embeddings_attention_and_residuals(place: str) -> None:
    """Each of the three alone makes two passes differ."""
    model = GPT(TINY.changed(dropout=0.5, init="flat"))
    block = model.transformer.h[0]
    if place != "embedding":
        model.transformer.drop.p = 0.0
    for layer in model.transformer.h:
        if place != "attention":
            layer.attn.dropout = 0.0
        if place != "residual":
            layer.attn.resid_dropout.p = layer.mlp.dropout.p = 0.0
    idx = torch.randint(0, 61, (1, 16))
    assert not torch.equal(model.hidden(idx), model.hidden(idx))
    assert block.training
