"""Evaluates one model on the held-out targets of a data set: full ranking, metrics, slices, per-user
results."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmd4rec.data.batching import read_histories
from llmd4rec.data.dataset import Dataset, SplitName
from llmd4rec.errors import ConfigError, DataError, ModelError
from llmd4rec.evaluation.evaluation import Evaluation
from llmd4rec.evaluation.metrics import NDCG, Metric, RankMetric, RecommendedLists, TargetRanks, mean_of
from llmd4rec.evaluation.metrics.functions import CUTOFFS, coverage, mean_metrics, ndcg, popularity
from llmd4rec.evaluation.ranking import Ranking, Seen, rank_targets
from llmd4rec.evaluation.slices import slice_masks
from llmd4rec.log import bar
from llmd4rec.models.base import SequenceEncoder, last_states

#: Coverage and popularity are those of this many items per user.
SHOWN = 10
#: Users whose states are computed before they are ranked together; bounds the memory for states.
USERS_AT_ONCE = 4096
#: What epochs and rounds are selected by, where nothing else is said.
NDCG10 = NDCG(10)


def evaluate(
    ranker: SequenceEncoder,
    dataset: Dataset,
    *,
    split: SplitName = "test",
    filter_seen: bool = True,
    cutoffs: Sequence[int] = CUTOFFS,
    model: str = "model",
    stage: str = "distilled",
    batch_size: int = 256,
    max_users: int | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> Evaluation:
    """Ranks every held-out target of `split` among the whole catalogue.

    The history of a target is everything its user did before it (for a test target that includes the
    validation item), cut to the model's `max_length` most recent items. Users with nothing before their
    target cannot be given to a sequential model and are left out.

    Args:
        ranker: the model; put into evaluation mode and set back afterwards.
        dataset: the data set the model was made for.
        split: `test`, or `valid` (never choose settings on `test`).
        filter_seen: items of the whole history are no candidates, and a target that is itself in the history is a
            miss; False: every item is a candidate.
        cutoffs: the k of HR, NDCG and MRR.
        model: which model this is (`model`, `llm`, ...); carried along.
        stage: which state of it (`undistilled` or `distilled`); carried along.
        batch_size: histories encoded at once.
        max_users: evaluate a random sample of this many users; None: all.
        seed: of that sample.
        device: where to compute; the model is moved there. None: where it is.

    Raises:
        DataError: the split has no target with a history.
        ModelError: the model was made for another catalogue, or its scores are NaN or infinite.
        ConfigError: a cutoff is below 1, `split` is unknown, or `filter_seen` is no boolean.
    """
    if not cutoffs or min(cutoffs) < 1:
        raise ConfigError(f"cutoffs are {list(cutoffs)}", "Give at least one whole number from 1.")
    positions = _targets(dataset, split, max_users, seed)
    k = max(SHOWN, *cutoffs)
    what = f"evaluating {model} {stage}"
    ranking = _rank(ranker, dataset, positions, filter_seen, k=k, batch_size=batch_size, device=device, what=what)

    users, targets = dataset.users_of(positions), dataset.items[positions]
    masks = slice_masks(dataset, positions)
    metrics = mean_metrics(ranking.ranks, cutoffs)
    metrics[f"coverage@{SHOWN}"] = coverage(ranking.top[:, :SHOWN], dataset.num_items)
    metrics[f"popularity@{SHOWN}"] = popularity(ranking.top[:, :SHOWN], dataset.train_counts)
    slices = {
        name: {"users": int(mask.sum()), **mean_metrics(ranking.ranks[mask], cutoffs)} for name, mask in masks.items()
    }
    item_ids = dataset.catalogue["item_id"]
    per_user = pl.DataFrame(
        {
            "user_id": dataset.user_ids.gather(users),
            "item_id": item_ids.gather(targets),
            "rank": ranking.ranks,
            "history_length": positions - dataset.offsets[users],
            "train_count": dataset.train_counts[targets],
            **masks,
        }
    )
    return Evaluation(
        metrics=metrics,
        slices=slices,
        users=len(positions),
        model=model,
        stage=stage,
        filter_seen=filter_seen,
        split=split,
        per_user=per_user,
        top=ranking.top,
    )


def validation_value(
    ranker: SequenceEncoder,
    dataset: Dataset,
    filter_seen: bool = True,
    max_users: int | None = None,
    seed: int = 0,
    batch_size: int = 256,
    metric: Metric = NDCG10,
) -> float:
    """One metric over the validation targets, or over a seeded sample of `max_users` of them; for early
    stopping.

    The same figure as that of :func:`evaluate` with `split="valid"`, without slices and tables. The same seed
    gives the same users, so that epochs can be compared.

    Raises:
        DataError: there is no validation target with a history.
        ModelError: as for :func:`evaluate`.
    """
    positions = _targets(dataset, "valid", max_users, seed)
    k = 0 if isinstance(metric, RankMetric) else metric.k or SHOWN
    ranking = _rank(ranker, dataset, positions, filter_seen, k=k, batch_size=batch_size, device=None, what="validating")
    ranks = TargetRanks.of_one(ranking.ranks)
    return mean_of(metric, ranks, RecommendedLists(ranking.top, positions, ranks, dataset))


class EnsembleValidation:
    """The validation NDCG of any weighted mean of some models, each of which reads the histories once.

    Args:
        rankers: the models, on one device; histories are read as far back as all of them can, as by a
            :class:`~llmd4rec.models.ensemble.Ensemble` of them.
        dataset: the data set that they were made for.
        filter_seen, max_users, seed: as for :func:`validation_value`, whose value an ensemble of one model has.
        batch_size: histories encoded at once.

    Attributes:
        positions: flat positions of the validation targets, ascending, [U].

    Raises:
        DataError, ModelError: as for :func:`validation_value`.
    """

    def __init__(
        self,
        rankers: Sequence[SequenceEncoder],
        dataset: Dataset,
        filter_seen: bool = True,
        max_users: int | None = None,
        seed: int = 0,
        batch_size: int = 256,
    ) -> None:
        self.positions = positions = _targets(dataset, "valid", max_users, seed)
        starts = dataset.offsets[dataset.users_of(positions)]
        self._targets = dataset.items[positions].astype(np.int64)
        self._seen = _seen(dataset, starts, positions) if _is_bool(filter_seen) else None
        self._states, self._tables = [], []
        length = min(ranker.max_length for ranker in rankers)
        order = np.argsort(np.minimum(positions - starts, length), kind="stable")
        with bar("reading histories", len(rankers) * len(positions), "users") as progress:
            for ranker in rankers:
                with _evaluation_mode(ranker, None) as where:
                    states_UD = torch.empty(len(positions), ranker.dim, device=where)
                    for batch in _split(order, batch_size):
                        histories = read_histories(dataset, starts[batch], positions[batch], length, ranker.reads).to(
                            where
                        )
                        states_UD[batch] = last_states(ranker, histories).float()
                        progress.advance(len(batch))
                    self._states.append(states_UD)
                    self._tables.append(ranker.item_table().float())

    def __call__(self, weights: Sequence[float], bias_I: Tensor | None = None) -> NDArray[np.float64]:
        """NDCG@10 of the models' mean scores, weighted, for each target; a model of weight 0 is not used.

        Args:
            weights: one for each model.
            bias_I: added to every mean score, [I].
        """
        used = [number for number, weight in enumerate(weights) if weight]
        states = [weights[number] / sum(weights) * self._states[number] for number in used]
        tables = [self._tables[number] for number in used]
        if bias_I is not None:
            states.append(torch.ones_like(states[0][:, :1]))
            tables.append(bias_I.to(tables[0])[:, None])
        ranking = rank_targets(torch.cat(states, 1), torch.cat(tables, 1), self._targets, self._seen)
        return ndcg(ranking.ranks, 10)


def _targets(dataset: Dataset, split: SplitName, max_users: int | None, seed: int) -> NDArray[np.int64]:
    """The targets to rank, ascending: those with a history, or a sample of them."""
    if split not in ("valid", "test"):
        raise ConfigError(f"split is {split!r}", "Choose 'test' or 'valid'.")
    positions = np.asarray(dataset.targets(split))
    positions = positions[positions > dataset.offsets[dataset.users_of(positions)]]
    if len(positions) == 0:
        raise DataError(
            f"the data set has no {split} targets with a history",
            "Prepare it with a split that holds items out, or evaluate the other split.",
        )
    if max_users is not None and max_users < len(positions):
        if max_users < 1:
            raise ConfigError(f"max_users is {max_users}", "Give a whole number from 1, or leave it out.")
        positions = np.sort(np.random.default_rng(seed).choice(positions, max_users, replace=False))
    return positions


def _rank(
    ranker: SequenceEncoder,
    dataset: Dataset,
    positions: NDArray[np.int64],
    filter_seen: bool,
    *,
    k: int,
    batch_size: int,
    device: torch.device | str | None,
    what: str,
) -> Ranking:
    """Ranks in the order of `positions`."""
    _is_bool(filter_seen)
    if ranker.num_items != dataset.num_items:
        raise ModelError(
            f"the model knows {ranker.num_items} items, the catalogue has {dataset.num_items}",
            "Evaluate it on the data set it was trained on.",
        )
    starts = dataset.offsets[dataset.users_of(positions)]
    # Histories of similar length share a batch, which leaves less padding to compute.
    order = np.argsort(np.minimum(positions - starts, ranker.max_length), kind="stable")
    ranks = np.empty(len(positions), dtype=np.int64)
    top = np.empty((len(positions), k), dtype=np.int32)
    with _evaluation_mode(ranker, device) as where, bar(what, len(positions), "users") as progress:
        table_ID = ranker.item_table()
        for chunk in _split(order, USERS_AT_ONCE):
            states_BD = []
            for batch in _split(chunk, batch_size):
                histories = read_histories(dataset, starts[batch], positions[batch], ranker.max_length, ranker.reads)
                states_BD.append(last_states(ranker, histories.to(where)))
                progress.advance(len(batch))
            ranking = rank_targets(
                torch.cat(states_BD),
                table_ID,
                dataset.items[positions[chunk]].astype(np.int64),
                _seen(dataset, starts[chunk], positions[chunk]) if filter_seen else None,
                k,
            )
            ranks[chunk], top[chunk] = ranking.ranks, ranking.top
    return Ranking(ranks, top)


def _is_bool(filter_seen: bool) -> bool:
    """`filter_seen` itself."""
    if not isinstance(filter_seen, bool):  # "keep" would count as True
        raise ConfigError(f"filter_seen is {filter_seen!r}", "Choose True or False.")
    return filter_seen


def _split(values: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]


def _seen(dataset: Dataset, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> Seen:
    """All items of flat ranges starts..ends, in their order."""
    counts = ends - starts
    offsets = np.concatenate([[0], np.cumsum(counts)])
    flat = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], counts)
    return Seen(offsets, dataset.items[flat])


@contextlib.contextmanager
def _evaluation_mode(ranker: SequenceEncoder, device: torch.device | str | None) -> Iterator[torch.device]:
    """Evaluation mode without gradients; yields the device of the model and restores its training flag."""
    if device is not None:
        ranker.to(device)
    parameter: Any = next(ranker.parameters(), None)
    was_training = ranker.training
    ranker.eval()
    try:
        with torch.inference_mode():
            yield torch.device("cpu") if parameter is None else parameter.device
    finally:
        ranker.train(was_training)
