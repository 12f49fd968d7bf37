"""Reading an export folder: what is a valid export. Everything is checked before anything is served.

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

Nothing is unpickled, no file name may point outside the folder, and no file is read that is larger than the others say:
export.json (`head.py`) and the number of numbers in the arrays decide what else there may be.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llmd4rec.data.ingest.limits import LONGEST_ID
from llmd4rec.data.ingest.table import UNREADABLE
from llmd4rec.data.ingest.unpack import MOST_BYTES, MOST_TIMES
from llmd4rec.distillation.stage_ids import with_memory
from llmd4rec.errors import DataError, RunError
from llmd4rec.inference.head import AGAIN, HEAD, MOST_JSON, read_head
from llmd4rec.inference.types import ExportInfo
from llmd4rec.io.arrays import read_array
from llmd4rec.io.files import read_json, sha256_file
from llmd4rec.log import logger
from llmd4rec.scoring.memory.settings import WEIGHED_BY
from llmd4rec.scoring.memory.state import CountedMemory

#: The folder of the memory, and its entry in export.json.
MEMORY = "memory"
Floats = NDArray[np.float32]


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
            selection=WEIGHED_BY if beside else head["selection"],
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
    head = read_head(path)
    _check_files(path, head["files"])
    has = frozenset(head["files"])
    items, dim, width = head["items"], head["dim"], head.get("new_items", {}).get("width")
    # First the arrays, which are as large as their files are: what they are of cannot be more than that.
    counts = _array(path / "counts.npy", np.int64, (items,))
    if counts.min() < 0:
        raise RunError(f"{path / 'counts.npy'} contains numbers below 0", AGAIN)
    model = _read_model(path, "", has, items, dim, width)
    undistilled = _read_model(path, "undistilled/", has, items, dim, width) if "undistilled" in head else None
    catalogue = _read_catalogue(path / "catalogue.parquet", items, head["fields"])
    trained = np.ones(items, dtype=bool)
    trained[head.get("untrained_rows", [])] = False
    examples = _read_examples(path / "histories.json") if "histories.json" in has else ()
    memory = _read_memory(path, head, has) if _has_memory(head) else None
    return Folder(path, head, has, model, undistilled, catalogue, counts, trained, examples, memory)


def _read_catalogue(path: Path, items: int, fields: Mapping[str, str]) -> pl.DataFrame:
    """The columns that are needed. Few bytes of Parquet may stand for any number of rows, and of letters."""
    logger.debug("reading %s", path)
    try:
        lazy = pl.scan_parquet(path, glob=False)
        schema = lazy.collect_schema()
        rows = lazy.select(pl.len()).collect().item()  # told without reading them
        if rows != items:
            raise RunError(f"{path} has {rows:,} items, {HEAD} names {items:,}", AGAIN)
        if "item_id" not in schema:
            raise RunError(f"{path} has no column item_id", AGAIN)
        for name in fields:
            if name not in schema:
                raise RunError(f"{path} has no field {name!r}, which {HEAD} names", AGAIN)
        names = ["item_id", *(["title"] if "title" in schema else []), *fields]
        for name in names:
            if schema[name].is_nested() or schema[name] in (pl.Binary, pl.Object):
                raise RunError(f"{path}: column {name!r} holds {schema[name]}, which is no text or number", AGAIN)
        frame = pl.read_parquet(path, columns=list(dict.fromkeys(names)), n_rows=items + 1, glob=False)
        written = [pl.col(name).cast(pl.String).str.len_bytes().cast(pl.Int64).sum() for name in frame.columns]
        letters = sum(frame.lazy().select(written).collect(engine="streaming").row(0))
        longest = frame["item_id"].cast(pl.String).str.len_chars().max()
    except UNREADABLE as error:
        raise RunError(f"{path} cannot be read: {str(error)[:500]}", AGAIN) from error
    if frame.height != items:
        raise RunError(f"{path} has {frame.height:,} items, {HEAD} names {items:,}", AGAIN)
    if letters > max(MOST_BYTES, MOST_TIMES * path.stat().st_size):
        raise RunError(f"{path} unpacks to {letters:,} bytes of text, far more than its size", AGAIN)
    if frame["item_id"].null_count() or frame["item_id"].n_unique() != items:
        raise RunError(f"{path}: an item_id is missing or repeated", AGAIN)
    if not isinstance(longest, int) or longest > LONGEST_ID:
        raise RunError(f"{path}: an item_id is longer than {LONGEST_ID} characters", AGAIN)
    return frame


def _check_files(path: Path, files: Mapping[str, str]) -> None:
    for name, expected in files.items():
        inner = PurePosixPath(name)
        if inner.is_absolute() or ".." in inner.parts or "\\" in name:
            raise RunError(f"{path / HEAD} names {name!r}, which is not inside the folder", "Do not use this export.")
        logger.debug("reading %s", path / name)
        try:
            found = sha256_file(path / name) if (path / name).is_file() else None
        except OSError as error:
            raise RunError(f"{path / name} cannot be read: {error.strerror}", "Check its permissions.") from error
        if found is None:
            raise RunError(f"{path / name} is missing", f"Copy the whole folder again. {AGAIN}")
        if found != expected:
            raise RunError(
                f"{path / name} is not the file that was exported: its checksum is not the one in {HEAD}",
                f"It was altered or cut while copying: copy the folder again. {AGAIN}",
            )


def _read_model(path: Path, prefix: str, has: frozenset[str], items: int, dim: int, width: int | None) -> Model:
    where = path / f"{prefix}item_table.npy"
    if f"{prefix}item_scales.npy" in has:
        scales = _array(path / f"{prefix}item_scales.npy", np.float32, (items,))
        codes = _array(where, np.int8, (items, dim))
        table_ID = codes * scales[:, None]
    else:
        table_ID = _array(where, np.float32, (items, dim))
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
        raise RunError(f"{path / MEMORY / unlisted[0]} is not listed in {HEAD}", AGAIN)
    logger.debug("reading %s", path / MEMORY)
    try:
        memory = CountedMemory.load(path / MEMORY, items=head["items"])
    except DataError as error:
        raise RunError(error.what, AGAIN) from error
    texts = new_item_texts(head)
    if memory.content is not None and texts and texts["width"] != len(memory.content.mean_T):
        raise RunError(f"{path / MEMORY} is of text vectors of another width than {HEAD} says", AGAIN)
    return memory


def new_item_texts(head: Mapping[str, Any]) -> Mapping[str, Any]:
    """What an export.json says of the text vectors of new items, `encoder` and `width`; empty: it cannot have any."""
    beside = [each.get(MEMORY, {}).get("texts") for each in (head, head.get("undistilled", {}))]
    found: Mapping[str, Any] = next((each for each in (head.get("new_items"), *beside) if each), {})
    return found


def _read_examples(path: Path) -> tuple[tuple[tuple[str, ...], str | None], ...]:
    logger.debug("reading %s", path)
    try:
        found = [(each["history"], each["next"]) for each in read_json(path, most_bytes=MOST_JSON, finite=True)]
        for history, following in found:
            if not isinstance(history, list) or not isinstance(following, str | None):
                raise TypeError("a history is no list, or what follows it no text")
            if not all(isinstance(item, str) for item in history):
                raise TypeError("an identifier is not text")
        return tuple((tuple(history), following) for history, following in found)
    except (DataError, TypeError, KeyError) as error:
        raise RunError(f"{path} is damaged: {error}", AGAIN) from error


def _array(path: Path, dtype: type[np.generic], shape: tuple[int | None, ...]) -> NDArray[Any]:
    """As :func:`~llmd4rec.io.arrays.read_array`, of an export."""
    logger.debug("reading %s", path)
    try:
        return read_array(path, dtype, shape)
    except (OSError, ValueError) as error:
        raise RunError(f"{path} {error}", AGAIN) from error
