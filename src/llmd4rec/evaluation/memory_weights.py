"""The weights of a memory's parts, and of a model beside them, as validation chooses them.

    scores = Σ_parts w_part · scores_part + w_model · scores_model

A conditional logit (the softmax over the catalogue that a model is trained with, here of a few numbers) gives weights
that a few hundred targets are enough for. Its catalogue is each target's strongest candidates and some drawn at
random, which stand for all others. Targets that it finds count more than those that nobody does. A coordinate search
then makes NDCG@10 of those candidates better, as long as that is by more than the standard error of the difference,
user by user. A part is left out where its weight would not be positive, or where NDCG without it is better by more than
that. Item-kNN, which is the dearest to serve and on many logs knows nothing that the others do not, is left out also
where NDCG with it is not better by more than that, unless it only teaches. With few targets the weights stay near the
defaults.

How fast recency forgets is chosen by NDCG, too; the half-life of the settings stays, if no other one is surely better.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from llmd4rec.data.dataset import Dataset
from llmd4rec.errors import ConfigError
from llmd4rec.evaluation.held_out import HeldOut
from llmd4rec.evaluation.memory_candidates import (
    MODEL,
    CandidateScores,
    Floats,
    Scores,
    sample_candidates,
    widened,
)
from llmd4rec.scoring.base import Scorer
from llmd4rec.scoring.memory.recency import Events, RecencyScorer
from llmd4rec.scoring.memory.settings import DEFAULT_WEIGHTS
from llmd4rec.scoring.memory.state import CountedMemory

__all__ = [
    "DEFAULT_MODEL",
    "CandidateScores",
    "FittedWeights",
    "choose_weights",
    "fit_memory",
    "sample_candidates",
    "standard_error",
    "surely_better",
]

#: The weight of a model beside default weights where nothing at all is known of its scores.
DEFAULT_MODEL = 0.7
#: Fewer targets say nothing: the weights are the defaults.
FEWEST_TARGETS = 30
#: How many targets the default weights count as.
PRIOR_TARGETS = 20.0
#: What a weight is multiplied with in the search.
FACTORS = (0.35, 0.5, 0.7, 0.85, 1.2, 1.4, 2.0, 2.8)
#: A target counts as its probability to this power: one that nobody finds says little about the first ten places.
FOUND = 0.25
#: Parts that are served only where they make the sum better by more than the standard error of the difference.
MUST_PAY = ("item_knn",)
_MAX_PASSES, _ROUNDS = 4, 4


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
    must_pay: Collection[str] = MUST_PAY,
) -> FittedWeights:
    """Fits the weights of a memory, and of a model beside it.

    Args:
        memory: counted; the targets must not be in its counts.
        data: the data set.
        model: what stands beside it; None: the memory is alone.
        held: the targets; None: those of validation.
        filter_seen: items of the history are no candidates.
        seed: of the sample of targets and candidates.
        must_pay: parts that stay only where they surely make the sum better.

    Raises:
        DataError: there is no validation target with a history.
    """
    found = sample_candidates(memory, data, model=model, held=held, filter_seen=filter_seen, seed=seed)
    return choose_weights([found], must_pay)


def choose_weights(found: Sequence[CandidateScores], must_pay: Collection[str] = MUST_PAY) -> FittedWeights:
    """The weights that rank the targets best.

    Args:
        found: candidates of the targets; several where the memory, or the model, was another one for some of them.
        must_pay: parts that stay only where they surely make the sum better.

    Raises:
        ConfigError: they are not scored by the same parts.
    """
    if len({(each.names, each.half_lives) for each in found}) != 1:
        raise ConfigError("the memories do not have the same parts", "Count them with the same settings and texts.")
    names, half_lives = found[0].names, found[0].half_lives
    width = max(each.others_BC.shape[1] for each in found)
    sample = _Sample(
        np.concatenate([widened(each.scores_BCF, width, 0) for each in found]),
        np.concatenate([widened(each.others_BC, width, -np.inf) for each in found]),
        np.concatenate([each.possible_B for each in found]),
    )
    start_F = np.array([DEFAULT_WEIGHTS.get(name, 1.0) for name in names])
    if MODEL in names:
        start_F[names.index(MODEL)] = 1 / (sample.scale_F()[names.index(MODEL)] or 1.0)
    memory = found[-1].memory
    left_out: dict[str, str] = {}
    if sample.possible_B.sum() < FEWEST_TARGETS:
        weights_F = start_F
    else:
        if half_lives:
            recency_BCH = np.concatenate([widened(each.recency_BCH, width, 0) for each in found])
            place, days = names.index("recency"), _half_life(sample, names, recency_BCH, half_lives, start_F)
            sample.scores_BCF[..., place] = recency_BCH[..., half_lives.index(days)]
            memory = _with_half_life(memory, days)
        weights_F, left_out = _fitted(sample, names, start_F, must_pay)
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
        standard_error(values_B),
        float(alone_B.mean()) if len(values_B) else 0.0,
        any(weights.values()) and bool(values_B.sum() > 0) and surely_better(values_B, alone_B),
    )


def _half_life(
    sample: _Sample, names: tuple[str, ...], recency_BCH: Scores, half_lives: tuple[float, ...], start_F: Floats
) -> float:
    """The half-life of the highest NDCG, each with weights of its own, if that is surely better than the first one."""
    place, used_F = names.index("recency"), np.ones(len(names), dtype=bool)
    values_HB = []
    for number in range(len(half_lives)):
        scores_BCF = sample.scores_BCF.copy()
        scores_BCF[..., place] = recency_BCH[..., number]
        other = replace(sample, scores_BCF=scores_BCF)
        values_HB.append(other.ndcg(_logit_of(other, start_F, used_F)))
    best = int(np.argmax([each.mean() for each in values_HB]))
    return half_lives[best if surely_better(values_HB[best], values_HB[0]) else 0]


def _with_half_life(memory: CountedMemory, days: float) -> CountedMemory:
    """The memory with recency that forgets faster or slower."""
    recency = memory.recency
    assert recency is not None
    assert memory.settings.recency is not None
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

    def scale_F(self) -> Floats:
        """The standard deviation of the scores of each part."""
        real_BC = self.others_BC > -np.inf
        scale_F: Floats = self.scores_BCF[real_BC].std(axis=0, dtype=np.float64)
        return scale_F

    def ndcg(self, weights_F: Floats) -> Floats:
        """NDCG@10 of each target; ties count against it."""
        total_BC = self.scores_BCF @ weights_F.astype(np.float32)
        ahead_BC = (total_BC >= total_BC[:, :1]) & (self.others_BC > -np.inf)
        rank_B = ahead_BC.sum(axis=1)
        gain_B: Floats = np.where(self.possible_B & (rank_B <= 10), 1 / np.log2(rank_B + 1.0), 0.0)
        return gain_B


def _fitted(
    sample: _Sample, names: tuple[str, ...], start_F: Floats, must_pay: Collection[str]
) -> tuple[Floats, dict[str, str]]:
    """The weights, and which parts are left out and why."""
    used_F = np.ones(len(names), dtype=bool)
    weights_F = _searched(sample, _logit_of(sample, start_F, used_F))
    used_F &= weights_F > 0
    while used_F.sum() > 1:
        values_B = sample.ndcg(weights_F)
        harmful: list[tuple[float, int, Floats]] = []
        for place in np.flatnonzero(used_F).tolist():
            others_F = used_F.copy()
            others_F[place] = False
            without_F = _searched(sample, _logit_of(sample, start_F, others_F))
            without_B = sample.ndcg(without_F)
            if without_F.any() and surely_better(without_B, values_B):
                harmful.append((float(without_B.mean()), place, without_F))
        if not harmful:
            break
        _, place, weights_F = max(harmful, key=lambda each: each[0])
        used_F[place] = False
    used_F &= weights_F > 0
    why = {name: "validation is better without it" for name, used in zip(names, used_F, strict=True) if not used}
    for name in must_pay:
        if name not in names or name in why or used_F.sum() == 1:
            continue
        others_F = used_F & (np.array(names) != name)
        without_F = _searched(sample, _logit_of(sample, start_F, others_F))
        if without_F.any() and not surely_better(sample.ndcg(weights_F), sample.ndcg(without_F)):
            weights_F, used_F = without_F, others_F
            why[name] = "validation is not surely better with it"
    return weights_F, why


def _logit_of(sample: _Sample, start_F: Floats, used_F: NDArray[np.bool_]) -> Floats:
    """The weights of the logit, none of them negative: those that would be are 0."""
    used_F = used_F.copy()
    weights_F = np.zeros(len(used_F))
    while used_F.any():
        part = replace(sample, scores_BCF=np.ascontiguousarray(sample.scores_BCF[..., used_F]))
        weights_F[:] = 0
        weights_F[used_F] = _logit(part, start_F[used_F])
        if (weights_F >= 0).all():
            break
        used_F &= weights_F > 0
    return np.maximum(weights_F, 0)


def _logit(sample: _Sample, prior_F: Floats) -> Floats:
    """The weights of the highest likelihood, by Newton's method; targets that are found count more, see `FOUND`."""
    scores_BCF, others_BC = sample.scores_BCF[sample.possible_B], sample.others_BC[sample.possible_B]
    scale_F = sample.scale_F()
    scale_F[scale_F == 0] = 1
    scaled_BCF = (scores_BCF / scale_F.astype(np.float32)).astype(np.float32, copy=False)
    prior_F = prior_F * scale_F
    weights_F = prior_F
    counts_B: Scores = np.ones(len(scaled_BCF), dtype=np.float32)
    for _ in range(_ROUNDS):
        weights_F, chance_B = _newton(scaled_BCF, others_BC, prior_F, weights_F, counts_B)
        counts_B = chance_B ** np.float32(FOUND)
        counts_B /= counts_B.mean()
    result_F: Floats = weights_F / scale_F
    return result_F


