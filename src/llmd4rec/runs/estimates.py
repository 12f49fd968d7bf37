"""How long the stages of a run take, as a probe has measured them; see `probe.py`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from llmd4rec.distillation.plan import Stage, ready


@dataclass(frozen=True)
class StageEstimate:
    """How long a stage takes, all in seconds.

    Attributes:
        stage: its id.
        step: one step of the optimiser.
        steps: how many an epoch has.
        validation: one validation; there is one after each epoch, and one before the first.
        teachers: until its teachers are chosen and cached.
        epochs: how many it may have: few, usual, many.
        most_epochs: how many the settings allow.
        newest: until the newest rows are learned, where they are learned last.
    """

    stage: str
    step: float
    steps: int
    validation: float
    teachers: float
    epochs: tuple[int, int, int]
    most_epochs: int
    newest: float = 0.0

    @property
    def epoch(self) -> float:
        """One epoch with its validation."""
        return self.steps * self.step + self.validation

    def seconds(self, epochs: int) -> float:
        """The whole stage with so many epochs."""
        return self.teachers + self.validation + epochs * self.epoch + self.newest

    @property
    def expected(self) -> tuple[float, float, float]:
        """The whole stage with few, with the usual number of and with many epochs."""
        few, usual, many = map(self.seconds, self.epochs)
        return few, usual, many

    @property
    def at_most(self) -> float:
        """The whole stage with as many epochs as the settings allow."""
        return self.seconds(self.most_epochs)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        few, usual, many = self.expected
        return {
            "step": self.step,
            "steps": self.steps,
            "validation": self.validation,
            "teachers": self.teachers,
            "newest": self.newest,
            "epoch": self.epoch,
            "epochs": {"few": self.epochs[0], "usual": self.epochs[1], "many": self.epochs[2]},
            "seconds": {"few": few, "usual": usual, "many": many, "at_most": self.at_most},
        }


@dataclass(frozen=True)
class RunEstimate:
    """How long a run takes, in seconds.

    Attributes:
        stages: of the plan, in its order.
        texts: until the item texts are encoded that no run has encoded yet.
        memory: until the memory is counted and weighed; 0 where there is none.
        jobs: how many stages are trained side by side.
        plan: the stages themselves.
    """

    stages: Sequence[StageEstimate]
    texts: float
    memory: float
    jobs: int
    plan: Sequence[Stage]

    def wall(self, done: Collection[str] = (), which: int = 1) -> float:
        """The seconds until all is trained, without the evaluation behind it.

        Args:
            done: stages that are trained already.
            which: 0 with few epochs, 1 with the usual number, 2 with many.
        """
        seconds = {each.stage: each.expected[which] for each in self.stages}
        first = [stage for stage in self.plan if not stage.round and stage.id not in done]
        before = _side_by_side(self.plan, first, seconds, self.jobs, done)
        return self.texts + before + self._rounds(seconds, done) + self.memory

    def _rounds(self, seconds: dict[str, float], done: Collection[str]) -> float:
        """One stage after the other; but those that the same teachers teach, once these are cached."""
        teachers = {each.stage: each.teachers for each in self.stages}
        total, together = 0.0, dict[int, list[float]]()
        for stage in self.plan:
            if stage.round and stage.id not in done:
                if stage.role == "model":
                    total += teachers[stage.id]
                    together.setdefault(stage.round, []).append(seconds[stage.id] - teachers[stage.id])
                else:
                    total += seconds[stage.id]
        return total + sum(max(each) if self.jobs > 1 else sum(each) for each in together.values())

    def to_json(self, done: Collection[str] = ()) -> dict[str, Any]:
        """Plain values, without the plan."""
        few, usual, many = (self.wall(done, which) for which in range(3))
        return {
            "texts": self.texts,
            "stages": {each.stage: each.to_json() for each in self.stages},
            "memory": self.memory,
            "jobs": self.jobs,
            "seconds": {"few": few, "usual": usual, "many": many},
        }


def _side_by_side(
    stages: Sequence[Stage], left: Sequence[Stage], seconds: dict[str, float], jobs: int, done: Collection[str]
) -> float:
    """When the last of some stages ends, at most so many at a time, each as soon as what it needs is done."""
    ends: dict[str, float] = {}
    running: list[tuple[float, str]] = []
    now, finished = 0.0, set(done)
    waiting = list(left)
    while waiting or running:
        for stage in ready(stages, finished):
            if stage in waiting and len(running) < jobs:
                waiting.remove(stage)
                running.append((now + seconds[stage.id], stage.id))
        now, ended = min(running)
        running.remove((now, ended))
        finished.add(ended)
        ends[ended] = now
    return max(ends.values(), default=0.0)
