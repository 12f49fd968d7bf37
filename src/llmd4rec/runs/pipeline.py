"""Running a plan: each stage trained once, in a run folder, from teachers that are cached for it.

    undistilled ─┐
    teacher-1 ───┤  side by side with --jobs          of each stage:
    teacher-2 ───┤                                      cache   states and item table of its teachers, and their
    teacher-3 ───┤                                              ensemble weights as validation chooses them
    llm ─────────┘  (behind teacher-1)                  train   cross-entropy + weight · distillation term
    llm-round-1 → distilled-round-1 → ...               keep    weights, then the record that says they are there
                  beside-memory, side by side with it

The rounds end before the last one where validation has stopped improving, or where only teachers were used that
do not change. Nothing couples the models but the cached teachers, and nothing is added to any of them.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmd4rec.config.open_types import require_importable
from llmd4rec.data.batching import Histories
from llmd4rec.data.dataset import Dataset
from llmd4rec.distillation.cache import TeacherCache
from llmd4rec.distillation.logit_adjustment import popularity_prior
from llmd4rec.distillation.plan import Stage, find, plan, rounds_of
from llmd4rec.distillation.rollouts import draw_rollouts, open_rollouts
from llmd4rec.distillation.settings import DistillationSettings, Student
from llmd4rec.distillation.stage_ids import UNDISTILLED, round_id
from llmd4rec.errors import RunError
from llmd4rec.evaluation.evaluator import as_scorer
from llmd4rec.evaluation.validation import validation_value
from llmd4rec.features.item_features import ItemFeatures, item_features, written
from llmd4rec.io.files import remove, sha256_file
from llmd4rec.log import logger
from llmd4rec.losses.base import Objective
from llmd4rec.models.base import SequenceEncoder, count_parameters
from llmd4rec.models.embedding import item_embedding_of
from llmd4rec.models.llm.assemble import inject_items, prepare_text_vectors
from llmd4rec.models.llm.settings import LLM
from llmd4rec.runs.changing_log import ChangingLog
from llmd4rec.runs.jobs import run_side_by_side
from llmd4rec.runs.memory import FOLDER, add_memory
from llmd4rec.runs.newest import Newest, Passes, learn
from llmd4rec.runs.opening import carried_out, check_data
from llmd4rec.runs.run import Run
from llmd4rec.runs.teachers import Teachers, cache_name, negatives_of
from llmd4rec.runs.unmerged import FILE as UNMERGED
from llmd4rec.runs.unmerged import save_unmerged
from llmd4rec.runs.validation import validation_users
from llmd4rec.scoring.base import Scorer
from llmd4rec.scoring.sums import WeightedSum
from llmd4rec.training import checkpoint
from llmd4rec.training.backends.base import Backend
from llmd4rec.training.backends.torch_distributed import current_backend, init_distributed
from llmd4rec.training.callbacks.base import Callback
from llmd4rec.training.callbacks.schedule import Schedule
from llmd4rec.training.callbacks.stop_after import StopAfter
from llmd4rec.training.fit import fit
from llmd4rec.training.runtime import derive_seed, select_device
from llmd4rec.training.trainer import Fitted


def train(
    settings: DistillationSettings,
    data: Dataset,
    folder: Path | str | None = None,
    *,
    jobs: int = 1,
    callbacks: Sequence[Callback] = (),
    backend: Backend | None = None,
) -> Run:
    """Runs the plan of `settings`, or goes on with it.

    Args:
        settings: of the run.
        data: to train on.
        folder: of the run; an unfinished run found there is continued. None: a temporary one.
        jobs: how many independent stages are trained side by side, each in a process of its own with its share of the
            threads. With as many threads each, the numbers are those of one stage after the other.
        callbacks: called in every training of the run, in the process that trains; with torchrun each process has its
            own. None with `jobs`, whose processes they do not reach; loggers, which settings name, do.
        backend: the processes that train together; None: those that torchrun has started, or this one.

    Raises:
        MissingExtraError: a logger needs a package that is not installed.
        RunError: the folder holds a run of other data or settings.
        DataError: the data cannot be trained on.
        ConfigError: a setting is of a class that a run folder could not name.
    """
    backend = backend or init_distributed()
    if jobs > 1 and backend.count > 1:
        raise RunError("--jobs is for one process, and torchrun has started several", "Use one of the two.")
    if jobs > 1 and callbacks:
        raise RunError(
            "callbacks are called in this process, and jobs > 1 trains in others",
            "Use jobs=1, or name a logger in the settings: loggers: [json, package.module:Name].",
        )
    for own in settings.loggers:
        own.check()
    if folder is not None or jobs > 1:
        require_importable(settings, by_workers=jobs > 1)
    check_data(settings, data)
    return carried_out(
        settings, data, folder, lambda run: Pipeline(run, data, callbacks, backend).run(jobs), backend=backend
    )


class Pipeline:
    """Trains the stages of an open run's plan that are not done."""

    def __init__(
        self,
        run: Run,
        data: Dataset,
        callbacks: Sequence[Callback] = (),
        backend: Backend | None = None,
        teachers: Teachers | None = None,
    ) -> None:
        self._callbacks, self._selection = callbacks, run.settings.evaluation.selection
        self.run_folder, self.data, self.settings = run, data, run.settings
        self.stages = plan(run.settings)
        #: What validation chose in the run that this one is the refit of, by stage.
        self._chosen: dict[str, dict[str, Any]] = (run.record.origin or {}).get("stages", {})
        self.device = select_device(run.settings.device)
        self.backend = backend or current_backend()
        self._teachers = teachers or Teachers(run, data, self.device)
        self._made_features: dict[tuple[str, int], ItemFeatures] = {}
        self._changing = ChangingLog(data, run.settings, self._chosen)

    def run(self, jobs: int = 1) -> None:
        """Trains what is not done; the record says why it stopped."""
        record = self.run_folder.record
        self._prepare_texts()
        llm = next((stage for stage in self.stages if stage.role == "llm"), None)
        if llm is not None:
            # First of all, so that a language model that cannot be had does not cost the training of the others.
            self.run_folder.build(llm)
            logger.info(f"language model: {(record.llm or {}).get('origin')}")
        first = [stage for stage in self.stages if not stage.round and stage.id not in record.stages]
        if jobs > 1 and len(first) > 1:
            run_side_by_side(self.run_folder, self.data, first, jobs, self.record_result)
        else:
            for stage in first:
                self.train(stage)
        record.stopped_because = self._rounds(jobs)
        record.memory = self._memory()
        record.finished = True
        self.run_folder.save()
        if self.backend.first:
            for name in ("teachers", "rollouts"):
                remove(self.run_folder.folder / name)

    def _memory(self) -> dict[str, Any] | None:
        """What the record says of the memory, counted and weighed beside the trained models; None: there is none."""
        run = self.run_folder
        if self.settings.memory is None and self.backend.first:
            remove(run.folder / FOLDER)
        found = run.record.memory
        if found is None and self.backend.first:
            found = add_memory(run, self.data, self.device)
        return self.backend.from_first(found)

    def _rounds(self, jobs: int) -> str:
        """Trains the rounds; why there are no more."""
        rounds = self.settings.rounds
        for number in range(1, rounds + 1):
            self._round(number, jobs)
            if self._no_improvement(number):
                return f"round {number} did not improve the validation {self._selection.label}"
            if number < rounds and self._teachers_unchanged(number):
                return f"in round {number} only teachers were used that do not change"
        return "all rounds done" if rounds else ""

    def _round(self, number: int, jobs: int) -> None:
        """Trains the stages of one round: one after the other, but the served models that the same teachers teach."""
        left = [
            stage for stage in self.stages if stage.round == number and stage.id not in self.run_folder.record.stages
        ]
        same_teachers = [stage for stage in left if stage.role == "model"]
        if jobs > 1 and len(same_teachers) > 1:
            for stage in left:
                if stage not in same_teachers:
                    self.train(stage)
            if not self._not_beside_memory(same_teachers[-1]):
                self._cache(same_teachers[0])  # here, once: the processes find it
                run_side_by_side(self.run_folder, self.data, same_teachers, jobs, self.record_result)
                return
        for stage in left:
            self.train(stage)

    def _cache(self, stage: Stage) -> TeacherCache | None:
        """The teachers of a stage, cached now unless they are."""
        newest = self._newest(stage)
        return self._teachers.of(stage, self._histories(stage, self.data if newest is None else newest.before))

    def _prepare_texts(self) -> None:
        run = self.run_folder
        stage = next((stage for stage in self.stages if stage.texts is not None), None)
        if stage is None:
            return
        if self.backend.first:
            prepare_text_vectors(self.settings.texts, self.settings.llm, self.data, run.folder, self.device)
        self.backend.wait()
        path = run.folder / "text_vectors.safetensors"
        if path.exists() and run.record.text_vectors is None:
            run.record.text_vectors = sha256_file(path)
            run.save()

    def _no_improvement(self, number: int) -> bool:
        """Whether the rounds no longer improve the served model, or the only one that is taught."""
        student: Student = "model" if rounds_of(self.stages, "model") else "llm"
        first = next(stage.id for stage in self.stages if stage.role == student)
        done = [first, *(stage.id for stage in rounds_of(self.stages, student) if stage.round <= number)]
        best = int(np.argmax([self.run_folder.validation_of(stage) for stage in done]))
        return number - best >= self.settings.round_patience

    def _teachers_unchanged(self, number: int) -> bool:
        """Whether the next round would teach every student what this one has taught it."""
        taught = {stage.role for stage in self.stages if stage.round}
        for stage in self.stages:
            if stage.round != number or stage.beside_memory:
                continue
            weights = self.run_folder.record.stages[stage.id]["teachers"]
            used = [find(self.stages, teacher).role for teacher, weight in weights.items() if weight]
            if not used or not taught.isdisjoint(used):
                return False
        return True

    # ---- one stage ----------------------------------------------------------------------------------------------
    def train(self, stage: Stage) -> None:
        """Trains one stage, unless it is done, and records it."""
        if stage.id in self.run_folder.record.stages:
            return
        if stage.beside_memory and (why := self._not_beside_memory(stage)):
            logger.info(f"{stage.id}  left out: {why}")
            return
        self.record_result(stage, self.trained(stage))

    def _not_beside_memory(self, stage: Stage) -> str:
        """Why there is no model that is taught beside the memory; empty: there is one."""
        if self._chosen:  # a refit does as the run before, which chose its epochs
            return "" if stage.id in self._chosen else "there was none in the run before"
        if self.data.is_temporal:
            return "a moment divides the data, and models are updated, which learn without a memory"
        if self._changing.newest(stage) is not None:
            return "the newest days are learned last, which is done without a memory"
        taught = self.run_folder.record.stages.get(round_id("model", stage.round))
        if taught is None:
            cache = self._cache(stage)
            teaches = cache is not None and bool(cache.memory)
        else:
            teaches = bool(taught.get("memory_teaches"))
        return "" if teaches else "the memory does not teach"

    def trained(self, stage: Stage) -> dict[str, Any]:
        """Trains one stage and writes its weights; what the record will say of it."""
        run = self.run_folder
        logger.info(stage.id + (f"  taught by {' + '.join(stage.taught_by)}" if stage.teachers else ""))
        if stage.note:
            logger.info(f"  {stage.note}")
        newest = self._newest(stage)
        data = self.data if newest is None else newest.before
        histories = self._histories(stage, data)
        cache = self._teachers.of(stage, histories)
        model = self._starting_point(stage)
        features = self._item_features(stage, model, data)
        chosen = self._chosen.get(stage.id)
        training, newer = self._changing.training(stage, histories, data)
        if newest is not None and newer is not None:
            # Passes are short, and while the rate is high an early one may be the best for long.
            training = training.model_copy(update={"patience": max(1, training.epochs)})
        if chosen and not chosen["best_epoch"]:  # the weights that it starts from were the best
            training = training.model_copy(update={"epochs": 0})
        stops = [StopAfter(chosen["best_epoch"])] if chosen else []
        schedule = Schedule(chosen.get("halved_after", ()) if chosen else None)
        objective, tau = self._objective(stage, cache, model)
        judged_on = self._changing.chosen_by(stage, newest)
        beside = self._teachers.memory_of(cache) if stage.beside_memory and cache is not None and not chosen else None
        folder = run.checkpoint_of(stage.id)
        try:
            fitted = fit(
                model,
                histories,
                training,
                folder / "training",
                stage=stage.id,
                seed_key=stage.seed_key,
                settings_name=f"training.{stage.student}",
                seed=stage.seed,
                validate=None if chosen else functools.partial(self._validate, data=judged_on, beside=beside),
                # Each training has a copy of its own: settings are no place for what one of them has come to.
                callbacks=[*map(copy.copy, self.settings.loggers), *self._callbacks, schedule, *stops],
                selection=self._selection.name,
                log_folder=folder,
                backend=self.backend,
                trained_before=stage.starts_from is not None,
                objective=objective,
                candidates=negatives_of(stage, data),
                preference=None if newer is None else newer.preference,
            )
        except torch.OutOfMemoryError as error:
            smaller = {"llm": "llm.layers", "teacher": "the dim of its teacher", "model": "model.dim"}[stage.role]
            raise RunError(
                f"{stage.id}: the device has not enough memory: {str(error).splitlines()[0]}",
                f"Lower training.{stage.student}.batch (now {training.batch}) or {smaller}, in a new run folder; or, "
                f"where no finished stage depends on it, in this one after {folder / 'training'} is gone.",
            ) from error
        if newest is not None:
            model, features, learned = self._learn_newest(stage, model, newest)
            value = fitted.best_value if chosen else self._validated(model)
            fitted = replace(fitted, best_value=value, seconds=fitted.seconds + learned.seconds)
        if features:
            embedding = item_embedding_of(model)
            if stage.role == "model" and self.backend.first:  # others are never updated
                save_unmerged(folder / UNMERGED, embedding, features, self.data.item_ids)
            embedding.merge()
        result = self._keep(stage, model, fitted, cache, tau)
        if schedule.halved_after:
            result["halved_after"] = schedule.halved_after
        if newer is not None:
            result["half_life_days"] = newer.half_life_days
        reached = f"validation {self._selection.label} {fitted.best_value:.4f}"
        found = f"{reached} in epoch {fitted.best_epoch}"
        if newest is not None:
            result["newest_days"] = newest.days
            found = f"epoch {fitted.best_epoch} is the best, and with the newest {newest.days:g} days learned {reached}"
        if chosen:  # nothing is held out: what was found where something was
            result["validation"] = chosen["validation"]
            found = f"{fitted.best_epoch} epochs, as many as validation chose"
            found += "" if newest is None else f", and the newest {newest.days:g} days"
        logger.info(f"  {found}, {fitted.seconds:.0f} s")
        return result

    # ---- a log that changes with time ---------------------------------------------------------------------------
    def _newest(self, stage: Stage) -> Newest | None:
        """What a stage learns last; None: nothing, all is learned together."""
        return self._changing.newest(stage)

    def _learn_newest(
        self, stage: Stage, model: SequenceEncoder, newest: Newest
    ) -> tuple[SequenceEncoder, ItemFeatures | None, Fitted]:
        """The model with its newest rows learned, from the log alone: with the features of these, and how it went."""
        # A taught model has no dropout. Without teachers it would learn the new rows by heart.
        alone = stage if stage.role == "teacher" else replace(stage, network=find(self.stages, UNDISTILLED).network)

        def build(data: Dataset) -> tuple[SequenceEncoder, ItemFeatures | None]:
            fresh = self.run_folder.build(alone)
            return fresh, self._item_features(stage, fresh, data)

        how, training, folder = Passes(), self.settings.training.model, self.run_folder.checkpoint_of(stage.id)
        steps = newest.steps(how.step_days)
        first, features = build(steps[0].data)
        first.load_saved_state(model.saved_state())
        return learn(
            first,
            features,
            steps,
            how,
            settings=training,
            build=build,
            objective=lambda data, step: step.loss.objective(step),
            candidates=functools.partial(negatives_of, stage),
            folder=folder / "training" / "newest",
            log_folder=folder / "newest",
            stage=stage.id,
            seed=stage.seed,
            backend=self.backend,
            loggers=self.settings.loggers,
            callbacks=self._callbacks,
        )

    def record_result(self, stage: Stage, result: dict[str, Any]) -> None:
        """The record that says that the weights are there, then the end of what led to them."""
        run = self.run_folder
        run.record.stages[stage.id] = result
        run.save()
        self.backend.wait()  # all have read the best of the checkpoints
        if self.backend.first:
            remove(run.checkpoint_of(stage.id) / "training")
            self._remove_unneeded()

    def _remove_unneeded(self) -> None:
        """Removes the teacher caches and rollouts that no stage will ask for any more."""
        folder, done = self.run_folder.folder, self.run_folder.record.stages
        left = [stage for stage in self.stages if stage.id not in done]
        wanted = {cache_name(stage.taught_by) for stage in left}
        wanted |= {str(stage.teaching.student_ranks_of) for stage in left if stage.teaching is not None}
        for path in (folder / "teachers").glob("*"):
            if path.name not in wanted:
                remove(path)
        for path in (folder / "rollouts").glob("*"):
            if path.name not in {stage.rollouts_by for stage in left}:
                remove(path)

    def _keep(
        self, stage: Stage, model: SequenceEncoder, fitted: Fitted, cache: TeacherCache | None, tau: float
    ) -> dict[str, Any]:
        """Writes the weights; what the record will say."""
        checksum = None
        if self.backend.first:
            head = {"stage": stage.id, "epoch": fitted.best_epoch, "value": fitted.best_value}
            path = self.run_folder.checkpoint_of(stage.id) / "best.safetensors"
            checksum = checkpoint.save(path, model.saved_state(), head)
        total, trainable = count_parameters(model)
        return {
            "validation": fitted.best_value,
            **{key: value for key, value in asdict(fitted).items() if key != "best_value"},
            "teachers": {} if cache is None else dict(cache.weights),
            **({"memory_teaches": dict(cache.memory)} if cache is not None and cache.memory else {}),
            **({"logit_adjustment": tau} if tau else {}),
            "parameters": total,
            "trainable_parameters": trainable,
            "checksum": self.backend.from_first(checksum),
        }

    def _validated(self, model: SequenceEncoder) -> float:
        """The validation value of a model that is trained."""
        return self.backend.from_first(self._validate(model.eval(), self.data) if self.backend.first else 0.0)

    def _validate(self, model: SequenceEncoder, data: Dataset, beside: Scorer | None = None) -> float:
        """What a model is worth on the validation targets of some data, perhaps beside a memory."""
        return validation_value(
            model if beside is None else WeightedSum([as_scorer(model), beside], [1.0, 1.0]),
            data,
            self.settings.evaluation.filter_seen,
            validation_users(self.settings, data),
            self.settings.seed,
            metric=self._selection,
        )

    # ---- what a stage starts from -------------------------------------------------------------------------------
    def _starting_point(self, stage: Stage) -> SequenceEncoder:
        """The student before its training: fresh or from the stage it goes on from, with injected item embeddings."""
        run = self.run_folder
        model = run.build(stage)
        if stage.starts_from is not None:
            model.load_saved_state(run.weights_of(stage.starts_from))
        if stage.item_embeddings_of is not None:
            inject_items(model, run.load(stage.item_embeddings_of).item_table().detach())
        return model

    def _item_features(self, stage: Stage, model: SequenceEncoder, data: Dataset) -> ItemFeatures | None:
        """Attaches what the item embeddings are trained from; None where that is identifiers alone."""
        # Embeddings that go on have their features merged already; neighbours would be mixed in twice.
        if isinstance(stage.network, LLM) or stage.starts_from is not None:
            return None
        given = stage.network.item_features
        # The catalogue is the same; of the log, they depend on the training part.
        key = (str(written(given)), int((data.train_end - data.offsets[:-1]).sum()))
        if key not in self._made_features:  # once for all that are trained from the same
            self._made_features[key] = item_features(given, data, self.run_folder.text_vectors())
        features = self._made_features[key]
        if not features:
            return None
        item_embedding_of(model).attach(features, derive_seed(stage.seed, "texts", stage.seed_key))
        return features

    def _objective(self, stage: Stage, cache: TeacherCache | None, model: SequenceEncoder) -> tuple[Objective, float]:
        """What the student is trained towards, and the τ of its logit adjustment."""
        if cache is None or stage.teaching is None:
            return stage.training.loss.objective(stage.training), 0.0
        teaching = stage.teaching
        tau = (cache.tau or 0.0) if teaching.logit_adjustment == "auto" else teaching.logit_adjustment
        term = teaching.term
        if tau:
            logger.info(f"  logit adjustment: {tau:g} · log(1 + training count)")
            prior_I = popularity_prior(torch.from_numpy(self.data.train_counts), tau)
            term = replace(term, logit_adjustment_I=prior_I.to(self.device))
        seed = derive_seed(stage.seed, "method", stage.seed_key)
        if teaching.exclude_seen:
            term = replace(term, exclude_seen=True)
        return teaching.method.objective(stage.training, cache, term, model, seed), tau

    def _histories(self, stage: Stage, data: Dataset) -> Histories:
        """What a stage is trained on: the log, or rollouts, which are drawn once for all that ask for them."""
        run = self.run_folder
        if stage.rollouts_by is None:
            return data
        by = find(self.stages, stage.rollouts_by)
        folder = run.folder / "rollouts" / by.id
        asked = {"by": run.checksum_of(by.id), "length": stage.rollout_length}
        histories = None
        if self.backend.first:
            try:
                histories = open_rollouts(folder, asked, self.data) if folder.exists() else None
            except RunError as error:
                logger.warning(f"{error.what}; they are drawn anew")
            if histories is None:
                histories = draw_rollouts(
                    run.load(by.id),
                    self.data,
                    stage.rollout_length,
                    derive_seed(stage.seed, "continue", by.seed_key),
                    repeat=not self.settings.evaluation.filter_seen,
                )
                histories.save(folder, asked, self.data)
        self.backend.wait()
        return histories or open_rollouts(folder, asked, self.data)
