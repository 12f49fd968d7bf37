"""What items share by name: brands, categories, tags; found in the catalogue's own fields.

A field's value is cut at `>`, `;`, `|` and `,` into parts ("Makeup > Nails > Polish" is three). A part that several
items have is an attribute. A field of which few parts are shared (titles, descriptions) gives none.
"""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import scipy.sparse as sp

from llmd4rec.data.dataset import Dataset

#: Items that must have a part before it counts as an attribute.
MIN_ITEMS = 3
#: A field counts if at least this share of its items' parts is shared.
SHARED_PARTS = 0.5
_CUT = re.compile(r"[>;|,]")


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
        values = dataset.catalogue[field].cast(str).to_list()
        parts = [list(dict.fromkeys(_parts(value))) if value else [] for value in values]
        counts = Counter(part for each in parts for part in each)
        every = sum(counts.values())
        if not every or sum(n for n in counts.values() if n >= MIN_ITEMS) < SHARED_PARTS * every:
            continue
        for item, each in enumerate(parts):
            for part in each:
                # What every item has tells nothing apart.
                if MIN_ITEMS <= counts[part] < len(values):
                    rows.append(item)
                    columns.append(names.setdefault((field, part), len(names)))
    if not names:
        return None
    held = sp.csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), (dataset.num_items, len(names)))
    count = np.maximum(held.getnnz(axis=1), 1)
    return sp.csr_matrix(sp.diags((count**-0.5).astype(np.float32)) @ held)


def _parts(value: str) -> list[str]:
    return [part for part in (piece.strip().lower() for piece in _CUT.split(value)) if part]
