"""What items share by name: brands, categories, tags, and the words of their titles; from the catalogue's own fields.

A path is cut at `>` into its steps ("Makeup > Nails > Polish" is three), a field with several values into these, as
`prepare` told them apart (data sets of before it did: also at `;`, `|` and `,`). A part that several items have is an
attribute. A field of which few parts are shared (titles, descriptions) gives none; of such a field
the words count, and pairs of words that follow each other ("Red Shatter"), unless its values are too long for a title.
A brand is often nowhere but there, and a vector of a whole sentence blurs it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from typing import ClassVar

import numpy as np
import polars as pl
import scipy.sparse as sp
from torch import Tensor

from llmd4rec.data.dataset import Dataset
from llmd4rec.data.ingest.multi_values import BETWEEN, stored_values
from llmd4rec.features.item_features import ItemFeature, Kind

#: Items that must have a part before it counts as an attribute.
MIN_ITEMS = 3
#: A field counts if at least this share of its items' parts, or of its words, is shared. Of cosmetics' titles three
#: quarters of the words are, of films' a third, and those say little of what films have in common.
SHARED_PARTS = 0.5
#: A field of more words than this in the mean is no title.
TITLE_WORDS = 32
#: Words and pairs of them at most; nor are there ever more than items, so that what they cost in training is bounded.
MAX_WORDS = 100_000
_STEPS, _ANY = re.compile(r">"), re.compile(r"[>;|,]")
_WORD = r"\w+"


class Attributes(ItemFeature):
    """Brands, categories and tags that items share; see :func:`item_attributes`."""

    kind: ClassVar[Kind] = "attributes"

    def of(self, dataset: Dataset, text_vectors: Tensor | None) -> sp.csr_matrix | None:
        """See :class:`~llmd4rec.features.item_features.ItemFeature`."""
        return item_attributes(dataset)


class Words(ItemFeature):
    """Words of titles and pairs of them; see :func:`item_words`."""

    kind: ClassVar[Kind] = "attributes"

    def of(self, dataset: Dataset, text_vectors: Tensor | None) -> sp.csr_matrix | None:
        """See :class:`~llmd4rec.features.item_features.ItemFeature`."""
        return item_words(dataset)


def item_attributes(dataset: Dataset, fields: tuple[str, ...] | None = None) -> sp.csr_matrix | None:
    """Items × attributes, float32: a row holds 1/√n for each of its item's n attributes, so that it has length 1.

    Args:
        dataset: its catalogue is read, nothing else.
        fields: columns to look at; default: the text fields of the data set.

    Returns:
        None where no field has values that items share.
    """
    rows: list[int] = []
    columns: list[int] = []
    names: dict[tuple[str, str], int] = {}
    for field in dataset.text_fields if fields is None else fields:
        parts = _field_parts(dataset, field)
        counts = Counter(part for each in parts for part in each)
        if not _is_shared(counts.values()):
            continue
        for item, each in enumerate(parts):
            for part in each:
                # What every item has tells nothing apart.
                if MIN_ITEMS <= counts[part] < len(parts):
                    rows.append(item)
                    columns.append(names.setdefault((field, part), len(names)))
    if not names:
        return None
    held = sp.csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), (dataset.num_items, len(names)))
    count = np.maximum(held.getnnz(axis=1), 1)
    return sp.csr_matrix(sp.diags((count**-0.5).astype(np.float32)) @ held)


def item_words(dataset: Dataset, fields: tuple[str, ...] | None = None) -> sp.csr_matrix | None:
    """Items × words and pairs of words, float32, TF-IDF: log(I / items that have it), each row of length 1.

    Upper and lower case are the same. There are never more columns than items, nor than `MAX_WORDS`: the rarest go.

    Args:
        dataset: its catalogue is read, nothing else.
        fields: columns to look at; default: the text fields of the data set that give no attributes and hold titles.

    Returns:
        None where no field has words that items share.
    """
    found = []
    for field in _titles(dataset) if fields is None else fields:
        words = _words(_values(dataset, field))
        if _is_shared(words["word"].value_counts()["count"].to_list()):
            found.append(words.with_columns(field=pl.lit(field)))
    if not found:
        return None
    held = pl.concat(found)
    size = dataset.num_items
    known = (
        held.group_by("field", "word")
        .len("items")
        .filter(pl.col("items").is_between(MIN_ITEMS, size - 1))
        .sort("items", "field", "word", descending=[True, False, False])
        .head(min(size, MAX_WORDS))
        .with_row_index("column")
    )
    if not len(known):
        return None
    held = held.join(known, on=["field", "word"])
    weight = np.log(size / held["items"].to_numpy()).astype(np.float32)
    matrix = sp.csr_matrix((weight, (held["item"].to_numpy(), held["column"].to_numpy())), (size, len(known)))
    length = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
    scale = np.divide(1.0, length, out=np.zeros(size, np.float32), where=length > 0)
    return sp.csr_matrix(sp.diags(scale) @ matrix, dtype=np.float32)


def _titles(dataset: Dataset) -> list[str]:
    """The text fields whose values are short and not shared as a whole."""
    return [
        field
        for field in dataset.text_fields
        if _mean_words(dataset.catalogue[field]) <= TITLE_WORDS
        and not _is_shared(Counter(part for each in _field_parts(dataset, field) for part in each).values())
    ]


def _mean_words(values: pl.Series) -> float:
    counts = values.cast(pl.String).str.count_matches(_WORD).drop_nulls().to_numpy()
    return float(counts.mean()) if len(counts) else 0.0


def _values(dataset: Dataset, field: str) -> pl.DataFrame:
    """The values of a field, a row each: columns item, value."""
    column = dataset.catalogue[field].cast(pl.String)
    if field in (dataset.multi_fields or {}):
        column = stored_values(column)
    values = column.alias("value").to_frame().with_row_index("item")
    return values.explode("value").drop_nulls() if column.dtype == pl.List else values


def _words(values: pl.DataFrame) -> pl.DataFrame:
    """Each word of an item's values and pair of words within one of them, once: columns item, word."""
    listed = values.with_row_index("place").with_columns(word=pl.col("value").str.to_lowercase().str.extract_all(_WORD))
    single = listed.drop("value").explode("word").drop_nulls()
    following = pl.col("word").shift(-1)
    pairs = single.with_columns(
        word=pl.col("word") + " " + following, same=pl.col("place") == pl.col("place").shift(-1)
    )
    return pl.concat([single, pairs.filter(pl.col("same")).drop("same")]).drop("place").unique()


def _field_parts(dataset: Dataset, field: str) -> list[list[str]]:
    values = dataset.catalogue[field].cast(str).to_list()
    cut = _ANY if dataset.multi_fields is None else _STEPS
    if field in (dataset.multi_fields or {}):
        cut = re.compile(f"{BETWEEN}|{_STEPS.pattern}")
    return [list(dict.fromkeys(_parts(value, cut))) if value else [] for value in values]


def _is_shared(counts: Collection[int]) -> bool:
    """Whether enough of what a field holds is shared, given how many items have each part or word of it."""
    return sum(n for n in counts if n >= MIN_ITEMS) >= SHARED_PARTS * max(1, sum(counts))


def _parts(value: str, cut: re.Pattern[str]) -> list[str]:
    return [part for part in (piece.strip().lower() for piece in cut.split(value)) if part]
