"""Callbacks given from outside: when they are called, what they may do, and that what they keep survives a stop."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation.examples import chain_dataset
from torch import Tensor
from torch.nn import functional as F

from llmd4rec import Dataset, Distillation, SASRec
from llmd4rec.data.batching import TrainingBatch
from llmd4rec.errors import ConfigError, RunError
from llmd4rec.losses.base import StepLoss
from llmd4rec.losses.objective import RankingObjective
from llmd4rec.models.base import SequenceEncoder
from llmd4rec.training.callbacks.base import Callback
from llmd4rec.training.callbacks.early_stopping import EarlyStopping
from llmd4rec.training.figures import ReadFigures
from llmd4rec.training.fit import DEFAULTS, fit, with_defaults
from llmd4rec.training.loggers.json_lines import JSONLines, MetricsLog
from llmd4rec.training.progress import Validation
from llmd4rec.training.runtime import Interrupted
from llmd4rec.training.settings import Training
from llmd4rec.training.trainer import Fitted, Trainer

ITEMS = 20
SETTINGS = Training(epochs=3, patience=3, batch=64, learning_rate=0.01, warmup=5, min_steps=1)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return chain_dataset(users=60, items=ITEMS, length=10)


def train(
    folder: Path, data: Dataset, *callbacks: Callback, settings: Training = SETTINGS, objective: Any = None, **more: Any
) -> Fitted:
    folder.mkdir(exist_ok=True)
    values = iter(range(1, 100))
    more.setdefault("validate", lambda model: next(values) / 100)
    return fit(
        SASRec(dim=8, layers=1, max_length=8, dropout=0.2).build(ITEMS, 0),
        data,
        settings,
        folder,
        stage="undistilled",
        seed=1,
        objective=objective or RankingObjective(settings),
        callbacks=[JSONLines(), *callbacks],
        **more,
    )


class Recorder(Callback):
    """Which hooks were called, in order."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def on_start(self, trainer: Trainer) -> None:
        self.calls.append("start")

    def on_epoch_start(self, trainer: Trainer) -> None:
        self.calls.append(f"epoch {trainer.progress.epoch}")

    def on_step_start(self, trainer: Trainer) -> None:
        self.calls.append("(")

    def on_figures(self, trainer: Trainer, step: int, figures: ReadFigures) -> None:
        assert step == trainer.progress.step
        self.calls.append(f"{figures.positions:.0f}")

    def on_step_end(self, trainer: Trainer) -> None:
        self.calls.append(")")

    def on_epoch_end(self, trainer: Trainer) -> None:
        self.calls.append("end")

    def on_validation_start(self, trainer: Trainer) -> None:
        self.calls.append("validate")

    def on_validation(self, trainer: Trainer, found: Validation) -> None:
        self.calls.append(f"{found.epoch}: {found.value}")

    def on_validation_end(self, trainer: Trainer) -> None:
        self.calls.append("validated")

    def on_save(self, trainer: Trainer) -> None:
        self.calls.append("save")

    def on_end(self, trainer: Trainer, error: BaseException | None) -> None:
        self.calls.append(f"over {type(error).__name__}")


def test_each_hook_is_called_where_it_says(data: Dataset, tmp_path: Path) -> None:
    recorder = Recorder()
    train(tmp_path, data, recorder, settings=SETTINGS.model_copy(update={"epochs": 1, "batch": 10_000}))
    assert recorder.calls == [
        "start", "validate", "0: 0.01", "validated",
        "epoch 1", "(", "420", ")", "end", "validate", "1: 0.02", "validated", "over NoneType",
    ]  # fmt: skip


class StopAt(Callback):
    """The example of the documentation."""

    def __init__(self, value: float) -> None:
        self.value = value

    def on_validation(self, trainer: Trainer, found: Validation) -> None:
        if found.value >= self.value:
            trainer.stop(f"validation reached {self.value}")


def test_a_callback_may_end_a_training(data: Dataset, tmp_path: Path) -> None:
    fitted = train(tmp_path, data, StopAt(0.03), settings=SETTINGS.model_copy(update={"epochs": 50}))
    assert (fitted.epochs, fitted.best_epoch) == (2, 2)


def test_one_of_a_class_takes_the_place_of_the_default(data: Dataset, tmp_path: Path) -> None:
    own = EarlyStopping(patience=1)
    found = with_defaults([JSONLines(), own])
    assert [type(callback) for callback in found] == [*DEFAULTS, JSONLines]
    assert any(callback is own for callback in found)
    fitted = train(tmp_path, data, own, settings=SETTINGS.model_copy(update={"epochs": 9}), validate=lambda model: 0.5)
    assert fitted.epochs == 2  # the settings would wait for three


