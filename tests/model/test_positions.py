"""Position schemes have the properties that their papers state."""

import math

import pytest
import torch

from pipeline.model.gpt import GPT
from pipeline.model.positions import Rotary, alibi_slopes, position_angles, rotate
from tests.model.configs import TINY


def test_rope_products_depend_only_on_the_distance() -> None:
    rope = Rotary(TINY.changed(position="rope", block_size=64, n_head=1))
    torch.manual_seed(0)
    q, k = torch.randn(1, 1, 1, 32), torch.randn(1, 1, 1, 32)

    def product(at: int, of: int) -> float:
        rotated_q = rotate(q, rope.rotation(torch.tensor([at])))
        rotated_k = rotate(k, rope.rotation(torch.tensor([of])))
        return float((rotated_q * rotated_k).sum())

    for distance in (0, 1, 7, 30):
        expected = product(distance, 0)
        for shift in (1, 13, 33):
            assert product(distance + shift, shift) == pytest.approx(expected, abs=1e-4)
    assert product(7, 0) != pytest.approx(product(8, 0), abs=1e-3)


def test_rope_keeps_norms_and_position_zero() -> None:
    rope = Rotary(TINY.changed(position="rope"))
    x = torch.randn(2, 4, 16, 8)
    rotated = rotate(x, rope.rotation(torch.arange(16)))
    torch.testing.assert_close(rotated.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(rotated[:, :, 0], x[:, :, 0])


def test_rope_angles() -> None:
    angles = position_angles(1024, 64)
    assert angles.shape == (1024, 32)
    assert angles[5, 0].item() == 5.0
    assert angles[1000, 31].item() == pytest.approx(1000 * 10000 ** (-62 / 64), rel=1e-6)


def test_rope_rotates_a_share_of_the_dimensions() -> None:
    rope = Rotary(TINY.changed(position="rope", n_head=1, rope_base=100.0, rope_share=0.25))  # 4 of 16 pairs
    x = torch.ones(1, 1, 16, 32)
    rotated = rotate(x, rope.rotation(torch.arange(16)))[0, 0]  # (T, D)
    fixed = [*range(4, 16), *range(20, 32)]
    assert torch.equal(rotated[:, fixed], torch.ones(16, 24))
    for pair in range(4):
        angle = 3 * 100 ** (-pair / 4)
        assert rotated[3, pair].item() == pytest.approx(math.cos(angle) - math.sin(angle), abs=1e-6)


def test_alibi_slopes_for_powers_of_two() -> None:
    """Section 3 gives 1/2 ... 1/256 for 8 heads and 2^-0.5, 2^-1 ... 2^-8 for 16."""
    assert alibi_slopes(8) == [2.0**-i for i in range(1, 9)]
    assert alibi_slopes(16) == pytest.approx([2 ** (-i / 2) for i in range(1, 17)])


def test_alibi_slopes_for_other_head_counts() -> None:
    """get_slopes(12) of github.com/ofirpress/attention_with_linear_biases: the 8 slopes, then odd ones of 16."""
    assert alibi_slopes(12) == pytest.approx([2.0**-i for i in range(1, 9)] + [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5])


def test_alibi_penalises_distance_and_hides_the_future() -> None:
    mask = GPT(TINY.changed(position="alibi")).transformer.wpe.scores_mask(None, 3, 5)
    assert mask is not None
    slope = alibi_slopes(4)[0]
    expected = torch.tensor(
        [
            [-2 * slope, -slope, 0, -torch.inf, -torch.inf],
            [-3 * slope, -2 * slope, -slope, 0, -torch.inf],
            [-4 * slope, -3 * slope, -2 * slope, -slope, 0],
        ]
    )
    torch.testing.assert_close(mask[0, 0], expected)


def test_the_sinusoidal_table_has_the_scale_of_an_embedding() -> None:
    table = GPT(TINY.changed(position="sinusoidal")).transformer.wpe.table
    assert isinstance(table, torch.Tensor)
    scale = 0.02 * math.sqrt(2)
    assert table[3, 0].item() == pytest.approx(scale * math.sin(3))
    assert table[3, 1].item() == pytest.approx(scale * math.cos(3))
    assert table[3, 4].item() == pytest.approx(scale * math.sin(3 / 10000 ** (4 / 32)))
    assert table.square().mean().sqrt().item() == pytest.approx(0.02)


@pytest.mark.parametrize("position", ["learned", "sinusoidal", "rope", "alibi"])
def test_the_order_of_tokens_matters(position: str) -> None:
    """Without positions, swapping two earlier tokens would not change the last hidden state."""
    torch.manual_seed(0)
    model = GPT(TINY.changed(position=position, n_layer=1, init="normal")).eval()
    a = model.hidden(torch.tensor([[1, 2, 3, 4]]))[0, -1]
    b = model.hidden(torch.tensor([[2, 1, 3, 4]]))[0, -1]
    assert (a - b).abs().max() > 1e-6


def test_fixed_tables_are_not_stored() -> None:
    for position in ("sinusoidal", "rope", "alibi"):
        assert not any("wpe" in name for name in GPT(TINY.changed(position=position)).state_dict())
