"""How much of the items' popularity a taught CRM leaves out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from evaluation.examples import chain_dataset

from llmd4rec.distill.popularity import balanced_share, popularity_prior
from llmd4rec.evaluation.evaluate import PoolValidation
from llmd4rec.models.crm import SASRec

#: Two rare targets and two popular ones; of the CRM alone.
RARE, ALONE = np.array([True, True, False, False]), np.array([0.1, 0.3, 0.4, 0.8])


@pytest.mark.parametrize(
    ("rare", "popular", "share"),
    [
        # Relative gain on rare items and on popular ones, without any share; with each .05 rare items gain .02 more.
        # Rare items are a quarter of what is found: (.05, .10) is .0875 overall, met by .05 + .04 with .1.
        (0.20, 0.10, 0.0),
        (0.05, 0.10, 0.1),
        (0.05, 0.30, 0.3),  # would take .47, which is more than there is
        (-0.01, 0.02, 0.1),
    ],
)
def test_as_much_is_left_out_as_rare_items_need(rare, popular, share):
    def judge(share):
        gain = np.where(RARE, rare + 0.4 * share, popular)
        # What rare items gain popular ones lose, so that it costs nothing: .4 against 1.2 in sum.
        return ALONE * (1 + gain - np.where(RARE, 0, 0.4 * share / 3))

    assert balanced_share(judge, ALONE, RARE) == share


@pytest.mark.parametrize(("cost", "share"), [(0.0, 0.3), (0.001, 0.1), (0.003, 0.0)])
def test_no_more_is_left_out_than_costs_next_to_nothing(cost, share):
    """So much of the whole with each .05: two thousandths are within a quarter of a percent, three are not."""
    assert balanced_share(lambda s: 2 * ALONE * np.where(RARE, 0.5, 1) * (1 - cost * s / 0.05), ALONE, RARE) == share


def test_without_rare_targets_or_hits_nothing_is_left_out():
    nowhere = np.zeros(4, dtype=bool)
    assert balanced_share(lambda share: ALONE, ALONE, nowhere) == 0
    # Nothing found alone: whatever the teachers find of rare items is more than in proportion.
    assert balanced_share(lambda share: ALONE, np.where(RARE, 0, ALONE), RARE) == 0


def test_the_prior_by_hand():
    prior = popularity_prior(torch.tensor([0, 1, 6]), 0.5)
    torch.testing.assert_close(prior, torch.tensor([0.0, 0.34657359, 0.97295507]))


def test_teachers_are_judged_with_what_is_added_to_their_mean():
    """An addition that is larger than any score ranks by itself; one that is the same for all items changes nothing."""
    data = chain_dataset(users=30, items=12, length=8)
    rankers = [SASRec(dim=dim, heads=1, max_length=6).build(data.num_items, seed=dim).eval() for dim in (4, 8)]
    judge = PoolValidation(rankers, data, "keep")
    np.testing.assert_array_equal(judge((1, 2), torch.full((12,), 3.0)), judge((1, 2)))
    by_index = judge((1, 2), 1e4 * torch.arange(12.0))
    np.testing.assert_allclose(by_index, 1 / np.log2(1 + 12 - data.items[data.valid]) * (data.items[data.valid] > 1))
