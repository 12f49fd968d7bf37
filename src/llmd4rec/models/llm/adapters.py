"""A frozen linear layer with a low-rank adapter, computed and differentiated in as few operations as it takes.

    y = x Wᵀ + b + s · drop(x) Aᵀ Bᵀ          x [N, in], W [out, in], A [r, in], B [out, r]

The adapter's own products are a few percent of the layer's; around them peft casts, drops, scales and adds in passes of
their own, and autograd keeps each step's result. Here W has no gradient to compute, s and dropout's 1 / (1 - p) are one
factor on the small matrix, and the dropped input is made again in the backward pass instead of being kept.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from llmd4rec.matmul import product
from llmd4rec.models.dropout import dropout_mask


class AdaptedLinear(nn.Module):
    """Takes over a peft LoRA layer with one adapter, its parameters under the same names.

    Args:
        layer: the peft layer around an `nn.Linear` or a `Conv1D`.
        dropout: on the adapter's input.
    """

    def __init__(self, layer: Any, dropout: float) -> None:
        super().__init__()
        self.base_layer: nn.Module = layer.base_layer
        (self._name,) = layer.lora_A.keys()
        self.lora_A, self.lora_B = layer.lora_A, layer.lora_B
        self.scale = float(layer.scaling[self._name])
        self.rate = dropout
        #: GPT-2's Conv1D keeps its weight as [in, out].
        self._transposed = not isinstance(self.base_layer, nn.Linear)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        weight, bias = cast(Tensor, self.base_layer.weight), cast(Tensor | None, self.base_layer.bias)
        if self._transposed:
            weight = weight.t()
        down, up = self.lora_A[self._name].weight, self.lora_B[self._name].weight
        if torch.is_autocast_enabled(x.device.type):  # which sees single operations, not a function of several
            half = torch.get_autocast_dtype(x.device.type)
            x, weight, bias = x.to(half), weight.to(half), None if bias is None else bias.to(half)
        rate = self.rate if self.training else 0.0
        result: Tensor = _Adapted.apply(  # type: ignore[no-untyped-call]
            x.reshape(-1, x.shape[-1]), weight, bias, down.to(x.dtype), up.to(x.dtype), self.scale, rate
        )
        return result.view(*x.shape[:-1], -1)


class _Adapted(torch.autograd.Function):
    """x [N, in], weight [out, in], bias [out] or None, down [r, in], up [out, r] → [N, out]."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float, rate: float
    ) -> Tensor:
        keep = dropout_mask(x, rate) if rate else None
        ctx.scale = scale / (1 - rate)
        low = product(_masked(x, keep), down)
        result = product(x, weight)
        if bias is not None:
            result += bias
        result.addmm_(low, up.t(), alpha=ctx.scale)
        ctx.save_for_backward(x, weight, down, up, low, keep)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, down, up, low, keep = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        grad_low = product(gradient, up.t()).mul_(ctx.scale)
        grad_up = torch.mm(gradient.t(), low).mul_(ctx.scale)
        grad_down = torch.mm(grad_low.t(), _masked(x, keep))
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = product(gradient, weight.t())
            grad_x += _masked(product(grad_low, down.t()), keep)
        return grad_x, None, None, grad_down, grad_up, None, None


def _masked(x: Tensor, keep: Tensor | None) -> Tensor:
    return x if keep is None else x * keep
