"""A trained model with its catalogue: histories of identifiers in, titles and scores out."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from llmd4rec.errors import DataError
from llmd4rec.evaluation.evaluate import SeenItems
from llmd4rec.inference.types import identifiers
from llmd4rec.models.base import SequenceEncoder, last_states


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
    """A ranker and the names of its items.

    Args:
        seen: what :meth:`recommend` does with items of the history where it is not said.
    """

    def __init__(
        self, ranker: SequenceEncoder, item_ids: Sequence[str], titles: Sequence[str | None], seen: SeenItems = "remove"
    ) -> None:
        self.seen = seen
        self.ranker = ranker.eval()
        self.item_ids = list(item_ids)
        self.titles = [title or item_id for title, item_id in zip(titles, item_ids, strict=True)]
        self._index = {item_id: index for index, item_id in enumerate(self.item_ids)}

    @torch.inference_mode()
    def recommend(
        self, history: Sequence[str | int], k: int = 10, *, seen: SeenItems | None = None, skip_unknown: bool = False
    ) -> list[Recommendation]:
        """The k best next items for a history, best first; the user need not have been seen in training.

        Args:
            history: identifiers, oldest first.
            k: how many; fewer come back when the catalogue has no more.
            seen: `remove` leaves out the items of the history; None: as the model was evaluated.
            skip_unknown: ignore identifiers that the catalogue does not have.

        Raises:
            DataError: the history is one text or empty, an item is unknown, or k is below 1.
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
        device = next(self.ranker.parameters()).device
        indices = [self._index[item] for item in known]
        window = torch.tensor([indices[-self.ranker.max_length :]], device=device)
        state = last_states(self.ranker, window, torch.tensor([window.shape[1]], device=device))
        scores = (state @ self.ranker.item_table().t())[0].float()
        available = len(scores)
        if (seen or self.seen) == "remove":
            gone = torch.tensor(sorted(set(indices)), device=device)
            scores[gone] = -torch.inf
            available -= len(gone)
        best = scores.topk(min(k, available))
        return [
            Recommendation(self.item_ids[index], self.titles[index], float(score))
            for score, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
