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
    dataset: Dataset, undistilled: Evaluation, distilled: Evaluation, count: int = 12, seed: int = 0
) -> list[Example]:
    """Users whose true item was found only by the distilled model, only by the undistilled one, by both, by neither.

    The kinds take turns, so that a report does not only show what went well; within a kind users are drawn at
    random. Where a kind runs out, the others fill its places.

    Args:
        dataset: the data set both evaluations ran on.
        undistilled: of the undistilled model.
        distilled: of the distilled model.
        count: how many users.
        seed: of the draw.

    Raises:
        RunError: the evaluations are not about the same users and targets.
    """
    table = join_users(undistilled, distilled)
    first, second = table["rank"].to_numpy(), table["rank_second"].to_numpy()
    first_hits, second_hits = first <= SHOWN, second <= SHOWN
    kinds = [
        ~first_hits & second_hits,
        first_hits & ~second_hits,
        first_hits & second_hits,
        ~first_hits & ~second_hits,
    ]
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(np.flatnonzero(kind))[:count].tolist() for kind in kinds]
    turns = [rows[turn] for turn in range(count) for rows in drawn if turn < len(rows)]
    second_row = {user: row for row, user in enumerate(distilled.per_user["user_id"].to_list())}
    position_of = _positions(dataset, undistilled)
    examples = []
    for row in turns[:count]:
        user, target = table["user_id"][row], dataset.item_index[table["item_id"][row]]
        lists = (undistilled.top[row], distilled.top[second_row[user]])
        examples.append(
            Example(
                user=user,
                history=[dataset.titles[item] for item in dataset.history(position_of[user])],
                target=dataset.titles[target],
                undistilled=_titles(dataset, lists[0]),
                distilled=_titles(dataset, lists[1]),
                target_undistilled=_place(target, lists[0]) if first_hits[row] else None,
                target_distilled=_place(target, lists[1]) if second_hits[row] else None,
                rank_undistilled=_rank(first[row]),
                rank_distilled=_rank(second[row]),
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
