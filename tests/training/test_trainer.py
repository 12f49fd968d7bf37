"""The training loop: what it learns, what it keeps, and that interruptions leave no trace in the numbers."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluation.examples import chain_dataset, make_dataset
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from llmd4rec.data.batching import TrainingBatch
from llmd4rec.data.dataset import Dataset
from llmd4rec.distillation.cache import TeacherCache, open_cache, write_cache
from llmd4rec.errors import DataError, RunError
from llmd4rec.evaluation.validation import validation_value
from llmd4rec.losses.base import Objective, StepLoss
from llmd4rec.losses.objective import RankingObjective
from llmd4rec.losses.softmax import DistillationTerm
from llmd4rec.models.base import SequenceEncoder
from llmd4rec.models.sequential import SASRec
from llmd4rec.training import checkpoint
from llmd4rec.training.callbacks.base import Callback
from llmd4rec.training.callbacks.checkpoints import Checkpoints
from llmd4rec.training.callbacks.schedule import Schedule
from llmd4rec.training.fit import fit
from llmd4rec.training.loggers.json_lines import JSONLines, MetricsLog
from llmd4rec.training.runtime import Interrupted
from llmd4rec.training.settings import Training
from llmd4rec.training.trainer import Fitted, Trainer

ITEMS = 20
QUICK = Training(epochs=4, patience=4, batch=64, learning_rate=0.01, warmup=5, min_steps=1)

#: What :func:`train` gives.
Whole = tuple[Fitted, SequenceEncoder, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def data() -> Dataset:
    return chain_dataset(users=60, items=ITEMS, length=10)


def network(dim: int = 16, seed: int = 0, dropout: float = 0.2) -> Any:
    return SASRec(dim=dim, layers=1, max_length=8, dropout=dropout).build(ITEMS, seed)


def train(
    folder: Path,
    data: Dataset,
    settings: Training = QUICK,
    *,
    ranker: SequenceEncoder | None = None,
    validate: Callable[[SequenceEncoder], float] | None = None,
    teacher: TeacherCache | None = None,
    distill: DistillationTerm | None = None,
    trained_before: bool = False,
    objective: Objective | None = None,
    stage: str = "crm-alone",
    callbacks: Sequence[Callback] = (),
    values: Iterator[float] | None = None,
    **more: Any,
) -> Whole:
    folder.mkdir(exist_ok=True)
    ranker = ranker or network()
    fitted = fit(
        ranker, data, settings, folder, stage=stage, seed=5, callbacks=[JSONLines(), *callbacks],
        validate=validate or (lambda model: validation_value(model, data) if values is None else next(values)),
        objective=objective or RankingObjective(settings, teacher, distill), trained_before=trained_before,
        **more,
    )  # fmt: skip
    return fitted, ranker, MetricsLog(folder / "metrics.jsonl").read()


def states_of(ranker: SequenceEncoder) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in ranker.state_dict().items()}


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def without_seconds(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


# ---- learning and choosing --------------------------------------------------------------------------------------
def test_it_learns_what_follows_what(data: Dataset, tmp_path: Path) -> None:
    settings = QUICK.model_copy(update={"epochs": 30, "patience": 30})
    fitted, ranker, log = train(tmp_path, data, settings)
    assert log[0]["validation"] < 0.5
    assert fitted.best_value > 0.98
    assert validation_value(ranker, data) == fitted.best_value
    assert log[-1]["ce"] < log[1]["ce"] / 4


@pytest.mark.parametrize("change", [{"full_softmax_items": 1, "num_candidates": 10}, {"clip": 0.5},
                                    {"schedule": "cosine"}, {"label_smoothing": 0.1}, {"epoch_positions": 150},
                                    {"ema": 0.9}])  # fmt: skip
def test_it_learns_in_every_way_of_training(data: Dataset, tmp_path: Path, change: dict[str, Any]) -> None:
    settings = QUICK.model_copy(update={"epochs": 15, "patience": 15, **change})
    assert train(tmp_path, data, settings)[0].best_value > 0.9


def scripted(values: Sequence[float]) -> tuple[Callable[[SequenceEncoder], float], list[dict[str, Tensor]]]:
    """A validation that gives these values in turn and remembers the weights it saw."""
    seen: list[dict[str, Tensor]] = []

    def validate(ranker: SequenceEncoder) -> float:
        seen.append(states_of(ranker))
        return values[len(seen) - 1]

    return validate, seen


def test_it_stops_out_of_patience_and_keeps_the_best_weights(data: Dataset, tmp_path: Path) -> None:
    validate, seen = scripted([0.1, 0.2, 0.5, 0.5, 0.4, 0.9])
    settings = QUICK.model_copy(update={"epochs": 10, "patience": 2})
    fitted, ranker, log = train(tmp_path, data, settings, validate=validate)
    assert (fitted.best_value, fitted.best_epoch, fitted.epochs) == (0.5, 2, 4)
    assert_equal(states_of(ranker), seen[2])
    tensors, head = checkpoint.load(tmp_path / "best-2.safetensors")
    assert_equal(tensors, seen[2])
    assert (head["epoch"], head["value"]) == (2, 0.5)
    assert files(tmp_path) == {"best-2.safetensors", "metrics.jsonl"}
    assert [record["best"] for record in log] == [True, True, True, False, False]


def test_a_student_is_never_made_worse_than_it_came(data: Dataset, tmp_path: Path) -> None:
    validate, seen = scripted([0.5, 0.4, 0.3, 0.2])
    settings = QUICK.model_copy(update={"patience": 3})
    fitted, ranker, _ = train(tmp_path, data, settings, validate=validate, trained_before=True)
    assert (fitted.best_value, fitted.best_epoch, fitted.epochs) == (0.5, 0, 3)
    assert_equal(states_of(ranker), seen[0])
    assert not torch.equal(seen[1]["items.weight"], seen[0]["items.weight"])


def test_lucky_random_weights_are_no_candidate(data: Dataset, tmp_path: Path) -> None:
    validate, seen = scripted([0.5, 0.1, 0.2, 0.1, 0.1, 0.1])
    settings = QUICK.model_copy(update={"patience": 2})
    fitted, ranker, log = train(tmp_path, data, settings, validate=validate)
    assert (fitted.best_value, fitted.best_epoch, fitted.epochs) == (0.2, 2, 4)
    assert_equal(states_of(ranker), seen[2])
    assert log[0]["validation"] == 0.5  # it is in the log all the same


def test_where_nothing_is_found_the_last_weights_are_kept(data: Dataset, tmp_path: Path) -> None:
    validate, seen = scripted([0.0] * 5)
    settings = QUICK.model_copy(update={"patience": 1, "epochs": 4})
    fitted, ranker, _ = train(tmp_path, data, settings, validate=validate)
    assert (fitted.best_value, fitted.best_epoch, fitted.epochs) == (0.0, 4, 4)
    assert_equal(states_of(ranker), seen[4])


def test_no_epochs_keeps_what_came(data: Dataset, tmp_path: Path) -> None:
    ranker = network(seed=3)
    before = states_of(ranker)
    fitted, _, log = train(tmp_path, data, QUICK.model_copy(update={"epochs": 0}), ranker=ranker)
    assert fitted.epochs == 0
    assert_equal(states_of(ranker), before)
    assert [record["epoch"] for record in log] == [0]


class AfterEachStep(Callback):
    """Notes something of the trainer after each step."""

    def __init__(self, look: Callable[[Trainer], Any]) -> None:
        self.look, self.seen = look, list[Any]()

    def on_step_end(self, trainer: Trainer) -> None:
        self.seen.append(self.look(trainer))


def learning_rates() -> AfterEachStep:
    return AfterEachStep(lambda trainer: trainer.optimizer.param_groups[0]["lr"])


def test_warmup_and_cosine_shape_the_learning_rate(data: Dataset, tmp_path: Path) -> None:
    settings = QUICK.model_copy(update={"epochs": 3, "schedule": "cosine", "warmup": 5, "batch": 8})
    watch = learning_rates()
    train(tmp_path, data, settings, callbacks=[watch])
    rates = watch.seen
    assert rates[:5] == pytest.approx([0.002, 0.004, 0.006, 0.008, 0.01])
    assert all(earlier > later for earlier, later in itertools.pairwise(rates[5:]))
    assert rates[-1] < 0.001


def test_a_plateau_halves_the_learning_rate(data: Dataset, tmp_path: Path) -> None:
    """Behind the second epoch in a row that is less than 1% better than the best before."""
    values = iter([0.0, 0.5, 0.6, 0.605, 0.61, 0.6, 0.615, 0.615, 0.9, 0.9])  # the first one is of no epoch
    settings = QUICK.model_copy(update={"epochs": 9, "schedule": "plateau", "warmup": 0, "batch": 8, "patience": 9})
    watch = learning_rates()
    train(tmp_path, data, settings, callbacks=[watch], values=values)
    epochs = np.array(watch.seen).reshape(9, -1)
    assert (epochs == epochs[:, :1]).all()
    # .605 is idle, .61 is not; .6 and .615 are, .615 and .9 are not both.
    np.testing.assert_allclose(epochs[:, 0], 0.01 * np.array([1, 1, 1, 1, 1, 1, 0.5, 0.5, 0.5]))


def test_a_plateau_that_is_known_is_repeated(data: Dataset, tmp_path: Path) -> None:
    settings = QUICK.model_copy(update={"epochs": 5, "schedule": "plateau", "warmup": 0, "batch": 8})
    watch = learning_rates()
    train(tmp_path, data, settings, callbacks=[watch, Schedule([1, 3])])
    np.testing.assert_allclose(np.array(watch.seen).reshape(5, -1)[:, 0], 0.01 * np.array([1, 0.5, 0.5, 0.25, 0.25]))


def test_warmup_is_at_most_a_tenth_of_all_steps(data: Dataset, tmp_path: Path) -> None:
    settings = QUICK.model_copy(update={"epochs": 4, "warmup": 10_000, "batch": 8})
    watch = learning_rates()
    train(tmp_path, data, settings, callbacks=[watch])
    rates = watch.seen
    assert rates.index(max(rates)) < len(rates) / 10


@pytest.mark.parametrize("least", [32, 10])
def test_small_data_get_smaller_batches(data: Dataset, tmp_path: Path, least: int) -> None:
    watch = learning_rates()
    settings = QUICK.model_copy(update={"epochs": 1, "batch": 10_000, "min_steps": least})
    train(tmp_path, data, settings, callbacks=[watch])
    assert least <= len(watch.seen) < 1.25 * least
    assert Training().min_steps == 32


def test_a_teacher_pulls_the_student_and_its_weights_are_counted(data: Dataset, tmp_path: Path) -> None:
    teacher_model = network(seed=9)
    train(tmp_path / "t", data, QUICK.model_copy(update={"epochs": 20, "patience": 20}), ranker=teacher_model)
    write_cache(teacher_model, data, tmp_path / "teacher", label="t")
    teacher = open_cache(tmp_path / "teacher", data, torch.device("cpu"))
    one = QUICK.model_copy(update={"epochs": 1})
    _, _, log = train(tmp_path / "s", data, one, teacher=teacher, distill=DistillationTerm(4.0, 1.0, "rank"))
    assert log[1]["kl"] > 0
    assert sum(log[1]["weight_counts"]) == 60 * 7
    # An untrained student learns from a teacher that knows the answers.
    assert log[1]["weight_mean"] > 1.1
    _, _, unweighted = train(tmp_path / "u", data, one, teacher=teacher, distill=DistillationTerm(4.0, 1.0, "none"))
    assert unweighted[1]["weight_mean"] == 1
    # Listening more brings the student closer to the teacher.
    more = QUICK.model_copy(update={"epochs": 4})
    closer, further = (
        train(tmp_path / f"strength{s}", data, more, teacher=teacher, distill=DistillationTerm(s, 1.0, "none"))[2]
        for s in (8.0, 0.0)
    )
    assert closer[-1]["kl"] < further[-1]["kl"]


def test_averaged_weights_are_what_is_judged_and_kept(data: Dataset, tmp_path: Path) -> None:
    """Against the average computed by hand from the weights after every step."""
    watch = AfterEachStep(lambda trainer: states_of(trainer.model))
    ranker, start = network(), states_of(network())
    validate, seen = scripted([0.0, 0.1, 0.2])
    settings = QUICK.model_copy(update={"epochs": 2, "ema": 0.8})
    train(tmp_path, data, settings, ranker=ranker, validate=validate, callbacks=[watch])
    average, after = start, watch.seen
    for step, weights in enumerate(after):
        decay = min(0.8, (1 + step) / (10 + step))
        average = {name: decay * old + (1 - decay) * weights[name] for name, old in average.items()}
    for name, tensor in checkpoint.load(tmp_path / "best-2.safetensors")[0].items():
        torch.testing.assert_close(tensor, average[name], rtol=1e-4, atol=1e-6)
    assert_equal(seen[2], states_of(ranker))
    assert not torch.equal(seen[2]["items.weight"], after[-1]["items.weight"])


@pytest.mark.parametrize("way", [{}, {"clip": 1.0, "ema": 0.9}])
@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.01), ("fp16", 0.002)])
def test_precisions_agree(
    data: Dataset, tmp_path: Path, way: dict[str, float], precision: str, tolerance: float
) -> None:
    """To what 8 or 11 bits leave of the mean loss of an epoch; the weights, and what is judged, are 32-bit numbers."""

    def loud(seed: int = 0) -> Any:
        ranker = network(dropout=0.0)
        with torch.no_grad():
            for parameter in ranker.blocks.parameters():
                parameter *= 8  # states of a small network are mostly the item itself, whatever the precision
        return ranker

    logs = {}
    for each in ("fp32", precision, "auto"):
        settings = QUICK.model_copy(update={"precision": each, **way})
        _, ranker, logs[each] = train(tmp_path / each, data, settings, ranker=loud())
        assert all(tensor.dtype == torch.float32 for tensor in ranker.state_dict().values())
    assert without_seconds(logs["auto"]) == without_seconds(logs["fp32"])  # on a CPU
    losses = {each: [record["ce"] for record in log[1:]] for each, log in logs.items()}
    assert losses[precision] != losses["fp32"]
    assert losses[precision] == pytest.approx(losses["fp32"], rel=tolerance)


# ---- interruptions ----------------------------------------------------------------------------------------------
def interrupt_at(ranker: SequenceEncoder, steps: int, number: int = signal.SIGINT) -> None:
    """A real signal arrives in the midst of the given training step, counted from now."""
    left = [steps]

    def count(module: nn.Module, *_: Any) -> None:
        if module.training:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), number)

    ranker.get_submodule("norm_in").register_forward_hook(count)


WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one step per epoch": {"batch": 10_000},
    "sampled candidates": {"full_softmax_items": 1, "num_candidates": 8},
    "limited epochs": {"epoch_positions": 150, "clip": 1.0, "schedule": "cosine"},
    "out of patience": {"patience": 1},
    "plateau": {"schedule": "plateau", "patience": 3},
    "averaged weights": {"ema": 0.9},
    "half precision": {"precision": "fp16", "clip": 1.0},
}


@pytest.mark.parametrize("taught", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_interruptions_leave_no_trace(data: Dataset, tmp_path: Path, way: str, taught: bool) -> None:
    settings = QUICK.model_copy(update=WAYS[way])
    more: dict[str, Any] = {}
    if taught:
        write_cache(network(dim=4, seed=9), data, tmp_path / "teacher", label="t")
        teacher = open_cache(tmp_path / "teacher", data, torch.device("cpu"))
        more = {"teacher": teacher, "distill": DistillationTerm(1.0, 2.0, "rank")}
    expected, ranker, log = train(tmp_path / "whole", data, settings, **more)

    stops, numbers = 0, []
    for pause in [1, 3, 2, 5, 7] + [9] * 10:
        torch.manual_seed(stops)  # whatever happened between two sessions
        student = network()
        interrupt_at(student, pause, signal.SIGTERM if pause == 3 else signal.SIGINT)
        try:
            fitted, resumed, lines = train(tmp_path / "parts", data, settings, ranker=student, **more)
            break
        except Interrupted as stopped:
            stops += 1
            numbers.append(stopped.signal_number)
            assert (tmp_path / "parts" / "last.safetensors").exists()
    assert stops >= 2
    assert numbers[:2] == [signal.SIGINT, signal.SIGTERM]
    assert_equal(states_of(resumed), states_of(ranker))
    assert without_seconds(lines) == without_seconds(log)
    assert dataclasses.replace(fitted, seconds=0) == dataclasses.replace(expected, seconds=0)
    best = f"best-{fitted.best_epoch}.safetensors"
    whole, parts = ((tmp_path / name / best).read_bytes() for name in ("whole", "parts"))
    assert whole == parts
    assert len(list((tmp_path / "parts").glob("best-*"))) <= 3


def test_a_signal_during_validation_stops_it(data: Dataset, tmp_path: Path) -> None:
    settings = QUICK.model_copy(update={"ema": 0.9})
    _, ranker, log = train(tmp_path / "whole", data, settings)
    begun, ended = [0], [0]

    def validate(model: SequenceEncoder) -> float:
        begun[0] += 1
        if begun[0] == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        value = validation_value(model, data)
        ended[0] += 1
        return value

    with pytest.raises(Interrupted) as stopped:
        train(tmp_path / "parts", data, settings, validate=validate)
    assert (stopped.value.signal_number, stopped.value.saved) == (signal.SIGTERM, True)
    assert (begun[0], ended[0]) == (3, 2)
    _, resumed, lines = train(tmp_path / "parts", data, settings, validate=validate)
    assert ended[0] == 5  # its epoch was not trained a second time
    assert_equal(states_of(resumed), states_of(ranker))
    assert without_seconds(lines) == without_seconds(log)


class Impatient(Callback):
    """Sends a signal while a checkpoint is written."""

    def state_dict(self) -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGINT)
        return {}


def test_a_second_signal_does_not_wait_for_the_checkpoint(data: Dataset, tmp_path: Path) -> None:
    """And spoils nothing: what was there before still counts."""
    _, ranker, log = train(tmp_path / "whole", data)
    student = network()
    interrupt_at(student, 3)
    with pytest.raises(Interrupted):
        train(tmp_path / "parts", data, ranker=student)
    before = {path.name: path.read_bytes() for path in (tmp_path / "parts").iterdir()}

    student = network()
    interrupt_at(student, 3)
    with pytest.raises(Interrupted) as stopped:
        train(tmp_path / "parts", data, ranker=student, callbacks=[Impatient()])
    assert not stopped.value.saved
    assert {path.name: path.read_bytes() for path in (tmp_path / "parts").iterdir() if path.name in before} == before
    assert not list((tmp_path / "parts").glob(".*"))
    _, resumed, lines = train(tmp_path / "parts", data)
    assert_equal(states_of(resumed), states_of(ranker))
    assert without_seconds(lines) == without_seconds(log)


def test_signals_that_the_process_was_started_to_ignore_stay_ignored(data: Dataset, tmp_path: Path) -> None:
    """As `nohup` and a shell's `&` want it."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        ranker = network()
        interrupt_at(ranker, 2)
        assert train(tmp_path, data, ranker=ranker)[0].epochs == 4
    finally:
        signal.signal(signal.SIGINT, before)


