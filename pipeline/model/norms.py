"""Normalisation layers. A new one goes into NORMS and into `Architecture.norm`."""

from collections.abc import Callable

from torch import Tensor, nn

EPSILON = 1e-5  # GPT-2's layer_norm_epsilon; RMSNorm keeps it, so that the two differ in nothing else


class RMSNorm(nn.RMSNorm):
    """RMSNorm over the last dimension (arXiv 1910.07467): divides by the root mean square; has no bias."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> the same, in the dtype of the gain: float32 under autocast, as for LayerNorm."""
        return super().forward(x.type_as(self.weight))


def layer_norm(width: int, bias: bool) -> nn.Module:
    """LayerNorm over the last dimension (arXiv 1607.06450), as in GPT-2."""
    return nn.LayerNorm(width, eps=EPSILON, bias=bias)


def rms_norm(width: int, bias: bool) -> nn.Module:
    """RMSNorm; `bias` has nothing to say here."""
    return RMSNorm(width, eps=EPSILON)


NORMS: dict[str, Callable[[int, bool], nn.Module]] = {"layernorm": layer_norm, "rmsnorm": rms_norm}
