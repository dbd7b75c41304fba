"""Muon: PyTorch's own on single matrices, fused matrices one by one, skipped steps, and the same on several ranks."""

import pytest
import torch
from torch import Tensor, nn

from pipeline.distributed import Group
from pipeline.model.gpt import GPT
from pipeline.training.muon import Muon, newton_schulz
from pipeline.training.optim import _hidden_matrices
from tests.model.configs import option
from tests.ranks import on_ranks
from tests.training.conftest import ONE_RANK


def matrices(*shapes: tuple[int, int], seed: int = 0) -> list[nn.Parameter]:
    """Parameters with gradients."""
    torch.manual_seed(seed)
    parameters = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    for p in parameters:
        p.grad = torch.randn_like(p)
    return parameters


def stepped(
    parameters: list[nn.Parameter], rows: list[tuple[int, ...]], group: Group = ONE_RANK, **variant: bool
) -> list[Tensor]:
    """The matrices after two steps."""
    muon = Muon(dict(zip(parameters, rows, strict=True)), 0.1, group, **variant)
    muon.param_groups[0]["lr"] = 0.1
    muon.step()
    muon.step()
    return [p.detach() for p in parameters]


SHAPES = ((16, 16), (16, 16), (48, 16), (16, 40))


def test_single_matrices_are_stepped_as_by_pytorch() -> None:
    ours = stepped(matrices(*SHAPES), [(rows,) for rows, _ in SHAPES])
    parameters = matrices(*SHAPES)
    theirs = torch.optim.Muon(parameters, lr=0.1, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    theirs.step()
    theirs.step()
    for mine, expected in zip(ours, parameters, strict=True):
        torch.testing.assert_close(mine, expected.detach(), rtol=0, atol=2e-3)  # products in bfloat16


@pytest.mark.parametrize("parts", [(16, 16, 16), (16, 8, 8)])
def test_the_parts_of_a_fused_matrix_are_stepped_as_matrices_of_their_own(parts: tuple[int, ...]) -> None:
    fused = matrices((sum(parts), 16))
    (whole,) = stepped(fused, [parts])
    alone = [nn.Parameter(part.clone()) for part in matrices((sum(parts), 16))[0].detach().split(parts)]
    for p, gradient in zip(alone, fused[0].grad.split(parts), strict=True):  # type: ignore[union-attr]
        p.grad = gradient.clone()
    expected = torch.cat(stepped(alone, [(rows,) for rows in parts]))
    torch.testing.assert_close(whole, expected, rtol=0, atol=1e-4)
    (unsplit,) = stepped(matrices((sum(parts), 16)), [(sum(parts),)])
    assert (whole - unsplit).abs().max() > 0.01


def test_queries_keys_values_and_gate_are_the_parts_of_the_fused_matrices_of_a_model() -> None:
    model = GPT(option("llama"))  # width 32, 4 heads, 2 key/value heads, SwiGLU
    hidden = _hidden_matrices(dict(model.named_parameters()), model.config)
    block = model.transformer.h[0]
    assert hidden[block.attn.c_attn.weight] == (32, 16, 16)
    assert hidden[block.mlp.c_fc.weight] == (model.config.mlp_width,) * 2
    assert hidden[block.mlp.c_proj.weight] == hidden[block.attn.c_proj.weight] == (32,)
    assert len(hidden) == 4 * model.config.n_layer


def test_orthogonalising_moves_all_singular_values_towards_1() -> None:
    torch.manual_seed(0)
    singular = torch.linalg.svdvals(newton_schulz(torch.randn(3, 32, 64)))
    assert ((singular > 0.6) & (singular < 1.3)).all()


def test_normuon_divides_rows_by_their_running_mean_square_and_keeps_the_norm() -> None:
    (p,) = matrices((24, 16))
    muon = Muon({p: (16, 8)}, 0.0, ONE_RANK, normuon=True)
    muon.param_groups[0].update(lr=0.1, momentum=0.5)
    buffer, mean_square = torch.zeros(24, 16), torch.zeros(24, 1)
    for step in range(3):
        p.grad = torch.randn_like(p)
        buffer = (buffer + p.grad) / 2
        expected = p.detach().clone()
        direction = ((p.grad + buffer) / 2).bfloat16()
        for part in (slice(0, 16), slice(16, 24)):
            orthogonal = newton_schulz(direction[None, part])[0].float()
            mean_square[part] = 0.95 * mean_square[part] + 0.05 * orthogonal.square().mean(1, keepdim=True)
            scaled = orthogonal / mean_square[part].sqrt()
            expected[part] -= 0.1 * 0.2 * 16**0.5 * scaled * orthogonal.norm() / scaled.norm()
        muon.step()
        torch.testing.assert_close(p.detach(), expected, rtol=0, atol=1e-5, msg=f"step {step}")


def test_cautious_decay_spares_weights_that_the_update_does_not_shrink() -> None:
    (p,), (start,) = matrices((16, 16)), matrices((16, 16))
    (undecayed,) = stepped_once(start, weight_decay=0.0)
    (cautious,) = stepped_once(p, weight_decay=0.5, cautious=True)
    before = matrices((16, 16))[0].detach()
    shrinks = (before - undecayed) * before > 0  # the update is subtracted
    assert 0.2 < shrinks.float().mean() < 0.8
    torch.testing.assert_close(cautious, undecayed - 0.1 * 0.5 * before * shrinks)


def stepped_once(p: nn.Parameter, weight_decay: float, **variant: bool) -> list[Tensor]:
    muon = Muon({p: (p.size(0),)}, weight_decay, ONE_RANK, **variant)
    muon.param_groups[0]["lr"] = 0.1
    muon.step()
    return [p.detach()]


def test_a_skipped_step_changes_nothing_although_the_gradient_is_nan() -> None:
    (p,) = matrices((16, 16))
    muon = Muon({p: (16,)}, 0.1, ONE_RANK, normuon=True, cautious=True)
    muon.param_groups[0]["lr"] = 0.1
    muon.step(skip=torch.tensor(False))
    weights, state = p.detach().clone(), {name: tensor.clone() for name, tensor in muon.state[p].items()}
    p.grad = torch.full_like(p, torch.nan)
    muon.step(skip=torch.tensor(True))
    assert torch.equal(p, weights)
    assert all(torch.equal(muon.state[p][name], tensor) for name, tensor in state.items())


def step_and_compare(group: Group) -> None:
    rows = [(16,), (16,), (16, 16, 16), (16,)]
    for mine, expected in zip(stepped(matrices(*SHAPES), rows, group), stepped(matrices(*SHAPES), rows), strict=True):
        torch.testing.assert_close(mine, expected, rtol=0, atol=3e-3)  # products in bfloat16


def test_ranks_that_share_the_work_compute_what_one_does() -> None:
    on_ranks(3, step_and_compare)
