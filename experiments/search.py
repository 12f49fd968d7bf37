"""Searches settings with a fixed budget of trials, chosen by validation only; one JSON file per search.

    python experiments/search.py experiments/searches/alone.yaml --data industrial=FOLDER [--trials 24]
    python experiments/search.py experiments/searches/taught.yaml --data beauty=FOLDER toys=FOLDER

A search is a YAML file: what it asks, whose validation counts, the settings that all its trials share, and the space.

    question: How good is the undistilled model?
    stage: undistilled                     # or distilled, which is that of the last round, or another id of a stage
    base: {rounds: 0}
    space:
      model.dropout: {low: 0.1, high: 0.7}
      training.model.learning_rate: {low: 3.0e-4, high: 3.0e-3, log: true}
      training.model.batch: {choices: [384, 768, 1536]}

The first trial is the default recipe; the others are optuna's (TPE). On several data sets a trial's value is the mean
of its validation NDCG@10 over the default's, so that no set counts more because its figures are larger. No test figure
is computed here: write what was found as a variant of a study. Every trial is kept, one that diverged with the value 0;
the same command goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
import yaml
from study import ROOT, RUNS, command, merged, over_recipe, require_commit, trained

from llmd4rec.data.dataset import Dataset
from llmd4rec.distillation.settings import DistillationSettings
from llmd4rec.errors import Diverged, LLMD4RecError
from llmd4rec.io.files import remove, write_json
from llmd4rec.training.runtime import environment

#: Trials at the start that are drawn at random, as a share of the budget.
RANDOM_SHARE = 1 / 3


def main(given: Sequence[str] | None = None, *, runs: Path = RUNS) -> None:
    """Parses the command line and runs the trials that are missing.

    Args:
        given: the command line's arguments; None: those of this process.
        runs: where runs and shared stages are kept.
    """
    given = sys.argv[1:] if given is None else given
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("search", type=Path, help="a file of experiments/searches")
    parser.add_argument("--data", nargs="+", required=True, metavar="NAME=FOLDER", help="prepared data sets")
    parser.add_argument("--trials", type=int, default=24, help="the budget, the default recipe included; default: 24")
    parser.add_argument("--seed", type=int, default=0, help="of the trainings and of the search; default: 0")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "searches", help="default: results/searches")
    arguments = parser.parse_args(given)
    if not arguments.search.is_file():
        parser.error(f"{arguments.search} is not a file")
    search = yaml.safe_load(arguments.search.read_text(encoding="utf-8"))
    for key in ("stage", "space"):
        if not isinstance(search, dict) or not search.get(key):
            parser.error(f"{arguments.search} has no {key}")
    if wrong := [text for text in arguments.data if "=" not in text]:
        parser.error(f"--data {wrong[0]!r} is not NAME=FOLDER")
    if arguments.trials < 1:
        parser.error("--trials must be at least 1: the default recipe")
    require_commit(parser, arguments.out, ROOT / "results" / "searches", environment()["commit"])
    sets = {name: Dataset.load(Path(folder)) for name, _, folder in (text.partition("=") for text in arguments.data)}
    target = arguments.out / f"{arguments.search.stem}-{'-'.join(sets)}-seed{arguments.seed}.json"
    found = _begun(target, search, sets) or {
        "search": arguments.search.stem,
        **{key: search.get(key) for key in ("question", "stage", "base", "space")},
        "data": {name: data.fingerprint for name, data in sets.items()},
        "seed": arguments.seed,
        "command": command([sys.argv[0], *given]),
        "environment": environment(),
        "trials": [],
    }
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = {name: _distribution(name, given) for name, given in search["space"].items()}
    defaults = default_point(search, space)
    while len(found["trials"]) < arguments.trials:
        number = len(found["trials"])
        point = next_point(space, found["trials"], arguments.seed, arguments.trials) if number else defaults
        values = {}
        for name, data in sets.items():
            settings = over_recipe(_values(search, point, arguments.seed), str(arguments.search))
            folder = runs / "searches" / target.stem / f"{number}-{name}"
            try:
                values[name] = validation_of(settings, data, folder, search["stage"], runs / "shared")
            except Diverged as error:  # a place not to look again, unless it is the default
                if number == 0:
                    raise
                print(f"trial {number}: {error.what}", flush=True)
                values[name] = 0.0
        first = found["trials"][0]["validation_ndcg"] if number else values
        value = fmean(values[name] / first[name] for name in sets)
        found["trials"].append({"point": point, "validation_ndcg": values, "value": value})
        write_json(target, found)
        best = max(range(number + 1), key=lambda n: found["trials"][n]["value"])
        print(f"trial {number}: {value:.4f} of the default, {_in_words(point)}; best: trial {best}", flush=True)


def next_point(
    space: dict[str, optuna.distributions.BaseDistribution], trials: list[dict[str, Any]], seed: int, budget: int
) -> dict[str, Any]:
    """What to try after `trials`: the same, whether they were all made just now or by an interrupted search."""
    drawn = max(2, round(budget * RANDOM_SHARE))
    sampler = optuna.samplers.TPESampler(seed=seed * 10_007 + len(trials), n_startup_trials=drawn, multivariate=True)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for trial in trials:
        study.add_trial(optuna.trial.create_trial(params=trial["point"], distributions=space, value=trial["value"]))
    return study.ask(space).params


def _begun(target: Path, search: dict[str, Any], sets: dict[str, Dataset]) -> dict[str, Any] | None:
    """What an earlier session has found; None where there was none."""
    if not target.exists():
        return None
    found: dict[str, Any] = json.loads(target.read_text(encoding="utf-8"))
    same = all(found[key] == search.get(key) for key in ("stage", "base", "space"))
    if not same or found["data"] != {name: data.fingerprint for name, data in sets.items()}:
        raise LLMD4RecError(f"{target} is of another search or other data", "Move it away, or choose another --out.")
    return found


def validation_of(settings: DistillationSettings, data: Dataset, folder: Path, stage: str, shared: Path) -> float:
    """Trains one point and gives the best validation NDCG@10 of the stage.

    Raises:
        LLMD4RecError: the settings lead to no such stage.
    """
    run, _ = trained(settings, data, folder, shared)
    value = run.validation_of(run.resolve(stage))
    remove(folder)
    return value


def _distribution(name: str, given: Any) -> optuna.distributions.BaseDistribution:
    """What a setting may be: `{choices: [...]}`, or `{low: a, high: b}` with `log: true` where wanted."""
    if isinstance(given, dict) and given.keys() == {"choices"}:
        return optuna.distributions.CategoricalDistribution(given["choices"])
    if isinstance(given, dict) and {"low", "high"} <= given.keys() <= {"low", "high", "log"}:
        ends = float(given["low"]), float(given["high"])
        return optuna.distributions.FloatDistribution(*ends, log=bool(given.get("log", False)))
    raise LLMD4RecError(
        f"the space of {name} is {given!r}",
        "Write {low: a, high: b}, with log: true where wanted, or {choices: [...]}.",
    )


def default_point(search: dict[str, Any], space: dict[str, optuna.distributions.BaseDistribution]) -> dict[str, Any]:
    """The search's own settings as they are without it, as a point of the space.

    Raises:
        LLMD4RecError: a default lies outside the space, so that the search could not say whether it helps.
    """
    values = over_recipe(search.get("base") or {}, "the search's base").model_dump(mode="json")
    point: dict[str, Any] = {}
    for name, distribution in space.items():
        here: Any = values
        for key in name.split("."):
            here = here[key] if isinstance(here, dict) and key in here else None
        if isinstance(distribution, optuna.distributions.CategoricalDistribution):
            inside = here in distribution.choices
        else:
            assert isinstance(distribution, optuna.distributions.FloatDistribution)
            inside = isinstance(here, int | float) and distribution.low <= here <= distribution.high
        if not inside:
            raise LLMD4RecError(f"the default of {name}, {here}, is not in the search's space", "Widen the space.")
        point[name] = here
    return point


def _values(search: dict[str, Any], point: dict[str, Any], seed: int) -> dict[str, Any]:
    """The settings of a trial."""
    values: dict[str, Any] = merged(search.get("base") or {}, {"seed": seed})
    for name, value in point.items():
        for key in reversed(name.split(".")):
            value = {key: value}
        values = merged(values, value)
    return values


def _in_words(point: dict[str, Any]) -> str:
    values = {name: f"{value:.3g}" if isinstance(value, float) else str(value) for name, value in point.items()}
    return ", ".join(f"{name} {value}" for name, value in values.items())


if __name__ == "__main__":
    try:
        main()
    except LLMD4RecError as error:
        sys.exit(f"error: {error}")
