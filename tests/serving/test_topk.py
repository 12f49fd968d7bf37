"""The best rows: against sorting everything, and the index against scoring everything."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmd4rec.inference.folder_writer import to_int8
from llmd4rec.inference.text_map import Cases, fit_map, fit_text_map, with_one
from llmd4rec.scoring.index import ApproximateIndex
from llmd4rec.scoring.row_factors import FactorRowQuery
from llmd4rec.scoring.rows import exact_among, exact_top
from llmd4rec.scoring.topk import top_columns


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 1000),
    height=st.integers(1, 30),
    states=st.integers(1, 7),
    k=st.integers(1, 35),
    values=st.integers(2, 50),
    block=st.integers(1, 100),
)
def test_exact_top_is_a_stable_sort(seed: int, height: int, states: int, k: int, values: int, block: int) -> None:
    """Whole numbers, so that there are many ties: they come in the order of the rows."""
    rng = np.random.default_rng(seed)
    table = rng.integers(-values, values, (height, 3)).astype(np.float32)
    vectors = rng.integers(-2, 3, (states, 3)).astype(np.float32)
    excluded = [rng.choice(height, rng.integers(0, height + 1), replace=False) for _ in range(states)]
    query = FactorRowQuery.of(vectors, table)
    rows, scores = exact_top(query, k, excluded, block_elements=block)
    for place in range(states):
        every = table @ vectors[place]
        allowed = np.setdiff1d(np.arange(height), excluded[place])
        order = allowed[np.argsort(-every[allowed], kind="stable")][:k]
        np.testing.assert_array_equal(scores[place], every[order])
        among, among_scores = exact_among(query.take(slice(place, place + 1)), k, allowed)
        np.testing.assert_array_equal(among_scores, every[order])
        for found in (rows[place], among):
            assert len(set(found.tolist())) == len(order)
            np.testing.assert_array_equal(every[found], every[order])


@pytest.mark.parametrize("width", [64, 640, 641, 1000, 1311])
@pytest.mark.parametrize("k", [1, 10, 15])
def test_the_largest_of_wide_rows(width: int, k: int) -> None:
    """Wide rows are searched by groups; what is excluded is minus infinity, whole groups of it too."""
    rng = np.random.default_rng(width)
    scores = rng.integers(-30, 30, (50, width)).astype(np.float32)
    scores[::3, :: width // 64] = -np.inf
    scores[5] = -np.inf
    found = top_columns(scores, k)
    np.testing.assert_array_equal(np.take_along_axis(scores, found, axis=1), -np.sort(-scores, axis=1)[:, :k])
    assert all(len(set(columns)) == k for columns in found.tolist())


@pytest.mark.parametrize("dim", [32, 33])
def test_the_index_names_nearly_all_of_the_best(dim: int) -> None:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((300, dim))
    table = (centres[rng.integers(0, 300, 30_000)] + 0.5 * rng.standard_normal((30_000, dim))).astype(np.float32)
    states = (centres[:64] + 0.5 * rng.standard_normal((64, dim))).astype(np.float32)
    index = ApproximateIndex(table)
    found = index.candidates(states, 10)
    best = np.argsort(-(states @ table.T), axis=1)[:, :10]
    recall = np.mean([len(set(rows.tolist()) & set(ten.tolist())) / 10 for rows, ten in zip(found, best, strict=True)])
    assert recall >= 0.99
    assert all(len(set(rows.tolist())) == len(rows) < 30_000 // 5 for rows in found)


def test_a_table_in_8_bit_numbers() -> None:
    rng = np.random.default_rng(0)
    table = (rng.standard_normal((50, 16)) * rng.uniform(0, 100, (50, 1))).astype(np.float32)
    table[3] = 0
    codes, scales = to_int8(table)
    assert codes.dtype == np.int8
    assert scales.dtype == np.float32
    error = np.abs(codes * scales[:, None] - table).max(axis=1)
    assert (error <= np.abs(table).max(axis=1) / 127 / 2 * 1.001).all()
    assert not codes[3].any()


# ---- rows of new items ------------------------------------------------------------------------------------------
def test_the_map_is_ridge_regression() -> None:
    """Against the normal equations with the mean as a column of its own that is not pulled to zero."""
    rng = np.random.default_rng(0)
    texts = (rng.standard_normal((40, 5)) + 3).astype(np.float32)
    rows = rng.standard_normal((40, 2)).astype(np.float32)
    size = np.square(texts - texts.mean(axis=0)).sum() / 5
    for strength in (1e-6, 0.5, 1e6):
        wide = np.column_stack([texts, np.ones(40)])
        penalty = strength * size * np.diag([1, 1, 1, 1, 1, 0])
        expected = np.linalg.solve(wide.T @ wide + penalty, wide.T @ rows)
        np.testing.assert_allclose(fit_map(texts, rows, strength), expected, rtol=1e-3, atol=1e-4)
    predicted = with_one(texts) @ fit_map(texts, rows, 1e9)
    np.testing.assert_allclose(predicted, np.tile(rows.mean(axis=0), (40, 1)), atol=1e-4)


@pytest.mark.parametrize("telling", [True, False])
def test_what_texts_are_worth_is_measured_on_items_they_were_not_fitted_to(telling: bool) -> None:
    """Texts that decide the rows find withheld items as trained rows do; texts of other items find none."""
    rng = np.random.default_rng(1)
    texts = rng.standard_normal((600, 12)).astype(np.float32)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    rotation, _ = np.linalg.qr(rng.standard_normal((12, 12)))
    table = (texts @ rotation).astype(np.float32)  # all of length 1: the row nearest to a state has the best score
    targets = rng.integers(0, 600, 900)
    states = table[targets] + 0.1 * rng.standard_normal((900, 12)).astype(np.float32)
    seen = [np.array([(target + 1) % 600]) for target in targets]
    cases = Cases(states.astype(np.float32), targets, seen)
    text_map, report = fit_text_map(texts if telling else rng.permutation(texts), table, cases, cases)
    assert report["cases"] == 900
    assert report["recall_trained_rows"]["@10"] > 0.8
    assert report["recall_by_chance"]["@10"] == pytest.approx(10 / 600)
    if telling:
        assert report["recall"]["@10"] == pytest.approx(report["recall_trained_rows"]["@10"], abs=0.03)
        np.testing.assert_allclose(with_one(texts) @ text_map, table, atol=0.1)
        assert report["share_of_top10"] == pytest.approx(report["share_of_top10_trained_rows"], abs=0.01)
    else:
        assert report["recall"]["@10"] < 0.06


def test_new_items_take_as_many_places_as_trained_ones_do() -> None:
    """Where texts say half of what there is to say, a regression's rows are too short, and score too low to win."""
    rng = np.random.default_rng(2)
    texts, hidden = (rng.standard_normal((800, 6)).astype(np.float32) for _ in range(2))
    table = np.concatenate([texts, hidden], axis=1) + np.float32(2)
    targets = rng.integers(0, 800, 800)
    states = (table[targets] - table.mean(axis=0)) / 2 + rng.standard_normal((800, 12)).astype(np.float32) / 2
    cases = Cases(states, targets, [np.array([(target + 1) % 800]) for target in targets])
    text_map, report = fit_text_map(texts, table, cases, cases)
    assert report["scale"] > 1.1
    assert report["share_of_top10"] == pytest.approx(report["share_of_top10_trained_rows"], abs=0.02)
    plain = fit_map(texts, table, report["strength"])
    mean = table.mean(axis=0)
    np.testing.assert_allclose(
        with_one(texts) @ text_map - mean, report["scale"] * (with_one(texts) @ plain - mean), atol=1e-4
    )


def test_items_without_text_take_no_part() -> None:
    rng = np.random.default_rng(1)
    texts = rng.standard_normal((50, 4)).astype(np.float32)
    texts[:20] = 0
    table = rng.standard_normal((50, 3)).astype(np.float32)
    none = Cases(np.empty((0, 3), np.float32), np.empty(0, np.int64), [])
    text_map, report = fit_text_map(texts, table, none, none)
    assert (report["items"], report["cases"], report["recall"]["@10"]) == (30, 0, 0.0)
    table[:20] = 99
    again, _ = fit_text_map(texts, table, none, none)
    np.testing.assert_array_equal(text_map, again)
