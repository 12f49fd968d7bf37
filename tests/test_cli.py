"""The commands as a person or a script runs them. Most run in this process; what needs a process of its own has one."""

from __future__ import annotations

import dataclasses
import html
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from evaluation.examples import chain_dataset
from in_another_process import call_command, start
from made_once import MadeOnce
from settings_of import parse_settings
from typer.testing import CliRunner, Result

from llmd4rec.cli import app
from llmd4rec.data.dataset import Dataset
from llmd4rec.runs.run import Run

COMMANDS = [
    [], ["prepare"], ["train"], ["evaluate"], ["recommend"], ["compare"], ["report"], ["export"], ["serve"], ["data"],
]  # fmt: skip
NAMES = ['a "quoted" one', "comma, inside", "🎬", "[red]brackets[/red]", "[1, 2]", "Zürich", "null", "-5", "50", "x y"]


def llmd4rec(*arguments: object) -> Result:
    # Wide enough that no table is wrapped.
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "250", "TERM": "dumb"})


def answer(*arguments: object) -> Any:
    """What a command prints with --json; there must be nothing else."""
    result = llmd4rec(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refused(*arguments: object) -> str:
    """The message of a command that must fail as a person's mistake does."""
    result = llmd4rec(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return result.stderr


@pytest.fixture
def run(chain_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(chain_run, tmp_path / "run"))


@pytest.fixture(scope="module")
def odd_run(made_once: MadeOnce, tiny_settings: dict[str, Any]) -> Path:
    """A run whose identifiers and titles are hard to pass and to print."""

    def make(folder: Path) -> None:
        data = chain_dataset(users=20, items=len(NAMES), length=6)
        titles = [None, *(f"{name} [the film]" for name in NAMES[1:])]
        catalogue = pl.DataFrame({"item_id": NAMES, "title": titles})
        dataclasses.replace(data, catalogue=catalogue).save(folder / "data")
        parse_settings({**tiny_settings, "rounds": 0}).fit(Dataset.load(folder / "data"), folder / "run")

    return made_once("odd", make) / "run"


# ---- help and mistakes ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command: list[str]) -> None:
    result = llmd4rec(*command, "--help")
    assert result.exit_code == 0
    assert f"llmd4rec {command[0] if command else 'train'} " in result.stdout


def test_help_says_what_is_taken_by_default() -> None:
    """Square brackets are markup where they are not escaped, and would be swallowed."""
    for command, words in {
        "compare": ["[default: served]", "[default: as in the second run]"],
        "evaluate": ["[default: served]", "[default: as in the run]"], "report": ["RUN/report.html]"],
        "serve": ["[default: none]"], "export": ["[default: served]", "[default: RUN/export]"],
        "recommend": ["[default: the run's]", "[default: served]"],
    }.items():  # fmt: skip
        shown = " ".join(llmd4rec(command, "--help").stdout.replace("│", " ").split())
        for word in words:
            assert word in shown, (command, word)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from llmd4rec.cli import app\n"
        f"for command in {COMMANDS}: assert CliRunner().invoke(app, [*command, '--help']).exit_code == 0\n"
        "heavy = {'torch', 'transformers', 'peft', 'polars', 'numpy', 'scipy', 'pyarrow', 'onnx'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


def test_version_and_settings() -> None:
    assert llmd4rec("--version").stdout.startswith("llmd4rec ")
    shown = llmd4rec("train", "--show-settings").stdout
    assert "training.llm.epochs" in shown
    assert "λ2" in shown
    assert "[text]}" in shown  # which is no markup
    assert "--effort default lays over these" in shown
    assert "rounds: 0" in llmd4rec("train", "--effort", "fast", "--show-settings").stdout


@pytest.mark.parametrize("command", ["evaluate", "report", "export", "recommend", "compare"])
def test_a_folder_that_is_no_run(command: str, tmp_path: Path) -> None:
    more: dict[str, list[object]] = {"recommend": ["--history", "a"], "compare": [tmp_path]}
    message = refused(command, tmp_path, *more.get(command, []))
    assert ("is neither a run folder" if command == "recommend" else "is not a run folder") in message
    assert "llmd4rec train" in message


def test_train_says_what_is_missing_and_wrong(chain_data: Dataset, tmp_path: Path) -> None:
    assert "--data" in refused("train")
    assert "did you mean 'rounds'" in refused("train", "-d", chain_data.path, "-r", tmp_path / "r", "--set", "round=1")
    assert "is not a prepared data set" in refused("train", "-d", tmp_path, "-r", tmp_path / "r")
    assert "does not exist" in refused("train", tmp_path / "no.yaml", "-d", tmp_path, "-r", tmp_path / "r")
    assert list(tmp_path.iterdir()) == []


def test_a_stage_the_run_does_not_have(odd_run: Path) -> None:
    message = refused("evaluate", odd_run, "--stage", "distilled")
    assert "has no finished stage 'distilled'; it has: undistilled, served" in message
    assert "llmd4rec train" in message
    assert "has no finished stage 'llm'" in refused("recommend", odd_run, "--stage", "llm", "--history", "50")
    assert "has no finished stage 'gpt'" in refused("export", odd_run, "--stage", "gpt")
    assert "'alone' is now 'undistilled'" in refused("compare", odd_run, odd_run, "--stage-b", "alone")
    assert not (odd_run / "export").exists()


@pytest.mark.parametrize("command", ["evaluate", "recommend", "compare", "export"])
def test_an_option_of_before_names_the_one_that_took_its_place(command: str, tmp_path: Path) -> None:
    more: dict[str, list[object]] = {"recommend": ["--history", "a"], "compare": [tmp_path]}
    for old, new in (("--model", "--stage"), ("--seen", "--no-filter-seen")):
        message = refused(command, tmp_path, *more.get(command, []), old, "keep")
        there = new in llmd4rec(command, "--help").stdout
        assert (f"{old} is now" in message and new in message) == there, message
    assert "is now" not in refused("serve", tmp_path, "--model", "a")  # which never was one


def test_settings_of_before_are_refused_with_their_new_names(chain_data: Dataset, tmp_path: Path) -> None:
    (tmp_path / "old.yaml").write_text("crm: {dim: 32}\nwide: null\nevaluation: {seen: keep}\n")
    message = refused("train", tmp_path / "old.yaml", "-d", chain_data.path, "-r", tmp_path / "run")
    assert "'crm.dim' is now 'model.dim'" in message
    assert "'wide' no longer exists: set teachers" in message
    assert "'evaluation.seen' no longer exists: set evaluation.filter_seen" in message
    assert "'lambda_up' is now 'distill.weight.model'" in refused("train", "--plan", "--set", "lambda_up=2")
    assert [path.name for path in tmp_path.iterdir()] == ["old.yaml"]


# ---- the plan ---------------------------------------------------------------------------------------------------
def cells(table: str) -> dict[str, dict[str, str]]:
    """The rows of a printed table by their first cell; what was wrapped is one text again."""
    header, *lines = table.splitlines()
    names = [match.group() for match in re.finditer(r"\S+( \S+)*", header)]
    starts = [header.index(f" {name} ") + 1 for name in names]
    rows: dict[str, dict[str, str]] = {}
    row: dict[str, str] = {}
    for line in lines:
        texts = [line[start:end].strip() for start, end in zip(starts, [*starts[1:], None], strict=True)]
        row = rows.setdefault(texts[0], {}) if texts[0] else row
        for name, text in zip(names, texts, strict=True):
            row[name] = f"{row.get(name, '')} {text}".strip()
    return rows


def test_a_plan_names_stages_and_teachers_and_trains_nothing(tmp_path: Path) -> None:
    sets = [part for each in ("rounds=1", "distill.source=partner") for part in ("--set", each)]
    shown = llmd4rec("train", "--effort", "best", "--plan", "--run", tmp_path / "run", *sets)
    assert shown.exit_code == 0, shown.output
    *table, last = shown.stdout.splitlines()
    assert "--jobs 2" in last
    rows = cells("\n".join(table))
    assert list(rows) == [
        "undistilled", "teacher-1", "teacher-2", "teacher-3", "llm", "llm-round-1", "distilled-round-1"
    ]  # fmt: skip
    assert [row["model"] for row in rows.values()][:4] == ["SASRec 64", "SASRec 256", "GRU4Rec 256", "BSARec 256"]
    assert {name: row["taught by"] for name, row in rows.items() if row["taught by"] != "-"} == {
        "llm-round-1": "teacher-1, teacher-2, teacher-3, undistilled",
        "distilled-round-1": "llm-round-1",
    }
    assert rows["llm"]["starts from"] == "scratch, item embeddings of teacher-1"
    assert list(tmp_path.iterdir()) == []


def test_a_plan_as_json_and_the_plan_of_a_run_that_is_there(
    run: Path, tiny_settings: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tiny_settings))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    stages = answer("train", tmp_path / "run.yaml", "--plan", "--run", run)
    assert [(stage["id"], stage["teachers"], stage["needs"]) for stage in stages] == [
        ("undistilled", [], []),
        ("llm", [], ["undistilled"]),  # whose item embeddings it reads
        ("llm-round-1", ["undistilled"], ["undistilled", "llm"]),
        ("distilled-round-1", ["llm-round-1"], ["llm-round-1"]),
    ]
    assert stages[0]["network"]["dim"] == 8
    assert llmd4rec("train", tmp_path / "run.yaml", "--plan", "--run", run).stdout.count("done in ") == 4
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


# ---- evaluate, compare, report ----------------------------------------------------------------------------------
def test_evaluate_keeps_its_contract(run: Path) -> None:
    result = answer("evaluate", run)
    assert result.keys() == {"metrics", "slices", "users", "model", "stage", "filter_seen", "split"}
    assert {f"{name}@{k}" for name in ("hr", "ndcg", "mrr") for k in (5, 10, 20)} <= result["metrics"].keys()
    assert all(0 <= result["metrics"][f"hr@{k}"] <= 1 for k in (5, 10, 20))
    about = (result["users"], result["model"], result["stage"], result["filter_seen"], result["split"])
    assert about == (30, "SASRec 8", Run.open(run).resolve("served"), True, "test")
    assert all("users" in values for values in result["slices"].values())

    other = answer("evaluate", run, "--stage", "llm", "--no-filter-seen", "--split", "valid")
    assert (other["model"], other["stage"], other["filter_seen"], other["split"]) == ("llama", "llm", False, "valid")
    assert answer("evaluate", run, "--stage", "distilled", "--filter-seen")["stage"] == "distilled-round-1"
    names = {path.name for path in (run / "evaluation").iterdir()}
    assert names == {f"{result['stage']}-test", "distilled-round-1-test", "llm-valid-with-seen"}
    assert "NDCG" in llmd4rec("evaluate", run).stdout


def test_compare_names_both_and_finds_nothing_between_a_model_and_itself(run: Path) -> None:
    same = answer("compare", run, run, "--stage-a", "undistilled", "--stage-b", "undistilled")
    assert "0.0" in json.dumps(same)
    assert all(value == 0 for value in _values(same, "difference"))
    other = answer("compare", run, run, "--stage-a", "undistilled", "--stage-b", "distilled")
    assert (other["first"], other["second"]) == ("undistilled (SASRec 8)", "distilled-round-1 (SASRec 8)")
    assert llmd4rec("compare", run, run).exit_code == 0


def _values(tree: Any, key: str) -> list[Any]:
    if isinstance(tree, dict):
        found = [tree[key]] if key in tree else []
        return found + [value for child in tree.values() for value in _values(child, key)]
    return [value for child in tree for value in _values(child, key)] if isinstance(tree, list) else []


def test_report_is_one_page_that_needs_nothing_else(run: Path) -> None:
    result = llmd4rec("report", run)
    assert result.exit_code == 0, result.output
    assert "distilled-round-1" in result.stdout
    assert result.stdout.count("(served)") == 1
    page = html.unescape((run / "report.html").read_text(encoding="utf-8"))
    assert "SASRec" in page
    assert '<script src="' not in page


def test_the_report_is_where_it_is_said_to_be(run: Path, tmp_path: Path) -> None:
    result = llmd4rec("report", run, "--out", tmp_path / "elsewhere.html")
    assert str(tmp_path / "elsewhere.html") in result.stdout.replace("\n", "")
    assert (tmp_path / "elsewhere.html").is_file()


def test_data_that_are_named_are_looked_at_even_if_nothing_needs_them(run: Path, tmp_path: Path) -> None:
    assert llmd4rec("compare", run, run, "--stage-a", "undistilled").exit_code == 0  # evaluations are saved now
    assert "nowhere is not a prepared" in refused(
        "compare", run, run, "--stage-a", "undistilled", "--data", tmp_path / "nowhere"
    )


def test_a_run_and_its_data_can_move(run: Path, chain_data: Dataset, tmp_path: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "data_path": str(tmp_path / "gone")}))
    assert "gone is not a prepared data set" in refused("evaluate", run)
    moved = tmp_path / "moved"
    assert chain_data.path is not None
    shutil.copytree(chain_data.path, moved)
    assert answer("evaluate", run, "--data", moved)["users"] == 30
    assert llmd4rec("report", run, "--data", moved).exit_code == 0
    shutil.rmtree(run / "evaluation")
    assert llmd4rec("compare", run, run, "--stage-a", "undistilled", "--data", moved).exit_code == 0
    assert llmd4rec("recommend", run, "--history", "i1").exit_code == 0  # needs no data
    chain_dataset(users=30, items=12, length=7).save(tmp_path / "other")
    assert "was trained on other data" in refused("evaluate", run, "--data", tmp_path / "other")


