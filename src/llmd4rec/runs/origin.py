"""What a refitted or updated run came from, as its run.json holds it, so that it says so and can go on alone.

kind        refit or update
run         the folder of the run that it came from
trained     the checksum of the weights that were served there
served      the stage that is served, as validation chose it there
data        fingerprint of the data set as it was prepared; every row of it was trained on
data_path   where that is
memory      what the record of the run that it came from says of its memory
metrics     test figures of the run that it came from
stages      refit: what validation chose in each stage: epoch, value, ensemble weights, logit adjustment
kept        refit: the stages whose weights were taken over
how         update: its settings
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from llmd4rec.data.dataset import Dataset
from llmd4rec.distillation.stage_ids import SERVED
from llmd4rec.errors import LLMD4RecError, RunError
from llmd4rec.evaluation.evaluation import Evaluation
from llmd4rec.io.files import read_json
from llmd4rec.runs.memory import label_of

if TYPE_CHECKING:
    from llmd4rec.runs.run import Run

#: Of a stage's record, what a refit takes over.
CHOSEN = (
    "validation", "best_epoch", "halved_after", "teachers", "memory_teaches", "logit_adjustment", "half_life_days",
    "newest_days",
)  # fmt: skip


def origin_of(run: Run, kind: str, data: Dataset, **more: Any) -> dict[str, Any]:
    """The origin of a run that comes from `run`.

    Args:
        run: a finished run.
        kind: refit or update.
        data: the data set as it was prepared.
        **more: what this kind adds.

    Raises:
        RunError: the run is not finished.
    """
    if not run.record.finished:
        raise RunError(f"{run.folder} is not finished", "Finish it first, with the command that began it.")
    served = run.resolve_alone() if kind == "update" else run.resolve(SERVED)  # an update learns without a memory
    return {
        "kind": kind,
        "run": str(run.folder.resolve()),
        "trained": run.checksum_of(served),
        "served": served,
        "data": data.fingerprint,
        "data_path": str(data.path.resolve()) if data.path else None,
        "memory": run.record.memory,
        "metrics": _figures(run),
        **more,
    }


def _figures(run: Run) -> dict[str, float]:
    """The test figures of what is served, where they were saved; those that it came with for a run with an origin."""
    if run.record.origin is not None:
        return dict(run.record.origin["metrics"])
    filtered = "" if run.settings.evaluation.filter_seen else "-with-seen"
    folder = run.folder / "evaluation" / f"{label_of(run, SERVED)}-test{filtered}"
    try:
        return dict(Evaluation.load(folder).metrics) if folder.exists() else {}
    except LLMD4RecError:  # they are to be had again, with `evaluate`
        return {}


class OtherOriginError(RunError):
    """A folder holds a run that came from something else."""


def require_same_origin(folder: Path, found: dict[str, Any] | None, wanted: dict[str, Any] | None) -> None:
    """Refuses a folder that holds a run of another origin.

    Raises:
        OtherOriginError: it does.
    """
    told = ("kind", "trained", "served", "data", "kept", "how", "stages")
    one, other = (json.dumps([(each or {}).get(name) for name in told], sort_keys=True) for each in (found, wanted))
    if one != other:
        what = "a run of its own" if found is None else f"the {found['kind']} of {found['run']}"
        if found is not None and wanted is not None and found["kind"] == wanted["kind"]:
            what += ", with other weights, data or options"
        raise OtherOriginError(f"{folder} holds {what}", "Choose another folder.")


def nothing_held_out(run: Run, data: Dataset) -> None:
    """Refuses to evaluate a refitted or updated run on what it was trained on.

    Raises:
        RunError: that is the data.
    """
    origin = run.record.origin
    if origin is not None and (data.is_known_as(origin["data"]) or data.is_known_as(run.record.data)):
        raise RunError(
            f"{run.folder} was trained on every row of {data.path or 'this data set'}, so that nothing is held out",
            f"Evaluate {first_run(origin)}, which it came from, or this one on a newer log: --data NEWER --other-data.",
        )


def first_run(origin: dict[str, Any]) -> str:
    """The run at the beginning of refits and updates, as far as their folders are still there."""
    folder, passed = str(origin["run"]), set[str]()
    while folder not in passed:  # a folder may have been overwritten by what came from it
        passed.add(folder)
        try:
            before = read_json(Path(folder) / "run.json").get("origin")
        except (LLMD4RecError, OSError, ValueError, AttributeError):
            break
        if not isinstance(before, dict) or "run" not in before:
            break
        folder = str(before["run"])
    return folder


def trained_on(data: Dataset, catalogue: pl.DataFrame) -> Dataset:
    """The rows that a refitted or updated run was trained on, all in training, over its catalogue.

    Args:
        data: as it was prepared.
        catalogue: of the run: that of the data, and behind it the items that were kept.
    """
    whole = data.whole()
    kept = catalogue.height - data.num_items
    return with_kept_items(whole, catalogue[data.num_items :]) if kept else whole


def with_kept_items(data: Dataset, kept: pl.DataFrame) -> Dataset:
    """The data set with more items at the end of its catalogue; fields that it does not have are left out."""
    shared = {name: kind for name, kind in data.catalogue.schema.items() if name in kept.columns}
    rows = kept.select(pl.col(name).cast(kind, strict=False) for name, kind in shared.items())
    return data.with_catalogue(pl.concat([data.catalogue, rows], how="diagonal"))


def rows_in(run: Run, data: Dataset) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The row of each item of `data` in the catalogue of a run; -1 where it has none."""
    there = {item: row for row, item in enumerate(run.catalogue()["item_id"].to_list())}
    return np.array([there.get(item, -1) for item in data.item_ids], dtype=np.int64)
