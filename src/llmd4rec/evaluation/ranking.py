"""Ranks over the whole catalogue, a block of users and items at a time.

Nothing of size users × items is ever held: scores are computed for one block, those ahead of the target are counted
and the best items are taken from it, and the next block takes its place. A catalogue that is not too large is one
block wide.

Ties count against the target: its rank is one more than the number of other candidates that score at least as
high, up to the rounding of a 32-bit product. A model that gives every item the same score therefore ranks every
target last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmd4rec.scoring.base import Query, block_rows, spans
from llmd4rec.scoring.factors import refuse_unless

#: Users at least that are ranked at once, if their scores for a part of the catalogue fit into the block.
MANY_ROWS = 256
#: What `Ranking.top` holds where there was no candidate left to recommend.
NO_ITEM = -1
#: The rank of a target that is no candidate: a miss at every cutoff, however small the catalogue.
NO_CANDIDATE = 2**31 - 1


class ItemLists(NamedTuple):
    """Some items of each user, as offsets + values: user u's are items[offsets[u]:offsets[u+1]]."""

    offsets: NDArray[np.int64]  # [U + 1]
    items: NDArray[np.integer]  # [N]


@dataclass(frozen=True)
class Ranking:
    """What :func:`rank_targets` found.

    Attributes:
        ranks: one for each target, int64, 1 is best, in the order of the targets. A target that is itself among the
            seen items cannot be recommended: its rank is `NO_CANDIDATE`.
        top: [U, k] int32, the best items, best first; `NO_ITEM` behind the last candidate where there are
            fewer than k. The order among items of equal score is not defined.
    """

    ranks: NDArray[np.int64]
    top: NDArray[np.int32]


def rank_targets(
    query: Query,
    targets: NDArray[np.integer] | ItemLists,
    seen: ItemLists | None = None,
    k: int = 0,
    block_elements: int | None = None,
    candidates_I: NDArray[np.bool_] | None = None,
) -> Ranking:
    """Ranks the targets of each user among all items and takes the k best items.

    Of several targets of one user, each rank counts the other targets that are ahead, as in a list; targets that tie
    share the places behind whatever else ties with them.

    Args:
        query: the users' histories, as a scorer has read them.
        targets: the index of each user's true next item, [U]; or several of each user, at least one, none twice.
        seen: items that are no candidates, per user, repeated or not; None: every item is a candidate.
        k: how many of the best items to return; 0 for none.
        block_elements: how many scores may be held at once; default: 2**22 on a CPU, 2**24 elsewhere. It bounds the
            memory.
        candidates_I: which items are candidates for anyone; None: all.

    Raises:
        ModelError: scores are NaN or infinite.
    """
    num_users, num_items, device = len(query), query.num_items, query.device
    wanted = targets if isinstance(targets, ItemLists) else ItemLists(np.arange(len(targets) + 1), np.asarray(targets))
    ranks = np.empty(len(wanted.items), dtype=np.int64)
    top = np.full((num_users, k), NO_ITEM, dtype=np.int32)
    kept = min(k, num_items)
    # A product with only a few rows is bound by memory: large catalogues are ranked in parts, for more users at once.
    rows, columns = block_rows(query, MANY_ROWS, block_elements)
    buffer = torch.empty(rows * columns, device=device)
    no_candidates = None if candidates_I is None else torch.from_numpy(~candidates_I).to(device)

    with torch.inference_mode():
        for start, end in spans(num_users, rows):
            block = query.take(slice(start, end))
            users, items = (tensor.to(device) for tensor in _pairs(seen, start, end))
            goal = _Goal.of(block, wanted, start, end, users, items, no_candidates)
            best: list[tuple[Tensor, Tensor]] = []
            for first, last in spans(num_items, columns):
                out = buffer[: (end - start) * (last - first)].view(end - start, last - first)
                scores = block.scores(first, last, out)
                inside = (items >= first) & (items < last)
                scores[users[inside], items[inside] - first] = -torch.inf
                if no_candidates is not None:
                    scores[:, no_candidates[first:last]] = -torch.inf
                # The largest of a row is NaN if anything in it is.
                refuse_unless(not torch.isnan(scores.amax(dim=1)).any(), "scores")
                if kept:
                    values, indices = scores.topk(min(kept, last - first), dim=1)
                    best.append((values, indices + first))
                goal.count(scores, first, last)
                del scores  # or the next product would take fresh pages from the system, which costs more than itself
            ranks[wanted.offsets[start] : wanted.offsets[end]] = goal.ranks()
            if kept:
                values, indices = (torch.cat(parts, dim=1) for parts in zip(*best, strict=True))
                values, places = values.topk(kept, dim=1)
                indices = indices.gather(1, places)
                indices[torch.isneginf(values)] = NO_ITEM
                top[start:end, :kept] = indices.cpu().numpy()
    return Ranking(ranks, top)


