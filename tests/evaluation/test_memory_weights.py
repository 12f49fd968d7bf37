"""Weights of a memory and of a model beside it: which parts stay, and what the weights must not depend on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from llmd4rec.data.batching import SequenceBatch
from llmd4rec.data.dataset import Dataset
from llmd4rec.errors import ConfigError
from llmd4rec.evaluation.held_out import held_out
from llmd4rec.evaluation.memory_candidates import MAX_TARGETS
from llmd4rec.evaluation.memory_weights import FittedWeights, choose_weights, fit_memory, sample_candidates
from llmd4rec.evaluation.validation import validation_value
from llmd4rec.scoring.base import Query, Scorer
from llmd4rec.scoring.factors import FactorQuery
from llmd4rec.scoring.from_rows import RowsScorer
from llmd4rec.scoring.memory.settings import DEFAULT_WEIGHTS, Memory, Recency
from llmd4rec.scoring.memory.state import CountedMemory, count_memory
from llmd4rec.scoring.sums import WeightedSum

from .examples import make_dataset

ITEMS = 60
DAY = 86_400
START = 1_400_000_000


class OfLastItem(Scorer):
    """Scores by the last item of a history alone.

    Args:
        scores_II: the scores of all items, a row for each last item.
    """

    max_length = 1

    def __init__(self, scores_II: NDArray[np.float32]) -> None:
        self._scores_II = torch.from_numpy(scores_II)

    @property
    def num_items(self) -> int:
        """I."""
        return len(self._scores_II)

    def prepare(self, batches: Iterable[SequenceBatch]) -> Query:
        """The row of each last item, times one."""
        last_B = torch.cat(
            [batch.items_BL[torch.arange(len(batch.lengths_B)), batch.lengths_B - 1] for batch in batches]
        )
        return FactorQuery(self._scores_II[last_B], torch.eye(self.num_items))


def walks(users: int = 300, follows: float = 0.8, seed: int = 0, times: bool = False) -> Dataset:
    """Item i is followed by i + 7, modulo the number of items, mostly; the order says all there is to know."""
    rng = np.random.default_rng(seed)
    histories = []
    for _ in range(users):
        history = [int(rng.integers(ITEMS))]
        while len(history) < 7:
            history.append((history[-1] + 7) % ITEMS if rng.random() < follows else int(rng.integers(ITEMS)))
        histories.append(history)
    moments = [[START + (user * 7 + place) * DAY // 50 for place in range(7)] for user in range(users)]
    return make_dataset(histories, ITEMS, moments if times else None)


def noise(width: int = 16, seed: int = 5) -> NDArray[np.float32]:
    """Texts that say nothing."""
    return np.random.default_rng(seed).normal(size=(ITEMS, width)).astype(np.float32)


def memory_of(data: Dataset, texts_IT: NDArray[np.float32] | None, settings: Memory | None = None) -> CountedMemory:
    found = count_memory(settings or Memory(), data, texts_IT)
    assert found is not None
    return found


def knows_the_step() -> OfLastItem:
    """A model that has learned what follows what."""
    scores_II = np.zeros((ITEMS, ITEMS), dtype=np.float32)
    scores_II[np.arange(ITEMS), (np.arange(ITEMS) + 7) % ITEMS] = 4
    noise_II = np.random.default_rng(1).normal(size=scores_II.shape) / 100
    return OfLastItem((scores_II + noise_II).astype(np.float32))


def knows_nothing() -> OfLastItem:
    return OfLastItem(np.random.default_rng(2).normal(size=(ITEMS, ITEMS)).astype(np.float32))


def relative(fitted: FittedWeights) -> dict[str, float]:
    """All weights, in parts of the transitions'."""
    weights = {**fitted.weights, "model": fitted.model}
    return {name: weight / fitted.weights["transitions"] for name, weight in weights.items()}


def test_texts_that_say_nothing_weigh_next_to_nothing_and_cost_nothing() -> None:
    data = walks()
    alone = fit_memory(memory_of(data, None), data)
    for seed in range(5):
        fitted = fit_memory(memory_of(data, noise(seed=seed)), data)
        assert relative(fitted)["content"] < 0.3 * DEFAULT_WEIGHTS["content"] / DEFAULT_WEIGHTS["transitions"]
        assert fitted.value == pytest.approx(alone.value, abs=alone.standard_error)


