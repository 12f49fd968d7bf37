"""Full-catalogue evaluation: seconds, and memory that does not grow with users x items.

Ours is `evaluate` as a run calls it: the states of every held-out user, seen items removed, the target's rank among the
whole catalogue, the best items kept, metrics, slices and the per-user table. `ranking` is its part behind the states.

Against it: the naive way, the whole matrix of scores in one go (users x items), seen items masked, `topk`, and the rank
as a count; the same with `argsort`, on a part of the users and scaled up. The machine's limit is the states' forward
pass plus the bare product with the item table, written into one reused block.

Memory is the peak of a process that loads, evaluates and ends, with Beauty's users and with five times as many (each
user's sequence repeated); `nothing` stops before it evaluates.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import torch
from harness import Figure, alternate, beauty, best, peak_memory, report

from llmd4rec.data.batching import SequenceBatch
from llmd4rec.data.dataset import Dataset
from llmd4rec.evaluation import Evaluator
from llmd4rec.evaluation.ranking import ItemLists, rank_targets
from llmd4rec.matmul import product
from llmd4rec.models.base import last_states
from llmd4rec.models.sequential.sasrec import SASRec, SASRecNetwork
from llmd4rec.scoring.base import CPU_BLOCK_ELEMENTS
from llmd4rec.scoring.factors import FactorQuery

TOP = 10
#: The naive sort is measured on one of so many users.
SORTED_PART = 10
USERS_AT_ONCE = 256
MOST_SECONDS = 4


def main() -> None:
    """Measures and reports; with --child, only does what is to be measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a prepared data set (default: a synthetic log of Beauty's shape)")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each way, after one to warm up")
    parser.add_argument("--child", choices=("ours", "naive", "nothing"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    dataset = beauty(arguments.data)
    network = SASRec().build(dataset.num_items, seed=0).eval()
    if arguments.child:
        child(arguments.child, network, dataset)
        return

    states_UD, targets_U, seen = inputs(network, dataset)
    part = slice(0, len(states_UD) // SORTED_PART)
    part_seen = ItemLists(seen.offsets[: part.stop + 1], seen.items[: seen.offsets[part.stop]])
    table_ID = network.item_table().detach()
    ways: dict[str, Callable[[], object]] = {
        "ours": lambda: Evaluator(cutoffs=(TOP,)).evaluate(network, dataset),
        "ranking": lambda: rank_targets(FactorQuery.of(states_UD, table_ID), targets_U.numpy(), seen, TOP),
        "forward": lambda: inputs(network, dataset),
        "product": lambda: bare_product(states_UD, table_ID),
        "naive": lambda: naive(states_UD, table_ID, targets_U, seen),
        "argsort": lambda: by_sorting(states_UD[part], table_ID, targets_U[part], part_seen),
    }
    expected = naive(states_UD, table_ID, targets_U, seen)
    found = rank_targets(FactorQuery.of(states_UD, table_ID), targets_U.numpy(), seen)
    candidates = expected > 0
    apart = float(np.mean(found.ranks[candidates] != expected[candidates]))
    seconds = {name: best(taken) for name, taken in alternate(ways, repeats=arguments.repeats).items()}
    peaks = memory(dataset)

    limit = seconds["forward"] + seconds["product"]
    users, items = len(states_UD), dataset.num_items
    growth = (peaks["ours", 5] - peaks["ours", 1] - peaks["nothing", 5] + peaks["nothing", 1]) * 1e6 / (4 * users)
    row = 4 * items / 1000
    figures = [
        Figure(
            "evaluate, all of it",
            seconds["ours"],
            "s",
            f"< {MOST_SECONDS} s",
            seconds["ours"] < MOST_SECONDS,
            f"{users:,} users, {items:,} items, d {network.dim}, seen removed, top {TOP}",
        ),
        Figure("over forward pass and bare product", seconds["ours"] / limit, "x", note=f"these take {limit:.2f} s"),
        Figure("of it: states", seconds["forward"], "s"),
        Figure("of it: ranking", seconds["ranking"], "s", note=f"bare product {seconds['product']:.2f} s"),
        Figure(
            "whole score matrix and topk, over our ranking",
            seconds["naive"] / seconds["ranking"],
            "x",
            note=f"{seconds['naive']:.2f} s",
        ),
        Figure(
            "whole score matrix and argsort, over our ranking",
            SORTED_PART * seconds["argsort"] / seconds["ranking"],
            "x",
            note=f"{SORTED_PART * seconds['argsort']:.1f} s, from one user in {SORTED_PART}",
        ),
        Figure("peak memory, ours", peaks["ours", 1], "GB", note=f"{peaks['nothing', 1]:.2f} GB before it begins"),
        Figure("peak memory, ours, 5 x the users", peaks["ours", 5], "GB", note=f"{peaks['nothing', 5]:.2f} GB before"),
        Figure("peak memory, whole score matrix", peaks["naive", 1], "GB"),
        Figure(
            "memory per further user",
            growth,
            "kB",
            f"< {row / 10:.1f} kB",
            growth < row / 10,
            f"a tenth of a row of scores, which is {row:.0f} kB",
        ),
    ]
    notes = [
        f"Ranks differ from the naive count's in {apart:.3%} of the users (ties within rounding count against us)."
    ]
    report("evaluation", "Full-catalogue evaluation", figures, notes)


# ---- ways -------------------------------------------------------------------------------------------------------
def inputs(network: SASRecNetwork, dataset: Dataset) -> tuple[torch.Tensor, torch.Tensor, ItemLists]:
    """The state behind each held-out user's history, the targets, and what each user has seen; short ones first."""
    ends = np.asarray(dataset.test)
    starts = np.asarray(dataset.offsets)[dataset.users_of(ends)]
    order = np.argsort(np.minimum(ends - starts, network.max_length), kind="stable")
    ends, starts = ends[order], starts[order]
    states = []
    with torch.inference_mode():
        for first in range(0, len(ends), USERS_AT_ONCE):
            end = ends[first : first + USERS_AT_ONCE, None]
            start = np.maximum(starts[first : first + USERS_AT_ONCE, None], end - network.max_length)
            columns = np.arange((end - start).max())
            items_BL = torch.from_numpy(dataset.items[np.minimum(start + columns, end - 1)].astype(np.int64))
            states.append(last_states(network, SequenceBatch(items_BL, torch.from_numpy((end - start)[:, 0]))))
    offsets = np.concatenate([[0], np.cumsum(ends - starts)])
    flat = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], ends - starts)
    targets_U = torch.from_numpy(dataset.items[ends].astype(np.int64))
    return torch.cat(states), targets_U, ItemLists(offsets, dataset.items[flat])


def bare_product(states_UD: torch.Tensor, table_ID: torch.Tensor) -> None:
    """Every score once, a block at a time, and nothing done with it."""
    rows = max(1, CPU_BLOCK_ELEMENTS // len(table_ID))
    block = torch.empty(rows, len(table_ID))
    with torch.inference_mode():
        for states_BD in states_UD.split(rows):
            product(states_BD, table_ID, out=block[: len(states_BD)])


def naive(states_UD: torch.Tensor, table_ID: torch.Tensor, targets_U: torch.Tensor, seen: ItemLists) -> np.ndarray:
    """All scores at once, seen items masked, the best ones, and ranks; 0 where the target was seen."""
    with torch.inference_mode():
        scores_UI = masked(states_UD, table_ID, seen)
        scores_UI.topk(TOP, dim=1)
        true_U1 = scores_UI.gather(1, targets_U[:, None])
        ranks = (scores_UI > true_U1).sum(1) + 1
        ranks[torch.isneginf(true_U1[:, 0])] = 0
    return ranks.numpy()


def by_sorting(
    states_UD: torch.Tensor, table_ID: torch.Tensor, targets_U: torch.Tensor, seen: ItemLists
) -> torch.Tensor:
    """All scores at once and sorted; the rank is where the target stands."""
    with torch.inference_mode():
        order_UI = masked(states_UD, table_ID, seen).argsort(dim=1, descending=True)
        return (order_UI == targets_U[:, None]).long().argmax(dim=1) + 1


def masked(states_UD: torch.Tensor, table_ID: torch.Tensor, seen: ItemLists) -> torch.Tensor:
    """The matrix of all scores without what was seen."""
    scores_UI = states_UD @ table_ID.T
    users = torch.from_numpy(np.repeat(np.arange(len(states_UD)), np.diff(seen.offsets)))
    scores_UI[users, torch.from_numpy(seen.items.astype(np.int64))] = -torch.inf
    return scores_UI


# ---- memory -----------------------------------------------------------------------------------------------------
def memory(dataset: Dataset) -> dict[tuple[str, int], float]:
    """Peak memory in GB of each way with once and five times the users."""
    peaks = {}
    with tempfile.TemporaryDirectory(prefix="llmd4rec-bench-") as folder:
        for times in (1, 5):
            path = Path(folder) / str(times)
            repeated(dataset, times).save(path)
            for way in ("ours", "naive", "nothing"):
                if (way, times) != ("naive", 5):  # its scores alone would be several gigabytes
                    command = [sys.executable, __file__, "--data", str(path), "--child", way]
                    peaks[way, times] = peak_memory(command)[1]
    return peaks


def repeated(dataset: Dataset, times: int) -> Dataset:
    """The data set with every user `times` over, under other names."""
    steps = np.arange(times)[:, None] * dataset.num_interactions

    def shifted(positions: np.ndarray) -> np.ndarray:
        return (np.asarray(positions) + steps).reshape(-1)

    return dataclasses.replace(
        dataset,
        user_ids=pl.Series("user_id", np.arange(times * dataset.num_users)).cast(pl.String),
        offsets=np.concatenate([[0], shifted(dataset.offsets[1:])]),
        items=np.tile(dataset.items, times),
        train_end=shifted(dataset.train_end),
        valid=shifted(dataset.valid),
        test=shifted(dataset.test),
        times=None,
        path=None,
    )


def child(way: str, network: SASRecNetwork, dataset: Dataset) -> None:
    """What a process does whose memory is measured."""
    if way == "ours":
        Evaluator(cutoffs=(TOP,)).evaluate(network, dataset)
    elif way == "naive":
        states_UD, targets_U, seen = inputs(network, dataset)
        naive(states_UD, network.item_table().detach(), targets_U, seen)


if __name__ == "__main__":
    main()
