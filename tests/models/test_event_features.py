"""Event features: read from log to exported graph, learned where they have an effect, and never from the future."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from evaluation.examples import make_dataset, random_dataset
from settings_of import parse_settings
from torch import Tensor, nn

from llmd4rec.data.arrays import NO_TIME, known_times
from llmd4rec.data.batching import SequenceBatch, TrainingWindows, read_histories
from llmd4rec.data.dataset import Dataset
from llmd4rec.distillation.cache import write_cache
from llmd4rec.distillation.rollouts import draw_rollouts
from llmd4rec.errors import ConfigError, DataError
from llmd4rec.export.graphs import check_parity, write_encoder
from llmd4rec.export.write import export_run
from llmd4rec.features.event_features import EventFeature
from llmd4rec.features.time_gaps import TimeGaps
from llmd4rec.inference.encoder import HistoryBatch, OnnxEncoder, encode
from llmd4rec.inference.from_model import ModelEncoder
from llmd4rec.models.base import last_states
from llmd4rec.models.ensemble import Ensemble
from llmd4rec.models.events import require_event_features
from llmd4rec.models.sequential import MODELS

ITEMS, HOUR = 24, 3600
NAMES = ["sasrec", "bsarec", "ligr", "gru4rec"]


class Hour(EventFeature):
    """The hour in which the next item is chosen; of a module outside the package."""

    reads: ClassVar[tuple[str, ...]] = ("target_times",)

    def build(self, dim: int) -> nn.Module:
        return HourEmbedding(24, dim)


class HourEmbedding(nn.Module):
    def __init__(self, hours: int, dim: int) -> None:
        super().__init__()
        self.hours = nn.Embedding(hours, dim)

    def forward(self, batch: SequenceBatch) -> Tensor:
        vectors: Tensor = self.hours(batch.target_times_BL // HOUR % 24)
        return vectors


def network(name: str = "sasrec", features: list[EventFeature] | None = None, seed: int = 0) -> Any:
    """A small network; its features' vectors are large enough to be seen in the states."""
    settings = {
        "name": name,
        "dim": 8,
        "max_length": 6,
        "event_features": [TimeGaps()] if features is None else features,
    }
    model: Any = MODELS.validate(settings).build(ITEMS, seed).eval()
    with torch.no_grad():
        for parameter in model.events.parameters():
            parameter.mul_(50)
    return model


def timed(users: int = 30, seed: int = 0) -> Dataset:
    """Random items at random times."""
    data = random_dataset(users, ITEMS, seed)
    gaps = np.random.default_rng(seed).integers(1, 1_000_000, len(data.items))
    return dataclasses.replace(data, times=1_600_000_000 + np.cumsum(gaps))


def batch_of(items_BL: Tensor, times_BT: Tensor) -> SequenceBatch:
    """Events at all times but the last, which is the time of the request."""
    lengths = torch.full((len(items_BL),), items_BL.shape[1])
    inputs = {"times": times_BT[:, :-1], "target_times": times_BT[:, 1:]}
    return SequenceBatch(items_BL, lengths, inputs)


# ---- what is read -------------------------------------------------------------------------------------------------
def test_windows_carry_the_times_of_their_events_and_of_their_targets() -> None:
    data = timed()
    assert data.times is not None
    windows = TrainingWindows(data, 5, ("target_times", "times"))
    batch = windows.batch(np.arange(len(windows)))
    assert list(batch.inputs) == ["target_times", "times"]
    times, targets = (tensor.flatten()[batch.trained_N].tolist() for tensor in (batch.times_BL, batch.target_times_BL))
    expected = {}
    number = 0
    for start, end in zip(data.offsets[:-1], data.train_end, strict=True):
        for position in range(start, end - 1):
            expected[number] = (data.times[position], data.times[position + 1])
            number += 1
    assert dict(zip(batch.position_N.tolist(), zip(times, targets, strict=True), strict=True)) == expected


