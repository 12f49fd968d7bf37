"""The recommender in one process: a request's latency, every user at once, and an index over a million items.

A request is a history of 3 to 15 items, its ten best of Beauty's 12,101 items with titles and fields, seen items
filtered. Compared with it, in turns: the same without a recommender (ONNX Runtime, one product, `argpartition`); the
same model in PyTorch; another model of the same settings, as an undistilled model is to a distilled one. Two more
requests have a filter, and reasons, which encode every history once more for each of its items.

All users: histories to a Parquet file, as `llmd4rec recommend --users all` does behind its start-up.

A million items: rows of the 12,101 with noise of half their deviation; states are those of the requests. Recall is the
share of the exact ten best that came through the index.

`--export FOLDER`, made with `--both`, measures trained models; without it, networks that were not trained, which cost
the same. Their table has no structure, which is the worst case for an index.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from harness import Figure, alternate, beauty, best, median, report

from llmd4rec.data.batching import SequenceBatch
from llmd4rec.data.dataset import Dataset
from llmd4rec.export.graphs import write_encoder
from llmd4rec.inference.batch import Histories, recommend_histories, write
from llmd4rec.inference.catalogue import Catalogue
from llmd4rec.inference.encoder import Encoder, HistoryBatch, OnnxEncoder, encode
from llmd4rec.inference.factors import FactorRowScorer
from llmd4rec.inference.fields import kinds_of
from llmd4rec.inference.query import parse_request
from llmd4rec.inference.ranking import rank
from llmd4rec.inference.recommender import Recommender
from llmd4rec.inference.types import ExportInfo, Filters, Request
from llmd4rec.models.base import last_states
from llmd4rec.models.sequential.sasrec import SASRec
from llmd4rec.scoring.index import ApproximateIndex
from llmd4rec.scoring.row_factors import FactorRowQuery
from llmd4rec.scoring.rows import exact_top

REQUESTS, LARGE, QUERIES = 400, 1_000_000, 200
MAX_SECONDS, MIN_RECALL = 5, 0.99


def main() -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a prepared data set (default: a synthetic log of Beauty's shape)")
    parser.add_argument("--export", type=Path, help="an export of a run on --data, made with --both")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each way, after one to warm up")
    arguments = parser.parse_args()
    dataset = beauty(arguments.data)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.export:
            recommender = Recommender.load(arguments.export)
            if recommender.undistilled is None:
                raise SystemExit("error: the export holds one model only; export with --both")
            first, second = recommender, recommender.undistilled
        else:
            first, second = (untrained(dataset, Path(folder), seed) for seed in (0, 1))
        figures = [
            *requests(first, second, dataset),
            *everybody(first, dataset, Path(folder), arguments.repeats),
            *large(first, dataset, arguments.repeats),
        ]
    report("serve_recommender", "Serving recommender", figures)


def untrained(dataset: Dataset, folder: Path, seed: int) -> Recommender:
    """A recommender of a network with its first weights."""
    network = SASRec().build(dataset.num_items, seed).eval()
    path = folder / f"{seed}.onnx"
    write_encoder(network, path)
    kinds = kinds_of(dataset.catalogue)
    info = ExportInfo("benchmark", 0, "undistilled", "sasrec", 64, dataset.num_items, 50, kinds, "", 0.0, "NDCG@10")
    catalogue = Catalogue.of(dataset.catalogue, dataset.train_counts, kinds)
    scorer = FactorRowScorer(OnnxEncoder(path, 64), network.item_table().detach().numpy())
    return Recommender(info, scorer, catalogue)


def encoder_of(recommender: Recommender) -> Encoder:
    """What gives the states of its histories."""
    scorer = recommender._snapshot.scorer
    assert isinstance(scorer, FactorRowScorer)
    return scorer.encoder


def drawn(dataset: Dataset, count: int) -> list[list[str]]:
    """Histories of 3 to 15 items, drawn as often as they occur."""
    rng = np.random.default_rng(0)
    names = dataset.item_ids
    return [[names[item] for item in rng.choice(dataset.items, rng.integers(3, 16))] for _ in range(count)]


# ---- one request at a time --------------------------------------------------------------------------------------
def requests(first: Recommender, second: Recommender, dataset: Dataset) -> list[Figure]:
    """One request at a time, and many together."""
    network = SASRec().build(dataset.num_items, 0).eval()
    table_ID, encoder = first._snapshot.vectors_ID, encoder_of(first)
    tensor_DI = torch.from_numpy(table_ID).T.contiguous()
    field = next((name for name, kind in first.info.fields.items() if kind == "category"), None)
    value = first.catalogue.fields[field].values[int(np.argmax(dataset.train_counts))] if field else None
    filters = Filters(any_of={field: value}) if field and value is not None else Filters(deny=["none"])

    def bare(history: list[str]) -> None:
        rows = [first.catalogue.index[item] for item in history]
        state = encoder(HistoryBatch(np.array([rows]), np.array([len(rows)])), table_ID)
        scores = (state @ table_ID.T)[0]
        scores[rows] = -np.inf
        best_ten = np.argpartition(scores, -10)[-10:]
        best_ten[np.argsort(-scores[best_ten])].tolist()

    @torch.inference_mode()
    def in_torch(history: list[str]) -> None:
        rows = torch.tensor([[dataset.item_index[item] for item in history]])
        scores = last_states(network, SequenceBatch(rows, torch.tensor([rows.shape[1]]))) @ tensor_DI
        scores[0, rows[0]] = -torch.inf
        scores.topk(10).indices.tolist()

    # These two separately: a graph that has just read many histories at once reads the next one more slowly.
    models = by_turns(dataset, {"ours": first.recommend, "other": second.recommend})
    taken = by_turns(
        dataset,
        {
            "bare": bare,
            "torch": in_torch,
            "filter": lambda history: first.recommend(history, filters=filters),
            "reasons": lambda history: first.recommend(history, explain=True),
        },
    )
    middle = {name: median(times) for name, times in {**models, **taken}.items()}
    many = [Request(history) for history in drawn(dataset, 256)]
    together = best(alternate({"many": lambda: first.recommend_many(many)}, repeats=5)["many"]) * 1000 / len(many)
    return [
        Figure("one request, median", middle["ours"], "ms", note=f"{dataset.num_items:,} items, d {first.info.dim}"),
        Figure("one request, slowest in a hundred", float(np.percentile(models["ours"], 99)), "ms"),
        Figure(
            "over the bare arithmetic",
            middle["ours"] / middle["bare"],
            "x",
            note=f"which takes {middle['bare']:.2f} ms",
        ),
        Figure(
            "PyTorch, over ours",
            middle["torch"] / middle["ours"],
            "x",
            note=f"{middle['torch']:.2f} ms",
        ),
        Figure(
            "distilled over undistilled" if second is first.undistilled else "another model of the same settings",
            middle["ours"] / middle["other"],
            "x",
            "0.95 to 1.05",
            0.95 <= middle["ours"] / middle["other"] <= 1.05,
        ),
        Figure("with a filter", middle["filter"], "ms"),
        Figure("with reasons", middle["reasons"], "ms"),
        Figure("in a batch of 256, each", together, "ms"),
    ]


def by_turns(dataset: Dataset, ways: dict[str, Callable[[list[str]], object]]) -> dict[str, list[float]]:
    """Milliseconds of each request by each way, after some to warm up; the order is drawn anew for each request."""
    rng, warmup = np.random.default_rng(1), 20
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn, history in enumerate(drawn(dataset, REQUESTS + warmup)):
        for name in rng.permutation(list(ways)).tolist():
            started = time.perf_counter()
            ways[name](history)
            if turn >= warmup:
                taken[name].append(1000 * (time.perf_counter() - started))
    return taken


# ---- all users --------------------------------------------------------------------------------------------------
def everybody(recommender: Recommender, dataset: Dataset, folder: Path, repeats: int) -> list[Figure]:
    """Seconds of recommending to every user."""

    def work() -> None:
        table = recommend_histories(recommender, Histories.of_data(dataset), Request())
        write(table, folder / "recommendations.parquet")

    seconds = best(alternate({"all users": work}, repeats=repeats)["all users"])
    return [
        Figure(
            "ten items for every user, to Parquet",
            seconds,
            "s",
            f"< {MAX_SECONDS} s",
            seconds < MAX_SECONDS,
            f"{dataset.num_users:,} users, {dataset.num_users / seconds:,.0f} a second",
        )
    ]


# ---- a large catalogue ------------------------------------------------------------------------------------------
def large(recommender: Recommender, dataset: Dataset, repeats: int) -> list[Figure]:
    """The index against the exact top ten."""
    rng = np.random.default_rng(0)
    small_ID, encoder = recommender._snapshot.vectors_ID, encoder_of(recommender)
    rows = rng.integers(0, len(small_ID), LARGE)
    table_ID = rng.standard_normal((LARGE, small_ID.shape[1]), dtype=np.float32)
    table_ID *= 0.5 * small_ID.std(axis=0)
    table_ID += small_ID[rows]
    known = [recommender.catalogue.rows(history)[0] for history in drawn(dataset, QUERIES)]
    states_QD = encode(encoder, known, small_ID)
    started = time.perf_counter()
    index = ApproximateIndex(table_ID)
    made = time.perf_counter() - started
    nobody = [np.empty(0, dtype=np.int64)] * QUERIES
    exact = exact_top(FactorRowQuery.of(states_QD, table_ID), 10, nobody)[0]

    catalogue = Catalogue(
        ids=[str(row) for row in range(LARGE)],
        titles=[None] * LARGE,
        counts=np.zeros(LARGE, dtype=np.int64),
        fields={},
        present=np.ones(LARGE, dtype=bool),
        trained=np.ones(LARGE, dtype=bool),
        index={},
    )
    # The states are given, so that only the search is measured.
    info = dataclasses.replace(recommender.info, items=LARGE)
    served = Recommender(info, FactorRowScorer(encoder, table_ID), catalogue)

    def ways(index: ApproximateIndex | None, states_BD: np.ndarray) -> list[np.ndarray]:
        one = parse_request(Request(), catalogue, filter_seen=True)
        queries = [dataclasses.replace(one, history=[0])] * len(states_BD)
        return [found.rows for found in rank(served._snapshot, queries, FactorRowQuery.of(states_BD, table_ID, index))]

    found = ways(index, states_QD)
    recall = float(np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(found, exact, strict=True)]))
    few = states_QD[:20, None]
    seconds = alternate(
        {
            "index": lambda: [ways(index, state_1D) for state_1D in few],
            "exact": lambda: [ways(None, state_1D) for state_1D in few],
        },
        repeats=repeats,
    )
    one = {name: 1000 * best(taken) / len(few) for name, taken in seconds.items()}
    return [
        Figure("a million items: exact, one request", one["exact"], "ms", note=f"d {small_ID.shape[1]}, search only"),
        Figure("a million items: through the index", one["index"], "ms"),
        Figure("exact over index", one["exact"] / one["index"], "x"),
        Figure(
            "recall@10 of the index",
            recall,
            "",
            f">= {MIN_RECALL}",
            recall >= MIN_RECALL,
            f"{QUERIES} states",
        ),
        Figure("making the index when an export is loaded", made, "s"),
    ]


if __name__ == "__main__":
    main()