def test_export_reports_where_and_refuses_to_replace(run: Path, chain_data: Dataset, tmp_path: Path) -> None:
    assert chain_data.path is not None
    moved = Path(shutil.copytree(chain_data.path, tmp_path / "moved"))
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "data_path": str(tmp_path / "gone")}))
    result = llmd4rec("export", run, "--data", moved)
    assert result.exit_code == 0, result.output
    assert "agree" in result.stdout
    assert (run / "export" / "encoder.onnx").exists()
    assert "--overwrite" in refused("export", run, "--data", moved)
    assert "is not an export" in refused("export", run, "--data", moved, "--out", run, "--overwrite")
    assert "--memory on" in refused("export", run, "--stage", "memory")
    assert (run / "run.json").exists()


# ---- recommend --------------------------------------------------------------------------------------------------
def ids(result: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in result["recommendations"]]


@pytest.mark.parametrize("name", NAMES)
def test_any_identifier_can_be_given_and_comes_back(name: str, odd_run: Path) -> None:
    result = answer(
        "recommend", odd_run, "--history", json.dumps([name, "Zürich"]), "--no-filter-seen", "-k", len(NAMES)
    )
    assert result["history"] == [name, "Zürich"]
    assert sorted(ids(result)) == sorted(NAMES)
    title = {item["item_id"]: item["title"] for item in result["recommendations"]}[name]
    assert title == (name if name == NAMES[0] else f"{name} [the film]")
    as_csv = '"' + name.replace('"', '""') + '"'
    again = answer("recommend", odd_run, f"--history={as_csv},Zürich", "--no-filter-seen", "-k", len(NAMES))
    assert again["history"] == result["history"]
    assert ids(again) == ids(result)


