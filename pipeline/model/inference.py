"""A model for forward passes alone: products in the dtype, and by the routine, that is fastest for them.

    fast = for_inference(model, torch.bfloat16)
    with torch.no_grad():
        fast.logits(fast.hidden(idx))

What training holds stays as it is: the copy shares its tensors and reads them, and has modules of its own. So a run can
be measured and sampled from at any step with no change of its weights, modes, hooks or random numbers.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.model.gpt import GPT


class Product(nn.Module):
    """A linear layer whose product is computed in `dtype`; its result has that dtype too.

    On a CPU, through oneDNN where it can. In float32, F.linear calls the BLAS library, and the usual one (MKL) reads a
    matrix at a third of the memory's speed for one row, and multiplies at half of oneDNN's speed on CPUs that are not
    Intel's. In bfloat16, F.linear puts the matrix in the order that the instructions want at each call, which for a few
    rows takes as long as the product; here that is done once.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        # Plain attributes and no parameters: nothing here is trained, saved or moved. The same storage in float32.
        self.weight = linear.weight.detach().to(dtype)
        self.bias = None if linear.bias is None else linear.bias.detach().to(dtype)
        self.onednn = self.weight.device.type == "cpu" and has_onednn_linear(dtype)
        if self.onednn and dtype != torch.float32:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) any float dtype -> (..., out) in the layer's."""
        x = x.to(self.weight.dtype)
        if self.onednn:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return F.linear(x, self.weight, self.bias)


class NormInFloat32(nn.Module):
    """A norm that takes any dtype and computes in float32, as autocast has it."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """The same shape, float32."""
        return self.norm(x.float())


def for_inference(model: GPT, dtype: torch.dtype) -> GPT:
    """A copy of `model`, in evaluation mode, whose matrix products are computed in `dtype`.

    Embeddings, norms and the residual stream stay float32, as under autocast; the matrices are cast once, and not at
    each pass. In float32 all tensors are shared with `model`; in bfloat16 the matrices are copies of what they are now.
    """
    shared: dict[int, Tensor] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    fast = copy.deepcopy(model, shared)
    if dtype != torch.float32:
        fast.lm_head = _centred(model)
    for module in list(fast.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, Product(child, dtype))
            elif isinstance(child, nn.LayerNorm | nn.RMSNorm) and dtype != torch.float32:
                setattr(module, name, NormInFloat32(child))
    return fast.eval()


def _centred(model: GPT) -> nn.Linear:
    """The head without the mean of its rows, which adds the same to all logits of a token, as no softmax notices.

    GPT-2's logits stand around -30 to -100, where bfloat16 has steps of 0.25 to 0.5; what is left has finer ones.
    """
    weight = model.lm_head.weight.detach()
    head = nn.Linear(weight.size(1), weight.size(0), bias=False, device="meta")
    mean = weight[: model.config.text_vocab_size].mean(dim=0)
    head.weight = nn.Parameter(weight - mean, requires_grad=False)
    return head


def has_onednn_linear(dtype: torch.dtype) -> bool:
    """Whether this build of torch, on this CPU, has oneDNN's linear layer for tensors of `dtype`."""
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
