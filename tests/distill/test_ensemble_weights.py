"""How much each teacher counts in the mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from llmd4rec.data.dataset import Dataset
from llmd4rec.distillation.ensemble import MAX_WEIGHT, choose_weights, describe_weights
from llmd4rec.evaluation.validation import EnsembleValidation, validation_value
from llmd4rec.models.ensemble import Ensemble
from llmd4rec.models.sequential import SASRec

Judge = Callable[[Sequence[int]], NDArray[np.float64]]


def steady(value: Callable[[Sequence[int]], float]) -> Judge:
    """A judge whose every target says the same, so that each difference is beyond noise."""
    return lambda weights: np.full(5, float(value(weights)))


def test_the_climb_ends_where_no_neighbour_is_better() -> None:
    asked = []

    def value(weights: Sequence[int]) -> float:
        asked.append(tuple(weights))
        return -abs(weights[0] / sum(weights) - 0.75) - abs(weights[1] / sum(weights) - 0.25)  # 3 : 1 : 0

    weights, best = choose_weights(steady(value), (1, 1, 1))
    assert weights == (3, 1, 0)
    assert best == 0
    assert asked[0] == (1, 1, 1)
    assert len(asked) == len(set(asked))  # none is asked for twice
    assert (0, 0, 0) not in asked


def test_the_start_stays_where_nothing_is_better() -> None:
    assert choose_weights(steady(lambda weights: 0.5), (1, 1, 1)) == ((1, 1, 1), 0.5)
    assert choose_weights(steady(lambda weights: 0.5), (1, 0)) == ((1, 0), 0.5)
    assert choose_weights(steady(lambda weights: 0.5), (1,)) == ((1,), 0.5)


def test_a_gain_must_exceed_its_standard_error() -> None:
    """Four targets gain 1 and some lose 1: by hand, mean and standard error of the differences."""

    def judge(losers: int) -> Judge:
        worse = np.zeros(10)
        better = np.array([1.0] * 4 + [-1.0] * losers + [0.0] * (6 - losers))
        return lambda weights: better if weights == (1, 1) else worse

    # 4 - 2: mean .2, deviation .789, error .249; 4 - 1: mean .3, deviation .675, error .213
    assert choose_weights(judge(2), (1, 0))[0] == (1, 0)
    weights, gain = choose_weights(judge(1), (1, 0))
    assert weights == (1, 1)
    assert gain == pytest.approx(0.3)


def test_weights_are_bounded() -> None:
    assert choose_weights(steady(lambda weights: weights[0]), (1, 1))[0][0] == MAX_WEIGHT


def test_weights_in_words() -> None:
    assert describe_weights({"a": 2, "b": 1, "c": 0}) == "2 × a + b (c unused)"
    assert describe_weights({"a": 1, "b": 1}) == "a + b"


@pytest.mark.parametrize("weights", [(1, 0, 0), (0, 0, 2), (1, 1, 0), (3, 1, 2)])
@pytest.mark.parametrize("filter_seen", [True, False])
def test_ensembles_are_judged_as_any_model_is(weights: tuple[int, ...], filter_seen: bool, chain_data: Dataset) -> None:
    """Against the ensemble built and ranked as one model; of models of different widths."""
    models = [
        SASRec(dim=dim, heads=1, max_length=length).build(chain_data.num_items, seed=dim).eval()
        for dim, length in ((4, 6), (8, 6), (16, 6))
    ]
    for model in models:
        torch.nn.init.normal_(model.items.weight)
    used = [(model, weight) for model, weight in zip(models, weights, strict=True) if weight]
    ensemble = Ensemble(*zip(*used, strict=True))
    judge = EnsembleValidation(models, chain_data, filter_seen, max_users=20, seed=3, batch_size=7)
    each = judge(weights)
    assert each.shape == (20,)
    assert each.mean() == pytest.approx(validation_value(ensemble, chain_data, filter_seen, 20, 3), abs=1e-9)


def test_models_that_read_less_far_back_are_judged_as_they_teach(chain_data: Dataset) -> None:
    """An ensemble reads as far back as all of its models can; so does the judge of how much each counts."""
    models = [SASRec(dim=8, layers=1, max_length=length, item_features="id").build(12, length) for length in (2, 6)]
    for model in models:
        torch.nn.init.normal_(model.items.weight)
    expected = validation_value(Ensemble(models, (1, 3)), chain_data)
    assert EnsembleValidation(models, chain_data)((1, 3)).mean() == pytest.approx(expected, abs=1e-9)
