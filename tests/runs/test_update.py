"""An update goes on from the served model with rows that came later."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from refreshed import DAY, catalogue, data_of, rows, stopping, trained
from typer.testing import CliRunner

from llmd4rec.cli import app
from llmd4rec.data.batching import TrainingWindows
from llmd4rec.data.dataset import Dataset
from llmd4rec.errors import RunError
from llmd4rec.evaluation.validation import validation_value
from llmd4rec.features.attributes import item_attributes
from llmd4rec.features.item_features import ItemFeatures
from llmd4rec.models.embedding import ItemEmbedding
from llmd4rec.runs.memory import memory_of
from llmd4rec.runs.newest import preferences
from llmd4rec.runs.refit import refit
from llmd4rec.runs.results import score
from llmd4rec.runs.run import Run
from llmd4rec.runs.unmerged import FILE, attribute_keys, load_unmerged, save_unmerged
from llmd4rec.runs.update import Update, new_rows, update
from llmd4rec.training.runtime import Interrupted

SHORT = Update(epochs=2, learning_rate=0.01)
ITEMS = [f"i{item}" for item in range(12)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `data` of eight days and the finished `run` on it."""
    folder = tmp_path_factory.mktemp("run")
    trained(data_of(rows(8), path=folder / "data"), folder / "run")
    return folder


def opened(folder: Path) -> Run:
    return Run.open(folder / "run")


def test_it_goes_on_from_the_weights_and_learns_what_is_new(folder: Path, tmp_path: Path) -> None:
    run = opened(folder)
    # From the eighth day on the chain runs the other way.
    changed = [
        (f"u{user}", f"i{(user + 7 - day) % 12}", (8 + day) * DAY + user) for user in range(40) for day in range(6)
    ]
    data = data_of([*rows(8), *changed])
    made = update(run, data, tmp_path / "new", how=Update(epochs=12, learning_rate=0.02))
    assert validation_value(made.load(), data, filter_seen=False) > 0.1 + validation_value(
        run.load(), data, filter_seen=False
    )
    assert made.record.origin is not None
    assert made.record.origin["run"] == str((folder / "run").resolve())
    assert made.record.trained_until == max(time for _, _, time in changed)


def test_a_finished_update_is_found_and_not_made_again(folder: Path, tmp_path: Path) -> None:
    data = data_of(rows(10))
    first = update(opened(folder), data, tmp_path / "new", how=SHORT)
    before = (tmp_path / "new" / "run.json").stat().st_mtime_ns
    again = update(opened(folder), data, tmp_path / "new", how=SHORT)
    assert again.checksum_of("undistilled") == first.checksum_of("undistilled")
    assert (tmp_path / "new" / "run.json").stat().st_mtime_ns == before
    with pytest.raises(RunError, match="other weights, data or options"):
        update(opened(folder), data, tmp_path / "new", how=Update(epochs=3))


def test_updates_follow_each_other(folder: Path, tmp_path: Path) -> None:
    first = update(opened(folder), data_of(rows(9)), tmp_path / "first", how=SHORT)
    second = update(first, data_of(rows(10)), tmp_path / "second", how=SHORT)
    assert second.record.origin is not None
    assert second.record.origin["trained"] == first.checksum_of("undistilled")
    with pytest.raises(RunError, match=r"every row of .* was there already"):
        update(second, data_of(rows(9)), tmp_path / "third", how=SHORT)
    with pytest.raises(RunError, match="is an update"):
        refit(second, data_of(rows(10)), tmp_path / "third")


def test_new_items_are_known_and_gone_ones_are_kept_or_dropped(folder: Path, tmp_path: Path) -> None:
    run = opened(folder)
    log = [row for row in rows(10) if row[1] != "i3"]
    log += [(f"u{user}", "new", 11 * DAY + user) for user in range(5)]
    data = data_of(log)
    kept = update(run, data, tmp_path / "kept", how=SHORT)
    assert set(kept.catalogue()["item_id"]) == {*ITEMS, "new"}
    dropped = update(run, data, tmp_path / "dropped", how=SHORT.model_copy(update={"drop_missing": True}))
    assert set(dropped.catalogue()["item_id"]) == {*ITEMS, "new"} - {"i3"}
    for made in (kept, dropped):
        assert made.load().num_items == made.record.items == made.catalogue().height
        assert "new" in {item.item_id for item in made.recommender().recommend(["i1"], k=13).items}


