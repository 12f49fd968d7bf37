"""The README can be trusted: figures are those of results/, code prints what it says, links lead somewhere."""

from __future__ import annotations

import json
import re
import shlex
import statistics
from pathlib import Path
from typing import Any

import pytest
import yaml
from experiment_scripts import script
from in_another_process import run_code, start
from typer.main import get_command

from llmd4rec.cli import app

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
TEXT = README.read_text(encoding="utf-8")
CHOSEN = yaml.safe_load((ROOT / "experiments" / "headline.yaml").read_text(encoding="utf-8"))


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.S)


def table_rows() -> list[list[str]]:
    tables = script("tables")
    start, end = (re.escape(mark) for mark in tables.MARKS)
    found = re.search(f"{start}\n(.*?)\n{end}", TEXT, re.S)
    assert found is not None
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found[1].splitlines()]


def test_it_is_short() -> None:
    words = [word for word in TEXT.split() if any(sign.isalnum() for sign in word)]
    assert len(words) <= 700


def test_the_tables_are_those_of_the_results() -> None:
    tables = script("tables")
    trials = tables.read_trials(ROOT / "results")
    assert tables.with_table(TEXT, tables.headline(trials, CHOSEN)) == TEXT, "run python experiments/tables.py"
    searches = [json.loads(path.read_text()) for path in sorted((ROOT / "results").glob("searches/*.json"))]
    page = tables.page(trials, searches, tables.headline_sources(trials, CHOSEN))
    assert page == (ROOT / "docs" / "results.md").read_text(encoding="utf-8"), "run python experiments/tables.py"


#: What older results call the models of stages.
FORMER = {"undistilled": "crm alone", "distilled": "crm distilled"}


def named(entries: dict[str, Any], name: str) -> Any:
    """The entry of a result under its present or its former name; of a round whichever it is."""
    plain = {re.sub(r"-round-\d+", "", key): value for key, value in entries.items()}
    for now, former in FORMER.items():
        name = name if name in plain else re.sub(rf"\b{now}\b", former, name)
    return plain[name]


def figure(trials: list[Any], model: str) -> str:
    values = [named(trial["models"], model)["test"]["ndcg@10"] for trial in trials]
    text = f"{statistics.mean(values):.4f}"[1:]
    return text + (f" ± {statistics.stdev(values):.4f}".replace("0.", ".") if len(values) > 1 else "")


@pytest.mark.parametrize(("place", "data"), enumerate(CHOSEN["columns"], start=1))
def test_each_figure_says_what_made_it(place: int, data: str) -> None:
    """Against the files themselves, by another way than that which makes the table."""
    head, _, *rows = table_rows()
    _, variant, seeds = head[place].split("<br>")
    seeds_of = [int(seed) for seed in re.findall(r"\d+", seeds)]
    folder = ROOT / "results" / "default" / data
    distilled, identifiers = (
        [json.loads((folder / f"{name}-seed{seed}.json").read_text()) for seed in seeds_of]
        for name in (variant.strip("`"), "identifiers")
    )
    trained = CHOSEN["columns"][data].get("memory_variant", "undistilled")
    study = CHOSEN["columns"][data].get("memory_study", "memory")
    memory = [
        json.loads((ROOT / "results" / study / data / f"{trained}-seed{seed}.json").read_text())
        for seed in CHOSEN["columns"][data]["memory_seeds"]
    ]
    assert rows[0][place] == figure(memory[:1], "memory")
    assert rows[1][place] == figure(identifiers, "undistilled")
    assert rows[2][place] == figure(distilled, "undistilled")
    assert rows[3][place] == ("" if trained == "untrained" else f"**{figure(memory, 'undistilled+memory')}**")
    taught = [] if trained == "untrained" else memory
    assert rows[4][place] == (f"**{figure(taught, 'distilled')}**" if taught else "")
    beside = [trial for trial in taught if "beside-memory+memory" in trial["models"]]
    assert rows[5][place] == (f"**{figure(beside, 'beside-memory+memory')}**" if beside else "")
    assert rows[6][place] == figure(distilled, "distilled")
    compared = [named(trial["comparisons"], "distilled over undistilled, test") for trial in distilled]
    gains = [groups["all"]["ndcg@10"] for groups in compared]
    shown = re.findall(r"[+-]\d+\.\d", rows[7][place])
    assert shown == [f"{gain['relative_percent']:+.1f}" for gain in gains]
    [p] = re.findall(r"\((.*)\)", rows[7][place])
    assert float(p) == round(max(gain["p"] for gain in gains), 4)


def test_docs_name_the_commit_of_each_figure() -> None:
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    lines = [line for line in page.splitlines() if "| with item features, distilled |" in line]
    assert len(lines) == len(CHOSEN["columns"])
    for line, (data, column) in zip(lines, CHOSEN["columns"].items(), strict=True):
        for seed in column["seeds"]:
            path = ROOT / "results" / CHOSEN["study"] / data / f"{column['variant']}-seed{seed}.json"
            assert json.loads(path.read_text())["environment"]["commit"] in line


@pytest.mark.slow
def test_the_python_prints_what_it_says(tmp_path: Path) -> None:
    (code,), (printed,) = blocks("python"), blocks("text")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    ran = start(run_code, code, tmp_path)
    ran.join(300)
    assert ran.exitcode == 0, (tmp_path / "err").read_text()
    assert (tmp_path / "out").read_text() == printed


def test_the_commands_exist() -> None:
    group = get_command(app)
    lines = [line.split("  #")[0] for line in "".join(blocks("sh")).splitlines() if line.startswith("llmd4rec")]
    assert {shlex.split(line)[1] for line in lines} >= {"prepare", "train", "evaluate", "recommend", "export", "serve"}
    for line in lines:
        _, name, *words = shlex.split(line)
        command = group.commands[name]  # type: ignore[attr-defined]
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= options, line
    targets = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", "".join(blocks("sh")), re.M):
        assert f"\n{target}:" in targets


def pages() -> list[Path]:
    return [README, *sorted((ROOT / "docs").rglob("*.md")), ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(path), f"{page.name}: {target}"
