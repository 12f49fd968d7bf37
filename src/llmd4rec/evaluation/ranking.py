"""Ranks over the whole catalogue, a block of users at a time.

Nothing of size users × items is ever held: scores are computed into one reused block, the target's rank is
counted and the best items are taken from it, and the next block takes its place.

Ties count against the target: its rank is one more than the number of other candidates that score at least as
high, up to the rounding of a 32-bit product. A model that gives every item the same score therefore ranks every
target last.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmd4rec.errors import ModelError
from llmd4rec.products import product

#: Scores held at once: enough rows for a product to run at full speed, and not more memory than that takes.
CPU_BLOCK_ELEMENTS = 2**22
GPU_BLOCK_ELEMENTS = 2**24
#: What `Ranking.top` holds where there was no candidate left to recommend.
NO_ITEM = -1
#: The rank of a target that is no candidate: a miss at every cutoff, however small the catalogue.
NO_CANDIDATE = 2**31 - 1


class Seen(NamedTuple):
    """The items each user has already seen, as offsets + values: user u saw items[offsets[u]:offsets[u+1]].

    Repeated items do no harm.
    """

    offsets: NDArray[np.int64]  # [U + 1]
    items: NDArray[np.integer]  # [N]


@dataclass(frozen=True)
class Ranking:
    """What :func:`rank_targets` found.

    Attributes:
        ranks: [U] int64, 1 is best. A target that is itself among the seen items cannot be recommended: its
            rank is `NO_CANDIDATE`.
        top: [U, k] int32, the best items, best first; `NO_ITEM` behind the last candidate where there are
            fewer than k. The order among items of equal score is not defined.
    """

    ranks: NDArray[np.int64]
    top: NDArray[np.int32]


def rank_targets(
    states_UD: Tensor,
    table_ID: Tensor,
    targets_U: Tensor | NDArray[np.integer],
    seen: Seen | None = None,
    k: int = 0,
    block_elements: int | None = None,
) -> Ranking:
    """Ranks one target per user among all items and takes the k best items.

    Args:
        states_UD: one state per user, [U, d]; scores are `states_UD @ table_ID.T`, computed in 32-bit floats
            on the table's device.
        table_ID: the item table, [I, d].
        targets_U: the index of each user's true next item, [U].
        seen: items that are no candidates, per user; None: every item is a candidate.
        k: how many of the best items to return; 0 for none.
        block_elements: how many scores may be held at once (at least one user's: I); default: 2**22 on a CPU,
            2**24 elsewhere. It bounds the memory.

    Raises:
        ModelError: states, table or scores hold NaN or infinite values.
    """
    num_users, num_items = len(states_UD), len(table_ID)
    device = table_ID.device
    table_ID = table_ID.detach().float()
    _refuse_unless(torch.isfinite(table_ID).all(), "item table")
    targets = torch.as_tensor(targets_U, dtype=torch.int64)
    ranks = np.empty(num_users, dtype=np.int64)
    top = np.full((num_users, k), NO_ITEM, dtype=np.int32)
    kept = min(k, num_items)
    if block_elements is None:
        # With only a few rows a matrix product is bound by memory: large catalogues get larger blocks.
        block_elements = CPU_BLOCK_ELEMENTS if device.type == "cpu" else GPU_BLOCK_ELEMENTS
        block_elements = max(block_elements, 32 * num_items)
    rows = max(1, min(num_users, block_elements // max(1, num_items)))
    score_buffer = torch.empty((rows, num_items), device=device)

    with torch.inference_mode():
        for start, end in _spans(num_users, rows):
            states_BD = states_UD[start:end].detach().to(device).float()
            _refuse_unless(torch.isfinite(states_BD).all(), "states")
            scores = product(states_BD, table_ID, out=score_buffer[: end - start])
            targets_B1 = targets[start:end, None].to(device)
            target_scores_B1 = scores.gather(1, targets_B1)
            _refuse_unless(torch.isfinite(target_scores_B1).all(), "scores")
            if seen is not None:
                users, items = _seen_pairs(seen, start, end)
                scores[users.to(device), items.to(device)] = -torch.inf
            # The largest of a row is NaN if anything in it is.
            _refuse_unless(not torch.isnan(scores.amax(dim=1)).any(), "scores")
            # Matrix products round the same row differently in different columns, by less than this.
            norms_B = states_BD.norm(dim=1) * table_ID[targets_B1[:, 0]].norm(dim=1)
            rounding_B1 = (torch.finfo(torch.float32).eps * norms_B)[:, None]
            was_seen_B = torch.isneginf(scores.gather(1, targets_B1)[:, 0])
            if kept:
                values, indices = scores.topk(kept, dim=1)
                indices[torch.isneginf(values)] = NO_ITEM
                top[start:end, :kept] = indices.cpu().numpy()
            # The target compares as >= itself, which is the 1 in "1 + the others". Written as numbers over the scores,
            # which is several times faster than booleans of their own.
            block_ranks = scores.ge_(target_scores_B1 - rounding_B1).sum(dim=1).long()
            block_ranks[was_seen_B] = NO_CANDIDATE
            ranks[start:end] = block_ranks.cpu().numpy()
    return Ranking(ranks, top)


def _spans(total: int, size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, total, size):
        yield start, min(total, start + size)


def _seen_pairs(seen: Seen, start: int, end: int) -> tuple[Tensor, Tensor]:
    """(row within the block, item) of everything that users start..end have seen."""
    counts = np.diff(seen.offsets[start : end + 1])
    users = np.repeat(np.arange(end - start), counts)
    items = seen.items[seen.offsets[start] : seen.offsets[end]]
    return torch.from_numpy(users), torch.from_numpy(np.asarray(items, dtype=np.int64))


def _refuse_unless(fine: Tensor | bool, name: str) -> None:
    if not fine:
        raise ModelError(
            f"the model's {name} hold NaN or infinite values: nothing can be ranked with them",
            "Training diverged: lower the learning rate, or go back to an earlier checkpoint.",
        )