def test_items_are_found_by_identifier_whatever_their_row(folder: Path, tmp_path: Path) -> None:
    """A pass too slow to change anything: a catalogue in another order, and items before and between."""
    run = opened(folder)
    names = ["a new one", *reversed(ITEMS)]
    log = [*rows(9), ("u0", "a new one", 10 * DAY)]
    made = update(run, data_of(log, names), tmp_path / "new", how=Update(epochs=1, learning_rate=1e-9, ema=0.0))
    old, new = run.load().item_table(), made.load().item_table()
    for item in ITEMS:
        row, there = made.catalogue()["item_id"].to_list().index(item), run.catalogue()["item_id"].to_list().index(item)
        assert torch.allclose(new[row], old[there], atol=1e-4), item
    # Of the new item its features are known: the row is that of its brand, not zero.
    assert new[0].abs().max().item() > 1e-3


def test_a_run_that_kept_no_features_is_updated_too(folder: Path, tmp_path: Path) -> None:
    run = trained(data_of(rows(8)), tmp_path / "run")
    (run.checkpoint_of("undistilled") / FILE).unlink()
    made = update(run, data_of([*rows(9), ("u0", "new", 10 * DAY)]), tmp_path / "new", how=SHORT)
    assert made.record.items == 13
    assert not (made.checkpoint_of("undistilled") / FILE).exists()


def test_a_distilled_model_goes_on_with_the_dropout_of_one_that_nobody_teaches(tmp_path: Path) -> None:
    """While it is taught it has none; labels alone, without any, it would learn by heart."""
    data = data_of(rows(8), path=tmp_path / "data")
    run = trained(data, tmp_path / "run", rounds=1, distill={"source": "self"})
    run.record.stages["undistilled"]["validation"] = 0.0  # or that is served
    weights = []
    for dropout in (0.0, 0.5):
        run.settings = run.settings.model_copy(
            update={"model": run.settings.model.model_copy(update={"dropout": dropout})}
        )
        made = update(run, data_of(rows(10)), tmp_path / str(dropout), how=SHORT)
        assert made.resolve() == "distilled-round-1"
        weights.append(made.weights_of("distilled-round-1")["items.weight"])
    assert not torch.allclose(weights[0], weights[1])


def test_it_can_remember_the_model_as_it_was(folder: Path, tmp_path: Path) -> None:
    """A heavy term keeps the new model near the old one."""
    run, data = opened(folder), data_of(rows(10))
    how = Update(epochs=3, learning_rate=0.02, ema=0.0)
    free = update(run, data, tmp_path / "free", how=how)
    bound = update(run, data, tmp_path / "bound", how=how.model_copy(update={"remember": 100.0}))
    before = run.load().item_table()

    def moved(made: Run) -> float:
        return (made.load().item_table() - before).abs().mean().item()

    assert moved(bound) < moved(free)
    assert not (tmp_path / "bound" / "teachers").exists()


def test_an_interrupted_update_goes_on_to_the_same_weights(folder: Path, tmp_path: Path) -> None:
    run, data = opened(folder), data_of(rows(10))
    whole = update(run, data, tmp_path / "whole", how=SHORT)
    part = update(run, data, tmp_path / "part", how=SHORT)
    part.record.stages.clear()  # as it is left where a process dies before the record is written
    part.record.finished = False
    part.save()
    again = update(run, data, tmp_path / "part", how=SHORT)
    assert again.checksum_of("undistilled") == whole.checksum_of("undistilled")


def test_stopped_within_the_training_it_goes_on_to_the_same_weights(folder: Path, tmp_path: Path) -> None:
    data, how = data_of(rows(10)), Update(epochs=3, learning_rate=0.01)
    whole = update(opened(folder), data, tmp_path / "whole", how=how)
    run = stopping(opened(folder))
    with pytest.raises(Interrupted):
        update(run, data, tmp_path / "part", how=how)
    assert (tmp_path / "part" / "checkpoints" / "undistilled" / "training" / "step-1" / "last.safetensors").exists()
    again = update(run, data, tmp_path / "part", how=how)
    assert again.checksum_of("undistilled") == whole.checksum_of("undistilled")


def test_the_memory_is_counted_anew_with_the_weights_of_the_run(tmp_path: Path) -> None:
    data = data_of(rows(8), path=tmp_path / "data")
    run = trained(data, tmp_path / "run", memory="auto")
    assert run.record.memory is not None
    newer = data_of(rows(10))
    for made in (refit(run, newer, tmp_path / "refit"), update(run, newer, tmp_path / "update", how=SHORT)):
        assert made.record.memory is not None
        assert made.record.memory["alone"] == run.record.memory["alone"]
        assert made.record.memory["beside"] == run.record.memory["beside"]
        memory, _ = memory_of(made)
        assert memory.as_of == max(time for _, _, time in rows(10)) + 1


