"""Writes docs/results.md and the README's table from the files under results/: every trial counted, none chosen.

    python experiments/tables.py [--results results] [--out docs/results.md] [--readme README.md]

Rows are variants, a table for each study and data set. Several seeds give mean ± standard deviation. A gain is that of
the distilled over the undistilled model of the same run, on test, with the paired sign-flip test's p, of several seeds
the largest; validation is what variants are chosen by and stands beside it.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
STUDIES = ROOT / "experiments" / "studies"
HEADLINE = ROOT / "experiments" / "headline.yaml"
#: Between these lines the README holds the table that is made here.
MARKS = ("<!-- made by experiments/tables.py -->", "<!-- end -->")
MODELS = (
    "undistilled", "distilled", "teacher-1", "llm", "llm distilled", "undistilled+memory", "distilled+memory",
    "beside-memory+memory", "memory",
)  # fmt: skip
#: Each model that is taught, undistilled and distilled.
TAUGHT = {"model": ("undistilled", "distilled"), "llm": ("llm", "llm distilled")}
#: What results called them before stages had ids.
FORMER_MODELS = {
    "crm alone": "undistilled",
    "crm distilled": "distilled",
    "wide alone": "teacher-1",
    "llm alone": "llm",
}
#: By study and data set, then by variant.
Trials = dict[tuple[str, str], dict[str, list[Any]]]
GAIN_SLICES = {
    "all": "all users",
    "tail": "tail items",
    "short_history": "short histories",
    "next_day": "next-day targets",
}
#: What results called groups of users before.
FORMER_SLICES = {"later_day": "next_day"}

HEAD = """# Results

Made by `python experiments/tables.py` from the files under `results/`; do not edit. Each file there holds the command,
settings, seed, commit and machine of one trial. NDCG@10 over the whole catalogue, seen items filtered; *val* is
validation, by which variants are chosen, *test* the held-out last items. Columns are stages of a run: the *undistilled*
model, the same model *distilled* (of several rounds the one that validation chooses), the first of the teachers, the
language model (*llm*) and the same taught by the others (*llm distilled*). How the numbers are to be read, and what was
learned from them, stands in [findings.md](research/findings.md). A † marks a variant of which a trial was run from
files that differed from those of its commit. Files made before stages had ids name models in other words: `crm alone`
is undistilled, `crm distilled` distilled, `wide alone` teacher-1, `llm alone` llm.
"""

SEARCHES = """## Searches

Made by `experiments/search.py`: a fixed budget of trials, drawn by optuna (TPE), judged by validation only. The first
is the default. All of them, best first. Settings have the names that they had when the search was run.
"""


def main(given: Sequence[str] | None = None) -> None:
    """Reads all results and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results.md")
    parser.add_argument(
        "--readme", type=Path, help="also put the headline table there [of the default --out: README.md]"
    )
    arguments = parser.parse_args(given)
    trials = read_trials(arguments.results)
    if not trials:
        parser.error(f"{arguments.results} holds no results")
    whole_page = arguments.out == ROOT / "docs" / "results.md"
    readme = arguments.readme or (ROOT / "README.md" if whole_page else None)
    chosen = yaml.safe_load(HEADLINE.read_text(encoding="utf-8"))
    if readme is not None:
        readme.write_text(with_table(readme.read_text(encoding="utf-8"), headline(trials, chosen)), encoding="utf-8")
    searches = [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted(arguments.results.glob("searches/*.json"))
    ]
    top = headline_sources(trials, chosen) if readme is not None else ""
    arguments.out.write_text(page(trials, searches, top), encoding="utf-8")
    count = sum(len(t) for v in trials.values() for t in v.values())
    print(f"{arguments.out}: {count} trials, {sum(len(search['trials']) for search in searches)} of searches")


def read_trials(results: Path) -> Trials:
    """Every trial by study and data set, and there by variant."""
    trials: Trials = defaultdict(lambda: defaultdict(list))
    for path in sorted(results.glob("*/*/*.json")):
        trial = in_words_of_now(json.loads(path.read_text(encoding="utf-8")))
        trials[trial["study"], trial["data"]][trial["variant"]].append(trial)
    return trials


