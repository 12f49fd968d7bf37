from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from pydantic import TypeAdapter
from scipy.spatial.distance import pdist

from llmd4rec.data.dataset import Dataset
from llmd4rec.errors import ConfigError, DataError
from llmd4rec.evaluation.metrics import (
    HR,
    MAP,
    MRR,
    NDCG,
    Coverage,
    Diversity,
    Floats,
    Gini,
    ListMetric,
    MetricSetting,
    Novelty,
    Popularity,
    Precision,
    RankMetric,
    Recall,
    RecommendedLists,
    TargetRanks,
    expand,
    mean_of,
    metric_of,
    per_user,
)
from llmd4rec.evaluation.ranking import NO_CANDIDATE
from llmd4rec.features.attributes import item_attributes

from .examples import make_dataset


def ranks_of(lists: Sequence[Sequence[int]]) -> TargetRanks:
    offsets = np.concatenate([[0], np.cumsum([len(each) for each in lists], dtype=np.int64)])
    return TargetRanks(np.array([rank for each in lists for rank in each], dtype=np.int64), offsets)


def lists_of(top: NDArray[np.int32], data: Dataset) -> RecommendedLists:
    users = len(top)
    return RecommendedLists(
        top, data.test[:users], TargetRanks.of_one(np.ones(users, np.int64)), np.zeros(users, np.int64), data
    )


def places(lists: Sequence[Sequence[int]]) -> NDArray[np.int32]:
    return np.array(lists, dtype=np.int32)


def test_one_target_by_hand() -> None:
    ranks = TargetRanks.of_one(np.array([1, 2, 3, 5, 6, 100]))
    assert HR(5).per_user(ranks).tolist() == [1, 1, 1, 1, 0, 0]
    assert NDCG(5).per_user(ranks) == pytest.approx([1, 1 / math.log2(3), 0.5, 1 / math.log2(6), 0, 0])
    assert MRR(5).per_user(ranks) == pytest.approx([1, 1 / 2, 1 / 3, 1 / 5, 0, 0])
    assert Precision(5).per_user(ranks) == pytest.approx([0.2, 0.2, 0.2, 0.2, 0, 0])
    assert Recall(5).per_user(ranks).tolist() == HR(5).per_user(ranks).tolist()
    assert MAP(5).per_user(ranks).tolist() == MRR(5).per_user(ranks).tolist()


def test_several_targets_by_hand() -> None:
    ranks = ranks_of([[4, 1, 9], [NO_CANDIDATE, 2], [7]])
    assert HR(5).per_user(ranks).tolist() == [1, 1, 0]
    assert Recall(5).per_user(ranks) == pytest.approx([2 / 3, 1 / 2, 0])
    assert Precision(5).per_user(ranks) == pytest.approx([2 / 5, 1 / 5, 0])
    assert MRR(5).per_user(ranks) == pytest.approx([1, 1 / 2, 0])
    assert MAP(5).per_user(ranks) == pytest.approx([(1 / 1 + 2 / 4) / 3, (1 / 2) / 2, 0])
    ideal = [1, 1 + 1 / math.log2(3), 1 + 1 / math.log2(3) + 1 / 2]
    assert NDCG(5).per_user(ranks) == pytest.approx(
        [(1 + 1 / math.log2(5)) / ideal[2], (1 / math.log2(3)) / ideal[1], 0]
    )
    # No more than k targets can be among the first k.
    assert NDCG(1).per_user(ranks_of([[1, 2, 3]])).tolist() == [1.0]


def test_nobody_has_no_values() -> None:
    nobody = ranks_of([])
    for metric in (HR(5), NDCG(5), MRR(5), Recall(5), Precision(5), MAP(5)):
        assert metric.per_user(nobody).shape == (0,)


@pytest.mark.parametrize("rank", [0, -1])
def test_a_rank_better_than_the_best_is_refused(rank: int) -> None:
    with pytest.raises(ValueError, match="the best is 1"):
        TargetRanks.of_one(np.array([1, rank]))


RANX_NAMES = {
    "hr": "hit_rate", "ndcg": "ndcg", "mrr": "mrr", "recall": "recall", "precision": "precision", "map": "map"
}  # fmt: skip