def test_its_own_data_are_no_test(folder: Path, tmp_path: Path) -> None:
    data = data_of(rows(10), path=tmp_path / "data")
    made = update(opened(folder), data, tmp_path / "new", how=SHORT)
    with pytest.raises(RunError, match="nothing is held out"):
        score(made, data, other_data=True)
    assert score(made, data_of(rows(12)), other_data=True).users


def test_what_is_wrong_is_said_before_anything_is_trained(folder: Path, tmp_path: Path) -> None:
    run = opened(folder)
    strangers = [(user, f"x{item}", time) for user, item, time in rows(10)]
    with pytest.raises(RunError, match=r"no item of .* is known"):
        update(run, data_of(strangers), tmp_path / "new")
    with pytest.raises(RunError, match=r"every row of .* was there already"):
        update(run, data_of(rows(5)), tmp_path / "new")
    unfinished = opened(folder)
    unfinished.record.finished = False
    with pytest.raises(RunError, match="not finished"):
        update(unfinished, data_of(rows(10)), tmp_path / "new")
    with pytest.raises(RunError, match="holds a run of its own"):
        update(run, data_of(rows(10)), folder / "run")
    assert not (tmp_path / "new").exists()


def test_rows_behind_a_moment_are_new(folder: Path) -> None:
    run = opened(folder)
    data = data_of(rows(10))
    assert data.times is not None
    assert run.record.trained_until is not None
    expected = data.times > run.record.trained_until
    assert new_rows(run, data).tolist() == expected.tolist()
    run.record.trained_until = None  # a run of before it was written down: its own data tell
    assert new_rows(run, data).tolist() == expected.tolist()


