from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from rich.console import Console
from scipy import stats

from llmd4rec.errors import RunError
from llmd4rec.evaluation import Evaluation, compare
from llmd4rec.evaluation.significance import bootstrap_means, compare_values, sign_flip_p

from .examples import info_of, means_of, values_of


def evaluation(ranks: np.ndarray, **changes: object) -> Evaluation:
    users = len(ranks)
    per_user = pl.DataFrame(
        {
            "user_id": [f"u{user}" for user in range(users)],
            "item_id": [f"i{user % 7}" for user in range(users)],
            "rank": ranks,
            "history_length": np.arange(users) % 9 + 2,
            "train_count": np.arange(users) % 13,
            "tail": np.arange(users) % 2 == 0,
            "cold": np.zeros(users, dtype=bool),
            **values_of(ranks),
        }
    )
    whole = Evaluation(
        metrics=means_of(ranks),
        metric_info=info_of(),
        slices={},
        users=users,
        model="model",
        stage="undistilled",
        filter_seen=True,
        split="test",
        per_user=per_user,
        top=np.zeros((users, 20), dtype=np.int32),
    )
    return dataclasses.replace(whole, **changes)  # type: ignore[arg-type]


def random_ranks(users: int, seed: int, scale: float = 60.0) -> np.ndarray:
    return np.random.default_rng(seed).exponential(scale, users).astype(np.int64) + 1


@pytest.mark.parametrize("shift", [0.0, 0.3, 0.8])
def test_permutation_p_is_exact_for_few_users(shift: float) -> None:
    differences = np.random.default_rng(2).normal(shift, 1, 11)
    differences[3:5] = 0
    exact = stats.permutation_test(
        (differences, np.zeros(11)),
        lambda x, y, axis: (x - y).mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
    )
    p = sign_flip_p(differences[:, None], 60_000, np.random.default_rng(0))
    assert p[0] == pytest.approx(exact.pvalue, abs=0.008)


def test_permutation_p_agrees_with_the_t_test_for_many_users() -> None:
    rng = np.random.default_rng(1)
    differences = rng.normal(0.05, 1.0, (3_000, 3))
    p = sign_flip_p(differences, 9_999, rng)
    expected = stats.ttest_1samp(differences, 0).pvalue
    assert p == pytest.approx(expected, abs=0.015)


def test_p_is_uniform_when_nothing_differs_but_chance() -> None:
    rng = np.random.default_rng(4)
    p = sign_flip_p(rng.normal(size=(80, 400)), 499, rng)
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_identical_results_have_p_one() -> None:
    ranks = random_ranks(50, 0)
    values = np.stack(list(values_of(ranks).values()), 1)
    for difference in compare_values(
        list(values_of(ranks)), values, values, rng=np.random.default_rng(0)
    ).metrics.values():
        assert (difference.difference, difference.p, difference.interval) == (0.0, 1.0, (0.0, 0.0))
        assert (difference.better, difference.worse) == (0, 0)


def test_the_bootstrap_of_sparse_users_is_the_ordinary_bootstrap() -> None:
    rng = np.random.default_rng(0)
    a = np.where(rng.random((400, 1)) < 0.1, rng.random((400, 1)), 0.0)
    b = np.where(rng.random((400, 1)) < 0.2, rng.random((400, 1)), 0.0)
    boot_a, boot_b = bootstrap_means(a, b, 20_000, rng)
    ours = np.quantile((boot_b - boot_a)[:, 0], (0.025, 0.975))
    theirs = stats.bootstrap(
        ((b - a)[:, 0],), np.mean, n_resamples=20_000, method="percentile", random_state=np.random.default_rng(1)
    ).confidence_interval
    assert ours == pytest.approx([theirs.low, theirs.high], abs=0.0015)
    assert boot_a.std() == pytest.approx(a.std() / 20, rel=0.06)


def test_differences_by_hand() -> None:
    result = compare(evaluation(np.array([1, 3, 30, 40])), evaluation(np.array([1, 1, 2, 40]), stage="distilled"))
    hit = result.overall.metrics["hr@5"]
    assert (hit.first, hit.second, hit.difference, hit.relative) == (0.5, 0.75, 0.25, 50.0)
    assert (hit.better, hit.worse) == (1, 0)
    assert result.overall.metrics["mrr@5"].better == 2
    assert (result.first, result.second) == ("undistilled (model)", "distilled (model)")
    assert (result.overlap.both, result.overlap.only_first, result.overlap.only_second) == (2, 0, 1)
    assert result.overlap.neither == 1
    assert "tail" in result.slices
    assert "cold" not in result.slices


