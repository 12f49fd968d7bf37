"""The commands `prepare` and `data` as a user runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from llmd4rec.cli import app

LOG = "user,item,time\n" + "".join(f"u{n % 3},i{n % 7},{n}\n" for n in range(40))


@pytest.fixture
def llmd4rec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """A command, called in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, arguments, env={"COLUMNS": "250", "TERM": "dumb"})


def test_prepare(llmd4rec: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(LOG)
    (tmp_path / "items.tsv").write_text("item\tname\n" + "".join(f"i{n}\tThing {n}\n" for n in range(7)))
    arguments = ("prepare", "--interactions", "log.csv", "--items", "items.tsv", "--out", "out")
    first = llmd4rec(*arguments, "--json")
    assert first.exit_code == 0, first.stderr
    told = json.loads(first.stdout)
    assert told["totals"]["interactions"] == 40
    assert told["catalogue"]["text_columns"] == {"title": 7}

    (tmp_path / "rich.csv").write_text(
        "item,title,keywords,sku,brand\n" + "".join(f'i{n},,red wool|hat {n % 2},A{n},"Dove, Inc."\n' for n in range(7))
    )
    rich = ("prepare", "--interactions", "log.csv", "--items", "rich.csv", "--out")
    said = llmd4rec(*rich, "rich").stdout
    assert "several values in keywords: split at '|': 7 items have several, 3 different values" in said
    assert "items with a text: 7 of 7, from brand, keywords" in said
    assert "text columns without any text: title" in said
    assert "not taken as text: sku (identifiers); --text-cols decides otherwise" in said
    said = llmd4rec(*rich, "whole", "--no-split", "--multi-cols", "brand=,").stdout
    assert "several values in brand: split at ','" in said
    assert "in keywords" not in said
    assert "is not COLUMN=SIGN" in llmd4rec(*rich, "wrong", "--multi-cols", "brand").stderr

    again = llmd4rec(*arguments)
    assert again.exit_code == 2
    assert "out already exists" in again.stderr
    assert "--overwrite" in again.stderr
    assert not again.stdout

    forced = llmd4rec(*arguments, "--overwrite", "--duplicates", "drop")
    assert forced.exit_code == 0
    assert "dropped 19 rows: repeats" in forced.stdout
    assert "3 users, 7 items, 21 interactions, ordered by time" in forced.stdout


def test_errors_are_told_without_a_traceback(llmd4rec: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(LOG.replace("u2,i2,2", "u2,i2,later"))
    result = llmd4rec("prepare", "--interactions", "log.csv", "--out", "out")
    assert result.exit_code == 2
    assert "log.csv, row 3, column 'time': 'later'" in result.stderr
    assert "Traceback" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


def test_list_and_get(llmd4rec: Callable[..., Result], tmp_path: Path) -> None:
    listed = llmd4rec("data", "list", "--json")
    names = {source["name"]: source for source in json.loads(listed.stdout)}
    assert names["ml-1m"]["origins"][0][0]["pinned"] is True
    assert names["steam"]["origins"][0][0]["pinned"] is False
    assert "Accept the terms" in names["yelp"]["manual"]
    assert "not pinned" in llmd4rec("data", "list", "steam").stdout

    (tmp_path / "ratings.dat").write_text("1::1193::5::978300760\n")
    (tmp_path / "movies.dat").write_text("1193::Film (1975)::Drama\n")
    got = llmd4rec("data", "get", "ml-1m", "--from", ".", "--out", "raw")
    assert got.exit_code == 0, got.stderr
    assert "1 interactions of 1 users with 1 items" in got.stdout
    assert "Terms" in (tmp_path / "raw" / "README.md").read_text()
    assert llmd4rec("data", "get", "ml-1m", "--from", ".", "--out", "raw").exit_code == 2


def test_help_is_quick_to_import() -> None:
    program = (
        "import sys, llmd4rec.cli.prepare, llmd4rec.cli.data; "
        "print(sorted({'polars', 'torch', 'numpy'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
