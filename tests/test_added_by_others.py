"""What others add, given by name, by instance and by import path, goes through all that a run is."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import added_by_others
import pytest
import torch
import yaml
from added_by_others import BPR, Counted, Decayed, Margin
from settings_of import parse_settings
from torch import Tensor
from torch.nn import functional as F
from typer.testing import CliRunner
from whole_runs import same_stages

from llmd4rec import Dataset, Distillation, Recommender, Run
from llmd4rec.cli import app
from llmd4rec.data.batching import TrainingBatch
from llmd4rec.errors import ConfigError
from llmd4rec.losses.base import StepLoss
from llmd4rec.losses.objective import SumOfLosses
from llmd4rec.models.base import SequenceEncoder

TINY: dict[str, Any] = {"dim": 8, "max_length": 6, "item_features": "id"}
TRAINING: dict[str, Any] = {"epochs": 2, "batch": 64, "warmup": 2, "learning_rate": 0.01, "ema": 0.0}
SETTINGS: dict[str, Any] = {
    "model": {"name": "added_by_others:Decayed", **TINY, "decay": 0.4},
    "teachers": ["added_by_others:Decayed", {"name": "gru4rec", "hidden": 8}],
    "llm": None,
    "rounds": 1,
    "distill": {"method": {"name": "added_by_others:Margin", "weight": 0.25}},
    "training": {"model": TRAINING | {"loss": "added_by_others:BPR"}},
    "device": "cpu",
}


def command(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.output


def test_by_the_command_line_and_in_python(chain_data: Dataset, tmp_path: Path) -> None:
    assert chain_data.path is not None
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(SETTINGS))
    by_hand, by_code = tmp_path / "command", tmp_path / "python"
    command("train", tmp_path / "run.yaml", "-d", chain_data.path, "-r", by_hand, "--set", "model.decay=0.6")
    written = yaml.safe_load((by_hand / "config.yaml").read_text())
    assert written["model"] | {"name": "added_by_others:Decayed", "decay": 0.6} == written["model"]
    assert written["distill"]["method"] == {"name": "added_by_others:Margin", "weight": 0.25, "margin": 1.0}
    assert written["training"]["model"]["loss"] == {"name": "added_by_others:BPR", "draws": 4}

    run = Distillation(
        model=Decayed(**TINY, decay=0.6),
        teachers=[Decayed(**TINY | {"dim": 32}, decay=0.6), {"name": "gru4rec", "hidden": 8}],
        rounds=1,
        distill={"method": Margin(weight=0.25)},
        training={"model": TRAINING | {"loss": BPR()}},
        device="cpu",
    ).fit(chain_data, by_code)
    assert same_stages(Run.open(by_hand), run)
    figures = [line for line in run.metrics() if line["stage"] == "distilled-round-1" and line["epoch"]]
    assert all(line["bpr"] > 0 and line["hinge"] >= 0 and "ce" not in line for line in figures)
    assert all("hinge" not in line for line in run.metrics() if line["stage"] == "undistilled")

    command("train", tmp_path / "run.yaml", "-d", chain_data.path, "-r", by_hand, "--set", "model.decay=0.6")
    command("evaluate", by_hand)
    command("compare", by_hand, by_hand, "--stage-a", "undistilled")
    command("export", by_hand, "--out", tmp_path / "export", "--stage", "distilled")
    exported = Recommender.load(tmp_path / "export").recommend(["i1", "i2"], k=3)
    answered = run.recommender("distilled").recommend(["i1", "i2"], k=3)
    assert [item.item_id for item in exported.items] == [item.item_id for item in answered.items]


def test_an_export_is_opened_without_the_code(chain_data: Dataset, tmp_path: Path) -> None:
    Distillation(model=Decayed(**TINY), rounds=0, training={"model": TRAINING}, device="cpu").fit(
        chain_data, tmp_path / "run"
    )
    command("export", tmp_path / "run", "--out", tmp_path / "export")
    settings = (tmp_path / "export" / "export.json").read_text()
    assert "added_by_others:Decayed" in settings
    module = added_by_others.__name__
    kept = sys.modules.pop(module)
    try:
        assert Recommender.load(tmp_path / "export").recommend(["i1"], k=3).items
        assert module not in sys.modules
    finally:
        sys.modules[module] = kept


def test_a_model_without_an_item_embedding(chain_data: Dataset) -> None:
    recommender = Counted(**TINY).fit(
        chain_data, training={"model": TRAINING | {"epochs": 20, "learning_rate": 0.05}}, device="cpu"
    )
    assert recommender.recommend(["i3"], k=1).items[0].item_id == "i4", "the item that always comes next"


def test_the_default_method_adds_its_term_to_another_loss(chain_data: Dataset) -> None:
    def fitted(weight: float) -> Run:
        return Distillation(
            model=Decayed(**TINY),
            teachers=1,
            rounds=1,
            distill={"weight": {"model": weight}},
            training={"model": TRAINING | {"loss": "added_by_others:BPR"}},
            device="cpu",
        ).fit(chain_data)

    run = fitted(4.0)
    (first, *_) = [line for line in run.metrics() if line["stage"] == "distilled-round-1" and line["epoch"]]
    assert {"bpr", "kl", "weight_mean"} <= first.keys()
    assert "ce" not in first
    assert run.record.stages["distilled-round-1"].get("logit_adjustment") is None
    teaching = run.stage("distilled-round-1").teaching
    assert teaching is not None
    assert teaching.logit_adjustment == 0.0
    wrong = {
        "teachers": 1,
        "distill": {"logit_adjustment": 0.2},
        "training": {"model": {"loss": "added_by_others:BPR"}},
    }
    with pytest.raises(ConfigError, match=r"logit_adjustment = 0\.2 is added to the scores of the softmax"):
        parse_settings(wrong)


def test_parameters_of_a_loss_are_among_those_of_the_sum() -> None:
    class Scale(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, states_ND: Tensor, ranker: SequenceEncoder, batch: TrainingBatch, seed: int) -> StepLoss:
            return StepLoss(self.scale * states_ND.sum(), {"a": torch.ones(())})

    both = SumOfLosses(
        Scale(), lambda states_ND, ranker, batch, seed: StepLoss(states_ND.sum(), {"b": torch.zeros(())})
    )
    assert [name for name, _ in both.named_parameters()] == ["first.scale"]
    step = both(torch.ones(2, 3), None, None, 0)
    assert step.loss.item() == 12
    assert step.figures.keys() == {"a", "b"}


def test_the_gradient_of_the_loss_is_that_of_autograd() -> None:
    torch.manual_seed(0)
    state, true, drawn = (
        torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((5, 3), (5, 3), (5, 2, 3))
    )
    pairwise: Callable[..., Tensor] = added_by_others.Pairwise.apply
    ours = torch.autograd.grad(pairwise(state, true, drawn), [state, true, drawn])
    plain = F.softplus(torch.einsum("nd,ncd->nc", state, drawn - true[:, None])).mean()
    for a, b in zip(ours, torch.autograd.grad(plain, [state, true, drawn]), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": {"name": "added_by_others:Decayed", "dcay": 0.3}}, "did you mean 'model.decay'"),
        ({"training": {"model": {"loss": {"name": "added_by_others:BPR", "drawn": 3}}}}, "'training.model.loss.draws'"),
        ({"distill": {"method": "added_by_others:Decayed"}}, "it is no distillation method; derive the class from"),
        ({"teachers": ["added_by_others:Decay"]}, "teachers.0.name = 'added_by_others:Decay'"),
        ({"teachers": [{"name": "added_by_others:Decayed", "decay": 3}]}, "should be less than 1"),
    ],
)
def test_what_is_wrong_is_told_as_of_what_is_built_in(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_settings({"teachers": 1, **changes})
    assert said in caught.value.what
