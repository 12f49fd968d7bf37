"""Matrix products of 32-bit numbers on a CPU, by whichever library is fast on it.

PyTorch hands them to Intel's MKL, which is excellent on Intel's processors and on others falls to half of what they
can do, most of all for the tall and thin matrices of a prediction layer. PyTorch also carries oneDNN, whose kernels are
generated for the processor at hand. So: MKL on an Intel processor, oneDNN on any other, one choice per machine and
never by a stopwatch, so that the same machine always rounds the same way.

Everything else (GPUs, double precision, half precision) is left to PyTorch.
"""

from __future__ import annotations

import functools
import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@functools.cache
def uses_onednn() -> bool:
    """Whether 32-bit products on this machine's CPU go to oneDNN."""
    # An operator that PyTorch's own compiler relies on; without an underscore there is none for dense tensors.
    available: bool = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return available and _is_x86() and not _is_intel()


def product(a_NK: Tensor, b_MK: Tensor, out: Tensor | None = None, *, onednn: bool | None = None) -> Tensor:
    """`a @ b.T`, [N, M]; outside the graph. `b` may be a transposed view, at no cost.

    Args:
        a_NK: left factor.
        b_MK: right factor, one row for each column of the result.
        out: where PyTorch may put the result; not every library can, so use what is returned.
        onednn: whether 32-bit products on the CPU go to oneDNN; None: as :func:`uses_onednn` says.
    """
    if _onednn_can(onednn, a_NK, b_MK):
        return _onednn(a_NK.contiguous(), b_MK, None)
    return torch.mm(a_NK, b_MK.t(), out=out)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, onednn: bool | None = None) -> Tensor:
    """`torch.nn.functional.linear` with gradients, any leading dimensions; `onednn` as for :func:`product`."""
    if _onednn_can(onednn, x, weight) and x.numel():
        result: Tensor = _Linear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
        return result
    return F.linear(x, weight, bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn(x.detach().contiguous(), weight.detach(), None if bias is None else bias.detach())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        flat_NM = gradient.view(-1, gradient.shape[-1])
        # The weight's gradient has a transposed left factor, which oneDNN would copy first.
        return (
            _onednn(gradient, weight.t(), None) if ctx.needs_input_grad[0] else None,
            flat_NM.t() @ x.reshape(-1, x.shape[-1]) if ctx.needs_input_grad[1] else None,
            flat_NM.sum(0) if ctx.needs_input_grad[2] else None,
        )


def _onednn_can(onednn: bool | None, *tensors: Tensor) -> bool:
    return (
        (uses_onednn() if onednn is None else onednn)
        and all(tensor.dtype == torch.float32 and tensor.device.type == "cpu" for tensor in tensors)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result


def _is_x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64")


def _is_intel() -> bool:
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # no Linux
        return "genuineintel" in platform.processor().lower()
