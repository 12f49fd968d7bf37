"""The other published ways to teach the served model: their losses against plain autograd, and in whole runs."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from settings_of import changed, parse_settings
from torch import Tensor
from torch.nn import functional as F

from llmd4rec.data.batching import TrainingBatch, TrainingWindows
from llmd4rec.data.dataset import Dataset
from llmd4rec.distillation.cache import TeacherCache
from llmd4rec.distillation.methods import LEADER, DLLM2Rec
from llmd4rec.distillation.methods.dllm2rec import importance
from llmd4rec.distillation.plan import find, plan
from llmd4rec.errors import ConfigError
from llmd4rec.losses.int8 import Int8Rows
from llmd4rec.losses.scores import Factors, score_blocks
from llmd4rec.losses.softmax import DistillationTerm
from llmd4rec.models.base import SequenceEncoder
from llmd4rec.models.sequential import SASRec
from llmd4rec.runs.run import Run
from llmd4rec.training import checkpoint
from llmd4rec.training.settings import Training

K = 3


@dataclasses.dataclass
class Case:
    """A student with its states at a batch's positions, and a teacher of them."""

    student: SequenceEncoder
    batch: TrainingBatch
    states_ND: Tensor
    teacher: TeacherCache
    teacher_NK: Tensor


@pytest.fixture
def case(chain_data: Dataset) -> Case:
    torch.manual_seed(3)
    student = SASRec(dim=8, layers=1, heads=2, max_length=6, dropout=0.0, item_features="id").build(
        chain_data.num_items, 1
    )
    windows = TrainingWindows(chain_data, 6)
    batch = windows.batch(next(iter(windows.in_order(40))))
    states_ND = batch.trained(student.states(batch)).detach().requires_grad_()
    shape = (windows.num_positions, 5)
    teacher = TeacherCache(
        states=torch.randn(shape).numpy(), table=torch.randn(chain_data.num_items, 5),
        rank=torch.ones(windows.num_positions, dtype=torch.int32).numpy(),
    )  # fmt: skip
    return Case(student, batch, states_ND, teacher, torch.from_numpy(teacher.states[batch.position_N.numpy()]))


def gradients(loss: Tensor, case: Case) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [case.states_ND, case.student.item_table()], allow_unused=True))


