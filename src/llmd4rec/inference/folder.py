"""Reading an export folder: everything is checked before anything is served.

    encoder.onnx        vectors float32 [batch, length, d], lengths int64 [batch]  →  states float32 [batch, d]; what
                        `reads` in export.json names are inputs too, such as times int64 [batch, length]
    item_table.npy      float32 [I, d], or int8 with a scale per row in item_scales.npy (float32 [I])
    catalogue.parquet   item_id, title and the other fields, in the table's order
    counts.npy          int64 [I], occurrences in the training data
    export.json         format, settings, what it came from, SHA-256 of every file
    README.md           model card
    text_map.npy        float32 [T + 1, d]: (text vector, 1) @ text_map is the embedding of a new item (optional)
    text_encoder/       ONNX sentence encoder and its tokenizer.json (optional)
    histories.json      example histories (optional)
    undistilled/        encoder, table and text map of the undistilled model (optional)
    memory/             what stands beside the model without being trained, see `scoring/memory/state.py` (optional)

Nothing is unpickled, and no file name may point outside the folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llmd4rec.data.arrays import INPUTS
from llmd4rec.distillation.stage_ids import with_memory
from llmd4rec.errors import DataError, RunError
from llmd4rec.inference.types import ExportInfo, FieldKind
from llmd4rec.io.files import read_json, sha256_file
from llmd4rec.scoring.memory.state import CountedMemory

#: Of an export without a memory, and of one with it, which older versions of this package cannot answer with.
FORMAT_VERSION, FORMAT_WITH_MEMORY = 3, 4
HEAD = "export.json"
#: The folder of the memory, and its entry in export.json.
MEMORY = "memory"
Floats = NDArray[np.float32]
_REQUIRED_FILES = ("encoder.onnx", "item_table.npy", "catalogue.parquet", "counts.npy")
_REQUIRED_ENTRIES: dict[str, type | tuple[type, ...]] = {
    "model": dict, "stage": str, "items": int, "dim": int, "max_length": int, "fields": dict, "files": dict,
    "validation": (int, float), "selection": str, "filter_seen": bool,
}  # fmt: skip
_AGAIN = "Export the run again with: llmd4rec export RUN --out FOLDER --overwrite"


@dataclass(frozen=True)
class Model:
    """The files of one model of an export: the served one, or the undistilled one.

    Attributes:
        encoder: path of the ONNX graph.
        table_ID: float32 [I, d].
        text_map: float32 [T + 1, d], or None.
    """

    encoder: Path
    table_ID: Floats
    text_map: Floats | None


@dataclass(frozen=True)
class Folder:
    """A checked export folder.

    Attributes:
        head: export.json.
        has: names of the files it lists.
        undistilled: the same network trained without distillation, where the export has it.
        trained: bool [I]; false for items whose embeddings were made from texts.
        memory: what stands beside the models, where the export has it; `weights` in export.json are those beside each.
        examples: histories of real people, and the item each chose next.
    """

    path: Path
    head: Mapping[str, Any]
    has: frozenset[str]
    model: Model
    undistilled: Model | None
    catalogue: pl.DataFrame
    counts: NDArray[np.int64]
    trained: NDArray[np.bool_]
    examples: tuple[tuple[tuple[str, ...], str | None], ...]
    memory: CountedMemory | None = None

    def info(self, head: Mapping[str, Any]) -> ExportInfo:
        """What is served, according to `head`: export.json, or what it says of the undistilled model."""
        can_add: Literal["text", "vector"] = "text" if "text_encoder/encoder.onnx" in self.has else "vector"
        known = {"format", "model", "stage", "dim", "items", "max_length", "fields", "files"}
        known |= {"undistilled", "filter_seen", "multi_fields", "reads"}
        beside = head.get(MEMORY)
        embeds_items = self.model.text_map is not None or (self.memory is not None and self.memory.content is not None)
        return ExportInfo(
            name=self.path.resolve().name,
            format=head["format"],
            stage=with_memory(head["stage"]) if beside else head["stage"],
            model=str(head["model"].get("name", "")),
            dim=head["dim"],
            items=head["items"],
            max_length=max(head["max_length"], self.memory.max_length)
            if beside and self.memory
            else head["max_length"],
            fields=dict(head["fields"]),
            fingerprint=fingerprint(head["files"]),
            validation=float((beside or head)["validation"]),
            selection=head["selection"],
            filter_seen=head["filter_seen"],
            reads=tuple(head.get("reads", ())),
            can_add=can_add if embeds_items else None,
            memory=dict(beside["weights"]) if beside else {},
            about={name: value for name, value in head.items() if name not in known},
        )


def fingerprint(files: Mapping[str, str]) -> str:
    """One hash for all files of an export, from their checksums."""
    lines = [f"{name} {digest}" for name, digest in sorted(files.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]


def read_folder(path: Path) -> Folder:
    """Reads and checks an export folder.

    Raises:
        RunError: it is not an export, has another format, or a file is missing, altered or does not fit the others.
    """
    head = _read_head(path)
    _check_files(path, head["files"])
    has = frozenset(head["files"])
    try:
        catalogue = pl.read_parquet(path / "catalogue.parquet")
    except (OSError, pl.exceptions.PolarsError) as error:
        raise RunError(f"{path / 'catalogue.parquet'} cannot be read: {error}", _AGAIN) from error
    if "item_id" not in catalogue.columns:
        raise RunError(f"{path / 'catalogue.parquet'} has no column item_id", _AGAIN)
    items, dim = head["items"], head["dim"]
    if catalogue.height != items:
        raise RunError(f"{path / 'catalogue.parquet'} has {catalogue.height:,} items, {HEAD} names {items:,}", _AGAIN)
    if catalogue["item_id"].null_count() or catalogue["item_id"].n_unique() != items:
        raise RunError(f"{path / 'catalogue.parquet'}: an item_id is missing or repeated", _AGAIN)
    for name, kind in head["fields"].items():
        if kind not in get_args(FieldKind):
            raise RunError(f"{path / HEAD} is damaged: {kind!r} is not a kind of field (field {name!r})", _AGAIN)
        if name not in catalogue.columns:
            raise RunError(f"{path / 'catalogue.parquet'} has no field {name!r}, which {HEAD} names", _AGAIN)
    multi = head.get("multi_fields", {})  # absent where the data set does not say
    if (
        not isinstance(multi, dict)
        or not multi.keys() <= head["fields"].keys()
        or "number" in map(head["fields"].get, multi)
    ):
        raise RunError(
            f"{path / HEAD} is damaged: multi_fields names fields that the catalogue does not have, or numbers", _AGAIN
        )
    counts = _array(path / "counts.npy", np.int64, (items,))
    width = head.get("new_items", {}).get("width")
    model = _read_model(path, "", has, items, dim, width)
    undistilled = _read_model(path, "undistilled/", has, items, dim, width) if "undistilled" in head else None
    trained = np.ones(items, dtype=bool)
    untrained = head.get("untrained_rows", [])
    if not all(isinstance(row, int) and 0 <= row < items for row in untrained):
        raise RunError(f"{path / HEAD} is damaged: untrained_rows names rows that the table does not have", _AGAIN)
    trained[untrained] = False
    examples = _read_examples(path / "histories.json") if "histories.json" in has else ()
    memory = _read_memory(path, head, has) if _has_memory(head) else None
    return Folder(path, head, has, model, undistilled, catalogue, counts, trained, examples, memory)


def _read_head(path: Path) -> dict[str, Any]:
    if not (path / HEAD).is_file():
        what = "does not exist" if not path.exists() else f"is not an export folder (it has no {HEAD})"
        raise RunError(f"{path} {what}", f"Make one with: llmd4rec export RUN --out {path}")
    try:
        head = read_json(path / HEAD)
    except DataError as error:
        raise RunError(error.what, _AGAIN) from error
    version = head.get("format") if isinstance(head, dict) else None
    if version not in (FORMAT_VERSION, FORMAT_WITH_MEMORY):
        raise _other_format(path, version)
    for name, kind in _REQUIRED_ENTRIES.items():
        if not isinstance(head.get(name), kind):
            raise RunError(f"{path / HEAD} is damaged: {name!r} is missing or of the wrong kind", _AGAIN)
    if head["items"] < 1 or head["dim"] < 1 or head["max_length"] < 1:
        raise RunError(f"{path / HEAD} is damaged: items, dim and max_length must be at least 1", _AGAIN)
    for name in ("new_items", "undistilled", MEMORY):
        if not isinstance(head.get(name, {}), dict):
            raise RunError(f"{path / HEAD} is damaged: {name!r} is of the wrong kind", _AGAIN)
    reads = head.get("reads", [])
    if not isinstance(reads, list) or not all(name in INPUTS for name in reads):
        raise RunError(f"{path / HEAD} says that the model reads {reads!r}, which is unknown", _AGAIN)
    missing = [name for name in _REQUIRED_FILES if name not in head["files"]]
    if missing:
        raise RunError(f"{path / HEAD} is damaged: it does not list {', '.join(missing)}", _AGAIN)
    return dict(head)


def _other_format(path: Path, version: Any) -> RunError:
    """The error for an export that another version of this package made."""
    what = f"{path / HEAD} has export format {version!r}; this version of llmd4rec reads formats {FORMAT_VERSION} "
    what += f"and {FORMAT_WITH_MEMORY}"
    remedy = "Export the run again with this version of llmd4rec, or serve it with the version that made it."
    if type(version) is int and version < FORMAT_VERSION:
        what = f"{path} was made by an older version of llmd4rec (export format {version}, now {FORMAT_VERSION})"
        remedy = f"{_AGAIN}, or serve it with the version that made it."
    return RunError(what, remedy)


def _check_files(path: Path, files: Mapping[str, str]) -> None:
    for name, expected in files.items():
        inner = PurePosixPath(name)
        if inner.is_absolute() or ".." in inner.parts or "\\" in name:
            raise RunError(f"{path / HEAD} names {name!r}, which is not inside the folder", "Do not use this export.")
        if not (path / name).is_file():
            raise RunError(f"{path / name} is missing", f"Copy the whole folder again. {_AGAIN}")
        if sha256_file(path / name) != expected:
            raise RunError(
                f"{path / name} is not the file that was exported: its checksum is not the one in {HEAD}",
                f"It was altered or cut while copying: copy the folder again. {_AGAIN}",
            )


def _read_model(path: Path, prefix: str, has: frozenset[str], items: int, dim: int, width: int | None) -> Model:
    where = path / f"{prefix}item_table.npy"
    if f"{prefix}item_scales.npy" in has:
        codes = _array(where, np.int8, (items, dim))
        scales = _array(path / f"{prefix}item_scales.npy", np.float32, (items,))
        table_ID = codes * scales[:, None]
    else:
        table_ID = _array(where, np.float32, (items, dim))
    if not np.isfinite(table_ID).all():
        raise RunError(f"{where} contains NaN or infinite values: nothing can be ranked with it", _AGAIN)
    name = f"{prefix}text_map.npy"
    text_map = None
    if name in has:
        text_map = _array(path / name, np.float32, (None if width is None else width + 1, dim))
    return Model(path / f"{prefix}encoder.onnx", table_ID, text_map)


def _has_memory(head: Mapping[str, Any]) -> bool:
    return MEMORY in head or MEMORY in head.get("undistilled", {})


def _read_memory(path: Path, head: Mapping[str, Any], has: frozenset[str]) -> CountedMemory:
    unlisted = [each.name for each in (path / MEMORY).glob("*") if f"{MEMORY}/{each.name}" not in has]
    if unlisted:
        raise RunError(f"{path / MEMORY / unlisted[0]} is not listed in {HEAD}", _AGAIN)
    try:
        memory = CountedMemory.load(path / MEMORY)
        every = [each[MEMORY]["weights"] for each in (head, head.get("undistilled", {})) if MEMORY in each]
        if not all(isinstance(weight, int | float) for each in every for weight in each.values()):
            raise TypeError("a weight is no number")
    except DataError as error:
        raise RunError(error.what, _AGAIN) from error
    except (TypeError, KeyError, AttributeError) as error:
        raise RunError(f"{path / HEAD} is damaged: it does not say how the memory is weighed", _AGAIN) from error
    if memory.num_rows != head["items"]:
        what = f"{path / MEMORY} is of {memory.num_rows:,} items, {HEAD} names {head['items']:,}"
        raise RunError(what, _AGAIN)
    return memory


def _read_examples(path: Path) -> tuple[tuple[tuple[str, ...], str | None], ...]:
    try:
        found = [(each["history"], each["next"]) for each in read_json(path)]
        if not all(isinstance(item, str) for history, _ in found for item in history):
            raise TypeError("an identifier is not text")
        return tuple((tuple(history), following) for history, following in found)
    except (DataError, TypeError, KeyError) as error:
        raise RunError(f"{path} is damaged: {error}", _AGAIN) from error


def _array(path: Path, dtype: type[np.generic], shape: tuple[int | None, ...]) -> NDArray[Any]:
    """Reads an array and checks its type and shape; None stands for any length."""
    try:
        with path.open("rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise RunError(f"{path} cannot be read as a NumPy array: {error}", _AGAIN) from error
    fits = isinstance(array, np.ndarray) and array.ndim == len(shape)
    if not fits or any(want not in (None, have) for want, have in zip(shape, array.shape, strict=True)):
        wanted = " x ".join("any" if size is None else f"{size:,}" for size in shape)
        raise RunError(f"{path} has shape {np.shape(array)}, but {wanted} is needed", _AGAIN)
    if array.dtype != dtype:
        raise RunError(f"{path} contains {array.dtype}, but {np.dtype(dtype)} is needed", _AGAIN)
    return np.ascontiguousarray(array)
