"""The prepared data set: item sequences as offsets + values, a catalogue, and a split.

Everything downstream (batches, models, distillation, evaluation) sees only this class. Items and users are dense
indices `0..I-1` and `0..U-1`; there is no padding item, so nothing can mistake it for a candidate.

On disk a data set is a folder that is memory-mapped when loaded:

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
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llmd4rec.data.ingest.table import UNREADABLE
from llmd4rec.errors import DataError
from llmd4rec.io.files import atomic_dir, read_json, sha256_file, write_array, write_json

if TYPE_CHECKING:
    import pandas as pd

FORMAT_VERSION = 1
#: The value of `times` where an interaction's time is unknown.
NO_TIME = np.iinfo(np.int64).min

Int64Array = NDArray[np.int64]
Int32Array = NDArray[np.int32]
SplitName = Literal["valid", "test"]


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


def _write_table(path: Path, table: pl.DataFrame) -> None:
    """Parquet by way of memory: polars' error on a full disk does not say that the disk is full."""
    buffer = io.BytesIO()
    table.write_parquet(buffer)
    path.write_bytes(buffer.getbuffer())


#: The number type of each array.
_TYPES: dict[str, type[np.integer]] = {
    **{"offsets": np.int64, "items": np.int32, "train_end": np.int64, "valid": np.int64, "test": np.int64},
    "times": np.int64,
}


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
    if len(offsets) != users + 1 or offsets[0] != 0 or offsets[-1] != len(flat) or (np.diff(offsets) < 1).any():
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
    if head.get("sha256") != _head_digest(head) or not isinstance(head["files"], dict):
        return "dataset.json is not as it was written"
    for name, digest in head["files"].items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if sha256_file(path / name) != digest:
            return f"{name} is not as it was written (altered, or cut short)"
    if "times.npy" not in head["files"] and (path / "times.npy").exists():
        return "times.npy was not written with the rest"
    return ""