def _newton(
    scaled_BCF: Scores, others_BC: Scores, prior_F: Floats, start_F: Floats, counts_B: Scores
) -> tuple[Floats, Scores]:
    """The weights of the highest likelihood where each target counts as much, and the probability of each."""
    pull = PRIOR_TARGETS / len(scaled_BCF) / 2

    def objective(weights_F: Floats) -> tuple[float, Scores]:
        total_BC = scaled_BCF @ weights_F.astype(np.float32) + others_BC
        total_BC -= total_BC.max(axis=1, keepdims=True)
        share_BC = np.exp(total_BC)
        sum_B1 = share_BC.sum(axis=1, keepdims=True)
        loss_B = np.log(sum_B1[:, 0]) - total_BC[:, 0]
        loss = float((counts_B * loss_B).mean(dtype=np.float64))
        return loss + pull * float(((weights_F - prior_F) ** 2).sum()), share_BC / sum_B1

    weights_F = start_F
    loss, share_BC = objective(weights_F)
    for _ in range(30):
        mean_BF = np.einsum("bc,bcf->bf", share_BC, scaled_BCF)
        gradient_F = (counts_B[:, None] * (mean_BF - scaled_BCF[:, 0])).mean(axis=0, dtype=np.float64)
        gradient_F += 2 * pull * (weights_F - prior_F)
        counted_BC = counts_B[:, None] * share_BC
        square_FF = np.einsum("bcf,bcg->fg", counted_BC[..., None] * scaled_BCF, scaled_BCF, optimize=True)
        square_FF -= (counts_B[:, None] * mean_BF).T @ mean_BF
        curve_FF = square_FF / len(scaled_BCF) + 2 * pull * np.eye(len(weights_F))
        step_F, length = np.linalg.solve(curve_FF.astype(np.float64), gradient_F), 1.0
        found, found_BC = objective(weights_F - step_F)
        while found > loss and length > 1e-3:
            length /= 2
            found, found_BC = objective(weights_F - length * step_F)
        if found > loss - 1e-6:
            break
        weights_F, loss, share_BC = weights_F - length * step_F, found, found_BC
    return weights_F, share_BC[:, 0]


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
                if tried_B.mean() > best_B.mean() and surely_better(tried_B, values_B):
                    best_B, best_F = tried_B, tried_F
            values_B, weights_F = best_B, best_F
        if values_B is before:
            break
    return weights_F


def surely_better(new_B: Floats, old_B: Floats) -> bool:
    """Whether the mean difference of two values of each target exceeds its standard error."""
    gain_B = new_B - old_B
    return bool(gain_B.mean() > standard_error(gain_B))


def standard_error(values_B: Floats) -> float:
    """The standard error of the mean."""
    return float(values_B.std(ddof=1) / len(values_B) ** 0.5) if len(values_B) > 1 else 0.0
