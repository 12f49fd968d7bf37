"""New items: from their texts to vectors, of which the text map makes rows of the item table."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmd4rec.data.ingest.limits import LONGEST_ID
from llmd4rec.errors import DataError, RunError
from llmd4rec.inference.catalogue import Catalogue
from llmd4rec.inference.texts import TextEncoder, text_of
from llmd4rec.inference.types import NewItem

Floats = NDArray[np.float32]


def check_items(items: Sequence[NewItem], catalogue: Catalogue) -> None:
    """Refuses items that cannot be added.

    Raises:
        DataError: an item has no identifier, is given twice, or has a field that the catalogue does not have or a value
            that the field cannot hold; names it.
    """
    seen: set[str] = set()
    for place, item in enumerate(items):
        if not item.item_id.strip():
            raise DataError(f"items[{place}] has no identifier", "Give each item one that is not blank.")
        if len(item.item_id) > LONGEST_ID:
            raise DataError(
                f"items[{place}] has an identifier of {len(item.item_id):,} characters", f"Use at most {LONGEST_ID}."
            )
        if item.item_id in seen:
            raise DataError(f"item {item.item_id!r} is given twice", "Give each item once.")
        seen.add(item.item_id)
        try:
            for name in item.fields:
                catalogue.field(name).value_of(item)
        except DataError as error:
            raise DataError(f"item {item.item_id!r}: {error.what}", error.remedy) from error


class ItemTexts:
    """What turns new items into text vectors; the encoder is opened when first needed.

    Args:
        folder: the export folder.
        head: its export.json.
        threads: of one call of the encoder; None: ONNX Runtime's choice.
    """

    def __init__(self, folder: Path, head: Mapping[str, Any], threads: int | None) -> None:
        self._folder, self._threads = folder, threads
        self.width: int = head["new_items"]["width"]
        self.name: str = head["new_items"]["encoder"]
        self.fields: list[str] = head["text_fields"]
        self._about: Mapping[str, Any] | None = head.get("text_encoder")
        self._encoder: TextEncoder | None = None
        self._lock = threading.Lock()

    def vectors(self, items: Sequence[NewItem]) -> Floats:
        """Text vectors [n, T] of length 1; those that come with the items are brought to it.

        Raises:
            DataError: an item has no text, or its vector is of the wrong width, zero or not finite; names it.
            RunError: items come as text, and the export has no text encoder.
        """
        vectors = np.zeros((len(items), self.width), dtype=np.float32)
        written = [place for place, item in enumerate(items) if item.vector is None]
        texts = [self._text(items[place]) for place in written]
        for place, item in enumerate(items):
            if item.vector is not None:
                vectors[place] = self._vector(item)
        if texts:
            vectors[written] = self._open(items[written[0]])(texts)
        return vectors

    def _vector(self, item: NewItem) -> Floats:
        # In float64, so that the square of a large number is still a number.
        vector = np.asarray(item.vector, dtype=np.float64)
        if vector.shape != (self.width,) or not np.isfinite(vector).all():
            raise DataError(
                f"item {item.item_id!r}: its vector has shape {vector.shape} or is not finite",
                f"Give {self.width} numbers, as {self.name} gives them for its text.",
            )
        largest = np.abs(vector).max()
        if largest == 0:
            raise DataError(
                f"item {item.item_id!r}: its vector is zero, which says nothing about where it belongs",
                f"Give {self.width} numbers, as {self.name} gives them for its text.",
            )
        # The map was fitted to vectors of length 1: a longer one would win everywhere for its length alone. The largest
        # is divided out first, since the squares of very large or small numbers are none.
        vector = vector / largest
        unit: Floats = (vector / np.linalg.norm(vector)).astype(np.float32)
        return unit

    def _text(self, item: NewItem) -> str:
        text = item.text if item.text is not None else text_of(item.title, item.fields, self.fields)
        if not text.strip():
            raise DataError(
                f"item {item.item_id!r} has no text to place it by",
                f"Give it a text, a vector, or one of the fields {', '.join(self.fields)}.",
            )
        return text

    def _open(self, item: NewItem) -> TextEncoder:
        with self._lock:
            if self._encoder is None:
                if self._about is None:
                    raise RunError(
                        f"item {item.item_id!r} comes as text, but the export {self._folder} has no text encoder",
                        f"Export with --text-encoder, or give the item's vector as {self.name} makes it.",
                    )
                self._encoder = TextEncoder(self._folder, self._about["max_tokens"], self._threads)
            return self._encoder


@dataclass(frozen=True)
class NewItems:
    """How a model places new items.

    Attributes:
        texts: shared by the model and the one before distillation.
        text_map: float32 [T + 1, d].
    """

    texts: ItemTexts
    text_map: Floats