class Projected(nn.Module):
    """As methods have it that match hidden states: a map of the student's states that is learned with them."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(16, 3)
        nn.init.constant_(self.map.weight, 0.1)
        nn.init.zeros_(self.map.bias)

    def forward(self, states_ND: Tensor, ranker: SequenceEncoder, batch: TrainingBatch, seed: int) -> StepLoss:
        ce = F.cross_entropy(states_ND @ ranker.item_table().T, batch.target_N)
        distance = (self.map(states_ND) - 1).pow(2).mean()
        return StepLoss(ce + distance, {"ce": ce.detach(), "kl": distance.detach()})


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_an_objective_may_learn_too(data: Dataset, tmp_path: Path, average: float) -> None:
    settings = QUICK.model_copy(update={"ema": average})
    whole, stopped = Projected(), Projected()
    _, expected, log = train(tmp_path / "whole", data, settings, objective=whole)
    assert log[-1]["kl"] < log[1]["kl"] / 2
    assert not torch.equal(whole.map.weight, Projected().map.weight)
    ranker = network()
    interrupt_at(ranker, 9)
    with pytest.raises(Interrupted):
        train(tmp_path / "stopped", data, settings, ranker=ranker, objective=stopped)
    again = Projected()
    _, ranker, _ = train(tmp_path / "stopped", data, settings, objective=again)
    assert_equal(states_of(ranker), states_of(expected))
    assert torch.equal(again.map.weight, whole.map.weight)
    best = max(tmp_path.glob("whole/best-*.safetensors"))
    assert checkpoint.load(best)[0].keys() == network().saved_state().keys()  # nothing of it is left in the result


def test_handlers_are_given_back(data: Dataset, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    ranker = network()
    interrupt_at(ranker, 2)
    with pytest.raises(Interrupted):
        train(tmp_path, data, ranker=ranker)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_checkpoint_is_saved_whenever_it_is_due(data: Dataset, tmp_path: Path) -> None:
    """Also where an epoch is a single step."""
    saved = []

    def validate(model: SequenceEncoder) -> float:
        saved.append((tmp_path / "last.safetensors").exists())
        return float(len(saved))

    settings = QUICK.model_copy(update={"batch": 10_000, "checkpoint_seconds": 0})
    train(tmp_path, data, settings, validate=validate)
    assert saved == [False, False, True, True, True]
    # However many were saved and however often a better model was found, no more is kept than can be gone back to.
    assert files(tmp_path) == {
        "last.safetensors", "before-last.safetensors", "metrics.jsonl", "best-3.safetensors", "best-4.safetensors",
    }  # fmt: skip


def test_a_checkpoint_that_takes_long_is_saved_seldom(data: Dataset, tmp_path: Path) -> None:
    """However often it is asked for, saving takes at most a twentieth of the time."""
    saved: list[float] = []

    def slowly(path: Path, *arguments: Any, **more: Any) -> str:
        if path.name == "last.safetensors":
            time.sleep(0.02)
            saved.append(time.perf_counter())
        return checkpoint.save(path, *arguments, **more)

    begun = time.perf_counter()
    settings = QUICK.model_copy(update={"epochs": 15, "patience": 15, "checkpoint_seconds": 0.001})
    train(tmp_path, data, settings, callbacks=[Checkpoints(write=slowly)])
    assert 1 <= len(saved) <= 1 + (time.perf_counter() - begun) / (20 * 0.02)


def test_a_log_that_was_cut_is_noticed(data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stopped_training(tmp_path, data)
    (tmp_path / "metrics.jsonl").write_text("")
    train(tmp_path, data)
    assert "metrics.jsonl is shorter than it was" in capsys.readouterr().err


def test_another_stage_id_gives_the_same_numbers_from_the_same_seed_key(data: Dataset, tmp_path: Path) -> None:
    one = train(tmp_path / "one", data, stage="crm-alone")
    two = train(tmp_path / "two", data, stage="model/undistilled", seed_key="crm-alone")
    other = train(tmp_path / "other", data, stage="model/undistilled")
    assert_equal(states_of(one[1]), states_of(two[1]))
    assert [record["stage"] for record in two[2]] == ["model/undistilled"] * len(two[2])
    assert not torch.equal(states_of(one[1])["items.weight"], states_of(other[1])["items.weight"])


# ---- what goes wrong --------------------------------------------------------------------------------------------
def test_a_diverged_loss_is_reported_and_the_best_weights_stay(data: Dataset, tmp_path: Path) -> None:
    ranker = network()
    validate, seen = scripted([0.1, 0.5, 0.4])
    steps = [0]

    def poison(module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        steps[0] += module.training
        return output * torch.inf if steps[0] == 15 else output

    ranker.norm_in.register_forward_hook(poison)
    with pytest.raises(RunError) as caught:
        train(tmp_path, data, ranker=ranker, validate=validate)
    expected = r"crm-alone: .* the loss is nan in epoch 3, step 1, at learning rate 0\.01\n  Lower training\.learn"
    assert re.match(expected, str(caught.value))
    assert_equal(checkpoint.load(named_file(caught.value))[0], seen[1])


@pytest.mark.parametrize(
    ("in_round", "round_rate", "name"),
    [
        (False, 0.5, "training.model.learning_rate"),
        (True, 0.5, "training.model.round_learning_rate"),
        (True, None, "training.model.learning_rate"),
        (True, None, "training.llm.learning_rate"),
    ],
)
def test_a_diverged_training_names_the_setting_to_lower(
    in_round: bool, round_rate: float | None, name: str, data: Dataset, tmp_path: Path
) -> None:
    ranker = network()
    ranker.norm_in.register_forward_hook(lambda module, _, output: output * torch.inf if module.training else output)
    settings = QUICK.model_copy(update={"round_learning_rate": round_rate})
    group = name.rpartition(".")[0]
    with pytest.raises(RunError) as caught:
        train(tmp_path, data, settings.in_round() if in_round else settings, ranker=ranker, settings_name=group)
    assert f"Lower {name}, or set {group}.clip to 1, in a new run" in caught.value.remedy


def test_weights_that_are_lost_behind_a_fine_loss_are_never_saved(data: Dataset, tmp_path: Path) -> None:
    """A gradient may overflow where the loss did not: the step after would be too late."""
    ranker, steps = network(), [0]

    def poison(gradient: Tensor) -> Tensor:
        steps[0] += 1
        return gradient * (torch.nan if steps[0] == 15 else 1)

    ranker.items.weight.register_hook(poison)
    settings = QUICK.model_copy(update={"checkpoint_seconds": 0})
    with pytest.raises(RunError, match=r"items\.weight holds numbers that are not finite in epoch 3, step 1"):
        train(tmp_path, data, settings, ranker=ranker)
    for path in tmp_path.glob("*.safetensors"):
        for name, tensor in checkpoint.load(path)[0].items():
            assert bool(torch.isfinite(tensor.float()).all()), (path, name)


def test_a_loss_that_climbs_is_divergence_long_before_it_overflows(data: Dataset, tmp_path: Path) -> None:
    settings = QUICK.model_copy(update={"epochs": 100, "patience": 100, "learning_rate": 30.0, "warmup": 0})
    with pytest.raises(RunError, match=r"the cross-entropy rose to .* in epoch .*, at learning rate 30\n"):
        train(tmp_path, data, settings)


def named_file(error: RunError) -> Path:
    found = re.search(r"(/\S+\.safetensors)", error.remedy)
    assert found is not None
    return Path(found[1])


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[-5] ^= 1  # one bit of one weight
    half = content[: len(content) // 2]
    path.write_bytes({"cut": half, "garbage": b"x" * 100, "empty": b"", "bit": bytes(flipped)}[how])


def stopped_training(folder: Path, data: Dataset) -> None:
    """Leaves two checkpoints, of steps 3 and 7; there are 7 steps in an epoch."""
    for steps in (3, 7):
        ranker = network()
        interrupt_at(ranker, steps if steps == 3 else 4)
        with pytest.raises(Interrupted):
            train(folder, data, ranker=ranker)


@pytest.fixture(scope="module")
def stopped(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a stopped training; copy it before going on."""
    folder = tmp_path_factory.mktemp("training") / "stopped"
    stopped_training(folder, data)
    return folder


