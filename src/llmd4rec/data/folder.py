"""A data set as a folder, memory-mapped when it is opened; made whole or not at all, and opened only as it was written.

dataset.json        format version, counts, settings of `prepare`, fingerprint, SHA-256 of every file
offsets.npy         int64  [U + 1]  user u's interactions are items[offsets[u]:offsets[u+1]], oldest first
items.npy           int32  [N]
times.npy           int64  [N]      seconds since 1970 (optional; `NO_TIME` where unknown)
train_end.npy       int64  [U]      flat position behind user u's last training interaction
valid.npy test.npy  int64  [V] [T]  flat positions of the held-out targets, ascending, at most one per user each
users.parquet       user_id (string), in index order
catalogue.parquet   item_id (string), then text fields and other columns, in index order
report.json .md     what was read, dropped and why
"""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llmd4rec.data.arrays import Int64Array, PreparedData
from llmd4rec.data.ingest.report import report_markdown
from llmd4rec.data.ingest.table import UNREADABLE
from llmd4rec.errors import DataError
from llmd4rec.io.files import atomic_dir, read_json, sha256_file, write_array, write_json

FORMAT_VERSION = 1
#: The number type of each array.
_TYPES: dict[str, type[np.integer]] = {
    **{"offsets": np.int64, "items": np.int32, "train_end": np.int64, "valid": np.int64, "test": np.int64},
    "times": np.int64,
}


def check_target(path: Path, *, overwrite: bool) -> None:
    """Refuses to write a data set where something else is; only a prepared data set is ever replaced.

    Raises:
        DataError: `path` exists and is not an empty folder, and `overwrite` is false or it holds something else.
    """
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not (path / "dataset.json").is_file():
        raise DataError(f"{path} already exists and is no prepared data set", "Choose another folder.")
    if not overwrite:
        raise DataError(f"{path} already exists", "Choose another folder, or pass --overwrite.")


def write_folder(data: PreparedData, fingerprint: str, path: Path, *, overwrite: bool) -> None:
    """Writes a data set; same data set, same bytes. All or nothing.

    Raises:
        DataError: `path` exists, and `overwrite` is false or it is no prepared data set.
    """
    check_target(path, overwrite=overwrite)
    with atomic_dir(path, replace=overwrite) as folder:
        arrays: dict[str, NDArray[Any]] = {"offsets": data.offsets, "items": data.items}
        arrays |= {"train_end": data.train_end, "valid": data.valid, "test": data.test}
        if data.times is not None:
            arrays["times"] = data.times
        for name, array in arrays.items():
            write_array(folder / f"{name}.npy", array)
        _write_table(folder / "users.parquet", pl.DataFrame({"user_id": data.user_ids}))
        _write_table(folder / "catalogue.parquet", data.catalogue)
        write_json(folder / "report.json", data.report)
        if data.report:
            (folder / "report.md").write_text(report_markdown(data.report), encoding="utf-8")
        head = {
            "format": FORMAT_VERSION,
            "fingerprint": fingerprint,
            "users": len(data.offsets) - 1,
            "items": data.catalogue.height,
            "interactions": len(data.items),
            "validation_targets": len(data.valid),
            "test_targets": len(data.test),
            "text_fields": list(data.text_fields),
            **({} if data.multi_fields is None else {"multi_fields": data.multi_fields}),
            "settings": data.settings,
            "files": {file.name: sha256_file(file) for file in sorted(folder.iterdir())},
        }
        write_json(folder / "dataset.json", {**head, "sha256": head_digest(head)})


def open_folder(path: Path) -> tuple[PreparedData, str | None]:
    """Opens a prepared folder, arrays memory-mapped read-only, if every file is as it was written.

    Returns:
        What it holds, and the fingerprint that this must have; None: checksums have vouched for it already.

    Raises:
        DataError: the folder is missing, incomplete, of another format version, altered, or inconsistent.
    """
    if not (path / "dataset.json").is_file():
        raise DataError(
            f"{path} is not a prepared data set (it has no dataset.json)",
            f"Make one with: llmd4rec prepare --interactions FILE --out {path}",
        )
    head = read_json(path / "dataset.json")
    if not isinstance(head, dict) or head.get("format") != FORMAT_VERSION:
        found = head.get("format") if isinstance(head, dict) else None
        raise DataError(
            f"{path} has data format {found!r}; this version reads {FORMAT_VERSION}",
            "Run `llmd4rec prepare` again.",
        )
    try:
        problem = _alteration(path, head)
        if problem:
            raise DataError(f"{path} is damaged: {problem}", "Run `llmd4rec prepare` again.")
        arrays = {name: _open_array(path, name) for name in _TYPES if name != "times"}
        times = _open_array(path, "times") if (path / "times.npy").exists() else None
        users = pl.read_parquet(path / "users.parquet", glob=False)["user_id"]
        catalogue = pl.read_parquet(path / "catalogue.parquet", glob=False)
        report = read_json(path / "report.json")
    except (*UNREADABLE, ValueError) as error:
        raise DataError(f"{path} is damaged: {error}", "Run `llmd4rec prepare` again.") from error
    problem = _inconsistency(head, arrays, times, len(users), catalogue)
    if problem:
        raise DataError(f"{path} is damaged: {problem}", "Run `llmd4rec prepare` again.")
    data = PreparedData(
        user_ids=users,
        catalogue=catalogue,
        times=times,
        text_fields=tuple(head["text_fields"]),
        multi_fields=head.get("multi_fields"),
        settings=head["settings"],
        report=report,
        **arrays,
    )
    return data, None if "files" in head else str(head.get("fingerprint"))


