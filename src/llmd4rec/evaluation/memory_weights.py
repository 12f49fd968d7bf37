"""The weights of a memory's parts, and of a model beside them, as validation chooses them.

    scores = Σ_parts w_part · scores_part + w_model · scores_model

A conditional logit (the softmax over the catalogue that a model is trained with, here of a few numbers) gives weights
that a few hundred targets are enough for. Its catalogue is each target's strongest candidates and some drawn at random,
which stand for all others. A coordinate search then makes NDCG@10 of those candidates better, as long as that is by more
than the standard error of the difference, user by user. A part without which it is not worse by more than that is left
out. With few targets the weights stay near the defaults.

How fast recency forgets is chosen by the likelihood.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from llmd4rec.data.dataset import Dataset
from llmd4rec.errors import ConfigError
from llmd4rec.evaluation.held_out import HeldOut, held_out, read, split_up
from llmd4rec.log import bar
from llmd4rec.scoring.base import Scorer
from llmd4rec.scoring.from_rows import RowsScorer
from llmd4rec.scoring.memory.counting import DAY
from llmd4rec.scoring.memory.recency import Events, RecencyScorer
from llmd4rec.scoring.memory.settings import DEFAULT_WEIGHTS, Recency
from llmd4rec.scoring.memory.state import CountedMemory

Floats = NDArray[np.float64]
Scores = NDArray[np.float32]
MODEL = "model"
#: The weight of a model beside parts with their default weights, where nothing can be fitted.
DEFAULT_MODEL = 0.7
#: Half-lives of recency that are tried, in days, beside that of the settings.
HALF_LIVES = (1.0, 2.0, 4.0, 8.0, 16.0, 64.0)
#: Targets that weights are fitted on at most, and at least in a large catalogue, and scores of all of them.
MAX_TARGETS, MIN_TARGETS, MAX_SCORES = 3000, 500, 10**8
#: Fewer targets say nothing: the weights are the defaults.
FEWEST_TARGETS = 30
#: Strongest candidates of each part and of their sum, and candidates drawn at random, for each target.
STRONGEST, DRAWN = 40, 80
#: How many targets the default weights count as.
PRIOR_TARGETS = 20.0
#: What a weight is multiplied with in the search.
FACTORS = (0.35, 0.5, 0.7, 0.85, 1.2, 1.4, 2.0, 2.8)
_MAX_PASSES = 4


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


@dataclass(frozen=True)
class FittedWeights:
    """What validation chose.

    Attributes:
        memory: the memory with these weights, and with the half-life that was chosen.
        weights: of each part; 0 for one that is left out.
        model: the weight of the model beside it; 0 without one, or where it is left out.
        left_out: part, or `model` → why.
        value: NDCG@10 of the weighted sum on the targets that the weights were fitted on.
        standard_error: of that value.
        model_value: NDCG@10 of the model alone on the same targets; 0 without a model.
        wanted: whether the memory makes the model better by more than the standard error of the difference; without a
            model, whether there is anything in it.
    """

    memory: CountedMemory
    weights: dict[str, float]
    model: float
    left_out: dict[str, str]
    value: float
    standard_error: float
    model_value: float
    wanted: bool


def fit_memory(
    memory: CountedMemory,
    data: Dataset,
    *,
    model: Scorer | None = None,
    held: HeldOut | None = None,
    filter_seen: bool = True,
    seed: int = 0,
) -> FittedWeights:
    """Fits the weights of a memory, and of a model beside it.

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
    found = sample_candidates(memory, data, model=model, held=held, filter_seen=filter_seen, seed=seed)
    return choose_weights([found])


