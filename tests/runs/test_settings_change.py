"""Other settings for a run that has begun: what may still be changed, and what it then comes to."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation.examples import chain_dataset
from settings_of import changed, parse_settings
from whole_runs import StopsBefore, same_stages

from llmd4rec.data.dataset import Dataset
from llmd4rec.distillation.efforts import EFFORTS
from llmd4rec.distillation.settings import DistillationSettings
from llmd4rec.distillation.settings import parse_settings as parse
from llmd4rec.errors import ConfigError, ModelError, RunError
from llmd4rec.losses.loss import Softmax
from llmd4rec.runs.invalidation import conflicts, invalidated
from llmd4rec.runs.run import Run


class Unlike(Softmax):
    """A loss that is not the built-in one."""


#: So that texts are the language model's alone; and without the memory as a teacher, which other methods do not have.
BASE = dict(EFFORTS["best"]) | {"model": {"item_features": "id"}, "distill": {}}


# ---- what a stage depends on --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("stage", "changes", "expected"),
    [
        ("undistilled", {"model__dropout": 0.3}, True),
        ("undistilled", {"training__model__batch": 7}, True),
        ("undistilled", {"training__model__round_learning_rate": 0.1}, False),
        ("undistilled", {"training__model__checkpoint_seconds": 7}, False),
        ("undistilled", {"training__llm__batch": 7}, False),
        ("undistilled", {"teachers": 2}, False),
        ("undistilled", {"texts__encoder": "other"}, False),
        # Whose vectors its own items are trained from.
        ("undistilled", {"texts__encoder": "other", "model__item_features": "id+text"}, True),
        ("undistilled", {"distill__weight__model": 7}, False),
        ("undistilled", {"distill__logit_adjustment": 0.1}, False),
        ("distilled-round-1", {"distill__logit_adjustment": 0.1}, True),
        ("teacher-2", {"teachers": [{}, {"dim": 96}, {}]}, True),
        ("teacher-2", {"llm__layers": 1}, False),
        ("llm", {"teachers": [{"dim": 96}]}, True),  # whose items it reads
        ("llm", {"llm__lora__r": 3}, True),
        ("llm", {"llm__inject": "never"}, True),
        ("llm", {"distill__method__name": "leader"}, False),
        ("distilled-round-1", {"distill__method__name": "leader"}, True),
        ("llm-round-1", {"training__llm__round_epochs": 1}, True),
        ("distilled-round-2", {"rounds": 1}, True),
        ("distilled-round-1", {"seed": 7}, True),
    ],
)
def test_what_a_stage_depends_on(stage: str, changes: dict[str, Any], expected: bool) -> None:
    assert (stage in invalidated(parse(BASE), parse(changed(BASE, **changes)))) is expected


def test_a_language_model_that_encodes_texts_is_every_trainings(tiny_settings: dict[str, Any]) -> None:
    for encoder, expected in (("a sentence encoder", {}), ("llm", {"llm.layers: 1 → 2": ["undistilled"]})):
        values = changed(tiny_settings, model__item_features="id+text", texts__encoder=encoder)
        old, new = (parse(changed(values, llm__layers=layers)) for layers in (1, 2))
        assert conflicts(old, new, ["undistilled"]) == expected


#: Values of which some other one is allowed for whatever a setting may be.
OTHERS = (
    True, False, 1, 2, 3, 8, 0.25, 0.5, None, "x", ["title"], [{"dim": 96}], ["model"], [3], "int8", "float32", "none",
    "rank", "partner", "self", "current", "equal", "constant", "cosine", "fp32", "bf16", "never", "full", "id+text",
    "id", "gelu", "relu", "leader", "gru4rec", "hr@5", ["csv"], ["hr"],
    ["time_gaps"], f"{__name__}:Unlike", "half", {"transitions": 1.0}, "known",
)  # fmt: skip


def leaves(values: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def with_another(values: dict[str, Any], key: str, old: Any) -> DistillationSettings:
    """The settings with some other value of one key."""
    for other in OTHERS:
        if other == old and type(other) is type(old):
            continue
        try:
            settings = parse(changed(values, **{key.replace(".", "__"): other}))
        except ConfigError:
            continue
        if dict(leaves(settings.model_dump(mode="json"))) != dict(leaves(values)):
            return settings
    raise AssertionError(f"no other value of {key} is among OTHERS")


def test_every_setting_of_a_run_belongs_to_a_training() -> None:
    """A new setting is one of some training until somebody thinks about it; none is of no training by accident."""
    used = {"rollout_length": 2, "student_ranks": "round-start", "logit_adjustment": 0.1}
    settings = parse(dict(EFFORTS["best"]) | {"distill": used})
    values = settings.model_dump(mode="json")
    named = {key: old for key, old in leaves(values) if key != "model.name"}  # beside which others stand
    free = {key for key, old in named.items() if not invalidated(settings, with_another(values, key, old))}
    counted = {key for key in free if key.startswith("memory.")}  # beside what is trained
    assert counted == {key for key in named if key.startswith("memory.")}
    assert free - counted == {
        "device", "threads", "training.model.checkpoint_seconds", "training.llm.checkpoint_seconds",
        "evaluation.cutoffs", "evaluation.metrics", "round_patience", "loggers",
        "distill.beside_memory",  # which adds a training where the memory teaches, as it does not here
    }  # fmt: skip


# ---- a folder that is there -------------------------------------------------------------------------------------
@pytest.fixture
def copied_run(chain_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(chain_run, tmp_path / "copied"))


def test_other_settings_are_refused_by_name(
    copied_run: Path, tiny_settings: dict[str, Any], chain_data: Dataset
) -> None:
    other = parse_settings(changed(tiny_settings, distill__weight__model=2, model__dropout=0.2))
    lines = (r"distill\.weight\.model: 4\.0 → 2\.0", r"model\.dropout: 0\.1 → 0\.2")
    with pytest.raises(RunError, match=f"other settings: (?=.*{lines[0]}).*{lines[1]}"):
        other.fit(chain_data, copied_run)


def test_other_data_is_refused(copied_run: Path, tiny_settings: dict[str, Any]) -> None:
    with pytest.raises(RunError, match="was trained on other data"):
        parse_settings(tiny_settings).fit(chain_dataset(users=30, items=12, length=7), copied_run)


def test_device_and_threads_may_change(copied_run: Path, tiny_settings: dict[str, Any], chain_data: Dataset) -> None:
    threads = torch.get_num_threads()
    try:
        run = parse_settings(changed(tiny_settings, device="auto", threads=1)).fit(chain_data, copied_run)
    finally:
        torch.set_num_threads(threads)
    assert (run.settings.device, run.settings.threads) == ("auto", 1)
    assert Run.open(copied_run).settings.model_dump() == run.settings.model_dump()


def test_a_finished_run_goes_on_to_more_rounds_as_if_it_had_always_been_to(
    tiny_settings: dict[str, Any], chain_data: Dataset, tmp_path: Path
) -> None:
    """What the first round came to is kept; fewer rounds than there are cannot be wanted any more."""
    settings = changed(tiny_settings, distill__source="ensemble")
    folder = tmp_path / "run"
    weights = folder / "checkpoints" / "distilled-round-1" / "best.safetensors"
    parse_settings(settings).fit(chain_data, folder)
    kept = weights.stat().st_mtime_ns
    more = parse_settings(changed(settings, rounds=2))
    run = more.fit(chain_data, folder)
    assert weights.stat().st_mtime_ns == kept
    assert same_stages(run, more.fit(chain_data, tmp_path / "fresh"))
    assert Run.open(folder).settings.rounds == 2
    with pytest.raises(RunError, match="other settings: rounds: 2 → 1"):
        parse_settings(settings).fit(chain_data, folder)


def test_a_language_model_is_changed_before_its_turn(
    tiny_settings: dict[str, Any], chain_data: Dataset, tmp_path: Path
) -> None:
    """As where it does not fit a GPU: the model before it is kept, and it is made anew."""
    folder = tmp_path / "run"
    full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nAnd more.")
    with pytest.raises(RunError, match=r"llm: .* not enough memory: .*2\.00 GiB\.\n  Lower training\.llm\.batch"):
        parse_settings(tiny_settings).fit(chain_data, folder, callbacks=[StopsBefore("llm", full)])
    weights = folder / "checkpoints" / "undistilled" / "best.safetensors"
    kept = weights.stat().st_mtime_ns
    smaller = parse_settings(
        changed(tiny_settings, llm__lora={"r": 1}, training__llm__batch=16, distill__weight__model=2.0)
    )
    run = smaller.fit(chain_data, folder)
    assert weights.stat().st_mtime_ns == kept
    fresh = smaller.fit(chain_data, tmp_path / "fresh")
    assert run.record.llm == fresh.record.llm
    assert same_stages(run, fresh)


def test_a_training_that_has_begun_is_not_changed_unasked(
    tiny_settings: dict[str, Any], chain_data: Dataset, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    begun = folder / "checkpoints" / "llm" / "training"
    Run.start(folder, parse_settings(tiny_settings), chain_data)
    begun.mkdir(parents=True)
    other = parse_settings(changed(tiny_settings, training__llm__batch=16))
    with pytest.raises(RunError, match=r"training\.llm\.batch: 64 → 16 \(.*: llm\)\n.*remove \S+llm/training to begin"):
        Run.start(folder, other, chain_data)
    shutil.rmtree(begun)
    assert Run.start(folder, other, chain_data).settings == other


def test_settings_that_came_to_nothing_may_be_corrected(
    tiny_settings: dict[str, Any], chain_data: Dataset, tmp_path: Path
) -> None:
    """The language model could not be had; nothing was trained yet."""
    wrong = parse_settings(changed(tiny_settings, llm__model=str(tmp_path / "no-model"), seed=5))
    with pytest.raises(ModelError):
        wrong.fit(chain_data, tmp_path / "run")
    right = parse_settings(changed(tiny_settings, rounds=0))
    run = right.fit(chain_data, tmp_path / "run")
    assert run.record.finished
    again = Run.open(tmp_path / "run")
    assert (again.settings.model_dump(), again.record.llm) == (right.model_dump(), None)
    with pytest.raises(RunError, match=r"other settings: seed: 0 → 5 \(trained with the old ones: undistilled\)\n"):
        wrong.fit(chain_data, tmp_path / "run")
