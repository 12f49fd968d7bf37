"""What run.json holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llmd4rec.data.dataset import Dataset
from llmd4rec.errors import RunError
from llmd4rec.io.files import read_json

#: 1 named stages `crm-alone`, `wide-alone`, ... 2 called the validation value of a stage `validation_ndcg`. Both had
#: other settings too.
FORMAT_VERSION = 3


@dataclass
class Record:
    """A run's data, its finished stages, and whether it is finished.

    Attributes:
        data: fingerprint of the data set.
        data_path: where it was; None: it was not saved.
        items: |I|.
        multi_fields: the catalogue's fields with several values per item; see :class:`~llmd4rec.data.dataset.Dataset`.
        selection: the metric that the validation values of stages are of.
        stages: by id, in the order in which they were finished: validation value, best epoch, epochs, seconds, the
            teachers with their ensemble weights, parameters, the checksum of the weights.
        finished: no stage is left to be trained.
        stopped_because: why there were no more rounds.
        llm: the language model that was built on: origin, layers, fingerprint of its weights.
        text_vectors: SHA-256 of text_vectors.safetensors, where there is one.
        memory: what stands beside the models; see :mod:`llmd4rec.runs.memory`. None: nothing, or not counted yet.
        trained_until: when the last training interaction was, in seconds since 1970; None: that is not known.
        origin: what a refitted or updated run came from (`origin.py`); None: it was trained with `train`.
    """

    data: str
    data_path: str | None
    items: int
    multi_fields: dict[str, str] | None = None
    selection: str = "ndcg@10"
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    finished: bool = False
    stopped_because: str = ""
    llm: dict[str, Any] | None = None
    text_vectors: str | None = None
    memory: dict[str, Any] | None = None
    trained_until: int | None = None
    origin: dict[str, Any] | None = None
    format: int = FORMAT_VERSION

    @classmethod
    def of(cls, data: Dataset, selection: str) -> Record:
        """The record of a run that begins."""
        path = str(data.path.resolve()) if data.path else None
        record = cls(data.fingerprint, path, data.num_items, data.multi_fields, selection)
        record.trained_until = last_training_time(data)
        return record

    @classmethod
    def read(cls, folder: Path) -> Record:
        """The record of a run folder.

        Raises:
            RunError: it is no run folder, damaged, or of another format version.
        """
        if not (folder / "run.json").is_file():
            raise RunError(
                f"{folder} is not a run folder (it has no run.json)",
                f"Make one with: llmd4rec train --data DATA --run {folder}",
            )
        values = read_json(folder / "run.json")
        if not isinstance(values, dict) or not values.keys() >= {"format", "data", "data_path", "items"}:
            raise RunError(f"{folder / 'run.json'} is damaged: it describes no run", "Train a new run.")
        if values["format"] != FORMAT_VERSION:
            raise RunError(
                f"{folder} has run format {values.get('format')!r}; this version reads {FORMAT_VERSION}",
                "Use the version of llmd4rec that made it, or train it again: CHANGELOG.md lists settings and stages "
                "with their new names.",
            )
        return cls(**{name: value for name, value in values.items() if name in cls.__dataclass_fields__})


def last_training_time(data: Dataset) -> int | None:
    """When the last training interaction was, in seconds since 1970; None where no time is known."""
    times = data.event_times
    if times is None:
        return None
    trained = np.arange(len(times)) < np.repeat(data.train_end, np.diff(data.offsets))
    return int(times[trained].max()) if trained.any() else None