def in_words_of_now(trial: dict[str, Any]) -> dict[str, Any]:
    """A trial with its models, comparisons and groups of users named as in :data:`MODELS` and :data:`GAIN_SLICES`."""
    comparisons = {}
    for name, compared in trial["comparisons"].items():
        pair, split = name.rsplit(", ", 1)
        second, first = map(model_name, pair.split(" over "))
        groups = {FORMER_SLICES.get(group, group): values for group, values in compared.items()}
        comparisons[f"{second} over {first}, {split}"] = groups
    models = {model_name(name): figures for name, figures in trial["models"].items()}
    return trial | {"models": models, "comparisons": comparisons}


def model_name(name: str) -> str:
    """What a table calls the model of a stage: `distilled` for `distilled-round-2` and former names of it."""
    taught = re.fullmatch(r"(distilled|llm)-round-\d+(\+memory)?", name)
    if taught is not None:
        return ("distilled" if taught[1] == "distilled" else "llm distilled") + (taught[2] or "")
    return FORMER_MODELS.get(name, name)


def page(trials: Trials, searches: Sequence[dict[str, Any]], top: str = "") -> str:
    """The whole of docs/results.md."""
    parts, last = [HEAD], ""
    if top:
        parts.append(top)
    for (study, data), variants in sorted(trials.items()):
        if study != last:
            parts.append(f"## {study}\n\n{question(study)}\n")
            last = study
        parts.append(f"### {study} on {data}\n\n{table(variants)}\n")
        parts += [f"{more}\n" for more in (reference_table(variants), slice_table(variants)) if more]
    if searches:
        parts.append(SEARCHES)
        parts += [search_section(search) for search in searches]
    return "\n".join(parts)


# ---- the README's table ---------------------------------------------------------------------------------------------
def headline(trials: Trials, chosen: dict[str, Any]) -> str:
    """Nine rows, a column for each data set of headline.yaml."""
    rows = [["Test NDCG@10"], ["---"]]
    labels = {
        "memory": "Memory alone: no training",
        "identifiers": "SASRec, identifiers only",
        "undistilled": "SASRec with item features",
        "beside": "**SASRec + memory: `--effort fast`**",
        "default": "**SASRec taught: `--effort default`**",
        "default beside": "**SASRec taught beside the memory, with it**",
        "distilled": "SASRec taught by three wide teachers",
        "gain": "Gain of these teachers, by seed (*p*)",
        "published": "Best published that we know",
    }
    rows += [[label] for label in labels.values()]
    for data, column in chosen["columns"].items():
        figures = Headline.of(trials, chosen["study"], data, column)
        seeds = "seed" if len(column["seeds"]) == 1 else "seeds"
        rows[0].append(f"{column['title']}<br>`{column['variant']}`<br>{seeds} {', '.join(map(str, column['seeds']))}")
        rows[1].append("---:")
        cells = figures.cells()
        for row, name in zip(rows[2:], labels, strict=True):
            row.append(cells[name])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def headline_sources(trials: Trials, chosen: dict[str, Any]) -> str:
    """Where each figure of the README comes from, with its commit and command."""
    lines = [
        "## The figures of the README",
        "",
        f"Study `{chosen['study']}`; chosen in `experiments/headline.yaml`. Test, seen items filtered, mean ± standard "
        "deviation over seeds.",
        "",
        "| data | figure | variant | seeds | commits | NDCG@10 | HR@10 |",
        "| --- | --- | --- | --- | --- | ---: | ---: |",
    ]
    for data, column in chosen["columns"].items():
        for name, found in Headline.of(trials, chosen["study"], data, column).sources():
            if not found:
                continue
            commits = ", ".join(dict.fromkeys(f"`{trial['environment']['commit']}`" for trial, _ in found))
            seeds = ", ".join(str(trial["seed"]) for trial, _ in found)
            ndcg, hr = (spread([model["test"][metric] for _, model in found]) for metric in ("ndcg@10", "hr@10"))
            lines.append(
                f"| {column['title']} | {name} | `{found[0][0]['variant']}` | {seeds} | {commits} | {ndcg} | {hr} |"
            )
        if "published" in column:
            best = column["published"]
            lines.append(f"| {column['title']} | published: {best['by']} | | | | {best['ndcg@10']:.4f} | |")
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Headline:
    """The trials that one column of the README's table is made of, a seed each."""

    identifiers: list[Any]
    distilled: list[Any]
    memory: list[Any]
    published: float | None

    @classmethod
    def of(cls, trials: Trials, study: str, data: str, column: dict[str, Any]) -> Headline:
        """The trials of one data set; an error where one is missing."""

        def taken(study: str, variant: str, seeds: Sequence[int]) -> list[Any]:
            by_seed = {trial["seed"]: trial for trial in trials[study, data][variant]}
            if missing := [seed for seed in seeds if seed not in by_seed]:
                raise SystemExit(f"results/{study}/{data}/{variant}-seed{missing[0]}.json is not there")
            return [by_seed[seed] for seed in seeds]

        return cls(
            taken(study, "identifiers", column["seeds"]),
            taken(study, column["variant"], column["seeds"]),
            taken(
                column.get("memory_study", "memory"),
                column.get("memory_variant", "undistilled"),
                column["memory_seeds"],
            ),
            column.get("published", {}).get("ndcg@10"),
        )

    def sources(self) -> list[tuple[str, list[tuple[Any, Any]]]]:
        """Each figure's name, its trials and the model of each that it is of."""

        def model(trials: list[Any], name: str) -> list[tuple[Any, Any]]:
            return [(trial, trial["models"][name]) for trial in trials]

        trained = [trial for trial in self.memory if trial["variant"] != "untrained"]
        taught = [trial for trial in trained if "distilled" in trial["models"]]
        beside = [trial for trial in taught if "beside-memory+memory" in trial["models"]]
        return [
            ("memory alone", model(self.memory[:1], "memory")),
            ("identifiers only", model(self.identifiers, "undistilled")),
            ("with item features", model(self.distilled, "undistilled")),
            ("with item features + memory", model(trained, "undistilled+memory")),
            ("with item features, taught by a BSARec and the memory", model(taught, "distilled")),
            ("the same + memory", model(taught, "distilled+memory")),
            ("with item features, taught beside the memory, + memory", model(beside, "beside-memory+memory")),
            ("with item features, distilled", model(self.distilled, "distilled")),
        ]

    def cells(self) -> dict[str, str]:
        """The cells of the column, by row."""
        (memory, identifiers, undistilled, beside, taught, _, taught_beside, distilled) = (
            short(spread([model["test"]["ndcg@10"] for _, model in found])) for _, found in self.sources()
        )
        compared = [gain_of("model", trial) for trial in self.distilled]
        gains = ", ".join(f"{c['relative_percent']:+.1f}" for c in compared if c)
        return {
            "memory": memory,
            "identifiers": identifiers,
            "undistilled": undistilled,
            "beside": f"**{beside}**" if beside else "",
            "default": f"**{taught}**" if taught else "",
            "default beside": f"**{taught_beside}**" if taught_beside else "",
            "distilled": distilled,
            "gain": f"{gains} % ({short(largest_p(compared))})",
            "published": "" if self.published is None else short(f"{self.published:.4f}"),
        }


