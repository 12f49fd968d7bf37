"""Nothing held out reaches what is trained, taught, remembered or chosen.

The strongest form: whole trainings on two data sets that differ in nothing but what is held out, compared bit for bit.
A marker, an item of the catalogue that nobody has but in the held-out part, makes the difference as large as can be.
"""

from __future__ import annotations

import functools
import itertools
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from settings_of import changed, parse_settings

from llmd4rec.data.batching import TrainingWindows
from llmd4rec.data.dataset import Dataset
from llmd4rec.evaluation.metrics import Floats, RankMetric, TargetRanks
from llmd4rec.runs.run import Run
from llmd4rec.training.callbacks.base import Callback
from llmd4rec.training.trainer import Trainer

USERS, LENGTH, NAMES = 24, 8, [f"item {number}" for number in range(10)]
MARKER = "marker"
ITEMS = pl.DataFrame({"item_id": [*NAMES, MARKER], "title": [f"Thing {name}" for name in [*NAMES, MARKER]]})


def log(change: Callable[[int, int], str | None] = lambda user, at: None) -> pl.DataFrame:
    """Everybody walks up the catalogue, one step a day; `change` gives another item for a user's step."""
    rows = []
    for user in range(USERS):
        for at in range(LENGTH - user % 3):
            item = change(user, at) or NAMES[(user + at) % len(NAMES)]
            rows.append((f"user {user}", item, 86_400 * at + user))
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")


def last(behind: int) -> Callable[[int, int], str | None]:
    """The marker as the last interaction of every user (0), or as the one before (1)."""
    return lambda user, at: MARKER if at == LENGTH - user % 3 - 1 - behind else None


def prepared(frame: pl.DataFrame, **settings: Any) -> Dataset:
    return Dataset.from_frames(frame, ITEMS, keep_unseen_items=True, **settings)


def trained_items(data: Dataset) -> set[str]:
    """What any batch shows or asks for."""
    windows = TrainingWindows(data, 4)
    batch = windows.batch(np.arange(len(windows)))
    inside = np.arange(batch.items_BL.shape[1]) < batch.lengths_B.numpy()[:, None]
    return {data.item_ids[item] for item in [*batch.items_BL.numpy()[inside], *batch.target_N.tolist()]}


