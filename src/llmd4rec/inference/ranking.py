"""The best candidates of each query: exactly, by a search of a large catalogue, or what is chosen now."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmd4rec.inference.diversity import maximal_marginal_relevance
from llmd4rec.inference.query import Query
from llmd4rec.inference.snapshot import Snapshot
from llmd4rec.inference.types import Fallback, Request
from llmd4rec.scoring.rows import RowQuery, SearchLimits, exact_among, exact_top
from llmd4rec.scoring.topk import top_columns

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]
#: How many times more rows an index is asked for than should be needed.
FETCH_MARGIN = 2


@dataclass(frozen=True)
class Ranked:
    """The recommended rows of a query, best first, and their scores.

    Attributes:
        fallback: what the rows are where no item of the history was known; see
            :class:`~llmd4rec.inference.types.Answer`.
        unknown: identifiers of the history that are not in the catalogue.
    """

    rows: Rows
    scores: Floats
    fallback: Fallback | None = None
    unknown: Sequence[str] = ()


def history_places(queries: Sequence[Query]) -> list[int | None]:
    """Which history of those that a scorer reads is each query's; None where no item of it is known."""
    counted = itertools.count()
    return [next(counted) if query.history else None for query in queries]


def read_histories(snapshot: Snapshot, queries: Sequence[Query], max_length: int) -> RowQuery:
    """The histories with a known item, as the scorer reads them: their last `max_length` items."""
    known = [query for query in queries if query.history]
    windows = [query.history[-max_length:] for query in known]
    times = [None if query.times is None else query.times[-max_length:] for query in known]
    return snapshot.scorer.prepare(windows, times, [query.now for query in known])


def rank(snapshot: Snapshot, queries: Sequence[Query], scored: RowQuery) -> list[Ranked]:
    """The recommendations for each query.

    Args:
        snapshot: the catalogue.
        queries: the requests.
        scored: the histories of the queries that have a known item, in their order, as the scorer has read them.
    """
    places = history_places(queries)
    ranked: list[Ranked | None] = [None] * len(queries)
    unfiltered: list[int] = []
    for number, (query, place) in enumerate(zip(queries, places, strict=True)):
        if place is None:
            ranked[number] = _chosen_most(snapshot, query)
        elif (limits := scored.search_limits) is not None:
            ranked[number] = _searched(snapshot, query, scored.take(slice(place, place + 1)), limits)
        elif query.allowed is not None:
            ranked[number] = _exact(snapshot, query, scored.take(slice(place, place + 1)))
        else:
            unfiltered.append(number)
    if unfiltered:  # scored together: of factors, one matrix product for all of them
        asked = scored
        if len(unfiltered) < len(scored):
            asked = scored.take(np.array([places[number] for number in unfiltered], dtype=np.int64))
        k = max(queries[number].num_ranked for number in unfiltered)
        excluded = [queries[number].excluded for number in unfiltered]
        for number, rows, scores in zip(unfiltered, *exact_top(asked, k, excluded), strict=True):
            ranked[number] = Ranked(rows[: queries[number].num_ranked], scores[: queries[number].num_ranked])
    answered = []
    for query, each in zip(queries, ranked, strict=True):
        if each is not None:
            found = _diversified(snapshot, query.request, each)
            answered.append(Ranked(found.rows, found.scores, found.fallback, query.unknown))
    return answered


def _exact(snapshot: Snapshot, query: Query, scored: RowQuery) -> Ranked:
    """The best of all candidates."""
    return Ranked(*exact_among(scored, query.num_ranked, query.candidates(snapshot.catalogue)))


def _searched(snapshot: Snapshot, query: Query, scored: RowQuery, limits: SearchLimits) -> Ranked:
    """The best of the rows that the scorer finds; of all candidates where these are not sure to hold them."""
    share_allowed = max(1, query.num_candidates) / scored.num_rows
    # Without filters, removed items are among the excluded rows; `share_allowed` accounts for them already.
    removed = len(snapshot.catalogue.absent) if query.allowed is None else 0
    fetched = int(FETCH_MARGIN * (query.num_ranked + len(query.excluded) - removed) / share_allowed)
    if query.num_candidates <= limits.exact_up_to or fetched > limits.largest_share * scored.num_rows:
        return _exact(snapshot, query, scored)
    found = scored.candidates(fetched)[0]
    allowed = snapshot.catalogue.present if query.allowed is None else query.allowed
    kept = np.flatnonzero(allowed[found.rows] & ~np.isin(found.rows, query.excluded))
    kept = kept[top_columns(found.scores[None, kept], query.num_ranked)[0]]
    wanted = min(query.num_ranked, query.num_candidates)
    if len(kept) < wanted or found.scores[kept[-1]] < found.bound:
        return _exact(snapshot, query, scored)
    return Ranked(found.rows[kept], found.scores[kept])


def _chosen_most(snapshot: Snapshot, query: Query) -> Ranked:
    """For a history of which no item is known: what is chosen most of late, where that is known; or ever."""
    catalogue, recency = snapshot.catalogue, snapshot.recency
    if recency is not None and recency.events.last is not None:
        scored = recency.prepare([[]], [None], [query.now])
        return Ranked(*exact_among(scored, query.num_ranked, query.candidates(catalogue)), fallback="recent")
    allowed = catalogue.present if query.allowed is None else query.allowed
    order = catalogue.by_count[allowed[catalogue.by_count]]
    rows = order[~np.isin(order, query.excluded)][: query.num_ranked]
    return Ranked(rows, catalogue.counts[rows].astype(np.float32), fallback="popular")


def _diversified(snapshot: Snapshot, request: Request, found: Ranked) -> Ranked:
    if request.diversity == 0 or len(found.rows) == 0:
        return found
    vectors_ND = snapshot.vectors_ID[found.rows]
    chosen = maximal_marginal_relevance(found.scores, vectors_ND, request.k, request.diversity)
    return Ranked(found.rows[chosen], found.scores[chosen], found.fallback)


def most_similar(snapshot: Snapshot, row: int, query: Query) -> tuple[Rows, Floats]:
    """The candidates with the highest cosine between their vector and a row's, best first, and the cosines."""
    candidates = query.candidates(snapshot.catalogue)
    unit_D = snapshot.vectors_ID[row] / snapshot.norms_I[row]
    cosines_I = (snapshot.vectors_ID @ unit_D) / snapshot.norms_I
    best = candidates[np.argsort(-cosines_I[candidates], kind="stable")[: query.request.k]]
    return best, cosines_I[best]
