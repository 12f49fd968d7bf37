"""The metrics log of a run: one JSON object per line, without gaps or repeats across interruptions."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmd4rec.errors import RunError
from llmd4rec.io.files import clear_disk_errors
from llmd4rec.log import logger
from llmd4rec.training.loggers.base import Logger

if TYPE_CHECKING:
    from llmd4rec.training.trainer import Trainer

#: The file in a stage's folder.
METRICS = "metrics.jsonl"


class JSONLines(Logger):
    """`metrics.jsonl`, which the report reads: one object per epoch."""

    def __init__(self) -> None:
        self._size: int | None = None
        self._log: MetricsLog | None = None

    def on_start(self, trainer: Trainer) -> None:
        """Goes back to where the checkpoint was written, or begins anew."""
        log = self._log = MetricsLog(trainer.log_folder / METRICS)
        size, self._size = self._size, None
        if not trainer.backend.first:
            return
        if not trainer.resumed:
            log.forget(trainer.stage)
        elif size is not None:
            if log.size < size:
                logger.warning(f"{log.path} is shorter than it was: epochs are missing from it")
            log.rewind(size)

    def write(self, trainer: Trainer, record: dict[str, Any]) -> None:
        """See :class:`~llmd4rec.training.loggers.base.Logger`."""
        assert self._log is not None
        self._log.append(**record)

    def state_dict(self) -> dict[str, Any]:
        """How much there is of it."""
        return {"size": 0 if self._log is None else self._log.size}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` gave."""
        self._size = state["size"]


class MetricsLog:
    """Appends records to `metrics.jsonl`; a checkpoint remembers :attr:`size` and a resumed run goes back to it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self.path.stat().st_size if self.path.exists() else 0

    def append(self, **record: Any) -> None:
        """Adds one record and waits until it is on the disk: a checkpoint written later may count on it."""
        with clear_disk_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def rewind(self, size: int) -> None:
        """Forgets what was written after the log was `size` bytes long."""
        if self.size > size:
            os.truncate(self.path, size)

    def forget(self, stage: str) -> None:
        """Forgets everything from the first record of a stage on, and a last line that was cut off."""
        size = 0
        for line, record in self._lines():
            if record["stage"] == stage:
                break
            size += len(line)
        self.rewind(size)

    def read(self) -> list[dict[str, Any]]:
        """All records, oldest first; one that was cut off while it was written is none."""
        return [record for _, record in self._lines()]

    def _lines(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        """Each line as it stands in the file, and its record."""
        if self.path.exists():
            for number, line in enumerate(self.path.read_bytes().splitlines(keepends=True), 1):
                if not line.endswith(b"\n"):
                    return
                try:
                    record = json.loads(line)
                    record["stage"], record["epoch"]
                except (ValueError, TypeError, KeyError) as error:
                    raise RunError(
                        f"{self.path} is damaged in line {number}: {error}",
                        "Put it back from a copy, or delete it: the report then lacks the epochs so far.",
                    ) from error
                yield line, record