class Average(Callback):
    """Keeps a tensor and a number, and can send a signal."""

    def __init__(self, stop_at: int = 0) -> None:
        self.sum, self.steps, self.stop_at = torch.zeros(ITEMS), 0, stop_at

    def on_start(self, trainer: Trainer) -> None:
        if not trainer.resumed:
            self.sum, self.steps = torch.zeros(ITEMS), 0

    def on_step_end(self, trainer: Trainer) -> None:
        self.sum += trainer.model.item_table().detach().sum(1)
        self.steps += 1
        if self.steps == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    def state_dict(self) -> dict[str, Any]:
        return {"sum": self.sum, "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.sum, self.steps = state["sum"], state["steps"]


def test_what_callbacks_keep_goes_on_where_it_stopped(data: Dataset, tmp_path: Path) -> None:
    """Two of one class, too."""
    whole, twin = Average(), Average()
    train(tmp_path / "whole", data, whole, twin)
    with pytest.raises(Interrupted):
        train(tmp_path / "parts", data, Average(stop_at=9), Average())
    again, other = Average(), Average()
    train(tmp_path / "parts", data, again, other)
    assert whole.steps == again.steps == other.steps > 9
    assert torch.equal(whole.sum, again.sum)
    assert torch.equal(whole.sum, other.sum)


# ---- figures ----------------------------------------------------------------------------------------------------
class OddFigures:
    """Figures that only some steps have, and a histogram of any length."""

    def __init__(self, name: str = "odd") -> None:
        self.name, self.steps = name, 0

    def __call__(self, states_ND: Tensor, model: SequenceEncoder, batch: TrainingBatch, seed: int) -> StepLoss:
        loss = F.cross_entropy(states_ND @ model.item_table().T, batch.target_N)
        figures = {"targets": torch.bincount(batch.target_N, minlength=ITEMS)}
        if self.steps % 2 == 0:
            figures[self.name] = batch.target_N.double().mean()
        self.steps += 1
        return StepLoss(loss, figures)


def test_figures_are_averaged_over_the_positions_that_had_them(data: Dataset, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"epochs": 1, "batch": 100})
    batches: list[Tensor] = []

    class Targets(OddFigures):
        def __call__(self, states_ND: Tensor, model: SequenceEncoder, batch: TrainingBatch, seed: int) -> StepLoss:
            batches.append(batch.target_N)
            return super().__call__(states_ND, model, batch, seed)

    train(tmp_path, data, settings=settings, objective=Targets())
    logged = MetricsLog(tmp_path / "metrics.jsonl").read()[1]
    assert len(batches) > 2
    assert logged["odd"] == pytest.approx(float(torch.cat(batches[::2]).double().mean()))
    assert logged["targets"] == torch.bincount(torch.cat(batches), minlength=ITEMS).tolist()
    assert not {"ce", "kl", "weight_mean"} & logged.keys()


def test_a_figure_may_not_be_called_like_what_the_log_has(data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a figure named 'seconds', which the log has already"):
        train(tmp_path, data, objective=OddFigures("seconds"))


def test_a_loss_without_cross_entropy_may_diverge_too(data: Dataset, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"epochs": 100, "patience": 100, "learning_rate": 30.0, "warmup": 0})
    with pytest.raises(RunError, match=r"training diverged: the loss rose to .* from 3"):
        train(tmp_path, data, settings=settings, objective=OddFigures())


# ---- through the public interface -------------------------------------------------------------------------------
QUICK: dict[str, Any] = {"training": {"model": {"epochs": 2, "batch": 64, "min_steps": 4}}, "device": "cpu"}


def test_fit_takes_callbacks(chain_data: Dataset, tmp_path: Path) -> None:
    recorder = Recorder()
    model = SASRec(dim=8, max_length=6, item_features="id")
    model.fit(chain_data, tmp_path / "one", callbacks=[recorder], **QUICK)
    assert recorder.calls.count("over NoneType") == 1
    distillation = Distillation(model=model, teachers=1, rounds=1, **QUICK)
    distillation.fit(chain_data, tmp_path / "two", callbacks=[recorder])
    assert recorder.calls.count("over NoneType") == 4
    with pytest.raises(RunError, match="callbacks are called in this process, and jobs > 1"):
        distillation.fit(chain_data, tmp_path / "three", jobs=2, callbacks=[recorder])


def test_epochs_are_chosen_by_the_metric_that_is_set(chain_data: Dataset, tmp_path: Path) -> None:
    from llmd4rec.evaluation.metrics import metric_of
    from llmd4rec.evaluation.validation import validation_value

    model = SASRec(dim=8, max_length=6, item_features="id")
    run = Distillation(model=model, rounds=0, evaluation={"selection": "hr@3"}, **QUICK).fit(chain_data, tmp_path / "r")
    assert run.record.selection == "hr@3"
    hits = validation_value(run.load("undistilled"), chain_data, metric=metric_of("hr@3"))
    assert run.validation_of("undistilled") == pytest.approx(hits)
    assert hits != pytest.approx(validation_value(run.load("undistilled"), chain_data))


@pytest.mark.parametrize(
    ("metric", "why"),
    [
        ("ndcg", "ndcg needs a cutoff, such as ndcg@10"),
        ("coverage@10", "coverage@10 cannot choose"),
        ("ndgc@10", "did you mean 'ndcg'"),
    ],
)
def test_a_metric_that_cannot_choose_is_refused(metric: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Distillation(rounds=0, evaluation={"selection": metric})
