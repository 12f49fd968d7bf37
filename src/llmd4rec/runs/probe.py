"""How long a run will take: a few steps of each of its stages, really trained, and counted up to the whole.

    stage  =  teachers  +  epochs · (steps · seconds per step  +  validation)

The stages of the plan are trained one after the other in a temporary run folder, by the code of every run, but on some
users' histories and for a few steps. Validation ranks some of its users, teachers are cached at some positions; both
are counted up. What is done for the first time in a process is left out. Item texts that no run has encoded yet are
encoded in part, and the items of those that are left get the texts of others.

How many epochs a stage will have, nobody knows before: validation ends it, and :data:`BEST_EPOCHS` and :data:`FALLING`
say what is usual.
"""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmd4rec.data.batching import Histories, TrainingWindows
from llmd4rec.data.dataset import Dataset, Int64Array
from llmd4rec.distillation.cache import TeacherCache
from llmd4rec.distillation.memory_teacher import MemoryTeacher
from llmd4rec.distillation.plan import Stage, find, plan
from llmd4rec.distillation.rollouts import draw_rollouts
from llmd4rec.distillation.settings import DistillationSettings
from llmd4rec.io.files import remove
from llmd4rec.log import logger
from llmd4rec.models.base import SequenceEncoder
from llmd4rec.models.llm.assemble import text_encoder
from llmd4rec.models.llm.item_text import encode_texts, unknown_texts
from llmd4rec.runs.estimates import RunEstimate, StageEstimate
from llmd4rec.runs.newest import Newest, Passes
from llmd4rec.runs.opening import check_data
from llmd4rec.runs.pipeline import Pipeline
from llmd4rec.runs.run import Run
from llmd4rec.runs.teachers import Teachers
from llmd4rec.runs.validation import validation_users
from llmd4rec.scoring.base import Scorer
from llmd4rec.scoring.memory.settings import Memory
from llmd4rec.training.backends.local import LocalBackend
from llmd4rec.training.callbacks.base import Callback
from llmd4rec.training.progress import Validation
from llmd4rec.training.runtime import Interrupted, derive_seed, select_device
from llmd4rec.training.trainer import Trainer

#: The best epoch of a stage whose rate does not fall to 0: in one training of ten it is earlier than the first number,
#: in half of them earlier than the second, in nine of ten earlier than the third. Of the 742 trainings in `results/`.
BEST_EPOCHS = {
    ("model", False): (11, 16, 28),
    ("teacher", False): (6, 9, 14),
    ("llm", False): (4, 5, 6),
    ("model", True): (5, 12, 25),
    ("llm", True): (1, 3, 3),
}
#: The same where it falls, as a share of the epochs that are planned; of the first two dozen such trainings.
FALLING = (0.5, 0.7, 1.0)
#: Of a probe: steps in one of its short epochs, how many epochs at most, and after how many seconds no more begin.
STEPS, MAX_EPOCHS, SECONDS = 4, 6, 3.0
#: How many users it validates on, and with a language model, which is slow; how many texts it encodes.
USERS, LLM_USERS, TEXTS = 1600, 200, 192

#: Something's size, and how many seconds it took.
Point = tuple[float, float]