def short(text: str) -> str:
    """Figures below 1 without their zero."""
    return text.replace("0.", ".")


def with_table(readme: str, table: str) -> str:
    """The README with the table between its marks."""
    start, end = MARKS
    before, found, rest = readme.partition(start)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"the README lacks the lines {start} and {end}")
    return f"{before}{start}\n{table}\n{end}{after}"


# ---- docs/results.md ------------------------------------------------------------------------------------------------
def question(study: str) -> str:
    """What the study asks, from its file."""
    path = STUDIES / f"{study}.yaml"
    if not path.exists():
        return ""
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    return f"{values.get('question', '')} Settings in `experiments/studies/{study}.yaml`.".strip()


def table(variants: dict[str, list[Any]]) -> str:
    """One row for each variant."""
    present = [name for name in MODELS if any(name in trial["models"] for t in variants.values() for trial in t)]
    learned = [name for name in TAUGHT if any(gain_of(name, trial) for t in variants.values() for trial in t)]
    head = [
        "variant",
        "seeds",
        "commits",
        *[f"{name}: val" for name in present],
        *[f"{name}: test" for name in present],
    ]
    for name in learned:
        head += [f"gain of {'the model' if name == 'model' else name}, test", "p"]
    rows = [head, ["---"] * 3 + ["---:"] * (len(head) - 3)]
    for variant, trials in variants.items():
        dirty = any((trial["environment"]["commit"] or "-dirty").endswith("-dirty") for trial in trials)
        commits = ", ".join(sorted({(t["environment"]["commit"] or "unknown")[:7] for t in trials}))
        seeds = ", ".join(str(seed) for seed in sorted(t["seed"] for t in trials))
        row = [f"{variant} †" if dirty else variant, seeds, commits]
        row += [spread([t["models"].get(m, {}).get("valid", {}).get("ndcg@10") for t in trials]) for m in present]
        row += [spread([t["models"].get(m, {}).get("test", {}).get("ndcg@10") for t in trials]) for m in present]
        for name in learned:
            compared = [gain_of(name, trial) for trial in trials]
            relative = [c["relative_percent"] for c in compared if c]
            row.append(f"{statistics.mean(relative):+.1f}%" if relative else "")
            row.append(largest_p(compared))
        rows.append(row)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def gain_of(model: str, trial: dict[str, Any]) -> dict[str, Any] | None:
    """NDCG@10 of a model distilled over itself undistilled, on test; None where it was not taught."""
    first, second = TAUGHT[model]
    compared = trial["comparisons"].get(f"{second} over {first}, test")
    return compared["all"]["ndcg@10"] if compared else None


