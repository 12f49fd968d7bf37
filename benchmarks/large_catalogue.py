"""A catalogue of a million items: a training step's seconds and memory, what sampling costs, and a run from end to end.

A step is what `fit` does: states of 4,096 positions of SASRec of identifiers (`item_features: id`), sampled softmax
with log-Q over the batch's true items and 16,384 drawn ones, gradients, fused AdamW over every parameter. Against it,
in turns:

    plain autograd   the same candidates and correction, cross-entropy and gradients by PyTorch, AdamW as it comes
    rows only        the machine's limit: the same step on a table of only the rows that the step reads, copied out of
                     table and moments and back. (It is a limit, not the same training: AdamW also moves rows that
                     have no gradient.)
    full softmax     the exact loss over every item, block by block, on a part of the positions, scaled up

Error of sampling: loss and gradient of the states against the exact ones, on positions of a table scaled so that the
scores deviate as a trained model's do. Sequences are drawn at random, since neither time nor memory knows signal.

End to end is a process of its own that trains for a few steps, validates, writes checkpoints and caches a teacher.

`--accuracy` asks instead what sampling costs in accuracy: the same SASRec trained on the same data with the full
softmax and with fewer and fewer candidates, by validation NDCG@10. That needs a data set with signal: `--data` or
LLMD4REC_BENCH_DATA. So many candidates are a larger share of a small catalogue than of a large one.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from harness import Figure, alternate, beauty, best, peak_memory, report
from torch.nn import functional as F

from llmd4rec.data.batching import TrainingBatch, TrainingWindows
from llmd4rec.data.dataset import Dataset
from llmd4rec.distillation.cache import write_cache
from llmd4rec.evaluation.validation import validation_value
from llmd4rec.losses.objective import RankingObjective
from llmd4rec.losses.sampling import draw_candidates
from llmd4rec.models.sequential.sasrec import SASRec, SASRecNetwork
from llmd4rec.training.fit import fit
from llmd4rec.training.loggers.json_lines import JSONLines
from llmd4rec.training.runtime import keep_freed_memory
from llmd4rec.training.settings import Training

ITEMS, USERS, LENGTH = 1_000_000, 8_000, 20
BATCH = 4096
#: Positions of the exact softmax, whose time is scaled up.
FULL_POSITIONS = 256
SCORE_DEVIATION = 2.5
MOST_GB = 4
SAMPLED = Training(full_softmax_items=1, batch=BATCH)
EXACT = Training(full_softmax_items=10**9, batch=BATCH)
VALIDATED = 1000


def main() -> None:
    """Measures and reports; with --child, only does what is to be measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a prepared data set with signal, for --accuracy")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each way, after one to warm up")
    parser.add_argument("--accuracy", action="store_true", help="train with the full softmax and with candidates")
    parser.add_argument("--epochs", type=int, default=12, help="of each training of --accuracy")
    parser.add_argument("--child", choices=("step", "run", "nothing"), help=argparse.SUPPRESS)
    parser.add_argument("--times", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.accuracy:
        dataset = beauty(arguments.data)
        if dataset.path is None:
            parser.error("a synthetic log has nothing to learn: give a prepared data set with --data")
        accuracy(dataset, arguments.epochs)
    elif arguments.child:
        arguments.times.write_text(json.dumps(child(arguments.child)), encoding="utf-8")
    else:
        measure(arguments.repeats)


def measure(repeats: int) -> None:
    """Times, memory and errors of one step, and the run from end to end."""
    with tempfile.TemporaryDirectory(prefix="llmd4rec-bench-") as name:
        times = Path(name) / "times.json"
        child = [sys.executable, __file__, "--times", str(times), "--child"]
        peaks = {way: peak_memory([*child, way])[1] for way in ("nothing", "step", "run")}
        run: dict[str, float] = json.loads(times.read_text(encoding="utf-8"))

    dataset = random_dataset()
    batch, part = some_batch(dataset, BATCH), some_batch(dataset, FULL_POSITIONS)
    network = SASRec().build(ITEMS, seed=0).train()
    stepper = Stepper(network)
    ways: dict[str, Callable[[], object]] = {
        "ours": lambda: stepper.step(batch, RankingObjective(SAMPLED)),
        "plain autograd": lambda: stepper.plain_step(batch),
        "rows only": lambda: stepper.rows_only_step(batch),
        "full softmax": lambda: stepper.step(part, RankingObjective(EXACT)),
    }
    seconds = {name: best(taken) for name, taken in alternate(ways, repeats=repeats).items()}
    parts = stepper.split(batch)
    scale = len(batch.target_N) / len(part.target_N)
    fixed = parts["optimiser"]
    full = fixed + (seconds["full softmax"] - fixed) * scale
    errors = sampling_errors(network, part)

    ours = seconds["ours"]
    figures = [
        Figure(
            "a step, sampled",
            ours,
            "s",
            note=f"{ITEMS:,} items, d {network.dim}, {len(batch.target_N):,} positions, "
            f"{SAMPLED.num_candidates:,} drawn",
        ),
        *(Figure(f"of it: {name}", taken, "s") for name, taken in parts.items()),
        Figure(
            "peak memory of steps",
            peaks["step"],
            "GB",
            f"< {MOST_GB} GB",
            peaks["step"] < MOST_GB,
            f"{peaks['nothing']:.2f} GB with the data alone; table and its moments are {12 * ITEMS * 64 / 1e9:.2f} GB",
        ),
        Figure("plain autograd, over ours", seconds["plain autograd"] / ours, "x", note="the same candidates"),
        Figure(
            "over a step of the rows it reads", ours / seconds["rows only"], "x", note=f"{seconds['rows only']:.2f} s"
        ),
        Figure(
            "exact full softmax, over ours",
            full / ours,
            "x",
            note=f"{full:.0f} s, scaled up from {len(part.target_N)} positions",
        ),
        *errors,
        Figure(
            "peak memory, end to end",
            peaks["run"],
            "GB",
            f"< {MOST_GB} GB",
            peaks["run"] < MOST_GB,
            f"train {SAMPLED.min_steps} steps, validate, checkpoints, cache",
        ),
        Figure("validation, per 1,000 users", run["validate"] * 1000 / VALIDATED, "s", note="exact ranks"),
        Figure(
            "caching a teacher, per 100,000 positions",
            run["cache"] * 100_000 / run["positions"],
            "s",
            note=f"ranks estimated among {SAMPLED.num_candidates:,} items",
        ),
    ]
    notes = [f"End to end: {', '.join(f'{name} {run[name]:.1f} s' for name in ('train', 'validate', 'cache'))}."]
    report("large_catalogue", f"A catalogue of {ITEMS:,} items", figures, notes)


# ---- data -------------------------------------------------------------------------------------------------------
def random_dataset() -> Dataset:
    """Sequences of items drawn at random, a million in the catalogue."""
    rng = np.random.default_rng(0)
    offsets = np.arange(USERS + 1, dtype=np.int64) * LENGTH
    return Dataset(
        user_ids=pl.Series("user_id", np.arange(USERS)).cast(pl.String),
        catalogue=pl.DataFrame({"item_id": pl.Series(np.arange(ITEMS)).cast(pl.String)}),
        offsets=offsets,
        items=(ITEMS * rng.random(USERS * LENGTH) ** 2).astype(np.int32),
        train_end=offsets[1:] - 2,
        valid=offsets[1:] - 2,
        test=offsets[1:] - 1,
    )


def some_batch(dataset: Dataset, positions: int) -> TrainingBatch:
    """A batch of so many positions, about, as an epoch has them."""
    windows = TrainingWindows(dataset, SASRec().max_length)
    return windows.batch(windows.shuffled(positions, np.random.default_rng(0))[0])


# ---- steps ------------------------------------------------------------------------------------------------------
class Stepper:
    """One model, and a training step on it in several ways; every way keeps moments of its own."""

    def __init__(self, network: SASRecNetwork) -> None:
        keep_freed_memory()  # as fit does
        self.network = network
        self.fused = torch.optim.AdamW(network.parameters(), fused=True)
        self.seed = 0
        self._plain: torch.optim.Optimizer | None = None

    def step(self, batch: TrainingBatch, objective: RankingObjective) -> None:
        """As `fit` does it."""
        self.seed += 1
        states_ND = batch.trained(self.network.states(batch))
        parts = objective(states_ND, self.network, batch, self.seed)
        self.fused.zero_grad(set_to_none=True)
        parts.loss.backward()
        self.fused.step()

    def split(self, batch: TrainingBatch) -> dict[str, float]:
        """Seconds of a step's parts, the best of three."""
        best_of = {"states and loss": np.inf, "gradients": np.inf, "optimiser": np.inf}
        for _ in range(3):
            self.seed += 1
            marks = [time.perf_counter()]
            states_ND = batch.trained(self.network.states(batch))
            parts = RankingObjective(SAMPLED)(states_ND, self.network, batch, self.seed)
            marks.append(time.perf_counter())
            self.fused.zero_grad(set_to_none=True)
            parts.loss.backward()
            marks.append(time.perf_counter())
            self.fused.step()
            marks.append(time.perf_counter())
            best_of = {name: min(old, new) for (name, old), new in zip(best_of.items(), np.diff(marks), strict=True)}
        return {name: float(taken) for name, taken in best_of.items()}

    def plain_step(self, batch: TrainingBatch) -> None:
        """The same loss, written down in PyTorch."""
        self._plain = self._plain or torch.optim.AdamW(self.network.parameters())
        self.seed += 1
        generator = torch.Generator().manual_seed(self.seed)
        candidate_C, target_N, bias_C = draw_candidates(batch.target_N, ITEMS, SAMPLED.num_candidates, generator)
        states_ND = batch.trained(self.network.states(batch))
        loss = F.cross_entropy(states_ND @ self.network.item_table(candidate_C).T + bias_C, target_N)
        self._plain.zero_grad()
        loss.backward()
        self._plain.step()

    def rows_only_step(self, batch: TrainingBatch) -> None:
        """The step on the rows it reads, with their moments copied out and back."""
        self.seed += 1
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randint(ITEMS, (SAMPLED.num_candidates,), generator=generator)
        rows, place = torch.unique(torch.cat([batch.items_BL.view(-1), batch.target_N, drawn]), return_inverse=True)
        read, true = place[: batch.items_BL.numel()].view_as(batch.items_BL), place[batch.items_BL.numel() :]
        small = self._small(len(rows))
        state = self.fused.state[self.network.items.weight]
        whole = [self.network.items.weight.data, state["exp_avg"], state["exp_avg_sq"]]
        part = [tensor[rows] for tensor in whole]
        optimizer = torch.optim.AdamW(small.parameters(), fused=True)
        small.items.weight.data = part[0]
        fewer = replace(batch, items_BL=read, target_N=true[: len(batch.target_N)])
        states_ND = fewer.trained(small.states(fewer))
        RankingObjective(EXACT)(states_ND, small, fewer, self.seed).loss.backward()
        optimizer.step()
        moments = optimizer.state[small.items.weight]
        for tensor, new in zip(whole, (part[0], moments["exp_avg"], moments["exp_avg_sq"]), strict=True):
            tensor[rows] = new

    def _small(self, items: int) -> SASRecNetwork:
        with torch.device("meta"):
            small = SASRecNetwork(items, SASRec())
        state = {name: tensor for name, tensor in self.network.state_dict().items() if name != "items.weight"}
        small.load_state_dict(state, strict=False, assign=True)
        small.items.weight = torch.nn.Parameter(torch.empty(items, self.network.dim))
        return small.train()


def sampling_errors(network: SASRecNetwork, batch: TrainingBatch, draws: int = 4) -> list[Figure]:
    """How far the sampled loss and its gradient are from the exact ones."""
    network.eval()
    with torch.no_grad():
        states_ND = batch.trained(network.states(batch))
        scores = states_ND[:64] @ network.items.weight[: ITEMS // 100].T
        network.items.weight.mul_(SCORE_DEVIATION / float(scores.std()))

    def of(settings: Training, seed: int) -> tuple[float, torch.Tensor]:
        leaf = states_ND.detach().clone().requires_grad_()
        loss = RankingObjective(settings)(leaf, network, batch, seed).loss
        (gradient,) = torch.autograd.grad(loss, leaf)
        return float(loss.detach()), gradient

    exact, gradient = of(EXACT, 0)
    figures = []
    for candidates in (1024, 4096, SAMPLED.num_candidates):
        settings = SAMPLED.model_copy(update={"num_candidates": candidates})
        drawn = [of(settings, seed) for seed in range(draws)]
        loss = 100 * float(np.mean([abs(value - exact) for value, _ in drawn])) / exact
        apart = 100 * float(np.mean([float((g - gradient).norm() / gradient.norm()) for _, g in drawn]))
        figures.append(
            Figure(
                f"error of the loss, {candidates:,} drawn",
                loss,
                "%",
                note=f"of {exact:.2f} nats; of the states' gradient {apart:.0f}%; mean of {draws} draws",
            )
        )
    return figures


# ---- processes of their own -------------------------------------------------------------------------------------
def child(way: str) -> dict[str, float]:
    """What a process does whose memory is measured; seconds of its parts."""
    dataset = random_dataset()
    if way == "nothing":
        return {}
    if way == "step":
        stepper = Stepper(SASRec().build(ITEMS, seed=0).train())
        batch = some_batch(dataset, BATCH)
        for _ in range(3):
            stepper.step(batch, RankingObjective(SAMPLED))
        return {}
    settings = SAMPLED.model_copy(
        update={"epochs": 1, "epoch_positions": SAMPLED.min_steps * BATCH, "checkpoint_seconds": 8.0}
    )
    network = SASRec().build(ITEMS, seed=0)
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="llmd4rec-bench-") as name:
        folder = Path(name)
        started = time.perf_counter()

        def validate(model: Any) -> float:
            began = time.perf_counter()
            value = validation_value(model, dataset, max_users=VALIDATED)
            seconds["validate"] = time.perf_counter() - began
            return value

        fit(
            network,
            dataset,
            settings,
            folder / "fit",
            stage="undistilled",
            seed=0,
            validate=validate,
            callbacks=[JSONLines()],
            log_folder=folder,
            objective=RankingObjective(settings),
        )
        seconds["train"] = time.perf_counter() - started
        started = time.perf_counter()
        write_cache(network, dataset, folder / "teacher", label="SASRec", rank_items=settings.num_candidates)
        seconds["cache"] = time.perf_counter() - started
    return {**seconds, "positions": TrainingWindows(dataset, network.max_length).num_positions}


# ---- accuracy ---------------------------------------------------------------------------------------------------
def accuracy(dataset: Dataset, epochs: int) -> None:
    """Validation NDCG@10 of the same SASRec with the full softmax and with candidates."""
    ways = {"full softmax": 10**9, "16,384 drawn": 16_384, "4,096 drawn": 4096, "1,024 drawn": 1024, "256 drawn": 256}
    found = {name: train(dataset, epochs, candidates) for name, candidates in ways.items()}
    full = found["full softmax"][0]
    figures = [
        Figure(f"NDCG@10, {name}", value, "", note=f"{value / full - 1:+.1%}; best in epoch {epoch}, {seconds:.0f} s")
        for name, (value, epoch, seconds) in found.items()
    ]
    note = f"{dataset.num_items:,} items, {epochs} epochs each with the same seed; batches of 256 positions."
    report("large_catalogue_accuracy", "What drawn candidates cost in accuracy", figures, [note])


def train(dataset: Dataset, epochs: int, candidates: int) -> tuple[float, int, float]:
    """The best validation NDCG@10, its epoch and the seconds of one training; the full softmax above any catalogue."""
    exact = candidates >= 10**9
    settings = Training(
        epochs=epochs,
        patience=epochs,
        full_softmax_items=10**9 if exact else 1,
        num_candidates=1 if exact else candidates,
        checkpoint_seconds=3600,
    )
    with tempfile.TemporaryDirectory(prefix="llmd4rec-bench-") as name:
        fitted = fit(
            SASRec().build(dataset.num_items, seed=0),
            dataset,
            settings,
            Path(name) / "fit",
            stage="undistilled",
            seed=0,
            validate=lambda model: validation_value(model, dataset),
            callbacks=[JSONLines()],
            log_folder=Path(name),
            objective=RankingObjective(settings),
        )
    return fitted.best_value, fitted.best_epoch, fitted.seconds


if __name__ == "__main__":
    main()
