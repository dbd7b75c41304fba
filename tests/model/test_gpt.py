"""The network: attention, initialisation, loss, dropout, bfloat16, compiling, and golden numbers of one step.

Print new golden numbers: python -m tests.model.test_gpt
"""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.inference import for_inference
from pipeline.model.config import GPTConfig
from pipeline.model.gpt import ATTENTION, EAGER_KEYS, EPSILON, GPT, Attention, build_norm, eager, fastest, sdpa
from tests.model.configs import OPTIONS, TINY, option


def make(config: GPTConfig, seed: int = 0) -> GPT:
    torch.manual_seed(seed)
    return GPT(config)


def batch(config: GPTConfig, rows: int = 4, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, config.text_vocab_size, (rows, config.block_size + 1), generator=generator)
    return ids[:, :-1], ids[:, 1:]


def use(kernel: Attention, model: GPT) -> GPT:
    """The model, with that attention kernel."""
    for block in model.transformer.h:
        block.attn.attend = kernel
    return model


@pytest.mark.parametrize("name", OPTIONS)
def test_attention_is_causal(name: str) -> None:
    """The gradient of position t's hidden state with respect to the embedding of a later token is exactly zero."""
    model = make(option(name).changed(init="normal")).eval()
    idx, _ = batch(model.config, rows=1)
    embedded: list[Tensor] = []

    def keep(module: torch.nn.Module, inputs: object, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    model.transformer.wte.register_forward_hook(keep)
    hidden = model.hidden(idx)
    for t in (0, 5, model.config.block_size - 1):
        # not the plain sum, which is constant after a LayerNorm
        (gradient,) = torch.autograd.grad(hidden[0, t].square().dot(torch.arange(32.0)), embedded[0], retain_graph=True)
        seen = gradient[0].abs().sum(-1) > 0
        assert seen[: t + 1].all()
        assert not seen[t + 1 :].any()


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("kernel", [sdpa, eager])
def test_with_a_document_mask_each_document_is_as_if_alone(name: str, kernel: Attention) -> None:
    model = use(kernel, make(option(name).changed(init="normal")).eval())
    idx, _ = batch(model.config, rows=2)
    lengths = [[7, 1, 8], [16]]
    documents = torch.stack([torch.arange(len(row)).repeat_interleave(torch.tensor(row)) for row in lengths])
    hidden = model.hidden(idx, documents=documents)
    for row, parts in enumerate(lengths):
        for part, together in zip(idx[row].split(parts), hidden[row].split(parts), strict=True):
            torch.testing.assert_close(together, model.hidden(part[None])[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "dropout"])
def test_sdpa_equals_eager_forward_and_backward(name: str) -> None:
    config = option(name).changed(init="normal")
    model = GPT(config)
    idx = torch.randint(0, 61, (2, 17))
    results = []
    for kernel in (sdpa, eager):
        use(kernel, model)
        model.zero_grad()
        loss = model(idx[:, :-1], idx[:, 1:])
        loss.backward()
        results.append((loss, {n: p.grad for n, p in model.named_parameters()}))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("keys", "device", "kernel"), [(EAGER_KEYS, "cpu", "eager"), (EAGER_KEYS + 1, "cpu", "sdpa"), (8, "meta", "sdpa")]
)
def test_the_kernel_is_chosen_by_device_and_context(
    keys: int, device: str, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []
    for name in ("eager", "sdpa"):
        monkeypatch.setattr(f"pipeline.model.gpt.{name}", lambda *_, name=name: used.append(name))
    fastest(*torch.zeros(3, 1, 1, keys, 8, device=device), None, 0.0)
    assert used == [kernel]


def random_qkv(queries: int, keys: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(2, 4, queries, 8), torch.randn(2, kv_heads, keys, 8), torch.randn(2, kv_heads, keys, 8)


@pytest.mark.parametrize("attend", ATTENTION.values())
def test_grouped_query_attention_equals_repeated_heads(attend: Any) -> None:
    q, k, v = random_qkv(6, 6, kv_heads=2)
    grouped = attend(q, k, v, None, 0.0)
    repeated = attend(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1), None, 0.0)
    torch.testing.assert_close(grouped, repeated)


@pytest.mark.parametrize(("queries", "keys"), [(6, 6), (1, 6)])
@pytest.mark.parametrize("attend", ATTENTION.values())
def test_no_mask_means_causal(attend: Any, queries: int, keys: int) -> None:
    q, k, v = random_qkv(queries, keys, kv_heads=4)
    mask = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    torch.testing.assert_close(attend(q, k, v, None, 0.0), attend(q, k, v, mask, 0.0))


@pytest.mark.parametrize("name", OPTIONS)
@torch.no_grad()
def test_sdpa_gets_a_mask_in_the_dtype_of_the_queries(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA kernels accept no other; CPU kernels do, so results on a CPU would not show it."""
    seen: list[tuple[torch.dtype, torch.dtype]] = []
    fused = F.scaled_dot_product_attention

    def spy(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *args: float, **kwargs: bool) -> Tensor:
        seen.append((q.dtype, q.dtype if mask is None or mask.dtype == torch.bool else mask.dtype))
        return fused(q, k, v, mask, *args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    model = for_inference(use(sdpa, GPT(option(name))), torch.bfloat16)
    idx = torch.randint(0, 61, (2, 8))
    model.hidden(idx)
    for padding in (None, torch.tensor([0, 3])):
        cache = model.new_cache(2, 9, padding)
        model.hidden(idx, cache)
        model.hidden(idx[:, :1], cache)
    assert seen == [(torch.bfloat16, torch.bfloat16)] * 5 * model.config.n_layer


def test_dropout_acts_only_in_training() -> None:
    model = GPT(TINY.changed(dropout=0.5))
    idx = torch.randint(0, 61, (1, 16))
    assert not torch.equal(model.hidden(idx), model.hidden(idx))
    model.eval()
    assert torch.equal(model.hidden(idx), model.hidden(idx))


@pytest.mark.parametrize("part", ["embedding", "attention", "residual"])
def test_dropout_acts_on_embeddings_attention_and_residuals(part: str) -> None:
    model = GPT(TINY.changed(dropout=0.5, init="normal"))
    if part != "embedding":
        model.transformer.drop.p = 0.0
    for layer in model.transformer.h:
        if part != "attention":
            layer.attn.dropout = 0.0
        if part != "residual":
            layer.attn.resid_dropout.p = layer.mlp.dropout.p = 0.0
    idx = torch.randint(0, 61, (1, 16))
    assert not torch.equal(model.hidden(idx), model.hidden(idx))


@pytest.mark.parametrize("name", OPTIONS)
def test_the_initial_loss_is_that_of_a_uniform_distribution(name: str) -> None:
    model = make(option(name)).eval()
    idx, targets = batch(model.config, rows=64)
    assert model(idx, targets).item() == pytest.approx(math.log(61), abs=0.1)


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_trains_and_uses_every_parameter(name: str) -> None:
    """DDP fails if a parameter gets no gradient."""
    model = make(option(name))
    idx, targets = batch(model.config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        loss = model(idx, targets)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3
    sampled = model.eval()(idx[:, :4])[:, -1].softmax(-1).multinomial(1)
    assert sampled.shape == (4, 1)


def test_one_batch_is_overfitted() -> None:
    model = make(TINY)
    idx, targets = batch(TINY, rows=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(150):
        loss = model(idx, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.02


def test_padding_of_the_vocabulary_has_probability_zero_in_training_and_inference() -> None:
    model = make(TINY)
    idx, targets = batch(TINY)
    for logits in (model(idx), model.logits(model.hidden(idx))):
        assert (logits[..., 61:] == -torch.inf).all()
        assert logits[..., :61].isfinite().all()
    model(idx, targets).backward()
    gradient = model.transformer.wte.weight.grad
    assert gradient is not None
    assert (gradient[61:] == 0).all()
    unpadded = make(TINY.changed(vocab_size=61))
    state = {name: tensor[:61] if tensor.size(0) == 64 else tensor for name, tensor in model.state_dict().items()}
    unpadded.load_state_dict(state)
    torch.testing.assert_close(unpadded(idx, targets), model(idx, targets))


def test_ignored_targets_do_not_count_in_the_loss() -> None:
    model = make(TINY).eval()
    idx, targets = batch(TINY)
    masked = targets.clone()
    masked[:, :10] = -1
    each = torch.nn.functional.cross_entropy(
        model.logits(model.hidden(idx)).flatten(0, 1), targets.flatten(), reduction="none"
    )
    torch.testing.assert_close(model(idx, masked), each.view(4, 16)[:, 10:].mean())


def test_without_targets_only_the_last_position_is_scored() -> None:
    model = make(TINY).eval()
    idx, _ = batch(TINY)
    logits = model(idx)
    assert logits.shape == (4, 1, 64)
    torch.testing.assert_close(logits, model.logits(model.hidden(idx))[:, -1:])


def test_initial_weights_are_those_of_gpt2() -> None:
    model = make(TINY.changed(n_embd=256, n_layer=8))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all()
        elif parameter.dim() == 1:
            assert (parameter == 1).all()
        else:
            expected = 0.02 / math.sqrt(16) if name.endswith("c_proj.weight") else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.05), name


@pytest.mark.parametrize(("init", "std"), [("normal", 0.02), ("zero", 0.0)])
def test_init_changes_only_the_residual_projections(init: str, std: float) -> None:
    model = make(TINY.changed(n_embd=256, init=init))
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            expected = std if name.endswith("c_proj.weight") else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.05), name


def test_zero_init_zeroes_an_untied_head_too() -> None:
    model = make(TINY.changed(init="zero", tie_embeddings=False))
    assert (model.lm_head.weight == 0).all()
    assert (model.transformer.wte.weight != 0).any()


def test_a_gainless_rmsnorm_has_no_parameters_and_divides_by_the_root_mean_square() -> None:
    norm = build_norm(TINY.changed(norm="rmsnorm_gainless"), 32)
    x = torch.randn(2, 3, 32)
    torch.testing.assert_close(norm(x), x / (x.square().mean(-1, keepdim=True) + EPSILON).sqrt())
    assert not list(norm.parameters())


def test_with_an_embedding_norm_the_scale_of_the_embeddings_does_not_matter() -> None:
    model = make(TINY.changed(embedding_norm=True)).eval()
    idx, _ = batch(TINY)
    hidden = model.hidden(idx)
    for embedding in (model.transformer.wte.weight, model.transformer.wpe.weight):
        embedding.data *= 100
    torch.testing.assert_close(model.hidden(idx), hidden, rtol=0, atol=0.1)  # not exact because of EPSILON
    assert model.hidden(idx).std().item() == pytest.approx(1.0, abs=0.05)


def test_the_attention_scale_acts_like_larger_queries() -> None:
    plain, scaled = make(TINY.changed(bias=False)), make(TINY.changed(bias=False, attention_scale=0.5))
    idx, _ = batch(TINY)
    assert not torch.allclose(plain.hidden(idx), scaled.hidden(idx), atol=1e-4)
    for block in plain.transformer.h:
        block.attn.c_attn.weight.data[:32] *= 0.5 * math.sqrt(8)  # head size 8
    torch.testing.assert_close(plain.hidden(idx), scaled.hidden(idx))


def test_the_softcap_bounds_the_logits_of_loss_and_inference() -> None:
    plain, capped = make(TINY), make(TINY.changed(logit_softcap=0.05))
    idx, targets = batch(TINY)
    expected = 0.05 * torch.tanh(plain.logits(plain.hidden(idx))[..., :61] / 0.05)
    torch.testing.assert_close(capped.logits(capped.hidden(idx))[..., :61], expected)
    torch.testing.assert_close(capped(idx, targets), F.cross_entropy(expected.flatten(0, 1), targets.flatten()))


def test_skips_mix_in_the_embeddings_and_the_first_values() -> None:
    """Against the formulas, block by block, with weights other than the initial ones."""
    model = make(TINY.changed(n_layer=3, embedding_skip=True, value_residual=True))
    net, attended = model.transformer, list[Tensor]()

    def keep_values(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
        attended.append(v)
        return eager(q, k, v, *rest)

    use(keep_values, model)
    with torch.no_grad():
        for weights in (net.x_scale, net.x0_scale, net.value_mix):
            weights.copy_(torch.rand(3))
    idx, _ = batch(TINY)
    inputs, outputs = list[Tensor](), list[Tensor]()

    def keep_residual_stream(block: torch.nn.Module, args: tuple[Any, ...], results: tuple[Tensor, Tensor]) -> None:
        inputs.append(args[0])
        outputs.append(results[0])

    for block in net.h:
        block.register_forward_hook(keep_residual_stream)
    model.hidden(idx)
    x0 = net.wpe.embed(net.wte(idx), torch.arange(16))
    first = None
    for i, block in enumerate(net.h):
        x = x0 if i == 0 else outputs[i - 1]
        torch.testing.assert_close(inputs[i], net.x_scale[i] * x + net.x0_scale[i] * x0)
        own = block.attn.c_attn(block.ln_1(inputs[i]))[..., 64:].view(4, 16, 4, 8).transpose(1, 2)
        mixed = own if first is None else torch.lerp(own, first, net.value_mix[i])
        torch.testing.assert_close(attended[i], mixed)
        first = own if first is None else first


def test_weights_depend_only_on_the_seed() -> None:
    first, second = make(TINY, 0), make(TINY, 0)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("name", OPTIONS)
def test_bfloat16_agrees_with_float32(name: str) -> None:
    """Eight bits of mantissa: relative errors of thousandths in the loss, of hundredths in the gradient.

    The gradient of a ReLU is worst: rounding flips the sign of inputs near its kink, which moves it by 0.035.
    """
    model = make(option(name).changed(dropout=0.0, init="normal"))
    idx, targets = batch(model.config)
    gradients, losses = [], []
    for bfloat16 in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = model(idx, targets)
        model.zero_grad()
        loss.backward()
        assert loss.dtype == torch.float32
        losses.append(loss.item())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)
    assert (gradients[1] - gradients[0]).norm() < 0.05 * gradients[0].norm()


@pytest.mark.parametrize("position", ["learned", "sinusoidal", "rope"])
def test_more_tokens_than_the_context_are_refused(position: str) -> None:
    model = make(TINY.changed(position=position))
    with pytest.raises(ValueError, match=r"17.*16"):
        model.hidden(torch.zeros(1, 17, dtype=torch.long))


def test_alibi_accepts_more_tokens_than_the_context() -> None:
    model = make(TINY.changed(position="alibi"))
    assert model.config.context_limit is None
    assert model.hidden(torch.zeros(1, 40, dtype=torch.long)).shape == (1, 40, 32)


@pytest.mark.slow
def test_compiled_equals_eager() -> None:
    model = make(option("llama").changed(n_layer=1))
    idx, targets = batch(model.config)
    compiled = torch.compile(model, fullgraph=True)
    gradients, losses = [], []
    for run in (model, compiled):
        model.zero_grad()
        loss = run(idx, targets)
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-5)
    torch._dynamo.reset()


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_traces_as_one_graph(name: str) -> None:
    """One graph without breaks, as torch.compile needs, without the cost of compiling each option."""
    model = make(option(name))
    idx, targets = batch(model.config)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.manual_seed(0)
    expected = model(idx, targets)
    torch.manual_seed(0)
    torch.testing.assert_close(compiled(idx, targets), expected)
    torch._dynamo.reset()


# config -> (loss, gradient norm, norm of the update), float32 on a CPU
GOLDEN = {
    "gpt2": (4.114542, 1.119802, 0.201203),
    "llama": (4.120266, 0.7746568, 0.1959508),
    "nanochat": (4.110874, 0.4750485, 0.044213),
}


def one_step(name: str) -> tuple[float, float, float]:
    """Loss and gradient norm of a fixed batch, and the norm of the update of one AdamW step."""
    torch.manual_seed(1)
    model = GPT(option(name).changed(n_layer=3))
    ids = torch.randint(0, model.config.text_vocab_size, (8, model.config.block_size + 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    before = torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    loss = model(ids[:, :-1], ids[:, 1:])
    loss.backward()
    gradient_norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    optimizer.step()
    after = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    return loss.item(), gradient_norm.item(), (after - before).norm().item()


@pytest.mark.parametrize("name", GOLDEN)
def test_one_step_gives_the_golden_numbers(name: str) -> None:
    """If this fails after a refactoring, the model's function has changed: find out how. Put new numbers into GOLDEN
    only if the change is intended, and say in the commit why."""
    assert one_step(name) == pytest.approx(GOLDEN[name], rel=1e-4)


if __name__ == "__main__":
    for name in GOLDEN:
        print(f'    "{name}": ({", ".join(f"{number:.7g}" for number in one_step(name))}),')
