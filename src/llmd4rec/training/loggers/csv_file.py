"""`metrics.csv`: a row per epoch, for spreadsheets and data frames."""

from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING, Any

from llmd4rec.io.files import atomic_file
from llmd4rec.training.loggers.base import Logger

if TYPE_CHECKING:
    from llmd4rec.training.trainer import Trainer


class CSV(Logger):
    """`metrics.csv` in a stage's folder. An epoch that comes twice takes the place of its row and those behind it."""

    def on_start(self, trainer: Trainer) -> None:
        """Begins anew where the training does."""
        if trainer.backend.first and not trainer.resumed:
            (trainer.log_folder / "metrics.csv").unlink(missing_ok=True)

    def write(self, trainer: Trainer, record: dict[str, Any]) -> None:
        """See :class:`~llmd4rec.training.loggers.base.Logger`."""
        path = trainer.log_folder / "metrics.csv"
        rows: list[dict[str, Any]] = []
        if path.exists():
            with path.open(encoding="utf-8", newline="") as file:
                rows = [row for row in csv.DictReader(file) if int(row["epoch"]) < record["epoch"]]
        rows.append({name: json.dumps(value) if isinstance(value, list) else value for name, value in record.items()})
        columns = dict.fromkeys(name for row in rows for name in row)
        with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(columns), restval="")
            writer.writeheader()
            writer.writerows(rows)
