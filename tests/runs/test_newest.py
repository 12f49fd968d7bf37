"""The newest rows are learned last, in order of time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from refreshed import DAY, SETTINGS, catalogue, data_of, rows, stopping, trained
from settings_of import parse_settings
from test_ageing import changing
from whole_runs import LooksAt, same

from llmd4rec.data.dataset import Dataset
from llmd4rec.distillation.memory_teacher import MemoryTeacher
from llmd4rec.distillation.plan import find, plan
from llmd4rec.errors import DataError
from llmd4rec.runs.changing_log import ChangingLog
from llmd4rec.runs.newest import LEAST_TARGETS, MOST_STEPS, NEWEST_DAYS, Newest, in_order, newest_of
from llmd4rec.runs.pipeline import train
from llmd4rec.runs.probe import probe
from llmd4rec.runs.refit import refit
from llmd4rec.runs.run import Run
from llmd4rec.runs.teachers import Teachers, negatives_of
from llmd4rec.runs.update import Update, new_rows, update
from llmd4rec.scoring.memory.settings import Memory
from llmd4rec.scoring.memory.state import count_memory
from llmd4rec.training.runtime import Interrupted

STAGE = "undistilled"
DAILY = Update(epochs=2, learning_rate=0.01, step_days=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `data` of eight days and the finished `run` on it."""
    folder = tmp_path_factory.mktemp("run")
    trained(data_of(rows(8), path=folder / "data"), folder / "run")
    return folder


# ---- steps ------------------------------------------------------------------------------------------------------
def whole(days: Sequence[int]) -> Dataset:
    """A user with an item on each of these days, and one with two on the first."""
    return data_of(
        [*(("u", f"i{day}", day * DAY) for day in days), *(("v", f"i{n}", days[0] * DAY) for n in (0, 1))]
    ).whole()


def in_days(data: Dataset, new: np.ndarray, days: float | None) -> list[list[float]]:
    """The days of what each step learns."""
    found = []
    for step in in_order(data, new, days):
        assert step.data.event_times is not None
        found.append(sorted((step.data.event_times[step.new] / DAY).tolist()))
    return found


def test_steps_by_hand() -> None:
    data = whole(range(1, 13))
    assert data.event_times is not None
    new = np.asarray(data.event_times > 4 * DAY)
    assert in_days(data, new, 4) == [[5, 6, 7, 8], [9, 10, 11, 12]]
    assert in_days(data, new, 3) == [[5, 6, 7, 8, 9], [10, 11, 12]]
    assert in_days(data, new, 8) == in_days(data, new, None) == [[5, 6, 7, 8, 9, 10, 11, 12]]
    # Each knows no more than there was by then.
    assert [step.data.num_interactions for step in in_order(data, new, 4)] == [10, 14]


def test_what_came_in_late_is_learned_first_and_days_without_rows_cost_no_step() -> None:
    data = whole((1, 2, 21, 22, 23, 40))
    assert data.event_times is not None
    new = np.asarray(data.event_times != DAY)
    assert in_days(data, new, 5) == [[2], [21, 22, 23], [40]]


def test_a_step_without_a_target_joins_the_next() -> None:
    log = [*((f"u{user}", f"i{user}", user * 60) for user in range(20)), ("u0", "i5", 8 * DAY), ("u1", "i6", 8 * DAY)]
    data = data_of([*log, *rows(2, users=3)]).whole()
    first = data.offsets[:-1][np.diff(data.offsets) > 0]
    only_firsts = np.zeros(data.num_interactions, dtype=np.bool_)
    only_firsts[first] = True
    assert data.event_times is not None
    new = only_firsts | (data.event_times >= 8 * DAY)
    (step,) = in_order(data, new, 4)
    assert step.new.sum() == new.sum()
    assert len(in_order(data, only_firsts, 4)) == 1  # nothing new can be learned, and older rows are


def test_there_is_an_end_to_steps() -> None:
    data = whole(range(1, 101))
    assert data.event_times is not None
    found = in_days(data, np.asarray(data.event_times > DAY), 2)
    assert [len(days) for days in found] == [99 - 2 * (MOST_STEPS - 1), *[2] * (MOST_STEPS - 1)]


def test_without_times_all_is_learned_at_once() -> None:
    frame = pl.DataFrame({"user_id": [*"uuuvvv"], "item_id": [*"abcabc"], "position": [*range(3)] * 2})
    data = Dataset.from_frames(frame).whole()
    assert len(in_order(data, np.ones(6, dtype=np.bool_), 7)) == 1


# ---- an update --------------------------------------------------------------------------------------------------
def test_an_update_of_several_days_is_one_after_the_other(folder: Path, tmp_path: Path) -> None:
    run, data = Run.open(folder / "run"), data_of(rows(11)).whole()
    at_once = update(run, data, tmp_path / "one", how=DAILY)
    steps = in_order(data, new_rows(run, data), 1)
    assert len(steps) > 3
    each = run
    for number, step in enumerate(steps):
        each = update(each, step.data, tmp_path / str(number), how=DAILY)
    assert same(at_once.weights_of(STAGE), each.weights_of(STAGE))
    assert at_once.record.stages[STAGE]["epochs"] == 2 * len(steps)
    others = update(run, data, tmp_path / "others", how=DAILY.model_copy(update={"step_days": None}))
    assert not same(others.weights_of(STAGE), each.weights_of(STAGE))