def test_what_came_in_late_is_new_and_so_is_the_rest_of_the_last_moment(folder: Path, tmp_path: Path) -> None:
    """Times of whole days: half of the last day had been there when the log was refitted."""
    days = [(user, item, time // DAY * DAY) for user, item, time in rows(20)]
    last = max(time for _, _, time in days)
    morning = [row for row in days if row[2] < last or int(row[0][1:]) % 2]
    data_of(morning, path=tmp_path / "data")
    run = refit(trained(Dataset.load(tmp_path / "data"), tmp_path / "run"), None, tmp_path / "all")
    evening = data_of(days)
    new = new_rows(run, evening)
    assert new.sum() == len(days) - len(morning) > 0
    assert evening.event_times is not None
    assert (evening.event_times[new] == last).all()
    late = ("u3", "i11", days[0][2])
    found = new_rows(run, with_late := data_of([*morning, late]))
    assert found.sum() == 1
    assert with_late.user_ids[int(with_late.users_of(np.flatnonzero(found))[0])] == "u3"
    shutil.rmtree(tmp_path / "data")  # then times alone tell
    assert not new_rows(run, evening).any()


def test_a_run_at_the_end_of_updates_names_the_one_that_held_something_out(folder: Path, tmp_path: Path) -> None:
    first = update(opened(folder), data_of(rows(9)), tmp_path / "first", how=SHORT)
    data_of(rows(10), path=tmp_path / "data")
    second = update(first, Dataset.load(tmp_path / "data"), tmp_path / "second", how=SHORT)
    with pytest.raises(RunError) as refused:
        score(second, Dataset.load(tmp_path / "data"))
    assert f"Evaluate {(folder / 'run').resolve()}" in refused.value.remedy


def test_what_leave_one_out_held_out_is_new_however_old(tmp_path: Path) -> None:
    """Each user comes a hundred days after the one before, so that nearly all that is held out is older than the last
    row that was trained on."""

    def of(days: int) -> Dataset:
        log = [(user, item, time + 100 * DAY * int(user[1:])) for user, item, time in rows(days)]
        return Dataset.from_frames(pl.DataFrame(log, schema=["user_id", "item_id", "timestamp"], orient="row"))

    of(8).save(tmp_path / "data")
    run, newer = trained(Dataset.load(tmp_path / "data"), tmp_path / "run"), of(10)
    new = new_rows(run, newer).reshape(40, 10)
    assert new.tolist() == [[False] * 6 + [True] * 4] * 40
    shutil.rmtree(tmp_path / "data")  # then times alone tell
    assert new_rows(run, newer).sum() == 4
    everything = refit(run, of(8), tmp_path / "all")
    assert new_rows(everything, newer).sum() == 2


def test_without_times_a_users_further_rows_are_new(tmp_path: Path) -> None:
    def of(length: int) -> Dataset:
        log = [(f"u{user}", f"i{(user + step) % 12}", step) for user in range(30) for step in range(length)]
        frame = pl.DataFrame(log, schema=["user_id", "item_id", "position"], orient="row")
        return Dataset.from_frames(frame, catalogue(ITEMS))

    of(6).save(tmp_path / "data")
    run = trained(Dataset.load(tmp_path / "data"), tmp_path / "run")
    found = new_rows(run, of(8)).reshape(30, 8)
    assert found.tolist() == [[False] * 4 + [True] * 4] * 30  # two of six were held out
    everything = refit(run, Dataset.load(tmp_path / "data"), tmp_path / "all")
    assert new_rows(everything, of(8)).sum() == 30 * 2, "a refit has held nothing out"


def test_new_rows_are_always_taken_and_older_ones_by_their_age() -> None:
    data = data_of(rows(7, users=200)).whole()
    assert data.times is not None
    wanted = preferences(data, data.times >= 6 * DAY, half_life_days=1.0)
    windows = TrainingWindows(data, 4, preference=wanted)
    taken = np.zeros(7)
    trained_on = set()
    for epoch in range(20):
        for chosen in windows.shuffled(50, np.random.default_rng(epoch), limit=400):
            batch = windows.batch(chosen)
            assert len(batch.target_N)
            day = 1 + batch.position_N.numpy() % 6  # six of seven days are targets
            taken += np.bincount(day, minlength=7)
            trained_on |= set(batch.position_N.tolist())
    assert taken[6] == 20 * 200
    assert abs(taken[1:6].sum() / 20 - 200) < 20
    # Half as often for each day of age: of 200 a day 2 ** -age, scaled to 200 together.
    shares = np.exp2(np.arange(1, 6) - 6.0)
    assert np.allclose(taken[1:6] / 20, 200 * shares / shares.sum(), rtol=0.25, atol=2)
    assert len(trained_on) > 0.75 * windows.num_positions  # drawn anew in each epoch


def test_attributes_are_found_again_in_another_catalogue(tmp_path: Path) -> None:
    def features(items: list[str]) -> tuple[ItemFeatures, Dataset]:
        log = [(f"u{user}", item, step) for user in range(2) for step, item in enumerate(items)]
        data = data_of(log, items)
        return ItemFeatures(attributes=item_attributes(data)), data

    (old, before), (new, after) = features(ITEMS), features(["y", *reversed(ITEMS), "z"])
    assert old.attributes is not None
    assert new.attributes is not None
    first = ItemEmbedding(12, 4)
    first.attach(old, 0)
    assert first.of_attributes is not None
    with torch.no_grad():
        first.of_attributes.normal_(generator=torch.Generator().manual_seed(1))
    save_unmerged(tmp_path / "kept", first, old, before.item_ids)
    second = ItemEmbedding(14, 4)
    second.attach(new, 0)
    rows_of = np.array([before.item_index.get(item, -1) for item in after.item_ids])
    load_unmerged(tmp_path / "kept", second, new, after.item_ids, rows_of)
    assert second.of_attributes is not None
    found = dict(
        zip(
            attribute_keys(new.attributes, after.item_ids, np.flatnonzero(rows_of >= 0)),
            second.of_attributes,
            strict=True,
        )
    )
    for key, row in zip(attribute_keys(old.attributes, before.item_ids), first.of_attributes, strict=True):
        assert torch.equal(found[key], row)
    assert torch.equal(second.weight[torch.from_numpy(rows_of >= 0)], first.weight[rows_of[rows_of >= 0]])
    assert not second.weight[torch.from_numpy(rows_of < 0)].any()


def test_the_command(folder: Path, tmp_path: Path) -> None:
    data_of(rows(10), path=tmp_path / "data")
    arguments = ["update", str(folder / "run"), "--data", str(tmp_path / "data"), "--out", str(tmp_path / "new")]
    result = CliRunner().invoke(app, [*arguments, "--epochs", "2", "--replay", "0.5"])
    assert result.exit_code == 0, result.output
    made = Run.open(tmp_path / "new")
    assert made.record.origin is not None
    assert made.record.origin["how"]["replay"] == 0.5


def test_help_names_the_defaults() -> None:
    shown = " ".join(CliRunner().invoke(app, ["update", "--help"], env={"COLUMNS": "300"}).output.split())
    usual = Update()
    for value in (usual.epochs, usual.replay, f"{usual.half_life_days:g}", usual.learning_rate, f"{usual.remember:g}"):
        assert f"[default: {value}]" in shown
