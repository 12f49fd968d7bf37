"""The teachers of a stage: their ensemble weights chosen, their states cached, once for all who are taught by them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llmd4rec.data.batching import Histories
from llmd4rec.data.dataset import Dataset, Int64Array
from llmd4rec.distillation.cache import TeacherCache, open_cache, write_cache
from llmd4rec.distillation.ensemble import choose_weights, describe_weights
from llmd4rec.distillation.logit_adjustment import choose_tau, popularity_prior
from llmd4rec.distillation.memory_teacher import MemoryTeacher
from llmd4rec.distillation.plan import Stage, Teaching, find
from llmd4rec.distillation.stage_ids import MEMORY
from llmd4rec.errors import RunError
from llmd4rec.evaluation.evaluator import as_scorer
from llmd4rec.evaluation.memory_weights import fit_memory
from llmd4rec.evaluation.validation import EnsembleValidation
from llmd4rec.log import bar, logger
from llmd4rec.models.base import SequenceEncoder
from llmd4rec.models.ensemble import Ensemble
from llmd4rec.runs.memory import memory_scorer, memory_texts
from llmd4rec.runs.run import Run
from llmd4rec.runs.validation import validation_users
from llmd4rec.scoring.base import Scorer
from llmd4rec.scoring.baselines import shown
from llmd4rec.scoring.memory.settings import Memory
from llmd4rec.scoring.memory.state import count_memory
from llmd4rec.training.backends.torch_distributed import current_backend


def negatives_of(stage: Stage, data: Dataset) -> Int64Array | None:
    """The items that are negatives in a stage's training, ascending; None: all."""
    if stage.negatives == "all" or (stage.negatives == "auto" and not data.is_temporal):
        return None
    known = np.flatnonzero(data.train_counts)
    return None if len(known) == data.num_items else known


