"""Ranks over the whole catalogue, a block of users and items at a time.

Nothing of size users × items is ever held: scores are computed for one block, those ahead of the target are counted
and the best items are taken from it, and the next block takes its place. A catalogue that is not too large is one
block wide.

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
from llmd4rec.matmul import product

#: Scores held at once: enough rows for a product to run at full speed, and not more memory than that takes.
CPU_BLOCK_ELEMENTS = 2**22
GPU_BLOCK_ELEMENTS = 2**24
#: Users at least that are ranked at once, if their scores for a part of the catalogue fit into the block.
MANY_ROWS = 256
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
        block_elements: how many scores may be held at once; default: 2**22 on a CPU, 2**24 elsewhere. It bounds the
            memory.

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
        block_elements = CPU_BLOCK_ELEMENTS if device.type == "cpu" else GPU_BLOCK_ELEMENTS
    # A product with only a few rows is bound by memory: large catalogues are ranked in parts, for more users at once.
    rows = max(1, min(num_users, max(block_elements // max(1, num_items), min(MANY_ROWS, block_elements))))
    columns = max(1, min(num_items, block_elements // rows))
    buffer = torch.empty(rows * columns, device=device)

    with torch.inference_mode():
        for start, end in _spans(num_users, rows):
            states_BD = states_UD[start:end].detach().to(device).float()
            _refuse_unless(torch.isfinite(states_BD).all(), "states")
            targets_B = targets[start:end].to(device)
            true_BD = table_ID[targets_B]
            true_B1 = product(states_BD, true_BD).diagonal()[:, None]
            _refuse_unless(torch.isfinite(true_B1).all(), "scores")
            # Matrix products round the same row differently in different columns, by less than this.
            rounding_B = torch.finfo(torch.float32).eps * states_BD.norm(dim=1) * true_BD.norm(dim=1)
            rounding_B.nan_to_num_(nan=torch.inf)  # a norm may overflow: then every item may be a tie
            least_B1 = true_B1 - rounding_B[:, None]
            users, items = (tensor.to(device) for tensor in _seen_pairs(seen, start, end))
            block_ranks = torch.zeros(end - start, dtype=torch.int64, device=device)
            best: list[tuple[Tensor, Tensor]] = []
            for first, last in _spans(num_items, columns):
                out = buffer[: (end - start) * (last - first)].view(end - start, last - first)
                scores = product(states_BD, table_ID[first:last], out=out)
                inside = (items >= first) & (items < last)
                scores[users[inside], items[inside] - first] = -torch.inf
                # The largest of a row is NaN if anything in it is.
                _refuse_unless(not torch.isnan(scores.amax(dim=1)).any(), "scores")
                if kept:
                    values, indices = scores.topk(min(kept, last - first), dim=1)
                    best.append((values, indices + first))
                # The target counts itself, which is the 1 in "1 + the others".
                (own,) = torch.nonzero((targets_B >= first) & (targets_B < last), as_tuple=True)
                scores[own, targets_B[own] - first] = torch.inf
                # Written as numbers over the scores, which is several times faster than booleans of their own.
                block_ranks += scores.ge_(least_B1).sum(dim=1).long()
                del scores  # or the next product would take fresh pages from the system, which costs more than itself
            block_ranks[users[items == targets_B[users]]] = NO_CANDIDATE
            ranks[start:end] = block_ranks.cpu().numpy()
            if kept:
                values, indices = (torch.cat(parts, dim=1) for parts in zip(*best, strict=True))
                values, places = values.topk(kept, dim=1)
                indices = indices.gather(1, places)
                indices[torch.isneginf(values)] = NO_ITEM
                top[start:end, :kept] = indices.cpu().numpy()
    return Ranking(ranks, top)


def _spans(total: int, size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, total, size):
        yield start, min(total, start + size)


def _seen_pairs(seen: Seen | None, start: int, end: int) -> tuple[Tensor, Tensor]:
    """(row within the block, item) of everything that users start..end have seen."""
    if seen is None:
        return torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
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
