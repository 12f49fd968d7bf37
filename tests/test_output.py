"""Pipes and files that are not UTF-8: signs they lack are replaced, in JSON escaped; never a traceback."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from made_once import MadeOnce

#: Commands one after another in one process, whose output is a pipe of the encoding in question.
DRIVER = """
import json, os, sys
from llmd4rec.cli import main
for number, command in enumerate(json.loads(sys.stdin.read())):
    sys.argv = ["llmd4rec", *(os.fsdecode(part.encode()) for part in command)]
    try:
        main()
        code = 0
    except SystemExit as ended:
        code = ended.code or 0
    sys.stdout.flush(); sys.stderr.flush()
    os.write(1, b"\\x00%d %d\\x00" % (number, code))
"""
TINY = [
    "rounds=0",
    "teachers=null",
    "model.item_features=id",
    "training.model.epochs=1",
    "model.dim=8",
    "model.layers=1",
    "model.heads=1",
]
ENCODINGS: dict[str, dict[str, str]] = {
    "ascii": {"PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"},
    "cp1252": {"PYTHONUTF8": "0", "PYTHONIOENCODING": "cp1252"},
    "C": {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"},
    "utf-8": {"PYTHONUTF8": "1"},
}


def run_all(name: str, commands: list[tuple[list[str], int]]) -> list[str]:
    """What each command printed, once it has ended as it should."""
    ran = subprocess.run(
        [sys.executable, "-c", DRIVER],
        input=json.dumps([command for command, _ in commands]).encode(),
        capture_output=True,
        env={**os.environ, "COLUMNS": "150", **ENCODINGS[name]},
        check=False,
    )
    assert b"Traceback" not in ran.stderr, ran.stderr.decode("utf-8", "replace")[-2000:]
    pieces = re.split(rb"\x00(\d+) (\d+)\x00", ran.stdout)
    assert [int(code) for code in pieces[2::3]] == [code for _, code in commands]
    encoding = {"C": "ascii"}.get(name, name)
    printed = [piece.decode(encoding) for piece in pieces[:-1:3]]  # not a byte of another encoding
    for (command, _), text in zip(commands, printed, strict=True):
        if "--json" in command:
            json.loads(text)
    return printed


def write_shop(home: Path) -> list[str]:
    """A log and a catalogue of hard signs, and the command that prepares them, without where to."""
    home.mkdir()
    rows = [f"u{user},i{(user + step) % 12},{step}" for user in range(30) for step in range(6)]
    (home / "log.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]), encoding="utf-8")
    items = [f"i{item},Lampe {item} 🎈 “Żółw”,größe|rot → blau" for item in range(12)]
    (home / "items.csv").write_text("\n".join(["item_id,title,tags", *items]), encoding="utf-8")
    return ["prepare", "--interactions", str(home / "log.csv"), "--items", str(home / "items.csv"), "--out"]


@pytest.fixture(scope="module")
def home(made_once: MadeOnce) -> Path:
    """All commands, each into a pipe that is ASCII, in a folder whose name is not."""
    return made_once("output", lambda folder: all_commands(folder / "Größe → 🎈")) / "Größe → 🎈"


def all_commands(home: Path) -> None:
    prepare = write_shop(home)
    data, run = str(home / "data"), str(home / "run")
    sets = [part for each in TINY for part in ("--set", each)]
    commands: list[tuple[list[str], int]] = [
        ([*prepare, data], 0),
        (["data", "list", "ml-100k"], 0),
        (["data", "list", "--json"], 0),
        (["train", "-d", data, "-r", run, *sets, "--no-evaluate"], 0),
        (["evaluate", run], 0),
        (["evaluate", run, "--json"], 0),
        (["compare", run, run], 0),
        (["compare", run, run, "--json"], 0),
        (["report", run], 0),
        (["recommend", run, "--users", "all", "--out", str(home / "recs.csv")], 0),
        (["export", run, "--out", str(home / "export")], 0),
        (["train", "--show-settings"], 0),
        (["recommend", run, "--history", "i1,i2", "-k", "2"], 0),
        (["prepare", "--interactions", str(home / "nirgends"), "--out", data], 2),
        (["evaluate", run, "--split", "größe → 🎈"], 2),
        (["recommend", "--help"], 0),
        (["prepare", "--help"], 0),
    ]
    run_all("ascii", commands)


@pytest.mark.parametrize("name", ENCODINGS)
def test_no_command_fails_for_its_output(name: str, home: Path, tmp_path: Path) -> None:
    # Of an export, for which PyTorch need not be loaded.
    prepare, export = write_shop(tmp_path / "shop"), str(home / "export")
    if name == "C":  # where file names are ASCII, there is no such folder
        export = str(tmp_path / "export")
        shutil.copytree(home / "export", export)
    printed = run_all(
        name,
        [
            ([*prepare, str(tmp_path / "a")], 0),
            ([*prepare, str(tmp_path / "b"), "--json"], 0),
            (["recommend", export, "--history", "überall → 🎈"], 2),
            (["recommend", export, "--history", "i1,i2", "-k", "2"], 0),
            (["recommend", export, "--history", "i1,i2", "-k", "2", "--json"], 0),
        ],
    )
    assert "Lampe" in printed[3]
    assert ("🎈" in printed[3]) == (name == "utf-8")
    assert json.loads(printed[4])["recommendations"][0]["title"].endswith("🎈 “Żółw”"), "escaped, not lost"


def test_what_is_written_for_people_is_utf8(home: Path) -> None:
    assert "🎈 “Żółw”" in (home / "recs.csv").read_text(encoding="utf-8")
    for written in ("data/report.md", "data/report.json", "run/report.html", "run/config.yaml", "export/README.md"):
        (home / written).read_text(encoding="utf-8")
    assert json.loads((home / "data" / "dataset.json").read_text(encoding="utf-8"))["multi_fields"] == {"tags": "|"}


def test_the_service_says_where_it_is(home: Path, tmp_path: Path) -> None:
    named = Path(shutil.copytree(home / "export", tmp_path / "Größe → 🎈" / "Export → 🎈"))
    program = "from llmd4rec.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "serve", str(named), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **ENCODINGS["ascii"]},
    )
    assert process.stdout is not None
    first = process.stdout.readline().decode("ascii")
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert first.startswith("Export ? ?: sasrec"), errors.decode("utf-8", "replace")
    assert b"Traceback" not in errors


def messages(before: str, stderr: object = subprocess.PIPE) -> str:
    """What a program that has prepared itself by `before` shows of a message, a warning and a line on progress."""
    program = f"""
