"""What the fixtures `store` and `exports` give: a run, its data and its export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llmd4rec.data.dataset import Dataset
from llmd4rec.runs.run import Run

#: Whose exports the fixture `exports` gives.
STAGES = ("undistilled", "distilled")


@dataclass(frozen=True)
class Store:
    """A finished run on a small store with texts, its data set, and its export with everything."""

    run: Run
    data: Dataset
    export: Path
