"""Imports go one way, from package to package, as pyproject.toml draws it; also inside functions."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "llmd4rec"
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """What import-linter says of the package in a folder's `src`, by the contracts of the folder's pyproject.toml.

    In a process of its own, which has imported no other copy of the package.
    """
    program = "import sys; sys.path.insert(0, 'src'); from importlinter.cli import lint_imports_command as f; f()"
    return subprocess.run(
        [sys.executable, "-c", program, "--no-cache"], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(SOURCE, tmp_path / "src" / "llmd4rec", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_imports_go_downwards_and_in_no_circle() -> None:
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"Contracts: {len(CONTRACTS)} kept, 0 broken" in result.stdout


def test_every_package_and_module_has_its_layer() -> None:
    (layered,) = (contract for contract in CONTRACTS if contract["type"] == "layers")
    named = {name.strip() for layer in layered["layers"] for name in layer.split(":")}
    there = {path.stem for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert there - {"__init__", "__main__"} == named


@pytest.mark.parametrize(
    ("module", "line", "broken"),
    [
        ("data/dataset.py", "from llmd4rec.runs import run", "imports go downwards"),
        ("io/files.py", "def later():\n    from llmd4rec.data import dataset", "imports go downwards"),
        ("data/arrays.py", "from llmd4rec.data import dataset, prepare", "no circles"),
    ],
)
def test_an_import_that_goes_wrong_is_found(module: str, line: str, broken: str, copy: Path) -> None:
    with (copy / "src" / "llmd4rec" / module).open("a", encoding="utf-8") as file:
        file.write(f"\n\n{line}\n")
    result = lint_imports(copy)
    assert result.returncode == 1
    assert f"{broken} BROKEN" in result.stdout
