"""Evaluation where time passes: what users choose in windows behind a cut, ranked with what is known by then.

In each window the first event of every user with a history is ranked among the whole catalogue, by the memory and its
parts, counted up to the window's start or the event itself, by models as they are then, and by a model and the memory
together. A model frozen at the cut ages; counts do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llmd4rec.data.dataset import Dataset
from llmd4rec.errors import ConfigError
from llmd4rec.evaluation.evaluation import MetricInfo
from llmd4rec.evaluation.evaluator import ranked
from llmd4rec.evaluation.held_out import split_up
from llmd4rec.evaluation.memory_weights import (
    DEFAULT_MODEL,
    CandidateScores,
    FittedWeights,
    choose_weights,
    sample_candidates,
)
from llmd4rec.evaluation.metrics import Floats, GlobalMetric, Metric, RecommendedLists, TargetRanks, expand, per_user
from llmd4rec.evaluation.ranking import rank_targets
from llmd4rec.evaluation.rolling_evaluation import Kind, RollingEvaluation
from llmd4rec.evaluation.windows import Rolling, Window, WindowTargets, event_times, windows_of
from llmd4rec.log import Bar, bar
from llmd4rec.scoring.base import Scorer
from llmd4rec.scoring.baselines import BASELINES, PopularityScorer, shown
from llmd4rec.scoring.from_rows import RowsQuery, RowsScorer
from llmd4rec.scoring.memory.recency import RecencyScorer
from llmd4rec.scoring.memory.settings import Memory
from llmd4rec.scoring.memory.state import CountedMemory, count_memory
from llmd4rec.scoring.rows import RowScorer
from llmd4rec.scoring.sums import WeightedSum

Int64Array = NDArray[np.int64]
#: The model of a window: as it was at the cut, or brought up to the window's start.
ModelFor = Callable[[Window], Scorer]

#: Behind the name of a model that is added to the memory.
BESIDE = " + memory"
METRICS = ("ndcg@10", "hr@10")
#: How many of a user's last events are told to a memory that counts one more event in.
OBSERVED_HISTORY = 50


def rolling(
    data: Dataset,
    asked: Rolling | None = None,
    *,
    memory: Memory | None = None,
    texts_IT: NDArray[np.float32] | None = None,
    models: Mapping[str, ModelFor] | None = None,
    metrics: Sequence[Metric | str] = METRICS,
    batch_size: int = 256,
) -> RollingEvaluation:
    """Evaluates training-free scorers, and models if there are any, in windows behind a cut.

    Args:
        data: the data set, with times; what a model was trained on lies before the cut.
        asked: windows and targets.
        memory: what the memory is made of.
        texts_IT: vectors of the items' texts; None: there is no content.
        models: name → what gives the model of a window, asked once for each, in order.
        metrics: the first is the one that weights are chosen by.
        batch_size: histories read at once.

    Raises:
        DataError: the data set has no times or no cut, or no target with a history.
        ConfigError: a metric has no values per user.
        ModelError: scores are NaN or infinite, or of another catalogue.
    """
    asked, models = asked or Rolling(), models or {}
    asked = asked.on(data)
    measured = expand(metrics, (10,))
    for metric in measured:
        if isinstance(metric, GlobalMetric):
            raise ConfigError(f"metric {metric.name} has no values per user", "Leave it out of a rolling evaluation.")
    found = windows_of(data, asked)
    contest = _Contest(data, asked, memory or Memory(), texts_IT, measured, batch_size)

    def models_in(each: WindowTargets) -> dict[str, Scorer]:
        return {name: model_for(each.window) for name, model_for in models.items()}

    first = [models_in(each) for each in found[: asked.choose_on]]
    contest.choose_weights(found[: asked.choose_on], first)
    frames = []
    for number, each in enumerate(found):
        frames += contest.frames(each, first[number] if number < len(first) else models_in(each))
    return RollingEvaluation(
        asked,
        tuple(each.window for each in found),
        contest.kinds,
        contest.weights,
        {metric.name: MetricInfo.of(metric) for metric in measured},
        pl.concat(frames, rechunk=True),
        tuple(contest.notes),
    )


class _Contest:
    """Ranks the targets of one window after the other by all scorers.

    Attributes:
        kinds: scorer → what it is, in the order of the tables.
        weights: scorer → weights of its parts.
        notes: what was left out, and why.
    """

    def __init__(
        self,
        data: Dataset,
        asked: Rolling,
        memory: Memory,
        texts_IT: NDArray[np.float32] | None,
        metrics: Sequence[Metric],
        batch_size: int,
    ) -> None:
        self._data, self._asked, self._memory, self._texts_IT = data, asked, memory, texts_IT
        self._metrics, self._batch_size = metrics, batch_size
        self._times = event_times(data)
        self._k = max(metric.k or 0 for metric in metrics)
        #: The weights of the memory's parts, and beside each model those and the model's; none before they are chosen.
        self._alone: dict[str, float] | None = None
        self._beside: dict[str, tuple[dict[str, float], float]] = {}
        self.kinds: dict[str, Kind] = {}
        self.weights: dict[str, dict[str, float]] = {}
        self.notes: list[str] = []

    def choose_weights(self, windows: Sequence[WindowTargets], models: Sequence[Mapping[str, Scorer]]) -> None:
        """Chooses the weights of the memory, and of each model beside it, on the first windows.

        Args:
            windows: to choose on.
            models: those of each window.
        """
        if self._memory.weights != "auto":
            return
        chosen_on = [place for place, each in enumerate(windows) if len(each.held.positions)]
        if not chosen_on:
            self._note("weights are the defaults, since there is no window to choose them on")
            return
        counted = [self._counted(windows[place].window) for place in chosen_on]
        alone = self._fitted([self._sample(memory, windows[n]) for memory, n in zip(counted, chosen_on, strict=True)])
        self._alone, self._memory = alone.weights, alone.memory.settings
        if alone.memory.recency is not None:
            self._note(f"recency is halved every {alone.memory.recency.events.settings.half_life_days:g} days")
        for name in models[0]:
            samples = [
                self._sample(self._counted(windows[n].window).beside_model(), windows[n], models[n][name])
                for n in chosen_on
            ]
            # Recency forgets as fast as in the memory alone, whose counts it shares.
            kept = [replace(s, half_lives=s.half_lives[:1], recency_BCH=s.recency_BCH[..., :1]) for s in samples]
            beside = self._fitted(kept, f" beside {name}")
            self._beside[name] = beside.weights, beside.model

    def _sample(self, memory: CountedMemory, each: WindowTargets, model: Scorer | None = None) -> CandidateScores:
        return sample_candidates(memory, self._data, model=model, held=each.held, filter_seen=self._asked.filter_seen)

    def _fitted(self, samples: Sequence[CandidateScores], where: str = "") -> FittedWeights:
        fitted = choose_weights(samples)
        self._note(*(f"{shown(part)} is left out{where}: {why}" for part, why in fitted.left_out.items()))
        return fitted

    def frames(self, each: WindowTargets, models: Mapping[str, Scorer]) -> list[pl.DataFrame]:
        """The rows of one window, a frame for each scorer."""
        memory = self._counted(each.window)
        counted = {shown(name): _rows(part, shown(name), memory) for name, part in memory.parts.items()}
        counted["memory"] = _rows(memory.with_weights(self._alone or memory.weights), "memory", memory)
        fewer = memory.beside_model() if models else memory
        for name, model in models.items():
            weights, model_weight = self._beside.get(name, (memory.weights, DEFAULT_MODEL))
            beside = _rows(fewer.with_weights(weights), "memory", memory)
            counted[f"{name}{BESIDE}"] = WeightedSum([model, beside], [model_weight, 1.0])
            self.weights[f"{name}{BESIDE}"] = {name: model_weight, **weights}
        self.weights["memory"] = dict(self._alone or memory.weights)
        fixed: dict[str, Scorer] = {**self._baselines(each.window), **models}
        results = {name: _Found.empty(each.held.positions, self._metrics) for name in (*fixed, *counted)}
        first = None if memory.recency is None else _Found.empty(each.first_events, self._metrics)
        total = len(each.held.positions) * len(results)
        with bar(f"window {each.window.number}", total, "targets") as progress:
            everyone = np.arange(len(each.held.positions))
            for name, scorer in fixed.items():
                self._rank(scorer, each, everyone, results[name], progress)
            for rows, newcomers in self._moments(each, memory):
                for name, scorer in counted.items():
                    self._rank(scorer, each, rows, results[name], progress)
                if first is not None and memory.recency is not None:
                    self._rank_newcomers(memory.recency, each, newcomers, first)
        order = [*BASELINES, "memory", *models]
        self.kinds = {
            name: _kind(name, models)
            for name in sorted(results, key=lambda name: (order.index(name.removesuffix(BESIDE)), name))
        }
        frames = [self._frame(name, each, found) for name, found in results.items()]
        return frames if first is None else [*frames, self._frame("recency", each, first, newcomers=True)]

    def _counted(self, window: Window) -> CountedMemory:
        """Everything before a window.

        Raises:
            ConfigError: nothing can be counted.
        """
        memory = count_memory(self._memory, self._data, self._texts_IT, before=window.start)
        if memory is None:
            raise ConfigError(
                "nothing is left of the memory that is to be counted", "Ask for transitions or recency in its settings."
            )
        self._note(*(f"no {shown(part)}: {why}" for part, why in memory.missing.items()))
        return memory

    def _note(self, *notes: str) -> None:
        self.notes += [note for note in notes if note not in self.notes]

    def _baselines(self, window: Window) -> dict[str, Scorer]:
        """Those that are no part of the memory; counted to the window's start in any case."""
        popularity = PopularityScorer(self._item_counts(window))
        return {"popularity": RowsScorer(popularity, "popularity", max_length=1)}

    def _item_counts(self, window: Window) -> Int64Array:
        """How often each item occurs before a window."""
        return np.bincount(self._data.items[self._times < window.start], minlength=self._data.num_items)

    def _moments(self, each: WindowTargets, memory: CountedMemory) -> Iterator[tuple[Int64Array, Int64Array]]:
        """Which targets are ranked at once, and which of users without history.

        Where counts go up to the window's start, all are. Else those of one moment, with everything before it counted.
        """
        positions, first = each.held.positions, each.first_events
        if self._asked.count_to == "window":
            yield np.arange(len(positions)), np.arange(len(first))
            return
        inside = np.flatnonzero((self._times >= each.window.start) & (self._times < each.window.end))
        events = inside[np.argsort(self._times[inside], kind="stable")]
        users = self._data.users_of(events)
        counted = 0
        for moment in np.unique(self._times[np.concatenate([positions, first])]):
            while counted < len(events) and self._times[events[counted]] < moment:
                at = int(events[counted])
                before = slice(max(int(self._data.offsets[users[counted]]), at - OBSERVED_HISTORY), at)
                memory.observe(
                    self._data.items[before].tolist(),
                    int(self._data.items[at]),
                    int(self._times[at]),
                    self._times[before].tolist(),
                )
                counted += 1
            memory.advance(int(moment))
            yield np.flatnonzero(self._times[positions] == moment), np.flatnonzero(self._times[first] == moment)

    def _rank(self, scorer: Scorer, each: WindowTargets, rows: Int64Array, into: _Found, progress: Bar) -> None:
        if len(rows):
            lists = ranked(
                scorer,
                self._data,
                each.held.take(rows),
                self._k,
                filter_seen=self._asked.filter_seen,
                batch_size=self._batch_size,
                advance=progress.advance,
                candidates_I=each.candidates_I,
            )
            into.put(rows, lists, self._metrics)

    def _rank_newcomers(self, recency: RecencyScorer, each: WindowTargets, rows: Int64Array, into: _Found) -> None:
        """Users without history, whom only what is chosen now can answer."""
        for some in split_up(rows, 4096):
            positions = each.first_events[some]
            targets = self._data.items[positions]
            nothing: list[list[int]] = [[] for _ in some]
            query = RowsQuery(recency.prepare(nothing, [None] * len(some), self._times[positions].tolist()))
            found = rank_targets(query, targets, k=self._k, candidates_I=each.candidates_I)
            lists = RecommendedLists(found.top, positions, TargetRanks.of_one(found.ranks), targets, self._data)
            into.put(some, lists, self._metrics)

    def _frame(self, name: str, each: WindowTargets, found: _Found, newcomers: bool = False) -> pl.DataFrame:
        positions = each.first_events if newcomers else each.held.positions
        users, items = self._data.users_of(positions), self._data.items[positions]
        begins = self._data.offsets[users]
        last = np.maximum(positions - 1, begins)
        return pl.DataFrame(
            {
                "scorer": [name] * len(positions),
                "window": np.full(len(positions), each.window.number, dtype=np.int32),
                "user_id": self._data.user_ids.gather(users),
                "item_id": self._data.catalogue["item_id"].gather(items),
                "time": self._times[positions],
                "history_length": positions - begins,
                "gap": self._times[positions] - self._times[last],
                "item_count": self._item_counts(each.window)[items],
                "rank": found.ranks,
                **dict(zip([metric.name for metric in self._metrics], found.values_MU, strict=True)),
            },
            schema_overrides={"scorer": pl.String, "user_id": pl.String, "item_id": pl.String},
        )


class _Found:
    """The rank of each user's first target, and the values of metrics, as they come."""

    def __init__(self, ranks: Int64Array, values_MU: Floats) -> None:
        self.ranks, self.values_MU = ranks, values_MU

    @classmethod
    def empty(cls, positions: Int64Array, metrics: Sequence[Metric]) -> _Found:
        """Nothing yet."""
        return cls(np.zeros(len(positions), dtype=np.int64), np.full((len(metrics), len(positions)), np.nan))

    def put(self, rows: Int64Array, lists: RecommendedLists, metrics: Sequence[Metric]) -> None:
        """What was found for some users."""
        self.ranks[rows] = lists.ranks.given_P[lists.ranks.offsets[:-1]]
        for values_U, metric in zip(self.values_MU, metrics, strict=True):
            values_U[rows] = per_user(metric, lists)


def _rows(scorer: RowScorer, name: str, memory: CountedMemory) -> Scorer:
    return RowsScorer(scorer, name, max_length=memory.max_length, reads=memory.reads)


def _kind(name: str, models: Mapping[str, Scorer]) -> Kind:
    if name in models:
        return "model"
    return "model and memory" if name.endswith(BESIDE) else "memory" if name == "memory" else "baseline"
