"""Types of one's own beside those of the package: other losses, other teachers, other networks, and what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from my_types import Fading, Relational, SampledHinge
from settings_of import parse_settings
from torch import Tensor, nn
from torch.nn import functional as F

from llmd4rec import Dataset, Distillation, Model, Run
from llmd4rec.errors import ConfigError
from llmd4rec.extend import SequenceBatch, SequenceEncoder, StepLoss, TrainingBatch
from llmd4rec.losses.objective import SumOfLosses

TINY: dict[str, Any] = {"dim": 8, "max_length": 6, "item_features": "id"}
TRAINING: dict[str, Any] = {"epochs": 2, "batch": 64, "warmup": 2, "learning_rate": 0.01, "ema": 0.0}


class LastItem(Model):
    """Bare tables without an `ItemEmbedding`: the state is that of the last item."""

    def build(self, num_items: int, seed: int) -> SequenceEncoder:
        return LastItemNetwork(num_items, self, seed)


class LastItemNetwork(SequenceEncoder):
    def __init__(self, num_items: int, settings: LastItem, seed: int) -> None:
        super().__init__()
        self.max_length = settings.max_length
        generator = torch.Generator().manual_seed(seed)
        self.read = nn.Parameter(torch.randn(num_items, settings.dim, generator=generator) / 10)
        self.written = nn.Parameter(torch.randn(num_items, settings.dim, generator=generator) / 10)

    @property
    def num_items(self) -> int:
        return len(self.read)

    @property
    def dim(self) -> int:
        return self.read.shape[1]

    def states(self, batch: SequenceBatch) -> Tensor:
        return F.embedding(batch.items_BL, self.read)

    def item_table(self, items: Tensor | None = None) -> Tensor:
        return self.written if items is None else F.embedding(items, self.written)


def test_a_model_without_an_item_embedding(chain_data: Dataset) -> None:
    recommender = LastItem(**TINY).fit(
        chain_data, training={"model": TRAINING | {"epochs": 20, "learning_rate": 0.05}}, device="cpu"
    )
    assert recommender.recommend(["i3"], k=1).items[0].item_id == "i4", "the item that always comes next"


def test_own_and_known_teachers_and_what_the_run_says_of_them(chain_data: Dataset, tmp_path: Path) -> None:
    run = Distillation(
        model=Fading(**TINY, half_life=2),
        teachers=[Fading(**TINY | {"dim": 12}, half_life=2), {"name": "gru4rec", "hidden": 8}],
        rounds=1,
        distill={"method": Relational(weight=0.25)},
        training={"model": TRAINING | {"loss": SampledHinge(negatives=5)}},
        device="cpu",
    ).fit(chain_data, tmp_path / "run")
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert written["model"]["name"] == written["teachers"][0]["name"] == "my_types:Fading"
    assert (written["model"]["half_life"], written["model"]["dropout"]) == (2.0, 0.2)
    assert written["distill"]["method"] == {"name": "my_types:Relational", "weight": 0.25}
    loss = {"name": "my_types:SampledHinge", "negatives": 5, "margin": 1.0}
    assert written["training"]["model"]["loss"] == loss
    taught = [line for line in run.metrics() if line["stage"] == "distilled-round-1" and line["epoch"]]
    assert all({"hinge", "relations"} <= line.keys() and "ce" not in line for line in taught)
    assert all("relations" not in line for line in run.metrics() if line["stage"] == "undistilled")


def test_the_default_method_adds_its_term_to_another_loss(chain_data: Dataset) -> None:
    run: Run = Distillation(
        model=Fading(**TINY),
        teachers=1,
        rounds=1,
        distill={"weight": {"model": 4.0}},
        training={"model": TRAINING | {"loss": SampledHinge()}},
        device="cpu",
    ).fit(chain_data)
    (first, *_) = [line for line in run.metrics() if line["stage"] == "distilled-round-1" and line["epoch"]]
    assert {"hinge", "kl", "weight_mean"} <= first.keys()
    assert "ce" not in first
    assert run.record.stages["distilled-round-1"].get("logit_adjustment") is None
    teaching = run.stage("distilled-round-1").teaching
    assert teaching is not None
    assert teaching.logit_adjustment == 0.0


def test_parameters_of_a_loss_are_among_those_of_the_sum() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, states_ND: Tensor, ranker: SequenceEncoder, batch: TrainingBatch, seed: int) -> StepLoss:
            return StepLoss(self.scale * states_ND.sum(), {"a": torch.ones(())})

    def plain(states_ND: Tensor, ranker: SequenceEncoder, batch: TrainingBatch, seed: int) -> StepLoss:
        return StepLoss(states_ND.sum(), {"b": torch.zeros(())})

    both = SumOfLosses(Scale(), plain)
    assert [name for name, _ in both.named_parameters()] == ["first.scale"]
    nobody: Any = None
    step = both(torch.ones(2, 3), nobody, nobody, 0)
    assert step.loss.item() == 12
    assert step.figures.keys() == {"a", "b"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": {"name": "my_types:Fading", "half_live": 3}}, "did you mean 'model.half_life'"),
        ({"training": {"model": {"loss": {"name": "my_types:SampledHinge", "negative": 3}}}}, "model.loss.negatives'"),
        ({"distill": {"method": "my_types:Fading"}}, "it is no distillation method; derive the class from"),
        ({"teachers": ["my_types:Fadin"]}, "teachers.0.name = 'my_types:Fadin'"),
        ({"teachers": [{"name": "my_types:Fading", "dropout": 3}]}, "should be less than 1"),
        (
            {"distill": {"logit_adjustment": 0.2}, "training": {"model": {"loss": "my_types:SampledHinge"}}},
            "logit_adjustment = 0.2 is added to the scores of the softmax",
        ),
    ],
)
def test_what_is_wrong_is_told_as_of_what_is_built_in(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_settings({"teachers": 1, **changes})
    assert said in caught.value.what