def test_numbers_in_a_json_list_and_a_plain_line(odd_run: Path) -> None:
    assert answer("recommend", odd_run, "--history", "[50, -5]")["history"] == ["50", "-5"]
    assert answer("recommend", odd_run, "--history", " 50 , x y,🎬")["history"] == ["50", "x y", "🎬"]


def test_the_table_shows_titles_as_they_are(odd_run: Path) -> None:
    shown = llmd4rec("recommend", odd_run, "--history", "50").stdout
    assert "[red]brackets[/red] [the film]" in shown
    assert '"quoted"' in shown


def test_seen_items_and_how_many(odd_run: Path) -> None:
    history = json.dumps(NAMES[:3] * 5)
    removed = answer("recommend", odd_run, "--history", history, "-k", 100)
    assert set(ids(removed)) == set(NAMES[3:])
    kept = answer("recommend", odd_run, "--history", history, "-k", 100, "--no-filter-seen")
    assert set(ids(kept)) == set(NAMES)
    scores = [item["score"] for item in kept["recommendations"]]
    assert scores == sorted(scores, reverse=True)
    assert ids(answer("recommend", odd_run, "--history", history, "-k", 2)) == ids(removed)[:2]
    assert ids(answer("recommend", odd_run, "--history", json.dumps(NAMES), "-k", 3)) == []  # all were seen


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--history", "Zurich"], "nearest known: 'Zürich'"),
        (["--history", "50,nothing like it"], "unknown item in the history: 'nothing like it'"),
        (["--history", '["a'], "not a JSON list"),
        (["--history", '"open'], "Close every quote"),
        (["--history", "50", "--times", "1,2"], "times has 2 entries, the history 1"),
        (["--history", "50", "--times", "today"], "times[0] is 'today', which is no moment"),
        (["--history", "50", "--now", "soon"], "now is 'soon', which is no moment"),
        (["--history", "50", "-k", "0"], "k is 0"),
        (["--history", "50", "-k", "-3"], "k is -3"),
    ],
)
def test_a_history_that_cannot_be_answered(arguments: list[str], expected: str, odd_run: Path) -> None:
    assert expected in refused("recommend", odd_run, *arguments)


