"""The public names: a dozen, each documented with an example that is run."""

from __future__ import annotations

import doctest
import importlib
import re
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import llmd4rec
from llmd4rec import Dataset, Distillation, SASRec
from llmd4rec.config.settings import differences, load_settings
from llmd4rec.distillation.efforts import RECIPE
from llmd4rec.distillation.settings import DistillationSettings

ROOT = Path(__file__).parents[1]
#: Modules for those who add to the package, or measure.
MODULES = ("llmd4rec.extend", "llmd4rec.metrics")


def test_there_are_a_dozen_names() -> None:
    assert llmd4rec.__all__ == sorted(llmd4rec.__all__, key=lambda name: (not name.isupper(), name))
    assert len(llmd4rec.__all__) <= 13


@pytest.mark.parametrize("name", llmd4rec.__all__)
def test_the_example_of_a_public_name(
    name: str, chain_run: Path, chain_data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(chain_run, tmp_path / "runs" / "first")
    names = {name: getattr(llmd4rec, name) for name in llmd4rec.__all__}
    test = doctest.DocTestParser().get_doctest(
        getattr(llmd4rec, name).__doc__ or "", {**names, "data": chain_data, "pl": pl}, name, None, None
    )
    assert test.examples, f"the docstring of {name} has no example"
    said: list[str] = []
    result = doctest.DocTestRunner().run(test, out=said.append)
    assert result.failed == 0, "".join(said)


@pytest.mark.parametrize("module", MODULES)
def test_names_of_a_public_module_are_there(module: str) -> None:
    found: Any = importlib.import_module(module)
    assert len(found.__all__) == len(set(found.__all__))
    for name in found.__all__:
        assert getattr(found, name).__doc__


def test_the_page_lists_every_public_name() -> None:
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"`(\w+)`", page))
    for module in ("llmd4rec", *MODULES):
        missing = set(importlib.import_module(module).__all__) - listed
        assert not missing, f"docs/python.md does not name {', '.join(sorted(missing))} of {module}"


def test_the_page_says_what_the_command_line_trains() -> None:
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(Distillation\(.*?\))\n```", page, re.DOTALL)
    asked = eval(code, {"Distillation": Distillation, "SASRec": SASRec})
    assert differences(asked, load_settings(DistillationSettings, None, base=RECIPE)) == []
