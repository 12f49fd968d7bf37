"""Continued histories against plain Python, the distribution they are drawn from, and whole runs that learn on them."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
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

from llmd4rec.data.batching import TrainingWindows
from llmd4rec.data.dataset import Dataset
from llmd4rec.distillation import rollouts as continued
from llmd4rec.distillation.rollouts import ContinuedHistories, continue_histories, open_continued
from llmd4rec.errors import ModelError, RunError
from llmd4rec.models.base import SequenceEncoder, last_states
from llmd4rec.models.sequential import SASRec
from llmd4rec.runs import pipeline as rounds

ITEMS = 40


def parts(histories: ContinuedHistories) -> list[list[int]]:
    return [part.tolist() for part in np.split(histories.items, histories.offsets[1:-1])]


def known(data: Dataset) -> list[list[int]]:
    ends = zip(data.offsets[:-1].tolist(), data.train_end.tolist(), strict=True)
    return [data.items[start:end].tolist() for start, end in ends]


def network(seed: int = 0, sure: float = 1.0, max_length: int = 5) -> SequenceEncoder:
    """A SASRec; `sure` multiplies its scores."""
    ranker = SASRec(dim=8, layers=1, heads=2, max_length=max_length, dropout=0.5).build(ITEMS, seed)
    with torch.no_grad():
        ranker.items.weight.mul_(sure)
    return ranker


# ---- what is drawn ----------------------------------------------------------------------------------------------
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2)), min_size=1, max_size=7), st.integers(1, 7), st.booleans()
)
@settings(max_examples=60, deadline=None)
def test_each_begins_as_the_training_part_and_goes_on_by_so_many_items(users, length, repeat):
    rng = np.random.default_rng(len(users))
    sequences = [rng.choice(ITEMS, trained + held_out + 1, replace=False) for trained, held_out in users]
    data = make_dataset(sequences, ITEMS)
    data = dataclasses.replace(data, train_end=data.offsets[:-1] + [trained for trained, _ in users])
    ranker = network().train()
    histories = continue_histories(ranker, data, length, 0, repeat=repeat)
    assert ranker.training  # left as it was
    assert histories.items.dtype == np.int32
    for before, after in zip(known(data), parts(histories), strict=True):
        assert after[: len(before)] == before
        assert len(after) == (len(before) + length if before else 0)
        assert repeat or len(set(after)) == len(after)
        assert all(0 <= item < ITEMS for item in after)
    assert histories.train_end.tolist() == histories.offsets[1:].tolist()


def test_the_next_items_are_those_the_model_expects_of_what_it_can_read():
    """A model that is sure of itself draws its first choice, which plain Python finds, window and all."""
    data = make_dataset([np.random.default_rng(n).integers(0, ITEMS, n) for n in (3, 4, 6, 9, 14, 20)], ITEMS)
    ranker = network(sure=3000).eval()
    histories = continue_histories(ranker, data, 7, 0)
    table = ranker.item_table().detach()
    for before, after in zip(known(data), parts(histories), strict=True):
        for _ in range(7):
            window = torch.tensor([before[-5:]])
            with torch.no_grad():
                scores = (last_states(ranker, window, torch.tensor([window.shape[1]])) @ table.T)[0]
            scores[before] = -torch.inf
            before = [*before, int(scores.argmax())]
        assert after == before


def test_they_are_drawn_as_often_as_the_softmax_says():
    torch.manual_seed(0)
    table = torch.randn(6, 4)
    data = make_dataset([[2, 3, 0, 0]] * 4000, 6)  # the training part is 2, 3
    drawn = np.array(parts(continue_histories(LastItemModel(table), data, 2, 0)))[:, 2:]
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


def test_the_same_seed_draws_the_same_and_another_one_other_items():
    data = random_dataset(30, ITEMS)
    a, b, c = (continue_histories(network(), data, 4, seed) for seed in (1, 1, 2))
    assert a.items.tolist() == b.items.tolist()
    assert a.fingerprint == b.fingerprint
    assert a.items.tolist() != c.items.tolist()
    assert a.is_known_as(b.fingerprint)
    assert not a.is_known_as(c.fingerprint)


def test_a_history_with_every_item_is_continued_by_some_again():
    data = make_dataset([[0, 1, 2, 0, 0]], 3)
    assert len(parts(continue_histories(LastItemModel(torch.randn(3, 2)), data, 4, 0))[0]) == 3 + 4


def test_what_is_held_out_is_not_read():
    data = random_dataset(30, ITEMS)
    items = data.items.copy()
    items[data.valid], items[data.test] = 1, 2
    altered = dataclasses.replace(data, items=items)
    assert (
        continue_histories(network(), data, 4, 0).fingerprint
        == continue_histories(network(), altered, 4, 0).fingerprint
    )


@pytest.mark.parametrize(
    ("bounds", "some"),
    [({"MOST_HISTORIES": 10}, 10), ({"MOST_SCORES": 10 * 4 * ITEMS}, 10), ({"MOST_SCORES": 1}, 1), ({}, 30)],
)
def test_of_many_histories_some_are_continued(bounds, some, monkeypatch):
    for name, value in bounds.items():
        monkeypatch.setattr(continued, name, value)
    data = make_dataset([range(6)] * 30, ITEMS)
    lengths = [len(part) for part in parts(continue_histories(network(), data, 4, 0))]
    assert Counter(lengths) == Counter({8: some, 4: 30 - some})
    assert some == 30 or lengths[:some] != [8] * some  # not just the first


def test_scores_that_are_no_numbers_are_an_error():
    ranker = LastItemModel(torch.full((ITEMS, 4), torch.nan))
    with pytest.raises(ModelError, match="not a finite number"):
        continue_histories(ranker, random_dataset(5, ITEMS), 2, 0)


# ---- on disk ----------------------------------------------------------------------------------------------------
def test_saved_and_opened_they_are_the_same(tmp_path):
    data, asked = random_dataset(9, ITEMS), {"by": "weights", "length": 3}
    histories = continue_histories(network(), data, 3, 0)
    histories.save(tmp_path / "h", asked, data)
    opened = open_continued(tmp_path / "h", asked, data)
    assert opened.fingerprint == histories.fingerprint
    assert opened.items.dtype == np.int32


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("items.npy", lambda raw: raw[:-1]),
        ("offsets.npy", lambda raw: raw[:-1] + bytes([raw[-1] ^ 1])),
        ("items.npy", None),
        ("histories.json", lambda raw: b"[]"),
        ("histories.json", lambda raw: raw[:20]),
        ("histories.json", None),
    ],
)
def test_damaged_ones_are_refused(name, how, tmp_path):
    data = random_dataset(9, ITEMS)
    continue_histories(network(), data, 3, 0).save(tmp_path / "h", {}, data)
    path = tmp_path / "h" / name
    if how is None:
        path.unlink()
    else:
        path.write_bytes(how(path.read_bytes()))
    with pytest.raises(RunError, match=r"damaged|missing|not a JSON|histories"):
        open_continued(tmp_path / "h", {}, data)


def test_others_than_those_asked_for_are_refused(tmp_path):
    data = random_dataset(9, ITEMS)
    continue_histories(network(), data, 3, 0).save(tmp_path / "h", {"length": 3}, data)
    with pytest.raises(RunError, match="other histories"):
        open_continued(tmp_path / "h", {"length": 4}, data)
    with pytest.raises(RunError, match="other data"):
        open_continued(tmp_path / "h", {"length": 3}, random_dataset(9, ITEMS, seed=1))


# ---- in a run ---------------------------------------------------------------------------------------------------
def test_both_students_of_a_round_are_taught_on_the_same_and_nobody_else(
    tiny_settings, chain_data, tmp_path, monkeypatch
):
    read: dict[str, Any] = {}
    published: list[tuple[str, int]] = []

    def watched_fit(ranker: Any, histories: Any, *rest: Any, stage: str, **more: Any) -> Any:
        read[stage] = histories
        return fit(ranker, histories, *rest, stage=stage, **more)

    def watched_publish(ranker: Any, histories: Any, folder: Path, *, label: str, **more: Any) -> None:
        publish(ranker, histories, folder, label=label, **more)
        head = json.loads((folder / "teacher.json").read_text())
        published.append((label, head["positions"]))

    fit, publish = rounds.fit, rounds.write_cache
    monkeypatch.setattr(rounds, "fit", watched_fit)
    monkeypatch.setattr(rounds, "publish", watched_publish)
    values = changed(tiny_settings, rounds=2, round_patience=2, distill__rollout_length=3)
    run = parse_settings(values).fit(chain_data, tmp_path / "run")
    assert list(read) == ["undistilled", "llm", "llm-round-1", "distilled-round-1", "llm-round-2", "distilled-round-2"]
    assert read["undistilled"] is read["llm"] is chain_data
    first, second = read["llm-round-1"], read["llm-round-2"]
    assert read["distilled-round-1"].fingerprint == first.fingerprint
    assert read["distilled-round-2"].fingerprint == second.fingerprint != first.fingerprint
    by = run.load("distilled-round-1")
    seed = rounds.derive_seed(0, "continue", "distilled-round-1")
    assert second.fingerprint == continue_histories(by, chain_data, 3, seed).fingerprint
    # One more position for the last training item, which now has something behind it, and 2 for the other drawn ones.
    more = TrainingWindows(chain_data, 6).num_positions + 3 * chain_data.num_users
    assert {count for _, count in published} == {more}
    assert not (run.folder / "histories").exists()


@pytest.mark.parametrize(
    "off", [{"distill__rollout_length": 0}, {"distill__weight__model": 0, "distill__weight__llm": 0}]
)
def test_the_log_alone_where_that_is_asked_for_and_where_nothing_is_taught(
    off, tiny_settings, chain_data, tmp_path, monkeypatch
):
    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(rounds, "continue_histories", forbidden)
    parse_settings(changed(tiny_settings, **{"distill__rollout_length": 2, **off})).fit(chain_data, tmp_path / "run")


@pytest.mark.parametrize(("seen", "repeats"), [("remove", False), ("keep", True)])
def test_items_come_again_where_they_may_be_recommended_again(
    seen, repeats, tiny_settings, chain_data, tmp_path, monkeypatch
):
    asked: list[bool] = []

    def watched(*args: Any, repeat: bool) -> ContinuedHistories:
        asked.append(repeat)
        return continue_histories(*args, repeat=repeat)

    monkeypatch.setattr(rounds, "continue_histories", watched)
    parse_settings(changed(tiny_settings, distill__rollout_length=2, evaluation={"seen": seen})).fit(
        chain_data, tmp_path / "run"
    )
    assert asked == [repeats]


def test_damaged_ones_are_drawn_anew_and_the_run_ends_the_same(tiny_settings, chain_data, tmp_path, monkeypatch):
    values = changed(tiny_settings, distill__rollout_length=3)
    whole = parse_settings(values).fit(chain_data, tmp_path / "whole")

    def stopping(*_: Any, stage: str, **__: Any) -> Any:
        if stage == "distilled-round-1":
            raise KeyboardInterrupt
        return fit(*_, stage=stage, **__)

    fit = rounds.fit
    with monkeypatch.context() as patch:
        patch.setattr(rounds, "fit", stopping)
        with pytest.raises(KeyboardInterrupt):
            parse_settings(values).fit(chain_data, tmp_path / "parts")
    (damaged,) = (tmp_path / "parts" / "histories").glob("*/items.npy")
    damaged.write_bytes(b"nothing")
    parts = parse_settings(values).fit(chain_data, tmp_path / "parts")
    for stage in ("llm-round-1", "distilled-round-1"):
        assert parts.checksum_of(stage) == whole.checksum_of(stage)
