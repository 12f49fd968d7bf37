"""Rollouts against plain Python, the distribution they are drawn from, and whole runs that learn on them."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluation.examples import LastItemModel, make_dataset, random_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from settings_of import changed, parse_settings
from whole_runs import LooksAt, StopsBefore

from llmd4rec.data.batching import SequenceBatch, TrainingWindows
from llmd4rec.data.dataset import Dataset
from llmd4rec.distillation.plan import plan
from llmd4rec.distillation.rollouts import Rollouts, draw_rollouts, open_rollouts
from llmd4rec.errors import ModelError, RunError
from llmd4rec.models.base import SequenceEncoder, last_states
from llmd4rec.models.sequential import SASRec
from llmd4rec.training.runtime import derive_seed
from llmd4rec.training.trainer import Trainer

ITEMS = 40


def parts(histories: Rollouts) -> list[list[int]]:
    return [part.tolist() for part in np.split(histories.items, histories.offsets[1:-1])]


def known(data: Dataset) -> list[list[int]]:
    ends = zip(data.offsets[:-1].tolist(), data.train_end.tolist(), strict=True)
    return [data.items[start:end].tolist() for start, end in ends]


def network(seed: int = 0, sure: float = 1.0, max_length: int = 5) -> SequenceEncoder:
    """A SASRec; `sure` multiplies its scores."""
    model = SASRec(dim=8, layers=1, heads=2, max_length=max_length, dropout=0.5).build(ITEMS, seed)
    with torch.no_grad():
        model.items.weight.mul_(sure)
    return model


# ---- what is drawn ----------------------------------------------------------------------------------------------
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2)), min_size=1, max_size=7), st.integers(1, 7), st.booleans()
)
@settings(max_examples=60, deadline=None)
def test_each_begins_as_the_training_part_and_goes_on_by_so_many_items(
    users: list[tuple[int, int]], length: int, repeat: bool
) -> None:
    rng = np.random.default_rng(len(users))
    sequences = [rng.choice(ITEMS, trained + held_out + 1, replace=False) for trained, held_out in users]
    data = make_dataset(sequences, ITEMS)
    data = dataclasses.replace(data, train_end=data.offsets[:-1] + np.array([trained for trained, _ in users]))
    model = network().train()
    histories = draw_rollouts(model, data, length, 0, repeat=repeat)
    assert model.training  # left as it was
    assert histories.items.dtype == np.int32
    for before, after in zip(known(data), parts(histories), strict=True):
        assert after[: len(before)] == before
        assert len(after) == (len(before) + length if before else 0)
        assert repeat or len(set(after)) == len(after)
        assert all(0 <= item < ITEMS for item in after)
    assert histories.train_end.tolist() == histories.offsets[1:].tolist()


def test_the_next_items_are_those_the_model_expects_of_what_it_can_read() -> None:
    """A model that is sure of itself draws its first choice, which plain Python finds, window and all."""
    data = make_dataset([np.random.default_rng(n).integers(0, ITEMS, n) for n in (3, 4, 6, 9, 14, 20)], ITEMS)
    model = network(sure=3000).eval()
    histories = draw_rollouts(model, data, 7, 0)
    table = model.item_table().detach()
    for before, after in zip(known(data), parts(histories), strict=True):
        for _ in range(7):
            window = torch.tensor([before[-5:]])
            with torch.no_grad():
                scores = (last_states(model, SequenceBatch(window, torch.tensor([window.shape[1]]))) @ table.T)[0]
            scores[before] = -torch.inf
            before = [*before, int(scores.argmax())]
        assert after == before


def test_they_are_drawn_as_often_as_the_softmax_says() -> None:
    torch.manual_seed(0)
    table = torch.randn(6, 4)
    data = make_dataset([[2, 3, 0, 0]] * 4000, 6)  # the training part is 2, 3
    drawn = np.array(parts(draw_rollouts(LastItemModel(table), data, 2, 0)))[:, 2:]
    first = (table @ table[3]).exp()
    first[[2, 3]] = 0
    expected = (first / first.sum()).double().numpy()
    counts = np.bincount(drawn[:, 0], minlength=6)
    assert counts[[2, 3]].tolist() == [0, 0]
    others = [0, 1, 4, 5]
    assert chisquare(counts[others], expected[others] / expected[others].sum() * 4000).pvalue > 1e-4
    likely = int(counts.argmax())  # and behind it, by the row of what was drawn
    second = (table @ table[likely]).exp()
    second[[2, 3, likely]] = 0
    rest = [item for item in others if item != likely]
    pairs = np.bincount(drawn[drawn[:, 0] == likely, 1], minlength=6)[rest]
    wanted = second[rest].double().numpy()
    assert chisquare(pairs, wanted / wanted.sum() * pairs.sum()).pvalue > 1e-4


def test_the_same_seed_draws_the_same_and_another_one_other_items() -> None:
    data = random_dataset(30, ITEMS)
    a, b, c = (draw_rollouts(network(), data, 4, seed) for seed in (1, 1, 2))
    assert a.items.tolist() == b.items.tolist()
    assert a.fingerprint == b.fingerprint
    assert a.items.tolist() != c.items.tolist()
    assert a.is_known_as(b.fingerprint)
    assert not a.is_known_as(c.fingerprint)


def test_a_history_with_every_item_is_continued_by_some_again() -> None:
    data = make_dataset([[0, 1, 2, 0, 0]], 3)
    assert len(parts(draw_rollouts(LastItemModel(torch.randn(3, 2)), data, 4, 0))[0]) == 3 + 4


def test_what_is_held_out_is_not_read() -> None:
    data = random_dataset(30, ITEMS)
    items = data.items.copy()
    items[data.valid], items[data.test] = 1, 2
    altered = dataclasses.replace(data, items=items)
    assert draw_rollouts(network(), data, 4, 0).fingerprint == draw_rollouts(network(), altered, 4, 0).fingerprint


@pytest.mark.parametrize(
    ("bounds", "some"),
    [({"max_histories": 10}, 10), ({"max_scores": 10 * 4 * ITEMS}, 10), ({"max_scores": 1}, 1), ({}, 30)],
)
def test_of_many_histories_some_are_continued(bounds: dict[str, Any], some: int) -> None:
    data = make_dataset([range(6)] * 30, ITEMS)
    lengths = [len(part) for part in parts(draw_rollouts(network(), data, 4, 0, **bounds))]
    assert Counter(lengths) == Counter({8: some, 4: 30 - some})
    assert some == 30 or lengths[:some] != [8] * some  # not just the first


def test_scores_that_are_no_numbers_are_an_error() -> None:
    model = LastItemModel(torch.full((ITEMS, 4), torch.nan))
    with pytest.raises(ModelError, match="not a finite number"):
        draw_rollouts(model, random_dataset(5, ITEMS), 2, 0)


# ---- on disk ----------------------------------------------------------------------------------------------------
def test_saved_and_opened_they_are_the_same(tmp_path: Path) -> None:
    data, asked = random_dataset(9, ITEMS), {"by": "weights", "length": 3}
    histories = draw_rollouts(network(), data, 3, 0)
    histories.save(tmp_path / "h", asked, data)
    opened = open_rollouts(tmp_path / "h", asked, data)
    assert opened.fingerprint == histories.fingerprint
    assert opened.items.dtype == np.int32


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("items.npy", lambda raw: raw[:-1]),
        ("offsets.npy", lambda raw: raw[:-1] + bytes([raw[-1] ^ 1])),
        ("items.npy", None),
        ("rollouts.json", lambda raw: b"[]"),
        ("rollouts.json", lambda raw: raw[:20]),
        ("rollouts.json", None),
    ],
)
def test_damaged_ones_are_refused(name: str, how: Callable[[bytes], bytes] | None, tmp_path: Path) -> None:
    data = random_dataset(9, ITEMS)
    draw_rollouts(network(), data, 3, 0).save(tmp_path / "h", {}, data)
    path = tmp_path / "h" / name
    if how is None:
        path.unlink()
    else:
        path.write_bytes(how(path.read_bytes()))
    with pytest.raises(RunError, match=r"damaged|missing|not a JSON|rollouts"):
        open_rollouts(tmp_path / "h", {}, data)


def test_others_than_those_asked_for_are_refused(tmp_path: Path) -> None:
    data = random_dataset(9, ITEMS)
    draw_rollouts(network(), data, 3, 0).save(tmp_path / "h", {"length": 3}, data)
    with pytest.raises(RunError, match="rollouts of other settings"):
        open_rollouts(tmp_path / "h", {"length": 4}, data)
    with pytest.raises(RunError, match="other data"):
        open_rollouts(tmp_path / "h", {"length": 3}, random_dataset(9, ITEMS, seed=1))


# ---- in a run ---------------------------------------------------------------------------------------------------
def test_both_students_of_a_round_are_taught_on_the_same_and_nobody_else(
    tiny_settings: dict[str, Any], chain_data: Dataset, tmp_path: Path
) -> None:
    def targets(trainer: Trainer) -> list[int]:
        """What is trained; its teachers were cached for the same positions."""
        for head in (tmp_path / "run").glob("teachers/*/teacher.json"):
            assert json.loads(head.read_text())["positions"] == trainer.windows.num_positions
        found: list[int] = trainer.windows.targets().tolist()
        return found

    at_start = LooksAt(targets)
    values = changed(tiny_settings, rounds=2, round_patience=2, distill__rollout_length=3)
    run = parse_settings(values).fit(chain_data, tmp_path / "run", callbacks=[at_start])
    read = at_start.found
    assert list(read) == ["undistilled", "llm", "llm-round-1", "distilled-round-1", "llm-round-2", "distilled-round-2"]
    log = TrainingWindows(chain_data, 6)
    assert read["undistilled"] == read["llm"] == log.targets().tolist()
    assert read["distilled-round-1"] == read["llm-round-1"]
    assert read["distilled-round-2"] == read["llm-round-2"] != read["llm-round-1"]
    by = run.stage("distilled-round-1")
    drawn = draw_rollouts(run.load(by.id), chain_data, 3, derive_seed(0, "continue", by.seed_key))
    assert read["llm-round-2"] == TrainingWindows(drawn, 6).targets().tolist()
    # One more position for the last training item, which now has something behind it, and 2 for the other drawn ones.
    assert len(read["llm-round-1"]) == log.num_positions + 3 * chain_data.num_users
    assert not (run.folder / "rollouts").exists()


@pytest.mark.parametrize(
    "off", [{"distill__rollout_length": 0}, {"distill__weight__model": 0, "distill__weight__llm": 0}]
)
def test_the_log_alone_where_that_is_asked_for_and_where_nothing_is_taught(
    off: dict[str, Any], tiny_settings: dict[str, Any]
) -> None:
    usual = changed(tiny_settings, distill__rollout_length=2)
    assert any(stage.rollouts_by for stage in plan(parse_settings(usual)))
    assert not any(stage.rollouts_by for stage in plan(parse_settings(changed(usual, **off))))


@pytest.mark.parametrize("filter_seen", [True, False])
def test_items_come_again_where_they_may_be_recommended_again(
    filter_seen: bool, tiny_settings: dict[str, Any], chain_data: Dataset, tmp_path: Path
) -> None:
    at_start = LooksAt(lambda trainer: trainer.windows.targets().tolist())
    values = changed(tiny_settings, distill__rollout_length=2, evaluation__filter_seen=filter_seen)
    run = parse_settings(values).fit(chain_data, tmp_path / "run", callbacks=[at_start])
    by = run.stage("undistilled")
    drawn = {
        repeat: draw_rollouts(run.load(by.id), chain_data, 2, derive_seed(0, "continue", by.seed_key), repeat=repeat)
        for repeat in (True, False)
    }
    trained = {repeat: TrainingWindows(histories, 6).targets().tolist() for repeat, histories in drawn.items()}
    assert trained[True] != trained[False]
    assert at_start.found["distilled-round-1"] == trained[not filter_seen]


def test_damaged_ones_are_drawn_anew_and_the_run_ends_the_same(
    tiny_settings: dict[str, Any], chain_data: Dataset, tmp_path: Path
) -> None:
    settings = parse_settings(changed(tiny_settings, distill__rollout_length=3))
    whole = settings.fit(chain_data, tmp_path / "whole")

    with pytest.raises(KeyboardInterrupt):
        settings.fit(chain_data, tmp_path / "parts", callbacks=[StopsBefore("distilled-round-1")])
    (damaged,) = (tmp_path / "parts" / "rollouts").glob("*/items.npy")
    damaged.write_bytes(b"nothing")
    parts = settings.fit(chain_data, tmp_path / "parts")
    for stage in ("llm-round-1", "distilled-round-1"):
        assert parts.checksum_of(stage) == whole.checksum_of(stage)