def test_stopped_in_a_later_step_it_goes_on_to_the_same_weights(folder: Path, tmp_path: Path) -> None:
    data = data_of(rows(11))
    unstopped = update(Run.open(folder / "run"), data, tmp_path / "whole", how=DAILY)
    run = stopping(Run.open(folder / "run"), after=3)
    with pytest.raises(Interrupted):
        update(run, data, tmp_path / "part", how=DAILY)
    left = {path.name for path in (tmp_path / "part" / "checkpoints" / STAGE / "training").iterdir()}
    assert {"step-2.safetensors", "step-3"} <= left
    assert "step-1" not in left
    again = update(run, data, tmp_path / "part", how=DAILY)
    assert same(again.weights_of(STAGE), unstopped.weights_of(STAGE))
    assert again.record.stages[STAGE]["epochs"] == unstopped.record.stages[STAGE]["epochs"]
    assert not (tmp_path / "part" / "checkpoints" / STAGE / "training").exists()


# ---- a training -------------------------------------------------------------------------------------------------
def found_in(data: Dataset, days: float = NEWEST_DAYS) -> Newest:
    newest = newest_of(data, days)
    assert newest is not None
    return newest


def test_what_is_held_out_is_never_learned() -> None:
    frame = pl.DataFrame(changing(), schema=["user_id", "item_id", "timestamp"], orient="row")
    items = catalogue(sorted(set(frame["item_id"])))
    for split in ("temporal", "leave-one-out"):
        data = Dataset.from_frames(frame, items, split=split)
        newest = found_in(data)
        training = int((data.train_end - data.offsets[:-1]).sum())
        assert newest.part.num_interactions == newest.steps(7)[-1].data.num_interactions == training
        assert newest.part.train_counts.tolist() == data.train_counts.tolist()
        assert not len(newest.part.test)


def test_negatives_are_as_the_split_has_them() -> None:
    frame = pl.DataFrame(changing(), schema=["user_id", "item_id", "timestamp"], orient="row")
    items = catalogue([*sorted(set(frame["item_id"])), "never chosen"])
    (stage,) = plan(parse_settings(SETTINGS))
    for split, known in (("temporal", True), ("leave-one-out", False)):
        newest = found_in(Dataset.from_frames(frame, items, split=split, keep_unseen_items=True))
        for data in (newest.before, *(step.data for step in newest.steps(7))):
            assert (negatives_of(stage, data) is not None) == known


@pytest.mark.parametrize("taught", [False, True])
def test_who_has_learned_the_newest_rows_chooses_no_epoch_by_them(taught: bool, tmp_path: Path) -> None:
    data = data_of(changing(), path=tmp_path / "data")
    settings = parse_settings({**SETTINGS, "rounds": 1, "teachers": [{"name": "sasrec", "dim": 8}]})
    log = ChangingLog(data, settings, {})
    stage = find(plan(settings), "distilled-round-1" if taught else STAGE)
    newest = found_in(data)
    few = newest._replace(before=replace(newest.before, valid=newest.before.valid[:5]))
    many = newest._replace(before=replace(newest.before, valid=np.arange(LEAST_TARGETS)))
    assert log.chosen_by(stage, few) is data
    assert log.chosen_by(stage, many) is (data if taught else many.before)


def test_epochs_are_chosen_by_what_came_next() -> None:
    newest = found_in(data_of(changing()))
    times, before = newest.part.event_times, newest.before
    assert times is not None
    cut = times.max() + 1 - NEWEST_DAYS * DAY
    inside = np.arange(before.num_interactions) < np.repeat(before.train_end, np.diff(before.offsets))
    assert times[inside].max() < cut <= times[~inside].min()
    assert len(before.valid) > 20
    assert cut <= times[before.valid].min()
    assert times[before.valid].max() < cut + 14 * DAY
    first = set(before.train_end.tolist())  # each user's first item behind the cut
    assert all(target in first for target in before.valid.tolist())


def test_a_training_is_one_on_what_was_there_before_and_then_updates(tmp_path: Path) -> None:
    data = data_of(changing(), path=tmp_path / "data")
    run = trained(data, tmp_path / "run")
    stage = run.record.stages[STAGE]
    assert stage["newest_days"] == NEWEST_DAYS
    newest = found_in(data)
    alone = {**SETTINGS["training"], "newest_days": None, "half_life_days": stage["half_life_days"]}
    newest.before.save(tmp_path / "before")
    each = trained(Dataset.load(tmp_path / "before"), tmp_path / "first", training=alone)
    assert each.record.stages[STAGE]["best_epoch"] == stage["best_epoch"]
    for number, step in enumerate(newest.steps(7)):
        each = update(each, step.data, tmp_path / str(number))
    assert same(run.weights_of(STAGE), each.weights_of(STAGE))
    assert run.validation_of(STAGE) > 0.1


