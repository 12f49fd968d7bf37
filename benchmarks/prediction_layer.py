"""Loss and gradients of the prediction layer, as a share of the machine's own rate of matrix products.

One pass is cross-entropy over the whole catalogue with the gradients of states and item table: three products of
2 · N · I · d operations, which is what the rate counts; the softmax between them is not counted. Ours also gives the
rank of every true item. Three ways take turns with the machine's ceiling:

    ours            `ranking_loss`, forward and backward
    plain autograd  `F.cross_entropy` on the full score matrix
    block by block  the same on blocks of as many scores as ours has, gradients adding up
"""

from __future__ import annotations

import torch
from ceiling import Ceiling
from harness import ITEMS, Figure, alternate, best, report
from torch import Tensor
from torch.nn import functional as F

from llmd4rec.losses.scores import BLOCK_ELEMENTS
from llmd4rec.losses.softmax import ranking_loss
from llmd4rec.training.runtime import keep_freed_memory

#: The least share of the ceiling, by width.
TARGETS = {64: 0.65, 256: 0.85}
#: Positions of a pass: a batch of the model's default training, and a large one.
POSITIONS = (768, 4096)


def main() -> None:
    """Measures every width and number of positions."""
    keep_freed_memory()  # as every training does
    figures = []
    for dim, target in TARGETS.items():
        for positions in POSITIONS:
            figures += measure(positions, dim, target)
    notes = [
        f"{ITEMS:,} items, 32-bit floats; best of the turns; {torch.get_num_threads()} threads.",
        "The ceiling is the best rate of torch.mm, oneDNN and OpenBLAS on any of the layer's three products, measured "
        "in the same turns; the softmax, the ranks and the copies between the products count against us.",
    ]
    report("prediction_layer", "Prediction layer: loss and gradients", figures, notes)


def measure(positions: int, dim: int, target: float) -> list[Figure]:
    """The figures of one shape."""
    generator = torch.Generator().manual_seed(0)
    states_ND = torch.randn(positions, dim, generator=generator).requires_grad_()
    table_ID = (torch.randn(ITEMS, dim, generator=generator) * 2.5 / dim**0.5).requires_grad_()
    target_N = torch.randint(ITEMS, (positions,), generator=generator)
    ceiling = Ceiling(ITEMS, dim)

    def ours() -> None:
        ranking_loss(states_ND, table_ID, target_N).loss.backward()
        states_ND.grad = table_ID.grad = None

    def autograd() -> None:
        F.cross_entropy(states_ND @ table_ID.t(), target_N).backward()
        states_ND.grad = table_ID.grad = None

    def blocks() -> None:
        block_by_block(states_ND, table_ID, target_N)
        states_ND.grad = table_ID.grad = None

    ways = {"ours": ours, "autograd": autograd, "blocks": blocks, "ceiling": ceiling.measure}
    seconds = alternate(ways, repeats=8 if positions < 2048 else 3)
    rate = {name: 6.0 * positions * ITEMS * dim / best(taken) for name, taken in seconds.items()}
    top, how = ceiling.layer()
    shape = f"d {dim}, {positions} positions"
    return [
        Figure(
            f"{shape}: ours / ceiling",
            100 * rate["ours"] / top,
            "%",
            f"≥ {100 * target:.0f} %",
            rate["ours"] >= target * top,
            f"{rate['ours'] / 1e9:.0f} of {top / 1e9:.0f} GFLOP/s ({how}); {1e3 * best(seconds['ours']):.1f} ms",
        ),
        Figure(f"{shape}: plain autograd / ceiling", 100 * rate["autograd"] / top, "%"),
        Figure(f"{shape}: block by block / ceiling", 100 * rate["blocks"] / top, "%"),
        Figure(f"{shape}: autograd's time / ours", rate["ours"] / rate["autograd"], "x"),
        Figure(
            f"{shape}: bare products / ceiling",
            100 * ceiling.three_products() / top,
            "%",
            note="the three products alone, each by the library that is best at it",
        ),
        Figure(f"{shape}: large square product", ceiling.square() / 1e9, "GFLOP/s"),
    ]


def block_by_block(states_ND: Tensor, table_ID: Tensor, target_N: Tensor) -> None:
    """The loop one would write: autograd on a few rows at a time."""
    rows = BLOCK_ELEMENTS // len(table_ID)
    for states_nD, target_n in zip(states_ND.split(rows), target_N.split(rows), strict=True):
        (F.cross_entropy(states_nD @ table_ID.t(), target_n, reduction="sum") / len(target_N)).backward()


if __name__ == "__main__":
    main()
