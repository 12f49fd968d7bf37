"""What can be had without training a model: texts that read alike, items that follow each other, items chosen lately.

    python experiments/training_free.py --data beauty=FOLDER toys=FOLDER

Three scores of an item, for a history whose last five items count 1, .7, .5, .35 and .25, the newest first:

- content: the product of its text's vector (MiniLM, unit length) and the weighted mean of theirs;
- transitions: log(1 + 3 n), n how often it came one, two or three items after them in training histories (a distance
  of g counts 1/g, the reverse half);
- recency: log(1 + n), n its training interactions in the fourteen days before the target (where the log has times).

Their weights are chosen on validation from a grid. Counts are those of training histories, for test too. Writes
results/training-free/NAME/content-transitions-seed0.json; nothing here is random. Every model has to stand beside it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from llmd4rec.data.dataset import NO_TIME, Dataset, SplitName
from llmd4rec.evaluation.evaluator import CUTOFFS
from llmd4rec.evaluation.metrics import RankMetric, TargetRanks, expand
from llmd4rec.io.files import write_json
from llmd4rec.models.llm.item_text import encode_texts
from llmd4rec.training.runtime import environment

ROOT = Path(__file__).resolve().parents[1]
ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
NEWEST = np.array([1, 0.7, 0.5, 0.35, 0.25], dtype=np.float32)
DAYS = 14
#: Of content (only the ratios matter), of transitions, of recency.
GRID = ((0.0, 1.0, 2.0, 4.0, 8.0), (0.0, 0.25, 0.5, 1.0), (0.0, 0.1, 0.3))
BLOCK = 512

Scores = tuple[NDArray[np.float32], ...]


def main() -> None:
    """Chooses weights on validation and writes what they give on test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, metavar="NAME=FOLDER", help="prepared data sets")
    parser.add_argument("--out", type=Path, default=ROOT / "results", help="default: results/ of the repository")
    arguments = parser.parse_args()
    commit = environment()["commit"] or ""
    if arguments.out.resolve() == ROOT / "results" and (not commit or commit.endswith("-dirty")):
        parser.error("the code is that of no commit, which a result has to name: commit first, or give another --out")
    for name, _, folder in (text.partition("=") for text in arguments.data):
        result = {"study": "training-free", "variant": "content-transitions", "data": name, "seed": 0}
        result["command"] = f"python experiments/training_free.py --data {name}=FOLDER"
        result |= trial(Dataset.load(Path(folder)))
        target = arguments.out / "training-free" / name / "content-transitions-seed0.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        write_json(target, result)
        memory = result["models"]["memory"]
        print(json.dumps({"data": name, "weights": result["weights"], "valid": memory["valid"]["ndcg@10"]}), flush=True)


def figures_of(ranks: np.ndarray) -> dict[str, float]:
    """HR, NDCG and MRR over users with these ranks."""
    found = TargetRanks.of_one(ranks)
    metrics = expand(("hr", "ndcg", "mrr"), CUTOFFS)
    return {m.name: float(m.per_user(found).mean()) for m in metrics if isinstance(m, RankMetric)}


def trial(data: Dataset) -> dict[str, Any]:
    """The best weights on validation, and both splits' figures with them."""
    started = time.perf_counter()
    vectors = encode_texts(data.texts(), ENCODER) if data.text_fields else None
    counts = transitions(data)
    combinations = list(itertools.product(*GRID))
    ranks: dict[tuple[float, ...], list[Any]] = {weights: [] for weights in combinations}
    for scores, seen, targets in blocks(data, "valid", vectors, counts):
        for weights in combinations:
            ranks[weights].append(rank(scores, weights, seen, targets))
    best = max(combinations, key=lambda weights: figures_of(np.concatenate(ranks[weights]))["ndcg@10"])
    test = [rank(scores, best, seen, targets) for scores, seen, targets in blocks(data, "test", vectors, counts)]
    figures = {}
    for split, found in (("valid", np.concatenate(ranks[best])), ("test", np.concatenate(test))):
        figures[split] = {"users": len(found), **{k: round(v, 6) for k, v in figures_of(found).items()}}
    return {
        "settings": [],
        "weights": dict(zip(("content", "transitions", "recency"), best, strict=True)),
        "fingerprint": data.fingerprint,
        "environment": environment(),
        "stages": {"memory": {"seconds": round(time.perf_counter() - started, 3)}},
        "models": {"memory": figures},
        "comparisons": {},
    }


