"""The prepared data set: item sequences as offsets + values, a catalogue, and a split.

Everything downstream (batches, models, distillation, evaluation) sees only this class. Items and users are dense
indices `0..I-1` and `0..U-1`; there is no padding item, so nothing can mistake it for a candidate.

On disk a data set is a folder; see :mod:`llmd4rec.data.folder`. Its arrays:

    offsets             int64  [U + 1]  user u's interactions are items[offsets[u]:offsets[u+1]], oldest first
    items               int32  [N]
    times               int64  [N]      seconds since 1970 (optional; `NO_TIME` where unknown)
    train_end           int64  [U]      flat position behind user u's last training interaction
    valid, test         int64  [V] [T]  flat positions of the held-out targets, ascending, at most one per user each
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llmd4rec.data.arrays import NO_TIME, Int32Array, Int64Array, PreparedData, known_times
from llmd4rec.data.folder import open_folder, write_folder
from llmd4rec.data.ingest.pipeline import prepare_frames
from llmd4rec.data.ingest.settings import Prepare
from llmd4rec.data.ingest.splits import targets_in
from llmd4rec.data.ingest.times import as_text
from llmd4rec.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["NO_TIME", "Dataset", "Int32Array", "Int64Array", "SplitName"]
SplitName = Literal["valid", "test"]


@dataclass(frozen=True)
class Dataset(PreparedData):
    """Item sequences per user, a catalogue and a split. See the module's docstring for shapes.

    >>> log = pl.DataFrame({"user_id": [*"uuuuvvvv"], "item_id": [*"abcdbcda"], "timestamp": [*range(8)]})
    >>> data = Dataset.from_frames(log)
    >>> data.num_users, data.num_items, [data.item_ids[item] for item in data.items[data.test]]
    (2, 4, ['d', 'a'])
    """

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
    def event_times(self) -> Int64Array | None:
        """`times`, unknown ones filled in as :func:`~llmd4rec.data.arrays.known_times` says; None: none is known."""
        return known_times(self.times, self.offsets)

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
                "Bring the run up to date with this log (`llmd4rec update`), or leave their interactions out of it.",
            )
        return replace(self, catalogue=catalogue, items=items, path=None)

    def with_catalogue(self, catalogue: pl.DataFrame) -> Dataset:
        """The same sequences and split over a catalogue that begins with the items of this one, in their order."""
        return replace(self, catalogue=catalogue, path=None)

    # ---- other moments ------------------------------------------------------------------------------------------
    @property
    def is_temporal(self) -> bool:
        """Whether its training part ends at a moment, so that items may first appear behind it."""
        return bool(self.report.get("split", {}).get("kind") == "temporal")

    @property
    def target_history(self) -> Literal["window", "event"]:
        """Whose item behind a moment is a target: of users with a history before it, or of anyone's second on."""
        return "event" if self.report.get("split", {}).get("history") == "event" else "window"

    @property
    def _kind_of_split(self) -> dict[str, Any]:
        split = self.report.get("split", {})
        return {name: split[name] for name in ("kind", "history") if name in split}

    def until(self, moment: int) -> Dataset:
        """The data set as it was known at a moment: every row strictly before it is training, none is held out.

        Users and catalogue stay whole, so that indices are the same; later users have no interactions.

        Args:
            moment: in seconds since 1970.

        Raises:
            DataError: the data set has no times.
        """
        split = {**self._kind_of_split, "kind": "temporal", "until": as_text(np.int64(moment))}
        return self._only(self.known_at(moment), split)

    def training_part(self) -> Dataset:
        """The data set without what is held out, and what came after that; users and catalogue stay whole."""
        inside = np.arange(self.num_interactions) < np.repeat(self.train_end, np.diff(self.offsets))
        return self._only(inside, {**self._kind_of_split, "held_out": 0})

    def before(self, moment: int, days: float) -> Dataset:
        """The data set as it would have been prepared at a moment, with what came next as validation.

        Every row before the moment is training. Each user's first item in the days behind it is a validation target;
        of whom, :attr:`target_history` says.
        Indices stay, and so does what :attr:`is_temporal` says.

        Args:
            moment: in seconds since 1970.
            days: how long targets are taken.

        Raises:
            DataError: the data set has no times.
        """
        known, soon = self.known_at(moment), self.known_at(moment + round(days * 86_400))
        known_before = np.concatenate([[0], np.cumsum(known, dtype=np.int64)])
        ends = self.offsets[:-1] + np.diff(known_before[self.offsets])
        targets = targets_in(self.offsets[:-1], ends, self.offsets[1:], self.target_history)
        nothing = np.empty(0, dtype=np.int64)
        split = {**self._kind_of_split, "until": as_text(np.int64(moment))}
        report = {**self.report, "split": split}
        return replace(self, train_end=ends, valid=targets[soon[targets]], test=nothing, report=report, path=None)

    def known_at(self, moment: int) -> NDArray[np.bool_]:
        """Which rows were there at a moment, [N]: those before it, in each history up to the first that is not.

        Args:
            moment: in seconds since 1970.

        Raises:
            DataError: the data set has no times.
        """
        times = self.event_times
        if times is None:
            raise DataError(
                "the data set has no times, so no moment divides it",
                "Prepare it from a log with timestamps (the setting `time` of `llmd4rec prepare`).",
            )
        later = np.flatnonzero(times >= moment)
        ends = np.array(self.offsets[1:])
        np.minimum.at(ends, self.users_of(later), later)
        known: NDArray[np.bool_] = np.arange(self.num_interactions) < np.repeat(ends, np.diff(self.offsets))
        return known

    def whole(self) -> Dataset:
        """The same data set with every row in training and nothing held out, for a last training on all of it."""
        return self._all_training(self.offsets, {**self._kind_of_split, "held_out": 0})

    def _only(self, kept: NDArray[np.bool_], split: dict[str, Any]) -> Dataset:
        """Some of the rows, of each history the first ones, all of them training."""
        offsets = np.concatenate([[0], np.cumsum(kept, dtype=np.int64)])[self.offsets]
        return replace(
            self._all_training(offsets, split),
            items=self.items[kept],
            times=None if self.times is None else self.times[kept],
        )

    def _all_training(self, offsets: Int64Array, split: dict[str, Any]) -> Dataset:
        nothing = np.empty(0, dtype=np.int64)
        report = {**self.report, "split": split}
        return replace(
            self, offsets=offsets, train_end=offsets[1:], valid=nothing, test=nothing, report=report, path=None
        )

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
        return cls(**vars(prepare_frames(interactions, items, Prepare.from_settings(settings))))

    def save(self, path: Path | str, *, overwrite: bool = False) -> None:
        """Writes the folder that :mod:`llmd4rec.data.folder` describes; same data set, same bytes. All or nothing.

        Raises:
            DataError: `path` exists, and `overwrite` is false or it is no prepared data set.
        """
        write_folder(self, self.fingerprint, Path(path), overwrite=overwrite)

    @classmethod
    def load(cls, path: Path | str) -> Dataset:
        """Opens a prepared folder, arrays memory-mapped read-only, if every file is as it was written.

        Raises:
            DataError: the folder is missing, incomplete, of another format version, altered, or inconsistent.
        """
        path = Path(path)
        found, fingerprint = open_folder(path)
        data = cls(**vars(found), path=path)
        if fingerprint is not None and not data.is_known_as(fingerprint):  # of an earlier version
            raise DataError(f"{path} is damaged: its content is not what was written", "Run `llmd4rec prepare` again.")
        return data
