"""A trained model with its catalogue: histories of identifiers in, titles and scores out."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from llmd4rec.errors import DataError
from llmd4rec.inference.types import identifiers

if TYPE_CHECKING:
    from llmd4rec.models.base import Ranker


@dataclass(frozen=True)
class Recommendation:
    """One recommended item."""

    item_id: str
    title: str
    score: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class Recommender:
    """A trained network and the names of its items.

    Args:
        filter_seen: whether :meth:`recommend` leaves out items of the history where it is not told.
    """

    def __init__(
        self, ranker: Ranker, item_ids: Sequence[str], titles: Sequence[str | None], filter_seen: bool = True
    ) -> None:
        self.filter_seen = filter_seen
        self.ranker = ranker.eval()
        self.item_ids = list(item_ids)
        self.titles = [title or item_id for title, item_id in zip(titles, item_ids, strict=True)]
        self._index = {item_id: index for index, item_id in enumerate(self.item_ids)}

    def recommend(
        self,
        history: Sequence[str | int],
        k: int = 10,
        *,
        filter_seen: bool | None = None,
        skip_unknown: bool = False,
    ) -> list[Recommendation]:
        """The k best next items for a history, best first; the user need not have been seen in training.

        Args:
            history: identifiers, oldest first.
            k: how many; fewer are returned when the catalogue has no more.
            filter_seen: whether items of the history are left out; None: as in the evaluation of the model.
            skip_unknown: ignore identifiers that the catalogue does not have.

        Raises:
            DataError: the history is a single text or empty, an item is unknown, or k is below 1.
        """
        history = identifiers("history", history, ordered=True)
        if k < 1:
            raise DataError(f"k is {k}", "Ask for at least 1 item.")
        known: list[str] = []
        unknown: list[str] = []
        for item in history:
            (known if item in self._index else unknown).append(item)
        if unknown and not skip_unknown:
            near = difflib.get_close_matches(unknown[0], self.item_ids[:100_000], n=1, cutoff=0.6)
            hint = f" (nearest known: {near[0]!r})" if near else ""
            raise DataError(
                f"unknown item in the history: {', '.join(map(repr, unknown[:5]))}{hint}",
                "Use identifiers of the catalogue, or pass --skip-unknown to leave such items out.",
            )
        if not known:
            raise DataError("the history has no known item", "Give at least one item of the catalogue.")
        rows = [self._index[item] for item in known]
        excluded = set(rows) if (self.filter_seen if filter_seen is None else filter_seen) else set()
        return [
            Recommendation(self.item_ids[row], self.titles[row], score) for row, score in self._best(rows, k, excluded)
        ]

    def _best(self, history: list[int], k: int, excluded: set[int]) -> list[tuple[int, float]]:
        """The k rows with the highest scores, and these."""
        import torch  # heavy, and not needed to serve an export

        from llmd4rec.models.base import last_states

        with torch.inference_mode():
            device = next(self.ranker.parameters()).device
            window = torch.tensor([history[-self.ranker.max_length :]], device=device)
            state = last_states(self.ranker, window, torch.tensor([window.shape[1]], device=device))
            scores = (state @ self.ranker.item_table().t())[0].float()
            scores[torch.tensor(sorted(excluded), dtype=torch.int64, device=device)] = -torch.inf
            best = scores.topk(min(k, len(scores) - len(excluded)))
        return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
