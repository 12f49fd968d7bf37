"""How much of the items' popularity a student leaves to the prior."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from evaluation.examples import chain_dataset

from llmd4rec.distillation.logit_adjustment import choose_tau, popularity_prior
from llmd4rec.evaluation.validation import EnsembleValidation
from llmd4rec.models.sequential import SASRec


@pytest.mark.parametrize(
    ("cost", "tau"),
    [(-0.01, 0.2), (0.0, 0.2), (0.00124, 0.2), (0.00126, 0.15), (0.0024, 0.1), (0.0049, 0.05), (0.0051, 0.0)],
)
def test_tau_is_as_large_as_the_teachers_can_bear(cost: float, tau: float) -> None:
    """They lose so much of the whole with each .05; half a percent may be lost."""
    assert choose_tau(lambda tried: np.array([0.2, 0.6]) * (1 - cost * tried / 0.05)) == tau


def test_the_prior_by_hand() -> None:
    prior = popularity_prior(torch.tensor([0, 1, 6]), 0.5)
    torch.testing.assert_close(prior, torch.tensor([0.0, 0.34657359, 0.97295507]))


def test_teachers_are_judged_with_what_is_added_to_their_mean() -> None:
    """An addition that is larger than any score ranks by itself; one that is the same for all items changes nothing."""
    data = chain_dataset(users=30, items=12, length=8)
    models = [SASRec(dim=dim, heads=1, max_length=6).build(data.num_items, seed=dim).eval() for dim in (4, 8)]
    judge = EnsembleValidation(models, data, False)
    np.testing.assert_array_equal(judge((1, 2), torch.full((12,), 3.0)), judge((1, 2)))
    by_index = judge((1, 2), 1e4 * torch.arange(12.0))
    np.testing.assert_allclose(by_index, 1 / np.log2(1 + 12 - data.items[data.valid]) * (data.items[data.valid] > 1))
