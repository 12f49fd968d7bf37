"""One training epoch of the model over the full softmax: against its arithmetic, its peers, and itself with a teacher.

Ours is `fit` for one epoch of a freshly built SASRec with the default settings, from an opened data set to weights on
disk. A peer trains in its own environment and process with its own trainer and data loader; it takes turns of some
seconds, idle while others run, and its epoch is its number of training positions divided by its best turn's positions
per second. A taught epoch has a cached teacher, the KL over the whole catalogue and rank weights; with "int8" (the
default) the teacher's states and table are rounded to 8 bits, with "float32" they are as cached.

The arithmetic limit is what the epoch's multiplications would take at the machine's best rate (see `ceiling.py`):
6 · P · I · d of the prediction layer; in each of the others 72 · d² per item read (weights) and 12 · d per pair of
an item and one not after it (attention); nothing on padding.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from ceiling import Ceiling
from harness import Figure, alternate, beauty, best, report
from peers.peer import PEERS, Network, Peer

from llmd4rec.data.batching import TrainingWindows
from llmd4rec.data.dataset import Dataset
from llmd4rec.distillation.cache import Precision, TeacherCache, open_cache, write_cache
from llmd4rec.distillation.settings import DistillSettings, ModelTraining
from llmd4rec.losses.int8 import Int8Rows
from llmd4rec.losses.objective import RankingObjective
from llmd4rec.losses.softmax import DistillationTerm
from llmd4rec.models.sequential.sasrec import SASRec
from llmd4rec.training.fit import fit
from llmd4rec.training.loggers.json_lines import JSONLines

#: RecBole's own default of positions per step.
RECBOLE_BATCH = 2048
#: Width and precision of the teachers: the narrow one, the default one, and that without rounding.
TEACHERS: tuple[tuple[int, Precision], ...] = ((64, "int8"), (256, "int8"), (256, "float32"))


def main() -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a prepared data set (default: a synthetic log of Beauty's shape)")
    parser.add_argument("--repeats", type=int, default=2, help="turns of each way, after one to warm up")
    parser.add_argument("--peer-seconds", type=float, default=8, help="length of a peer's turn")
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=PEERS, help="which peers to measure")
    arguments = parser.parse_args()

    dataset = beauty(arguments.data)
    windows = TrainingWindows(dataset, SASRec().max_length)
    ceiling = Ceiling(dataset.num_items, SASRec().dim)
    notes = []
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ways: dict[str, Callable[[], object]] = {"plain": lambda: epoch(dataset, None), "ceiling": ceiling.measure}
        for dim, precision in TEACHERS:
            teacher = teacher_of(dataset, dim, folder / f"teacher-{dim}", precision)
            ways[f"taught by {dim} {precision}"] = lambda teacher=teacher: epoch(dataset, teacher)
        rates: dict[str, list[float]] = {}
        facts = {}
        for label, name, network in contenders(windows, arguments.peers):
            try:
                peer = stack.enter_context(Peer(name, dataset, network))
            except Exception as error:
                notes.append(f"{label} could not be measured: {str(error).strip().splitlines()[-1]}")
                continue
            facts[label], rates[label] = peer.facts, []
            ways[label] = lambda peer=peer, kept=rates[label]: kept.append(pace(peer, arguments.peer_seconds))
        seconds = alternate(ways, repeats=arguments.repeats)

    plain = best(seconds["plain"])
    flops = network_flops(windows) + 6.0 * windows.num_positions * dataset.num_items * SASRec().dim
    rate, how = ceiling.layer()
    figures = [
        Figure("plain epoch", plain, "s", note=f"{windows.num_positions / plain:,.0f} positions/s"),
        Figure(
            "plain epoch / arithmetic limit",
            plain * rate / flops,
            "x",
            "≤ 2",
            plain * rate / flops <= 2,
            f"{flops / 1e12:.2f} TFLOP at {rate / 1e9:.0f} GFLOP/s ({how}) = {flops / rate:.2f} s",
        ),
    ]
    for dim, precision in TEACHERS:
        taught, what = best(seconds[f"taught by {dim} {precision}"]), f"teacher d {dim}, {precision}"
        met = taught <= 1.6 * plain
        figures.append(Figure(f"distilled epoch / plain, {what}", taught / plain, "x", "≤ 1.6", met, f"{taught:.1f} s"))
        if precision == "int8":
            figures.append(Figure(f"rounding to 8 bits, {what}", 1e3 * rounding(dim, dataset.num_items), "millinats"))
    for label, turns in rates.items():
        theirs = facts[label]["positions"] / max(turns)
        measured = arguments.peer_seconds * max(turns) / facts[label]["positions"]
        figures.append(
            Figure(
                f"{label} / plain epoch", theirs / plain, "x", "≥ 30", theirs >= 30 * plain,
                f"{theirs:.0f} s, scaled up from turns over {100 * measured:.1f} % of its epoch; "
                f"{facts[label]['parameters']:,} parameters",
            )
        )  # fmt: skip
    notes += [
        f"{dataset.num_users:,} users, {dataset.num_items:,} items, {windows.num_positions:,} training positions; "
        "d 64, 2 layers, 2 heads, history 50, dropout 0.5; best of the turns.",
        "All train the same next items once per epoch, but count a batch differently: ours in positions (about "
        f"{ModelTraining().batch}), RecBole in pairs of a prefix and its next item, each a padded sequence of its own, "
        "RecTools in users, as many as hold about the same number of positions.",
        "RecTools' SASRec has a feed-forward layer of width d where ours and RecBole's have 4 d, and trains the last "
        "50 positions of a user, where the others train all.",
    ]
    report("crm_epoch", "Model: one epoch over the full softmax", figures, notes)


def epoch(dataset: Dataset, teacher: TeacherCache | None) -> None:
    """Our epoch, with or without a teacher."""
    settings = ModelTraining(epochs=1)
    weight = DistillSettings().weight.model
    term = DistillationTerm(weight=weight) if teacher is not None else None
    with tempfile.TemporaryDirectory() as folder:
        fit(
            SASRec().build(dataset.num_items, seed=0),
            dataset,
            settings,
            Path(folder),
            stage="epoch",
            seed=0,
            validate=lambda ranker: 0.0,
            callbacks=[JSONLines()],
            log_folder=Path(folder),
            objective=RankingObjective(settings, teacher, term),
        )


def teacher_of(dataset: Dataset, dim: int, folder: Path, precision: Precision) -> TeacherCache:
    """The cache of a teacher with random weights; its values do not change what a step costs."""
    if folder.exists():
        return open_cache(folder, dataset, torch.device("cpu"), precision)
    ranker = SASRec(dim=dim).build(dataset.num_items, seed=1)
    torch.nn.init.normal_(ranker.items.weight, std=2.5 / dim**0.5, generator=torch.Generator().manual_seed(1))
    write_cache(ranker, dataset, folder, label=f"d {dim}", rank_items=512)  # ranks of any value cost the same
    return open_cache(folder, dataset, torch.device("cpu"), precision)


def rounding(dim: int, items: int) -> float:
    """Nats between distributions and those of the same numbers in 8 bits, where scores deviate by 2.5; mean of 512."""
    generator = torch.Generator().manual_seed(0)
    states_NK = torch.randn(512, dim, generator=generator)
    table_IK = torch.randn(items, dim, generator=generator) * (2.5 / dim**0.5)
    log_q = (states_NK @ table_IK.t()).log_softmax(1)
    scores = Int8Rows.of(states_NK).matmul(Int8Rows.of(table_IK), torch.empty_like(log_q))
    return float((log_q.exp() * (log_q - scores.log_softmax(1))).sum(1).mean())


def contenders(windows: TrainingWindows, names: list[str]) -> list[tuple[str, str, Network]]:
    """Label, peer and network: each with our batch, RecBole also with its own default."""
    batch = ModelTraining().batch
    users = round(batch * len(windows) / windows.num_positions)
    found = [(f"{PEERS[name]}", name, Network(batch, users)) for name in names]
    if "recbole" in names:
        found.append((f"{PEERS['recbole']}, batch {RECBOLE_BATCH}", "recbole", Network(RECBOLE_BATCH, users)))
    return found


def pace(peer: Peer, seconds: float) -> float:
    """Positions per second of one turn."""
    turn = peer.train(seconds)
    return turn["positions"] / turn["seconds"]


def network_flops(windows: TrainingWindows) -> float:
    """Operations of one epoch of the network without its prediction layer, forward and backward."""
    settings = SASRec()
    read = pairs = 0
    for chosen in windows.in_order(1 << 16):
        length = windows.batch(chosen).lengths_B
        read += int(length.sum())
        pairs += int((length * (length + 1) // 2).sum())
    return settings.layers * (72.0 * settings.dim**2 * read + 12.0 * settings.dim * pairs)


if __name__ == "__main__":
    main()
