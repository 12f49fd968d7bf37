"""The memory as a teacher: its scores without the step that is to be predicted, in cache, loss, plan and run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from distill.test_cache import contexts
from evaluation.examples import chain_dataset, make_dataset
from scoring.memory_oracle import (
    content_scores,
    counted,
    item_knn_scores,
    pairs,
    random_log,
    random_texts,
    together,
)
from settings_of import parse_settings
from torch import Tensor
from torch.nn import functional as F

from llmd4rec.data.batching import SequenceBatch, TrainingBatch, TrainingWindows
from llmd4rec.data.dataset import Dataset
from llmd4rec.distillation.cache import open_cache, write_cache
from llmd4rec.distillation.memory_teacher import MemoryTeacher
from llmd4rec.distillation.plan import find, plan
from llmd4rec.distillation.rollouts import Rollouts
from llmd4rec.errors import ConfigError
from llmd4rec.losses.base import TeacherBatch
from llmd4rec.losses.objective import RankingObjective, seen_items
from llmd4rec.losses.scores import NO_CHANCE, Factors, PlusSparse, SparseScores, score_blocks
from llmd4rec.losses.softmax import DistillationTerm, ranking_loss
from llmd4rec.models.base import SequenceEncoder, last_states
from llmd4rec.models.sequential import SASRec
from llmd4rec.runs.run import Run
from llmd4rec.scoring.memory.settings import Content, Memory, Transitions
from llmd4rec.scoring.memory.state import CountedMemory, count_memory
from llmd4rec.training.settings import Training

CPU = torch.device("cpu")
ITEMS = 12
WEIGHTS = {"content": 2.0, "transitions": 1.5, "recency": 9.0, "item_knn": 3.0}
SETTINGS = Memory(content=Content(dim=64), transitions=Transitions(recent_weight=0.0))


def network() -> SequenceEncoder:
    built = SASRec(dim=8, layers=1, heads=2, max_length=20).build(ITEMS, 3)
    with torch.no_grad():
        built.get_parameter("items.weight").mul_(20)
    return built.eval()


def memory_of(data: Dataset, texts: np.ndarray[Any, np.dtype[np.float32]] | None) -> CountedMemory:
    memory = count_memory(SETTINGS, data, texts)
    assert memory is not None
    return memory.with_weights(WEIGHTS)


def without_own_step(data: Dataset, history: list[int], target: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The scores of transitions by loops: of all counts those that the step from the history to the target made."""
    settings = SETTINGS.transitions
    assert settings is not None
    total = pairs(data, counted(data, None), settings, None)
    for gap in range(1, min(settings.gaps, len(history)) + 1):
        total[history[-gap], target] -= 1 / gap
        total[target, history[-gap]] -= settings.reverse / gap
    recent = zip(settings.last, history[::-1], strict=False)
    summed = sum((weight * total[item] for weight, item in recent), np.zeros(ITEMS))
    scores: np.ndarray[Any, np.dtype[np.float64]] = np.log1p(3 * np.maximum(summed, 0))
    return scores


