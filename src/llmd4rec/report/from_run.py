"""From a run folder to what the report page shows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llmd4rec.config.settings import dump_settings
from llmd4rec.data.dataset import Dataset
from llmd4rec.distillation.settings import Student
from llmd4rec.evaluation.significance import Comparison, compare
from llmd4rec.io.files import read_json
from llmd4rec.report import (
    CurvePoint,
    ModelRow,
    ReportContent,
    WeightHistogram,
    choose_examples,
)
from llmd4rec.runs.run import Run, Stage
from llmd4rec.training.progress import WEIGHT_BINS

if TYPE_CHECKING:
    from llmd4rec.runs.results import Result

_EDGES = tuple(2 * index / WEIGHT_BINS for index in range(WEIGHT_BINS + 1))


#: Who teaches the CRM, in words for a person: one of a kind, and several of it.
TEACHERS: dict[str, tuple[str, str]] = {
    "wide": ("a wider recommender", "wider recommenders"),
    "llm": ("the language model", "language models"),
    "crm": ("itself as it was before", "itself as it was before"),
}


def report_content(run: Run, data: Dataset, results: Sequence[Result]) -> ReportContent:
    """Everything the page shows, out of the run folder and the freshly scored models."""
    scored = {(result.model, result.stage): result.evaluation for result in results}

    def compared(a: tuple[Student, Stage], b: tuple[Student, Stage], names: tuple[str, str]) -> Comparison | None:
        return compare(scored[a], scored[b], names=names) if a in scored and b in scored else None

    alone, distilled = scored.get(("crm", "alone")), scored.get(("crm", "distilled"))
    log = run.log.read()
    settings = run.settings
    names = _wide_names(run)
    return ReportContent(
        title=run.folder.resolve().name,
        crm=type(settings.crm).__name__,
        wide=type(settings.partner_crm).__name__,
        llm=_llm_name(run),
        teacher=teachers_in_words(run.record.stages[run.stage_of("crm", "distilled")]) if distilled is not None else "",
        rows=[
            ModelRow(
                result.model,
                result.stage,
                result.evaluation.metrics,
                result.parameters,
                result.seconds,
                result.milliseconds,
            )
            for result in results
        ],
        comparison=compared(("crm", "alone"), ("crm", "distilled"), ("CRM alone", "CRM distilled")),
        models_compared=compared(("crm", "distilled"), ("llm", "distilled"), ("the CRM", "the LLM")),
        curves=[
            CurvePoint(
                *_model_and_round(line["stage"]), line["epoch"], line["validation_ndcg"], names.get(line["stage"], "")
            )
            for line in log
            if line["epoch"] > 0
        ],
        weights=_histograms(run, log),
        examples=choose_examples(data, alone, distilled) if alone is not None and distilled is not None else (),
        facts={
            "users": data.num_users,
            "items": data.num_items,
            "interactions": data.num_interactions,
            **_order_facts(data),
            "items with text": sum(1 for text in data.texts() if text),
            "validation targets": len(data.valid),
            "test targets": len(data.test),
            "seen items": settings.evaluation.seen,
            "fingerprint": data.fingerprint,
        },
        settings=dump_settings(settings),
        environment=_flat(read_json(run.folder / "environment.json"))
        | {"seed": settings.seed, **({"language model": run.record.llm["origin"]} if run.record.llm else {})},
        commands=[
            f"llmd4rec train config.yaml --data {data.path.name if data.path else 'DATA'} --run {run.folder.name}"
        ],
    )


def _order_facts(data: Dataset) -> dict[str, str]:
    """What orders the histories, and what share of neighbours it leaves tied; empty where the data do not say."""
    said = data.report.get("interactions", {})
    if "ordered_by" not in said:
        return {}
    facts = {"ordered by": {"timestamp": "time"}.get(said["ordered_by"], said["ordered_by"])}  # as it was once called
    ties = said.get("ties", {})
    if ties.get("tied"):
        facts["tied neighbours"] = f"{ties['tied_share']:.1%}"
        if "ascending_by_identifier" in ties:
            facts["tied neighbours"] += f", {ties['ascending_by_identifier']:.0%} of them ascending by identifier"
    return facts


def teachers_in_words(stage: Mapping[str, Any]) -> str:
    """Who taught a stage, and how much each counted: `2 wider recommenders (80 %) and the language model (20 %)`.

    And how much of the items' popularity it was taught to leave out.

    Args:
        stage: a stage with a teacher, as run.json records it.
    """
    counts: dict[str, int] = stage.get("teachers") or {stage["taught_by"]: 1}
    heard, left_out = [], []
    for model, (one, several) in TEACHERS.items():
        own = {name: count for name, count in counts.items() if name.partition("-")[0] == model}
        asked = sum(1 for count in own.values() if count)
        name = one if asked <= 1 else f"{asked} {several}"
        if asked:
            share = sum(own.values()) / sum(counts.values())
            heard.append(name if share == 1 else f"{name} ({share:.0%})")
        elif own:
            left_out.append(name)
    words = " and ".join(heard)
    if left_out:
        words += (
            f", but not by {' nor '.join(left_out)}: on validation the mean of the scores is as good or better without"
        )
    if left_to_popularity := stage.get("logit_adjustment"):
        words += f"; taught to leave out {left_to_popularity:g} · log(1 + training count) of the items' popularity"
    return words


def _histograms(run: Run, log: Sequence[dict[str, Any]]) -> list[WeightHistogram]:
    """The weights of the epoch whose model was kept, per stage with a teacher (of the first where that is epoch 0)."""
    found = []
    for name, stage in run.record.stages.items():
        if stage["taught_by"] is None:
            continue
        model, number = _model_and_round(name)
        kept = max(1, stage["best_epoch"])
        for line in log:
            if line["stage"] == name and line["epoch"] == kept and "weight_counts" in line:
                found.append(
                    WeightHistogram(
                        number, "w1" if model == "llm" else "w2", _EDGES, line["weight_counts"], line["weight_mean"]
                    )
                )
    return found


def _wide_names(run: Run) -> dict[str, str]:
    """What the trainings of wide models are called: by their networks, numbered where there are several of one."""
    stages = [name for name in run.record.stages if name.startswith("wide-")]
    networks = {name: type(run.settings.crm_in(name)).__name__ for name in stages}
    found: dict[str, str] = {}
    for name, network in networks.items():
        alike = [each for each, other in networks.items() if other == network]
        found[name] = f"Wider {network}" + (f" {alike.index(name) + 1}" if len(alike) > 1 else "")
    return found


def _llm_name(run: Run) -> str:
    name, used = run.settings.llm.model.rsplit("/", 1)[-1], run.record.llm
    return f"{name}, {used['layers']} layers" if used else name


def _model_and_round(stage: str) -> tuple[Student, int]:
    model, _, rest = stage.partition("-")
    number = re.search(r"round-(\d+)$", rest)
    return model, int(number[1]) if number else 0  # type: ignore[return-value]


def _flat(values: dict[str, Any]) -> dict[str, object]:
    packages = values.pop("packages", {})
    return {name: value for name, value in {**values, **packages}.items() if value is not None}