# ---- DLLM2Rec -----------------------------------------------------------------------------------------------------
def test_importance_by_hand() -> None:
    """Two items at 3 : 1, of which the student has the second."""
    settings = DLLM2Rec(position=0.3, confidence=0.5, consistency=0.1)
    got = importance(settings, torch.tensor([[math.log(3), 0.0]]), torch.tensor([[7, 4]]), torch.tensor([[4, 9]]))
    first, second = math.exp(-1), math.exp(-2)
    by_hand = torch.tensor(
        [[0.3 * first / (first + second) + 0.5 * 0.75, 0.3 * second / (first + second) + 0.5 * 0.25 + 0.1]]
    )
    torch.testing.assert_close(got, by_hand / by_hand.sum())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_dllm2rec_is_cross_entropy_with_each_of_the_teachers_best_items(
    case: Case, smoothing: float, precision: str
) -> None:
    settings = DLLM2Rec(items=K, weight=1.7)
    teacher, table = case.teacher, case.teacher.table
    assert isinstance(table, Tensor)
    said = case.teacher_NK @ table.T
    if precision == "int8":
        teacher = dataclasses.replace(teacher, table=Int8Rows.of(table))
        said = torch.cat([block.clone() for block in score_blocks(Factors(case.teacher_NK, teacher.table))])
    objective = settings.objective(Training(label_smoothing=smoothing), teacher, DistillationTerm(), case.student, 0)
    parts = objective(case.states_ND, case.student, case.batch, 0)

    scores = case.states_ND @ case.student.item_table().T
    best = said.topk(K, dim=1)
    weight = importance(settings, best.values, best.indices, scores.topk(K, dim=1).indices)
    taught = sum(
        (
            weight[:, k] * F.cross_entropy(scores, best.indices[:, k], label_smoothing=smoothing, reduction="none")
            for k in range(K)
        ),
        torch.zeros(()),
    )
    expected = F.cross_entropy(scores, case.batch.target_N, label_smoothing=smoothing) + 1.7 * taught.mean()
    torch.testing.assert_close(parts.loss, expected)
    torch.testing.assert_close(parts.figures["kl"], taught.mean().detach())
    for got, wanted in zip(gradients(parts.loss, case), gradients(expected, case), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


def test_dllm2rec_of_drawn_items_is_refused_before_anything_is_trained(
    tiny_settings: dict[str, Any], chain_data: Dataset, tmp_path: Path
) -> None:
    settings = changed(tiny_settings, distill__method={"name": "dllm2rec"}, training__model__full_softmax_items=4)
    with pytest.raises(ConfigError, match="best items of the whole catalogue; this one has 12"):
        parse_settings(settings).fit(chain_data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_scores_come_block_by_block() -> None:
    states, table = torch.randn(70, 4), torch.randn(9, 4)
    blocks = [block.clone() for block in score_blocks(Factors(states, table), 1)]
    assert [len(block) for block in blocks] == [32, 32, 6]
    torch.testing.assert_close(torch.cat(blocks), states @ table.T)


# ---- LEADER -------------------------------------------------------------------------------------------------------
def test_leader_is_cross_entropy_and_the_distance_of_mapped_states(case: Case) -> None:
    objective: Any = LEADER(weight=0.8).objective(Training(), case.teacher, DistillationTerm(), case.student, 5)
    parts = objective(case.states_ND, case.student, case.batch, 0)
    mapped = case.states_ND @ objective.project.weight.T + objective.project.bias
    distance = (mapped - case.teacher_NK).pow(2).mean()
    scores = case.states_ND @ case.student.item_table().T
    expected = F.cross_entropy(scores, case.batch.target_N) + 0.8 * distance
    torch.testing.assert_close(parts.loss, expected)
    for got, wanted in zip(gradients(parts.loss, case), gradients(expected, case), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)
    again: Any = LEADER().objective(Training(), case.teacher, DistillationTerm(), case.student, 5)
    assert torch.equal(again.project.weight, objective.project.weight)
    assert not torch.equal(
        LEADER().objective(Training(), case.teacher, DistillationTerm(), case.student, 6).project.weight,  # type: ignore[attr-defined]
        objective.project.weight,
    )


# ---- in whole runs ------------------------------------------------------------------------------------------------
def weights(run: Run, stage: str) -> dict[str, Tensor]:
    return checkpoint.load(run.checkpoint_of(stage) / "best.safetensors")[0]


def test_a_method_is_how_the_served_model_is_taught_and_nobody_else(
    tiny_settings: dict[str, Any], chain_data: Dataset, chain_run: Path, tmp_path: Path
) -> None:
    usual = Run.open(chain_run)
    for number, method in enumerate(({"name": "dllm2rec", "items": 3}, {"name": "leader"})):
        run = parse_settings(changed(tiny_settings, distill__method=method)).fit(chain_data, tmp_path / str(number))
        for stage in ("undistilled", "llm", "llm-round-1"):
            assert run.checksum_of(stage) == usual.checksum_of(stage), stage
        taught, as_usual = weights(run, "distilled-round-1"), weights(usual, "distilled-round-1")
        assert taught.keys() == as_usual.keys()  # what a method trains beside the student is not served
        assert any(not torch.equal(taught[name], as_usual[name]) for name in taught)
        logged = [line for line in run.metrics() if line["stage"] == "distilled-round-1" and line["epoch"]]
        assert logged
        assert all(line["kl"] > 0 and "weight_mean" not in line for line in logged)


@pytest.mark.parametrize("method", ["dllm2rec", "leader"])
def test_a_method_pulls_the_student_to_its_teacher(
    method: str, tiny_settings: dict[str, Any], chain_data: Dataset, tmp_path: Path
) -> None:
    distance = {}
    for weight in (1e-6, 20.0):  # at 0 nobody would teach
        settings = changed(
            tiny_settings,
            distill__students=["model"],
            training__model__epochs=8,
            distill__method={"name": method, "weight": weight},
        )
        run = parse_settings(settings).fit(chain_data, tmp_path / str(weight))
        log = [line for line in run.metrics() if line["stage"] == "distilled-round-1" and line["epoch"]]
        distance[weight] = log[-1]["kl"]
    assert distance[20.0] < distance[1e-6]


@pytest.mark.parametrize(
    ("method", "lambda_2", "taught"),
    [
        ({"name": "dllm2rec"}, 0, ("llm",)),
        ({"name": "dllm2rec", "weight": 0}, 4, ()),
        ({"name": "leader"}, 0, ("llm",)),
        ({"name": "leader", "weight": 0}, 4, ()),
    ],
)
def test_a_method_uses_teachers_by_its_own_weight(
    method: dict[str, Any],
    lambda_2: float,
    taught: tuple[str, ...],
    tiny_settings: dict[str, Any],
    chain_data: Dataset,
    tmp_path: Path,
) -> None:
    settings = changed(
        tiny_settings, distill__students=["model"], distill__method=method, distill__weight__model=lambda_2
    )
    assert find(plan(parse_settings(settings)), "distilled-round-1").teachers == taught


def test_methods_that_cannot_be_are_refused(tiny_settings: dict[str, Any]) -> None:
    with pytest.raises(
        ConfigError, match=r"distill\.method = leader is how the model is taught, and distill\.students leaves it out"
    ):
        parse_settings(changed(tiny_settings, distill__method={"name": "leader"}, distill__students=["llm"]))
    with pytest.raises(ConfigError, match=r"distill\.method"):
        parse_settings(changed(tiny_settings, distill__method={"name": "magic"}))
    with pytest.raises(ConfigError, match=r"distill\.method\.(dllm2rec\.)?items"):
        parse_settings(changed(tiny_settings, distill__method={"name": "dllm2rec", "items": 0}))
    with pytest.raises(ConfigError, match="must not both be 0"):
        parse_settings(changed(tiny_settings, distill__method={"name": "dllm2rec", "position": 0, "confidence": 0}))
