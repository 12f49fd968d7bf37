"""How much each teacher counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmd4rec.distillation.ensemble import MOST, best_counts, in_words
from llmd4rec.evaluation.evaluate import EnsembleValidation, validation_ndcg
from llmd4rec.models.ensemble import Ensemble
from llmd4rec.models.sequential import SASRec


def steady(value):
    """A judge whose every target says the same, so that each difference is beyond noise."""
    return lambda counts: np.full(5, float(value(counts)))


def test_the_climb_ends_where_no_neighbour_is_better():
    asked = []

    def value(counts):
        asked.append(counts)
        return -abs(counts[0] / sum(counts) - 0.75) - abs(counts[1] / sum(counts) - 0.25)  # 3 : 1 : 0

    counts, best = best_counts(steady(value), (1, 1, 1))
    assert counts == (3, 1, 0)
    assert best == 0
    assert asked[0] == (1, 1, 1)
    assert len(asked) == len(set(asked))  # none is asked for twice
    assert (0, 0, 0) not in asked


def test_the_start_stays_where_nothing_is_better():
    assert best_counts(steady(lambda counts: 0.5), (1, 1, 1)) == ((1, 1, 1), 0.5)
    assert best_counts(steady(lambda counts: 0.5), (1, 0)) == ((1, 0), 0.5)
    assert best_counts(steady(lambda counts: 0.5), (1,)) == ((1,), 0.5)


def test_a_gain_must_exceed_its_standard_error():
    """Four targets gain 1 and some lose 1: by hand, mean and standard error of the differences."""

    def judge(losers):
        worse = np.zeros(10)
        better = np.array([1.0] * 4 + [-1.0] * losers + [0.0] * (6 - losers))
        return lambda counts: better if counts == (1, 1) else worse

    # 4 - 2: mean .2, deviation .789, error .249; 4 - 1: mean .3, deviation .675, error .213
    assert best_counts(judge(2), (1, 0))[0] == (1, 0)
    assert best_counts(judge(1), (1, 0)) == ((1, 1), pytest.approx(0.3))


def test_counts_are_bounded():
    assert best_counts(steady(lambda counts: counts[0]), (1, 1))[0][0] == MOST


def test_in_words():
    assert in_words(["a", "b", "c"], (2, 1, 0)) == "2 × a + b (c left out)"
    assert in_words(["a", "b"], (1, 1)) == "a + b"


@pytest.mark.parametrize("weights", [(1, 0, 0), (0, 0, 2), (1, 1, 0), (3, 1, 2)])
@pytest.mark.parametrize("filter_seen", [True, False])
def test_pools_are_judged_as_any_model_is(weights, filter_seen, chain_data):
    """Against the pool built and ranked as one model; with models of different widths that read differently far."""
    rankers = [
        SASRec(dim=dim, heads=1, max_length=length).build(chain_data.num_items, seed=dim).eval()
        for dim, length in ((4, 6), (8, 6), (16, 6))
    ]
    for ranker in rankers:
        torch.nn.init.normal_(ranker.items.weight)
    heard = [(ranker, weight) for ranker, weight in zip(rankers, weights, strict=True) if weight]
    pool = Ensemble(*zip(*heard, strict=True))
    judge = EnsembleValidation(rankers, chain_data, filter_seen, max_users=20, seed=3, batch_size=7)
    each = judge(weights)
    assert each.shape == (20,)
    assert each.mean() == pytest.approx(validation_ndcg(pool, chain_data, filter_seen, 20, 3), abs=1e-9)


def test_models_that_read_less_far_back_are_judged_as_they_teach(chain_data):
    """A pool reads as far back as all of its models can; so does the judge of how much each counts."""
    rankers = [SASRec(dim=8, layers=1, max_length=length, item_features="id").build(12, length) for length in (2, 6)]
    for ranker in rankers:
        torch.nn.init.normal_(ranker.items.weight)
    expected = validation_ndcg(Ensemble(rankers, (1, 3)), chain_data)
    assert EnsembleValidation(rankers, chain_data)((1, 3)).mean() == pytest.approx(expected, abs=1e-9)
