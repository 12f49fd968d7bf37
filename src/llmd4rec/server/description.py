"""What is served, as `GET /v1/models` describes it: the model, its limits, and the fields to filter by."""

from __future__ import annotations

from collections import Counter

import numpy as np

from llmd4rec.inference.fields import MOST_STEPS, PATH, Field, Mask
from llmd4rec.inference.recommender import Recommender
from llmd4rec.server.schema import Facet, ModelOut

#: The maximum number of values of a category that are offered for filtering.
MAX_FACET_VALUES = 200


def describe(recommender: Recommender) -> ModelOut:
    """Describes a recommender. Reads the whole catalogue."""
    info = recommender.info
    return ModelOut(
        name=info.name,
        network=info.model,
        stage=info.stage,
        fingerprint=info.fingerprint,
        items=info.items,
        dim=info.dim,
        max_length=info.max_length,
        filter_seen=info.filter_seen,
        validation=info.validation,
        selection=info.selection,
        has_undistilled=recommender.undistilled is not None,
        can_add=info.can_add,
        reads=list(info.reads),
        memory=dict(info.memory),
        fields=[facet_of(field, recommender.catalogue.present) for field in recommender.catalogue.fields.values()],
    )


def facet_of(field: Field, present: Mask) -> Facet:
    """How a field can be filtered: its range, or its most frequent values."""
    known = [field.values[row] for row in np.flatnonzero(present) if field.values[row] is not None]
    if field.kind == "number":
        return Facet(name=field.name, kind="number", min=min(known, default=None), max=max(known, default=None))
    if field.kind == "text":
        return Facet(name=field.name, kind="text")
    counts: Counter[str] = Counter()
    for value, count in Counter(known).items():
        for part in field.parts(value) if field.multi_format else [value]:
            steps = part.split(PATH, MOST_STEPS - 1)
            for end in range(1, len(steps) + 1):
                counts[PATH.join(steps[:end])] += count
    best = [value for value, count in counts.most_common(MAX_FACET_VALUES) if count < len(known) or len(counts) == 1]
    return Facet(name=field.name, kind="category", values=sorted(best, key=str.casefold))
