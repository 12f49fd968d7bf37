"""Run folders that were altered, cut, mixed up, or come from a stranger."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from in_another_process import outcome, start, train
from made_once import MadeOnce
from settings_of import changed, parse_settings

from llmd4rec import __file__ as package
from llmd4rec.data.dataset import Dataset
from llmd4rec.distillation.cache import open_cache
from llmd4rec.errors import LLMD4RecError, RunError
from llmd4rec.evaluation.evaluation import Evaluation
from llmd4rec.export.write import export_run
from llmd4rec.inference.recommender import Recommender
from llmd4rec.runs.opening import note_environment
from llmd4rec.runs.results import score
from llmd4rec.runs.run import Run
from llmd4rec.training import checkpoint


@pytest.fixture
def run(chain_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(chain_run, tmp_path / "run"))


def flip(path: Path, at: int = -5) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def best(run: Path, stage: str) -> Path:
    return run / "checkpoints" / stage / "best.safetensors"


# ---- finished stages --------------------------------------------------------------------------------------------
def test_an_altered_weight_is_never_served_and_its_stage_can_be_trained_again(
    run: Path, chain_run: Path, tiny_settings: dict[str, Any], chain_data: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(best(run, "llm"))
    with pytest.raises(RunError, match=r"llm/best\.safetensors is damaged: its checksum") as caught:
        Run.open(run).load("llm")
    assert "delete it and run `train` again" in caught.value.remedy
    assert Run.open(run).load("undistilled").num_items == 12  # the others are as good as before
    best(run, "llm").unlink()
    parse_settings(tiny_settings).fit(chain_data, run)
    assert (
        "weights are missing, so these stages are trained again: llm, llm-round-1, distilled-round-1"
        in capsys.readouterr().err
    )
    assert outcome(run) == outcome(chain_run)


def test_weights_of_another_stage_are_noticed(run: Path) -> None:
    shutil.copy(best(run, "undistilled"), best(run, "distilled-round-1"))
    with pytest.raises(RunError, match="is not what distilled-round-1 ended with"):
        Run.open(run).load("distilled")


def test_altered_text_vectors_are_noticed_and_made_anew(
    tiny_settings: dict[str, Any], chain_data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMD4REC_CACHE", str(tmp_path / "cache"))
    settings = changed(tiny_settings, llm__item_features="text", texts__encoder="llm", training__llm__epochs=0)
    run = parse_settings(settings).fit(chain_data, tmp_path / "run")
    path = run.folder / "text_vectors.safetensors"
    before = path.read_bytes()
    for spoil in (flip, Path.unlink):
        spoil(path)
        with pytest.raises(RunError, match=r"text_vectors\.safetensors is missing or not what the run was trained"):
            Run.open(run.folder).load("llm")
    parse_settings(settings).fit(chain_data, run.folder)
    assert path.read_bytes() == before
    assert Run.open(run.folder).load("llm").num_items == 12


def test_what_a_killed_command_has_left_in_a_run_goes_with_the_next_that_writes_there(
    run: Path, chain_data: Dataset
) -> None:
    (run / ".run.json.x1.part").write_text("half")
    (run / "checkpoints" / ".last.safetensors.llmd4rec_x2.part").mkdir()
    score(Run.open(run), chain_data, "undistilled")
    assert list(run.rglob("*.part")) == []


# ---- unfinished ones --------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def long_settings(tiny_settings: dict[str, Any]) -> dict[str, Any]:
    more = {"training__llm__round_epochs": 40, "training__llm__patience": 40, "training__llm__checkpoint_seconds": 0.0}
    return changed(tiny_settings, distill__students=["llm"], training__model__checkpoint_seconds=0.0, **more)


@pytest.fixture(scope="module")
def killed(long_settings: dict[str, Any], chain_data: Dataset, made_once: MadeOnce) -> tuple[Path, Path]:
    """A run killed while the language model was taught by the served one, and one that was not."""
    folder = made_once("killed", lambda folder: kill_one_of_two(long_settings, chain_data.path, folder))
    return folder / "parts", folder / "whole"


def kill_one_of_two(long_settings: dict[str, Any], data: Path | None, folder: Path) -> None:
    process = start(train, long_settings, data, folder / "parts")
    training, begun = folder / "parts" / "checkpoints" / "llm-round-1" / "training", time.monotonic()
    while not (training / "before-last.safetensors").exists():
        assert time.monotonic() < begun + 60
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    process = start(train, long_settings, data, folder / "whole")
    process.join(120)
    assert process.exitcode == 0


@pytest.fixture
def unfinished(killed: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(killed[0], tmp_path / "unfinished"))


def teacher_of(run: Path) -> Path:
    return run / "teachers" / "undistilled"


def of_other_weights(run: Path) -> None:
    head = json.loads((teacher_of(run) / "teacher.json").read_text())
    head["made_of"]["undistilled"] = "0" * 64
    (teacher_of(run) / "teacher.json").write_text(json.dumps(head))


SPOILED: dict[str, tuple[Callable[[Path], None], str]] = {
    "a state": (lambda run: flip(teacher_of(run) / "states.npy"), "states.npy is damaged"),
    "the table": (lambda run: flip(teacher_of(run) / "table.npy"), "table.npy is damaged"),
    "half of it gone": (lambda run: (teacher_of(run) / "rank.npy").unlink(), "it is made anew"),
    "other weights": (of_other_weights, "was made of other models than the run has now"),
    "all of it gone": (lambda run: shutil.rmtree(run / "teachers"), ""),
    "the last checkpoint": (
        lambda run: flip(run / "checkpoints" / "llm-round-1" / "training" / "last.safetensors"),
        "last.safetensors is damaged",
    ),
}


@pytest.mark.parametrize("what", SPOILED)
def test_what_was_spoiled_is_made_anew_and_the_end_is_the_same(
    what: str, unfinished: Path, killed: tuple[Path, Path], long_settings: dict[str, Any], chain_data: Dataset
) -> None:
    spoil, warning = SPOILED[what]
    spoil(unfinished)
    process = start(train, long_settings, chain_data.path, unfinished, unfinished / "warnings")
    process.join(120)
    assert process.exitcode == 0
    warned = (unfinished / "warnings").read_text()
    assert warning in warned
    assert bool(warned) == bool(warning)
    assert outcome(unfinished) == outcome(killed[1])


def test_another_machine_is_noted(
    unfinished: Path, long_settings: dict[str, Any], chain_data: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    path = unfinished / "environment.json"
    noted = json.loads(path.read_text())
    first = {**noted, "processor": "an abacus", "threads": 77}
    path.write_text(json.dumps(first))
    parse_settings(long_settings).fit(chain_data, unfinished)
    assert "goes on with other processor and threads than before" in capsys.readouterr().err
    now = json.loads(path.read_text())
    assert {name: now[name] for name in first} == first
    assert now["later_sessions"] == [{"processor": noted["processor"], "threads": noted["threads"]}]


# ---- a stranger's -----------------------------------------------------------------------------------------------
class Bomb:
    """What runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.marker}'",)