def largest_p(compared: Sequence[dict[str, Any] | None]) -> str:
    """Of one metric's comparisons, a seed each."""
    values = [c["p"] for c in compared if c and c["p"] is not None]
    return f"{max(values):.4f}" if values else ""


def reference_table(variants: dict[str, list[Any]]) -> str:
    """The model's gain in NDCG@10 on test over the study's references; empty where it has none."""
    every = [trial for trials in variants.values() for trial in trials]
    names = {name.removesuffix(", test") for t in every for name in t["comparisons"] if name.endswith(", test")}
    references = sorted({name.split(" over ")[1] for name in names} - set(MODELS))
    if not references:
        return ""
    stages = TAUGHT["model"]
    rows = [["gain of the model", *(f"{stage}, over {of} | p" for of in references for stage in stages)]]
    rows.append(["---"] + ["---: | ---:"] * (len(rows[0]) - 1))
    for variant, trials in variants.items():
        cells = []
        for of in references:
            for stage in stages:
                compared = [t["comparisons"].get(f"{stage} over {of}, test") for t in trials]
                gains = [c["all"]["ndcg@10"] for c in compared if c]
                mean = f"{statistics.mean(c['relative_percent'] for c in gains):+.1f}%" if gains else ""
                cells.append(f"{mean} | {largest_p(gains)}")
        if any(cell != " | " for cell in cells):
            rows.append([variant, *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def slice_table(variants: dict[str, list[Any]]) -> str:
    """The model's gain in NDCG@10 on test by group of users; empty where nothing was distilled."""
    rows = []
    for name, trials in variants.items():
        compared = [t["comparisons"].get("distilled over undistilled, test") for t in trials]
        if not all(compared):
            continue
        cells = []
        for group in GAIN_SLICES:
            values = [c[group]["ndcg@10"]["relative_percent"] for c in compared if group in c]
            values = [value for value in values if value is not None]
            cells.append(f"{statistics.mean(values):+.1f}%" if values else "")
        rows.append([name, *cells])
    if not rows:
        return ""
    head = ["gain of the model on", *GAIN_SLICES.values()]
    lines = [head, ["---"] + ["---:"] * len(GAIN_SLICES), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def search_section(search: dict[str, Any]) -> str:
    """A search with all its trials."""
    names, sets = list(search["space"]), list(search["data"])
    rows = [["trial", *names, *[f"{name}: val" for name in sets], "of the default"]]
    rows.append(["---:"] * len(rows[0]))
    order = sorted(range(len(search["trials"])), key=lambda number: -search["trials"][number]["value"])
    for number in order:
        trial = search["trials"][number]
        point = [f"{v:.3g}" if isinstance(v, float) else str(v) for v in (trial["point"][name] for name in names)]
        values = [f"{trial['validation_ndcg'][name]:.4f}" for name in sets]
        rows.append([f"{number} (default)" if number == 0 else str(number), *point, *values, f"{trial['value']:.3f}"])
    lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    title = f"### {search['search']} on {', '.join(sets)}, seed {search['seed']}"
    about = f"{search['question']} Space in `experiments/searches/{search['search']}.yaml`."
    return f"{title}\n\n{about}\n\n{lines}\n"


def spread(values: list[float | None]) -> str:
    """Mean ± standard deviation, or the one value there is."""
    given = [value for value in values if value is not None]
    if not given:
        return ""
    mean = f"{statistics.mean(given):.4f}"
    return f"{mean} ± {statistics.stdev(given):.4f}" if len(given) > 1 else mean


if __name__ == "__main__":
    main()
