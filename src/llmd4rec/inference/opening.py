"""What a recommender is loaded from: a run folder, an export folder, or an export on the hub."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from llmd4rec.distillation.stage_ids import (
    DISTILLED,
    SERVED,
    UNDISTILLED,
    is_distilled,
    with_memory,
    without_memory,
)
from llmd4rec.errors import RunError
from llmd4rec.extras import explained
from llmd4rec.inference.hub import locate_export

if TYPE_CHECKING:
    from llmd4rec.inference.from_export import LoadedFrom
    from llmd4rec.inference.recommender import Recommender

IndexKind = Literal["auto", "exact", "approximate"]
#: With `index="auto"`, larger catalogues are searched through an index.
INDEX_ABOVE = 200_000
#: Who opens a folder, by the file that tells what it is. They are imported when they are needed: a run needs PyTorch,
#: an export does not.
OPENERS = {
    "export.json": "llmd4rec.inference.from_export:open_export",
    "run.json": "llmd4rec.runs.run:open_recommender",
}


@dataclass(frozen=True)
class LoadOptions:
    """The options of :meth:`~llmd4rec.inference.recommender.Recommender.load`."""

    stage: str = "served"
    revision: str | None = None
    threads: int | None = None
    index: IndexKind = "auto"
    index_above: int = INDEX_ABOVE
    trust_code: bool = False

    def wants_index(self, num_items: int) -> bool:
        """Whether a catalogue is searched through an index."""
        return self.index == "approximate" or (self.index == "auto" and num_items > self.index_above)


def open_source(source: Path | str, options: LoadOptions) -> Recommender:
    """The recommender of a run, an export or a hub id.

    Raises:
        RunError: it is none of them, or cannot be opened.
    """
    folder = locate_export(source, options.revision)
    for file, opener in OPENERS.items():
        if (folder / file).is_file():
            module, name = opener.split(":")
            with explained():
                open_folder: Callable[[Path, LoadOptions], Recommender] = getattr(importlib.import_module(module), name)
            return open_folder(folder, options)
    raise RunError(
        f"{folder} is neither a run folder nor an export (it has no run.json and no export.json)"
        if folder.is_dir()
        else f"{folder} does not exist",
        "Train a run with `llmd4rec train`, or make an export with: llmd4rec export RUN --out FOLDER",
    )


def of_stage(recommender: Recommender, stage: str) -> Recommender:
    """A recommender, the undistilled one beside it, or the model of either without its memory, whichever is meant.

    Args:
        recommender: with the memory beside its model, or without.
        stage: `served`, `distilled` or an id; `+memory` behind it means with the memory, and an id alone without.

    Raises:
        RunError: there is no such stage.
    """
    info, undistilled = recommender.info, recommender.undistilled
    names = [SERVED, info.stage, *([with_memory(DISTILLED)] if is_distilled(info.stage) and info.memory else [])]
    if stage in names:
        return recommender
    model = without_memory(info.stage)[0]
    if stage in {model, *([DISTILLED] if is_distilled(model) else [])}:
        return recommender.model_alone()
    if undistilled is not None and without_memory(stage)[0] == UNDISTILLED:
        return of_stage(undistilled, stage)
    have = info.stage + (f" and {undistilled.info.stage}" if undistilled is not None else "")
    kind = "a run" if info.format == 0 else "an export"
    raise RunError(
        f"{info.name} is {kind} of {have}, not of {stage}", "Leave out the stage, or name one that is there."
    )


def reloading(loaded_from: LoadedFrom | None, *, changed: bool) -> Callable[[], Recommender]:
    """What loads a recommender again where it is unpickled.

    Args:
        loaded_from: its folder; None: it was made from a run.
        changed: items were added or removed, or events counted, since it was loaded.

    Raises:
        RunError: it cannot be loaded again as it is.
    """
    if loaded_from is None:
        raise RunError(
            "a recommender made from a run cannot be sent to another process or copied",
            "Export the run, and call Recommender.load(FOLDER) in each process.",
        )
    if changed:
        raise RunError(
            "this recommender has changed since it was loaded: items were added or removed, or events counted, which "
            "another process or a copy would not have",
            "Write it with save(FOLDER), and call Recommender.load(FOLDER) there.",
        )
    if not Path(loaded_from.folder).is_dir():
        raise RunError(
            f"{loaded_from.folder}, from which this was loaded, is gone: it cannot be loaded again",
            "Put the export back, or load it from where it is now: Recommender.load(FOLDER) in each process.",
        )
    return loaded_from.load_again


class Renamed:
    """A method that a class once had.

    Args:
        name: what it was called.
        now: what to write instead.
    """

    def __init__(self, name: str, now: str) -> None:
        self._name, self._now = name, now

    def __get__(self, instance: Any, owner: type[Any]) -> NoReturn:
        raise AttributeError(f"{owner.__name__} has no attribute {self._name!r}; it is now {self._now}")
