"""A constant sparse matrix that is multiplied with a dense one in every training step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class SparseMatrix:
    """A constant sparse matrix, [R, C], by rows, and how to multiply by it and by its transpose.

    Attributes:
        starts: [R + 1], where each row's entries begin.
        columns, values: [n] of all entries, row by row.
        width: C.
    """

    starts: Tensor
    columns: Tensor
    values: Tensor
    width: int

    @classmethod
    def of(cls, matrix: sp.csr_matrix, device: torch.device) -> SparseMatrix:
        """The same matrix on a device."""
        matrix = sp.csr_matrix(matrix)
        matrix.sort_indices()
        arrays = (matrix.indptr.astype(np.int64), matrix.indices.astype(np.int64), matrix.data.astype(np.float32))
        starts, columns, values = (torch.from_numpy(array).to(device) for array in arrays)
        return cls(starts, columns, values, matrix.shape[1])

    def rows(self, rows: Tensor) -> SparseMatrix:
        """Some of the rows, in the order asked for."""
        counts = (self.starts[1:] - self.starts[:-1])[rows]
        starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        entry = torch.arange(int(starts[-1]), device=rows.device)
        entry += torch.repeat_interleave(self.starts[rows] - starts[:-1], counts)
        return SparseMatrix(starts, self.columns[entry], self.values[entry], self.width)

    def among(self, columns: Tensor, width: int) -> SparseMatrix:
        """The same entries, whose columns are called otherwise."""
        return SparseMatrix(self.starts, columns, self.values, width)

    def matmul(self, dense_CD: Tensor) -> Tensor:
        """The product with a dense matrix, [R, D]; differentiable in it."""
        result: Tensor = _Product.apply(dense_CD, self)  # type: ignore[no-untyped-call]
        return result

    def transposed(self) -> SparseMatrix:
        """The transpose, by rows; entries of a row in the order of their columns."""
        if "transpose" not in self.__dict__:
            row = torch.repeat_interleave(
                torch.arange(len(self.starts) - 1, device=self.columns.device), self.starts[1:] - self.starts[:-1]
            )
            order = torch.argsort(self.columns, stable=True)
            counts = torch.bincount(self.columns, minlength=self.width)
            starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
            turned = SparseMatrix(starts, row[order], self.values[order], len(self.starts) - 1)
            object.__setattr__(self, "transpose", turned)
        found: SparseMatrix = self.__dict__["transpose"]
        return found

    def _product(self, dense_CD: Tensor) -> Tensor:
        """The product, outside the graph."""
        return F.embedding_bag(self.columns, dense_CD, self.starts[:-1], mode="sum", per_sample_weights=self.values)


class _Product(torch.autograd.Function):
    """PyTorch's own gradients of sparse products sort the entries anew in every step."""

    @staticmethod
    def forward(ctx: Any, dense_CD: Tensor, matrix: SparseMatrix) -> Tensor:
        ctx.matrix = matrix
        return matrix._product(dense_CD.detach())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.matrix.transposed()._product(gradients[0].contiguous()), None
