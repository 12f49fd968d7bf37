"""A log that grows, and a small run on its beginning, for tests of refits and updates."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import polars as pl
from settings_of import parse_settings

from llmd4rec.data.dataset import Dataset
from llmd4rec.runs.run import Run
from llmd4rec.training.loggers.base import Logger
from llmd4rec.training.trainer import Trainer

DAY = 86_400
SETTINGS: dict[str, Any] = {
    "rounds": 0,
    "llm": None,
    "teachers": None,
    "model": {"dim": 8, "layers": 1, "heads": 2, "dropout": 0.1, "max_length": 6, "item_features": "id+attributes"},
    "training": {"model": {"epochs": 4, "batch": 64, "warmup": 2, "learning_rate": 0.02, "min_steps": 4, "ema": 0.0}},
    "device": "cpu",
}


def rows(days: int, users: int = 40, items: int = 12) -> list[tuple[str, str, int]]:
    """One step a day of each user: item i is followed by item i + 1."""
    return [(f"u{user}", f"i{(user + day) % items}", day * DAY + user) for user in range(users) for day in range(days)]


def catalogue(items: Sequence[str]) -> pl.DataFrame:
    brands = [f"brand {sum(map(ord, item)) % 3}" for item in items]
    return pl.DataFrame({"item_id": [*items], "brand": brands})


def data_of(log: list[tuple[str, str, int]], items: Sequence[str] = (), path: Path | None = None) -> Dataset:
    """A data set with a temporal split, saved where a path is given."""
    frame = pl.DataFrame(log, schema=["user_id", "item_id", "timestamp"], orient="row")
    names = items or sorted({item for _, item, _ in log})
    data = Dataset.from_frames(frame, catalogue(names), split="temporal", keep_unseen_items=True)
    if path is None:
        return data
    data.save(path)
    return Dataset.load(path)


def trained(data: Dataset, folder: Path, **changes: Any) -> Run:
    return parse_settings({**SETTINGS, **changes}).fit(data, folder)


class StopsOnce(Logger):
    """Ends this process's training with SIGTERM behind its first epoch, as a scheduler would; the next one goes on."""

    #: Behind how many first epochs; 0: not at all.
    armed: ClassVar[int] = 0

    def write(self, trainer: Trainer, record: dict[str, Any]) -> None:
        if record["epoch"] == 1 and StopsOnce.armed:
            StopsOnce.armed -= 1
            if not StopsOnce.armed:
                os.kill(os.getpid(), signal.SIGTERM)


def stopping(run: Run, after: int = 1) -> Run:
    """The run with a logger that stops what is trained from it once, in the training of that number."""
    run.settings = run.settings.model_copy(update={"loggers": (StopsOnce(),)})
    StopsOnce.armed = after
    return run