@dataclass(frozen=True)
class _Goal:
    """The targets of one block of users, [B, T] where a user has at most T, and how many items are ahead of each."""

    items_BT: Tensor
    real_BT: Tensor  # whether there is such a target
    candidate_BT: Tensor  # whether it is among the candidates
    true_BT: Tensor  # their scores
    least_BT: Tensor  # what scores at least this much is ahead of it, or ties
    ahead_BT: Tensor

    @classmethod
    def of(
        cls,
        block: Query,
        wanted: ItemLists,
        start: int,
        end: int,
        users: Tensor,
        items: Tensor,
        no_candidates: Tensor | None = None,
    ) -> _Goal:
        """The targets of users start..end; those among `items`, which `users` have seen, are no candidates."""
        counts = torch.from_numpy(np.diff(wanted.offsets[start : end + 1]))
        real_BT = torch.arange(int(counts.max()))[None, :] < counts[:, None]
        items_BT = torch.zeros(real_BT.shape, dtype=torch.int64)
        values = np.asarray(wanted.items[wanted.offsets[start] : wanted.offsets[end]], dtype=np.int64)
        items_BT[real_BT] = torch.from_numpy(values)
        items_BT, real_BT = items_BT.to(block.device), real_BT.to(block.device)
        true_BT, rounding_BT = block.item_scores(items_BT)
        refuse_unless((torch.isfinite(true_BT) | ~real_BT).all(), "scores")
        rounding_BT.nan_to_num_(nan=torch.inf)  # a norm may overflow: then every item may be a tie
        candidate_BT = real_BT.clone() if no_candidates is None else real_BT & ~no_candidates[items_BT]
        for place, items_B in enumerate(items_BT.unbind(1)):
            candidate_BT[users[items == items_B[users]], place] = False
        return cls(items_BT, real_BT, candidate_BT, true_BT, true_BT - rounding_BT, torch.zeros_like(items_BT))

    def count(self, scores: Tensor, first: int, last: int) -> None:
        """Counts what is ahead among items first..last, whose scores are overwritten."""
        inside = self.real_BT & (self.items_BT >= first) & (self.items_BT < last)
        own, places = torch.nonzero(inside, as_tuple=True)
        # Targets always count, themselves too, and are taken off in the end.
        scores[own, self.items_BT[own, places] - first] = torch.inf
        for place in range(1, self.real_BT.shape[1]):
            (rows,) = torch.nonzero(self.real_BT[:, place], as_tuple=True)
            self.ahead_BT[rows, place] += (scores[rows] >= self.least_BT[rows, place, None]).sum(dim=1)
        # Written as numbers over the scores, which is several times faster than booleans of their own.
        self.ahead_BT[:, 0] += scores.ge_(self.least_BT[:, :1]).sum(dim=1).long()

    def ranks(self) -> NDArray[np.int64]:
        """The rank of each target, in the order given."""
        others = (self.ahead_BT - self.real_BT.sum(dim=1, keepdim=True)).masked_fill(~self.candidate_BT, NO_CANDIDATE)
        # Among themselves the targets stand in the order of their scores.
        by_score_BT = self.true_BT.argsort(dim=1, descending=True, stable=True)
        order_BT = by_score_BT.gather(1, others.gather(1, by_score_BT).argsort(dim=1, stable=True))
        places_BT = order_BT.argsort(dim=1) + 1
        ranks_BT = (others + places_BT).masked_fill(~self.candidate_BT, NO_CANDIDATE)
        return ranks_BT[self.real_BT].cpu().numpy()


def _pairs(seen: ItemLists | None, start: int, end: int) -> tuple[Tensor, Tensor]:
    """(row within the block, item) of everything that users start..end have seen."""
    if seen is None:
        return torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
    counts = np.diff(seen.offsets[start : end + 1])
    users = np.repeat(np.arange(end - start), counts)
    items = seen.items[seen.offsets[start] : seen.offsets[end]]
    return torch.from_numpy(users), torch.from_numpy(np.asarray(items, dtype=np.int64))
