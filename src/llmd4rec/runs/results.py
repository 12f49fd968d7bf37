"""What came out of a run: every model scored on the same held-out items, a before/after table, the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
from rich.markup import escape
from rich.table import Table

from llmd4rec.data.dataset import Dataset, SplitName
from llmd4rec.distillation.settings import Student
from llmd4rec.evaluation.evaluate import SeenItems
from llmd4rec.evaluation.evaluate import evaluate as evaluate_ranker
from llmd4rec.evaluation.evaluation import Evaluation
from llmd4rec.evaluation.latency import milliseconds_per_request
from llmd4rec.evaluation.slices import SLICE_NAMES
from llmd4rec.log import print_json, stdout_console
from llmd4rec.models.base import count_parameters
from llmd4rec.runs.run import Run, Stage

NAMES = {
    ("crm", "alone"): "CRM alone",
    ("crm", "distilled"): "CRM distilled",
    ("wide", "alone"): "wide CRM (not served)",
    ("llm", "alone"): "LLM alone",
    ("llm", "distilled"): "LLM distilled",
}
#: Said wherever figures come from data that the run was not trained on.
OTHER_DATA = (
    "these figures are of other data than the model was trained on: what is held out there may have been trained on, "
    "and popularity, tail and cold are those of that data's training part"
)


@dataclass(frozen=True)
class Result:
    """One row of the before/after table.

    Attributes:
        model, stage: which.
        trained_in: the training that holds it.
        evaluation: its test figures.
        parameters: all of the model's.
        seconds: training time of this stage and of all that came before it.
        milliseconds: median time of one request on this machine, through PyTorch.
    """

    model: Student
    stage: Stage
    trained_in: str
    evaluation: Evaluation
    parameters: int
    seconds: float
    milliseconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain values, with the evaluation's published form."""
        values = {key: value for key, value in vars(self).items() if key != "evaluation"}
        return values | self.evaluation.to_json()


def score(
    run: Run,
    data: Dataset,
    model: Student,
    stage: Stage,
    *,
    seen: SeenItems | None = None,
    split: SplitName = "test",
    other_data: bool = False,
) -> Evaluation:
    """Evaluates one model of a run and saves the per-user results under evaluation/.

    Args:
        run: the run.
        data: its data set.
        model, stage: which model.
        seen: whether items of the history are candidates; None: as in the run.
        split: which held-out items.
        other_data: take data that the run was not trained on, of items that it knows; the result says so, and is saved
            apart from those of the run's own data.

    Raises:
        RunError: the data is not the run's and `other_data` is false.
        DataError: the other data has an item that the run does not know.
    """
    chosen = seen or run.settings.evaluation.seen
    cutoffs = run.settings.evaluation.cutoffs
    name = f"{run.stage_of(model, stage)}-{chosen}-{split}"
    about = None
    if not other_data:
        run.require(data)
    elif not data.is_known_as(run.record.data):
        about = {"fingerprint": data.fingerprint, "path": str(data.path or ""), "warning": OTHER_DATA}
        name += f"-on-{data.fingerprint[:8]}"
        data = data.with_items_of(pl.read_parquet(run.folder / "catalogue.parquet")["item_id"].to_list())
    ranker = run.load(model, stage)
    result = evaluate_ranker(ranker, data, split=split, seen=chosen, cutoffs=cutoffs, model=model, stage=stage)
    result = replace(result, other_data=about)
    result.save(run.folder / "evaluation" / name)
    return result


def saved_or_scored(run: Run, model: Student, stage: Stage, seen: SeenItems, data: Path | None = None) -> Evaluation:
    """The saved test evaluation of a model, made now if it is not there, on `data` or where the run had its data.

    Raises:
        DataError, RunError: `data` is given and is no data set, or not the run's.
    """
    given = run.load_data(data) if data is not None else None
    folder = run.folder / "evaluation" / f"{run.stage_of(model, stage)}-{seen}-test"
    if folder.exists():
        return Evaluation.load(folder)
    return score(run, given or run.load_data(None), model, stage, seen=seen)


