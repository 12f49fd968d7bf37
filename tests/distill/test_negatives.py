"""Items that nobody could have chosen in the training part are no negatives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import torch
from settings_of import parse_settings
from torch.nn import functional as F

from llmd4rec.data.batching import TrainingBatch, TrainingWindows
from llmd4rec.data.dataset import Dataset
from llmd4rec.distillation.cache import write_cache
from llmd4rec.distillation.methods.dllm2rec import DLLM2Rec
from llmd4rec.distillation.plan import plan
from llmd4rec.losses.base import TeacherBatch
from llmd4rec.losses.objective import RankingObjective
from llmd4rec.losses.sampling import draw_candidates
from llmd4rec.losses.scores import Factors
from llmd4rec.losses.softmax import DistillationTerm
from llmd4rec.models.base import SequenceEncoder
from llmd4rec.models.embedding import item_embedding_of
from llmd4rec.models.sequential import SASRec
from llmd4rec.runs.teachers import negatives_of
from llmd4rec.training.settings import Training

ITEMS, DIM, POSITIONS = 7, 8, 5
KNOWN = torch.tensor([0, 2, 3, 5])


def model() -> SequenceEncoder:
    return SASRec(dim=DIM, layers=1, heads=2, max_length=4, item_features="id").build(ITEMS, seed=1)


def batch(candidate_C: torch.Tensor | None) -> TrainingBatch:
    return TrainingBatch(
        items_BL=torch.zeros(1, POSITIONS, dtype=torch.int64),
        lengths_B=torch.tensor([POSITIONS]),
        trained_N=torch.arange(POSITIONS),
        target_N=torch.tensor([0, 2, 5, 3, 5]),
        position_N=torch.arange(POSITIONS),
        candidate_C=candidate_C,
    )


class OneTeacher:
    def __init__(self, states_ND: torch.Tensor, table_ID: torch.Tensor) -> None:
        self.states_ND, self.table_ID = states_ND, table_ID

    def batch(self, position_N: torch.Tensor, candidate_C: torch.Tensor | None = None) -> TeacherBatch:
        table = self.table_ID if candidate_C is None else self.table_ID[candidate_C]
        return TeacherBatch(Factors(self.states_ND[position_N], table), torch.ones(len(position_N), dtype=torch.int64))


def gradient_of(network: SequenceEncoder) -> torch.Tensor:
    gradient = item_embedding_of(network).weight.grad
    assert gradient is not None
    return gradient


def states() -> torch.Tensor:
    return torch.randn(POSITIONS, DIM, generator=torch.Generator().manual_seed(2), requires_grad=True)


def test_the_denominator_is_of_known_items_alone() -> None:
    network, states_ND = model(), states()
    found = RankingObjective(Training())(states_ND, network, batch(KNOWN), 0).loss
    found.backward()
    expected = 0.0
    with torch.no_grad():
        scores = states_ND @ network.item_table().T
        for row, target in zip(scores, batch(None).target_N, strict=True):
            expected += float(torch.log(torch.exp(row[KNOWN]).sum()) - row[target]) / POSITIONS
    assert abs(found.item() - expected) < 1e-5
    gradient = gradient_of(network)
    unknown = [item for item in range(ITEMS) if item not in KNOWN]
    assert torch.all(gradient[unknown] == 0)  # nobody pushes them down
    assert torch.all(gradient[KNOWN].abs().sum(1) > 0)


def test_with_all_items_known_nothing_changes() -> None:
    network, states_ND = model(), states()
    plain = RankingObjective(Training())(states_ND, network, batch(None), 0).loss
    given = RankingObjective(Training())(states_ND, network, batch(torch.arange(ITEMS)), 0).loss
    assert torch.equal(plain, given)


def test_a_teacher_says_nothing_of_unknown_items() -> None:
    network, states_ND = model(), states()
    teacher = OneTeacher(torch.randn(POSITIONS, DIM), torch.randn(ITEMS, DIM))
    term = DistillationTerm(weight=3.0, sample_weights="none")
    found = RankingObjective(Training(), teacher, term)(states_ND, network, batch(KNOWN), 0)
    with torch.no_grad():
        student = F.log_softmax((states_ND @ network.item_table().T)[:, KNOWN], 1)
        taught = F.log_softmax((teacher.states_ND @ teacher.table_ID.T)[:, KNOWN], 1)
        kl = (taught.exp() * (taught - student)).sum(1).mean()
        place = torch.searchsorted(KNOWN, batch(None).target_N)
        expected = F.nll_loss(student, place) + 3 * kl
    assert abs(found.loss.item() - float(expected)) < 1e-4


def test_sample_weights_count_known_items_alone() -> None:
    network = model()
    with torch.no_grad():
        table = torch.zeros(ITEMS, DIM)
        table[:, 0] = torch.tensor([1.0, 9.0, 3.0, 2.0, 8.0, 0.0, 7.0])  # 1, 4 and 6, the best, are unknown
        item_embedding_of(network).weight.copy_(table)
    states_ND = torch.zeros(POSITIONS, DIM)
    states_ND[:, 0] = 1.0
    teacher = OneTeacher(torch.randn(POSITIONS, DIM), torch.randn(ITEMS, DIM))
    term = DistillationTerm(weight=1.0, sample_weights="rank")
    figures = RankingObjective(Training(), teacher, term)(states_ND, network, batch(KNOWN), 0).figures
    # Ranks of 0, 2, 5, 3, 5 among 2 > 3 > 0 > 5 are 3, 1, 4, 2, 4; the teacher's are 1: weights 2, 1, 2, 2, 2.
    assert abs(float(figures["weight_mean"]) - 9 / 5) < 1e-6


def test_candidates_are_drawn_among_known_items() -> None:
    target_N = torch.tensor([2, 5])
    candidate_C, row_N, bias_C = draw_candidates(target_N, ITEMS, 100, torch.Generator().manual_seed(0), KNOWN)
    assert candidate_C.tolist() == KNOWN.tolist()
    assert candidate_C[row_N].tolist() == target_N.tolist()
    assert bias_C.tolist() == [0.0] * len(KNOWN)  # each drawn item stands for itself


def test_other_methods_leave_unknown_items_out_too() -> None:
    network, states_ND = model(), states()
    cache = OneTeacher(torch.randn(POSITIONS, DIM), torch.randn(ITEMS, DIM))
    method = DLLM2Rec(items=2)
    objective = method.objective(Training(), cache, DistillationTerm(), network, 0)  # type: ignore[arg-type]
    loss = objective(states_ND, network, batch(KNOWN), 0).loss
    loss.backward()
    assert torch.all(gradient_of(network)[[1, 4, 6]] == 0)


def temporal_data() -> Dataset:
    """Item `late` is first chosen behind the cut."""
    rows = [(f"u{user}", f"i{(user + step) % 6}", 100 * step + user) for user in range(8) for step in range(6)]
    rows += [("u0", "late", 10_000), ("u1", "late", 10_001), ("u2", "i1", 9_000)]
    log = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    return Dataset.from_frames(log, split="temporal", test_fraction=0.04, valid_fraction=0.04)


def test_which_items_are_negatives() -> None:
    data = temporal_data()
    late = data.item_index["late"]
    auto, every = (plan(parse_settings({"rounds": 0, "training": {"negatives": how}}))[0] for how in ("auto", "all"))
    known = negatives_of(auto, data)
    assert known is not None
    assert known.tolist() == [item for item in range(data.num_items) if item != late]
    assert negatives_of(every, data) is None
    assert negatives_of(auto, data.whole()) is None  # by then it is known
    leave_one_out = Dataset.from_frames(
        pl.DataFrame({"user_id": [*"uuuuvvvv"], "item_id": [*"abcdabce"], "timestamp": [*range(8)]})
    )
    assert (leave_one_out.train_counts == 0).any()
    assert negatives_of(auto, leave_one_out) is None
    named = plan(parse_settings({"rounds": 0, "training": {"negatives": "known"}}))[0]
    assert negatives_of(named, leave_one_out) is not None


def test_a_teachers_ranks_are_among_known_items(tmp_path: Path) -> None:
    data, network = temporal_data(), SASRec(dim=DIM, layers=1, heads=2, max_length=4, item_features="id")
    built = network.build(data.num_items, seed=3).eval()
    known = np.flatnonzero(data.train_counts)
    folder = tmp_path / "cache"
    write_cache(built, data, folder, label="a", candidates=known)
    windows = TrainingWindows(data, built.max_length)
    ranks = np.load(folder / "rank.npy")
    with torch.no_grad():
        for chosen in windows.in_order(1000):
            found = windows.batch(chosen)
            state_ND = found.trained(built.states(found)).half().float()
            scores = (state_ND @ built.item_table().T)[:, torch.from_numpy(known)]
            own = scores[torch.arange(len(scores)), torch.searchsorted(torch.from_numpy(known), found.target_N)]
            assert ranks[found.position_N.numpy()].tolist() == (scores >= own[:, None]).sum(1).tolist()