@pytest.mark.parametrize("most", [1, 15])
def test_metrics_of_ranks_agree_with_ranx(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")  # its compiling would take a minute, the figures a second
    from ranx import Qrels, Run
    from ranx import evaluate as ranx_evaluate

    rng = np.random.default_rng(0)
    scores = rng.normal(size=(100, 60))
    order = np.argsort(-scores, axis=1)
    targets = [rng.choice(60, rng.integers(1, most + 1), replace=False) for _ in range(100)]
    ranks = ranks_of([[int(np.flatnonzero(order[u] == t)[0]) + 1 for t in each] for u, each in enumerate(targets)])
    qrels = Qrels({f"u{u}": {f"i{t}": 1 for t in each} for u, each in enumerate(targets)})
    run = Run({f"u{u}": {f"i{i}": float(s) for i, s in enumerate(row)} for u, row in enumerate(scores)})
    names = {f"{ours}@{k}": f"{theirs}@{k}" for k in (5, 10, 20) for ours, theirs in RANX_NAMES.items()}
    expected = ranx_evaluate(qrels, run, list(names.values()))
    for ours, theirs in names.items():
        metric = metric_of(ours)
        assert isinstance(metric, RankMetric)
        assert metric.per_user(ranks).mean() == pytest.approx(expected[theirs], abs=1e-12)


def test_coverage_and_popularity_ignore_missing_places() -> None:
    data = make_dataset([[0, 1, 1, 0, 2, 3], [1, 1, 0, 2, 3]], num_items=4)
    assert data.train_counts.tolist() == [3, 4, 0, 0]
    lists = lists_of(places([[0, 1], [1, -1]]), data)
    assert Coverage(2).value(lists) == 0.5
    assert Coverage(1).value(lists) == 0.5
    assert Popularity(2).value(lists) == pytest.approx((3 + 4 + 4) / 3)
    assert Popularity(2).value(lists_of(places([[-1, -1]]), data)) == 0.0


def test_gini_by_hand() -> None:
    data = make_dataset([[0, 1, 2]] * 4, num_items=4)
    assert Gini(1).value(lists_of(places([[0], [1], [2], [3]]), data)) == 0.0
    assert Gini(1).value(lists_of(places([[2], [2], [2], [2]]), data)) == pytest.approx(3 / 4)
    # Counts 0, 0, 1, 3: half the mean absolute difference over the mean, (2·1 + 2·3 + 2) / (4² · 1).
    assert Gini(1).value(lists_of(places([[2], [3], [3], [3]]), data)) == pytest.approx(10 / 16)
    assert Gini(1).value(lists_of(places([[-1]]), data)) == 0.0


def test_novelty_by_hand() -> None:
    """Items are had by 2, 1 and 0 of two users, however often; one that nobody had counts as had by one."""
    data = make_dataset([[0, 0, 0, 1, 2, 3], [0, 2, 3]], num_items=4)
    values = Novelty(2).per_user(lists_of(places([[0, 1], [0, -1]]), data))
    assert values == pytest.approx([(0 + 1) / 2, 0])
    assert Novelty(1).per_user(lists_of(places([[3], [-1]]), data)) == pytest.approx([1, math.nan], nan_ok=True)


#: pip install rectools==0.19.0, then
#: MeanInvUserFreq(4).calc_per_user(reco, interactions).round(12) of the frames of the same lists.
RECTOOLS_NOVELTY = [
    2.188721875541, 1.938721875541, 2.334962500721, 2.938721875541, 2.334962500721, 2.688721875541, 2.334962500721,
    2.334962500721, 2.438721875541, 2.938721875541, 2.334962500721, 2.438721875541,
]  # fmt: skip


def test_novelty_agrees_with_rectools() -> None:
    rng = np.random.default_rng(5)
    train = [sorted(set(rng.integers(0, 13, rng.integers(2, 7)).tolist())) for _ in range(12)]
    top = np.stack([rng.permutation(15)[:4] for _ in range(12)])
    data = make_dataset([[*items, 0, 0] for items in train], num_items=15)
    assert Novelty(4).per_user(lists_of(top.astype(np.int32), data)) == pytest.approx(RECTOOLS_NOVELTY)


def test_gini_is_half_the_relative_mean_difference() -> None:
    rng = np.random.default_rng(1)
    data = make_dataset([[0, 1, 2]] * 30, num_items=12)
    top = (rng.exponential(3, (30, 5)).astype(np.int32)) % 12
    counts = np.bincount(top.ravel(), minlength=12)
    expected = np.abs(counts[:, None] - counts[None, :]).mean() / (2 * counts.mean())
    assert Gini(5).value(lists_of(top, data)) == pytest.approx(expected)


def dataset_with_brands(brands: Sequence[str]) -> Dataset:
    data = make_dataset([[0, 1, 2]], num_items=len(brands))
    catalogue = pl.DataFrame({"item_id": data.catalogue["item_id"], "brand": list(brands)})
    return Dataset(**{**vars(data), "catalogue": catalogue, "text_fields": ("brand",)})


def test_diversity_by_hand() -> None:
    data = dataset_with_brands(["a"] * 4 + ["b"] * 4)
    values = Diversity(3).per_user(lists_of(places([[0, 1, 2], [0, 1, 4], [0, 4, -1], [0, -1, -1]]), data))
    assert values == pytest.approx([0, 2 / 3, 1, math.nan], nan_ok=True)


def test_diversity_agrees_with_scipy() -> None:
    rng = np.random.default_rng(2)
    data = dataset_with_brands([" > ".join(rng.choice(list("abcdef"), 3, replace=False)) for _ in range(40)])
    top = np.stack([rng.permutation(40)[:6] for _ in range(10)]).astype(np.int32)
    rows = item_attributes(data)
    assert rows is not None
    expected = [pdist(rows[items].toarray(), "cosine").mean() for items in top]
    assert Diversity(6).per_user(lists_of(top, data)) == pytest.approx(expected, abs=1e-6)


def test_diversity_without_fields_is_refused() -> None:
    with pytest.raises(DataError, match="no fields that items share"):
        Diversity(3).per_user(lists_of(places([[0, 1, 2]]), dataset_with_brands(list("abcdefgh"))))


@dataclass(frozen=True)
class MeanLength(ListMetric):
    """How long the recommended items' titles are."""

    factor: float = 1.0

    def per_user(self, lists: RecommendedLists) -> Floats:
        lengths = lists.catalogue["title"].str.len_chars().to_numpy()
        return lists.mean(self.factor * lengths, self.k)


class WrongShape(ListMetric):
    def per_user(self, lists: RecommendedLists) -> Floats:
        return np.zeros(1)


def test_names() -> None:
    names = [metric.name for metric in expand(["hr", "coverage@10", MeanLength()], (5, 10))]
    assert names == ["hr@5", "mean_length@5", "hr@10", "mean_length@10", "coverage@10"]
    assert (NDCG(10).label, MeanLength(3).label) == ("NDCG@10", "MeanLength@3")
    path = f"{__name__}:MeanLength"
    assert metric_of(f"{path}@7") == MeanLength(7)
    setting: TypeAdapter[object] = TypeAdapter(MetricSetting)
    for value in ("ndcg", "ndcg@10", {"name": path, "k": 3, "factor": 2.0}):
        read = setting.validate_python(value)
        assert setting.validate_python(setting.dump_python(read)) == read
    assert setting.dump_python(NDCG(10)) == "ndcg@10"
    assert setting.validate_python({"name": path, "k": 3, "factor": 2.0}) == MeanLength(3, 2.0)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ndgc@10", "did you mean 'ndcg'"),
        ("ndcg@ten", "ndcg@ten"),
        ("ndcg@0", "cutoff of NDCG is 0"),
        ("no.such.module:Metric", "no module"),
        ("llmd4rec.errors:ConfigError", "no metric"),
    ],
)
def test_what_is_no_metric_is_named(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        metric_of(name)


def test_what_cannot_be_told_apart_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"two metrics are called ndcg@10"):
        expand(["ndcg", "ndcg@10"], (10,))
    with pytest.raises(ConfigError, match="cutoffs"):
        expand(["ndcg"], ())


def test_a_metric_of_the_wrong_shape_is_named() -> None:
    lists = lists_of(places([[0, 1], [1, 2]]), make_dataset([[0, 1, 2]] * 2, 3))
    with pytest.raises(ConfigError, match=r"wrong_shape@2 gave values of shape \(1,\) for 2 users"):
        per_user(WrongShape(2), lists)
    assert mean_of(MeanLength(2), lists) == len("Item 0")
