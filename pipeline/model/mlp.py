"""The feed-forward sublayer. A new activation goes into ACTIVATIONS and into `Architecture.mlp`."""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.model.config import GPTConfig


def relu_squared(x: Tensor) -> Tensor:
    """max(x, 0)² (Primer, arXiv 2109.08668)."""
    return F.relu(x).square()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_tanh": partial(F.gelu, approximate="tanh"),  # what GPT-2's weights were trained with
    "gelu": F.gelu,
    "relu": F.relu,
    "relu_squared": relu_squared,
    "swiglu": F.silu,  # of the gate
    "geglu": F.gelu,  # of the gate
}


class MLP(nn.Module):
    """Two matrices with an activation between; a gated MLP (arXiv 2002.05202) also multiplies by a linear gate."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.gated = config.gated
        # Gate and value of a gated MLP are one matrix product, like queries, keys and values in attention.
        self.c_fc = nn.Linear(config.n_embd, config.mlp_width * (2 if self.gated else 1), bias=config.bias)
        self.c_proj = nn.Linear(config.mlp_width, config.n_embd, bias=config.bias)
        self.activation = ACTIVATIONS[config.mlp]
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C), each position by itself."""
        x = self.c_fc(x)  # (B, T, F), or (B, T, 2F) where gated
        if self.gated:
            gate, value = x.chunk(2, dim=-1)
            x = self.activation(gate) * value
        else:
            x = self.activation(x)
        x = self.c_proj(x)  # (B, T, C)
        return self.dropout(x)
