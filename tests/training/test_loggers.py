"""Where figures go: each logger has one record for each epoch, however often the training was stopped."""

from __future__ import annotations

import csv
import importlib.util
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from evaluation.examples import chain_dataset

from llmd4rec import Dataset, Distillation, SASRec
from llmd4rec.errors import ConfigError
from llmd4rec.extras import MissingExtraError
from llmd4rec.losses.objective import RankingObjective
from llmd4rec.training.callbacks.base import Callback
from llmd4rec.training.fit import fit
from llmd4rec.training.loggers.base import Logger
from llmd4rec.training.loggers.csv_file import CSV
from llmd4rec.training.loggers.json_lines import JSONLines, MetricsLog
from llmd4rec.training.runtime import Interrupted
from llmd4rec.training.settings import Training
from llmd4rec.training.trainer import Trainer

SETTINGS = Training(epochs=4, patience=4, batch=64, learning_rate=0.01, warmup=5, min_steps=1, checkpoint_seconds=1e9)
QUICK: dict[str, Any] = {"training": {"model": {"epochs": 2, "batch": 64, "min_steps": 4}}, "device": "cpu"}


@pytest.fixture(scope="module")
def data() -> Dataset:
    return chain_dataset(users=60, items=20, length=10)


class Killed(Callback):
    """Raises behind the validation of an epoch, as if the process had died there; stops it properly before that."""

    def __init__(self, at: int) -> None:
        self.at, self.asked = at, False

    def on_step_end(self, trainer: Trainer) -> None:
        if trainer.progress.epoch == self.at - 1 and not trainer.resumed and not self.asked:
            self.asked = True
            os.kill(os.getpid(), signal.SIGTERM)

    def on_validation_end(self, trainer: Trainer) -> None:
        if trainer.progress.epoch == self.at and trainer.resumed:
            raise RuntimeError("killed")


def train(folder: Path, data: Dataset, *callbacks: Callback) -> None:
    values = iter(range(1, 100))
    folder.mkdir(exist_ok=True)
    fit(
        SASRec(dim=8, layers=1, max_length=8).build(20, 0), data, SETTINGS, folder / "training", stage="undistilled",
        seed=1, validate=lambda model: next(values) / 100, objective=RankingObjective(SETTINGS), callbacks=callbacks,
        log_folder=folder,
    )  # fmt: skip


def train_in_parts(folder: Path, data: Dataset, make: Callable[[], Callback]) -> None:
    """Stopped in epoch 2, then lost behind epoch 3, whose record was written; then to the end."""
    with pytest.raises(Interrupted):
        train(folder, data, make(), Killed(3))
    with pytest.raises(RuntimeError, match="killed"):
        train(folder, data, make(), Killed(3))
    train(folder, data, make())


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def test_csv_has_a_row_for_each_epoch(data: Dataset, tmp_path: Path) -> None:
    train(tmp_path / "whole", data, CSV(), JSONLines())
    whole = rows(tmp_path / "whole")
    log = MetricsLog(tmp_path / "whole" / "metrics.jsonl").read()
    assert [row["epoch"] for row in whole] == ["0", "1", "2", "3", "4"]
    assert [float(row["validation"]) for row in whole] == [line["validation"] for line in log]
    assert whole[0]["ce"] == ""
    assert [float(row["ce"]) for row in whole[1:]] == [line["ce"] for line in log[1:]]
    train_in_parts(tmp_path / "parts", data, CSV)
    assert [row["ce"] for row in rows(tmp_path / "parts")] == [row["ce"] for row in whole]
    train(tmp_path / "again", data, CSV())  # a training that begins anew forgets what was there
    assert len(rows(tmp_path / "again")) == 5


def test_tensorboard_shows_each_epoch_once(data: Dataset, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from llmd4rec.training.loggers.tensorboard import TensorBoard

    TensorBoard().check()
    train_in_parts(tmp_path, data, lambda: Both(TensorBoard()))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("validation")] == [0, 1, 2, 3, 4]
    log = MetricsLog(tmp_path / "metrics.jsonl").read()
    assert [event.value for event in events.Scalars("ce")] == pytest.approx([line["ce"] for line in log[1:]])


def test_mlflow_has_one_run_with_each_epoch_once(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    from llmd4rec.training.loggers.mlflow import MLflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    MLflow().check()
    train_in_parts(tmp_path / "run", data, lambda: Both(MLflow()))
    client = MlflowClient()
    experiment = client.get_experiment_by_name("llmd4rec")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("undistilled", "FINISHED")
    assert run.data.params["training.batch"] == "64"
    history = client.get_metric_history(run.info.run_id, "ce")
    log = MetricsLog(tmp_path / "run" / "metrics.jsonl").read()
    assert [metric.step for metric in history] == [1, 2, 3, 4]
    assert [metric.value for metric in history] == pytest.approx([line["ce"] for line in log[1:]])


class Both(JSONLines):
    """The log and another logger."""

    def __init__(self, other: Logger) -> None:
        super().__init__()
        self.other = other

    def on_start(self, trainer: Trainer) -> None:
        super().on_start(trainer)
        self.other.on_start(trainer)

    def write(self, trainer: Trainer, record: dict[str, Any]) -> None:
        super().write(trainer, record)
        self.other.write(trainer, record)

    def on_end(self, trainer: Trainer, error: BaseException | None) -> None:
        self.other.on_end(trainer, error)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), **self.other.state_dict()}

    def load_state_dict(self, state: Any) -> None:
        super().load_state_dict(state)
        self.other.load_state_dict(state)


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_package_that_is_missing_is_named_before_anything_is_trained(
    name: str, chain_data: Dataset, tmp_path: Path
) -> None:
    if importlib.util.find_spec(name) is not None:
        pytest.skip(f"{name} is installed")
    settings = Distillation(model=SASRec(dim=8, item_features="id"), rounds=0, loggers=["json", name], **QUICK)
    with pytest.raises(MissingExtraError, match=rf"needs the package {name}\n.*llmd4rec\[{name}\]"):
        settings.fit(chain_data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Stages(Logger):
    """One of somebody else's: writes a line for each record."""

    def write(self, trainer: Trainer, record: dict[str, Any]) -> None:
        with (trainer.log_folder / "own.txt").open("a", encoding="utf-8") as file:
            file.write(f"{record['stage']} {record['epoch']}\n")


def test_loggers_are_settings_and_reach_every_stage(chain_data: Dataset, tmp_path: Path) -> None:
    """Also those of outside the package."""
    loggers = ["json", "csv", "test_loggers:Stages"]
    model = SASRec(dim=8, max_length=6, item_features="id")
    settings = Distillation(model=model, teachers=1, rounds=1, loggers=loggers, **QUICK)
    run = settings.fit(chain_data, tmp_path / "run")
    for stage in ("undistilled", "teacher-1", "distilled-round-1"):
        folder = run.checkpoint_of(stage)
        assert (folder / "own.txt").read_text() == f"{stage} 0\n{stage} 1\n{stage} 2\n"
        assert len(rows(folder)) == 3
    assert len(run.metrics()) == 9
    assert run.settings.loggers == settings.loggers


def test_an_unknown_logger_is_refused() -> None:
    with pytest.raises((ConfigError, ValueError), match="did you mean 'json'"):
        Distillation(rounds=0, loggers=["jsno"])