@pytest.fixture(scope="module")
def whole(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The same training when nothing stops it."""
    return train(tmp_path_factory.mktemp("training") / "whole", data)


@pytest.mark.parametrize("how", ["cut", "garbage", "empty", "bit"])
@pytest.mark.parametrize("names", [["last"], ["last", "before-last"], ["best-0"]])
def test_what_is_damaged_is_made_again_from_what_was_before_it(
    data: Dataset, stopped: Path, whole: Whole, tmp_path: Path, names: list[str], how: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    shutil.copytree(stopped, tmp_path / "parts")
    for name in names:
        damage(tmp_path / "parts" / f"{name}.safetensors", how)
    capsys.readouterr()
    steps, student = [0], network()
    student.norm_in.register_forward_hook(lambda module, *_: steps.__setitem__(0, steps[0] + module.training))
    _, resumed, lines = train(tmp_path / "parts", data, ranker=student)
    assert steps[0] == 4 * 7 - (3 if names == ["last"] else 0)
    warned = capsys.readouterr().err
    for name in names:
        assert f"{name}.safetensors is damaged" in warned
    _, ranker, log = whole
    assert_equal(states_of(resumed), states_of(ranker))
    assert without_seconds(lines) == without_seconds(log)


def test_a_best_that_is_not_the_checkpoints_is_not_taken(
    data: Dataset, stopped: Path, whole: Whole, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(stopped, tmp_path / "parts")
    checkpoint.save(tmp_path / "parts" / "best-0.safetensors", states_of(network(seed=9)), {"epoch": 0})
    capsys.readouterr()
    _, resumed, _ = train(tmp_path / "parts", data)
    assert "best-0.safetensors is not the one that the checkpoint names" in capsys.readouterr().err
    assert_equal(states_of(resumed), states_of(whole[1]))


def test_a_checkpoint_of_another_version_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors", metadata={"llmd4rec": '{"format": 99}'})
    with pytest.raises(RunError, match=r"format 99; this version reads 1 to 2\n.*newer llmd4rec"):
        checkpoint.load(tmp_path / "x.safetensors")
    assert not isinstance(refusal(tmp_path / "x.safetensors"), checkpoint.DamagedCheckpoint)  # it is fine where it is
    with pytest.raises(RunError, match="does not exist"):
        checkpoint.load(tmp_path / "y.safetensors")


def refusal(path: Path) -> RunError:
    with pytest.raises(RunError) as caught:
        checkpoint.load(path)
    return caught.value


def test_a_checkpoint_of_the_version_without_checksums_is_read(tmp_path: Path) -> None:
    """As 0.1.0 wrote it before its release."""
    save_file({"a": torch.ones(2)}, tmp_path / "x.safetensors", metadata={"llmd4rec": '{"format": 1, "epoch": 3}'})
    tensors, state = checkpoint.load(tmp_path / "x.safetensors")
    assert torch.equal(tensors["a"], torch.ones(2))
    assert state["epoch"] == 3
    assert checkpoint.checksum_of(tmp_path / "x.safetensors") is None


@pytest.mark.parametrize("change", ["value", "name", "shape", "type", "state"])
def test_the_checksum_is_of_everything(tmp_path: Path, change: str) -> None:
    path = tmp_path / "x.safetensors"
    tensors = {"a": torch.arange(4, dtype=torch.int32), "b": torch.tensor(1.5), "c": torch.empty(0, 2).bfloat16()}
    kept = checkpoint.save(path, tensors, {"epoch": 1})
    assert checkpoint.checksum_of(path) == kept
    with safe_open(path, "pt") as file:
        header = file.metadata()
    if change == "state":
        header["llmd4rec"] = header["llmd4rec"].replace('"epoch": 1', '"epoch": 2')
    else:
        one = tensors.pop("a")
        changed = {"value": one + 1, "shape": one.view(2, 2), "type": one.view(torch.float32)}.get(change, one)
        tensors["z" if change == "name" else "a"] = changed
    save_file(tensors, path, metadata=header)
    assert isinstance(refusal(path), checkpoint.DamagedCheckpoint)


def test_nothing_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to train on"):
        train(tmp_path, make_dataset([[1, 2, 3], [4, 5]], ITEMS))
    assert list(tmp_path.iterdir()) == []


# ---- no leak ----------------------------------------------------------------------------------------------------
def test_held_out_items_never_touch_the_weights(data: Dataset, tmp_path: Path) -> None:
    """Validation may choose among epochs; with that choice fixed, nothing held out leaves a trace."""
    items = data.items.copy()
    items[data.valid], items[data.test] = 0, 1
    altered = dataclasses.replace(data, items=items)

    def latest() -> Callable[[SequenceEncoder], float]:
        return scripted([float(epoch) for epoch in range(10)])[0]

    _, first, log = train(tmp_path / "a", data, validate=latest())
    _, second, other = train(tmp_path / "b", altered, validate=latest())
    assert_equal(states_of(first), states_of(second))
    assert without_seconds(log) == without_seconds(other)
    # The seed and the training items do decide.
    moved = data.items.copy()
    moved[data.offsets[0]] += 1
    _, third, _ = train(tmp_path / "c", dataclasses.replace(data, items=moved % ITEMS), validate=latest())
    assert not torch.equal(third.state_dict()["items.weight"], first.state_dict()["items.weight"])


def test_the_log_is_one_object_per_line(data: Dataset, tmp_path: Path) -> None:
    train(tmp_path, data)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == list(range(5))
    assert all(json.loads(line)["stage"] == "crm-alone" for line in lines)
