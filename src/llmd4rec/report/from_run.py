"""From a run folder to the report page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmd4rec.config.settings import dump_settings
from llmd4rec.data.dataset import Dataset
from llmd4rec.distillation.plan import Stage, network_name
from llmd4rec.distillation.stage_ids import UNDISTILLED
from llmd4rec.evaluation.rolling_evaluation import HEAD, RollingEvaluation
from llmd4rec.evaluation.significance import Comparison, compare
from llmd4rec.io.files import read_json
from llmd4rec.losses.sample_weights import WEIGHT_BINS
from llmd4rec.report.content import CurvePoint, PlanRow, ReportContent, StageRow, WeightHistogram
from llmd4rec.report.examples import choose_examples
from llmd4rec.report.page import write_report
from llmd4rec.runs.results import Result, best_baseline, is_below, label
from llmd4rec.runs.run import Run

_EDGES = tuple(2 * index / WEIGHT_BINS for index in range(WEIGHT_BINS + 1))


def write_run_report(run: Run, data: Dataset, results: Sequence[Result], path: Path | None = None) -> Path:
    """Writes the report of a run as one HTML file; returns where it is.

    Args:
        run: the run.
        data: its data set.
        results: its evaluated stages, see :func:`~llmd4rec.runs.results.score_run`.
        path: where to; None: report.html in the run folder. Replaced if it exists.
    """
    path = run.folder / "report.html" if path is None else path
    write_report(path, report_content(run, data, results))
    return path


def report_content(run: Run, data: Dataset, results: Sequence[Result]) -> ReportContent:
    """All that the page shows, from the run folder and the evaluated stages."""
    compared = _Compared.of(results)
    undistilled, distilled, llm = compared.undistilled, compared.distilled, compared.llm
    bar = best_baseline(results)
    plan, log = run.plan, run.metrics()
    stages = {stage.id: stage for stage in plan}
    return ReportContent(
        title=run.folder.resolve().name,
        model=network_name(stages[UNDISTILLED]),
        llm=_llm_name(run),
        undistilled=UNDISTILLED,
        distilled=distilled.name if distilled is not None else "",
        rows=[_row(result, bar) for result in results],
        plan=[_plan_row(stage, run.record.stages.get(stage.id)) for stage in plan],
        stopped_because=run.record.stopped_because,
        comparison=_compare(undistilled, distilled),
        llm_comparison=_compare(distilled, llm),
        curves=[
            CurvePoint(stage.id, stage.role, stage.round, line["epoch"], line["validation"])
            for line in log
            if line["epoch"] > 0 and "validation" in line
            for stage in [stages[line["stage"]]]
        ],
        selection=run.settings.evaluation.selection.label,
        weights=_histograms(run, log),
        examples=choose_examples(data, undistilled.evaluation, distilled.evaluation)
        if undistilled is not None and distilled is not None
        else (),
        rolling=[
            RollingEvaluation.load(folder)
            for folder in sorted((run.folder / "evaluation").glob("rolling-*"))
            if (folder / HEAD).exists()
        ],
        metric_info={name: info for result in results for name, info in result.evaluation.metric_info.items()},
        facts={
            "users": data.num_users,
            "items": data.num_items,
            "interactions": data.num_interactions,
            **_order_facts(data),
            "items with text": sum(1 for text in data.texts() if text),
            "validation targets": len(data.valid),
            "test targets": len(data.test),
            "seen items": "filtered" if run.settings.evaluation.filter_seen else "kept",
            "fingerprint": data.fingerprint,
            **_origin_facts(run),
        },
        settings=dump_settings(run.settings),
        environment=_flat(read_json(run.folder / "environment.json"))
        | {"seed": run.settings.seed, **({"language model": run.record.llm["origin"]} if run.record.llm else {})},
        commands=[_command(run, data)],
    )


@dataclass(frozen=True)
class _Compared:
    """Whose results the page compares; None: not evaluated."""

    undistilled: Result | None
    distilled: Result | None
    llm: Result | None

    @classmethod
    def of(cls, results: Sequence[Result]) -> _Compared:
        trained = [(result, result.stage) for result in results if result.stage and not result.beside_memory]
        rounds = [result for result, stage in trained if stage.role == "model" and stage.round]
        # The served model; where validation chose the undistilled one, the last that was distilled.
        served_id = next((result.stage.id for result in results if result.served and result.stage), "")
        served = [result for result in rounds if result.name == served_id] or rounds
        llms = [result for result, stage in trained if stage.role == "llm"]
        return cls(
            next((result for result, stage in trained if stage.id == UNDISTILLED), None),
            served[-1] if served else None,
            llms[-1] if llms else None,
        )


def _compare(first: Result | None, second: Result | None) -> Comparison | None:
    if first is None or second is None:
        return None
    if not set(first.evaluation.per_user_metrics) & set(second.evaluation.per_user_metrics):
        return None  # only figures that no user has a share in
    names = (label(first.name, first.network), label(second.name, second.network))
    return compare(first.evaluation, second.evaluation, names=names)


def _row(result: Result, bar: Result | None) -> StageRow:
    stage = result.stage
    return StageRow(
        result.name,
        "baseline" if stage is None else stage.role,
        0 if stage is None else stage.round,
        result.network,
        result.evaluation.metrics,
        result.served,
        result.parameters,
        result.seconds,
        result.milliseconds,
        is_below(result, bar),
    )


def _plan_row(stage: Stage, done: dict[str, Any] | None) -> PlanRow:
    """One stage of the plan, and what the record says of it once it is done."""
    done = done or {}
    return PlanRow(
        stage.id,
        stage.role,
        stage.round,
        network_name(stage),
        {teacher: done.get("teachers", {}).get(teacher) for teacher in stage.teachers},
        done.get("logit_adjustment", 0.0),
        done.get("half_life_days"),
        done.get("newest_days"),
        stage.starts_from,
        stage.item_embeddings_of,
        stage.rollouts_by,
        done.get("best_epoch"),
        done.get("epochs"),
        done.get("validation"),
        done.get("seconds"),
    )


def _histograms(run: Run, log: Sequence[dict[str, Any]]) -> list[WeightHistogram]:
    """The sample weights of the epoch whose model was kept, per stage (of the first where that is epoch 0)."""
    found = []
    for stage in run.plan:
        done = run.record.stages.get(stage.id)
        if done is None or not stage.teachers:
            continue
        kept = max(1, done["best_epoch"])
        for line in log:
            if line["stage"] == stage.id and line["epoch"] == kept and "weight_counts" in line:
                found.append(
                    WeightHistogram(
                        stage.id, stage.role, stage.round, _EDGES, line["weight_counts"], line["weight_mean"]
                    )
                )
    return found


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


def _origin_facts(run: Run) -> dict[str, object]:
    """What a refitted or updated run came from, and the figures of that run."""
    origin = run.record.origin
    if origin is None:
        return {}
    name = Path(origin["run"]).name
    figures = {f"test {metric} of {name}": f"{value:.4f}" for metric, value in origin["metrics"].items()}
    return {f"{origin['kind']} of": name, "held out": "nothing", **figures}


def _command(run: Run, data: Dataset) -> str:
    """What makes such a run."""
    origin = run.record.origin
    if origin is not None:
        where = Path(origin["data_path"]).name if origin["data_path"] else "DATA"
        return f"llmd4rec {origin['kind']} {Path(origin['run']).name} --data {where} --out {run.folder.name}"
    return f"llmd4rec train config.yaml --data {data.path.name if data.path else 'DATA'} --run {run.folder.name}"


def _llm_name(run: Run) -> str:
    """What the plan's language model is called, and how many of its layers are used; empty where there is none."""
    stage = next((stage for stage in run.plan if stage.role == "llm"), None)
    if stage is None:
        return ""
    return network_name(stage) + (f", {run.record.llm['layers']} layers" if run.record.llm else "")


def _flat(values: dict[str, Any]) -> dict[str, object]:
    packages = values.pop("packages", {})
    return {name: value for name, value in {**values, **packages}.items() if value is not None}
