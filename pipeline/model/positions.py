"""Position schemes. A new one goes into POSITIONS and into `Architecture.position`.

A scheme overrides one of three hooks: it adds to the token embeddings (learned, sinusoidal), rotates queries and keys
(rope), or adds to the attention scores (alibi). What happens past the trained context: `Architecture.context_limit`.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.model.config import GPTConfig

Rotation = tuple[Tensor, Tensor]  # cosines and sines, float32, broadcast over heads: (1, T, D / 2) or (B, 1, T, D / 2)


class Positions(nn.Module):
    """The hooks of a position scheme. By default they do nothing."""

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        """Token embeddings x (B, T, C) of tokens at `positions` (T,) or (B, T) -> (B, T, C)."""
        return x

    def rotation(self, positions: Tensor) -> Rotation | None:
        """What `rotate` applies to queries and keys; None: nothing."""
        return None

    def scores_mask(self, mask: Tensor | None, queries: int, keys: int) -> Tensor | None:
        """The attention mask (see `gpt.py`) for the last `queries` of `keys` tokens, given the mask of
        the cache or of the documents."""
        return mask

    def crop(self, block_size: int) -> None:
        """Removes the positions from `block_size` on."""


class Learned(Positions):
    """A learned vector for each position (GPT-2)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.block_size, config.n_embd))

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        return x + self.weight[positions]

    def crop(self, block_size: int) -> None:
        self.weight = nn.Parameter(self.weight.detach()[:block_size].clone())


class Sinusoidal(Positions):
    """Sines and cosines of wavelengths from 2π to 10000·2π (arXiv 1706.03762, section 3.5).

    Scaled to a root mean square of 0.02, that of initial token embeddings. Unscaled it is 0.7, which would drown them;
    the paper multiplies its embeddings by sqrt(C) instead.
    """

    table: Tensor

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        angles = position_angles(config.block_size, config.n_embd)  # (block_size, C / 2)
        table = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)  # sine and cosine alternate
        self.register_buffer("table", 0.02 * math.sqrt(2) * table, persistent=False)

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        return x + self.table[positions]

    def crop(self, block_size: int) -> None:
        self.table = self.table[:block_size]


class Rotary(Positions):
    """RoPE (arXiv 2104.09864): rotates queries and keys by angles proportional to their positions. Their product then
    depends only on the distance."""

    cosine: Tensor
    sine: Tensor

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        pairs = config.rotated_pairs
        angles = position_angles(config.block_size, 2 * pairs, config.rope_base)  # (block_size, pairs)
        angles = F.pad(angles, (0, config.head_size // 2 - pairs))  # (block_size, D / 2): angle 0 rotates nothing
        self.register_buffer("cosine", angles.cos(), persistent=False)
        self.register_buffer("sine", angles.sin(), persistent=False)

    def rotation(self, positions: Tensor) -> Rotation:
        cosine, sine = self.cosine[positions], self.sine[positions]  # (T, D / 2) or (B, T, D / 2)
        return cosine.unsqueeze(-3), sine.unsqueeze(-3)

    def crop(self, block_size: int) -> None:
        self.cosine, self.sine = self.cosine[:block_size], self.sine[:block_size]


class Alibi(Positions):
    """ALiBi (arXiv 2108.12409): attention scores fall linearly with distance, with a fixed slope for each head."""

    slopes: Tensor

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.register_buffer("slopes", torch.tensor(alibi_slopes(config.n_head)), persistent=False)

    def scores_mask(self, mask: Tensor | None, queries: int, keys: int) -> Tensor:
        key = torch.arange(keys, device=self.slopes.device)
        query = key[keys - queries :, None]  # the queries are the last tokens
        distance = key - query  # (T, S): 0 for the token itself, negative for the past
        visible = distance <= 0 if mask is None else mask  # (T, S) or (B, 1, T, S)
        bias = self.slopes[:, None, None] * distance  # (H, T, S)
        return torch.where(visible, bias[None], -torch.inf)  # (1 or B, H, T, S)


POSITIONS: dict[str, type[Positions]] = {
    "learned": Learned,
    "sinusoidal": Sinusoidal,
    "rope": Rotary,
    "alibi": Alibi,
}


def position_angles(positions: int, width: int, base: float = 10000.0) -> Tensor:
    """Position times frequency base^(-2i/width) -> (positions, width / 2) float32, computed in float64."""
    frequencies = base ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    return torch.outer(torch.arange(positions, dtype=torch.float64), frequencies).float()


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotates each pair (x[i], x[i + D/2]) of x (B, H, T, D) by the i-th angle of its position, in float32.

    The pairs are those of GPT-NeoX and Llama: first half with second half.
    """
    cosine, sine = rotation
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, first * sine + second * cosine), dim=-1).type_as(x)


def alibi_slopes(heads: int) -> list[float]:
    """The slope of each head: 2^(-8i/n) for i = 1..n where n is a power of two (8 heads: 1/2, 1/4, ..., 1/256).

    Otherwise as in the paper's code (github.com/ofirpress/attention_with_linear_biases): the slopes of the next lower
    power of two, then every other slope of the next higher one.

    >>> alibi_slopes(3)
    [0.0625, 0.00390625, 0.25]
    """
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2.0 ** (-8 * i / power) for i in range(1, power + 1)]
    between = [2.0 ** (-8 * i / (2 * power)) for i in range(1, 2 * power + 1, 2)]
    return slopes + between[: heads - power]
