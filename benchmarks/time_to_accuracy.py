"""Seconds of training until a validation NDCG@10 is reached: our SASRec and each peer, in turns.

    python benchmarks/time_to_accuracy.py --data FOLDER --minutes 60 [--configuration published | ours]
        [--only ours recbole rectools] [--threads N]

All train on the training part of the same leave-one-out split, from identifiers. Peers have what their authors have
published as their best (`peers/peer.py`, PUBLISHED), or our network with the dropout and learning rate of the paper of
SASRec and batches as large as ours; they are not tuned beyond that. All are judged by our evaluator: full ranking of
every validation target, seen items filtered. Only training counts as time, and only one trains at a time: after each
of our epochs every peer trains for as long; when we are done, they go on in turns of a minute until their time is over.

The curve of each is written to `out/time_to_accuracy_<configuration>_<contender>.json` after every point, so that they
can be made in separate sittings too; the ratios are made from the curves that are there. Every point carries the
machine's rate of a matrix product at that moment, so that a curve made on a slowed machine can be told.

The ratio at a level of NDCG@10 is (peer's seconds) / (our seconds), each at the first point that reaches it. The level
is the best that both reach; where a peer's budget ends below our best, the ratio to our best is at least budget / ours.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import OUT, Figure, beauty, report
from peers.peer import PEERS, PUBLISHED, Network, Peer

from llmd4rec.data.batching import TrainingWindows
from llmd4rec.data.dataset import Dataset
from llmd4rec.distillation.settings import ModelTraining
from llmd4rec.evaluation.metrics import NDCG, TargetRanks
from llmd4rec.evaluation.ranking import ItemLists, rank_targets
from llmd4rec.evaluation.validation import validation_value
from llmd4rec.losses.objective import RankingObjective
from llmd4rec.models.base import SequenceEncoder
from llmd4rec.models.sequential.sasrec import SASRec
from llmd4rec.scoring.factors import FactorQuery
from llmd4rec.training.fit import fit
from llmd4rec.training.loggers.json_lines import JSONLines

CONTENDERS = ("ours", *PEERS)
#: Seconds of training between two points of a peer's curve.
EVERY = 60.0
TITLES = {"published": "peers as their authors publish them", "ours": "all with our network"}
HOW = {
    "published": "Peers have what their authors have published as their best: see PUBLISHED in peers/peer.py.",
    "ours": "Peers have our network and batch, and dropout and rate of SASRec's paper: they are not tuned for it.",
}


class BudgetSpent(Exception):
    """The contender's minutes are over."""


class Curve:
    """Points (training seconds, NDCG@10) of one contender, written after each."""

    def __init__(self, name: str, configuration: str, minutes: float, data: str) -> None:
        self.path, self.budget = path_of(name, configuration), 60 * minutes
        self.record: dict[str, Any] = {"contender": name, "configuration": configuration, "data": data, "points": []}

    def add(self, seconds: float, value: float) -> None:
        """Keeps one point; raises :class:`BudgetSpent` behind the last."""
        self.record["points"].append({"seconds": seconds, "ndcg@10": value, "gflops": machine_rate() / 1e9})
        OUT.mkdir(exist_ok=True)
        self.path.write_text(json.dumps(self.record, indent=1) + "\n", encoding="utf-8")
        print(f"  {self.record['contender']}: {seconds:.0f} s, NDCG@10 {value:.4f}", flush=True)
        if seconds >= self.budget:
            raise BudgetSpent


class Training:
    """A peer's training, a part at a time, with a point every so many seconds of it."""

    def __init__(self, peer: Peer, dataset: Dataset, curve: Curve, every: float) -> None:
        self.peer, self.dataset, self.curve, self.every = peer, dataset, curve, every
        self.seconds, self.judged, self.is_over = 0.0, 0.0, False

    def go_on(self, seconds: float) -> None:
        """Trains for so long, if there is time left."""
        if self.is_over:
            return
        self.seconds += self.peer.train(seconds)["seconds"]
        if self.seconds - self.judged < self.every and self.seconds < self.curve.budget:
            return
        self.judged = self.seconds
        try:
            self.curve.add(self.seconds, peer_ndcg(self.dataset, *self.peer.states()))
        except BudgetSpent:
            self.is_over = True


def path_of(name: str, configuration: str) -> Path:
    """Where a curve is kept. Ours is the same beside each configuration of the peers, but is trained beside them."""
    return OUT / f"time_to_accuracy_{configuration}_{name}.json"


