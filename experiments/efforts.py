"""What each `llmd4rec train --effort` costs and gives: trained one after the other, timed, and drawn.

    python experiments/efforts.py --data industrial=FOLDER --efforts fast default --seed 0
    python experiments/efforts.py                # only draws what results/efforts/ holds

Seconds are those of processors, of the whole command with its evaluation, so that a busy machine changes them little.
Left of the efforts stands the memory alone: `llmd4rec baselines`, timed in the same way. The figure goes to
docs/images/efforts.svg.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmd4rec.distillation.efforts import EFFORTS
from llmd4rec.distillation.stage_ids import MEMORY
from llmd4rec.io.files import write_json
from llmd4rec.runs.run import Run
from llmd4rec.training.runtime import environment

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "experiments" / ".runs" / "efforts"
METRIC = "ndcg@10"
NO_TRAINING = "memory alone"
LINES = {"with memory": "#0f766e", "network alone": "#b45309"}
PANEL, HEIGHT, MARGIN = 330, 250, 46


def main(given: Sequence[str] | None = None) -> None:
    """Runs what was asked for and draws all there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="*", default=[], metavar="NAME=FOLDER", help="prepared data sets")
    parser.add_argument("--efforts", nargs="+", choices=tuple(EFFORTS), default=list(EFFORTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "efforts")
    parser.add_argument("--figure", type=Path, default=ROOT / "docs" / "images" / "efforts.svg")
    arguments = parser.parse_args(given)
    for name, _, folder in (text.partition("=") for text in arguments.data):
        target = arguments.out / f"{name}-seed{arguments.seed}.json"
        points = json.loads(target.read_text(encoding="utf-8"))["points"] if target.exists() else {}
        points.setdefault(NO_TRAINING, alone(folder))
        for effort in arguments.efforts:
            run = RUNS / f"{name}-{effort}-seed{arguments.seed}"
            points[effort] = point(effort, folder, run, arguments.seed)
            print(name, effort, points[effort], flush=True)
        command = f"python experiments/efforts.py --data {name}=FOLDER --efforts {' '.join(arguments.efforts)}"
        head = {"command": f"{command} --seed {arguments.seed}", "data": name, "seed": arguments.seed}
        write_json(target, head | {"environment": environment(), "points": points})
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(arguments.out.glob("*.json"))]
    if not found:
        parser.error(f"{arguments.out} holds no results")
    arguments.figure.write_text(figure(means(found)), encoding="utf-8")
    print(arguments.figure)


def timed(*arguments: str) -> tuple[dict[str, Any], float]:
    """What a command prints as JSON, and the seconds of processors that it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "llmd4rec", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return json.loads(done.stdout), after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def alone(folder: str) -> dict[str, float]:
    """The memory without a model."""
    printed, seconds = timed("baselines", folder)
    return {"seconds": round(seconds, 1), "with memory": printed["figures"][MEMORY][METRIC]}


def point(effort: str, folder: str, run: Path, seed: int) -> dict[str, Any]:
    """One training from nothing to its report, and what validation would serve of it, with and without the memory."""
    if run.exists():
        raise SystemExit(f"{run} is there: remove it, or its time would not be that of a whole training")
    chosen = ("--effort", effort, "--set", f"seed={seed}", "--set", "threads=1")
    printed, seconds = timed("train", "--data", folder, "--run", str(run), *chosen)
    stages = {row["stage"]: row for row in printed["stages"]}
    best = best_alone(Run.open(run))
    served = next(row["stage"] for row in printed["stages"] if row["served"])
    return {
        "commit": environment()["commit"],
        "seconds": round(seconds, 1),
        "with memory": stages[served]["metrics"][METRIC],
        "served": served,
        "network alone": stages[best]["metrics"][METRIC],
        "best alone": best,
    }


def best_alone(run: Run) -> str:
    """The model that validation finds best where no memory stands beside it."""
    models = [
        stage.id
        for stage in run.plan
        if stage.role == "model" and stage.id in run.record.stages and not stage.beside_memory
    ]
    return max(models, key=lambda model: float(run.record.stages[model]["validation"]))


def means(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One for each data set: of each point that all its seeds have the mean seconds and figures."""
    by_data: dict[str, list[Mapping[str, Any]]] = {}
    for one in found:
        by_data.setdefault(one["data"], []).append(one["points"])
    drawn = []
    for data, seeds in by_data.items():
        points = {}
        for name in seeds[0]:
            if all(name in each for each in seeds):
                numbers = [key for key, value in seeds[0][name].items() if isinstance(value, float)]
                points[name] = {key: statistics.fmean(each[name][key] for each in seeds) for key in numbers}
        drawn.append({"data": data, "points": points})
    return drawn


def figure(found: Sequence[Mapping[str, Any]]) -> str:
    """One panel for each data set: seconds of processors, on a logarithmic scale, against NDCG@10 on test."""
    width = PANEL * len(found)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" font-family="system-ui, sans-serif" '
        'font-size="12" role="img"><title>What each effort costs and gives</title>',
        f'<rect width="{width}" height="{HEIGHT}" fill="#ffffff"/>',
    ]
    for place, one in enumerate(found):
        parts.append(f'<g transform="translate({place * PANEL} 0)">{_panel(one)}</g>')
    return "\n".join([*parts, "</svg>\n"])


def _panel(one: Mapping[str, Any]) -> str:
    points: dict[str, Mapping[str, Any]] = one["points"]
    seconds = [float(values["seconds"]) for values in points.values()]
    values = [float(point[line]) for point in points.values() for line in LINES if line in point]
    left, right = math.log(min(seconds) / 1.4), math.log(max(seconds) * 1.4)
    low, high = min(values) * 0.97, max(values) * 1.03

    def x(second: float) -> float:
        return MARGIN + (PANEL - MARGIN - 20) * (math.log(second) - left) / (right - left)

    def y(value: float) -> float:
        return 34 + (HEIGHT - 34 - MARGIN) * (high - value) / (high - low)

    floor = HEIGHT - MARGIN
    end = f'x="{PANEL - 16}" text-anchor="end"'
    parts = [
        f'<text x="{MARGIN}" y="18" font-weight="600" fill="#0f172a">{one["data"]}: test NDCG@10</text>',
        f'<path d="M{MARGIN} {floor}H{PANEL - 16}M{MARGIN} 30V{floor}" stroke="#94a3b8" fill="none"/>',
        f'<text {end} y="{HEIGHT - 6}" fill="#475569">seconds of a core, logarithmic</text>',
    ]
    for value in (min(values), max(values)):
        label = f"{value:.4f}".removeprefix("0")
        parts.append(f'<text x="{MARGIN - 6}" y="{y(value) + 4:.0f}" text-anchor="end" fill="#475569">{label}</text>')
    for name, point_of in points.items():
        at, took = x(float(point_of["seconds"])), f"{point_of['seconds']:.0f} s"
        parts.append(f'<text x="{at:.0f}" y="{floor + 15}" text-anchor="middle" fill="#0f172a">{name}</text>')
        parts.append(f'<text x="{at:.0f}" y="{floor + 28}" text-anchor="middle" fill="#475569">{took}</text>')
    for place, (line, colour) in enumerate(LINES.items()):
        places = [(x(float(each["seconds"])), y(float(each[line]))) for each in points.values() if line in each]
        joined = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
        parts.append(f'<polyline points="{joined}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="4" fill="{colour}"/>' for a, b in places]
        parts.append(f'<text {end} y="{18 + 14 * place}" fill="{colour}">{line}</text>')
    return "".join(parts)


if __name__ == "__main__":
    main()