def sample_candidates(
    memory: CountedMemory,
    data: Dataset,
    *,
    model: Scorer | None = None,
    held: HeldOut | None = None,
    filter_seen: bool = True,
    seed: int = 0,
) -> CandidateScores:
    """Scores of the strongest and of some other candidates of a sample of targets; arguments as of :func:`fit_memory`."""
    held = held_out(data, "valid") if held is None else held
    rng = np.random.default_rng(seed)
    most = min(MAX_TARGETS, max(MIN_TARGETS, MAX_SCORES // data.num_items))
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
        np.concatenate([_widened(each[0], width, 0) for each in blocks]),
        np.concatenate([_widened(each[1], width, -np.inf) for each in blocks]),
        np.concatenate([each[2] for each in blocks]),
        np.concatenate([_widened(each[3], width, 0) for each in blocks]),
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
        for first, last in zip(bounds[:-1], bounds[1:], strict=True):  # the second of every item, then the third, ...
            here = by_rank[first:last]
            sums_NH[here] += sums_NH[here - 1] * cls._left(times[here] - times[here - 1], half_lives)
        return cls(recency, half_lives, times, starts, sums_NH)

    def scores(self, items_BC: NDArray[np.int64], now_B: NDArray[np.int64]) -> Scores:
        """log(1 + what they add up to) of some items, each row for a moment, [B, C, H]."""
        now_B = np.array([self.recency.moment(each) for each in now_B.tolist()])
        found = np.zeros((*items_BC.shape, len(self.half_lives)), dtype=np.float32)
        for row, (items_C, now) in enumerate(zip(items_BC, now_B.tolist(), strict=True)):
            first_C, last_C = self.starts[items_C], self.starts[items_C + 1]
            while True:  # bisection: the first interaction at or behind the moment, of every item at once
                open_C = first_C < last_C
                if not open_C.any():
                    break
                middle_C = (first_C + last_C) // 2
                earlier_C = open_C & (self.times[np.minimum(middle_C, len(self.times) - 1)] < now)
                first_C = np.where(earlier_C, middle_C + 1, first_C)
                last_C = np.where(open_C & ~earlier_C, middle_C, last_C)
            some = np.flatnonzero(first_C > self.starts[items_C])
            at = first_C[some] - 1
            found[row, some] = np.log1p(self.sums_NH[at] * self._left(now - self.times[at], self.half_lives))
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
    default = {**DEFAULT_WEIGHTS, MODEL: DEFAULT_MODEL}
    total_BI = sum(np.float32(default.get(name, 1.0)) * scores for name, scores in zip(names, dense, strict=True))
    allowed_BI = np.ones((count, data.num_items), dtype=bool)
    if filter_seen:
        seen = held.seen(data, rows)
        allowed_BI[np.repeat(np.arange(count), np.diff(seen.offsets)), seen.items] = False
    possible_B = allowed_BI[np.arange(count), targets_B]
    strong_BI = np.zeros((count, data.num_items), dtype=bool)
    for scores in (*dense, np.asarray(total_BI)):
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
        items.append(np.concatenate([[target], strong[strong != target], drawn]))
        stands_for = np.log(rest_B[place] / len(drawn)) if len(drawn) else 0.0
        others.append(np.repeat([0.0, stands_for], [len(strong), len(drawn)]))
    width = max(len(each) for each in items)
    items_BC = np.stack([np.pad(each, (0, width - len(each))) for each in items])
    others_BC = np.stack([np.pad(each, (0, width - len(each)), constant_values=-np.inf) for each in others])
    return items_BC, others_BC.astype(np.float32), possible_B


def _widened(array: NDArray[np.float32], width: int, value: float) -> NDArray[np.float32]:
    """With `width` candidates."""
    more = [(0, 0), (0, width - array.shape[1]), (0, 0)][: array.ndim]
    return np.pad(array, more, constant_values=value)


def choose_weights(found: Sequence[CandidateScores]) -> FittedWeights:
    """The weights that rank the targets best.

    Args:
        found: candidates of the targets; several where the memory, or the model, was another one for some of them.

    Raises:
        ConfigError: they are not scored by the same parts.
    """
    if len({(each.names, each.half_lives) for each in found}) != 1:
        raise ConfigError("the memories do not have the same parts", "Count them with the same settings and texts.")
    names, half_lives = found[0].names, found[0].half_lives
    width = max(each.others_BC.shape[1] for each in found)
    sample = _Sample(
        np.concatenate([_widened(each.scores_BCF, width, 0) for each in found]),
        np.concatenate([_widened(each.others_BC, width, -np.inf) for each in found]),
        np.concatenate([each.possible_B for each in found]),
    )
    start_F = np.array([{**DEFAULT_WEIGHTS, MODEL: DEFAULT_MODEL}.get(name, 1.0) for name in names])
    memory, left_out = found[-1].memory, {}
    if sample.possible_B.sum() < FEWEST_TARGETS:
        weights_F = start_F
    else:
        if half_lives:
            recency_BCH = np.concatenate([_widened(each.recency_BCH, width, 0) for each in found])
            place, days = names.index("recency"), _half_life(sample, names, recency_BCH, half_lives, start_F)
            sample.scores_BCF[..., place] = recency_BCH[..., half_lives.index(days)]
            memory = _with_half_life(memory, days)
        weights_F, left_out = _fitted(sample, names, start_F)
    values_B = sample.ndcg(weights_F)
    weights = dict(zip(names, weights_F.tolist(), strict=True))
    model = weights.pop(MODEL, 0.0)
    alone_B = sample.ndcg((np.array(names) == MODEL).astype(float)) if MODEL in names else np.zeros_like(values_B)
    return FittedWeights(
        memory.with_weights(weights),
        weights,
        model,
        left_out,
        float(values_B.mean()) if len(values_B) else 0.0,
        _error(values_B),
        float(alone_B.mean()) if len(values_B) else 0.0,
        any(weights.values()) and bool(values_B.sum() > 0) and _surely_better(values_B, alone_B),
    )


def _half_life(
    sample: _Sample, names: tuple[str, ...], recency_BCH: Scores, half_lives: tuple[float, ...], start_F: Floats
) -> float:
    """The half-life of the highest likelihood."""
    place, best = names.index("recency"), (-np.inf, half_lives[0])
    for number, days in enumerate(half_lives):
        scores_BCF = sample.scores_BCF.copy()
        scores_BCF[..., place] = recency_BCH[..., number]
        _, likelihood = _logit(replace(sample, scores_BCF=scores_BCF), start_F)
        best = max(best, (likelihood, days))
    return best[1]


def _with_half_life(memory: CountedMemory, days: float) -> CountedMemory:
    """The memory with recency that forgets faster or slower."""
    recency = memory.recency
    assert recency is not None and isinstance(memory.settings.recency, Recency)
    if recency.events.settings.half_life_days == days:
        return memory
    part = memory.settings.recency.model_copy(update={"half_life_days": days})
    times, items = recency.events.arrays()
    scorer = RecencyScorer(Events(part, times, items, recency.num_rows), recency.num_rows, recency.as_of)
    settings = memory.settings.model_copy(update={"recency": part})
    return CountedMemory(settings, {**memory.parts, "recency": scorer}, memory.weights, memory.as_of, memory.missing)


@dataclass(frozen=True)
class _Sample:
    """Targets and their candidates; see :class:`CandidateScores`."""

    scores_BCF: Scores
    others_BC: Scores
    possible_B: NDArray[np.bool_]

    def ndcg(self, weights_F: Floats) -> Floats:
        """NDCG@10 of each target; ties count against it."""
        total_BC = self.scores_BCF @ weights_F.astype(np.float32)
        ahead_BC = (total_BC >= total_BC[:, :1]) & (self.others_BC > -np.inf)
        rank_B = ahead_BC.sum(axis=1)
        gain_B: Floats = np.where(self.possible_B & (rank_B <= 10), 1 / np.log2(rank_B + 1.0), 0.0)
        return gain_B


def _fitted(sample: _Sample, names: tuple[str, ...], start_F: Floats) -> tuple[Floats, dict[str, str]]:
    """The weights, and which parts are left out and why."""
    left_out: dict[str, str] = {}
    used_F = np.ones(len(names), dtype=bool)
    weights_F = _searched(sample, _logit_of(sample, start_F, used_F))
    for place, name in enumerate(names):
        if not weights_F[place]:
            used_F[place], left_out[name] = False, "on validation it does not help"
    while used_F.sum() > 1:
        values_B = sample.ndcg(weights_F)
        tried: list[tuple[float, int, Floats]] = []
        for place in np.flatnonzero(used_F).tolist():
            others_F = used_F.copy()
            others_F[place] = False
            without_F = _searched(sample, _logit_of(sample, start_F, others_F))
            without_B = sample.ndcg(without_F)
            if without_F.any() and not _surely_better(values_B, without_B):
                tried.append((float(without_B.mean()), place, without_F))
        if not tried:
            break
        _, place, weights_F = max(tried, key=lambda each: each[0])
        used_F[place], left_out[names[place]] = False, "on validation it does not help"
    return weights_F, left_out


def _logit_of(sample: _Sample, start_F: Floats, used_F: NDArray[np.bool_]) -> Floats:
    """The weights of the logit; none is negative, and those that would be are 0."""
    used_F = used_F.copy()
    weights_F = np.zeros(len(used_F))
    while used_F.any():
        part = replace(sample, scores_BCF=np.ascontiguousarray(sample.scores_BCF[..., used_F]))
        weights_F[:] = 0
        weights_F[used_F], _ = _logit(part, start_F[used_F])
        if (weights_F >= 0).all():
            break
        used_F &= weights_F > 0
    return np.maximum(weights_F, 0)


def _logit(sample: _Sample, prior_F: Floats) -> tuple[Floats, float]:
    """The weights of the highest likelihood, by Newton's method, and the mean logarithm of the likelihood."""
    scores_BCF, others_BC = sample.scores_BCF[sample.possible_B], sample.others_BC[sample.possible_B]
    real_BC = others_BC > -np.inf
    scale_F = scores_BCF[real_BC].std(axis=0, dtype=np.float64)
    scale_F[scale_F == 0] = 1
    scaled_BCF = scores_BCF / scale_F.astype(np.float32)
    prior_F = prior_F * scale_F
    pull = PRIOR_TARGETS / len(scaled_BCF) / 2

    def objective(weights_F: Floats) -> tuple[float, Scores]:
        total_BC = scaled_BCF @ weights_F.astype(np.float32) + others_BC
        highest_B1 = total_BC.max(axis=1, keepdims=True)
        share_BC = np.exp(total_BC - highest_B1)
        sum_B1 = share_BC.sum(axis=1, keepdims=True)
        loss_B = highest_B1[:, 0] + np.log(sum_B1[:, 0]) - total_BC[:, 0]
        penalty = pull * float(((weights_F - prior_F) ** 2).sum())
        return float(loss_B.mean(dtype=np.float64)) + penalty, share_BC / sum_B1

    weights_F = prior_F
    loss, share_BC = objective(weights_F)
    for _ in range(30):
        mean_BF = np.einsum("bc,bcf->bf", share_BC, scaled_BCF)
        gradient_F = (mean_BF - scaled_BCF[:, 0]).mean(axis=0, dtype=np.float64) + 2 * pull * (weights_F - prior_F)
        square_FF = np.einsum("bcf,bcg->fg", share_BC[..., None] * scaled_BCF, scaled_BCF, optimize=True)
        curve_FF = (square_FF - mean_BF.T @ mean_BF) / len(scaled_BCF) + 2 * pull * np.eye(len(weights_F))
        step_F, length = np.linalg.solve(curve_FF.astype(np.float64), gradient_F), 1.0
        found, found_BC = objective(weights_F - step_F)
        while found > loss and length > 1e-3:
            length /= 2
            found, found_BC = objective(weights_F - length * step_F)
        if found > loss - 1e-6:
            break
        weights_F, loss, share_BC = weights_F - length * step_F, found, found_BC
    return weights_F / scale_F, -loss


def _searched(sample: _Sample, weights_F: Floats) -> Floats:
    """Coordinate search: one weight after the other, as long as NDCG surely gets better."""
    values_B = sample.ndcg(weights_F)
    for _ in range(_MAX_PASSES):
        before = values_B
        for place in np.flatnonzero(weights_F).tolist():
            best_B, best_F = values_B, weights_F
            for factor in FACTORS:
                tried_F = weights_F.copy()
                tried_F[place] *= factor
                tried_B = sample.ndcg(tried_F)
                if tried_B.mean() > best_B.mean() and _surely_better(tried_B, values_B):
                    best_B, best_F = tried_B, tried_F
            values_B, weights_F = best_B, best_F
        if values_B is before:
            break
    return weights_F


def _surely_better(new_B: Floats, old_B: Floats) -> bool:
    """Whether the mean difference exceeds its standard error."""
    gain_B = new_B - old_B
    return bool(gain_B.mean() > _error(gain_B))


def _error(values_B: Floats) -> float:
    """The standard error of the mean."""
    return float(values_B.std(ddof=1) / len(values_B) ** 0.5) if len(values_B) > 1 else 0.0


def described(fitted: FittedWeights) -> Mapping[str, float]:
    """All weights by name, the model's too where there is one."""
    return {**fitted.weights, **({MODEL: fitted.model} if fitted.model else {})}