def _write_table(path: Path, table: pl.DataFrame) -> None:
    """Parquet by way of memory: polars' error on a full disk does not say that the disk is full."""
    buffer = io.BytesIO()
    table.write_parquet(buffer)
    path.write_bytes(buffer.getbuffer())


def _open_array(folder: Path, name: str) -> NDArray[Any]:
    """Memory-maps one array; it may come from a stranger, so its head is not believed.

    Raises:
        ValueError: it is no one-dimensional array of the type it must have.
    """
    try:
        array: NDArray[Any] = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # numpy parses the head as Python, which fails in many ways
        raise ValueError(f"{name}.npy cannot be read: {error}") from error
    if array.dtype != _TYPES[name] or array.ndim != 1:
        raise ValueError(f"{name}.npy holds {array.dtype} of shape {array.shape}")
    return array


def _inconsistency(
    head: dict[str, Any], arrays: dict[str, NDArray[Any]], times: Int64Array | None, users: int, catalogue: pl.DataFrame
) -> str:
    """What does not fit together in a loaded folder; empty if all does."""
    offsets, flat = arrays["offsets"], arrays["items"]
    items = catalogue.height
    counts = {"users": users, "items": items, "interactions": len(flat)}
    for name, count in counts.items():
        if head.get(name) != count:
            return f"dataset.json names {head.get(name)} {name}, the files hold {count}"
    if not {"text_fields", "settings"} <= head.keys():
        return "dataset.json lacks fields"
    if catalogue.schema.get("item_id") != pl.String or catalogue["item_id"].null_count():
        return "catalogue.parquet has no item_id for every item"
    if not isinstance(head["text_fields"], list) or any(name not in catalogue.columns for name in head["text_fields"]):
        return "dataset.json names text fields that the catalogue does not have"
    multi = head.get("multi_fields", {})
    if not isinstance(multi, dict) or not all(isinstance(how, str) for how in multi.values()):
        return "dataset.json does not say how fields with several values were written"
    if not multi.keys() <= set(catalogue.columns):
        return "dataset.json names fields with several values that the catalogue does not have"
    if len(offsets) != users + 1 or offsets[0] != 0 or offsets[-1] != len(flat) or (np.diff(offsets) < 0).any():
        return "offsets.npy does not fit the users and items.npy"
    if len(flat) and (int(flat.min()) < 0 or int(flat.max()) >= items):
        return "items.npy names items that the catalogue does not have"
    if times is not None and len(times) != len(flat):
        return "times.npy and items.npy differ in length"
    train_end = arrays["train_end"]
    if len(train_end) != users or (train_end < offsets[:-1]).any() or (train_end > offsets[1:]).any():
        return "train_end.npy does not fit offsets.npy"
    for name in ("valid", "test"):
        targets = arrays[name]
        if len(targets) and (int(targets.min()) < 0 or int(targets.max()) >= len(flat)):
            return f"{name}.npy points outside items.npy"
        of_user = np.searchsorted(offsets, targets, side="right") - 1
        if (np.diff(of_user) < 1).any() or (targets < train_end[of_user]).any():
            return f"{name}.npy does not fit train_end.npy"
    return ""


def _alteration(path: Path, head: dict[str, Any]) -> str:
    """What in a folder is not as it was written, by the checksums in its head; empty if all is, or it has none."""
    if "files" not in head:
        return ""
    if head.get("sha256") != head_digest(head) or not isinstance(head["files"], dict):
        return "dataset.json is not as it was written"
    for name, digest in head["files"].items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if sha256_file(path / name) != digest:
            return f"{name} is not as it was written (altered, or cut short)"
    if "times.npy" not in head["files"] and (path / "times.npy").exists():
        return "times.npy was not written with the rest"
    return ""


def head_digest(head: dict[str, Any]) -> str:
    """SHA-256 of everything else that dataset.json says."""
    rest = {name: value for name, value in head.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