def poisons(marker: Path) -> dict[str, bytes]:
    zipped, array = io.BytesIO(), io.BytesIO()
    torch.save({"model": Bomb(marker)}, zipped)
    np.save(array, np.array([Bomb(marker)], dtype=object), allow_pickle=True)
    return {
        "pickle": pickle.dumps(Bomb(marker)),
        "torch.save": zipped.getvalue(),
        "np.save": array.getvalue(),
        "yaml": f"!!python/object/apply:os.system ['touch {marker}']\n".encode(),
    }


def test_the_poison_works(tmp_path: Path) -> None:
    for name, poison in poisons(tmp_path / "marker").items():
        with open(os.devnull, "wb"):
            if name == "pickle":
                pickle.loads(poison)
            elif name == "torch.save":
                torch.load(io.BytesIO(poison), weights_only=False)
            elif name == "np.save":
                np.load(io.BytesIO(poison), allow_pickle=True)
            else:
                continue
        assert (tmp_path / "marker").exists()
        (tmp_path / "marker").unlink()


def attempts(run: Path, unfinished: Path, data: Dataset) -> dict[Path, Callable[[], Any]]:
    """Every file of run folders, and what reads it."""
    evaluations = [path.parent for path in (run / "evaluation").glob("*/evaluation.json")]
    training, cpu = unfinished / "checkpoints" / "llm-round-1" / "training", torch.device("cpu")
    return {
        run / "run.json": lambda: Run.open(run),
        run / "config.yaml": lambda: Run.open(run),
        run / "environment.json": lambda: note_environment(run),
        **{path: lambda: Run.open(run).metrics() for path in run.glob("checkpoints/*/metrics.jsonl")},
        run / "catalogue.parquet": lambda: Run.open(run).recommender(),
        run / "counts.npy": lambda: Run.open(run).recommender(),
        run / "text_vectors.safetensors": lambda: Run.open(run).text_vectors(),
        **{best(run, stage): partial(Run.open(run).weights_of, stage) for stage in Run.open(run).record.stages},
        **{path: partial(Evaluation.load, path.parent) for folder in evaluations for path in folder.iterdir()},
        **{path: partial(checkpoint.load, path) for path in training.iterdir()},
        **{path: lambda: open_cache(teacher_of(unfinished), data, cpu) for path in teacher_of(unfinished).iterdir()},
    }