def probe(
    settings: DistillationSettings, data: Dataset, *, jobs: int = 1, clock: Callable[[], float] = time.perf_counter
) -> RunEstimate:
    """Estimates how long :func:`~llmd4rec.runs.pipeline.train` would take here, with what else this machine does now.

    Nothing is kept but the vectors of the texts that it encodes, which no run has to encode again.

    Args:
        settings: of the run.
        data: to train on.
        jobs: how many stages would be trained side by side, each on its share of the threads.
        clock: what seconds are read from; `time.process_time` counts what the processor does for this process alone.

    Raises:
        DataError: the data cannot be trained on.
        ModelError: a language model or an encoder cannot be had.
        Interrupted: a signal came.
    """
    check_data(settings, data)
    threads = torch.get_num_threads()
    whole = settings.threads or threads
    share = settings.threads or max(1, threads // jobs)
    try:
        with tempfile.TemporaryDirectory(prefix="llmd4rec-probe-") as folder, _quiet():
            data, texts = _with_known_texts(settings, data, clock)
            run = Run.start(Path(folder, "run"), settings.model_copy(update={"loggers": ()}), data)
            found = _Probe(run, data, settings, clock)
            stages = []
            for stage in plan(settings):
                torch.set_num_threads(whole if stage.round else share)
                stages.append(found.estimate(stage))
            torch.set_num_threads(whole)
            return RunEstimate(stages, texts, found.memory(), jobs, plan(settings))
    except Interrupted as interrupted:
        raise Interrupted(interrupted.signal_number, saved=False) from None
    finally:
        torch.set_num_threads(threads)


class _Probe(Pipeline):
    """Trains each stage for a few steps."""

    def __init__(self, run: Run, data: Dataset, settings: DistillationSettings, clock: Callable[[], float]) -> None:
        self._clock, self._watch = clock, _Stopwatch(clock)
        self._timed = _TimedTeachers(run, data, select_device(settings.device), clock)
        super().__init__(run, data, [self._watch], LocalBackend(), self._timed)
        self._users = min(len(data.valid), validation_users(settings, data))
        self._prepare_texts()

    def estimate(self, stage: Stage) -> StageEstimate:
        """How long a stage of the whole plan takes; those before it must have been estimated."""
        newest = self._changing.newest(stage)
        if stage.beside_memory and (self.data.is_temporal or newest is not None):  # it is left out there
            return StageEstimate(stage.id, 0.0, 0, 0.0, 0.0, (0, 0, 0), 0, 0.0)
        llm = "llm" in {stage.role, *(find(self.stages, teacher).role for teacher in stage.teachers)}
        model = self.run_folder.build(stage)
        data = self.data if newest is None else newest.before
        windows = TrainingWindows(data, model.max_length, model.reads)
        whole, newer = self._changing.training(stage, data, data)
        batch = whole.batch_positions(model.num_items, windows.num_positions)
        steps = len(windows.shuffled(batch, np.random.default_rng(0), whole.epoch_positions))
        sizes = [(share, max(1, (LLM_USERS if llm else USERS) // share)) for share in (4, 1)]
        self._judged = [min(users, self._users) for _, users in sizes]
        cached, chosen, rolled = list[Point](), list[Point](), list[Point]()
        for share, users in sizes:
            self._part = _some_users(data, STEPS * batch // share, model.max_length)
            self._judge_on(users)
            remove(self.run_folder.folder / "teachers")
            begun = self._clock()
            histories = self._histories(stage, self._part)
            rolled.append((self._part.num_users, self._clock() - begun))
            self._timed.of(stage, histories)
            positions = TrainingWindows(self._part, model.max_length, model.reads).num_positions
            cached.append((positions, self._timed.caching))
            chosen.append((self._judged[len(chosen)], self._timed.choosing))
        changes = {"epochs": MAX_EPOCHS, "patience": MAX_EPOCHS, "batch": batch, "large_catalogue_batch": 1}
        training = stage.training.model_copy(update={**changes, "min_steps": 1, "epoch_positions": None})
        self.stages = [replace(each, training=training) if each.id == stage.id else each for each in self.stages]
        self._validations: list[list[float]] = [[], []]
        self.train(find(self.stages, stage.id))
        points = [(users, _usual(took)) for users, took in zip(self._judged, self._validations, strict=True)]
        teachers = 0.0
        if stage.teachers and not stage.beside_memory:  # which are cached for the round's model already
            teachers = _at(windows.num_positions, cached) + _at(self._users, chosen) + self._timed.fixed
            teachers += _at(self.data.num_users, rolled)
        most, best = stage.training.epochs, BEST_EPOCHS[stage.role, bool(stage.round)]
        if stage.training.schedule == "cosine" and stage.role != "llm":
            best = (round(FALLING[0] * most), round(FALLING[1] * most), round(FALLING[2] * most))
        few, usual, many = (min(most, epoch + stage.training.patience) for epoch in best)
        last = 0 if newest is None else self._last_steps(newest, windows.max_length, model)
        if newest is not None and newer is not None:  # patience does not end it
            few = usual = many = most
        return StageEstimate(
            stage.id,
            self._watch.step,
            steps,
            _at(self._users, points) + max(0.0, self._watch.validation - sum(took for _, took in points)),
            teachers,
            (few, usual, many),
            most,
            last * self._watch.step,
        )

    def _last_steps(self, newest: Newest, max_length: int, model: SequenceEncoder) -> int:
        """How many steps of the optimiser it takes to learn the newest rows."""
        how, found = Passes(), 0
        for data, new in newest.steps(how.step_days):
            windows = TrainingWindows(data, max_length, model.reads)
            training = how.training(self.settings.training.model, int(new.sum()), int((~new).sum()))
            batch = training.batch_positions(model.num_items, windows.num_positions)
            batches = windows.shuffled(batch, np.random.default_rng(0), training.epoch_positions)
            found += how.epochs * len(batches)
        return found

    def memory(self) -> float:
        """How long the memory takes to be counted and weighed."""
        if self.settings.memory is None:
            return 0.0
        begun = self._clock()
        self._memory()
        return self._clock() - begun

    def _judge_on(self, users: int) -> None:
        """Lets validation choose teachers on so many users."""
        run = self.run_folder
        judged = run.settings.evaluation.model_copy(update={"validation_users": users})
        run.settings = self.settings = run.settings.model_copy(update={"evaluation": judged})

    def _newest(self, stage: Stage) -> None:
        """Its steps are as those of the passes before: they are not probed, but counted."""

    def _not_beside_memory(self, stage: Stage) -> str:
        """Whether the memory teaches is known when the whole run has been trained that far."""
        return ""

    def _validate(self, model: SequenceEncoder, data: Dataset, beside: Scorer | None = None) -> float:
        """Validates twice, on some users and on more."""
        value = 0.0
        for users, took in zip(self._judged, self._validations, strict=True):
            self._judge_on(users)
            begun = self._clock()
            value = super()._validate(model, data, beside)
            took.append(self._clock() - begun)
        return value

    def _histories(self, stage: Stage, data: Dataset) -> Histories:
        """Some of those that the stage would be trained on."""
        if stage.rollouts_by is None:
            return self._part
        by = find(self.stages, stage.rollouts_by)
        seed = derive_seed(stage.seed, "continue", by.seed_key)
        return draw_rollouts(self.run_folder.load(by.id), self._part, stage.rollout_length, seed)


class _Stopwatch(Callback):
    """Measures steps and validations of a training, and ends it soon."""

    step = validation = 0.0

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock

    def on_start(self, trainer: Trainer) -> None:
        """See :class:`~llmd4rec.training.callbacks.base.Callback`."""
        self._begun = self._clock()
        self._steps, self._validations = list[float](), list[float]()

    def on_epoch_start(self, trainer: Trainer) -> None:
        """See :class:`~llmd4rec.training.callbacks.base.Callback`."""
        self._at = self._clock()

    def on_epoch_end(self, trainer: Trainer) -> None:
        """Whatever a GPU had to do is done: the last step's figures have been read."""
        self._steps.append((self._clock() - self._at) / trainer.epoch_steps)

    def on_validation_start(self, trainer: Trainer) -> None:
        """See :class:`~llmd4rec.training.callbacks.base.Callback`."""
        self._at = self._clock()

    def on_validation(self, trainer: Trainer, found: Validation) -> None:
        """The best weights have been written."""
        now = self._clock()
        self._validations.append(now - self._at)
        if len(self._steps) > 2 and now - self._begun > SECONDS:
            trainer.stop("probed")

    def on_end(self, trainer: Trainer, error: BaseException | None) -> None:
        """See :class:`~llmd4rec.training.callbacks.base.Callback`."""
        if error is None:
            self.step, self.validation = _usual(self._steps), _usual(self._validations)


class _TimedTeachers(Teachers):
    """Measures how long it takes until teachers are cached: what grows with positions, with users, or not."""

    caching = choosing = fixed = 0.0

    def __init__(self, run: Run, data: Dataset, device: torch.device, clock: Callable[[], float]) -> None:
        super().__init__(run, data, device, choose_weights=self._weigh, choose_tau=self._adjust)
        self._clock = clock
        self._remembered: dict[tuple[str, ...], MemoryTeacher | None] = {}

    def of(self, stage: Stage, histories: Histories) -> TeacherCache | None:
        """See :class:`Teachers`."""
        self.choosing = self._more = self._counting = 0.0
        begun = self._clock()
        found = super().of(stage, histories)
        self.caching = self._clock() - begun - self.choosing - self._counting
        self.choosing += self._more
        return found

    def _chosen(
        self, models: dict[str, SequenceEncoder], chooses: bool, asks_tau: bool
    ) -> tuple[dict[str, int], float | None]:
        begun = self._clock()
        found = super()._chosen(models, chooses, asks_tau)
        self.choosing += self._clock() - begun
        return found

    def _memory(
        self, asked: Memory, ranker: SequenceEncoder, histories: Histories, teachers: tuple[str, ...]
    ) -> MemoryTeacher | None:
        """Counted and weighed once for all sizes: it takes as long for each."""
        begun = self._clock()
        if teachers not in self._remembered:
            self._remembered[teachers] = super()._memory(asked, ranker, histories, teachers)
            self.fixed = self._clock() - begun
        found = self._remembered[teachers]
        made = None if found is None else MemoryTeacher(found.memory, found.model, histories)
        self._counting += self._clock() - begun
        return made

    def _weigh(self, judge: Callable[..., Any], start: Sequence[int]) -> tuple[tuple[int, ...], float]:
        """Judges one mixture for the dozens that hill climbing looks at: the neighbours of two, or three."""
        begun = self._clock()
        value = float(judge(start).mean())
        self._more += (self._clock() - begun) * 4 * len(start)
        return tuple(start), value

    def _adjust(self, judge: Callable[[float], Any]) -> float:
        """Judges one of the values for the two to five that are looked at."""
        begun = self._clock()
        judge(0.0)
        self._more += (self._clock() - begun) * 2
        return 0.1


def _usual(took: Sequence[float]) -> float:
    """The median without the first, which is slower than those after it."""
    return statistics.median(took[1:] or took or [0.0])


def _at(size: float, points: Sequence[Point]) -> float:
    """The seconds at some size, on the line through what was measured at two."""
    (small, before), (large, after) = points
    each = max(0.0, after - before) / (large - small) if large > small else 0.0
    return after + each * (size - large)


def _some_users(data: Dataset, positions: int, max_length: int) -> Dataset:
    """So many users, drawn at random, that they have at least so many training positions, or all."""
    starts, ends = np.asarray(data.offsets[:-1]), np.asarray(data.offsets[1:])
    inputs = np.maximum(np.asarray(data.train_end) - starts - 1, 0)
    order = np.random.default_rng(0).permutation(data.num_users)
    enough = int(np.searchsorted(np.cumsum(inputs[order]), positions)) + 1
    users: Int64Array = np.sort(order[:enough])
    kept = np.concatenate([np.arange(starts[user], ends[user]) for user in users])
    offsets = np.concatenate([[0], np.cumsum(ends[users] - starts[users])])
    nobody = np.empty(0, dtype=np.int64)
    return replace(
        data,
        user_ids=data.user_ids.gather(users),
        offsets=offsets,
        items=np.asarray(data.items[kept]),
        times=None if data.times is None else np.asarray(data.times[kept]),
        train_end=offsets[:-1] + np.asarray(data.train_end)[users] - starts[users],
        valid=nobody,
        test=nobody,
        path=None,
    )


def _with_known_texts(
    settings: DistillationSettings, data: Dataset, clock: Callable[[], float]
) -> tuple[Dataset, float]:
    """The data set with texts that need no encoding, and how long it would take to encode those that do."""
    texts, device = settings.texts, select_device(settings.device)
    memory = settings.memory is not None and settings.memory.content is not None
    if not memory and all(stage.texts is None for stage in plan(settings)):
        return data, 0.0
    fields = list(data.text_fields if texts.fields is None else texts.fields)
    lines = data.texts(texts.fields)
    encoder = text_encoder(texts, settings.llm, device)
    unknown = unknown_texts(lines, texts.encoder, llm=encoder, device=device)
    if len(unknown) <= TEXTS:
        encode_texts(sorted(unknown), texts.encoder, llm=encoder, device=device)
        return data, 0.0
    rng = np.random.default_rng(0)
    some = [str(line) for line in rng.choice(sorted(unknown), TEXTS, replace=False)]
    took = []
    for part in (some[: TEXTS // 4], some[TEXTS // 4 :]):  # each loads the encoder anew
        begun = clock()
        encode_texts(part, texts.encoder, llm=encoder, device=device)
        took.append(clock() - begun)
    each = max(took[1] - took[0], 0.0) / (TEXTS // 2)
    seconds = took[0] + each * (len(unknown) - TEXTS // 4)
    known = np.flatnonzero([line not in unknown or line in set(some) for line in lines])
    row_I = np.arange(data.num_items)
    left = np.setdiff1d(row_I, known)
    row_I[left] = rng.choice(known, len(left))
    catalogue = data.catalogue.with_columns(data.catalogue[field].gather(row_I) for field in fields)
    return data.with_catalogue(catalogue), seconds


@contextmanager
def _quiet() -> Iterator[None]:
    """What trainings say of themselves is not said: nobody is to take a probe's figures for those of a model."""
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
