"""The metrics log of a run: one JSON object per line, without gaps or repeats across interruptions."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmd4rec.errors import RunError
from llmd4rec.io.files import clear_disk_errors


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
