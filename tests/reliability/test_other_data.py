"""Data that is not a run's is refused everywhere, and taken only by an evaluation that is told to, which says so."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from evaluation.examples import chain_dataset
from settings_of import parse_settings
from typer.testing import CliRunner, Result

from llmd4rec.cli import app
from llmd4rec.data.dataset import Dataset
from llmd4rec.errors import DataError, RunError
from llmd4rec.evaluation import Evaluator
from llmd4rec.evaluation.evaluation import Evaluation
from llmd4rec.export.write import export_run
from llmd4rec.runs.results import OTHER_DATA, saved_or_scored, score, score_run
from llmd4rec.runs.run import Run


@pytest.fixture
def chain_run(chain_run: Path, tmp_path: Path) -> Path:
    """A copy, which evaluations may be added to."""
    return Path(shutil.copytree(chain_run, tmp_path / "run"))


@pytest.fixture
def newer(tmp_path: Path) -> Dataset:
    """Another log of the same items, which its own preparation has put into another order, and one item fewer."""
    data = chain_dataset(users=9, items=11, length=6, seed=5)
    order = np.random.default_rng(0).permutation(11)
    place = np.argsort(order).astype(np.int32)
    moved = dataclasses.replace(data, catalogue=data.catalogue[order], items=place[data.items])
    moved.save(tmp_path / "newer")
    return Dataset.load(tmp_path / "newer")


def llmd4rec(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments], env={"COLUMNS": "250", "TERM": "dumb"})


def test_whatever_a_run_does_with_data_it_does_with_its_own(
    chain_run: Path, tiny_settings: dict[str, Any], newer: Dataset, tmp_path: Path
) -> None:
    run = Run.open(chain_run)
    assert newer.path is not None
    for attempt in (
        lambda: parse_settings(tiny_settings).fit(newer, chain_run),
        lambda: run.load_data(newer.path),
        lambda: score(run, newer, "undistilled"),
        lambda: score_run(run, newer),
        lambda: export_run(run, newer, tmp_path / "export", "undistilled"),
    ):
        with pytest.raises(RunError, match="was trained on other data"):
            attempt()
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize("command", ["evaluate", "export", "report"])
def test_the_commands_refuse_it(command: str, chain_run: Path, newer: Dataset) -> None:
    result = llmd4rec(command, chain_run, "--data", newer.path)
    assert result.exit_code == 2
    assert "was trained on other data" in result.stderr
    assert not result.stdout


def test_an_evaluation_takes_it_when_told_and_says_so(chain_run: Path, newer: Dataset) -> None:
    before = {path.name for path in (chain_run / "evaluation").glob("*")}
    arguments = ("evaluate", chain_run, "--data", newer.path, "--other-data", "--stage", "undistilled")
    result = llmd4rec(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    assert f"warning: {OTHER_DATA}" in result.stderr
    told = json.loads(result.stdout)
    assert told["other_data"] == {"fingerprint": newer.fingerprint, "path": str(newer.path), "warning": OTHER_DATA}
    assert told["users"] == 9
    # It lies apart from what is of the run's own data, which `compare` reads.
    (made,) = {path.name for path in (chain_run / "evaluation").glob("*")} - before
    assert made == f"undistilled-test-on-{newer.fingerprint[:8]}"
    assert Evaluation.load(chain_run / "evaluation" / made).other_data == told["other_data"]
    assert "Warning: these figures are of other data" in " ".join(llmd4rec(*arguments).stdout.split())


def test_items_are_found_by_name_whatever_their_order(chain_run: Path, newer: Dataset) -> None:
    run = Run.open(chain_run)
    result = score(run, newer, "undistilled", other_data=True)
    catalogue = pl.read_parquet(chain_run / "catalogue.parquet")["item_id"].to_list()
    place = {item_id: index for index, item_id in enumerate(catalogue)}
    by_hand = dataclasses.replace(
        newer,
        catalogue=pl.DataFrame({"item_id": catalogue}),
        items=np.array([place[newer.item_ids[item]] for item in newer.items], dtype=np.int32),
    )
    expected = Evaluator().evaluate(run.load("undistilled"), by_hand)
    assert result.ranks.tolist() == expected.ranks.tolist()
    assert result.per_user["item_id"].to_list() == [newer.item_ids[item] for item in newer.items[newer.test]]


def test_an_item_that_the_run_does_not_know_is_named(chain_run: Path) -> None:
    wider = chain_dataset(users=9, items=14, length=6, seed=5)
    with pytest.raises(DataError, match=r"items with interactions are not in the other catalogue, .*'i1[23]'"):
        score(Run.open(chain_run), wider, "undistilled", other_data=True)


def test_its_own_data_is_no_other(chain_run: Path, chain_data: Dataset) -> None:
    run = Run.open(chain_run)
    result = score(run, chain_data, "undistilled", other_data=True)
    assert result.other_data is None
    assert "other_data" not in result.to_json()
    assert saved_or_scored(run, "undistilled", True).ranks.tolist() == result.ranks.tolist()


def test_a_run_of_an_earlier_version_knows_its_data_by_the_old_name(chain_run: Path, chain_data: Dataset) -> None:
    run = Run.open(chain_run)
    run.record.data = chain_data._old_fingerprint
    run.require(chain_data)
    run.record.data = "0" * 32
    with pytest.raises(RunError, match="was trained on other data"):
        run.require(chain_data)