def _head_digest(head: dict[str, Any]) -> str:
    """SHA-256 of everything else that dataset.json says."""
    rest = {name: value for name, value in head.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Dataset:
    """Item sequences per user, a catalogue and a split. See the module's docstring for shapes."""

    user_ids: pl.Series
    catalogue: pl.DataFrame
    offsets: Int64Array
    items: Int32Array
    train_end: Int64Array
    valid: Int64Array
    test: Int64Array
    times: Int64Array | None = None
    text_fields: tuple[str, ...] = ()
    #: Fields of the catalogue with several values of an item, `; ` between them, and how each was written; see
    #: several.py. None: a data set of before they were told apart.
    multi_fields: dict[str, str] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None

    # ---- counts -------------------------------------------------------------------------------------------------
    @property
    def num_users(self) -> int:
        """U."""
        return len(self.offsets) - 1

    @property
    def num_items(self) -> int:
        """|I|: every item of the catalogue, with or without interactions."""
        return self.catalogue.height

    @property
    def num_interactions(self) -> int:
        """N."""
        return len(self.items)

    # ---- views --------------------------------------------------------------------------------------------------
    def targets(self, split: SplitName) -> Int64Array:
        """Flat positions of the held-out targets of `split`; [V] or [T], ascending."""
        return self.valid if split == "valid" else self.test

    def users_of(self, positions: Int64Array) -> Int64Array:
        """The user of each flat position; same shape."""
        return np.searchsorted(self.offsets, positions, side="right") - 1

    def history(self, position: int) -> Int32Array:
        """The items that user interacted with before flat position `position`, oldest first."""
        user = int(self.users_of(np.asarray([position]))[0])
        return self.items[self.offsets[user] : position]

    @cached_property
    def train_counts(self) -> Int64Array:
        """How often each item occurs in the training part; [I]."""
        counts = np.zeros(self.num_items, dtype=np.int64)
        inside = np.arange(self.num_interactions) < np.repeat(self.train_end, np.diff(self.offsets))
        np.add.at(counts, self.items[inside], 1)
        return counts

    @cached_property
    def item_ids(self) -> list[str]:
        """The catalogue's identifiers in index order."""
        return self.catalogue["item_id"].to_list()

    @cached_property
    def item_index(self) -> dict[str, int]:
        """Identifier → index."""
        return {item_id: index for index, item_id in enumerate(self.item_ids)}

    @cached_property
    def titles(self) -> list[str]:
        """What to call each item in front of a person: its title where it has one, else its identifier."""
        if "title" not in self.catalogue.columns:
            return self.item_ids
        pairs = zip(self.catalogue["title"].to_list(), self.item_ids, strict=True)
        return [title or item_id for title, item_id in pairs]

    def texts(self, fields: Sequence[str] | None = None) -> list[str]:
        """One line per item made of its text fields, `field: value` joined by `; ` (empty when it has none).

        Args:
            fields: which columns of the catalogue; default: :attr:`text_fields`.

        Raises:
            DataError: a field is not a column of the catalogue.
        """
        names = list(self.text_fields if fields is None else fields)
        for name in names:
            if name not in self.catalogue.columns:
                known = ", ".join(column for column in self.catalogue.columns if column != "item_id") or "none"
                raise DataError(
                    f"the catalogue has no column {name!r}",
                    f"Name some of its columns instead; it has: {known}.",
                )
        columns = [self.catalogue[name].cast(pl.String).to_list() for name in names]
        lines = []
        for values in zip(*columns, strict=True) if columns else ((),) * self.num_items:
            lines.append("; ".join(f"{n}: {v.strip()}" for n, v in zip(names, values, strict=True) if v and v.strip()))
        return lines

    def with_items_of(self, item_ids: Sequence[str]) -> Dataset:
        """The same sequences and split over another catalogue's items in their order, with the texts known here.

        Args:
            item_ids: the identifiers of a catalogue that holds every item with interactions here.

        Raises:
            DataError: it does not hold one of them.
        """
        catalogue = pl.DataFrame({"item_id": item_ids}, schema={"item_id": pl.String}).join(
            self.catalogue, on="item_id", how="left", maintain_order="left"
        )
        there = {item_id: index for index, item_id in enumerate(item_ids)}
        lookup = np.array([there.get(item_id, -1) for item_id in self.item_ids], dtype=np.int32)
        items = lookup[self.items]
        unknown = np.unique(self.items[items < 0])
        if len(unknown):
            raise DataError(
                f"{len(unknown):,} items with interactions are not in the other catalogue, "
                f"for example {self.item_ids[unknown[0]]!r}",
                "Leave their interactions out of the log, or train on a data set that has these items.",
            )
        return replace(self, catalogue=catalogue, items=items, path=None)

    # ---- identity -----------------------------------------------------------------------------------------------
    @cached_property
    def fingerprint(self) -> str:
        """A hash of everything a model or a metric can depend on: sequences, split, identifiers, texts."""
        digest = hashlib.sha256(f"llmd4rec data 2 {json.dumps(self.text_fields)}".encode())
        if self.multi_fields is not None:
            digest.update(f" {json.dumps(sorted(self.multi_fields))}".encode())
        for array in (self.offsets, self.items, self.train_end, self.valid, self.test, self.times):
            digest.update(b"-" if array is None else f"{array.dtype.str}{array.shape}".encode())
            digest.update(b"" if array is None else np.ascontiguousarray(array).data.cast("B") if array.size else b"")
        for column in [self.user_ids, *self.catalogue.iter_columns()]:
            texts = column.cast(pl.String)
            # Lengths beside the text tell ["ab", "c"] from ["a", "bc"], and a null from an empty text.
            lengths = texts.str.len_bytes().cast(pl.Int64).fill_null(-1).to_numpy()
            digest.update(json.dumps([column.name, len(lengths)]).encode())
            digest.update(lengths.tobytes())
            digest.update(texts.fill_null("").str.join("").item().encode() if len(texts) else b"")
        return digest.hexdigest()[:32]

    def is_known_as(self, fingerprint: str) -> bool:
        """Whether a fingerprint that was written down is this data set's.

        Fingerprints were once made in another way, which did not see which columns are the texts; those still count.
        """
        return fingerprint == self.fingerprint or fingerprint == self._old_fingerprint

    @cached_property
    def _old_fingerprint(self) -> str:
        digest = hashlib.sha256()
        for array in (self.offsets, self.items, self.train_end, self.valid, self.test, self.times):
            digest.update(b"-" if array is None else np.ascontiguousarray(array).tobytes())
        for column in [self.user_ids, *self.catalogue.select(pl.all().cast(pl.String)).iter_columns()]:
            digest.update(column.name.encode())
            for text in column.to_list():
                digest.update(b"\0" if text is None else b"\1" + text.encode())
        return digest.hexdigest()[:32]

    # ---- in and out ---------------------------------------------------------------------------------------------
    @classmethod
    def from_frames(
        cls,
        interactions: pl.DataFrame | pl.LazyFrame | pd.DataFrame,
        items: pl.DataFrame | pl.LazyFrame | pd.DataFrame | None = None,
        **settings: Any,
    ) -> Dataset:
        """Cleans, indexes and splits two frames.

        Settings are those of :class:`~llmd4rec.data.ingest.settings.Prepare`.

        Args:
            interactions: one row per interaction: user, item, and a timestamp or position if known. polars or pandas.
            items: one row per item: its identifier and any text columns.

        Raises:
            DataError: a column is missing or cannot be understood; nothing is left after cleaning.
        """
        from llmd4rec.data.ingest.prepare import prepare_frames
        from llmd4rec.data.ingest.settings import Prepare

        return prepare_frames(interactions, items, Prepare.from_settings(settings))

    def save(self, path: Path | str, *, overwrite: bool = False) -> None:
        """Writes the folder described in the module's docstring; same data set, same bytes. All or nothing.

        Raises:
            DataError: `path` exists, and `overwrite` is false or it is no prepared data set.
        """
        check_target(Path(path), overwrite=overwrite)
        with atomic_dir(Path(path), replace=overwrite) as folder:
            arrays: dict[str, NDArray[Any]] = {"offsets": self.offsets, "items": self.items}
            arrays |= {"train_end": self.train_end, "valid": self.valid, "test": self.test}
            if self.times is not None:
                arrays["times"] = self.times
            for name, array in arrays.items():
                write_array(folder / f"{name}.npy", array)
            _write_table(folder / "users.parquet", pl.DataFrame({"user_id": self.user_ids}))
            _write_table(folder / "catalogue.parquet", self.catalogue)
            write_json(folder / "report.json", self.report)
            if self.report:
                from llmd4rec.data.ingest.report import report_markdown

                (folder / "report.md").write_text(report_markdown(self.report), encoding="utf-8")
            head = {
                "format": FORMAT_VERSION,
                "fingerprint": self.fingerprint,
                "users": self.num_users,
                "items": self.num_items,
                "interactions": self.num_interactions,
                "validation_targets": len(self.valid),
                "test_targets": len(self.test),
                "text_fields": list(self.text_fields),
                **({} if self.multi_fields is None else {"multi_fields": self.multi_fields}),
                "settings": self.settings,
                "files": {file.name: sha256_file(file) for file in sorted(folder.iterdir())},
            }
            write_json(folder / "dataset.json", {**head, "sha256": _head_digest(head)})

    @classmethod
    def load(cls, path: Path | str) -> Dataset:
        """Opens a prepared folder, arrays memory-mapped read-only, if every file is as it was written.

        Raises:
            DataError: the folder is missing, incomplete, of another format version, altered, or inconsistent.
        """
        path = Path(path)
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
            users = pl.read_parquet(path / "users.parquet")["user_id"]
            catalogue = pl.read_parquet(path / "catalogue.parquet")
            report = read_json(path / "report.json")
        except (*UNREADABLE, ValueError) as error:
            raise DataError(f"{path} is damaged: {error}", "Run `llmd4rec prepare` again.") from error
        problem = _inconsistency(head, arrays, times, len(users), catalogue)
        if problem:
            raise DataError(f"{path} is damaged: {problem}", "Run `llmd4rec prepare` again.")
        data = cls(
            user_ids=users,
            catalogue=catalogue,
            times=times,
            text_fields=tuple(head["text_fields"]),
            multi_fields=head.get("multi_fields"),
            settings=head["settings"],
            report=report,
            path=path,
            **arrays,
        )
        if "files" not in head and not data.is_known_as(str(head.get("fingerprint"))):  # of an earlier version
            raise DataError(f"{path} is damaged: its content is not what was written", "Run `llmd4rec prepare` again.")
        return data
