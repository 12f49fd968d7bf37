from __future__ import annotations

import math

import numpy as np
import pytest

from llmd4rec.evaluation.metrics.functions import (
    coverage,
    hit_rate,
    mean_metrics,
    mrr,
    ndcg,
    per_user_metrics,
    popularity,
)


def test_by_hand() -> None:
    ranks = np.array([1, 2, 3, 5, 6, 100])
    assert hit_rate(ranks, 5).tolist() == [1, 1, 1, 1, 0, 0]
    assert ndcg(ranks, 5) == pytest.approx([1, 1 / math.log2(3), 0.5, 1 / math.log2(6), 0, 0])
    assert mrr(ranks, 5) == pytest.approx([1, 1 / 2, 1 / 3, 1 / 5, 0, 0])


def test_names_and_means() -> None:
    ranks = np.array([1, 11])
    assert list(per_user_metrics(ranks, (5, 10))) == ["hr@5", "ndcg@5", "mrr@5", "hr@10", "ndcg@10", "mrr@10"]
    assert mean_metrics(ranks, (10, 20))["hr@10"] == 0.5
    assert mean_metrics(ranks, (10, 20))["hr@20"] == 1.0
    assert mean_metrics(np.array([], dtype=np.int64)) == {}


@pytest.mark.parametrize("rank", [0, -1])
def test_a_rank_better_than_the_best_is_refused(rank: int) -> None:
    with pytest.raises(ValueError, match="the best is 1"):
        mean_metrics(np.array([1, rank]))


def test_coverage_and_popularity_ignore_missing_places() -> None:
    top = np.array([[0, 1], [1, -1]])
    assert coverage(top, 4) == 0.5
    assert popularity(top, np.array([3, 6, 100, 100])) == 5.0
    assert popularity(np.array([[-1]]), np.array([3])) == 0.0


def test_agrees_with_ranx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")  # its compiling would take a minute, the figures a second
    from ranx import Qrels, Run
    from ranx import evaluate as ranx_evaluate

    rng = np.random.default_rng(0)
    scores = rng.normal(size=(200, 60))
    targets = rng.integers(0, 60, 200)
    own = scores[np.arange(200), targets]
    ranks = (scores >= own[:, None]).sum(axis=1)
    qrels = Qrels({f"u{u}": {f"i{t}": 1} for u, t in enumerate(targets)})
    run = Run({f"u{u}": {f"i{i}": float(s) for i, s in enumerate(row)} for u, row in enumerate(scores)})
    names = {f"{ours}@{k}": f"{theirs}@{k}" for k in (5, 10, 20) for ours, theirs in RANX_NAMES.items()}
    expected = ranx_evaluate(qrels, run, list(names.values()))
    for ours, value in mean_metrics(ranks).items():
        assert value == pytest.approx(expected[names[ours]], abs=1e-12)


RANX_NAMES = {"hr": "hit_rate", "ndcg": "ndcg", "mrr": "mrr"}