def main() -> None:
    """Trains who was asked for, then compares the curves there are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a prepared data set (default: the one of LLMD4REC_BENCH_DATA)")
    parser.add_argument("--minutes", type=float, default=60, help="training time of each peer, and at most of ours")
    parser.add_argument("--every", type=float, default=EVERY, help="seconds between two points of a peer")
    parser.add_argument("--only", nargs="*", default=CONTENDERS, choices=CONTENDERS, help="whom to train")
    parser.add_argument("--configuration", choices=("published", "ours"), default="published", help="of the peers")
    parser.add_argument("--threads", type=int, help="of each contender (default: as each library chooses)")
    arguments = parser.parse_args()
    dataset = beauty(arguments.data)
    if dataset.path is None:
        parser.error("a synthetic log has nothing to learn: give a prepared data set with --data")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
        os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # of the peers' processes
    configuration = arguments.configuration
    with ExitStack() as stack:
        trainings = [
            Training(
                stack.enter_context(Peer(name, dataset, network_of(name, configuration, dataset))),
                dataset,
                Curve(name, configuration, arguments.minutes, dataset.fingerprint),
                arguments.every,
            )
            for name in PEERS
            if name in arguments.only
        ]
        if "ours" in arguments.only:
            curve = Curve("ours", configuration, arguments.minutes, dataset.fingerprint)
            train_ours(dataset, curve, lambda seconds: take_turns(trainings, seconds))
        while not all(training.is_over for training in trainings):
            take_turns(trainings, arguments.every)
    compare(dataset, configuration)


def take_turns(trainings: Sequence[Training], seconds: float) -> None:
    """Each of the peers trains for so long, one after another."""
    for training in trainings:
        training.go_on(seconds)


def network_of(name: str, configuration: str, dataset: Dataset) -> Network:
    """What a peer trains."""
    if configuration == "published":
        return PUBLISHED[name]
    windows, batch = TrainingWindows(dataset, SASRec().max_length), ModelTraining().batch
    return Network(batch, round(batch * len(windows) / windows.num_positions))


def train_ours(dataset: Dataset, curve: Curve, between: Callable[[float], None]) -> None:
    """Our training with its default settings and early stopping, a point per epoch.

    Args:
        between: called after each epoch with its seconds, while no time counts as ours.
    """
    settings = ModelTraining()
    trained, since = 0.0, time.perf_counter()

    def validate(model: SequenceEncoder) -> float:
        nonlocal trained, since
        epoch = time.perf_counter() - since
        trained += epoch
        value = validation_value(model, dataset)
        curve.add(trained, value)
        between(epoch)
        since = time.perf_counter()
        return value

    with tempfile.TemporaryDirectory() as folder, suppress(BudgetSpent):
        fit(
            SASRec().build(dataset.num_items, seed=0),
            dataset,
            settings,
            Path(folder),
            stage="time-to-accuracy",
            seed=0,
            validate=validate,
            callbacks=[JSONLines()],
            log_folder=Path(folder),
            objective=RankingObjective(settings),
        )


def peer_ndcg(dataset: Dataset, states_UD: np.ndarray, table_ID: np.ndarray) -> float:
    """Validation NDCG@10 of states behind every user's training part: all items ranked, seen ones filtered."""
    positions = np.asarray(dataset.valid)
    users = dataset.users_of(positions)
    assert np.array_equal(positions, dataset.train_end[users])  # leave-one-out: the history is the training part
    starts = dataset.offsets[users]
    seen = [np.asarray(dataset.items[start:end]) for start, end in zip(starts, positions, strict=True)]
    offsets = np.concatenate([[0], np.cumsum(positions - starts)])
    targets = dataset.items[positions].astype(np.int64)
    states, table = torch.from_numpy(states_UD[users]), torch.from_numpy(table_ID)
    ranking = rank_targets(FactorQuery.of(states, table), targets, ItemLists(offsets, np.concatenate(seen)))
    return float(NDCG(10).per_user(TargetRanks.of_one(ranking.ranks)).mean())


def compare(dataset: Dataset, configuration: str) -> None:
    """Reports the ratios of the curves made on this data set with a configuration of the peers."""
    curves = {}
    for name in CONTENDERS:
        path = path_of(name, configuration)
        record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if record.get("data") == dataset.fingerprint:
            curves[name] = record["points"]
    figures = []
    for name, points in curves.items():
        top = max(points, key=lambda point: point["ndcg@10"])
        rates = [point["gflops"] for point in points]
        figures.append(
            Figure(
                f"{PEERS.get(name, name)}: best NDCG@10",
                top["ndcg@10"],
                "",
                note=f"after {top['seconds']:.0f} of {points[-1]['seconds']:.0f} s of training; machine at "
                f"{min(rates):.0f} to {max(rates):.0f} GFLOP/s",
            )
        )
    for name in PEERS:
        if "ours" in curves and name in curves:
            figures += ratios(name, curves["ours"], curves[name])
    notes = ["One seed each; training seconds only. See the docstring of time_to_accuracy.py.", HOW[configuration]]
    name = {"published": "time_to_accuracy", "ours": "time_to_accuracy_same_network"}[configuration]
    report(name, f"Training time to equal validation NDCG@10, {TITLES[configuration]}", figures, notes)


def ratios(name: str, ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> list[Figure]:
    """The peer's seconds over ours, at the best level that both reach, and as a bound at our best."""
    level = min(max(point["ndcg@10"] for point in points) for points in (ours, theirs))
    equal = first(theirs, level) / first(ours, level)
    figures = [Figure(f"{PEERS[name]} / ours, to NDCG@10 {level:.4f}", equal, "x", "≥ 15", equal >= 15)]
    best = max(point["ndcg@10"] for point in ours)
    if best > level:
        bound = theirs[-1]["seconds"] / first(ours, best)
        note = "at least: it had not got there when its time was over"
        figures.append(Figure(f"{PEERS[name]} / ours, to our best {best:.4f}", bound, "x", note=note))
    return figures


def first(points: list[dict[str, float]], level: float) -> float:
    """Training seconds at the first point that reaches the level."""
    return next(point["seconds"] for point in points if point["ndcg@10"] >= level)


def machine_rate() -> float:
    """Operations per second of a matrix product, the best of five."""
    one = torch.ones(1024, 1024)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        torch.mm(one, one)
        seconds.append(time.perf_counter() - started)
    return 2.0 * 1024**3 / min(seconds)


if __name__ == "__main__":
    main()