def test_a_memory_that_teaches_has_counted_nothing_of_the_newest_rows(tmp_path: Path) -> None:
    data = data_of(changing(), path=tmp_path / "data")
    memory = Memory(content=None, recency=None, weights={"transitions": 1.0, "item_knn": 1.0})
    asked = {"rounds": 1, "distill": {"memory": True}, "memory": memory.model_dump()}
    run = trained(data, tmp_path / "run", **asked)
    before = found_in(data).before
    cache = Teachers(run, data, torch.device("cpu")).of(find(run.plan, "distilled-round-1"), before)
    assert cache is not None
    assert cache.sparse is not None
    positions = np.arange(len(cache.rank))
    for counted_on, taught in ((before, True), (data, False)):
        counted = count_memory(memory, counted_on, None)
        assert counted is not None
        items_NK, values_NK = MemoryTeacher(counted, 1.0, before).most_NK(positions)
        equal = np.array_equal(cache.sparse[0], items_NK) and np.allclose(cache.sparse[1], values_NK)
        assert equal == taught


def test_patience_does_not_end_short_passes(tmp_path: Path) -> None:
    impatient = {"model": {**SETTINGS["training"]["model"], "epochs": 6, "patience": 1, "learning_rate": 1e-9}}
    run = trained(data_of(changing(), path=tmp_path / "data"), tmp_path / "run", training=impatient)
    assert run.record.stages[STAGE]["epochs"] == 6
    alike = {**impatient, "newest_days": None}
    assert (
        trained(Dataset.load(tmp_path / "data"), tmp_path / "alike", training=alike).record.stages[STAGE]["epochs"] < 6
    )


def test_callbacks_are_called_in_every_step(tmp_path: Path) -> None:
    watching = LooksAt(lambda trainer: trainer.first_epoch)
    train(parse_settings(SETTINGS), data_of(changing()), tmp_path / "run", callbacks=[watching])
    assert list(watching.found) == [STAGE, *(f"{STAGE}, step {number} of 4" for number in range(1, 5))]


def test_stopped_among_its_newest_rows_it_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    data = data_of(changing(), path=tmp_path / "data")
    unstopped = trained(data, tmp_path / "whole")
    settings = parse_settings(SETTINGS)
    stopper = stopping(unstopped, after=3).settings.loggers
    settings = settings.model_copy(update={"loggers": stopper})
    with pytest.raises(Interrupted):
        settings.fit(data, tmp_path / "part")
    assert (tmp_path / "part" / "checkpoints" / STAGE / "training" / "newest" / "step-2").exists()
    again = settings.fit(data, tmp_path / "part")
    assert same(again.weights_of(STAGE), unstopped.weights_of(STAGE))


def test_a_refit_learns_as_many_days_last_or_none(tmp_path: Path) -> None:
    data = data_of(changing(), path=tmp_path / "data")
    run = trained(data, tmp_path / "run")
    made = refit(run, None, tmp_path / "refit")
    assert made.record.stages[STAGE]["newest_days"] == NEWEST_DAYS
    assert made.record.trained_until == max(time for _, _, time in changing())
    run.record.stages[STAGE].pop("newest_days")
    run.save()
    other = refit(Run.open(tmp_path / "run"), None, tmp_path / "other")
    assert "newest_days" not in other.record.stages[STAGE]
    assert not same(made.weights_of(STAGE), other.weights_of(STAGE))


def test_where_nothing_changes_or_little_is_older_all_is_learned_together(tmp_path: Path) -> None:
    steady = trained(data_of(changing(turn=10_000), path=tmp_path / "data"), tmp_path / "run")
    assert "newest_days" not in steady.record.stages[STAGE]
    assert newest_of(data_of(rows(8)), NEWEST_DAYS) is None
    training = {**SETTINGS["training"], "newest_days": 28}
    short = trained(data_of(rows(8), path=tmp_path / "short"), tmp_path / "of-short", training=training)
    assert "newest_days" not in short.record.stages[STAGE]


def test_days_need_times(tmp_path: Path) -> None:
    frame = pl.DataFrame({"user_id": [*"uuuuuvvvvv"], "item_id": [*"abcdeabcde"], "position": [*range(5)] * 2})
    data = Dataset.from_frames(frame)
    with pytest.raises(DataError, match=r"training\.newest_days is given, and the data set has no times"):
        trained(data, tmp_path / "run", training={**SETTINGS["training"], "newest_days": 28})
    assert not (tmp_path / "run").exists()


def test_a_probe_counts_the_steps_of_the_newest_rows() -> None:
    (stage,) = probe(parse_settings(SETTINGS), data_of(changing())).stages
    assert stage.newest > 10 * stage.step
    assert stage.seconds(0) >= stage.newest
