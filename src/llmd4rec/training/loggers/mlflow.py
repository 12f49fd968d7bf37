"""MLflow: one run of it for each stage, where its own environment variables say (MLFLOW_TRACKING_URI, ...)."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llmd4rec.extras import MissingExtraError, install
from llmd4rec.training.loggers.base import Logger
from llmd4rec.training.runtime import Interrupted

if TYPE_CHECKING:
    from llmd4rec.training.trainer import Trainer


class MLflow(Logger):
    """Settings as parameters, numbers as metrics by epoch; histograms are left out.

    The experiment is that of MLFLOW_EXPERIMENT_NAME, or `llmd4rec`. A training that goes on from a checkpoint goes on
    in its MLflow run and leaves out the epochs that are there; one that was killed before its first checkpoint leaves
    a run that is not ended.
    """

    def __init__(self) -> None:
        self._run: str | None = None
        self._loaded: str | None = None

    def check(self) -> None:
        """See :class:`~llmd4rec.training.loggers.base.Logger`."""
        if importlib.util.find_spec("mlflow") is None:
            raise MissingExtraError("the logger mlflow needs the package mlflow", install("mlflow"))

    def on_start(self, trainer: Trainer) -> None:
        """Opens the run of a resumed training, or a new one."""
        if not trainer.backend.first:
            return
        from mlflow import MlflowClient

        self._client = MlflowClient()
        self._run, self._loaded, self._done = self._loaded, None, -1
        if trainer.resumed and self._run is not None:
            self._client.update_run(self._run, "RUNNING")
            history = self._client.get_metric_history(self._run, "validation")
            self._done = max((metric.step for metric in history), default=-1)
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "llmd4rec")
        found = self._client.get_experiment_by_name(name)
        experiment = self._client.create_experiment(name) if found is None else found.experiment_id
        tags = {"llmd4rec.folder": str(trainer.log_folder.resolve()), "llmd4rec.selection": trainer.selection}
        self._run = self._client.create_run(experiment, run_name=trainer.stage, tags=tags).info.run_id
        for key, value in trainer.settings.model_dump(mode="json").items():
            self._client.log_param(self._run, f"{trainer.settings_name}.{key}", value)

    def write(self, trainer: Trainer, record: dict[str, Any]) -> None:
        """See :class:`~llmd4rec.training.loggers.base.Logger`."""
        from mlflow.entities import Metric

        if record["epoch"] <= self._done:
            return
        now = int(1000 * time.time())
        metrics = [
            Metric(name, float(value), now, record["epoch"])
            for name, value in record.items()
            if isinstance(value, (int, float)) and name != "epoch"
        ]
        self._client.log_batch(self._run, metrics=metrics)

    def on_end(self, trainer: Trainer, error: BaseException | None) -> None:
        """Ends the run: FINISHED, KILLED where it was asked to stop, FAILED."""
        if trainer.backend.first and self._run is not None:
            status = "FINISHED" if error is None else "KILLED" if isinstance(error, Interrupted) else "FAILED"
            self._client.set_terminated(self._run, status)

    def state_dict(self) -> dict[str, Any]:
        """Which run it is."""
        return {"run": self._run}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` gave."""
        self._loaded = state["run"]
