"""Runs the stages one after another and writes `benchmarks/results.md` from what each left in `benchmarks/out`.

    python benchmarks/run.py [stage ...] [--only-report]

Each stage is a process of its own with a time budget; one that fails or takes too long is reported as that, and the
others go on.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from harness import OUT, shown

from llmd4rec.startup import ENVIRONMENT

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results.md"
#: Every stage with the most seconds it may take; together they took 13 minutes on the machine of results.md.
STAGES = {
    "prediction_layer": 110,
    "crm_epoch": 380,
    "llm_epoch": 170,
    "teacher_cache": 70,
    "text_encoding": 105,
    "evaluation": 85,
    "prepare": 65,
    "large_catalogue": 150,
    "memory": 120,
    "command_line": 40,
    "recipe": 300,
    "neighbours": 60,
    "serve_recommender": 100,
    "serve_http": 110,
}
#: Measured apart, because they train (`make bench-long`, `probe.py FOLDERS`); on the page where they were.
LONG = ("probe", "time_to_accuracy", "time_to_accuracy_same_network", "large_catalogue_accuracy")


def main() -> None:
    """Runs what was asked for, or everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", metavar="stage", help=f"of: {', '.join(STAGES)} (default: all)")
    parser.add_argument("--only-report", action="store_true", help="write results.md from what is there")
    arguments = parser.parse_args()
    if unknown := set(arguments.stages) - set(STAGES):
        parser.error(f"no such stage: {', '.join(sorted(unknown))}; there are {', '.join(STAGES)}")
    began, failed = time.perf_counter(), []
    chosen = [] if arguments.only_report else arguments.stages or list(STAGES)
    for number, name in enumerate(chosen, 1):
        print(f"[{number}/{len(chosen)}] {name} (at most {STAGES[name]} s)", flush=True)
        if problem := run(name):
            failed.append(name)
            print(f"  {name} failed: {problem}", flush=True)
    RESULTS.write_text(markdown(), encoding="utf-8")
    print(f"{(time.perf_counter() - began) / 60:.1f} minutes; {RESULTS}")
    sys.exit(1 if failed else 0)


def run(name: str) -> str:
    """Runs one stage; gives what went wrong, which is also kept for the report, or nothing."""
    OUT.mkdir(exist_ok=True)
    record = OUT / f"{name}.json"
    record.unlink(missing_ok=True)
    started = time.perf_counter()
    # A group of its own, so that a stage's children end with it.
    # Threads and memory as under the `llmd4rec` command; peers, being children of a stage, alike.
    environment = {**ENVIRONMENT, **os.environ}
    child = subprocess.Popen([sys.executable, str(HERE / f"{name}.py")], start_new_session=True, env=environment)
    try:
        code = child.wait(STAGES[name])
        problem = f"exit status {code}" if code else "" if record.exists() else "it reported nothing"
    except subprocess.TimeoutExpired:
        problem = f"not done after {STAGES[name]} s"
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    print(f"  {time.perf_counter() - started:.0f} s", flush=True)
    if problem:
        record.write_text(json.dumps({"name": name, "failed": problem}), encoding="utf-8")
    return problem


def markdown(out: Path = OUT, page: Path = RESULTS) -> str:
    """All stages' figures as one page: those measured here, and behind them the others that are on it."""
    paths = {name: out / f"{name}.json" for name in (*STAGES, *LONG)}
    records = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.exists()}
    kept = measured_before(page, {record.get("title", name) for name, record in records.items()})
    origins = {origin(record) for record in records.values() if "failed" not in record}
    lines = [
        "# Benchmarks",
        "",
        "Made by `make bench`; [README.md](README.md) says what is measured and how. In each stage all ways took turns "
        "in one run. A ratio that misses its target stands as it was measured.",
        "",
        *(
            origins
            if len(origins) == 1 and not kept
            else ["The stages were not all measured in one go; each says when it was."]
        ),
        "",
    ]
    for name, record in records.items():
        lines += section(name, record, dated=len(origins) > 1 or bool(kept))
    return "\n".join([*lines, *kept]).rstrip() + "\n"


def measured_before(page: Path, titles: set[str]) -> list[str]:
    """The sections of the page as it stands, but for those of which there are records here."""
    if not page.exists():
        return []
    sections = page.read_text(encoding="utf-8").split("\n## ")[1:]
    return [f"## {text.rstrip()}\n" for text in sections if text.partition("\n")[0] not in titles]


def origin(record: dict[str, Any]) -> str:
    """Machine, versions, commit and day of a stage in one line."""
    machine = record["machine"]
    versions = ", ".join(f"{package} {version}" for package, version in record["versions"].items())
    threads = "".join(f", {name}={value}" for name, value in machine["threads"].items())
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gb']} GB, {machine['system']}{threads}; "
        f"{versions}; commit {record['commit']}; {record['date'][:10]}"
    )


def section(name: str, record: dict[str, Any], *, dated: bool) -> list[str]:
    """One stage, with its machine and date where they differ from others'."""
    if "failed" in record:
        return [f"## {name}", "", f"Failed: {record['failed']}.", ""]
    lines = [
        f"## {record['title']}",
        "",
        *([origin(record), ""] if dated else []),
        "| | measured | target | |",
        "|---|---:|---|---|",
    ]
    verdict = {True: "met", False: "**missed**", None: ""}
    for figure in record["figures"]:
        goal = " ".join(part for part in (figure["target"], verdict[figure["met"]]) if part)
        cells = (figure["what"], f"{shown(figure['value'])} {figure['unit']}", goal, figure["note"])
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    notes = [f"- {note}" for note in record["notes"]]
    return [*lines, "", *notes, *([""] if notes else [])]


if __name__ == "__main__":
    main()
