"""The machine's own rate of matrix products: the best that any installed library reaches, on a layer's shapes.

The prediction layer with its gradients is three products of 2 · n · I · d operations each:

    scores        states_nD @ table_ID.T         [n, I]
    grad states   gradient_nI @ table_ID         [n, D]
    grad table    gradient_nI.T @ states_nD      [I, D]

Each is timed with torch.mm, oneDNN and NumPy's OpenBLAS for several n, in 32-bit floats. Operands are as the layer has
them, so a library pays for a transposed operand what the layer would have to pay.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

#: Rows of one product: from a block that stays in the cache to a whole batch.
ROWS = (96, 256, 1024)
SQUARE = 2048


class Ceiling:
    """The best rates seen so far; every :meth:`measure` runs all products once."""

    def __init__(self, items: int, dim: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self._ways: dict[tuple[str, str, int], Callable[[], object]] = {}
        self._flops: dict[tuple[str, str, int], float] = {}
        self._seconds: dict[tuple[str, str, int], float] = {}
        table_ID = torch.randn(items, dim, generator=generator)
        for rows in ROWS:
            states_nD = torch.randn(rows, dim, generator=generator)
            gradient_nI = torch.randn(rows, items, generator=generator)
            self._add("scores", rows, states_nD, table_ID.t())
            self._add("grad states", rows, gradient_nI, table_ID)
            self._add("grad table", rows, gradient_nI.t(), states_nD)
        one, other = torch.randn(2, SQUARE, SQUARE, generator=generator)
        self._add("square", SQUARE, one, other)

    def _add(self, product: str, rows: int, left: torch.Tensor, right: torch.Tensor) -> None:
        out = torch.empty(left.shape[0], right.shape[1])
        numpy_left, numpy_right, numpy_out = left.numpy(), right.numpy(), out.numpy()
        ways: dict[str, Callable[[], object]] = {
            "torch.mm": lambda: torch.mm(left, right, out=out),
            "OpenBLAS": lambda: np.matmul(numpy_left, numpy_right, out=numpy_out),
        }
        if torch.backends.mkldnn.is_available():
            linear = torch.ops.mkldnn._linear_pointwise
            ways["oneDNN"] = lambda: linear(left, right.t(), None, "none", [], "")
        for library, way in ways.items():
            self._ways[library, product, rows] = way
            self._flops[library, product, rows] = 2.0 * left.shape[0] * left.shape[1] * right.shape[1]

    def measure(self) -> None:
        """Times every product, the best of three, and keeps the best of all calls."""
        for key, way in self._ways.items():
            for _ in range(3):
                started = time.perf_counter()
                way()
                seconds = time.perf_counter() - started
                self._seconds[key] = min(self._seconds.get(key, seconds), seconds)

    def layer(self) -> tuple[float, str]:
        """The best rate on one of the layer's products, in operations per second, and which it was."""
        key = max((key for key in self._seconds if key[1] != "square"), key=self._rate)
        return self._rate(key), f"{key[0]}, {key[1]}, {key[2]} rows"

    def three_products(self) -> float:
        """The rate of the layer's three products in a row, each with the library and the rows that suit it best."""
        products = ("scores", "grad states", "grad table")
        return 3 / sum(1 / max(self._rate(key) for key in self._seconds if key[1] == product) for product in products)

    def square(self) -> float:
        """The best rate on a large square product."""
        return max(self._rate(key) for key in self._seconds if key[1] == "square")

    def _rate(self, key: tuple[str, str, int]) -> float:
        return self._flops[key] / self._seconds[key]
