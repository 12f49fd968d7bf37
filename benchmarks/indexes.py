"""Kinds of approximate index compared: what each costs to make and to ask, and its recall. Not a stage of `run.py`.

    python benchmarks/indexes.py --export exports/beauty --data data/beauty [--rows 200000]

Rows are those of an export's table with noise of half their deviation (`--normal`: normal numbers, which have no
structure); states are those of test histories. One state at a time, on one thread; recall is the share of the exact ten
best. Candidates of the scans are scored exactly, as the recommender does.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from llmd4rec import Dataset, Recommender
from llmd4rec.inference.encoder import encode
from llmd4rec.inference.factors import FactorRowScorer
from llmd4rec.scoring.row_factors import FactorRowQuery
from llmd4rec.scoring.rows import exact_top

STATES = 300
Search = Callable[[np.ndarray], np.ndarray]


def main() -> None:
    """Prints a line for each index and setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--export", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--normal", action="store_true", help="rows and states without structure")
    arguments = parser.parse_args()
    faiss.omp_set_num_threads(1)
    rng = np.random.default_rng(0)
    recommender, dataset = Recommender.load(arguments.export, index="exact"), Dataset.load(arguments.data)
    scorer = recommender._snapshot.scorer
    assert isinstance(scorer, FactorRowScorer)
    small_ID = scorer.table_ID
    table_ID = rng.standard_normal((arguments.rows, small_ID.shape[1]), dtype=np.float32)
    if arguments.normal:
        states_QD = rng.standard_normal((STATES, small_ID.shape[1]), dtype=np.float32)
    else:
        table_ID = table_ID * (0.5 * small_ID.std(axis=0)) + small_ID[rng.integers(0, len(small_ID), arguments.rows)]
        positions = rng.choice(dataset.test, STATES, replace=False)
        windows = [dataset.history(int(position))[-recommender.info.max_length :].tolist() for position in positions]
        states_QD = encode(scorer.encoder, windows, small_ID)

    def scanned(states_BD: np.ndarray) -> list[np.ndarray]:
        nobody = [np.empty(0, dtype=np.int64)] * len(states_BD)
        return exact_top(FactorRowQuery.of(states_BD, table_ID), 10, nobody)[0]

    exact = scanned(states_QD)

    def tried(name: str, made: float, search: Search) -> None:
        started = time.perf_counter()
        found = [search(state_D[None]) for state_D in states_QD]
        taken = 1000 * (time.perf_counter() - started) / STATES
        recall = np.mean([len(np.intersect1d(rows, best)) / 10 for rows, best in zip(found, exact, strict=True)])
        print(f"{name:34} made in {made:6.1f} s   {taken:7.2f} ms   recall@10 {recall:.4f}", flush=True)

    def rescored(index: Any, count: int) -> Search:
        def search(state_1D: np.ndarray) -> np.ndarray:
            rows = index.search(state_1D, count)[1][0]
            return rows[np.argsort(-(table_ID[rows] @ state_1D[0]))[:10]]

        return search

    tried("every row", 0.0, lambda state_1D: scanned(state_1D)[0])
    dim, product = table_ID.shape[1], faiss.METRIC_INNER_PRODUCT
    for kind in (f"PQ{dim // 2}x4fs", f"PQ{dim}x4fs", "IVF1024,Flat", "HNSW32,Flat"):
        index = faiss.index_factory(dim, kind, product)
        started = time.perf_counter()
        index.train(table_ID[rng.choice(len(table_ID), min(len(table_ID), 65_536), replace=False)])
        index.add(table_ID)
        made = time.perf_counter() - started
        if kind.startswith("PQ"):
            for count in (500, 1000, 2000):
                tried(f"{kind}, {count} rescored", made, rescored(index, count))
        elif kind.startswith("IVF"):
            for index.nprobe in (16, 64, 128):
                tried(f"{kind}, {index.nprobe} lists", made, lambda state_1D: index.search(state_1D, 10)[1][0])  # noqa: B023
        else:
            for index.hnsw.efSearch in (64, 256, 512):
                tried(f"{kind}, ef {index.hnsw.efSearch}", made, lambda state_1D: index.search(state_1D, 10)[1][0])  # noqa: B023


if __name__ == "__main__":
    main()
