"""The formulas equal the built model, in parameters, saved activations and optimizer state; rules of the config."""

from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.model import accounting
from pipeline.model.config import GPT2_SIZES, GPTConfig, gpt2_config
from pipeline.model.gpt import GPT, sdpa
from tests.model.configs import OPTIONS, TINY, option

KNOWN = {"gpt2": 124_439_808, "gpt2-medium": 354_823_168, "gpt2-large": 774_030_080, "gpt2-xl": 1_557_611_200}


def built(config: GPTConfig) -> GPT:
    with torch.device("meta"):
        return GPT(config)


def count(module: Any) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", GPT2_SIZES)
def test_parameter_counts_of_the_released_sizes(name: str) -> None:
    config = gpt2_config(name)
    assert accounting.parameters(config).total == KNOWN[name] == count(built(config))
    d = config.n_embd
    assert accounting.parameters(config).per_block == 12 * d * d + 13 * d


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("shape", [{}, {"n_layer": 3, "n_head": 8, "n_kv_head": 4, "n_embd": 48, "mlp_expansion": 3.1}])
def test_parameters_by_component(name: str, shape: dict[str, Any]) -> None:
    config = option(name).changed(**shape)
    counts, model = accounting.parameters(config), built(config)
    net = model.transformer
    block: Any = net.h[0]
    norms = count(block.ln_1) + count(block.ln_2)
    inner_norms = sum(count(m) for n, m in block.attn.named_children() if n in ("q_norm", "k_norm"))
    assert counts.total == count(model)
    assert counts.token_embedding == count(net.wte)
    assert counts.position_embedding == count(net.wpe)
    assert counts.attention_per_block == count(block.attn) - inner_norms
    assert counts.mlp_per_block == count(block.mlp)
    assert counts.norms_per_block == norms + inner_norms
    assert counts.skips_per_block * config.n_layer == sum(p.numel() for n, p in net.named_parameters() if "." not in n)
    assert counts.outer_norms == count(net.ln_f) + count(net.embedding_norm)
    assert counts.head == (0 if config.tie_embeddings else count(model.lm_head))
    assert counts.without_embeddings == counts.total - count(net.wte) - count(net.wpe)


@pytest.mark.parametrize("name", OPTIONS)
def test_hidden_matrices(name: str) -> None:
    blocks = built(option(name)).transformer.h
    assert accounting.hidden_matrices(option(name)) == sum(p.numel() for p in blocks.parameters() if p.dim() == 2)


def test_flops_per_token() -> None:
    config = gpt2_config("gpt2")
    without_positions = 124_439_808 - 1024 * 768
    assert accounting.flops_per_token(config) == 6 * without_positions + 12 * 12 * 768 * 1024


def test_an_untied_embedding_costs_no_flops() -> None:
    untied, tied = TINY.changed(tie_embeddings=False), TINY
    assert accounting.parameters(untied).total > accounting.parameters(tied).total
    assert accounting.flops_per_token(untied) == accounting.flops_per_token(tied)


def test_a_gated_mlp_of_two_thirds_keeps_the_parameter_count() -> None:
    plain = gpt2_config("gpt2").changed(bias=False)
    gated = plain.changed(mlp="swiglu", mlp_expansion=2.667)
    assert gated.mlp_width == 2048
    assert accounting.parameters(gated).total == accounting.parameters(plain).total


@pytest.mark.parametrize(("n_embd", "expansion", "width"), [(768, 4.0, 3072), (25, 4.0, 100), (256, 2.667, 680)])
def test_mlp_width_is_rounded_to_a_multiple_of_8(n_embd: int, expansion: float, width: int) -> None:
    assert TINY.changed(n_head=1, n_embd=n_embd, mlp_expansion=expansion).mlp_width == width


def saved_bytes(config: GPTConfig, bfloat16: bool, sequences: int, recompute: bool = False) -> int:
    """Bytes that autograd keeps for the backward pass, without weights and their bfloat16 copies."""
    model = GPT(config)
    for block in model.transformer.h:
        block.attn.attend = sdpa
        block.activation_checkpointing = recompute  # type: ignore[assignment]
    own = [*model.parameters(), *model.buffers()]
    storages: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    idx = torch.randint(0, config.text_vocab_size, (sequences, config.block_size))
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=bfloat16)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast:
        model(idx, idx.clone())
    shapes = {frozenset(p.shape) for p in own if p.dim() == 2}
    known = {tensor.untyped_storage().data_ptr() for tensor in own}
    copies = {k for k, t in storages.items() if t.dtype == torch.bfloat16 and frozenset(t.shape) in shapes}
    return sum(t.untyped_storage().nbytes() for k, t in storages.items() if k not in known | copies)


