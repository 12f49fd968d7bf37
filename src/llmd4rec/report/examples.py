"""Chooses real users to show in a report: wins, losses and ties, drawn at random within each kind."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llmd4rec.data.dataset import Dataset
from llmd4rec.evaluation.evaluation import Evaluation
from llmd4rec.evaluation.ranking import NO_CANDIDATE
from llmd4rec.evaluation.significance import join_users
from llmd4rec.report.content import Example

#: Recommended items shown per list.
SHOWN = 10


def choose_examples(
    dataset: Dataset, before: Evaluation, after: Evaluation, count: int = 12, seed: int = 0
) -> list[Example]:
    """Users whose true item was found only after distillation, only before, by both, and by neither.

    The kinds take turns, so that a report does not only show what went well; within a kind users are drawn at
    random. Where a kind runs out, the others fill its places.

    Args:
        dataset: the data set both evaluations ran on.
        before: of the CRM alone.
        after: of the distilled CRM.
        count: how many users.
        seed: of the draw.

    Raises:
        RunError: the evaluations are not about the same users and targets.
    """
    table = join_users(before, after)
    ranks_before, ranks_after = table["rank"].to_numpy(), table["rank_second"].to_numpy()
    hit_before, hit_after = ranks_before <= SHOWN, ranks_after <= SHOWN
    kinds = [~hit_before & hit_after, hit_before & ~hit_after, hit_before & hit_after, ~hit_before & ~hit_after]
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(np.flatnonzero(kind))[:count].tolist() for kind in kinds]
    turns = [rows[turn] for turn in range(count) for rows in drawn if turn < len(rows)]
    row_of_after = {user: row for row, user in enumerate(after.per_user["user_id"].to_list())}
    position_of = _positions(dataset, before)
    examples = []
    for row in turns[:count]:
        user, target = table["user_id"][row], dataset.item_index[table["item_id"][row]]
        lists = (before.top[row], after.top[row_of_after[user]])
        examples.append(
            Example(
                user=user,
                history=[dataset.titles[item] for item in dataset.history(position_of[user])],
                target=dataset.titles[target],
                before=_titles(dataset, lists[0]),
                after=_titles(dataset, lists[1]),
                target_before=_place(target, lists[0]) if hit_before[row] else None,
                target_after=_place(target, lists[1]) if hit_after[row] else None,
                rank_before=_rank(ranks_before[row]),
                rank_after=_rank(ranks_after[row]),
            )
        )
    return examples


def _positions(dataset: Dataset, evaluation: Evaluation) -> dict[str, int]:
    positions = np.asarray(dataset.test if evaluation.split == "test" else dataset.valid)
    users = dataset.user_ids.gather(dataset.users_of(positions)).to_list()
    return dict(zip(users, positions.tolist(), strict=True))


def _titles(dataset: Dataset, top: NDArray[np.int32]) -> list[str]:
    return [dataset.titles[item] for item in top[:SHOWN].tolist() if item >= 0]


def _place(target: int, top: NDArray[np.int32]) -> int:
    return int(np.flatnonzero(top == target)[0])


def _rank(rank: int) -> int | None:
    return None if rank == NO_CANDIDATE else int(rank)
