"""A teacher's scores from 8-bit numbers: a quarter of the arithmetic where the processor multiplies bytes.

    row ≈ scale · values,   values in -127 .. 127,   scale = max |row| / 127
    scores ≈ scale_n · scale_i · Σ_k values_nk · values_ik            the sum is exact, in 32-bit integers

The KL still runs over the whole catalogue, but of a teacher whose states and table are rounded to 8 bits. On a trained
teacher the rounded distribution was 1e-4 nats away from that of the full numbers (`benchmarks/crm_epoch.py`), where
teacher and student are a good part of a nat apart. The teacher's ranks of true items, and with them the sample
weights, are those of the same rounded scores.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from llmd4rec.matmul import product


@dataclass(frozen=True)
class Int8Rows:
    """A matrix whose rows are rounded to 8 bits, each with a scale of its own.

    Attributes:
        values_RK: int8.
        scale_R: float32; row r is about `scale_R[r] * values_RK[r]`.
        in_bytes: whether products of it as right factor are made of bytes on a CPU; None: where the processor has such.
    """

    values_RK: Tensor
    scale_R: Tensor
    in_bytes: bool | None = None

    @classmethod
    def of(cls, rows_RK: Tensor, in_bytes: bool | None = None) -> Int8Rows:
        """Rounds the rows of a matrix of any float type."""
        rows_RK = rows_RK.float()
        scale_R = rows_RK.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / 127
        return cls((rows_RK / scale_R[:, None]).round_().to(torch.int8), scale_R, in_bytes)

    def __len__(self) -> int:
        return len(self.values_RK)

    def __getitem__(self, rows: slice | Tensor) -> Int8Rows:
        return Int8Rows(self.values_RK[rows], self.scale_R[rows], self.in_bytes)

    @functools.cached_property
    def largest_norm(self) -> float:
        """The largest Euclidean norm of a row."""
        return float((self.values_RK.float().norm(dim=1) * self.scale_R).max())

    def matmul(self, other: Int8Rows, out: Tensor) -> Tensor:
        """`self @ other.T`, into the float32 tensor `out`."""
        if out.device.type == "cpu" and (has_vnni() if other.in_bytes is None else other.in_bytes):
            # The sums are made where the floats will be, in numbers of the same size: fresh memory costs as much again.
            sums = out.copy_(torch._int_mm(self.values_RK, other.values_RK.t(), out=out.view(torch.int32)))
        else:  # the same integers, by the products that every processor has
            sums = product(self._floats_RK, other._floats_RK, out=out)
        return sums.mul_(other.scale_R).mul_(self.scale_R[:, None])

    @functools.cached_property
    def _floats_RK(self) -> Tensor:
        """The integers as floats; kept, since a table meets many blocks of states."""
        return self.values_RK.float()


@functools.cache
def has_vnni() -> bool:
    """Whether this processor has instructions for products of bytes."""
    ask = getattr(torch.cpu, "_is_vnni_supported", None)
    return bool(ask is not None and ask() and hasattr(torch, "_int_mm"))