@pytest.mark.parametrize("bfloat16", [True, False])
@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [
        ({}, 0.01),
        ({"mlp": "swiglu"}, 0.01),
        ({"n_kv_head": 2}, 0.01),
        ({"tie_embeddings": False}, 0.01),
        ({"mlp": "relu_squared"}, 0.01),
        ({"norm_placement": "post"}, 0.05),
        ({"position": "rope"}, 0.1),
        ({"qk_norm": True}, 0.1),
        ({"position": "alibi"}, 0.1),
        ({"norm": "rmsnorm"}, 0.2),
    ],
)
def test_activations(changes: dict[str, Any], tolerance: float, bfloat16: bool) -> None:
    config = TINY.changed(n_layer=3, n_embd=64, block_size=50, vocab_size=61, **changes)
    formula = accounting.memory(config, 3, bfloat16, "adamw").activations
    assert formula == pytest.approx(saved_bytes(config, bfloat16, 3), rel=tolerance)


@pytest.mark.parametrize("bfloat16", [True, False])
def test_activations_with_recomputation(bfloat16: bool) -> None:
    """With a large vocabulary the head needs most, with a small one a block."""
    config = TINY.changed(n_layer=3, n_embd=64, block_size=50, vocab_size=2000, text_vocab_size=2000)
    formula = accounting.memory(config, 3, bfloat16, "adamw", recompute=True).activations
    assert formula == pytest.approx(saved_bytes(config, bfloat16, 3, recompute=True), rel=0.01)

    config = config.changed(vocab_size=61, text_vocab_size=61)
    inputs = config.n_layer * 3 * 50 * 64 * 4
    one_block = saved_bytes(config, bfloat16, 3) - saved_bytes(config.changed(n_layer=2), bfloat16, 3)
    formula = accounting.memory(config, 3, bfloat16, "adamw", recompute=True).activations
    assert formula == pytest.approx(inputs + one_block, rel=0.01)


def test_a_sharded_model_gathers_two_blocks_at_a_time() -> None:
    config = TINY.changed(n_layer=6)
    counts, whole = accounting.parameters(config), accounting.memory(config, 1, False, "adamw")
    sharded = accounting.memory(config, 1, False, "adamw", shards=4)
    gathered = counts.total - 4 * counts.per_block
    assert sharded.optimizer == whole.optimizer // 4
    assert sharded.weights == sharded.gradients == 4 * (counts.total // 4 + gathered)
    assert accounting.memory(config, 1, False, "adamw", shards=4, accumulates=True).gradients == whole.gradients
    assert sharded.activations == whole.activations


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_optimizer_state(name: str) -> None:
    model = GPT(option(name))
    idx = torch.randint(0, 61, (2, 16))
    model(idx, idx).backward()
    hidden = [p for p in model.transformer.h.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if not any(p is h for h in hidden)]

    def state_bytes(*optimizers: torch.optim.Optimizer) -> int:
        for optimizer in optimizers:
            optimizer.step()
        states = [value for o in optimizers for state in o.state.values() for value in state.values()]
        return sum(4 * v.numel() for v in states if isinstance(v, Tensor) and v.dim() > 0)

    adamw = accounting.memory(model.config, 1, False, "adamw")
    muon = accounting.memory(model.config, 1, False, "muon")
    assert state_bytes(torch.optim.AdamW(model.parameters())) == adamw.optimizer
    assert state_bytes(torch.optim.Muon(hidden), torch.optim.AdamW(others)) == muon.optimizer
    assert adamw.weights == adamw.gradients == 4 * count(model)


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L4", 121),
        ("NVIDIA L40", 181),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4090", 165),
        ("Tesla T4", 65),
        ("NVIDIA T400", None),
        ("NVIDIA A1000", None),
        ("NVIDIA GH200 480GB", None),
    ],
)
def test_gpu_peaks_by_device_name(name: str, tera: int | None) -> None:
    assert accounting.gpu_peak(name) == (None if tera is None else tera * 1e12)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"n_embd": 30}, r"n_embd \(30\).*n_head \(4\)"),
        ({"n_kv_head": 3}, r"n_head \(4\).*n_kv_head \(3\)"),
        ({"n_embd": 12, "position": "rope"}, r"n_embd / n_head \(3\)"),
        ({"n_embd": 9, "n_head": 3, "position": "sinusoidal"}, r"n_embd \(9\)"),
        ({"text_vocab_size": 65}, r"text_vocab_size \(65\).*vocab_size \(64\)"),
        ({"position": "absolute"}, "position"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_invalid_configs_are_refused_by_key(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ValueError, match=key):
        TINY.changed(**changes)
