"""Answers: the ranked rows of a query as items with titles, fields and reasons."""

from __future__ import annotations

from collections.abc import Sequence

from llmd4rec.inference.query import Query
from llmd4rec.inference.ranking import Ranked
from llmd4rec.inference.reasons import find_reasons
from llmd4rec.inference.snapshot import Snapshot
from llmd4rec.inference.types import Answer, Reason, ScoredItem
from llmd4rec.scoring.rows import RowQuery


def answer_of(
    snapshot: Snapshot, query: Query, scored: RowQuery, place: int | None, found: Ranked, max_length: int
) -> Answer:
    """The answer to a query.

    Args:
        scored: the histories of all queries that have a known item, as the scorer has read them.
        place: which of them is this query's; None: it has no known item.
        found: what is recommended.
        max_length: how many items of a history the scorer is given.
    """
    reasons: Sequence[tuple[Reason, ...] | None] = [None] * len(found.rows)
    if query.request.explain:
        own = None if place is None else scored.take(slice(place, place + 1))
        reasons = find_reasons(snapshot, query, own, found.rows, max_length)
    items = tuple(map(scored_item, [snapshot] * len(reasons), found.rows.tolist(), found.scores.tolist(), reasons))
    return Answer(items, tuple(query.unknown), found.fallback, query.num_candidates)


def scored_item(snapshot: Snapshot, row: int, score: float, reasons: tuple[Reason, ...] | None = None) -> ScoredItem:
    """A row as a recommended item."""
    catalogue = snapshot.catalogue
    return ScoredItem(catalogue.ids[row], catalogue.title(row), score, catalogue.values(row), reasons)