@pytest.mark.parametrize("option", ["--explain", "--json", "--skip-unknown"])
def test_what_a_file_of_recommendations_cannot_hold_is_refused(odd_run: Path, tmp_path: Path, option: str) -> None:
    assert f"{option} is for --history" in refused(
        "recommend", odd_run, "--users", "all", "--out", tmp_path / "r.csv", option
    )


def test_scores_that_are_not_made_cannot_be_printed(chain_data: Dataset, tmp_path: Path) -> None:
    result = llmd4rec("train", "-d", chain_data.path, "-r", tmp_path / "run", "--no-evaluate", "--json")
    assert result.exit_code == 2
    assert not (tmp_path / "run").exists()


def test_unknown_items_can_be_left_out(odd_run: Path) -> None:
    known = answer("recommend", odd_run, "--history", "50")
    skipping = answer("recommend", odd_run, "--history", "nope,50", "--skip-unknown")
    assert ids(skipping) == ids(known)
    assert (known["unknown"], skipping["unknown"]) == ([], ["nope"])


@pytest.mark.parametrize("history", [[""], ["[]"], [" , ,"], ["nope", "--skip-unknown"]])
def test_a_history_without_a_known_item_gets_popular_items(history: list[str], odd_run: Path) -> None:
    popular = answer("recommend", odd_run, "--history", *history, "-k", 3)
    assert popular["fallback"] == "popular"
    scores = [item["score"] for item in popular["recommendations"]]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > 1


