"""Finding items by words of their titles."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left, insort
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from llmd4rec.inference.catalogue import Catalogue
from llmd4rec.inference.fields import Mask, reindexed

_WORD = re.compile(r"\w+")
Rows = NDArray[np.int64]


def plain(text: str) -> str:
    """Text without case and accents."""
    apart = unicodedata.normalize("NFKD", text.casefold())
    return "".join(letter for letter in apart if not unicodedata.combining(letter))


class TitleSearch:
    """Which titles have all words of a query; its last word may be the beginning of one.

    Args:
        catalogue: its items are the ones to find. The words are collected at the first search, or by :meth:`ready`.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue

    def ready(self) -> TitleSearch:
        """This, with the words collected."""
        _ = self._words
        return self

    def changed(self, catalogue: Catalogue, rows: Sequence[int]) -> TitleSearch:
        """The search of a catalogue in which some rows, of which the last may be new, have other titles.

        What has been collected is changed with them, so that the next search need not wait.
        """
        search = TitleSearch(catalogue)
        if "_words" not in vars(self):
            return search
        titles = [*self._titles, *([""] * (len(catalogue) - len(self._titles)))]
        changes = []
        for row in rows:
            before, titles[row] = titles[row], plain(catalogue.title(row))
            changes.append((row, set(_WORD.findall(before)), set(_WORD.findall(titles[row]))))
        found = reindexed(self._rows, changes)
        words = list(self._words)
        for word in {word for _, before, now in changes for word in before ^ now}:
            if word in found and word not in self._rows:
                insort(words, word)
            elif word not in found and word in self._rows:
                del words[bisect_left(words, word)]
        vars(search).update(_titles=titles, _rows=found, _words=words)
        return search

    @cached_property
    def _titles(self) -> list[str]:
        return [plain(self.catalogue.title(row)) for row in range(len(self.catalogue))]

    @cached_property
    def _rows(self) -> dict[str, Rows]:
        found: dict[str, list[int]] = {}
        for row, title in enumerate(self._titles):
            for word in set(_WORD.findall(title)):
                found.setdefault(word, []).append(row)
        return {word: np.array(rows, dtype=np.int64) for word, rows in found.items()}

    @cached_property
    def _words(self) -> list[str]:
        return sorted(self._rows)

    @cached_property
    def _places(self) -> Rows:
        """The rank of each row by frequency."""
        places = np.empty(len(self.catalogue), dtype=np.int64)
        places[self.catalogue.by_count] = np.arange(len(self.catalogue))
        return places

    def find(self, text: str, limit: int, allowed: Mask | None = None) -> list[int]:
        """Rows: the item with that very identifier, titles that begin so, then others, each by their frequency."""
        allowed = self.catalogue.present if allowed is None else allowed
        wanted = plain(text).strip()
        rows = self._matching(_WORD.findall(wanted), text)
        rows = rows[allowed[rows]]
        by_count = rows[np.argsort(self._places[rows], kind="stable")].tolist()
        begins = [row for row in by_count if self._titles[row].startswith(wanted)] if wanted else []
        own = self.catalogue.index.get(text.strip())
        first = [own] if own is not None and allowed[own] else []
        return list(dict.fromkeys([*first, *begins, *by_count]))[:limit]

    def _matching(self, words: list[str], text: str) -> Rows:
        if not words:
            # An empty query finds everything; one of punctuation only finds nothing.
            return np.arange(len(self.catalogue)) if not text.strip() else np.empty(0, dtype=np.int64)
        sets = [self._rows.get(word, np.empty(0, dtype=np.int64)) for word in words[:-1]]
        sets.append(self._beginning(words[-1]))
        sets.sort(key=len)
        rows = sets[0]
        for other in sets[1:]:
            rows = np.intersect1d(rows, other, assume_unique=True)
        return rows

    def _beginning(self, start: str) -> Rows:
        first = bisect_left(self._words, start)
        end = bisect_left(self._words, start + "\U0010ffff")
        if first == end:
            return np.empty(0, dtype=np.int64)
        return np.unique(np.concatenate([self._rows[word] for word in self._words[first:end]]))