class Later(RankMetric):
    """The later, the better, whatever the ranks."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "_values", itertools.count(1))

    def per_user(self, ranks: TargetRanks) -> Floats:
        value = next(self.__dict__["_values"]) / 1000
        return np.full(len(ranks.num_targets_U), value)


class KeepsCaches(Callback):
    """Copies the teachers of each training: they are removed once nobody is taught by them."""

    def __init__(self, folder: Path, into: Path) -> None:
        self.folder, self.into = folder, into

    def on_start(self, trainer: Trainer) -> None:
        for path in self.folder.glob("*"):
            shutil.copytree(path, self.into / f"{trainer.stage} {path.name}")


@pytest.fixture(scope="module")
def leaves(tmp_path_factory: pytest.TempPathFactory, tiny_settings: dict[str, Any]) -> Callable[..., dict[str, Any]]:
    """Trains with an empty cache and gives everything that came of it; the same training only once.

    With `chosen=False` validation has no say in which epoch is kept, which is always the last, nor in the ensemble
    weights.
    """

    @functools.cache
    def training(fingerprint: str, chosen: bool, way: tuple[tuple[str, int], ...]) -> dict[str, Any]:
        place = tmp_path_factory.mktemp("leakage")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LLMD4REC_CACHE", str(place / "cache"))
            settings = changed(
                tiny_settings, distill__source="ensemble", distill__student_ranks="round-start",
                distill__rollout_length=3, model__item_features="id+text", llm__item_features="id+text",
                texts__encoder="llm",
                training={name: {**of, **dict(way)} for name, of in tiny_settings["training"].items()},
            )  # fmt: skip
            if not chosen:
                selection = {"name": f"{__name__}:Later", "k": 1}
                settings = changed(settings, evaluation__selection=selection, ensemble__weights="equal")
            keeps = KeepsCaches(place / "run" / "teachers", place / "caches")
            run = parse_settings(settings).fit(known[fingerprint], place / "run", callbacks=[keeps])
        return outcome(run, place)

    known: dict[str, Dataset] = {}

    def train(data: Dataset, *, chosen: bool = True, **way: int) -> dict[str, Any]:
        known[data.fingerprint] = data
        return training(data.fingerprint, chosen, tuple(way.items()))

    return train


def outcome(run: Run, place: Path) -> dict[str, Any]:
    """Weights, teachers, text vectors, the user's cache, what was logged and chosen; without times and data's name."""
    stages = {name: {**stage, "seconds": None} for name, stage in run.record.stages.items()}
    lines = [{**line, "seconds": None} for line in run.metrics()]
    kept = [*run.folder.rglob("*.safetensors"), *(place / "caches").rglob("*.npy"), *(place / "cache").rglob("*")]
    files = {str(path.relative_to(place)): path.read_bytes() for path in kept if path.is_file()}
    assert any(name.startswith("caches/") for name in files)
    assert any(name.startswith("cache/texts") for name in files)
    assert "run/text_vectors.safetensors" in files
    return {"chosen": (stages, run.record.stopped_because), "log": lines, **files}


def differing(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    return [name for name in {**a, **b} if a.get(name) != b.get(name)]


#: With the full softmax, and with candidates drawn from the catalogue as if it were large.
WAYS = pytest.mark.parametrize("way", [{}, {"full_softmax_items": 4, "num_candidates": 6}], ids=["full", "drawn"])


@WAYS
def test_test_items_leave_no_trace_in_weights_teachers_texts_or_choices(
    way: dict[str, int], leaves: Callable[..., dict[str, Any]]
) -> None:
    plain, marked = prepared(log()), prepared(log(last(0)))
    assert (plain.items != marked.items).sum() == USERS == len(marked.test)
    assert {marked.item_ids[item] for item in marked.items[marked.test]} == {MARKER}
    assert MARKER not in trained_items(marked)
    assert differing(leaves(plain, **way), leaves(marked, **way)) == []


@WAYS
def test_validation_items_choose_and_leave_no_other_trace(
    way: dict[str, int], leaves: Callable[..., dict[str, Any]]
) -> None:
    plain, marked = prepared(log()), prepared(log(last(1)))
    assert {marked.item_ids[item] for item in marked.items[marked.valid]} == {MARKER}
    assert MARKER not in trained_items(marked)
    assert differing(leaves(plain, chosen=False, **way), leaves(marked, chosen=False, **way)) == []


def test_validation_does_choose(leaves: Callable[..., dict[str, Any]]) -> None:
    """The other side of the coin: what the tests here compare does depend on what validation says."""
    assert {"chosen", "log"} <= {*differing(leaves(prepared(log())), leaves(prepared(log(last(1)))))}


def test_one_training_item_changes_everything(leaves: Callable[..., dict[str, Any]]) -> None:
    other = prepared(log(lambda user, at: MARKER if (user, at) == (0, 1) else None))
    differ = differing(leaves(prepared(log()), chosen=False), leaves(other, chosen=False))
    assert {f"run/checkpoints/{stage}/best.safetensors" for stage in ("undistilled", "llm-round-1")} <= {*differ}
    assert sum(name.startswith("caches/") for name in differ) > 4


def test_a_temporal_split_trains_on_nothing_behind_its_first_cut(leaves: Callable[..., dict[str, Any]]) -> None:
    """Not on targets, nor on what a user did behind a target in the same window."""
    split = {"split": "temporal", "valid_fraction": 0.25, "test_fraction": 0.25}
    plain = prepared(log(), **split)
    assert plain.times is not None
    cut = int(plain.times[plain.valid].min())
    marked = prepared(log(lambda user, at: MARKER if 86_400 * at + user >= cut else None), **split)
    assert (plain.items != marked.items).sum() > len(plain.valid) + len(plain.test)
    assert MARKER not in trained_items(marked)
    assert differing(leaves(plain, chosen=False), leaves(marked, chosen=False)) == []


def test_popularity_counts_the_training_part_alone() -> None:
    marked = prepared(log(lambda user, at: last(0)(user, at) or last(1)(user, at)))
    assert marked.train_counts[marked.item_index[MARKER]] == 0
    assert marked.train_counts.sum() == marked.num_interactions - 2 * USERS


# ---- where what is held out does count, as documented in `Prepare` --------------------------------------------------
def test_a_k_core_counts_held_out_interactions_too() -> None:
    """One user's last item decides whether another item has its five interactions."""
    rare = {(user, 2): "rare" for user in range(4)}
    without = prepared(log(lambda user, at: rare.get((user, at))), k_core=5)
    within = prepared(log(lambda user, at: {**rare, (5, LENGTH - 3): "rare"}.get((user, at))), k_core=5)
    assert "rare" not in trained_items(without)
    assert "rare" in trained_items(within)


def test_an_item_that_is_only_held_out_is_in_the_catalogue_and_a_candidate() -> None:
    data = Dataset.from_frames(log(last(0)))
    assert MARKER in data.item_index
    assert MARKER not in Dataset.from_frames(log()).item_index


def test_the_name_of_the_data_changes_with_every_held_out_item() -> None:
    data = prepared(log())
    for position in (*data.valid[:3], *data.test[:3]):
        items = data.items.copy()
        items[position] = (items[position] + 1) % data.num_items
        assert replace(data, items=items).fingerprint != data.fingerprint
