"""A request, checked and translated from identifiers to rows of the item table."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmd4rec.errors import DataError
from llmd4rec.inference.catalogue import Catalogue
from llmd4rec.inference.diversity import pool_size
from llmd4rec.inference.fields import Mask
from llmd4rec.inference.moments import seconds_of, times_of
from llmd4rec.inference.types import Filters, Request, identifiers

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Query:
    """A request in rows.

    Attributes:
        history: rows of the known items, oldest first.
        unknown: identifiers of the other items of the history.
        allowed: which rows the filters allow, [I]; None where there are no filters.
        excluded: rows that must not be recommended even if the filters allow them: excluded and seen items.
        num_candidates: how many items can be recommended.
        times: when each of the known items was chosen, in seconds since 1970; None: not given.
        now: the moment for which it is answered, likewise.
    """

    request: Request
    history: list[int]
    unknown: list[str]
    allowed: Mask | None
    excluded: Rows
    num_candidates: int
    times: list[int] | None = None
    now: int | None = None

    @property
    def num_ranked(self) -> int:
        """How many of the best rows are needed; diversity chooses from more than k."""
        return self.request.k if self.request.diversity == 0 else pool_size(self.request.k)

    def candidates(self, catalogue: Catalogue) -> Rows:
        """The rows that can be recommended."""
        mask = (catalogue.present if self.allowed is None else self.allowed).copy()
        mask[self.excluded] = False
        return np.flatnonzero(mask)


def parse_request(request: Request, catalogue: Catalogue, filter_seen: bool, moment: int | None = None) -> Query:
    """Checks a request and looks its items up.

    Args:
        filter_seen: whether seen items are left out where the request does not say.
        moment: for which it is answered where it does not say; None: then for none.

    Raises:
        DataError: an argument is out of its range, a filter names a field that the catalogue does not have, or an item
            is unknown and not skipped.
    """
    _check(request)
    named = identifiers("history", request.history, ordered=True)
    history, unknown = catalogue.rows(named)
    if unknown and not request.skip_unknown:
        raise _unknown_items(unknown, catalogue)
    times = None if request.times is None else times_of(request.times, len(named))
    if times is not None and unknown:
        times = [when for item, when in zip(named, times, strict=True) if item in catalogue.index]
    now = moment if request.now is None else seconds_of("now", request.now)
    allowed = None
    if request.filters is not None:
        allowed = catalogue.mask(request.filters)
    if request.popular_in and not history:
        inside = catalogue.mask(Filters(any_of=request.popular_in))
        allowed = inside if allowed is None else allowed & inside
    exclude = identifiers("list exclude", () if request.exclude is None else request.exclude)
    excluded_rows = set(catalogue.rows(exclude)[0])
    if filter_seen if request.filter_seen is None else request.filter_seen:
        excluded_rows.update(history)
    excluded = np.fromiter(excluded_rows, dtype=np.int64, count=len(excluded_rows))
    if allowed is None:
        # Removed items are few, and must not be recommended either.
        num_candidates = catalogue.size - int(catalogue.present[excluded].sum())
        excluded = np.concatenate([excluded, catalogue.absent]) if len(catalogue.absent) else excluded
    else:
        num_candidates = int(allowed.sum()) - int(allowed[excluded].sum())
    return Query(request, history, unknown, allowed, excluded, num_candidates, times, now)


def _unknown_items(unknown: list[str], catalogue: Catalogue) -> DataError:
    near = difflib.get_close_matches(unknown[0], catalogue.ids[:100_000], n=1, cutoff=0.6)
    hint = f" (nearest known: {near[0]!r})" if near else ""
    return DataError(
        f"unknown item in the history: {', '.join(map(repr, unknown[:5]))}{hint}",
        "Use identifiers of the catalogue, or skip unknown items (skip_unknown, --skip-unknown).",
    )


def _check(request: Request) -> None:
    if isinstance(request.k, bool) or not isinstance(request.k, int | np.integer):
        raise DataError(f"k is {request.k!r}, not a whole number", "Ask for at least 1 item.")
    if request.k < 1:
        raise DataError(f"k is {request.k}", "Ask for at least 1 item.")
    if request.filter_seen not in (True, False, None):
        raise DataError(
            f"filter_seen is {request.filter_seen!r}",
            "Use True to leave out the items of the history, False to allow them, or None for the model's default.",
        )
    if not isinstance(request.diversity, int | float | np.number) or not 0 <= request.diversity <= 1:
        raise DataError(f"diversity is {request.diversity!r}", "Choose a number from 0 (none) to 1.")
