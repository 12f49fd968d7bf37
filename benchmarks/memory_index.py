"""The index over a model and a memory together: recall of the exact ten best, and what a request costs.

    python benchmarks/memory_index.py [--rows 200000]        (not a stage of `run.py`)

Vectors of a model (d 64) and of texts (d 128) are normal numbers around 12,000 centres; 5 to 200 rows followed each
history; rows were chosen by a Zipf distribution over thirty days. Candidates are those of `SumRowQuery`: of the index,
followers, and what is chosen now, united and scored exactly. Milliseconds are processor time of one thread.
"""

from __future__ import annotations

import argparse
import time

import faiss
import numpy as np

from llmd4rec.scoring.index import ApproximateIndex
from llmd4rec.scoring.memory.recency import Events, RecencyScorer
from llmd4rec.scoring.memory.settings import Recency
from llmd4rec.scoring.memory.sparse import SparseRowQuery
from llmd4rec.scoring.row_factors import FactorRowQuery
from llmd4rec.scoring.row_sums import SumRowQuery
from llmd4rec.scoring.rows import Floats, exact_top

CENTRES, STATES, DAY = 12_000, 60, 86_400
#: Of model, content, transitions and recency.
WEIGHTS = ((0.7, 3.0, 1.0, 1.2), (1.0, 4.0, 0.8, 0.4))


def main() -> None:
    """Prints a line for each choice of weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    rows: int = parser.parse_args().rows
    faiss.omp_set_num_threads(1)
    rng = np.random.default_rng(0)

    def table(dim: int) -> Floats:
        centres = rng.standard_normal((CENTRES, dim), dtype=np.float32)
        table_ID = centres[rng.integers(0, CENTRES, rows)]
        table_ID += 0.5 * rng.standard_normal((rows, dim), dtype=np.float32)
        return table_ID / np.float32(np.sqrt(dim))

    model_ID, content_ID = 2 * table(64), table(128)
    content_ID /= np.linalg.norm(content_ID, axis=1, keepdims=True)
    states_QD = 3 * model_ID[rng.integers(0, rows, STATES)] + 0.3 * rng.standard_normal((STATES, 64), dtype=np.float32)
    means_QD = 0.7 * content_ID[rng.integers(0, rows, STATES)] + 0.3 * content_ID[rng.integers(0, rows, STATES)]
    followers = [np.unique(rng.integers(0, rows, rng.integers(5, 200))) for _ in range(STATES)]
    starts = np.concatenate([[0], np.cumsum([len(each) for each in followers])])
    counts = np.log1p(3 * rng.exponential(0.5, starts[-1])).astype(np.float32)
    follows = SparseRowQuery(starts, np.concatenate(followers).astype(np.int32), counts, rows)
    chosen = (rng.zipf(1.3, 3 * rows) % rows).astype(np.int32)
    times = np.sort(rng.integers(0, 30 * DAY, len(chosen)))
    recency = RecencyScorer(Events(Recency(), times, chosen, rows), rows)
    now = recency.prepare([[]] * STATES, [None] * STATES, [int(times[-1]) + 10] * STATES)
    started = time.perf_counter()
    index = ApproximateIndex(model_ID, content_ID)
    print(f"{rows:,} rows, index made in {time.perf_counter() - started:.0f} s")
    members = (FactorRowQuery.of(states_QD, model_ID), FactorRowQuery.of(means_QD, content_ID), follows, now)
    for weights in WEIGHTS:
        query = SumRowQuery(members, weights, 0, index)
        started = time.thread_time()
        exact = exact_top(query, 10, [np.empty(0, dtype=np.int64)] * STATES, rows)[0]
        whole = 1000 * (time.thread_time() - started) / STATES
        started = time.thread_time()
        found = [query.take(slice(place, place + 1)).candidates(20)[0] for place in range(STATES)]
        searched = 1000 * (time.thread_time() - started) / STATES
        best = [each.rows[np.argsort(-each.scores)[:10]] for each in found]
        recall = np.mean([len(np.intersect1d(one, two)) / 10 for one, two in zip(best, exact, strict=True)])
        widened = np.mean([len(each.rows) <= 20 for each in found])
        print(
            f"weights {weights}: recall@10 {recall:.4f}, {searched:.1f} ms; exactly {whole:.1f} ms; whole {widened:.0%}"
        )


if __name__ == "__main__":
    main()
