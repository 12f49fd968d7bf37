"""Runs a study: variants of the settings, on data sets, with seeds; one small JSON file under results/ for each trial.

    python experiments/study.py experiments/studies/loop.yaml --data beauty=FOLDER toys=FOLDER [--seeds 0 1 2]
    python experiments/study.py STUDY --only partner ensemble --data industrial=FOLDER

A study is a YAML file: the question it asks, the `effort` of the command line that it starts from, the settings all its
trials share, and its variants. Without an effort it starts from what was the default until there were several.

    question: Whose scores should a student learn?
    effort: default
    base: {rounds: 1}
    variants:
      ensemble: {}
      partner: {distill: {source: partner}}

`reference`, a list of variants, has the model of every other variant compared with theirs too, undistilled and
distilled, where they have been run (trials run in the file's order).

Trials whose file is there are not run again. What a trial prints is its validation only: variants are chosen by that.
Test figures are written to the file, for `tables.py`, by the ids of stages; of several rounds the one that validation
chooses. Trials share the stages before the rounds (undistilled, teacher-1, ..., llm) that their plans have in common:
they are trained once, and the file says so.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

import llmd4rec
from llmd4rec.config.settings import check, differences
from llmd4rec.data.dataset import Dataset
from llmd4rec.distillation.efforts import EFFORTS
from llmd4rec.distillation.plan import Stage, find, rounds_of
from llmd4rec.distillation.settings import DistillationSettings
from llmd4rec.distillation.stage_ids import BESIDE_MEMORY, LANGUAGE_MODEL, MEMORY, UNDISTILLED, with_memory
from llmd4rec.errors import ConfigError, LLMD4RecError
from llmd4rec.evaluation.evaluation import Evaluation
from llmd4rec.evaluation.significance import Comparison, compare
from llmd4rec.io.files import atomic_dir, write_json
from llmd4rec.runs.memory import stages_with_memory
from llmd4rec.runs.pipeline import train
from llmd4rec.runs.results import score
from llmd4rec.runs.run import Run
from llmd4rec.scoring.memory.settings import LAST
from llmd4rec.training.runtime import environment

#: What the command line trained before it had efforts, which studies without one start from.
EARLIER_RECIPE: Mapping[str, Any] = {
    "llm": {},
    "teachers": "default",
    "memory": {"content": {"whitening": 0.0, "last": list(LAST)}},
    "training": {
        "model": {
            "epochs": 200,
            "round_epochs": None,
            "patience": 6,
            "schedule": "constant",
            "learning_rate": 1e-3,
            "round_learning_rate": 4e-3,
        }
    },
}

ROOT = Path(__file__).resolve().parents[1]
#: Where runs and shared stages are kept; not part of the repository.
RUNS = ROOT / "experiments" / ".runs"
#: The teacher that the language model reads the item embeddings of, whose figures stand for those of all.
TEACHER = "teacher-1"
SLICES = ("tail", "head", "short_history", "long_history", "next_day", "cold")


def main(
    given: Sequence[str] | None = None,
    *,
    runs: Path = RUNS,
    environment: Callable[[], Mapping[str, Any]] = environment,
) -> None:
    """Parses the command line and runs what is missing.

    Args:
        given: the command line's arguments; None: those of this process.
        runs: where runs and shared stages are kept.
        environment: tells commit and machine.
    """
    given = sys.argv[1:] if given is None else given
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="a file of experiments/studies")
    parser.add_argument("--data", nargs="+", required=True, metavar="NAME=FOLDER", help="prepared data sets")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="default: 0")
    parser.add_argument("--only", nargs="+", help="run these variants only")
    parser.add_argument("--out", type=Path, default=ROOT / "results", help="default: results/ of the repository")
    arguments = parser.parse_args(given)
    if not arguments.study.is_file():
        parser.error(f"{arguments.study} is not a file")
    study = yaml.safe_load(arguments.study.read_text(encoding="utf-8"))
    if not isinstance(study, dict) or not isinstance(study.get("variants"), dict):
        parser.error(f"{arguments.study} has no variants")
    unknown = sorted(set(arguments.only or ()) - study["variants"].keys())
    if unknown:
        parser.error(f"{arguments.study} has no variant {unknown[0]!r}; it has {', '.join(study['variants'])}")
    references = study.get("reference") or []
    if unknown := sorted(set(references) - study["variants"].keys()):
        parser.error(f"{arguments.study}: the reference {unknown[0]!r} is no variant")
    if wrong := [text for text in arguments.data if "=" not in text]:
        parser.error(f"--data {wrong[0]!r} is not NAME=FOLDER")
    require_commit(parser, arguments.out, ROOT / "results", environment()["commit"])
    for name, _, prepared in (text.partition("=") for text in arguments.data):
        data = Dataset.load(Path(prepared))
        for seed in arguments.seeds:
            for variant, changes in study["variants"].items():
                target = arguments.out / arguments.study.stem / name / f"{variant}-seed{seed}.json"
                if target.exists() or (arguments.only and variant not in arguments.only):
                    continue
                values = merged(merged(study.get("base") or {}, changes or {}), {"seed": seed})
                effort = study.get("effort")
                settings = over_recipe(values, f"variant {variant} of {arguments.study}", effort)
                print(f"== {arguments.study.stem} · {name} · {variant} · seed {seed}", flush=True)
                folder = runs / arguments.study.stem / name
                done = [of for of in references if (target.parent / f"{of}-seed{seed}.json").exists()]
                beside = {of: folder / f"{of}-seed{seed}" for of in done if variant not in references}
                result = trial(settings, data, folder / f"{variant}-seed{seed}", beside, runs / "shared", effort)
                result["environment"] = environment()
                head = {"study": arguments.study.stem, "variant": variant, "data": name, "seed": seed}
                head |= {} if effort is None else {"effort": effort}
                head["command"] = command([sys.argv[0], *given])
                target.parent.mkdir(parents=True, exist_ok=True)
                write_json(target, head | result)
                print(json.dumps({s: round(v["validation"], 4) for s, v in result["stages"].items()}), flush=True)


def command(arguments: Sequence[str]) -> str:
    """What anybody may type to do the same: data sets are in a FOLDER, and results go where they are kept."""
    words, found = ["python"], iter(arguments)
    for word in found:
        if word == "--out":
            next(found, None)
        elif not word.startswith("--out="):
            name, equals, _ = word.partition("=")
            words.append(f"{name}=FOLDER" if equals else word)
    return " ".join(words)


def require_commit(parser: argparse.ArgumentParser, out: Path, kept: Path, commit: str | None) -> None:
    """Refuses to add to the results that are `kept` what no commit can make again."""
    commit = commit or ""
    if out.resolve() == kept.resolve() and (not commit or commit.endswith("-dirty")):
        parser.error("the code is that of no commit, which a result has to name: commit first, or give another --out")


def over_recipe(values: Mapping[str, Any], where: str, effort: str | None = None) -> DistillationSettings:
    """Settings as the command line has them, with `values` put over them.

    Args:
        values: what a trial changes.
        where: said in errors.
        effort: which of the command line's efforts; None: the recipe before there were several.

    Raises:
        ConfigError: with every wrong key and value; it says `where`.
    """
    if effort is not None and effort not in EFFORTS:
        raise ConfigError(f"{where}: there is no effort {effort!r}", f"Choose one of: {', '.join(EFFORTS)}.")
    return check(DistillationSettings, merged(EARLIER_RECIPE if effort is None else EFFORTS[effort], values), where)


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with `changes` put over them, group by group."""
    result = dict(values)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def trial(
    settings: DistillationSettings,
    data: Dataset,
    folder: Path,
    references: Mapping[str, Path] | None = None,
    shared: Path = RUNS / "shared",
    effort: str | None = None,
) -> dict[str, Any]:
    """Trains and scores one run; continues it where it was interrupted.

    Args:
        settings, data, folder: of the run.
        references: runs, by name, with whose models the run's are compared too; those not kept here are left out.
        shared: where the stages are that trials share.
        effort: what the settings are told apart from; see :func:`over_recipe`.
    """
    run, taken = trained(settings, data, folder, shared)
    stages = scored(run)
    first, best = UNDISTILLED, best_round(run, "model")
    models: dict[str, Any] = {stage: {} for stage in stages}
    comparisons = {}
    for split in ("valid", "test"):
        evaluations: dict[str, Evaluation] = {stage: score(run, data, stage, split=split) for stage in stages}
        for stage, evaluation in evaluations.items():
            slices = {name: evaluation.slices[name] for name in SLICES if name in evaluation.slices}
            models[stage][split] = {
                "users": evaluation.users,
                **rounded(evaluation.metrics),
                "slices": {name: rounded(values) for name, values in slices.items()},
            }
        pairs = [
            (best, first), (best_round(run, "llm"), LANGUAGE_MODEL), (LANGUAGE_MODEL, first), (TEACHER, first),
            (LANGUAGE_MODEL, TEACHER),
        ]  # fmt: skip
        for stage in stages_with_memory(run):
            pairs += [(with_memory(stage), stage), (with_memory(stage), MEMORY)]
        pairs += [(with_memory(BESIDE_MEMORY), with_memory(other)) for other in (best, first) if other is not None]
        for second, other in pairs:
            if second in evaluations and other in evaluations:
                comparison = compare(evaluations[other], evaluations[second])
                comparisons[f"{second} over {other}, {split}"] = of_interest(comparison)
        for name, run_of_it in (references or {}).items():
            if not run_of_it.exists():
                continue
            opened = Run.open(run_of_it)
            theirs = score(opened, data, best_round(opened, "model") or UNDISTILLED, split=split)
            for ours in (first, best):
                if ours in evaluations:
                    comparison = compare(theirs, evaluations[ours])
                    comparisons[f"{ours} over {name}, {split}"] = of_interest(comparison)
    return {
        "settings": differences(over_recipe({}, "the recipe", effort), settings),
        "fingerprint": data.fingerprint,
        "shared_stages": taken,
        "stages": {name: rounded(stage) for name, stage in run.record.stages.items()},
        "stopped_because": run.record.stopped_because,
        "llm": run.record.llm,
        "memory": run.record.memory,
        "models": models,
        "comparisons": comparisons,
    }


