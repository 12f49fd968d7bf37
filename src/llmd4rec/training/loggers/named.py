"""Loggers as settings: `loggers: [json, csv, my_package.loggers:MyLogger]`."""

from __future__ import annotations

from typing import Annotated

from llmd4rec.config.open_types import open_type
from llmd4rec.training.loggers.base import Logger

LOGGERS = open_type(
    "logger",
    Logger,
    {
        "json": "llmd4rec.training.loggers.json_lines:JSONLines",
        "csv": "llmd4rec.training.loggers.csv_file:CSV",
        "tensorboard": "llmd4rec.training.loggers.tensorboard:TensorBoard",
        "mlflow": "llmd4rec.training.loggers.mlflow:MLflow",
    },
)
#: A logger as a setting.
AnyLogger = Annotated[Logger, LOGGERS]
