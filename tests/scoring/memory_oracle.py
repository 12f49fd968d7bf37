"""What a memory's scores are, by loops over dense arrays; and random logs to compare on."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
from evaluation.examples import make_dataset
from numpy.typing import NDArray

from llmd4rec.data.dataset import Dataset
from llmd4rec.scoring.memory.settings import Content, ItemKNN, Recency, Transitions

DAY = 86_400
Floats = NDArray[np.float64]


def random_log(seed: int, *, users: int = 25, items: int = 12, timed: bool = True, days: int = 40) -> Dataset:
    """Short and long histories, repeated items, and several events at one moment."""
    rng = np.random.default_rng(seed)
    sequences = [rng.integers(0, items, rng.integers(3, 12)).tolist() for _ in range(users)]
    step = DAY // 2  # so that ties are many
    times = [np.sort(rng.integers(0, days * 2, len(each)) * step + 1_000 * DAY).tolist() for each in sequences]
    return make_dataset(sequences, items, times if timed else None)


def random_texts(seed: int, items: int, width: int = 6, empty: int = 2) -> NDArray[np.float32]:
    """Text vectors, of which the first `empty` are 0."""
    vectors = np.random.default_rng(seed).normal(size=(items, width)).astype(np.float32) + 2
    vectors[:empty] = 0
    return vectors


def counted(data: Dataset, before: int | None) -> list[bool]:
    """Which events count."""
    if before is not None:
        assert data.times is not None
        return [int(time) < before for time in data.times]
    return [
        position < data.train_end[user]
        for user in range(data.num_users)
        for position in range(data.offsets[user], data.offsets[user + 1])
    ]


def pairs(data: Dataset, counts: list[bool], settings: Transitions, now: int | None) -> Floats:
    """How often each item followed each, [I, I]."""
    total = np.zeros((data.num_items, data.num_items))
    for user in range(data.num_users):
        for later in range(data.offsets[user], data.offsets[user + 1]):
            for gap in range(1, settings.gaps + 1):
                earlier = later - gap
                if earlier < data.offsets[user] or not counts[later]:
                    continue
                one, other = int(data.items[earlier]), int(data.items[later])
                weight = 1 / gap
                if data.times is not None and now is not None:
                    left = 0.5 ** ((now - int(data.times[later])) / DAY / settings.half_life_days)
                    weight *= 1 + settings.recent_weight * left
                tied = data.times is not None and data.times[earlier] == data.times[later]
                if settings.ties == "half" and tied:
                    total[one, other] += weight / 2 * (1 + settings.reverse)
                    total[other, one] += weight / 2 * (1 + settings.reverse)
                else:
                    total[one, other] += weight
                    total[other, one] += settings.reverse * weight
    return total


def transition_scores(history: list[int], total: Floats, settings: Transitions) -> Floats:
    """Of every item."""
    recent = history[::-1][: len(settings.last)]
    summed = sum(
        (weight * total[item] for weight, item in zip(settings.last, recent, strict=False)), np.zeros(len(total))
    )
    return np.log1p(3 * summed)


def content_scores(history: list[int], texts: NDArray[np.float32], settings: Content) -> Floats:
    """Of every item, at full width: whitened by way of the singular values, not of the covariance's eigenvectors."""
    present = [row for row in range(len(texts)) if np.any(texts[row] != 0)]
    mean = np.mean([texts[row].astype(float) for row in present], axis=0)
    unit = np.zeros(texts.shape)
    for row in present:
        unit[row] = (texts[row] - mean) / np.linalg.norm(texts[row] - mean)
    _, singular, axes = np.linalg.svd(unit[present], full_matrices=False)
    singular /= math.sqrt(len(present))
    for row in present:
        unit[row] = axes @ unit[row] * singular**-settings.whitening
        unit[row] /= np.linalg.norm(unit[row])
    recent = history[::-1][: len(settings.last)]
    weights = settings.last[: len(recent)]
    query = sum(weight * unit[item] for weight, item in zip(weights, recent, strict=True)) / sum(weights)
    scores: Floats = unit @ query
    return scores


def recency_counts(data: Dataset, counts: list[bool], settings: Recency, now: int) -> Floats:
    """How often each item was chosen before now, older ones less."""
    assert data.times is not None
    found = np.zeros(data.num_items)
    for item, time, counts_too in zip(data.items.tolist(), data.times.tolist(), counts, strict=True):
        age = (now - time) / DAY
        if not counts_too or time >= now or (settings.window_days is not None and age > settings.window_days):
            continue
        found[item] += 1 if settings.half_life_days is None else 0.5 ** (age / settings.half_life_days)
    return found


def ndcg10(scores: Floats, history: list[int], target: int) -> float:
    """Of one target, seen items removed, ties counted against it."""
    if target in history:
        return 0.0
    others = [item for item in range(len(scores)) if item not in history and item != target]
    rank = 1 + sum(scores[item] >= scores[target] - 1e-6 for item in others)
    return 1 / math.log2(rank + 1) if rank <= 10 else 0.0


def together(data: Dataset, counts: list[bool], reach: int) -> tuple[Floats, Floats]:
    """How often two items were chosen together, [I, I], and how often each was, by loops."""
    both, chosen = np.zeros((data.num_items, data.num_items)), np.zeros(data.num_items)
    for start, end in pairwise(data.offsets.tolist()):
        for position in range(start, end):
            item = int(data.items[position])
            before = {int(other) for other in data.items[max(start, position - reach) : position]}
            if not counts[position] or item in before:
                continue
            chosen[item] += 1
            for other in before:
                both[item, other] += 1
                both[other, item] += 1
    return both, chosen


def item_knn_scores(history: list[int], both: Floats, chosen: Floats, asked: ItemKNN) -> Floats:
    """Of every item, by counts as :func:`together` makes them."""
    recent = list(dict.fromkeys(history[::-1][: asked.last]))
    popular = np.maximum(chosen, 1)
    rows = [both[item] / popular[item] ** asked.history_power / (place + 1) ** 0.5 for place, item in enumerate(recent)]
    total: Floats = sum(rows, np.zeros(len(both))) / popular**asked.item_power
    return total