def trained(
    settings: DistillationSettings, data: Dataset, folder: Path, shared: Path = RUNS / "shared"
) -> tuple[Run, list[str]]:
    """A finished run of these settings, and which of its stages were taken from other trials."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    run = Run.start(folder, settings, data)
    taken = take_shared(run, shared)
    run = train(settings, data, folder)
    keep_shared(run, shared)
    return run, taken


def scored(run: Run) -> list[str]:
    """The stages whose figures a result holds, in the order of the plan; then models with the memory, and it alone."""
    shown = {UNDISTILLED, TEACHER, LANGUAGE_MODEL, best_round(run, "model"), best_round(run, "llm")}
    stages = [stage.id for stage in run.plan if stage.id in shown & run.record.stages.keys()]
    # What was taught beside the memory says by itself only what the memory does not.
    beside = [with_memory(stage) for stage in (*stages, BESIDE_MEMORY) if stage in stages_with_memory(run)]
    return [*stages, *beside, *([MEMORY] if run.record.memory else [])]


def best_round(run: Run, student: Literal["model", "llm"]) -> str | None:
    """The round in which validation found the student best; None where it was not taught."""
    done = [stage.id for stage in rounds_of(run.plan, student) if stage.id in run.record.stages]
    return max(done, key=run.validation_of, default=None)


def of_interest(comparison: Comparison) -> dict[str, Any]:
    """Of a comparison: HR@10 and NDCG@10, overall and by slice, and whose hits they are."""
    groups = {"all": comparison.overall, **comparison.slices}
    return {
        "hits": vars(comparison.overlap),
        **{
            name: {
                metric: {
                    "relative_percent": group.metrics[metric].relative,
                    "interval": group.metrics[metric].relative_interval,
                    "p": group.metrics[metric].p,
                }
                for metric in ("hr@10", "ndcg@10")
            }
            for name, group in groups.items()
        },
    }


def rounded(values: dict[str, Any]) -> dict[str, Any]:
    """Six digits are more than the figures are good for."""
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in values.items()}


# ---- stages that trials share ---------------------------------------------------------------------------------------
def shared_folder(run: Run, stage: Stage, shared: Path) -> Path:
    """Where a stage is kept: a name made of all that its weights depend on."""
    made_of, left = {}, [stage.id]
    while left:
        each = find(run.plan, left.pop())
        made_of[each.id] = each.identity()
        left += each.needs
    values = json.dumps([run.record.data, made_of, code()], sort_keys=True)
    return shared / f"{stage.id}-{hashlib.sha256(values.encode()).hexdigest()[:16]}"


@functools.cache
def code() -> str:
    """A digest of the code that trains a stage before the rounds."""
    source = Path(llmd4rec.__file__).parent
    rooms = ("data", "features", "losses", "models", "training")
    files = (path for room in rooms for path in sorted((source / room).rglob("*.py")))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


def before_rounds(run: Run) -> list[Stage]:
    """Stages that do not depend on how models teach each other, in the order of the plan."""
    return [stage for stage in run.plan if not stage.round]


def take_shared(run: Run, shared: Path) -> list[str]:
    """Puts finished stages of other trials into a run that has not begun; their ids."""
    taken: list[str] = []
    if run.record.stages:
        return taken
    for stage in before_rounds(run):
        folder = shared_folder(run, stage, shared)
        if not folder.exists() or not set(stage.needs) <= set(taken):
            continue
        if stage.role == "llm":
            run.record.llm = json.loads((folder / "llm.json").read_text(encoding="utf-8"))
        run.checkpoint_of(stage.id).mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "best.safetensors", run.checkpoint_of(stage.id))
        run.record.stages[stage.id] = json.loads((folder / "stage.json").read_text(encoding="utf-8"))
        run.save()
        taken.append(stage.id)
    return taken


def keep_shared(run: Run, shared: Path) -> None:
    """Keeps the stages before the rounds for other trials."""
    for stage in before_rounds(run):
        folder = shared_folder(run, stage, shared)
        if stage.id in run.record.stages and not folder.exists():
            with atomic_dir(folder) as temporary:
                shutil.copy(run.checkpoint_of(stage.id) / "best.safetensors", temporary)
                write_json(temporary / "llm.json", run.record.llm)
                # Another trial's file then says which code has trained what it took over.
                commit = environment()["commit"]
                write_json(temporary / "stage.json", {"commit": commit, **run.record.stages[stage.id]})


if __name__ == "__main__":
    try:
        main()
    except LLMD4RecError as error:
        sys.exit(f"error: {error}")
