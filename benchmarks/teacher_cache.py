"""Caching a teacher: `write_cache` against the forward pass that it cannot do without.

`write_cache` reads every training position once and writes its state, and its true item's rank in the whole catalogue.
Against it, over the same batches:

    states       the forward pass alone
    product      the forward pass and the bare product of its states with the item table: no rank is counted
    ranks        the forward pass and the ranks, as write_cache counts them; what that takes beyond is writing
    prefixes     a pass for each position, its history as a sample of its own, as E4SRec and many trainers of sequential
                 models read them; on a part of the positions, scaled up

How often a position is read is counted, not timed. Cached are SASRec with its default settings and, where its files are
on this machine, the language model (the default one's first two layers), the latter for a part of the users.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from harness import Figure, alternate, beauty, best, report

from llmd4rec.data.batching import SequenceBatch, TrainingWindows
from llmd4rec.data.dataset import Dataset
from llmd4rec.distillation.cache import _rivals, _true_ranks, write_cache
from llmd4rec.errors import LLMD4RecError
from llmd4rec.losses.scores import BLOCK_ELEMENTS
from llmd4rec.matmul import product
from llmd4rec.models.base import SequenceEncoder, last_states
from llmd4rec.models.llm.assemble import build_llm
from llmd4rec.models.llm.settings import LLM
from llmd4rec.models.sequential.sasrec import SASRec

BATCH_ITEMS = 4096


def main() -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a prepared data set (default: a synthetic log of Beauty's shape)")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each way, after one to warm up")
    parser.add_argument("--llm-users", type=int, default=600, help="users that the language model is cached for")
    arguments = parser.parse_args()

    dataset = beauty(arguments.data)
    figures = measure("SASRec", SASRec().build(dataset.num_items, seed=0), dataset, arguments.repeats, one_in=10)
    notes = []
    os.environ.setdefault("LLMD4REC_OFFLINE", "1")
    try:
        settings = LLM(layers=2)
        network, used = build_llm(settings, dataset.num_items, 64, None, 0, torch.device("cpu"))
    except LLMD4RecError as error:
        notes.append(f"The language model was not measured: {error.what}.")
    else:
        few = first_users(dataset, arguments.llm_users)
        figures += measure("LLM", network, few, max(1, arguments.repeats - 1), one_in=20)
        notes.append(f"Language model: {used['origin']}; {used['layers']} layers, {few.num_users:,} users.")
    report("teacher_cache", "Caching a teacher", figures, notes)


def measure(name: str, model: SequenceEncoder, dataset: Dataset, repeats: int, *, one_in: int) -> list[Figure]:
    """The figures of one model."""
    model.eval()
    walk = Walk(model, dataset)
    with tempfile.TemporaryDirectory(prefix="llmd4rec-bench-") as folder:
        teacher = Path(folder) / "teacher"
        calls = counted(model, lambda: write_cache(model, dataset, teacher, label=name, batch_items=BATCH_ITEMS))
        size = sum(file.stat().st_size for file in teacher.iterdir()) / 1e6
        ways: dict[str, Callable[[], object]] = {
            "cache": lambda: write_cache(model, dataset, teacher, label=name, batch_items=BATCH_ITEMS),
            "states": walk.states,
            "product": walk.products,
            "ranks": walk.ranks,
            "prefixes": lambda: walk.prefixes(one_in),
        }
        seconds = {way: best(taken) for way, taken in alternate(ways, repeats=repeats).items()}
    passes = calls / walk.windows_read
    positions = walk.windows.num_positions
    ranks, writing = seconds["ranks"] - seconds["states"], seconds["cache"] - seconds["ranks"]
    return [
        Figure(
            f"{name}: passes over the training positions", passes, "x", "at most 1", passes <= 1, "counted, not timed"
        ),
        Figure(
            f"{name}: cache",
            seconds["cache"],
            "s",
            note=f"{positions:,} positions, {dataset.num_items:,} items; {size:.0f} MB",
        ),
        Figure(
            f"{name}: cache over forward pass and bare product",
            seconds["cache"] / seconds["product"],
            "x",
            note=f"these take {seconds['product']:.2f} s",
        ),
        Figure(f"{name}: of it the forward pass", 100 * seconds["states"] / seconds["cache"], "%"),
        Figure(f"{name}: of it the ranks", 100 * ranks / seconds["cache"], "%", note="product, comparison, count"),
        Figure(f"{name}: of it writing", 100 * writing / seconds["cache"], "%", note="what remains; may round to 0"),
        Figure(
            f"{name}: a pass per position, over the forward pass",
            one_in * seconds["prefixes"] / seconds["states"],
            "x",
            note=f"{one_in * seconds['prefixes']:.1f} s, from one position in {one_in}",
        ),
    ]


class Walk:
    """The ways that are compared with `write_cache`, over the batches that it makes."""

    def __init__(self, model: SequenceEncoder, dataset: Dataset) -> None:
        self.model, self.dataset = model, dataset
        self.windows = TrainingWindows(dataset, model.max_length)
        self.windows_read = len(self.windows)
        with torch.inference_mode():
            self.table_ID = model.item_table().float().contiguous()

    def states(self, then: Callable[[torch.Tensor, torch.Tensor], object] = lambda *_: None) -> None:
        """The forward pass, and what is to follow on each batch's states and true items."""
        with torch.inference_mode():
            for chosen in self.windows.in_order(BATCH_ITEMS):
                batch = self.windows.batch(chosen)
                states_ND = batch.trained(self.model.states(batch)).float()
                then(states_ND, batch.target_N)

    def products(self) -> None:
        """The forward pass and every score once, nothing done with it."""
        rows = max(1, BLOCK_ELEMENTS // len(self.table_ID))
        block = torch.empty(rows, len(self.table_ID))

        def multiply(states_ND: torch.Tensor, _: torch.Tensor) -> None:
            for states_nD in states_ND.split(rows):
                product(states_nD, self.table_ID, out=block[: len(states_nD)])

        self.states(multiply)

    def ranks(self) -> None:
        """The forward pass and the ranks."""
        rivals_DI, stands_for, _ = _rivals(self.table_ID, None)
        self.states(lambda states_ND, target_N: _true_ranks(states_ND, self.table_ID, rivals_DI, stands_for, target_N))

    def prefixes(self, one_in: int) -> None:
        """One of so many positions, each as the end of a sample of its own, samples of similar length together."""
        dataset, longest = self.dataset, self.model.max_length
        starts, ends = np.asarray(dataset.offsets[:-1]), np.asarray(dataset.train_end)
        inputs = np.maximum(ends - starts - 1, 0)
        user = np.repeat(np.arange(len(starts)), inputs)
        nth = np.arange(len(user)) - np.repeat(np.cumsum(inputs) - inputs, inputs)
        last = (starts[user] + nth)[::one_in]
        first = np.maximum(starts[user][::one_in], last + 1 - longest)
        order = np.argsort(last - first, kind="stable")
        length = (last + 1 - first)[order]
        with torch.inference_mode():
            at = 0
            while at < len(order):
                take = order[at : at + max(1, BATCH_ITEMS // int(length[min(at + 64, len(order) - 1)]))]
                at += len(take)
                columns = np.arange((last[take] + 1 - first[take]).max())
                flat = np.minimum(first[take, None] + columns, last[take, None])
                items_BL = torch.from_numpy(dataset.items[flat].astype(np.int64))
                last_states(self.model, SequenceBatch(items_BL, torch.from_numpy(last[take] + 1 - first[take])))


def counted(model: SequenceEncoder, run: Callable[[], object]) -> int:
    """How many windows `run` gives to the model."""
    original, windows = model.states, 0

    def counting(batch: SequenceBatch) -> torch.Tensor:
        nonlocal windows
        windows += len(batch.items_BL)
        return original(batch)

    model.states = counting  # type: ignore[method-assign]
    try:
        run()
    finally:
        del model.states  # the class's own again
    return windows


def first_users(dataset: Dataset, users: int) -> Dataset:
    """The data set without all users but the first so many."""
    users = min(users, dataset.num_users)
    interactions = int(dataset.offsets[users])
    return dataclasses.replace(
        dataset,
        user_ids=dataset.user_ids.head(users),
        offsets=np.asarray(dataset.offsets[: users + 1]),
        items=np.asarray(dataset.items[:interactions]),
        train_end=np.asarray(dataset.train_end[:users]),
        valid=dataset.valid[dataset.valid < interactions],
        test=dataset.test[dataset.test < interactions],
        times=None,
        path=None,
    )


if __name__ == "__main__":
    main()
