"""What came out of a run: every stage scored on the same held-out items, and the tables of that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from llmd4rec.data.dataset import Dataset, SplitName
from llmd4rec.distillation.plan import Stage, find
from llmd4rec.distillation.stage_ids import SERVED
from llmd4rec.evaluation.evaluation import Evaluation
from llmd4rec.evaluation.evaluator import Evaluator
from llmd4rec.evaluation.latency import milliseconds_per_request
from llmd4rec.evaluation.slices import SLICE_NAMES
from llmd4rec.log import print_json, stdout_console
from llmd4rec.models.base import count_parameters
from llmd4rec.models.llm.settings import LLM
from llmd4rec.runs.run import Run

#: Said wherever figures come from data that the run was not trained on.
OTHER_DATA = (
    "these figures are of other data than the model was trained on: what is held out there may have been trained on, "
    "and popularity, tail and cold are those of that data's training part"
)


@dataclass(frozen=True)
class Result:
    """One row of a results table.

    Attributes:
        stage: the trained stage.
        evaluation: its test figures.
        served: whether this is the model that is served.
        parameters: all of the model's.
        seconds: training time of this stage and of all that it needs.
        milliseconds: median time of one request on this machine, through PyTorch.
    """

    stage: Stage
    evaluation: Evaluation
    served: bool
    parameters: int
    seconds: float
    milliseconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain values, with the evaluation's published form."""
        values = {key: value for key, value in vars(self).items() if key not in ("evaluation", "stage")}
        return {"stage": self.stage.id, "role": self.stage.role} | values | self.evaluation.to_json()


def network_name(stage: Stage) -> str:
    """Which model a stage trains, for a person: `SASRec 64`, or the language model's name."""
    if isinstance(stage.network, LLM):
        return stage.network.model.rsplit("/", 1)[-1]
    return f"{type(stage.network).__name__} {stage.network.dim}"


def label(stage_id: str, network: str) -> str:
    """What a table calls a model."""
    return f"{stage_id} ({network})"


def score(
    run: Run,
    data: Dataset,
    name: str = SERVED,
    *,
    filter_seen: bool | None = None,
    split: SplitName = "test",
    other_data: bool = False,
) -> Evaluation:
    """Evaluates one stage of a run and saves the per-user results under evaluation/.

    Args:
        run: the run.
        data: its data set.
        name: which stage; see :meth:`Run.resolve`.
        filter_seen: whether items of the history are left out of the ranking; None: as in the run.
        split: which held-out items.
        other_data: take data that the run was not trained on, of items that it knows; the result says so, and is saved
            apart from those of the run's own data.

    Raises:
        RunError: the data is not the run's and `other_data` is false, or there is no such stage.
        DataError: the other data has an item that the run does not know.
    """
    stage = run.stage(name)
    filtered = run.settings.evaluation.filter_seen if filter_seen is None else filter_seen
    folder = _folder(run, stage.id, filtered, split)
    about = None
    if not other_data:
        run.require(data)
    elif not data.is_known_as(run.record.data):
        about = {"fingerprint": data.fingerprint, "path": str(data.path or ""), "warning": OTHER_DATA}
        folder = folder.with_name(f"{folder.name}-on-{data.fingerprint[:8]}")
        data = data.with_items_of(run.catalogue()["item_id"].to_list())
    result = evaluate(
        run.load(stage.id),
        data,
        split=split,
        filter_seen=filtered,
        cutoffs=run.settings.evaluation.cutoffs,
        model=network_name(stage),
        stage=stage.id,
    )
    result = replace(result, other_data=about)
    result.save(folder)
    return result


def saved_or_scored(run: Run, name: str, filter_seen: bool, data: Path | None = None) -> Evaluation:
    """The saved test evaluation of a stage, made now if it is not there, on `data` or where the run had its data.

    Raises:
        DataError, RunError: `data` is given and is no data set, or not the run's.
    """
    given = run.load_data(data) if data is not None else None
    stage_id = run.resolve(name)
    folder = _folder(run, stage_id, filter_seen, "test")
    if folder.exists():
        saved = Evaluation.load(folder)
        if {f"ndcg@{k}" for k in run.settings.evaluation.cutoffs} <= saved.metrics.keys():  # which may be changed
            return saved
    return score(run, given or run.load_data(None), stage_id, filter_seen=filter_seen)


def _folder(run: Run, stage_id: str, filter_seen: bool, split: SplitName) -> Path:
    return run.folder / "evaluation" / f"{stage_id}-{split}{'' if filter_seen else '-with-seen'}"


def score_run(run: Run, data: Dataset) -> list[Result]:
    """Scores every reported stage of the run on the test items."""
    run.require(data)
    stages = run.reported()
    evaluations = [score(run, data, stage.id) for stage in stages]
    models = [run.load(stage.id) for stage in stages]
    times = milliseconds_per_request(models, data)
    served = run.resolve(SERVED)
    return [
        Result(
            stage,
            evaluation,
            served=stage.id == served,
            parameters=count_parameters(model)[0],
            seconds=training_seconds(run, stage),
            milliseconds=milliseconds,
        )
        for stage, evaluation, model, milliseconds in zip(stages, evaluations, models, times, strict=True)
    ]


def training_seconds(run: Run, stage: Stage) -> float:
    """How long a stage and all that it needs were trained."""
    needed, left = set[str](), [stage.id]
    while left:
        stage_id = left.pop()
        if stage_id not in needed:
            needed.add(stage_id)
            left += find(run.plan, stage_id).needs
    return float(sum(run.record.stages[stage_id]["seconds"] for stage_id in needed))


def print_table(results: Sequence[Result], run: Run, report: Path, *, as_json: bool = False) -> None:
    """A table of all stages for a person, or all figures as JSON; says where the report is."""
    if as_json:
        print_json({"run": str(run.folder), "stages": [result.to_json() for result in results]})
        return
    filtered = _filtered(run.settings.evaluation.filter_seen)
    table = Table(title=f"{escape(str(run.folder))} · test, seen items {filtered}", title_justify="left")
    table.add_column("stage")
    table.add_column("model")
    cutoffs = run.settings.evaluation.cutoffs
    shown = 10 if 10 in cutoffs else cutoffs[0]
    for name in (f"HR@{shown}", f"NDCG@{shown}", "parameters", "training s", "ms/request"):
        table.add_column(name, justify="right")
    for result in results:
        metrics = result.evaluation.metrics
        table.add_row(
            result.stage.id + (" (served)" if result.served else ""),
            network_name(result.stage),
            f"{metrics[f'hr@{shown}']:.4f}",
            f"{metrics[f'ndcg@{shown}']:.4f}",
            f"{result.parameters:,}",
            f"{result.seconds:.0f}",
            f"{result.milliseconds:.2f}",
        )
    console = stdout_console()
    console.print(table)
    console.print(f"Training seconds include the stages that a stage needs. Report: {escape(str(report))}")


def _filtered(filter_seen: bool) -> str:
    return "filtered" if filter_seen else "kept"


def evaluation_table(result: Evaluation) -> Table:
    """One evaluation as a table: all users at every cutoff, then each slice at one of them."""
    cutoffs = sorted({int(name.split("@")[1]) for name in result.metrics if name.startswith("hr@")})
    shown = 10 if 10 in cutoffs else cutoffs[0]
    name, seen = label(result.stage, result.model), _filtered(result.filter_seen)
    table = Table(title=f"{name} · {result.split}, seen items {seen}")
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
        table.caption = f"Warning: {result.other_data['warning']}\n{table.caption}"
    return table