def test_no_relative_gain_over_nothing() -> None:
    result = compare(evaluation(np.array([100, 100])), evaluation(np.array([1, 1])))
    difference = result.overall.metrics["hr@10"]
    assert (difference.relative, difference.relative_interval) == (None, None)
    assert result.verdict.startswith("NDCG@10 rises from 0.0000 to 1.0000, which may be chance (2 users, p = ")
    Console(quiet=True).print(result.table())


def test_the_verdict_says_whether_a_difference_may_be_chance() -> None:
    many, few = np.full(400, 3), np.full(3, 3)  # NDCG .5 each; 1 / log2(3) = .6309 at place 2
    up = compare(evaluation(many), evaluation(np.full(400, 2))).verdict
    assert up == "NDCG@10 rises by 26.2% from 0.5000 to 0.6309, beyond chance (400 users, p = 0.0001)."
    down = compare(evaluation(few + 0), evaluation(few + 4)).verdict  # 1 / log2(8) = .3333
    assert down.startswith("NDCG@10 falls by 33.3% from 0.5000 to 0.3333, which may be chance (3 users, p = 0.2")
    same = compare(evaluation(few), evaluation(few)).verdict
    assert same == "NDCG@10 stays at 0.5000 (3 users)."


def test_a_clear_gain_is_found_and_the_seed_repeats_it() -> None:
    first, second = evaluation(random_ranks(3_000, 0)), evaluation(random_ranks(3_000, 1, scale=40.0))
    one, two = compare(first, second, flips=999), compare(first, second, flips=999)
    assert one == two
    assert compare(first, second, names=("run 1", "run 2"), flips=9).first == "run 1"
    gain = one.overall.metrics["ndcg@10"]
    assert gain.p == 0.001
    assert gain.interval[0] > 0
    assert gain.relative_interval is not None
    assert gain.relative is not None
    assert gain.relative_interval[0] < gain.relative < gain.relative_interval[1]


def test_groups_cover_all_users() -> None:
    result = compare(evaluation(random_ranks(500, 0)), evaluation(random_ranks(500, 1)), flips=99, resamples=50)
    for groups in (result.history_length, result.popularity):
        assert sum(group.users for group in groups.values()) == 500
        assert len(groups) == 5
    assert next(iter(result.history_length)) == "2–3"


def test_users_are_joined_by_name_not_by_place() -> None:
    first = evaluation(np.array([1, 2, 30]))
    second = dataclasses.replace(first, per_user=first.per_user.reverse())
    assert compare(first, second).overall.metrics["ndcg@10"].difference == 0


def test_what_cannot_be_compared_is_named() -> None:
    first = evaluation(np.array([1, 2, 3]))
    with pytest.raises(RunError, match="filter_seen is True and False"):
        compare(first, evaluation(np.array([1, 2, 3]), filter_seen=False))
    with pytest.raises(RunError, match="split is 'test' and 'valid'"):
        compare(first, evaluation(np.array([1, 2, 3]), split="valid"))
    with pytest.raises(RunError, match=r"1 users of the second evaluation .*'u3'"):
        compare(first, evaluation(np.array([1, 2, 3, 4])))
    with pytest.raises(RunError, match=r"1 users of the first evaluation .*'u2'"):
        compare(first, evaluation(np.array([1, 2])))
    other = first.per_user.with_columns(item_id=pl.Series(["i0", "i5", "i2"]))
    with pytest.raises(RunError, match="user 'u1': 'i1' and 'i5'"):
        compare(first, dataclasses.replace(first, per_user=other))
    with pytest.raises(RunError, match="metric in common"):
        compare(first, dataclasses.replace(first, metrics=means_of(first.ranks, (7,))))


def test_from_folders_to_json_and_a_table(tmp_path: Path) -> None:
    evaluation(random_ranks(200, 0)).save(tmp_path / "a")
    evaluation(random_ranks(200, 1), stage="distilled").save(tmp_path / "b")
    result = compare(tmp_path / "a", tmp_path / "b", flips=99, resamples=50)
    value = json.loads(json.dumps(result.to_json()))
    assert value["overall"]["metrics"]["hr@10"]["first"] == result.overall.metrics["hr@10"].first
    console = Console(width=200, record=True, quiet=False, file=(tmp_path / "out").open("w"))
    console.print(result.table())
    text = console.export_text()
    assert "ndcg@10" in text
    assert "distilled (model) compared with undistilled (model)" in text


def test_thirty_thousand_users_take_seconds() -> None:
    first, second = evaluation(random_ranks(30_000, 0, 150.0)), evaluation(random_ranks(30_000, 1, 150.0))
    start = time.process_time()
    compare(first, second, flips=999, resamples=500)
    assert time.process_time() - start < 20