def transitions(data: Dataset) -> sp.csr_matrix:
    """[I, I]: how often the column's item came up to three places after the row's in training histories."""
    total = sp.csr_matrix((data.num_items, data.num_items), dtype=np.float32)
    users = np.repeat(np.arange(data.num_users), np.diff(data.offsets))
    trained = np.arange(data.num_interactions) < np.repeat(data.train_end, np.diff(data.offsets))
    for distance in (1, 2, 3):
        first = np.flatnonzero((users[distance:] == users[:-distance]) & trained[distance:])
        values = np.full(len(first), 1 / distance, dtype=np.float32)
        pairs = (data.items[first], data.items[first + distance])
        total = total + sp.csr_matrix((values, pairs), total.shape)
    return (total + 0.5 * total.T).tocsr()


def blocks(
    data: Dataset, split: SplitName, vectors: NDArray[np.float32] | None, counts: sp.csr_matrix
) -> Iterator[tuple[Scores, list[NDArray[np.int32]], NDArray[np.int32]]]:
    """The three scores [B, I], the histories and the targets [B] of some targets at a time."""
    when, what = arrivals(data)
    for positions in np.array_split(data.targets(split), max(1, len(data.targets(split)) // BLOCK)):
        histories = [data.history(position) for position in positions]
        last = [history[-len(NEWEST) :][::-1] for history in histories]
        lengths = [len(items) for items in last]
        places = (np.repeat(np.arange(len(last)), lengths), np.concatenate(last))
        weights = np.concatenate([NEWEST[:length] for length in lengths])
        chosen = sp.csr_matrix((weights, places), (len(last), data.num_items), dtype=np.float32)
        shape = (len(last), data.num_items)
        content = np.zeros(shape, np.float32)
        if vectors is not None:
            mean = np.asarray(chosen @ vectors) / np.asarray(chosen.sum(axis=1))
            content = (mean @ vectors.T).astype(np.float32)
        recent = np.zeros(shape, np.float32)
        if data.times is not None:
            for row, moment in enumerate(data.times[positions]):
                if moment != NO_TIME:
                    start, end = np.searchsorted(when, [moment - DAYS * 86_400, moment])
                    recent[row] = np.log1p(np.bincount(what[start:end], minlength=data.num_items))
        follows = np.log1p(3 * (chosen @ counts).toarray())
        yield (content, follows, recent), histories, data.items[positions]


def arrivals(data: Dataset) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Moments and items of training interactions that have a time, in order."""
    if data.times is None:
        return np.zeros(0, np.int64), np.zeros(0, np.int32)
    trained = np.arange(data.num_interactions) < np.repeat(data.train_end, np.diff(data.offsets))
    known = np.flatnonzero(trained & (data.times != NO_TIME))
    known = known[np.argsort(data.times[known], kind="stable")]
    return data.times[known], data.items[known]


def rank(
    scores: Scores, weights: tuple[float, ...], seen: list[NDArray[np.int32]], targets: NDArray[np.int32]
) -> NDArray[np.int64]:
    """Places from 1 of the targets [B] among all items but those of the history; equal scores count against them."""
    total = sum(weight * part for weight, part in zip(weights, scores, strict=True) if weight)
    if not isinstance(total, np.ndarray):  # all weights are 0
        total = np.zeros_like(scores[0])
    wanted = total[np.arange(len(targets)), targets]
    for row, history in enumerate(seen):
        total[row, history] = -np.inf
    again = np.array([target in history for target, history in zip(targets, seen, strict=True)])
    places = (total >= wanted[:, None]).sum(axis=1)
    return np.where(again, np.iinfo(np.int64).max // 2, places).astype(np.int64)


if __name__ == "__main__":
    main()