def test_a_model_that_declares_nothing_is_given_nothing() -> None:
    assert network(features=[]).reads == ()
    assert TrainingWindows(timed(), 5).batch(np.arange(3)).inputs == {}


def test_the_last_event_before_a_held_out_item_is_told_when_that_was_chosen() -> None:
    data = timed()
    assert data.times is not None
    ends, starts = data.test, data.offsets[data.users_of(data.test)]
    batch = read_histories(data, starts, ends, 4, ("times", "target_times"))
    rows = torch.arange(len(ends))
    assert batch.target_times_BL[rows, batch.lengths_B - 1].tolist() == data.times[ends].tolist()
    assert batch.times_BL[rows, batch.lengths_B - 1].tolist() == data.times[ends - 1].tolist()


def test_unknown_times_are_those_of_the_event_before() -> None:
    times = np.array([NO_TIME, 5, NO_TIME, 9, NO_TIME, 30, NO_TIME, NO_TIME])
    offsets = np.array([0, 4, 6, 8])
    filled = known_times(times, offsets)
    assert filled is not None
    assert filled.tolist() == [5, 5, 5, 9, 30, 30, 9, 9]  # the third has none: the median
    assert known_times(np.full(3, NO_TIME), np.array([0, 3])) is None
    whole = np.arange(3)
    assert known_times(whole, np.array([0, 3])) is whole