def test_a_part_that_ranks_against_the_truth_is_left_out_and_said() -> None:
    data = walks()
    texts_IT = noise()
    for item in range(ITEMS):  # what follows an item reads like its opposite
        texts_IT[(item + 7) % ITEMS] -= 2 * texts_IT[item]
    fitted = fit_memory(memory_of(data, texts_IT), data)
    assert fitted.weights["content"] == 0
    assert set(fitted.left_out) == {"content", "item_knn"}
    assert fitted.memory.weights["content"] == 0


def test_a_useless_model_weighs_next_to_nothing() -> None:
    data = walks()
    memory = memory_of(data, None)
    fitted = fit_memory(memory, data, model=knows_nothing())
    assert fitted.model < 0.2 * fitted.weights["transitions"]
    assert fitted.wanted
    assert fitted.value > 3 * fitted.model_value


def test_a_memory_that_adds_nothing_to_a_model_is_not_wanted() -> None:
    data = walks(users=40, follows=0.95)  # too few to count much
    content_alone = Memory(transitions=None, recency=None)
    wanted = []
    for seed in range(8):
        memory = memory_of(data, noise(seed=seed), content_alone)
        fitted = fit_memory(memory, data, model=knows_the_step())
        assert fitted.model > 0
        assert fitted.model_value > 0.4
        wanted.append(fitted.wanted)
    assert sum(wanted) <= 3  # one standard error: noise exceeds it now and then


def test_the_scale_of_a_model_is_undone_by_its_weight() -> None:
    data = walks()
    memory, model = memory_of(data, noise()), knows_the_step()
    one = fit_memory(memory, data, model=model)
    larger = fit_memory(memory, data, model=OfLastItem(np.float32(100) * model._scores_II.numpy()))
    assert 100 * larger.model / one.model == pytest.approx(1, rel=0.35)
    assert larger.value == pytest.approx(one.value, abs=one.standard_error / 2)


def test_the_same_again() -> None:
    data = walks(users=120, times=True)
    memory, model = memory_of(data, noise()), knows_the_step()
    first, second = (fit_memory(memory, data, model=model, seed=3) for _ in range(2))
    assert replace(first, memory=memory) == replace(second, memory=memory)


def test_few_targets_leave_the_defaults() -> None:
    data = walks(users=12)
    fitted = fit_memory(memory_of(data, noise()), data, model=knows_the_step())
    assert fitted.weights == {name: DEFAULT_WEIGHTS[name] for name in ("content", "transitions", "item_knn")}
    assert fitted.model > 0
    assert not fitted.left_out


def test_the_value_is_that_of_the_whole_catalogue() -> None:
    data = walks()
    memory, model = memory_of(data, noise()), knows_the_step()
    fitted = fit_memory(memory, data, model=model)
    rows = RowsScorer(fitted.memory, "memory", max_length=memory.max_length, reads=memory.reads)
    exact = validation_value(WeightedSum([model, rows], [fitted.model, 1.0]), data)
    assert fitted.value == pytest.approx(exact, abs=1e-6)
    assert fitted.model_value == pytest.approx(validation_value(model, data), abs=1e-6)


def test_seen_items_are_candidates_where_they_may_come_again() -> None:
    data = walks()
    memory = memory_of(data, None)
    rows = RowsScorer(memory, "memory", max_length=memory.max_length, reads=memory.reads)
    held = held_out(data, "valid")
    kept = sample_candidates(memory, data, filter_seen=False)
    removed = sample_candidates(memory, data)
    assert kept.possible_B.all()
    again_B = np.array([data.items[p] in data.history(int(p)) for p in held.positions])
    assert np.array_equal(~removed.possible_B, again_B)
    fitted = fit_memory(memory, data, filter_seen=False)
    assert fitted.value == pytest.approx(validation_value(rows, data, filter_seen=False), abs=1e-6)


def test_candidates_stand_for_the_whole_catalogue() -> None:
    data = walks()
    found = sample_candidates(memory_of(data, noise()), data)
    held = held_out(data, "valid")
    unseen_B = np.array([ITEMS - len(set(data.history(int(p)).tolist())) for p in held.positions])
    stands_for_B = np.exp(found.others_BC).sum(axis=1)
    possible_B = found.possible_B
    assert np.allclose(stands_for_B[possible_B], unseen_B[possible_B])


