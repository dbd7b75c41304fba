"""What a GPT is, whatever its options: causal, calibrated when new, trainable, the same compiled and in bfloat16."""

import math

import pytest
import torch
from torch import Tensor

from pipeline.model.config import GPTConfig
from pipeline.model.gpt import GPT
from tests.model.configs import OPTIONS, TINY, option


def make(config: GPTConfig, seed: int = 0) -> GPT:
    torch.manual_seed(seed)
    return GPT(config)


def batch(config: GPTConfig, rows: int = 4, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, config.text_vocab_size, (rows, config.block_size + 1), generator=generator)
    return ids[:, :-1], ids[:, 1:]


def loss_of(model: GPT, idx: Tensor, targets: Tensor) -> Tensor:
    loss = model(idx, targets)[1]
    assert loss is not None
    return loss


@pytest.mark.parametrize("name", OPTIONS)
def test_no_position_sees_a_later_token(name: str) -> None:
    """The gradient of position t's hidden state with respect to the embedding of a later token is exactly zero."""
    model = make(option(name).changed(init="flat")).eval()
    idx, _ = batch(model.config, rows=1)
    embedded: list[Tensor] = []

    def keep(module: torch.nn.Module, inputs: object, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    model.transformer.wte.register_forward_hook(keep)
    hidden = model.hidden(idx)
    for t in (0, 5, model.config.block_size - 1):
        # Not the plain sum: behind a LayerNorm it is constant.
        (gradient,) = torch.autograd.grad(hidden[0, t].square().dot(torch.arange(32.0)), embedded[0], retain_graph=True)
        seen = gradient[0].abs().sum(-1) > 0
        assert seen[: t + 1].all(), f"position {t} must see itself and all before it"
        assert not seen[t + 1 :].any(), f"position {t} sees the future"


@pytest.mark.parametrize("name", OPTIONS)
def test_an_untrained_model_knows_nothing(name: str) -> None:
    model = make(option(name)).eval()
    idx, targets = batch(model.config, rows=64)
    assert loss_of(model, idx, targets).item() == pytest.approx(math.log(61), abs=0.1)


@pytest.mark.parametrize("name", OPTIONS)
def test_each_option_trains_and_uses_every_parameter(name: str) -> None:
    """A parameter without a gradient would also stop a data-parallel run."""
    model = make(option(name))
    idx, targets = batch(model.config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        loss = loss_of(model, idx, targets)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3
    sampled = model.eval()(idx[:, :4])[0][:, -1].softmax(-1).multinomial(1)
    assert sampled.shape == (4, 1)


def test_one_batch_is_learned_by_heart() -> None:
    model = make(TINY)
    idx, targets = batch(TINY, rows=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(150):
        loss = loss_of(model, idx, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.02


def test_padding_of_the_vocabulary_has_probability_zero_in_training_and_inference() -> None:
    model = make(TINY)
    idx, targets = batch(TINY)
    for logits in (model(idx, targets)[0], model(idx)[0], model.logits(model.hidden(idx))):
        assert (logits[..., 61:] == -torch.inf).all()
        assert logits[..., :61].isfinite().all()
    loss_of(model, idx, targets).backward()
    gradient = model.transformer.wte.weight.grad
    assert gradient is not None
    assert (gradient[61:] == 0).all()
    unpadded = make(TINY.changed(vocab_size=61))
    state = {name: tensor[:61] if tensor.size(0) == 64 else tensor for name, tensor in model.state_dict().items()}
    unpadded.load_state_dict(state)
    torch.testing.assert_close(loss_of(unpadded, idx, targets), loss_of(model, idx, targets))


def test_the_loss_is_the_mean_over_targets_that_count() -> None:
    model = make(TINY).eval()
    idx, targets = batch(TINY)
    masked = targets.clone()
    masked[:, :10] = -1
    each = torch.nn.functional.cross_entropy(model(idx, targets)[0].flatten(0, 1), targets.flatten(), reduction="none")
    torch.testing.assert_close(loss_of(model, idx, masked), each.view(4, 16)[:, 10:].mean())


def test_without_targets_only_the_last_position_is_scored() -> None:
    model = make(TINY).eval()
    idx, targets = batch(TINY)
    logits, loss = model(idx)
    assert logits.shape == (4, 1, 64)
    assert loss is None
    torch.testing.assert_close(logits, model(idx, targets)[0][:, -1:])


def test_initial_weights_are_gpt2s() -> None:
    model = make(TINY.changed(n_embd=256, n_layer=8))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all()
        elif parameter.dim() == 1:
            assert (parameter == 1).all()
        else:
            expected = 0.02 / math.sqrt(16) if name.endswith("c_proj.weight") else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.05), name


@pytest.mark.parametrize(("init", "std"), [("flat", 0.02), ("zero", 0.0)])
def test_other_initialisations_differ_in_the_residual_projections_alone(init: str, std: float) -> None:
    model = make(TINY.changed(n_embd=256, init=init))
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            expected = std if name.endswith("c_proj.weight") else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.05), name


def test_weights_depend_on_the_seed_alone() -> None:
    first, second, third = make(TINY, 0), make(TINY, 0), make(TINY, 5)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    third.init_weights(seed=9)
    second.init_weights(seed=9)
    assert all(torch.equal(a, b) for a, b in zip(third.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("name", OPTIONS)
def test_bfloat16_agrees_with_float32(name: str) -> None:
    """Eight bits of mantissa: relative errors of thousandths in the loss, of hundredths in the gradient.

    The gradient of a ReLU is worst: rounding flips the sign of inputs near its kink, which moves it by 0.035.
    """
    model = make(option(name).changed(dropout=0.0, init="flat"))
    idx, targets = batch(model.config)
    gradients, losses = [], []
    for bfloat16 in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = loss_of(model, idx, targets)
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
    with pytest.raises(ValueError, match="17 tokens exceed the context of 16"):
        model.hidden(torch.zeros(1, 17, dtype=torch.long))


def test_alibi_goes_on_past_the_context() -> None:
    model = make(TINY.changed(position="alibi"))
    assert model.config.context_limit is None
    assert model.hidden(torch.zeros(1, 40, dtype=torch.long)).shape == (1, 40, 32)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_compiled_without_a_graph_break_it_computes_the_same(name: str) -> None:
    model = make(option(name).changed(n_layer=1))
    idx, targets = batch(model.config)
    compiled = torch.compile(model, fullgraph=True)
    gradients, losses = [], []
    for run in (model, compiled):
        model.zero_grad()
        _, loss = run(idx, targets)
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-5)
    torch._dynamo.reset()


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_traces_as_one_graph(name: str) -> None:
    """What torch.compile needs, without the cost of compiling each: one graph, no breaks."""
    model = make(option(name))
    idx, targets = batch(model.config)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.manual_seed(0)
    expected = model(idx, targets)[1]
    torch.manual_seed(0)
    torch.testing.assert_close(compiled(idx, targets)[1], expected)
    torch._dynamo.reset()
