"""The metrics log of a run: one JSON object per line, without gaps or repeats across interruptions."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class MetricsLog:
    """Appends records to `metrics.jsonl`; a checkpoint remembers :attr:`size` and a resumed run goes back to it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self.path.stat().st_size if self.path.exists() else 0

    def append(self, **record: Any) -> None:
        """Adds one record."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def rewind(self, size: int) -> None:
        """Forgets what was written after the log was `size` bytes long."""
        if self.size > size:
            os.truncate(self.path, size)

    def read(self) -> list[dict[str, Any]]:
        """All records, oldest first."""
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines() if line]
