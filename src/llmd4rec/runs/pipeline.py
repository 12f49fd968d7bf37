"""The alternating loop of mutual distillation (LLMD4Rec, arXiv 2505.18120).

    crm-alone                      the CRM on its own                           (all there is when rounds = 0)
    wide-alone, wide-alone-2, ...  wider CRMs, where they are wanted (`wide`)
    llm-alone                      the LLM on its own, reading the CRM's items  (E4SRec, all positions in one pass)
    round r:
        downward   publish the CRM; its item table goes into the LLM; train the LLM on L_rec + λ1 · w1 · KL
        upward     publish the LLM; train the CRM on L_rec + λ2 · w2 · KL
    until the validation NDCG@10 of the served model stops improving, or the teachers that are heard no longer change

Where there are wider CRMs, the LLM reads the items of the first and learns from them, and all of them teach the served
CRM together; other models are heard where validation says that they add to it (`distillation/ensemble.py`): what is
served need not be what the LLM talks to. The served CRM is taught to leave out some of the items' popularity
(`distillation/logit_adjustment.py`). Nothing couples the models but the published teacher, and nothing is added to any
of them.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from torch import Tensor

from llmd4rec.data.batching import Histories, TrainingWindows
from llmd4rec.data.dataset import Dataset
from llmd4rec.distillation.cache import Teacher, open_teacher, publish
from llmd4rec.distillation.ensemble import best_counts, in_words
from llmd4rec.distillation.logit_adjustment import bearable_share, popularity_prior
from llmd4rec.distillation.methods import LLMD4Rec
from llmd4rec.distillation.rollouts import continue_histories, open_continued
from llmd4rec.distillation.settings import MutualDistillation, Student
from llmd4rec.errors import DataError, LLMD4RecError, RunError
from llmd4rec.evaluation.evaluate import PoolValidation, validation_ndcg
from llmd4rec.io.files import remove, remove_leftovers, sha256_file
from llmd4rec.log import bar, logger
from llmd4rec.losses.softmax import RankingObjective
from llmd4rec.models.base import Ranker, count_parameters
from llmd4rec.models.embedding import ItemInputs, ItemSides, item_sides, item_table_of
from llmd4rec.models.ensemble import Pool
from llmd4rec.models.llm.assemble import inject_items, prepare_text_vectors
from llmd4rec.runs.run import Run, use_threads
from llmd4rec.training import checkpoint
from llmd4rec.training.fit import Fitted, Objective, Training, fit
from llmd4rec.training.processes import Processes, join
from llmd4rec.training.runtime import derive_seed, select_device

#: A validation ranks at most so many scores (but 1,000 users at least).
VALIDATION_SCORES = 5_000_000_000


def train(settings: MutualDistillation, data: Dataset, folder: Path | str | None = None) -> Run:
    """Runs, or goes on with, everything `settings` ask for; see :meth:`MutualDistillation.fit`."""
    processes = join()
    path = Path(folder or processes.from_first(_new_folder() if processes.first else ""))
    use_threads(settings)
    _check_targets(settings, data)
    with _alone_in(path, settings, data) if processes.first else contextlib.nullcontext():
        if processes.first:
            _tidy(Run.start(path, settings, data))
        processes.wait()  # until the folder is there and in order
        run = Run.start(path, settings, data)
        if not run.record.finished:
            _Rounds(run, data).run()
        processes.wait()  # nobody scores what is not yet written
    return run


def _new_folder() -> str:
    return str(Path(tempfile.mkdtemp(prefix="llmd4rec-"), "run"))


def _tidy(run: Run) -> None:
    """Brings a folder into order that a process was killed in, or that somebody has deleted files from."""
    for name in ("checkpoints", "teachers", "histories"):
        remove_leftovers(run.folder / name)
    remove_leftovers(run.folder, of="text_vectors")
    # Evaluations and the like are written by processes that hold no lock.
    remove_leftovers(run.folder, older_than=3600)
    stages = list(run.record.stages)
    missing = [name for name in stages if not (run.checkpoint_of(name) / "best.safetensors").exists()]
    if missing:
        again = stages[stages.index(missing[0]) :]
        logger.warning(f"{run.checkpoint_of(missing[0])} has no weights: {', '.join(again)} are trained again")
        for name in again:
            del run.record.stages[name]
            for evaluation in (run.folder / "evaluation").glob(f"{name}-*"):
                remove(evaluation)
    no_texts = run.record.text_vectors is not None and not (run.folder / "text_vectors.safetensors").exists()
    if missing or no_texts:
        run.record.finished = False
        run.save()
    for name in run.record.stages:
        remove(run.checkpoint_of(name) / "training")
    if run.record.finished:
        for name in ("teachers", "histories"):
            remove(run.folder / name)
    elif run.begun():
        run.note_environment()


def _check_targets(settings: MutualDistillation, data: Dataset) -> None:
    """Refuses, before anything is written, data that cannot be trained on or selected on."""
    if not TrainingWindows(data, settings.crm.max_length).num_positions:
        raise DataError(
            "there is nothing to train on: no user has two interactions in the training part",
            "Prepare a data set with longer histories (leave-one-out needs 4 interactions of some users).",
        )
    if not len(data.valid):
        raise DataError("the data set has no validation targets", "Prepare it with a split that holds items out.")
    if settings.rounds:
        settings.method.check(settings.training.crm, data.num_items)


@contextlib.contextmanager
def _alone_in(folder: Path, settings: MutualDistillation, data: Dataset) -> Iterator[None]:
    """Makes the run folder where there is none, and keeps two trainings out of it.

    The operating system lifts the lock of a process that died.
    """
    try:
        Run.start(folder, settings, data, locked=False)
    except LLMD4RecError:
        if not (folder / "run.json").exists():
            raise
        # Another process was faster; what it made is looked at like any other.
        Run.start(folder, settings, data, locked=False)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RunError(
            f"{folder} is being trained by another process", "Wait for it or stop it; two would spoil each other."
        ) from error
    try:
        yield
    finally:
        lock.release()


class _Rounds:
    def __init__(self, run: Run, data: Dataset) -> None:
        self.run_folder, self.data, self.settings = run, data, run.settings
        self.device = select_device(run.settings.device)
        self.processes = Processes.current()
        self._made_sides: dict[ItemInputs, ItemSides] = {}

    def run(self) -> None:
        settings, record = self.settings, self.run_folder.record
        if "text" in settings.crm.items or (settings.uses_llm and "text" in settings.llm.items):
            self._prepare_texts()
        if settings.uses_llm:
            # First of all, so that a language model that cannot be had does not cost the training of the CRM.
            self.run_folder.build("llm", "llm-alone")
            logger.info(f"language model: {(self.run_folder.record.llm or {}).get('origin')}")
        self._train("crm", "crm-alone")
        for stage in settings.wide_stages if settings.rounds else ():
            self._train("wide", stage)
        if settings.uses_llm:
            self._train("llm", "llm-alone")
        why = "all rounds done" if settings.rounds else ""
        for number in range(1, settings.rounds + 1):
            if settings.direction != "up":
                self._train("llm", f"llm-round-{number}", taught_by=self._teachers("llm", number, number))
            if settings.direction != "down":
                # The language model that this round has taught is the one to listen to.
                self._train("crm", f"crm-round-{number}", taught_by=self._teachers("crm", number, number + 1))
            if self._stalled(number):
                why = f"round {number} did not improve the validation NDCG@10"
                break
            if number < settings.rounds and self._settled(number):
                why = f"in round {number} only models were heard that do not change"
                break
        record.finished, record.stopped_because = True, why
        self.run_folder.save()
        if self.processes.first:
            for name in ("teachers", "histories"):
                remove(self.run_folder.folder / name)

    def _prepare_texts(self) -> None:
        run = self.run_folder
        if self.processes.first:
            prepare_text_vectors(self.settings.llm, self.data, run.folder, self.device)
        self.processes.wait()
        path = run.folder / "text_vectors.safetensors"
        if path.exists() and run.record.text_vectors is None:
            run.record.text_vectors = sha256_file(path)
            run.save()

    def _latest(self, model: Student, number: int) -> str:
        """The stage whose model teaches in round `number`: the last one trained before it."""
        taught = number > 1 and model in self.settings.students
        return f"{model}-round-{number - 1}" if taught else f"{model}-alone"

    def _teachers(self, student: Student, number: int, newest: int) -> tuple[str, ...]:
        """The stages that teach `student` in round `number`, the other model's being the last before `newest`."""
        settings = self.settings
        # The wide ones are what the served CRM would be, were it free to be so wide.
        crms = (*settings.wide_stages, self._latest("crm", newest if student == "llm" else number))
        llm = self._latest("llm", newest if student == "crm" else number)
        own, others = (crms, (llm,)) if student == "crm" else ((llm,), crms)
        return {"partner": others, "consensus": (*others, *own), "self": own}[settings.teacher]

    def _stalled(self, number: int) -> bool:
        """Whether the rounds no longer improve the served model, or the only one that is taught."""
        model, stages = self.settings.students[-1], self.run_folder.record.stages
        values = [stages[name]["validation_ndcg"] for name in (f"{model}-alone", *_rounds_of(model, number))]
        return number - int(np.argmax(values)) >= self.settings.round_patience

    def _settled(self, number: int) -> bool:
        """Whether the next round would teach every student what this one has taught it."""
        for model in self.settings.students:
            stage = self.run_folder.record.stages[f"{model}-round-{number}"]
            counts = stage.get("teachers") or {stage["taught_by"]: 1}
            heard = [_model_of(name) for name, count in counts.items() if name is not None and count]
            if not heard or any(teacher in self.settings.students for teacher in heard):
                return False
        return True

    # ---- one stage ----------------------------------------------------------------------------------------------
    def _train(self, model: Student, stage: str, taught_by: tuple[str, ...] = ()) -> None:
        run, settings = self.run_folder, self.settings
        if stage in run.record.stages:
            return
        # The language model is taught in the paper's way, whatever the served one is compared with.
        method = settings.method if model == "crm" else LLMD4Rec()
        if not method.listens(settings.distill(model)):  # the control that trains as often and listens to nobody
            taught_by = ()
        teacher = " + ".join(taught_by) or None
        logger.info(f"{stage}" + (f"  taught by {teacher}" if teacher else ""))
        number = int(stage.rsplit("-", 1)[1]) if "-round-" in stage else 0
        # With nobody to listen to, what is drawn would be learned as if it had happened.
        histories = self._histories(number) if taught_by else self.data
        # The language model is not served, and shall say what it thinks of popular items.
        adjusts = model == "crm" and isinstance(method, LLMD4Rec)
        lesson = self._publish(histories, *taught_by, learner=model, adjusts=adjusts) if taught_by else None
        weighted = isinstance(method, LLMD4Rec) and settings.weights == "rank"
        if lesson is not None and weighted and settings.ranks == "round-start":
            before = self._publish(histories, self._latest(model, number), learner=model)
            lesson = replace(lesson, student_rank=before.rank)
        share = 0.0
        if lesson is not None and adjusts:
            share = lesson.share or 0.0 if settings.logit_adjustment == "auto" else settings.logit_adjustment
        ranker = self._starting_point(model, stage, number)
        # A table that goes on has its sides in it already; neighbours would be mixed in twice.
        afresh = model != "llm" and not self._goes_on(model, number)
        sides = self._sides(settings.crm_in(stage).items) if afresh else None
        if sides:
            item_table_of(ranker).read(sides, derive_seed(settings.seed, "texts", stage))
        training = settings.training_of(model)
        if number:
            training = training.in_round()
        folder = run.checkpoint_of(stage)
        objective: Objective = RankingObjective(training)
        if lesson is not None:
            seed = derive_seed(settings.seed, "method", stage)
            distill = settings.distill(model)
            if share:
                logger.info(f"  its scores leave out {share:g} · log(1 + count) of the items' popularity")
                distill = replace(distill, prior_I=self._popularity(share).to(self.device))
            objective = method.objective(training, lesson, distill, ranker, seed)
        try:
            fitted = fit(
                ranker,
                histories,
                training,
                folder / "training",
                phase=stage,
                seed=settings.seed,
                validate=self._validate,
                log=run.log,
                trained_before=self._goes_on(model, number),
                objective=objective,
            )
        except torch.OutOfMemoryError as error:
            group = "llm" if model == "llm" else "crm"
            smaller = "llm.layers" if model == "llm" else "wide" if model == "wide" else "crm.dim"
            raise RunError(
                f"{stage}: the device has not enough memory: {str(error).splitlines()[0]}",
                f"Lower training.{group}.batch (now {training.batch}) or {smaller}, in a new run folder; or, where no "
                f"finished training depends on it, in this one after {folder / 'training'} is gone.",
            ) from error
        if sides:
            item_table_of(ranker).fold()
        taught: dict[str, Any] = {}
        if lesson is not None and len(lesson.counts) > 1:  # how much each teacher counted
            taught["teachers"] = dict(lesson.counts)
        if share:
            taught["logit_adjustment"] = share
        self._keep(stage, ranker, fitted, {"taught_by": teacher, **taught})
        if number and self.processes.first:  # nobody listens any more to what this stage replaces
            for kept in (path for name in ("teachers", "histories") for path in (run.folder / name).glob("*")):
                if self._latest(model, number) in kept.name.split("+"):
                    remove(kept)
        logger.info(
            f"  validation NDCG@10 {fitted.best_value:.4f} in epoch {fitted.best_epoch}, {fitted.seconds:.0f} s"
        )

    def _sides(self, inputs: ItemInputs) -> ItemSides:
        """What item tables are trained from; made once for all that are trained from the same."""
        if inputs not in self._made_sides:
            self._made_sides[inputs] = item_sides(inputs, self.data, self.run_folder.text_vectors())
        return self._made_sides[inputs]

    def _keep(self, stage: str, ranker: Ranker, fitted: Fitted, taught: Mapping[str, Any]) -> None:
        """Weights, then the record that says they are there, then the end of the checkpoints that led to them."""
        run, folder = self.run_folder, self.run_folder.checkpoint_of(stage)
        checksum = None
        if self.processes.first:
            head = {"phase": stage, "epoch": fitted.best_epoch, "value": fitted.best_value}
            checksum = checkpoint.save(folder / "best.safetensors", ranker.saved_state(), head)
        total, trainable = count_parameters(ranker)
        run.record.stages[stage] = {
            "validation_ndcg": fitted.best_value,
            **{key: value for key, value in asdict(fitted).items() if key != "best_value"},
            **taught,
            "parameters": total,
            "trainable_parameters": trainable,
            "checksum": self.processes.from_first(checksum),
        }
        run.save()
        self.processes.wait()  # all have read the best of the checkpoints
        if self.processes.first:
            remove(folder / "training")

    def _goes_on(self, model: Student, number: int) -> bool:
        start = self.settings.crm_start if model == "crm" else self.settings.llm_start
        return number > 0 and start == "continue"

    def _validate(self, ranker: Ranker) -> float:
        return validation_ndcg(
            ranker, self.data, self.settings.evaluation.seen, self._validation_users(), self.settings.seed
        )

    def _validation_users(self) -> int:
        # A large catalogue would spend longer on choosing the epoch than on training it.
        affordable = max(1000, VALIDATION_SCORES // self.data.num_items)
        return min(affordable, self.settings.evaluation.validation_users or len(self.data.valid))

    def _starting_point(self, model: Student, stage: str, number: int) -> Ranker:
        """The student before its training: fresh or from the round before, with the CRM's items injected."""
        run, settings = self.run_folder, self.settings
        ranker = run.build(model, stage)
        goes_on = self._goes_on(model, number)
        if goes_on:
            ranker.load_saved_state(run.weights_of(self._latest(model, number)))
        if model == "llm" and settings.inject != "never":
            partner = settings.partner
            # A CRM that was trained anew has other axes: its table would make nonsense of what goes on.
            turned = goes_on and number > 1 and partner == "crm" and settings.crm_start == "restart"
            renewed = settings.inject == "every-round" and number > 0 and not turned
            if turned and settings.inject == "every-round":
                logger.info("  keeps the items it reads: a CRM that was trained anew has other axes (see crm_start)")
            if renewed or not goes_on:
                source = self._latest(partner, number) if renewed else f"{partner}-alone"
                inject_items(ranker, run.load_stage(partner, source).item_table().detach())
        return ranker

    def _histories(self, number: int) -> Histories:
        """What the students of a round are taught on; made once for both."""
        run, settings = self.run_folder, self.settings
        if not settings.continue_by:
            return self.data
        stage = self._latest("crm", number)
        folder = run.folder / "histories" / stage
        asked = {"by": run.checksum_of(stage), "length": settings.continue_by}
        histories = None
        if self.processes.first:
            try:
                histories = open_continued(folder, asked, self.data) if folder.exists() else None
            except RunError as error:
                logger.warning(f"{error.what}; they are drawn anew")
            if histories is None:
                histories = continue_histories(
                    run.load_stage("crm", stage),
                    self.data,
                    settings.continue_by,
                    derive_seed(settings.seed, "continue", stage),
                    repeat=settings.evaluation.seen == "keep",
                )
                histories.save(folder, asked, self.data)
        self.processes.wait()
        return histories or open_continued(folder, asked, self.data)

    def _popularity(self, share: float) -> Tensor:
        return popularity_prior(torch.from_numpy(self.data.train_counts), share)

    def _publish(self, histories: Histories, *stages: str, learner: Student, adjusts: bool = False) -> Teacher:
        """The published teacher of one finished stage, or of the mean of several; made once for all who listen.

        Args:
            histories: whose positions it answers.
            stages: who teaches.
            learner: who listens.
            adjusts: whether the learner may leave out some of the items' popularity.
        """
        run = self.run_folder
        asks = adjusts and self.settings.logit_adjustment == "auto"
        folder = run.folder / "teachers" / "+".join(stages)
        made_of = {stage: run.checksum_of(stage) for stage in stages}

        def opened() -> Teacher:
            return open_teacher(folder, histories, self.device, self.settings.teacher_precision, made_of)

        teacher = None
        if self.processes.first:
            try:
                teacher = opened() if folder.exists() else None
            except RunError as error:
                logger.warning(f"{error.what}; it is published anew")
            if teacher is not None and asks and teacher.share is None:  # published when nobody asked
                teacher = None
            if teacher is None:
                self._publish_anew(folder, histories, stages, made_of, self.settings.training_of(learner), asks)
        self.processes.wait()
        return teacher or opened()

    def _publish_anew(
        self,
        folder: Path,
        histories: Histories,
        stages: tuple[str, ...],
        made_of: dict[str, str | None],
        learning: Training,
        asks: bool,
    ) -> None:
        rankers = [self.run_folder.load_stage(_model_of(stage), stage) for stage in stages]
        counts, share = (1,) * len(rankers), None
        if asks or (len(rankers) > 1 and self.settings.consensus == "validation"):
            counts, share = self._weighed(dict(zip(stages, rankers, strict=True)), asks)
        heard = [(ranker, count) for ranker, count in zip(rankers, counts, strict=True) if count]
        large = self.data.num_items > learning.full_softmax_items
        publish(
            heard[0][0] if len(heard) == 1 else Pool(*zip(*heard, strict=True)),
            histories,
            folder,
            label=" + ".join(stages),
            counts=dict(zip(stages, counts, strict=True)),
            made_of=made_of,
            rank_items=learning.candidates if large else None,
            precision=self.settings.teacher_precision,
            share=share,
        )

    def _weighed(self, teachers: dict[str, Ranker], asks: bool) -> tuple[tuple[int, ...], float | None]:
        """What validation says: how much each teacher counts and, if asked, how much popularity may be left out."""
        evaluation, counts, rankers = self.settings.evaluation, (1,) * len(teachers), list(teachers.values())
        judge = PoolValidation(rankers, self.data, evaluation.seen, self._validation_users(), self.settings.seed)
        if len(teachers) > 1 and self.settings.consensus == "validation":
            # The wide ones are there to teach: the others are heard where they add to them.
            wide = [int(_model_of(stage) == "wide") for stage in teachers]
            counts, value = best_counts(judge, wide if any(wide) else counts)
            logger.info(f"  teacher: {in_words(tuple(teachers), counts)}, validation NDCG@10 {value:.4f}")
        if not asks:
            return counts, None
        with bar("trying how much popularity to leave out", None, "shares") as progress:

            def without(share: float) -> NDArray[np.float64]:
                progress.advance(1)
                return judge(counts, self._popularity(-share))

            share = bearable_share(without)
        if not share:
            logger.info("  none of the items' popularity is left out: its teachers would rank worse without it")
        return counts, share


def _model_of(stage: str) -> Student:
    return stage.partition("-")[0]  # type: ignore[return-value]


def _rounds_of(model: Student, number: int) -> list[str]:
    """A model's trainings up to a round."""
    return [f"{model}-round-{n}" for n in range(1, number + 1)]