import logging, sys
{before}
from llmd4rec import log
log.LINE_SECONDS = 0.0
log.logger.info("Reading [log.csv] …")
log.logger.warning("a [bold] warning, " + "long " * 40)
with log.bar("training", 4, "steps") as bar:
    bar.advance(1)
print("done")
"""
    ran = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=stderr, check=True)  # type: ignore[call-overload]
    assert ran.stdout == b"done\n"
    return (ran.stderr or b"").decode()


def test_messages_appear_without_any_configuring_and_obey_standard_logging() -> None:
    warning, progress = "a [bold] warning, " + "long " * 39 + "long", "training: 1 of 4 steps"
    lines = [line.rstrip() for line in messages("").splitlines()]
    assert lines[0] == f"warning: {warning}", "in one line, however wide; what is said in passing only on a terminal"
    assert lines[1].startswith(progress)
    assert len(lines) == 2
    assert messages("logging.getLogger('llmd4rec').setLevel('ERROR')") == ""
    assert progress not in messages("logging.getLogger('llmd4rec.progress').setLevel('WARNING')")
    own = messages("logging.basicConfig(format='%(name)s|%(message)s')").splitlines()
    assert [line.split("|")[0] for line in own] == ["llmd4rec", "llmd4rec", "llmd4rec.progress"], "once each"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk that is always full")
def test_a_message_that_cannot_be_written_stops_nothing() -> None:
    with Path("/dev/full").open("wb") as full:
        messages("", full)
