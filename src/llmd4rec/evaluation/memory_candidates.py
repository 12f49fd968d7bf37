"""Candidates of targets, and their scores by each part of a memory and by a model: what weights are fitted on.

The candidates of a target are the strongest ones of each part and of their sum, and some drawn at random, each of which
stands for many of the catalogue.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from llmd4rec.data.dataset import Dataset
from llmd4rec.evaluation.held_out import HeldOut, held_out, read, split_up
from llmd4rec.log import bar
from llmd4rec.scoring.base import Scorer
from llmd4rec.scoring.from_rows import RowsScorer
from llmd4rec.scoring.memory.counting import DAY
from llmd4rec.scoring.memory.recency import RecencyScorer
from llmd4rec.scoring.memory.settings import DEFAULT_WEIGHTS
from llmd4rec.scoring.memory.state import CountedMemory

Floats = NDArray[np.float64]
Scores = NDArray[np.float32]
MODEL = "model"
#: Half-lives of recency that are tried, in days, beside that of the settings.
HALF_LIVES = (2.0, 8.0, 30.0)
#: Targets that weights are fitted on at most: alone, and beside a model, whose weights one sample says less surely; at
#: least in a large catalogue; and scores of all of them.
MAX_TARGETS, MAX_BESIDE, MIN_TARGETS, MAX_SCORES = 3_000, 10_000, 500, 10**8
#: Strongest candidates of each part and of their sum, and candidates drawn at random, for each target.
STRONGEST, DRAWN = 40, 80


@dataclass(frozen=True)
class CandidateScores:
    """Scores of some candidates of each target, the target first.

    Attributes:
        memory: whose parts they are scored by.
        names: what they are scored by: parts of the memory, and the model.
        scores_BCF: the scores.
        others_BC: the logarithm of how many items of the catalogue a candidate stands for; −inf where there is none.
        possible_B: whether a target can be found at all.
        recency_BCH: recency with each of the half-lives, where there is recency.
        half_lives: which.
    """

    memory: CountedMemory
    names: tuple[str, ...]
    scores_BCF: Scores
    others_BC: Scores
    possible_B: NDArray[np.bool_]
    recency_BCH: Scores
    half_lives: tuple[float, ...]


def sample_candidates(
    memory: CountedMemory,
    data: Dataset,
    *,
    model: Scorer | None = None,
    held: HeldOut | None = None,
    filter_seen: bool = True,
    seed: int = 0,
) -> CandidateScores:
    """Scores of the strongest and of some other candidates of a sample of targets.

    Args:
        memory: counted; the targets must not be in its counts.
        data: the data set.
        model: what stands beside it; None: the memory is alone.
        held: the targets; None: those of validation.
        filter_seen: items of the history are no candidates.
        seed: of the sample of targets and candidates.

    Raises:
        DataError: there is no validation target with a history.
    """
    held = held_out(data, "valid") if held is None else held
    rng = np.random.default_rng(seed)
    most = min(MAX_TARGETS if model is None else MAX_BESIDE, max(MIN_TARGETS, MAX_SCORES // data.num_items))
    rows = np.arange(len(held.positions))
    if most < len(rows):
        rows = np.sort(rng.choice(rows, most, replace=False))
    scorers: dict[str, Scorer] = {
        name: RowsScorer(part, name, max_length=memory.max_length, reads=memory.reads)
        for name, part in memory.parts.items()
    }
    if model is not None:
        scorers[MODEL] = model
    own = None if memory.recency is None else memory.recency.events.settings.half_life_days
    half_lives = () if own is None else (own, *(days for days in HALF_LIVES if days != own))
    histories = None if memory.recency is None else _ItemEvents.of(memory.recency, half_lives)
    blocks = []
    with bar("weighing the memory", len(rows), "targets") as progress:
        for block in split_up(rows, max(1, min(256, 2**24 // data.num_items))):
            dense = [_scores(scorer, data, held, block) for scorer in scorers.values()]
            items_BC, others_BC, possible_B = _candidates(data, held, block, list(scorers), dense, filter_seen, rng)
            scores_BCF = np.stack([np.take_along_axis(each, items_BC, axis=1) for each in dense], axis=-1)
            recent_BCH = np.zeros((*items_BC.shape, 0), dtype=np.float32)
            if histories is not None and data.event_times is not None:
                recent_BCH = histories.scores(items_BC, data.event_times[held.positions[block]])
            blocks.append((scores_BCF, others_BC, possible_B, recent_BCH))
            progress.advance(len(block))
    width = max((each[1].shape[1] for each in blocks), default=1)
    return CandidateScores(
        memory,
        tuple(scorers),
        np.concatenate([widened(each[0], width, 0) for each in blocks]),
        np.concatenate([widened(each[1], width, -np.inf) for each in blocks]),
        np.concatenate([each[2] for each in blocks]),
        np.concatenate([widened(each[3], width, 0) for each in blocks]),
        half_lives,
    )


@dataclass(frozen=True)
class _ItemEvents:
    """The interactions with each item, and what they add up to at each of them, with several half-lives.

    Attributes:
        recency: whose interactions.
        half_lives: in days.
        times, starts: the interactions item by item; those with item i are times[starts[i]:starts[i + 1]].
        sums_NH: what interactions with the item up to each one add up to at that moment.
    """

    recency: RecencyScorer
    half_lives: tuple[float, ...]
    times: NDArray[np.int64]
    starts: NDArray[np.int64]
    sums_NH: Floats

    @classmethod
    def of(cls, recency: RecencyScorer, half_lives: tuple[float, ...]) -> _ItemEvents:
        """Those that it has counted."""
        times, items = recency.events.arrays()
        order = np.lexsort((times, items))
        times, items = times[order], items[order]
        starts = np.searchsorted(items, np.arange(recency.num_rows + 1))
        rank = np.arange(len(items)) - starts[items]
        sums_NH = np.ones((len(items), len(half_lives)))
        by_rank = np.argsort(rank, kind="stable")
        bounds = np.cumsum(np.bincount(rank, minlength=1))
        for first, last in itertools.pairwise(bounds.tolist()):  # the second of every item, then the third, ...
            here = by_rank[first:last]
            sums_NH[here] += sums_NH[here - 1] * cls._left(times[here] - times[here - 1], half_lives)
        return cls(recency, half_lives, times, starts, sums_NH)

    def scores(self, items_BC: NDArray[np.int64], now_B: NDArray[np.int64]) -> Scores:
        """log(1 + what they add up to) of some items, each row for a moment, [B, C, H]."""
        now_B = np.array([self.recency.moment(each) for each in now_B.tolist()])
        # Items and times as one ascending number, so that one search finds the first interaction at or behind a moment.
        earliest, latest = (int(self.times.min()), int(self.times.max())) if len(self.times) else (0, 0)
        span = latest - earliest + 2
        lengths = np.diff(self.starts)
        keys = np.repeat(np.arange(len(lengths)) * span, lengths) + (self.times - earliest)
        since_B = np.clip(now_B - earliest, 0, span - 1)
        behind_BC = np.searchsorted(keys, items_BC * span + since_B[:, None])
        found = np.zeros((*items_BC.shape, len(self.half_lives)), dtype=np.float32)
        rows, places = np.nonzero(behind_BC > self.starts[items_BC])
        at = behind_BC[rows, places] - 1
        found[rows, places] = np.log1p(self.sums_NH[at] * self._left(now_B[rows] - self.times[at], self.half_lives))
        return found

    @staticmethod
    def _left(ages: NDArray[np.int64], half_lives: tuple[float, ...]) -> Floats:
        left: Floats = np.exp2(-ages[:, None] / (np.array(half_lives) * DAY))
        return left


def _scores(scorer: Scorer, data: Dataset, held: HeldOut, rows: NDArray[np.int64]) -> Scores:
    """The scores of the whole catalogue, [B, I]."""
    query = scorer.prepare(read(data, held, rows, scorer.max_length, len(rows), lambda _: None, scorer.reads))
    with torch.inference_mode():
        found: Scores = query.scores(0, query.num_items).cpu().numpy()
    return found


def _candidates(
    data: Dataset,
    held: HeldOut,
    rows: NDArray[np.int64],
    names: Sequence[str],
    dense: Sequence[Scores],
    filter_seen: bool,
    rng: np.random.Generator,
) -> tuple[NDArray[np.int64], Scores, NDArray[np.bool_]]:
    """(items, the logarithm of how many each stands for, whether the target is possible) of some targets."""
    targets_B = held.targets.items[held.targets.offsets[rows]]
    count = len(targets_B)
    total_BI = np.zeros((count, data.num_items), dtype=np.float32)
    for name, scores in zip(names, dense, strict=True):  # a model may have any scale
        total_BI += scores * np.float32(DEFAULT_WEIGHTS.get(name, 1 / max(float(scores.std()), 1e-9)))
    allowed_BI = np.ones((count, data.num_items), dtype=bool)
    if filter_seen:
        seen = held.seen(data, rows)
        allowed_BI[np.repeat(np.arange(count), np.diff(seen.offsets)), seen.items] = False
    possible_B = allowed_BI[np.arange(count), targets_B]
    strong_BI = np.zeros((count, data.num_items), dtype=bool)
    for scores in (*dense, total_BI):
        masked = torch.from_numpy(np.where(allowed_BI, scores, -np.inf).astype(np.float32))
        best_BC = masked.topk(min(STRONGEST, data.num_items), dim=1, sorted=False).indices.numpy()
        np.put_along_axis(strong_BI, best_BC, True, axis=1)
    strong_BI &= allowed_BI
    strong_BI[np.arange(count), targets_B] = True
    rest_B = (allowed_BI & ~strong_BI).sum(axis=1)
    drawn_BR = rng.integers(0, data.num_items, (count, DRAWN))
    items, others = [], []
    for place, target in enumerate(targets_B.tolist()):
        strong = np.flatnonzero(strong_BI[place])
        drawn = np.unique(drawn_BR[place])
        drawn = drawn[allowed_BI[place, drawn] & ~strong_BI[place, drawn]]
        if not len(drawn):  # few are left
            drawn = np.flatnonzero(allowed_BI[place] & ~strong_BI[place])[:1]
        items.append(np.concatenate([[target], strong[strong != target], drawn]))
        stands_for = np.log(rest_B[place] / len(drawn)) if len(drawn) else 0.0
        others.append(np.repeat([0.0, stands_for], [len(strong), len(drawn)]))
    width = max(len(each) for each in items)
    items_BC = np.stack([np.pad(each, (0, width - len(each))) for each in items])
    others_BC = np.stack([np.pad(each, (0, width - len(each)), constant_values=-np.inf) for each in others])
    return items_BC, others_BC.astype(np.float32), possible_B


def widened(array: NDArray[np.float32], width: int, value: float) -> NDArray[np.float32]:
    """With `width` candidates."""
    more = [(0, 0), (0, width - array.shape[1]), (0, 0)][: array.ndim]
    return np.pad(array, more, constant_values=value)
