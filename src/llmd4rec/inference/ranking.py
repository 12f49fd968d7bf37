"""The best candidates of each query: exactly, through an index on a large catalogue, or by popularity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from llmd4rec.inference.catalogue import Catalogue
from llmd4rec.inference.diversity import maximal_marginal_relevance
from llmd4rec.inference.index import ApproximateIndex
from llmd4rec.inference.query import Query
from llmd4rec.inference.snapshot import Snapshot
from llmd4rec.inference.topk import exact_among, exact_top
from llmd4rec.inference.types import Request

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]
#: Up to so many candidates are all scored, even where there is an index.
MAX_CANDIDATES_EXACT = 50_000
#: How many times more rows an index is asked for than should be needed.
FETCH_MARGIN = 2
#: If an index were asked for more than this share of its rows, all candidates are scored instead.
MAX_SHARE_FETCHED = 0.1


@dataclass(frozen=True)
class Ranked:
    """The recommended rows of a query, best first, and their scores.

    Attributes:
        popular: no item of the history was known; the rows are the most frequent ones, scored by their counts.
        unknown: identifiers of the history that are not in the catalogue.
    """

    rows: Rows
    scores: Floats
    popular: bool = False
    unknown: Sequence[str] = ()


def rank(snapshot: Snapshot, queries: Sequence[Query], states: Sequence[Floats | None]) -> list[Ranked]:
    """The recommendations for each query.

    Args:
        states: the state of each query's history; None where no item of it is known.
    """
    ranked: list[Ranked | None] = [None] * len(queries)
    unfiltered: list[int] = []
    for place, (query, state_D) in enumerate(zip(queries, states, strict=True)):
        if state_D is None:
            ranked[place] = _most_popular(snapshot.catalogue, query)
        elif snapshot.index is not None:
            ranked[place] = _through_index(snapshot, snapshot.index, query, state_D)
        elif query.allowed is not None:
            ranked[place] = _exact(snapshot, query, state_D)
        else:
            unfiltered.append(place)
    if unfiltered:  # one matrix product for all of them
        states_BD = np.stack([vector for place in unfiltered if (vector := states[place]) is not None])
        k = max(queries[place].num_ranked for place in unfiltered)
        excluded = [queries[place].excluded for place in unfiltered]
        for place, rows, scores in zip(unfiltered, *exact_top(states_BD, snapshot.table_ID, k, excluded), strict=True):
            ranked[place] = Ranked(rows[: queries[place].num_ranked], scores[: queries[place].num_ranked])
    return [
        replace(_diversified(snapshot, query.request, found), unknown=query.unknown)
        for query, found in zip(queries, ranked, strict=True)
        if found is not None
    ]


def _exact(snapshot: Snapshot, query: Query, state_D: Floats) -> Ranked:
    """The best of all candidates."""
    candidates = query.candidates(snapshot.catalogue)
    return Ranked(*exact_among(state_D, snapshot.table_ID, query.num_ranked, candidates))


def _through_index(snapshot: Snapshot, index: ApproximateIndex, query: Query, state_D: Floats) -> Ranked:
    """The best of the rows that the index returns; of all candidates where too few of these are allowed."""
    share_allowed = max(1, query.num_candidates) / len(snapshot.table_ID)
    # Without filters, removed items are among the excluded rows; `share_allowed` accounts for them already.
    removed = len(snapshot.catalogue.absent) if query.allowed is None else 0
    fetched = int(FETCH_MARGIN * (query.num_ranked + len(query.excluded) - removed) / share_allowed)
    if query.num_candidates <= MAX_CANDIDATES_EXACT or fetched > MAX_SHARE_FETCHED * len(index):
        return _exact(snapshot, query, state_D)
    found = index.candidates(state_D[None], fetched)[0]
    rows = np.concatenate([found, np.arange(len(index), len(snapshot.table_ID))])
    allowed = snapshot.catalogue.present if query.allowed is None else query.allowed
    rows = np.setdiff1d(rows[allowed[rows]], query.excluded)
    if len(rows) < min(query.num_ranked, query.num_candidates):
        return _exact(snapshot, query, state_D)
    return Ranked(*exact_among(state_D, snapshot.table_ID, query.num_ranked, rows))


def _most_popular(catalogue: Catalogue, query: Query) -> Ranked:
    """The most frequent candidates, scored by their counts."""
    allowed = catalogue.present if query.allowed is None else query.allowed
    order = catalogue.by_count[allowed[catalogue.by_count]]
    rows = order[~np.isin(order, query.excluded)][: query.num_ranked]
    return Ranked(rows, catalogue.counts[rows].astype(np.float32), popular=True)


def _diversified(snapshot: Snapshot, request: Request, found: Ranked) -> Ranked:
    if request.diversity == 0 or len(found.rows) == 0:
        return found
    vectors_ND = snapshot.table_ID[found.rows]
    chosen = maximal_marginal_relevance(found.scores, vectors_ND, request.k, request.diversity)
    return Ranked(found.rows[chosen], found.scores[chosen], found.popular)
