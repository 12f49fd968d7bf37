"""The memory of a large log: how long counting takes, in how much memory, and what cutting its rows costs.

    python benchmarks/memory.py [--items 100000] [--pairs 3000000] [--kept 1000] [--no-recall]

The log is drawn: users walk within groups of items, popular ones more often, and sometimes anywhere. A pair is an item
that came one to three places after another; each is counted in both directions, with and without age. Recall is the
share of the ten best of all rows, counted in full, that the memory with cut rows finds through its candidates. Seconds
are those of one core, whatever else is running.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time

import numpy as np
from harness import Figure, report

from llmd4rec.scoring.memory.counting import PAIRS_AT_ONCE, Log
from llmd4rec.scoring.memory.item_knn import ItemKNNScorer
from llmd4rec.scoring.memory.recency import RecencyScorer
from llmd4rec.scoring.memory.settings import ItemKNN, Recency, Transitions
from llmd4rec.scoring.memory.transitions import TransitionScorer
from llmd4rec.scoring.row_sums import WeightedRowSum
from llmd4rec.scoring.rows import exact_top

LENGTH, GROUP, QUERIES, DAY = 10, 2000, 200, 86_400


def drawn_log(items: int, events: int, rng: np.random.Generator) -> Log:
    """Histories of ten events each."""
    users = max(1, events // LENGTH)
    groups = max(1, items // GROUP)
    group_U1 = (rng.random((users, 1), dtype=np.float32) ** 2 * groups).astype(np.int32)
    inside_UL = (rng.random((users, LENGTH), dtype=np.float32) ** 3 * GROUP).astype(np.int32)
    chosen_UL = np.minimum(group_U1 * GROUP + inside_UL, items - 1)
    anywhere_UL = rng.random((users, LENGTH), dtype=np.float32) < 0.2
    chosen_UL[anywhere_UL] = (rng.random(int(anywhere_UL.sum())) ** 4 * items).astype(np.int32)
    times_UL = rng.integers(0, 365, (users, 1)) * DAY + np.arange(LENGTH) * DAY // 4
    offsets = np.arange(users + 1) * LENGTH
    return Log(chosen_UL.ravel(), offsets, np.ones(users * LENGTH, bool), times_UL.ravel(), items)


def peak_gb() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--pairs", type=int, default=3_000_000)
    parser.add_argument("--kept", type=int, default=1000, help="followers kept of an item (max_per_row)")
    parser.add_argument("--no-recall", action="store_true", help="do not count in full for comparison")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    per_user = sum(LENGTH - gap for gap in (1, 2, 3))
    log = drawn_log(arguments.items, arguments.pairs * LENGTH // per_user, rng)
    assert log.times is not None
    now, before = int(log.times.max()) + 1, peak_gb()

    def counted(kept: int) -> tuple[TransitionScorer, float, float]:
        started, used = time.perf_counter(), time.process_time()
        scorer = TransitionScorer.count(Transitions(max_per_row=kept), log, now)
        return scorer, time.perf_counter() - started, time.process_time() - used

    transitions, wall, used = counted(arguments.kept)
    peak = peak_gb()
    entries = len(transitions.arrays()[1])
    started = time.process_time()
    recency = RecencyScorer.count(Recency(), log, None)
    seconds_of_recency = time.process_time() - started
    started = time.process_time()
    item_knn = ItemKNNScorer.count(ItemKNN(max_per_row=arguments.kept), log)
    seconds_of_item_knn, peak_of_item_knn = time.process_time() - started, peak_gb()
    together = len(item_knn.arrays()[1])
    memory = WeightedRowSum([transitions, recency], [1.0, 1.2], whole_up_to=0)
    users = rng.integers(0, len(log.offsets) - 1, QUERIES).tolist()
    windows = [log.items[user * LENGTH : user * LENGTH + 6].tolist() for user in users]
    nobody = [np.empty(0, np.int64)] * QUERIES
    asked = windows, [None] * QUERIES, [now] * QUERIES
    memory.prepare(*(each[:1] for each in asked)).candidates(100)  # the most chosen are sought once
    started = time.process_time()
    found = []
    for window in windows:
        (best,) = memory.prepare([window], [None], [now]).candidates(10)
        found.append(best.rows[np.argsort(-best.scores, kind="stable")[:10]])
    milliseconds = 1000 * (time.process_time() - started) / QUERIES
    with_item_knn = WeightedRowSum([transitions, recency, item_knn], [1.0, 1.2, 3.0], whole_up_to=0)
    started = time.process_time()
    for window in windows:
        with_item_knn.prepare([window], [None], [now]).candidates(10)
    milliseconds_of_three = 1000 * (time.process_time() - started) / QUERIES
    started = time.process_time()
    for number in range(10_000):
        transitions.observe(windows[number % QUERIES], number % arguments.items, now + number)
        recency.observe(number % arguments.items, now + number)
    microseconds = 1e6 * (time.process_time() - started) / 10_000

    size = f"{arguments.items:,} items, {arguments.pairs:,} pairs"
    figures = [
        Figure(f"counting transitions, {size}", used, "s", note=f"{wall:.0f} s passed"),
        Figure("peak memory beyond the log", peak - before, "GB", note=f"{PAIRS_AT_ONCE:,} pairs at once"),
        Figure("entries kept", entries / 1e6, "million", note=f"at most {arguments.kept} of an item"),
        Figure("counting recency", seconds_of_recency, "s"),
        Figure(
            "ten best through candidates", milliseconds, "ms", note="transitions and recency, one history at a time"
        ),
        Figure("observing an event", microseconds, "us"),
        Figure("counting item-kNN", seconds_of_item_knn, "s", note=f"{together / 1e6:.1f} million entries"),
        Figure("peak memory beyond the log, with item-kNN", peak_of_item_knn - before, "GB"),
        Figure("the same, with item-kNN too", milliseconds_of_three, "ms"),
    ]
    if not arguments.no_recall:
        full = TransitionScorer.count(Transitions(max_per_row=arguments.items), log, now)
        whole = WeightedRowSum([full, RecencyScorer.count(Recency(), log, None)], [1.0, 1.2])
        scores = exact_top(whole.prepare(*asked), 10, nobody)[1]
        hits = [  # of equal scores any will do
            np.mean(whole.prepare([window], [None], [now]).scores(best)[0] >= least[-1] * (1 - 1e-5))
            for window, best, least in zip(windows, found, scores, strict=True)
        ]
        recall = float(np.mean(hits))
        figures.append(
            Figure("recall of the ten best of all, uncut", recall, "", target="at least 0.99", met=recall >= 0.99)
        )
    report("memory", "Counting the memory of a large log", figures)


if __name__ == "__main__":
    main()
