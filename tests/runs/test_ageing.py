"""Newer interactions are trained on more often, where a log changes with time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from refreshed import DAY, SETTINGS, catalogue, data_of, rows, trained
from settings_of import parse_settings

from llmd4rec.data.dataset import Dataset
from llmd4rec.distillation.settings import Trainings
from llmd4rec.errors import ConfigError, DataError
from llmd4rec.runs.ageing import HALF_LIFE_DAYS, LEAST_SHARE, OLD, by_age, drift
from llmd4rec.runs.probe import probe
from llmd4rec.runs.refit import refit
from llmd4rec.runs.run import Run

ITEMS = 30


def changing(users: int = 400, turn: int = 440, every: int = 10, stretch: int = 1) -> list[tuple[str, str, int]]:
    """Each day and a half a user begins, with a step each ten days: item i is followed by i + 1, and from a day on by
    i + 7. Nobody comes back to an item, so that none is filtered."""
    log = []
    for user in range(users):
        item = user
        for step in range(5):
            day = user * 3 // 2 + step * every
            log.append((f"u{user}", f"i{item % ITEMS}", stretch * day * DAY + user))
            item += 1 if day < turn else 7
    return log


def test_what_a_pass_takes_by_hand() -> None:
    ages = [400, 20, 10, 0]  # of one user: the first is no target
    log = [("u", f"i{place}", (400 - age) * DAY) for place, age in enumerate(ages)]
    log += [("v", "i0", 390 * DAY), ("v", "i1", 400 * DAY), ("v", "i2", 500 * DAY), ("v", "i3", 600 * DAY)]
    data = data_of(log).until(401 * DAY)
    found = by_age(data, 10.0)
    assert data.event_times is not None
    users, times = _users(data), data.event_times.tolist()
    place = {(user, when): at for at, (user, when) in enumerate(zip(users, times, strict=True))}
    assert [found.preference[place["u", (400 - age) * DAY]] for age in (20, 10, 0)] == pytest.approx([0.25, 0.5, 1])
    assert found.preference[place["v", 400 * DAY]] == 1
    assert found.positions == round(0.25 + 0.5 + 1 + 1)
    old = by_age(data, 1.0)
    assert old.preference[place["u", 380 * DAY]] == OLD


def _users(data: Dataset) -> list[str]:
    return [data.user_ids[int(user)] for user in np.repeat(np.arange(data.num_users), np.diff(data.offsets))]


def test_counts_tell_whether_a_log_changes() -> None:
    found = drift(data_of(changing()))
    assert found.aged > found.plain + 0.2
    assert found.half_life_days == HALF_LIFE_DAYS
    same = drift(data_of(changing(turn=10_000)))
    assert same.half_life_days is None


def test_targets_of_leave_one_out_are_of_all_times() -> None:
    frame = pl.DataFrame(changing(), schema=["user_id", "item_id", "timestamp"], orient="row")
    data = Dataset.from_frames(frame, catalogue(sorted(set(frame["item_id"]))), split="leave-one-out")
    assert drift(data).half_life_days is None


def test_where_little_is_new_the_half_life_is_longer() -> None:
    data = data_of(changing(stretch=20))
    found = drift(data)
    assert found.half_life_days is not None
    assert found.half_life_days > HALF_LIFE_DAYS
    within = data.train_end - data.offsets[:-1] - 1
    positions = int(within.sum())
    assert by_age(data, found.half_life_days).positions >= LEAST_SHARE * positions
    assert by_age(data, found.half_life_days / 2).positions < LEAST_SHARE * positions


def test_a_model_learns_what_is_so_now(tmp_path: Path) -> None:
    data = data_of(changing(), path=tmp_path / "data")
    training = {**SETTINGS["training"]["model"], "epochs": 20, "patience": 20, "batch": 256}
    newer = trained(data, tmp_path / "newer", training={"model": training, "half_life_days": 60, "newest_days": None})
    alike = trained(data, tmp_path / "alike", training={"model": training, "half_life_days": None})
    assert newer.record.stages["undistilled"]["half_life_days"] == 60
    assert "half_life_days" not in alike.record.stages["undistilled"]
    # The same epochs on fewer positions, and better.
    assert newer.validation_of("undistilled") > alike.validation_of("undistilled") + 0.05


def test_a_refit_keeps_the_half_life_that_was_chosen(tmp_path: Path) -> None:
    data = data_of(changing(), path=tmp_path / "data")
    run = trained(data, tmp_path / "run")
    made = refit(run, None, tmp_path / "refit")
    assert made.record.stages["undistilled"]["half_life_days"] == HALF_LIFE_DAYS
    log = pl.DataFrame(changing(), schema=["user_id", "item_id", "timestamp"], orient="row")
    timeless = Dataset.from_frames(log.drop("timestamp"), data.catalogue)
    with pytest.raises(DataError, match="trained by age"):
        refit(run, timeless, tmp_path / "timeless")
    assert not (tmp_path / "timeless").exists()
    for name in ("half_life_days", "newest_days"):  # as of a log that does not change
        run.record.stages["undistilled"].pop(name)
    run.save()
    made = refit(Run.open(tmp_path / "run"), None, tmp_path / "again")
    assert "half_life_days" not in made.record.stages["undistilled"]


def test_a_probe_counts_the_steps_of_such_a_pass() -> None:
    data = data_of(changing())
    training = {**SETTINGS["training"]["model"], "min_steps": 1}
    steps = {
        half_life: probe(
            parse_settings({**SETTINGS, "training": {"model": training, "half_life_days": half_life}}), data
        )
        .stages[0]
        .steps
        for half_life in ("auto", None)
    }
    assert steps["auto"] < 0.5 * steps[None]


def test_a_half_life_needs_times_and_days() -> None:
    log = pl.DataFrame(rows(8), schema=["user_id", "item_id", "timestamp"], orient="row")
    untimed = log.sort("timestamp").with_columns(position=pl.int_range(pl.len()).over("user_id")).drop("timestamp")
    data = Dataset.from_frames(untimed, catalogue(sorted(set(log["item_id"]))), split="leave-one-out")
    with pytest.raises(DataError, match="half_life_days is given, and the data set has no times"):
        trained(data, Path("unused"), training={**SETTINGS["training"], "half_life_days": 30})
    with pytest.raises(ConfigError, match="half_life_days"):
        parse_settings({**SETTINGS, "training": {"half_life_days": 0}})


@pytest.mark.parametrize("value", [0, -3, True, float("inf"), float("nan"), "abc"])
def test_a_half_life_that_is_none_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="half_life_days"):
        Trainings.model_validate({"half_life_days": value})
    assert Trainings.model_validate({"half_life_days": 30}).half_life_days == 30
