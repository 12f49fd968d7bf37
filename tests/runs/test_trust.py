"""Whose code is imported: that of settings the user gives, and of nobody else's run without being told to."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner
from whole_runs import same

from llmd4rec import Dataset, Distillation, Model, Run, SASRec
from llmd4rec.cli import app
from llmd4rec.errors import ConfigError, RunError
from llmd4rec.models.base import SequenceEncoder

QUICK: dict[str, Any] = {
    "training": {"model": {"epochs": 1, "batch": 64, "warmup": 2, "learning_rate": 0.01, "ema": 0.0}},
    "device": "cpu",
    "rounds": 0,
}
TINY: dict[str, Any] = {"dim": 8, "max_length": 6, "item_features": "id"}
CODE = """
from pathlib import Path

from llmd4rec.models.sequential import SASRec

Path(__file__).with_suffix(".ran").touch()


class Theirs(SASRec):
    layers: int = 1
"""


@pytest.fixture
def theirs(tmp_path: Path, chain_data: Dataset, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A run whose settings name a module that lies in the current directory and that nobody has imported."""
    run = Distillation(model=SASRec(**TINY, layers=1), **QUICK).fit(chain_data, tmp_path / "run")
    module = f"theirs_{abs(hash(tmp_path))}"
    (tmp_path / f"{module}.py").write_text(CODE)
    settings = yaml.safe_load((run.folder / "config.yaml").read_text())
    settings["model"]["name"] = f"{module}:Theirs"
    (run.folder / "config.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    yield run.folder
    sys.path[:] = before
    sys.modules.pop(module, None)


def ran(run: Path) -> bool:
    return bool(list(run.parent.glob("*.ran")))


def command(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.output + repr(result.exception)


def test_opening_a_run_imports_nothing_that_it_names(theirs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(theirs.parent)
    with pytest.raises(RunError, match=r"run names the model theirs_\d+:Theirs, whose code .* not imported") as caught:
        Run.open(theirs)
    assert "trust_code=True" in caught.value.remedy
    assert not ran(theirs)
    assert type(Run.open(theirs, trust_code=True).settings.model).__name__ == "Theirs"
    assert ran(theirs)
    assert Run.open(theirs).load().num_items == 12, "what is imported already may be named"


@pytest.mark.parametrize(
    "name", ["os:path", "subprocess:Popen", "llmd4rec.__main__:main", "llmd4rec:SASRec", "antigravity:fly"]
)
def test_no_name_reaches_anything_else(theirs: Path, name: str) -> None:
    for place in ("model", "teachers"):
        settings = yaml.safe_load((theirs / "config.yaml").read_text())
        settings["model"]["name"] = "sasrec"
        settings[place] = {"name": name} if place == "model" else [{"name": name}]
        (theirs / "config.yaml").write_text(yaml.safe_dump(settings))
        before = set(sys.modules)
        with pytest.raises((RunError, ConfigError)):
            Run.open(theirs)
        assert not {each for each in set(sys.modules) - before if each.startswith(("antigravity", "llmd4rec.__main__"))}


def test_commands_ask_for_trust(theirs: Path) -> None:
    asked: list[tuple[object, ...]] = [
        ("evaluate", theirs),
        ("compare", theirs, theirs),
        ("recommend", theirs, "--history", "i1"),
        ("report", theirs),
        ("export", theirs, "--out", theirs.parent / "export"),
    ]
    for arguments in asked:
        code, said = command(*arguments)
        assert code == 2, said
        assert "--trust-code" in said
    assert not ran(theirs)
    for arguments in asked:
        code, said = command(*arguments, "--trust-code")
        assert code == 0, said
    assert ran(theirs)


def test_settings_of_the_user_are_imported_from_the_current_directory(
    theirs: Path, chain_data: Dataset, tmp_path: Path
) -> None:
    assert chain_data.path is not None
    (module,) = theirs.parent.glob("theirs_*.py")
    shutil.copy(theirs / "config.yaml", tmp_path / "mine.yaml")
    arguments = ("train", tmp_path / "mine.yaml", "-d", chain_data.path, "-r", tmp_path / "mine", "--no-evaluate")
    assert command(*arguments)[0] == 0
    sys.modules.pop(module.stem)
    code, said = command(*arguments)  # goes on with a run of the same settings
    assert code == 0, said
    assert yaml.safe_load((tmp_path / "mine" / "config.yaml").read_text())["model"]["name"] == f"{module.stem}:Theirs"


def test_stages_side_by_side_find_what_this_process_has_imported(theirs: Path, chain_data: Dataset) -> None:
    (module,) = theirs.parent.glob("theirs_*.py")
    sys.path.append(str(theirs.parent))
    settings = QUICK | {
        "training": {"model": {"epochs": 0}},
        "rounds": 1,
        "model": {"name": f"{module.stem}:Theirs", **TINY},
        "teachers": 1,
    }
    alone = Distillation.model_validate(settings | {"threads": 1}).fit(chain_data, theirs.parent / "alone")
    beside = Distillation.model_validate(settings | {"threads": 1}).fit(chain_data, theirs.parent / "beside", jobs=2)
    assert alone.record.stages.keys() == beside.record.stages.keys()
    assert all(same(alone.weights_of(stage), beside.weights_of(stage)) for stage in alone.record.stages)


def test_a_class_of_a_function_trains_without_a_folder_only(chain_data: Dataset, tmp_path: Path) -> None:
    class Local(Model):
        layers: int = 1

        def build(self, num_items: int, seed: int) -> SequenceEncoder:
            return SASRec(**TINY, layers=self.layers).build(num_items, seed)

    local = Local(**TINY)
    assert local.fit(chain_data, **{key: value for key, value in QUICK.items() if key != "rounds"}).recommend(["i1"])
    run = Distillation(model=local, **QUICK).fit(chain_data)
    assert isinstance(Run.open(run.folder).settings.model, Local)
    with pytest.raises(ConfigError, match="is defined in a function"):
        Distillation(model=local, **QUICK).fit(chain_data, tmp_path / "run")
    with pytest.raises(ConfigError, match="is defined in a function"):
        Distillation(model=local, **QUICK).fit(chain_data, jobs=2)
    assert not (tmp_path / "run").exists()
