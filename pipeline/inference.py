"""A copy of a model for inference, with faster matrix products.

    fast = for_inference(model, torch.bfloat16)
    with torch.no_grad():
        fast.logits(fast.hidden(idx))

The copy shares the model's tensors and has modules of its own, so a run can be evaluated and sampled at any step
without touching its weights, modes, hooks or random state.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.model.gpt import GPT


class InferenceLinear(nn.Module):
    """A linear layer computed in `dtype`, with a result of that dtype; through oneDNN where a CPU supports it.

    In float32, F.linear calls the BLAS library, usually MKL: for a single row it reads the matrix at a third of the
    memory bandwidth, and on CPUs other than Intel's it multiplies at half of oneDNN's speed. In bfloat16, F.linear
    reorders the matrix on every call, which for a few rows takes as long as the product; here it is reordered once.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        # Plain attributes, not parameters: they are not trained, saved or moved. In float32 they share the storage.
        self.weight = linear.weight.detach().to(dtype)
        self.bias = None if linear.bias is None else linear.bias.detach().to(dtype)
        self.onednn = self.weight.device.type == "cpu" and has_onednn_linear(dtype)
        if self.onednn and dtype != torch.float32:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) in any float dtype -> (..., out) in the layer's dtype."""
        x = x.to(self.weight.dtype)
        if self.onednn:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return F.linear(x, self.weight, self.bias)


class Float32Norm(nn.Module):
    """A norm computed in float32 for inputs of any dtype, as under autocast."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> the same shape in float32."""
        return self.norm(x.float())


def for_inference(model: GPT, dtype: torch.dtype) -> GPT:
    """A copy of `model`, in evaluation mode, whose matrix products are computed in `dtype`.

    Embeddings, norms and the residual stream stay float32, as under autocast, but matrices are cast only once.
    In float32 all tensors are shared with `model`; in bfloat16 the matrices are copies of the current weights.
    """
    shared: dict[int, Tensor] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    fast = copy.deepcopy(model, shared)
    if dtype != torch.float32 and not model.config.logit_softcap:
        fast.lm_head = _centered_head(model)
    for module in list(fast.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, InferenceLinear(child, dtype))
            elif isinstance(child, nn.LayerNorm | nn.RMSNorm) and dtype != torch.float32:
                setattr(module, name, Float32Norm(child))
    return fast.eval()


def _centered_head(model: GPT) -> nn.Linear:
    """The head minus the mean of its rows: that shifts all logits of a token alike, and softmax does not change.

    GPT-2's logits are around -30 to -100, where bfloat16 has steps of 0.25 to 0.5. Centered logits are more precise.
    """
    weight = model.lm_head.weight.detach()
    head = nn.Linear(weight.size(1), weight.size(0), bias=False, device="meta")
    mean = weight[: model.config.text_vocab_size].mean(dim=0)
    head.weight = nn.Parameter(weight - mean, requires_grad=False)
    return head


def has_onednn_linear(dtype: torch.dtype) -> bool:
    """Whether this build of torch has oneDNN's linear layer for `dtype` on this CPU."""
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