@pytest.mark.parametrize("as_of", [None, START + 20 * DAY])
def test_recency_of_other_half_lives_is_that_of_such_a_scorer(as_of: int | None) -> None:
    data = walks(users=120, times=True)
    settings = Memory(recency=Recency(half_life_days=3.0))
    memory = count_memory(settings, data, None, before=as_of)
    assert memory is not None
    found = sample_candidates(memory, data)
    own = found.half_lives.index(3.0)
    place = found.names.index("recency")
    real_BC = found.others_BC > -np.inf
    assert np.allclose(found.recency_BCH[..., own][real_BC], found.scores_BCF[..., place][real_BC], atol=1e-5)
    other = count_memory(Memory(recency=Recency(half_life_days=30.0)), data, None, before=as_of)
    assert other is not None
    expected = sample_candidates(other, data)
    thirty = found.recency_BCH[:, 0, found.half_lives.index(30.0)]  # the target, which is first in both
    assert np.allclose(thirty, expected.scores_BCF[:, 0, place], atol=1e-5)


def test_recency_forgets_as_fast_as_the_log_does() -> None:
    rng = np.random.default_rng(0)
    moments = [np.sort(rng.choice(200 * 24, 5, replace=False)) * (DAY // 24) for _ in range(400)]
    histories = [  # each day has an item of its own, which most choose then
        [int(time // DAY) % ITEMS if rng.random() < 0.7 else int(rng.integers(ITEMS)) for time in times]
        for times in moments
    ]
    data = make_dataset(histories, ITEMS, [times.tolist() for times in moments])
    memory = memory_of(data, None, Memory(content=None, recency=Recency(half_life_days=64.0)))
    fitted = fit_memory(memory, data)
    assert fitted.memory.settings.recency == Recency(half_life_days=2.0)
    assert fitted.memory.recency is not None
    assert fitted.memory.recency.events.settings.half_life_days == 2.0
    assert memory.settings.recency == Recency(half_life_days=64.0)


def test_windows_are_fitted_together() -> None:
    data = walks(users=120, times=True)
    held = held_out(data, "valid")
    memory = memory_of(data, noise())
    half = len(held.positions) // 2
    parts = [held.take(np.arange(half)), held.take(np.arange(half, len(held.positions)))]
    together = choose_weights([sample_candidates(memory, data, held=part) for part in parts])
    whole = fit_memory(memory, data, held=held)
    assert together.value == pytest.approx(whole.value, abs=whole.standard_error)
    assert relative(together)["content"] == pytest.approx(relative(whole)["content"], abs=0.5)
    with pytest.raises(ConfigError, match="same parts"):
        choose_weights([sample_candidates(memory, data), sample_candidates(memory_of(data, None), data)])


def test_beside_a_model_more_targets_are_asked() -> None:
    data = walks(users=MAX_TARGETS + 200)
    memory = memory_of(data, None)
    alone = sample_candidates(memory, data)
    beside = sample_candidates(memory, data, model=knows_the_step())
    assert len(alone.possible_B) == MAX_TARGETS
    assert len(beside.possible_B) == len(data.valid) > MAX_TARGETS


def interests(users: int = 300, seed: int = 0) -> Dataset:
    """Every fourth item is of the user's one interest, of three with ten items each; between stands anything."""
    rng = np.random.default_rng(seed)
    histories = []
    for _ in range(users):
        own = (rng.permutation(10) + 10 * rng.integers(3)).tolist()
        between = (30 + rng.permutation(300)).tolist()
        histories.append([own.pop() if place % 4 == 0 else between.pop() for place in range(14)])
    return make_dataset(histories, 330)


def test_item_knn_stays_only_where_it_surely_pays() -> None:
    """Interests show over the whole history; on walks the last item tells, and transitions have said it."""
    paid, in_vain = (fit_memory(memory_of(data, None), data) for data in (interests(), walks()))
    assert paid.weights["item_knn"] > 0
    assert in_vain.weights["item_knn"] == 0
    assert in_vain.left_out["item_knn"] == "validation is not surely better with it"
    free = fit_memory(memory_of(walks(), None), walks(), must_pay=())  # as where it teaches, which costs less
    assert free.weights["item_knn"] > 0
    assert free.value == pytest.approx(in_vain.value, abs=in_vain.standard_error)
    three = fit_memory(memory_of(walks(), None, Memory(item_knn=None)), walks())
    assert in_vain.value == pytest.approx(three.value, abs=three.standard_error)
    fewer = fit_memory(memory_of(interests(), None, Memory(item_knn=None)), interests())
    assert paid.value > fewer.value + fewer.standard_error
