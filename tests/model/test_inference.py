"""The copy for inference computes the same function and shares the tensors."""

import pytest
import torch

from pipeline.inference import InferenceLinear, for_inference, has_onednn_linear
from pipeline.model.gpt import GPT
from tests.model.configs import OPTIONS, option

IDX = torch.arange(24).view(2, 12) % 61


@pytest.mark.parametrize("name", OPTIONS)
@torch.no_grad()
def test_the_copy_computes_the_same_logits(name: str) -> None:
    torch.manual_seed(1)
    model = GPT(option(name)).eval()
    exact = model.logits(model.hidden(IDX)).log_softmax(-1)[..., :61]
    fast = for_inference(model, torch.float32)
    torch.testing.assert_close(fast.logits(fast.hidden(IDX)).log_softmax(-1)[..., :61], exact, rtol=1e-5, atol=1e-5)
    rounded = for_inference(model, torch.bfloat16)
    logits = rounded.logits(rounded.hidden(IDX)).float().log_softmax(-1)[..., :61]
    torch.testing.assert_close(logits, exact, rtol=0.02, atol=0.02)


@torch.no_grad()
def test_an_offset_of_all_logits_costs_no_precision_in_bfloat16() -> None:
    """GPT-2's logits are far below zero, but only their differences matter."""
    torch.manual_seed(1)
    model = GPT(option("untied")).eval()
    exact = model.logits(model.hidden(IDX)).log_softmax(-1)[..., :61]
    model.lm_head.weight += torch.randn(model.config.n_embd)  # the same vector added to every row: the same softmax
    assert model.logits(model.hidden(IDX))[..., :61].abs().max() > 10
    fast = for_inference(model, torch.bfloat16)
    logits = fast.logits(fast.hidden(IDX)).float().log_softmax(-1)[..., :61]
    torch.testing.assert_close(logits, exact, rtol=0.02, atol=0.02)


def test_float32_shares_every_tensor() -> None:
    model = GPT(option("gpt2"))
    fast = for_inference(model, torch.float32)
    assert fast.transformer.wte.weight is model.transformer.wte.weight
    linears_of_copy = [module for module in fast.modules() if isinstance(module, InferenceLinear)]
    linears = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    assert len(linears_of_copy) == len(linears) > 0
    assert [p.weight.data_ptr() for p in linears_of_copy] == [linear.weight.data_ptr() for linear in linears]


def test_the_model_keeps_its_modules_and_mode() -> None:
    model = GPT(option("dropout")).train()
    before = list(model.modules())
    assert not for_inference(model, torch.bfloat16).training
    assert all(a is b for a, b in zip(model.modules(), before, strict=True))
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(50, 300), (300,), (2, 1, 300), (0, 300)])
def test_onednn_is_as_precise_as_torch(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if not has_onednn_linear(dtype):
        pytest.skip(f"this torch has no oneDNN for {dtype} here")
    torch.manual_seed(1)
    linear = torch.nn.Linear(300, 200).to(dtype).requires_grad_(False)
    x = torch.randn(shape).to(dtype)
    exact = x.double() @ linear.weight.double().T + linear.bias.double()
    result = InferenceLinear(linear, dtype)(x)
    assert result.shape == exact.shape
    assert result.dtype == dtype
    assert ((result - exact).abs().sum() <= 2 * (linear(x) - exact).abs().sum() + 1e-7).all()