@pytest.mark.parametrize("times", [None, [[NO_TIME] * 5] * 3])
def test_data_without_times_are_refused_before_training(
    times: list[list[int]] | None, tmp_path: Path, tiny_settings: dict[str, Any]
) -> None:
    data = make_dataset([[0, 1, 2, 3, 4]] * 3, 5, times)
    values = tiny_settings | {"model": tiny_settings["model"] | {"event_features": ["time_gaps"]}}
    with pytest.raises(DataError, match="the event feature time_gaps reads times, and the data set has no times"):
        parse_settings(values).fit(data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_name_that_no_data_set_has_is_refused() -> None:
    with pytest.raises(ConfigError, match="reads 'weather', which no data set has"):
        TrainingWindows(timed(), 5, ("weather",))


def test_a_network_that_would_not_read_them_is_refused() -> None:
    with pytest.raises(ConfigError, match="reads no event features"):
        require_event_features(network(features=[]), [TimeGaps()])


# ---- in the networks ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NAMES)
def test_a_state_depends_on_its_target_time_and_on_no_later_time(name: str) -> None:
    model = network(name)
    assert model.reads == ("times", "target_times")
    items = torch.randint(ITEMS, (3, 6), generator=torch.Generator().manual_seed(0))
    times = 1_600_000_000 + torch.cumsum(torch.full((3, 7), 100), 1)
    with torch.no_grad():
        before = model.states(batch_of(items, times))
        for place in range(7):
            changed = times.clone()
            changed[:, place:] += 40_000_000
            moved = (model.states(batch_of(items, changed)) - before).abs().amax(-1)
            assert (moved[:, : max(place - 1, 0)] == 0).all()
            if place:  # what moves all times alike moves no gap
                assert (moved[:, place - 1] > 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_other_initial_values_are_those_of_a_network_without(name: str) -> None:
    plain, timed_one = network(name, []).state_dict(), network(name).state_dict()
    assert {key for key in timed_one if key not in plain} == {
        "events.features.0.before.weight",
        "events.features.0.until_target.weight",
    }
    for key, value in plain.items():
        assert torch.equal(value, timed_one[key]), key


def test_buckets_are_powers_of_two_to_the_second() -> None:
    seconds = torch.tensor([-5, 0, 1, 2, 3, 6, 7, 62, 63, 2**40])
    buckets = TimeGaps(buckets=8).build(4)._bucket(seconds)
    assert buckets.tolist() == [0, 0, 1, 1, 2, 2, 3, 5, 6, 7]


# ---- where models are used --------------------------------------------------------------------------------------
def test_a_teacher_cache_and_an_ensemble_hold_what_plain_calls_give(tmp_path: Path) -> None:
    data = timed()
    ensemble = Ensemble([network(seed=1), network(features=[], seed=2), network("gru4rec", [Hour()], 3)]).eval()
    assert ensemble.reads == ("times", "target_times")
    write_cache(ensemble, data, tmp_path / "cache", label="teachers")
    states = np.load(tmp_path / "cache" / "states.npy")
    number = 0
    for start, end in zip(data.offsets[:-1], data.train_end, strict=True):
        for position in range(start + 1, min(end, start + 6)):  # as long as windows begin where histories do
            batch = read_histories(data, np.array([start]), np.array([position]), 6, ensemble.reads)
            with torch.no_grad():
                state = last_states(ensemble, batch)[0]
            np.testing.assert_allclose(states[number], state.numpy(), atol=2e-3)
            number += 1
        number += max(0, end - 1 - (start + 5)) if end > start + 5 else 0
    assert number == len(states)


def test_rollouts_are_drawn_and_read_at_the_time_of_the_last_real_event() -> None:
    data = timed(6)
    assert data.times is not None
    model = network(features=[Hour()])
    with torch.no_grad():
        model.items.weight.mul_(3000)  # sure of its first choice
    histories = draw_rollouts(model, data, 3, 0)
    assert histories.event_times is not None
    table = model.item_table().detach()
    for user, (start, end) in enumerate(zip(data.offsets[:-1], data.train_end, strict=True)):
        mine = slice(histories.offsets[user], histories.offsets[user + 1])
        items, times = histories.items[mine].tolist(), histories.event_times[mine].tolist()
        assert times == [*data.times[start:end].tolist(), *[data.times[end - 1]] * 3]
        for place in range(end - start, len(items)):
            read = batch_of(torch.tensor([items[:place][-6:]]), torch.tensor([[*times[:place][-6:], times[place]]]))
            with torch.no_grad():
                scores = (last_states(model, read) @ table.T)[0]
            scores[items[:place]] = -torch.inf
            assert int(scores.argmax()) == items[place]


@pytest.mark.parametrize(
    ("name", "features", "inputs"),
    [("sasrec", [TimeGaps()], ["times", "target_times"]), ("gru4rec", [Hour()], ["target_times"])],
)
def test_the_graph_has_named_inputs_and_gives_the_states_of_the_model(
    name: str, features: list[EventFeature], inputs: list[str], tmp_path: Path
) -> None:
    data, model = timed(), network(name, features)
    write_encoder(model, tmp_path / "encoder.onnx")
    graph = OnnxEncoder(tmp_path / "encoder.onnx", 8)
    assert list(graph.reads) == inputs
    table = model.item_table().detach().numpy()
    assert check_parity(model, tmp_path / "encoder.onnx", table, data) < 1e-3
    rng = np.random.default_rng(0)
    windows = [rng.integers(0, ITEMS, length).tolist() for length in (1, 6, 3, 2)]
    times = [np.sort(2_000_000_000 - rng.integers(0, HOUR, len(window))).tolist() for window in windows]
    now = [2_000_000_000 + HOUR * n for n in range(4)]
    ours, torchs = (encode(each, windows, table, times, now) for each in (graph, ModelEncoder(model)))
    np.testing.assert_allclose(ours, torchs, atol=1e-4)
    later = encode(graph, windows, table, times, [moment + 5 * HOUR for moment in now])
    assert (np.abs(later - ours).max(1) > 1e-3).all()
    for missing in ({}, {"times": times}, {"times": [[1], *times[:3]], "now": now}):
        with pytest.raises(DataError, match="when each item of a history was chosen"):
            encode(graph, windows, table, **missing)
    # Padding changes no state.
    rows, moments = np.array([[3, 4, 0]]), {"times": [[5, 900, 7]], "target_times": [[900, 5000, -3]]}
    given = {read: np.array(moments[read]) for read in graph.reads}
    padded = graph(HistoryBatch(rows, np.array([2]), given), table)
    short = graph(HistoryBatch(rows[:, :2], np.array([2]), {read: given[read][:, :2] for read in given}), table)
    np.testing.assert_allclose(padded, short, atol=1e-5)


# ---- learned ----------------------------------------------------------------------------------------------------
def clocked(users: int = 100, length: int = 9, seed: int = 0) -> Dataset:
    """In the morning people go one item on, in the evening two items back; nothing else tells which."""
    rng = np.random.default_rng(seed)
    sequences, times = [], []
    for _ in range(users):
        items, moments = [int(rng.integers(ITEMS))], [int(rng.integers(1_000)) * 24 * HOUR]
        for _ in range(length - 1):
            morning = bool(rng.integers(2))
            items.append((items[-1] + (1 if morning else -2)) % ITEMS)
            moments.append((moments[-1] // (24 * HOUR) + 1) * 24 * HOUR + (8 if morning else 20) * HOUR)
        sequences.append(items)
        times.append(moments)
    return make_dataset(sequences, ITEMS, times)


def gapped(users: int = 100, length: int = 9, seed: int = 0) -> Dataset:
    """After a minute people go one item on, after a month two items back."""
    data = clocked(users, length, seed)
    rng = np.random.default_rng(seed)
    steps = np.diff(data.items, prepend=data.items[0]) % ITEMS
    gaps = np.where(steps == 1, 60 + rng.integers(0, 30, len(steps)), 30 * 24 * HOUR)
    return dataclasses.replace(data, times=np.cumsum(gaps))


@pytest.mark.parametrize(("data", "feature"), [(clocked(), f"{__name__}:Hour"), (gapped(), "time_gaps")])
def test_the_effect_of_time_is_learned_with_the_feature_and_not_without(
    data: Dataset, feature: str, tmp_path: Path
) -> None:
    found = {}
    for features in ([], [feature]):
        model = {"name": "gru4rec", "dim": 32, "hidden": 32, "max_length": 6, "dropout": 0.0, "item_features": "id"}
        training = {"epochs": 25, "patience": 25, "batch": 100, "learning_rate": 0.02, "warmup": 5, "min_steps": 4}
        values = {
            "rounds": 0,
            "llm": None,
            "model": model | {"event_features": features},
            "training": {"model": training},
            "evaluation": {"filter_seen": False},
            "device": "cpu",
        }
        run = parse_settings(values).fit(data, tmp_path / str(len(features)))
        found[len(features)] = run.validation_of("undistilled")
    assert found[0] < 0.87  # two equally likely items: (1 + 1 / log2(3)) / 2 = 0.82
    assert found[1] > 0.97


def test_a_whole_run_reads_times_from_teachers_to_the_export(tmp_path: Path, tiny_settings: dict[str, Any]) -> None:
    """The served model reads both times, one teacher the target's only, the language model none."""
    data = clocked(30)
    model = tiny_settings["model"] | {"event_features": ["time_gaps"]}
    teachers = [{"name": "gru4rec", "dim": 12, "event_features": [f"{__name__}:Hour"]}]
    distill = {"source": "ensemble", "rollout_length": 2}
    values = tiny_settings | {"model": model, "teachers": teachers, "distill": distill}
    run = parse_settings(values).fit(data, tmp_path / "run")
    assert {stage: run.load(stage).reads for stage in ("distilled-round-1", "teacher-1", "llm")} == {
        "distilled-round-1": ("times", "target_times"),
        "teacher-1": ("target_times",),
        "llm": (),
    }
    export_run(run, data, tmp_path / "export", "distilled-round-1")
    head = json.loads((tmp_path / "export" / "export.json").read_text())
    assert head["reads"] == ["times", "target_times"]
    assert OnnxEncoder(tmp_path / "export" / "encoder.onnx", 8).reads == ("times", "target_times")