@pytest.mark.parametrize("kind", ["pickle", "torch.save", "np.save", "yaml"])
def test_no_file_of_a_strangers_run_is_executed(
    kind: str, run: Path, unfinished: Path, chain_data: Dataset, tmp_path: Path
) -> None:
    poison = poisons(tmp_path / "marker")[kind]
    opened = Run.open(run)
    score(opened, chain_data, "undistilled")
    (run / "text_vectors.safetensors").write_bytes(b"")
    read = attempts(run, unfinished, chain_data)
    every = {path for folder in (run, unfinished) for path in folder.rglob("*") if path.is_file()}
    names = {path.name for path in every} - {".lock"}
    assert {path.name for path in read} == names
    for path, attempt in read.items():
        content = path.read_bytes()
        path.write_bytes(poison + b"\n" * (path.suffix == ".jsonl"))  # an unfinished last line would be no line
        with pytest.raises(LLMD4RecError, match=re.escape(path.name) + "|" + re.escape(path.parent.name)):
            print(path, attempt())  # which one it was, if it passes
        assert not (tmp_path / "marker").exists(), path
        path.write_bytes(content)


def test_the_source_reads_nothing_that_could_be_code() -> None:
    forbidden = re.compile(
        r"\bpickle\b(?!d|s)|torch\.load\(|allow_pickle=True|yaml\.(load|unsafe_load|full_load)\(|joblib|marshal|shelve"
    )
    for path in Path(package).parent.rglob("*.py"):
        lines = [line for line in path.read_text().splitlines() if not re.search(r'^\s*(#|"""|[A-Z`].*[.:]$)', line)]
        found = [line for line in lines if forbidden.search(line) and "No pickle" not in line]
        assert not found, (path, found)


# ---- where it is ------------------------------------------------------------------------------------------------
@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_folders_may_be_called_anything(chain_run: Path, chain_data: Dataset, tmp_path: Path) -> None:
    """Brackets and stars are patterns to the library that reads tables, where it is not told otherwise."""
    odd = tmp_path / "spring [7] *?"
    chain_data.save(odd / "data")
    run = Run.open(shutil.copytree(chain_run, odd / "run"))
    data = Dataset.load(odd / "data")
    score(run, data, "undistilled")
    found = run.folder / "evaluation" / "undistilled-test"
    assert Evaluation.load(found).per_user.height == 30
    export_run(run, data, odd / "export")
    here, exported = (
        each.recommend(data.item_ids[:3], k=3) for each in (run.recommender(), Recommender.load(odd / "export"))
    )
    assert [item.item_id for item in exported.items] == [item.item_id for item in here.items]