class Teachers:
    """Caches of the teachers of a run's stages, in the folder `teachers/` of the run.

    Args:
        run: the open run.
        data: its data set.
        device: where scores of teachers are computed.
        choose_weights: chooses ensemble weights by validation.
        choose_tau: chooses the logit adjustment by validation.
    """

    def __init__(
        self,
        run: Run,
        data: Dataset,
        device: torch.device,
        *,
        choose_weights: Callable[..., tuple[tuple[int, ...], float]] = choose_weights,
        choose_tau: Callable[..., float] = choose_tau,
    ) -> None:
        self.run, self.data, self.device = run, data, device
        self._choose_weights, self._choose_tau = choose_weights, choose_tau
        self.backend = current_backend()
        #: What validation chose in the run that this one is the refit of, by stage.
        self._known: dict[str, dict[str, Any]] = (run.record.origin or {}).get("stages", {})

    def of(self, stage: Stage, histories: Histories) -> TeacherCache | None:
        """The cached teachers of a stage, with the student's ranks at the round's start where it wants them."""
        teaching = stage.teaching
        if teaching is None:
            return None
        cache = self._cached(stage, histories, stage.teachers, asks_tau=teaching.logit_adjustment == "auto")
        if teaching.student_ranks_of is not None:
            before = self._cached(stage, histories, (teaching.student_ranks_of,))
            cache = replace(cache, student_rank=before.rank)
        return cache

    def memory_of(self, cache: TeacherCache) -> Scorer | None:
        """The memory of a cache as it teaches, to stand beside a model; None: it does not teach."""
        settings = self.run.settings
        if settings.memory is None or not cache.memory:
            return None
        weights = {part: weight for part, weight in cache.memory.items() if part != "model"}
        unread = [part for part in ("recency", "item_knn") if part not in weights]
        asked = settings.memory.model_copy(update=dict.fromkeys(unread))
        counted = count_memory(asked, self.data, memory_texts(settings, self.data, self.device))
        return None if counted is None else memory_scorer(counted.with_weights(weights).without_unused())

    def _cached(
        self, stage: Stage, histories: Histories, teachers: tuple[str, ...], *, asks_tau: bool = False
    ) -> TeacherCache:
        """The cache of one finished stage's model, or of the mean of several; made once for all that ask for it."""
        run, teaching = self.run, stage.teaching
        assert teaching is not None
        # The student's own ranks are those of its model.
        memory = teaching.memory if teachers == stage.teachers else None
        folder = run.folder / "teachers" / cache_name(teachers if memory is None else (*teachers, MEMORY))
        made_of = {teacher: run.checksum_of(teacher) for teacher in teachers}
        if memory is not None:
            made_of[MEMORY] = memory.model_dump_json()
        if teaching.exclude_seen:
            made_of["exclude_seen"] = "yes"

        def opened() -> TeacherCache:
            return open_cache(folder, histories, self.device, teaching.teacher_precision, made_of)

        cache = None
        if self.backend.first:
            try:
                cache = opened() if folder.exists() else None
            except RunError as error:
                logger.warning(f"{error.what}; it is made anew")
            if cache is not None and asks_tau and cache.tau is None:  # made when nobody asked
                cache = None
            if cache is None:
                self._write_cache(
                    folder, histories, teachers, made_of, stage, replace(teaching, memory=memory), asks_tau
                )
        self.backend.wait()
        return cache or opened()

    def _write_cache(
        self,
        folder: Path,
        histories: Histories,
        teachers: tuple[str, ...],
        made_of: dict[str, str | None],
        stage: Stage,
        teaching: Teaching,
        asks_tau: bool,
    ) -> None:
        models = {teacher: self.run.load(teacher) for teacher in teachers}
        weights, tau = dict.fromkeys(teachers, 1), None
        chooses = len(models) > 1 and teaching.ensemble_weights == "validation"
        if self._known:
            found = next((each for each in self._known.values() if tuple(each["teachers"]) == teachers), None)
            if found is not None:
                weights, tau = dict(found["teachers"]), float(found.get("logit_adjustment", 0.0))
        elif asks_tau or chooses:
            weights, tau = self._chosen(models, chooses, asks_tau)
        used = [(models[teacher], weight) for teacher, weight in weights.items() if weight]
        ranker = used[0][0] if len(used) == 1 else Ensemble(*zip(*used, strict=True))
        memory = None if teaching.memory is None else self._memory(teaching.memory, ranker, histories, teachers)
        large = self.data.num_items > stage.training.full_softmax_items
        write_cache(
            ranker,
            histories,
            folder,
            label=" + ".join(teachers),
            weights=weights,
            made_of=made_of,
            rank_items=stage.training.num_candidates if large else None,
            precision=teaching.teacher_precision,
            tau=tau,
            candidates=negatives_of(stage, histories if isinstance(histories, Dataset) else self.data),
            memory=memory,
            exclude_seen=teaching.exclude_seen,
        )

    def _memory(
        self, asked: Memory, ranker: SequenceEncoder, histories: Histories, teachers: tuple[str, ...]
    ) -> MemoryTeacher | None:
        """The memory that teaches beside some models, with weights that validation chose; None: it adds nothing."""
        settings = self.run.settings
        texts_IT = memory_texts(settings, self.data, self.device)
        known = next((each for each in self._known.values() if tuple(each["teachers"]) == teachers), None)
        found = None if known is None else dict(known.get("memory_teaches", {}))
        if found is not None and not found:
            logger.info("  the memory does not teach: it did not in the run before")
            return None
        # Recency depends on the moment of a request, which the student does not read.
        unread = ["recency", *([] if found is None or "item_knn" in found else ["item_knn"])]
        asked = asked.model_copy(update=dict.fromkeys(unread))
        counted = count_memory(asked, self.data, texts_IT)
        if counted is None:
            logger.info("  the memory does not teach: nothing can be counted")
            return None
        model = 1.0
        if found is not None:
            model = found.pop("model")
            counted = counted.with_weights(found)
        elif counted.settings.weights == "auto":
            fitted = fit_memory(
                counted,
                self.data,
                model=as_scorer(ranker),
                filter_seen=settings.evaluation.filter_seen,
                seed=settings.seed,
                must_pay=(),  # teaching costs nothing to serve
            )
            if not fitted.wanted:
                logger.info("  the memory does not teach: validation is no better with it")
                return None
            named = ", ".join(f"{shown(name)} {weight:.3g}" for name, weight in fitted.weights.items() if weight)
            logger.info(f"  the memory teaches: models {fitted.model:.3g}, {named}; validation {fitted.value:.4f}")
            counted, model = fitted.memory, fitted.model
        counted = counted.without_unused()
        if isinstance(histories, Dataset) and histories is not self.data:
            # The newest rows are learned later: nothing of them is taught. What validation chose stays.
            earlier = count_memory(counted.settings, histories, texts_IT)
            if earlier is None:
                return None
            counted = earlier.with_weights(counted.weights)
        return MemoryTeacher(counted, model, histories)

    def _chosen(
        self, models: dict[str, SequenceEncoder], chooses: bool, asks_tau: bool
    ) -> tuple[dict[str, int], float | None]:
        """What validation says: the weight of each teacher and, if asked for, the τ that they allow."""
        settings, weights = self.run.settings, (1,) * len(models)
        users = validation_users(settings, self.data)
        judge = EnsembleValidation(
            list(models.values()),
            self.data,
            settings.evaluation.filter_seen,
            users,
            settings.seed,
            metric=settings.evaluation.selection,
        )
        if chooses:
            # Models that are there to teach count from the start; the others where they add to them.
            teaching = [int(find(self.run.plan, teacher).role == "teacher") for teacher in models]
            weights, value = self._choose_weights(judge, teaching if any(teaching) else weights)
            named = describe_weights(dict(zip(models, weights, strict=True)))
            logger.info(f"  ensemble: {named}, validation {settings.evaluation.selection.label} {value:.4f}")
        found = dict(zip(models, weights, strict=True))
        if not asks_tau:
            return found, None
        counts_I = torch.from_numpy(self.data.train_counts)
        with bar("choosing the logit adjustment", None, "values of τ") as progress:

            def without(tau: float) -> NDArray[np.float64]:
                progress.advance(1)
                return judge(weights, popularity_prior(counts_I, -tau))

            tau = self._choose_tau(without)
        if not tau:
            logger.info("  no logit adjustment: the teachers would rank worse without the items' popularity")
        return found, tau


def cache_name(teachers: tuple[str, ...]) -> str:
    """The folder of some teachers' cache."""
    return "+".join(teachers)