def score_run(run: Run, data: Dataset, report_path: Path | None = None) -> list[Result]:
    """Scores every model of the run on the test items and writes the report."""
    run.require(data)
    stages = list(run.record.stages)
    names = [run.stage_of(model, stage) for model, stage in run.models()]
    evaluations = [score(run, data, model, stage) for model, stage in run.models()]
    rankers = [run.load_stage(model, name) for (model, _), name in zip(run.models(), names, strict=True)]
    times = milliseconds_per_request(rankers, data)
    results = [
        Result(
            model,
            stage,
            name,
            evaluation,
            parameters=count_parameters(ranker)[0],
            seconds=sum(run.record.stages[each]["seconds"] for each in stages[: stages.index(name) + 1]),
            milliseconds=milliseconds,
        )
        for (model, stage), name, evaluation, ranker, milliseconds in zip(
            run.models(), names, evaluations, rankers, times, strict=True
        )
    ]
    from llmd4rec.report import write_report
    from llmd4rec.report.from_run import report_content

    write_report(report_path or run.folder / "report.html", report_content(run, data, results))
    return results


def print_table(results: Sequence[Result], run: Run, *, as_json: bool = False, report_path: Path | None = None) -> None:
    """The before/after table for a person, or all figures as JSON; says where the report is."""
    if as_json:
        print_json({"run": str(run.folder), "models": [result.to_json() for result in results]})
        return
    seen = run.settings.evaluation.seen
    name = escape(str(run.folder))
    table = Table(title=f"{name} · test, seen items {seen}{'pt' if seen == 'keep' else 'd'}", title_justify="left")
    table.add_column("model")
    cutoffs = run.settings.evaluation.cutoffs
    shown = 10 if 10 in cutoffs else cutoffs[0]
    for name in (f"HR@{shown}", f"NDCG@{shown}", "parameters", "training s", "ms/request"):
        table.add_column(name, justify="right")
    served = ("crm", run.served_stage("crm"))
    for result in results:
        metrics = result.evaluation.metrics
        table.add_row(
            NAMES[result.model, result.stage] + (" (served)" if (result.model, result.stage) == served else ""),
            f"{metrics[f'hr@{shown}']:.4f}",
            f"{metrics[f'ndcg@{shown}']:.4f}",
            f"{result.parameters:,}",
            f"{result.seconds:.0f}",
            f"{result.milliseconds:.2f}",
        )
    console = stdout_console()
    console.print(table)
    report = escape(str(report_path or run.folder / "report.html"))
    console.print(f"Training seconds include the stages before. Report: {report}")


def evaluation_table(result: Evaluation) -> Table:
    """One evaluation as a table: all users at every cutoff, then each slice at one of them."""
    cutoffs = sorted({int(name.split("@")[1]) for name in result.metrics if name.startswith("hr@")})
    shown = 10 if 10 in cutoffs else cutoffs[0]
    table = Table(title=f"{NAMES[result.model, result.stage]} · {result.split}, seen items: {result.filter_seen}")
    table.add_column("users")
    table.add_column("how many", justify="right")
    for name in ("at", "HR", "NDCG", "MRR"):
        table.add_column(name, justify="right")

    def row(label: str, values: Mapping[str, Any], k: int) -> None:
        cells = [f"{values[f'{name}@{k}']:.4f}" if f"{name}@{k}" in values else "-" for name in ("hr", "ndcg", "mrr")]
        table.add_row(label, f"{values['users']:,}", str(k), *cells)

    for k in cutoffs:
        row("all", {"users": result.users, **result.metrics}, k)
    table.add_section()
    for name, values in result.slices.items():
        row(SLICE_NAMES.get(name, name), values, shown)
    extra = {name: value for name, value in result.metrics.items() if name.startswith(("coverage", "popularity"))}
    table.caption = " · ".join(f"{name} {value:.4g}" for name, value in extra.items())
    if result.other_data is not None:
        table.caption = f"LOOK: {result.other_data['warning']}\n{table.caption}"
    return table
