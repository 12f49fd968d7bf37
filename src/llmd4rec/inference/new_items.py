"""Adding items to a running recommender: their texts become vectors, and the text map turns these into embeddings."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmd4rec.data.ingest.limits import LONGEST_ID
from llmd4rec.errors import DataError, RunError
from llmd4rec.inference.catalogue import Catalogue
from llmd4rec.inference.folder import new_item_texts
from llmd4rec.inference.head import HEAD
from llmd4rec.inference.snapshot import Snapshot
from llmd4rec.inference.texts import TextEncoder, text_of
from llmd4rec.inference.types import NewItem

Floats = NDArray[np.float32]


class ItemTexts:
    """Turns new items into text vectors; the text encoder is opened when it is first needed.

    Args:
        folder: the export folder.
        head: its export.json.
        threads: of one call of the encoder; None: ONNX Runtime's choice.
    """

    def __init__(self, folder: Path, head: Mapping[str, Any], threads: int | None) -> None:
        self._folder, self._threads, about = folder, threads, new_item_texts(head)
        self.width: int = about["width"]
        self.name: str = about["encoder"]
        self.fields: list[str] = head.get("text_fields", [])
        self._about: Mapping[str, Any] | None = head.get("text_encoder")
        self._encoder: TextEncoder | None = None
        self._lock = threading.Lock()

    def vectors(self, items: Sequence[NewItem]) -> Floats:
        """Text vectors [n, T] of length 1; vectors that come with the items are normalised.

        Raises:
            DataError: an item has no text, or its vector has the wrong width, is zero or not finite; names the item.
            RunError: items come as text, and the export has no text encoder.
        """
        vectors = np.zeros((len(items), self.width), dtype=np.float32)
        to_encode = [place for place, item in enumerate(items) if item.vector is None]
        texts = [self._text(items[place]) for place in to_encode]
        for place, item in enumerate(items):
            if item.vector is not None:
                vectors[place] = self._vector(item)
        if texts:
            vectors[to_encode] = self._open(items[to_encode[0]])(texts)
        return vectors

    def _vector(self, item: NewItem) -> Floats:
        # In float64, so that the square of a large number is still finite.
        vector = np.asarray(item.vector, dtype=np.float64)
        remedy = f"Give {self.width} numbers, as {self.name} gives them for its text."
        if vector.shape != (self.width,) or not np.isfinite(vector).all():
            raise DataError(f"item {item.item_id!r}: its vector has shape {vector.shape} or is not finite", remedy)
        largest = np.abs(vector).max()
        if largest == 0:
            raise DataError(f"item {item.item_id!r}: its vector is zero, which has no direction", remedy)
        # The map was fitted to vectors of length 1: a longer one would score high for its length alone. The largest
        # number is divided out first, since the squares of very large or small numbers overflow.
        vector = vector / largest
        unit: Floats = (vector / np.linalg.norm(vector)).astype(np.float32)
        return unit

    def _text(self, item: NewItem) -> str:
        text = item.text if item.text is not None else text_of(item.title, item.fields, self.fields)
        if not text.strip():
            raise DataError(
                f"item {item.item_id!r} is new and has no text, from which its embedding would be made",
                f"Give it a text, a vector, or one of the fields {', '.join(self.fields)}.",
            )
        return text

    def _open(self, item: NewItem) -> TextEncoder:
        with self._lock:
            if self._encoder is None:
                if self._about is None:
                    raise RunError(
                        f"item {item.item_id!r} comes as text, but {self._folder / HEAD} names no text encoder",
                        f"Export with --text-encoder, or give the item's vector as {self.name} makes it.",
                    )
                self._encoder = TextEncoder(self._folder, self.width, self._about["max_tokens"], self._threads)
            return self._encoder


@dataclass(frozen=True)
class NewItemEmbedder:
    """Makes the vectors of new items for one scorer.

    Attributes:
        texts: shared by the distilled and the undistilled model of an export.
        maps: by the name of a table of the scorer, what makes its rows of text vectors.
    """

    texts: ItemTexts
    maps: Mapping[str, Callable[[Floats], Floats]]

    def embedded(self, name: str, table_ID: Floats, vectors_NT: Floats) -> Floats:
        """The rows of items with these text vectors in a table; its mean row where it has no map."""
        if name in self.maps:
            return self.maps[name](vectors_NT)
        mean_D: Floats = table_ID.mean(axis=0)
        return np.repeat(mean_D[None], len(vectors_NT), axis=0)


def with_new_items(
    models: Sequence[tuple[Snapshot, NewItemEmbedder | None]], items: Sequence[NewItem], name: str
) -> list[Snapshot]:
    """The snapshots of the models of an export with items added.

    Args:
        models: of one catalogue; each has embeddings and a text map of its own.
        name: of the export, for errors.

    Raises:
        DataError: an item is wrong, has no text, or would get an embedding that is not finite; names it.
        RunError: the export cannot embed new items.
    """
    (snapshot, embedder), *_ = models
    check_items(items, snapshot.catalogue)
    complete = [snapshot.catalogue.completed(item) for item in items]
    to_embed = [place for place, item in enumerate(items) if _needs_embedding(snapshot.catalogue, embedder, item)]
    vectors_NT = np.zeros((0, 0), dtype=np.float32)
    if to_embed:
        if embedder is None:
            raise RunError(
                f"item {items[to_embed[0]].item_id!r} is new, and {name} cannot embed new items: it is a run, or was "
                "exported without --new-items",
                "Export the run with --new-items: llmd4rec export RUN --new-items. Its catalogue needs texts.",
            )
        vectors_NT = embedder.texts.vectors([complete[place] for place in to_embed])
    embeddings = [_embeddings(*model, complete, to_embed, vectors_NT) for model in models]
    return [each.with_items(complete, rows_ND) for (each, _), rows_ND in zip(models, embeddings, strict=True)]


def check_items(items: Sequence[NewItem], catalogue: Catalogue) -> None:
    """Refuses items that cannot be added.

    Raises:
        DataError: an item has no identifier, is given twice, or has a field that the catalogue does not have or a value
            that the field cannot hold; names it.
    """
    known: set[str] = set()
    for place, item in enumerate(items):
        if not item.item_id.strip():
            raise DataError(f"items[{place}] has no identifier", "Give each item one that is not blank.")
        if len(item.item_id) > LONGEST_ID:
            raise DataError(
                f"items[{place}] has an identifier of {len(item.item_id):,} characters", f"Use at most {LONGEST_ID}."
            )
        if item.item_id in known:
            raise DataError(f"item {item.item_id!r} is given twice", "Give each item once.")
        known.add(item.item_id)
        try:
            for name in item.fields:
                catalogue.field(name).value_of(item)
        except DataError as error:
            raise DataError(f"item {item.item_id!r}: {error.what}", error.remedy) from error


def _needs_embedding(catalogue: Catalogue, embedder: NewItemEmbedder | None, item: NewItem) -> bool:
    """Whether an item has no embedding yet, or one that was made from something that now changes."""
    if item.item_id not in catalogue.index:
        return True
    if catalogue.is_trained(item.item_id):
        return False
    encoded_fields = () if embedder is None else embedder.texts.fields
    given = {*item.fields, *(() if item.title is None else ("title",))}
    return item.vector is not None or item.text is not None or not given.isdisjoint(encoded_fields)


def _embeddings(
    snapshot: Snapshot,
    embedder: NewItemEmbedder | None,
    items: Sequence[NewItem],
    to_embed: list[int],
    vectors_NT: Floats,
) -> dict[str, Floats]:
    """The vectors of items in each table of the scorer, [N, d]: made from text vectors, or those they have.

    Raises:
        DataError: one is not finite, which would spoil every answer; names the item.
    """
    known = sorted(set(range(len(items))).difference(to_embed))
    rows = [snapshot.catalogue.index[items[place].item_id] for place in known]
    made: dict[str, Floats] = {}
    for name, table_ID in snapshot.scorer.tables.items():
        rows_ND = np.empty((len(items), table_ID.shape[1]), dtype=np.float32)
        if embedder is not None and to_embed:
            rows_ND[to_embed] = embedder.embedded(name, table_ID, vectors_NT)
        rows_ND[known] = table_ID[rows]
        wrong = np.flatnonzero(~np.isfinite(rows_ND).all(axis=1))
        if len(wrong):
            raise DataError(
                f"item {items[wrong[0]].item_id!r}: the embedding made from its text vector is not finite",
                "Export the run again: its text_map.npy contains numbers that are too large.",
            )
        made[name] = rows_ND
    return made