def without_own_pairs(data: Dataset, history: list[int], user: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The scores of item-kNN by loops: of all pairs but those of the user."""
    settings = SETTINGS.item_knn
    assert settings is not None
    counts = counted(data, None)
    own = [data.offsets[user] <= place < data.offsets[user + 1] and each for place, each in enumerate(counts)]
    both, chosen = together(data, counts, settings.last)
    return item_knn_scores(history, both - together(data, own, settings.last)[0], chosen, settings)


def test_the_cache_holds_model_and_memory_less_the_step_to_be_predicted(tmp_path: Path) -> None:
    data, texts, model = random_log(4, items=ITEMS), random_texts(4, ITEMS), network()
    memory = memory_of(data, texts)
    write_cache(model, data, tmp_path / "t", label="t", memory=MemoryTeacher(memory, 0.5, data))
    cache = open_cache(tmp_path / "t", data, CPU)
    assert cache.memory == {"model": 0.5, "content": 2.0, "transitions": 1.5, "item_knn": 3.0}  # recency does not teach
    found = torch.cat([block.clone() for block in score_blocks(cache.batch(torch.arange(len(cache.rank))).scores)])
    content = SETTINGS.content
    assert content is not None
    windows = TrainingWindows(data, 20)
    assert len(cache.rank) == windows.num_positions > 50
    user_P = np.repeat(np.arange(data.num_users), np.asarray(data.train_end) - data.offsets[:-1] - 1)
    for place, (history, target) in enumerate(contexts(data, 20)):
        with torch.inference_mode():
            batch = SequenceBatch(torch.tensor([history]), torch.tensor([len(history)]))
            own = (last_states(model, batch) @ model.item_table().T)[0].numpy()
        expected = 0.5 * own + 2.0 * content_scores(history, texts, content)
        expected = expected + 1.5 * without_own_step(data, history, target)
        expected = expected + 3.0 * without_own_pairs(data, history, user_P[place])
        np.testing.assert_allclose(found[place].numpy(), expected, atol=0.02)  # states are kept in half precision
        rank = int((found[place] >= found[place, target]).sum())
        assert cache.rank[place] == rank


def test_a_pair_that_one_user_made_says_nothing_of_itself() -> None:
    """Every step of these histories was made once: with it, the teacher would know every answer."""
    data = make_dataset([[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]], ITEMS)
    memory = memory_of(data, None)
    teacher = MemoryTeacher(memory, 1.0, data)
    targets = TrainingWindows(data, 20).targets()
    items_NK, values_NK = teacher.most_NK(np.arange(len(targets)))
    own = values_NK[items_NK == targets[:, None]]
    assert np.all(own == 0)
    assert values_NK.max() > 0  # what is two places away is known by the step after it
    # Of pairs the user's own are left out wholly, and there are no others.
    pairs_alone = MemoryTeacher(memory.with_weights({"item_knn": 1.0}), 1.0, data)
    assert pairs_alone.weights == {"model": 1.0, "item_knn": 1.0}
    np.testing.assert_allclose(pairs_alone.most_NK(np.arange(len(targets)))[1], 0, atol=1e-6)


def test_what_was_drawn_behind_a_history_was_not_counted() -> None:
    """2 is drawn behind 0, 1. Others chose it with 0 and with 1, and behind 1; none of that is this user's."""
    data = make_dataset([[0, 1, 9, 9], [1, 2, 9, 9], [0, 2, 9, 9]], ITEMS)
    rollouts = Rollouts(np.array([0, 1, 2, 1, 2, 0, 2], np.int32), np.array([0, 3, 5, 7]), data)
    memory = memory_of(data, None)
    settings = SETTINGS.item_knn
    assert settings is not None
    counts = counted(data, None)
    both, chosen = together(data, counts, settings.last)
    own = together(data, [place < 2 and each for place, each in enumerate(counts)], settings.last)[0]
    expected = {
        "transitions": memory.parts["transitions"].prepare([[0, 1]], [None], [None]).scores()[0],
        "item_knn": item_knn_scores([0, 1], both - own, chosen, settings),
    }
    for name, scores_I in expected.items():
        items_NK, values_NK = MemoryTeacher(memory.with_weights({name: 1.0}), 1.0, rollouts).most_NK(np.array([1]))
        assert scores_I[2] > 0
        np.testing.assert_allclose(values_NK[items_NK == 2], scores_I[2], rtol=1e-5)


def test_content_can_teach_alone(tmp_path: Path) -> None:
    data, texts = random_log(4, items=ITEMS), random_texts(4, ITEMS)
    memory = memory_of(data, texts).with_weights({"content": 2.0})
    write_cache(network(), data, tmp_path / "t", label="t", memory=MemoryTeacher(memory, 0.5, data))
    cache = open_cache(tmp_path / "t", data, CPU)
    assert cache.memory == {"model": 0.5, "content": 2.0}
    teaches = cache.batch(torch.arange(len(cache.rank)))
    assert float(teaches.scores.largest()) > 0
    assert torch.isfinite(torch.cat([block.clone() for block in score_blocks(teaches.scores)])).all()


def test_candidates_have_the_scores_of_the_catalogue() -> None:
    torch.manual_seed(0)
    base = Factors(torch.randn(5, 3), torch.randn(9, 3))
    items = torch.tensor([[1, 4, 8], [0, 2, 3], [5, 6, 7], [0, 0, 0], [2, 4, 6]])
    values = torch.rand(5, 3)
    values[3] = 0  # fewer than three items: 0 is added to any
    added = SparseScores(items, values)
    whole = torch.cat([block.clone() for block in score_blocks(PlusSparse(base, added))])
    candidates = torch.tensor([0, 2, 4, 7])
    some = PlusSparse(Factors(base.states_NK, base.table_IK[candidates]), added.among(candidates))
    torch.testing.assert_close(torch.cat([block.clone() for block in score_blocks(some)]), whole[:, candidates])
    halved = PlusSparse(base, added).in_units_of(2.0)
    torch.testing.assert_close(halved.of(slice(1, 4), torch.empty(3, 9)), whole[1:4] / 2)
    assert float(whole.abs().max()) <= PlusSparse(base, added).largest()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("large", [1.0, 40.0])
def test_what_was_seen_has_no_probability(temperature: float, large: float) -> None:
    """Loss and gradients are those of distributions over the other items, for small and for large scores."""
    torch.manual_seed(1)
    states, table = (large * torch.randn(7, 4)).requires_grad_(), torch.randn(11, 4, requires_grad=True)
    teacher_states, teacher_table = torch.randn(7, 5), torch.randn(11, 5)
    target = torch.randint(0, 11, (7,))
    seen = torch.rand(7, 11) < 0.3
    seen[torch.arange(7), target] = False
    # Some items are named twice, as in a history that comes back to them.
    items = torch.cat([torch.arange(11).expand(7, 11), torch.tensor([[2], [5], [2], [9], [0], [1], [2]])], 1)
    teaches = TeacherBatch(Factors(teacher_states, teacher_table), torch.ones(7, dtype=torch.int64))
    term = DistillationTerm(3.0, temperature, "none")
    excluded = SparseScores.excluding(items, seen.gather(1, items))
    loss = ranking_loss(states, table, target, teaches, term, block_elements=33, excluded=excluded).loss

    hidden = torch.where(seen, -math.inf, 0.0)
    scores, soft = states @ table.T + hidden, states @ table.T / temperature + hidden
    q = (teacher_states @ teacher_table.T / temperature + hidden).softmax(1)
    log_q, log_p = q.clamp_min(1e-30).log(), soft.log_softmax(1).masked_fill(seen, 0)
    kl = (q * (log_q.masked_fill(seen, 0) - log_p)).sum(1).mean() * temperature**2
    expected = F.cross_entropy(scores, target) + 3.0 * kl
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    for one, other in zip(*(torch.autograd.grad(each, [states, table]) for each in (loss, expected)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_seen_items_are_those_before_the_position_but_the_target() -> None:
    batch = TrainingBatch(
        items_BL=torch.tensor([[3, 5, 3, 0], [7, 8, 0, 0]]),
        lengths_B=torch.tensor([3, 2]),
        trained_N=torch.tensor([0, 2, 5]),  # behind 3; behind 3 5 3; behind 7 8
        target_N=torch.tensor([5, 5, 9]),
        position_N=torch.tensor([0, 1, 2]),
    )
    found = seen_items(batch)
    assert excluded(found, 10) == [{3}, {3}, {7, 8}]
    assert excluded(found.among(torch.tensor([3, 8])), 2) == [{0}, {0}, {1}]


def excluded(found: SparseScores, items: int) -> list[set[int]]:
    """The items that have no chance, of each position; all others are as they were."""
    scores = found.add_(slice(0, len(found.items_NK)), torch.zeros(len(found.items_NK), items))
    assert bool(((scores == 0) | (scores <= NO_CHANCE)).all())
    return [set(row.nonzero()[:, 0].tolist()) for row in scores]


def test_the_objective_leaves_out_what_was_seen_where_it_is_asked_to() -> None:
    torch.manual_seed(2)
    states, table = torch.randn(2, 4), torch.randn(6, 4)

    class Served(torch.nn.Module):
        num_items = 6

        def item_table(self, items: Tensor | None = None) -> Tensor:
            return table if items is None else table[items]

    batch = TrainingBatch(
        items_BL=torch.tensor([[1, 2]]),
        lengths_B=torch.tensor([2]),
        trained_N=torch.tensor([0, 1]),
        target_N=torch.tensor([2, 4]),
        position_N=torch.tensor([0, 1]),
    )
    term = DistillationTerm(0.0, sample_weights="none", exclude_seen=True)
    served = cast(SequenceEncoder, Served())
    scores = states @ table.T
    hidden = scores.clone()
    hidden[0, 1] = hidden[1, 1] = hidden[1, 2] = -math.inf
    for asked, expected in ((term, hidden), (DistillationTerm(0.0), scores)):
        loss = RankingObjective(Training(), None, asked)(states, served, batch, 0).loss
        torch.testing.assert_close(loss, F.cross_entropy(expected, batch.target_N))


def test_the_plan_names_the_memory_as_a_teacher_of_the_model_alone() -> None:
    asked = {"rounds": 1, "memory": "auto", "distill": {"memory": True, "exclude_seen": True}}
    stages = plan(parse_settings({**asked, "llm": None, "teachers": None}))
    assert [stage.id for stage in stages] == ["undistilled", "distilled-round-1"]
    teaching = find(stages, "distilled-round-1").teaching
    assert teaching is not None
    assert (teaching.memory, teaching.exclude_seen) == (Memory(), True)
    for stage in plan(parse_settings({**asked, "llm": {}, "teachers": "default"})):
        if stage.role == "llm" and stage.teaching is not None:
            assert (stage.teaching.memory, stage.teaching.exclude_seen) == (None, False)
    with pytest.raises(ConfigError, match="memory is null"):
        parse_settings({**asked, "memory": None})
    for other in ({"method": "leader"}, {"students": ["llm"]}):  # which would leave it out without a word
        with pytest.raises(ConfigError, match=r"distill\.memory is part of how the model is taught"):
            parse_settings({**asked, "llm": {}, "distill": {**asked["distill"], **other}})  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match="exclude_seen"):
        parse_settings({**asked, "evaluation": {"filter_seen": False}})


def test_a_run_is_taught_by_its_memory(tiny_settings: dict[str, Any], tmp_path: Path) -> None:
    """With the weights that the settings give; the record says them, and what served the training is gone."""
    data = chain_dataset(users=60, items=12, length=8)
    training = {**tiny_settings["training"]["model"], "epochs": 1}
    asked = {
        **tiny_settings, "llm": None, "memory": {"recency": None, "weights": {"transitions": 5.0}},
        "distill": {"source": "ensemble", "memory": True, "exclude_seen": True, "logit_adjustment": 0.0},
        "training": {"model": training},
    }  # fmt: skip
    run = parse_settings(asked).fit(data, tmp_path / "run")
    taught = run.record.stages["distilled-round-1"]
    assert taught["memory_teaches"] == {"model": 1.0, "transitions": 5.0}
    assert taught["teachers"] == {"undistilled": 1}
    # Nothing of it is needed any more, and the student is an ordinary model.
    assert not (run.folder / "teachers").exists()
    assert Run.open(tmp_path / "run").load("distilled-round-1").dim == run.load("undistilled").dim