# ---- processes of their own -------------------------------------------------------------------------------------
def process(arguments: Sequence[object], **more: Any) -> subprocess.Popen[str]:
    code = (
        "import atexit, sys; from llmd4rec.cli import main; sys.argv[0] = 'llmd4rec'\n"
        "heavy = ('transformers', 'peft')\n"
        "atexit.register(lambda: print('LOADED', *[m for m in heavy if m in sys.modules], file=sys.stderr))\n"
        "main()"
    )
    command = [sys.executable, "-c", code, *(str(argument) for argument in arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, tiny_settings: dict[str, Any]) -> Path:
    path = tmp_path_factory.mktemp("config") / "run.yaml"
    training = {**tiny_settings["training"]["model"], "epochs": 20, "patience": 20, "checkpoint_seconds": 0.05}
    settings = {**tiny_settings, "rounds": 0, "training": {"model": training}}
    path.write_text(yaml.safe_dump(settings))
    return path


def figures(folder: Path) -> list[dict[str, Any]]:
    log = folder / "checkpoints" / "undistilled" / "metrics.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def wait_for(path: Path, lines: int) -> None:
    end = time.monotonic() + 60
    while not path.exists() or len(path.read_text().splitlines()) < lines:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_stopped_command_goes_on_to_the_same_numbers(config: Path, chain_data: Dataset, tmp_path: Path) -> None:
    """SIGKILL, Ctrl-C, SIGTERM, then to the end: same weights, same log; choices are said without a terminal."""
    whole = llmd4rec("train", config, "-d", chain_data.path, "-r", tmp_path / "whole", "--no-evaluate")
    assert whole.exit_code == 0, whole.output
    arguments = ["train", str(config), "-d", str(chain_data.path), "-r", str(tmp_path / "parts"), "--json"]
    for number, lines in ((signal.SIGKILL, 3), (signal.SIGINT, 6), (signal.SIGTERM, 9)):
        stopped = start(call_command, arguments, tmp_path)
        wait_for(tmp_path / "parts" / "checkpoints" / "undistilled" / "metrics.jsonl", lines)
        os.kill(stopped.pid, number)
        stopped.join(60)
        assert (tmp_path / "out").read_text() == ""
        if number == signal.SIGKILL:
            assert stopped.exitcode == -signal.SIGKILL
        else:
            assert stopped.exitcode == 128 + number
            assert "stopped; a checkpoint was written.\n  Run the same command again" in (tmp_path / "err").read_text()
    assert len(figures(tmp_path / "parts")) < 21
    finished = process(arguments)
    out, err = finished.communicate(timeout=60)
    assert finished.returncode == 0
    *printed, last = err.splitlines()
    assert last == "LOADED"  # no language model without rounds
    said = [line for line in printed if " left" not in line]  # on a machine so busy that it takes a minute
    assert said[0] == "undistilled"
    assert re.fullmatch(r"  validation NDCG@10 [01]\.\d{4} in epoch \d+, \d+ s", said[1])
    assert [stage["stage"] for stage in json.loads(out)["stages"] if stage["role"] == "model"] == ["undistilled"]
    assert figures(tmp_path / "parts") == figures(tmp_path / "whole")
    best = Path("checkpoints", "undistilled", "best.safetensors")
    assert (tmp_path / "parts" / best).read_bytes() == (tmp_path / "whole" / best).read_bytes()
    assert (tmp_path / "parts" / "report.html").exists()
    assert Run.open(tmp_path / "parts").record.finished


def test_a_reader_that_leaves_is_met_with_silence() -> None:
    talking = process(["train", "--show-settings"])
    assert talking.stdout is not None
    talking.stdout.close()
    assert talking.wait(60) in (0, 1)
    assert talking.stderr is not None
    assert talking.stderr.read() == "LOADED\n"
    talking.stderr.close()
