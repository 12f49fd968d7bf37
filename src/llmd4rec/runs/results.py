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
from llmd4rec.evaluation.evaluation import Evaluation, main_metrics
from llmd4rec.evaluation.evaluator import Evaluator
from llmd4rec.evaluation.latency import milliseconds_per_request
from llmd4rec.evaluation.metrics import expand
from llmd4rec.evaluation.slices import SLICE_NAMES
from llmd4rec.log import print_json, stdout_console
from llmd4rec.models.base import count_parameters
from llmd4rec.runs.origin import nothing_held_out
from llmd4rec.runs.run import Run, network_name

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
    targets: str = "next",
    other_data: bool = False,
) -> Evaluation:
    """Evaluates one stage of a run and saves the per-user results under evaluation/.

    Args:
        run: the run.
        data: its data set.
        name: which stage; see :meth:`Run.resolve`.
        filter_seen: whether items of the history are left out of the ranking; None: as in the run.
        split: which held-out items.
        targets: what is to be found of each user; see :class:`~llmd4rec.evaluation.evaluator.Evaluator`.
        other_data: take data that the run was not trained on, of items that it knows; the result says so, and is saved
            apart from those of the run's own data.

    Raises:
        RunError: the data is not the run's and `other_data` is false, or all of it was trained on, or there is no such
            stage.
        DataError: the other data has an item that the run does not know.
    """
    stage = run.stage(name)
    filtered = run.settings.evaluation.filter_seen if filter_seen is None else filter_seen
    folder = _folder(run, stage.id, filtered, split, targets)
    about = None
    nothing_held_out(run, data)
    if not other_data:
        run.require(data)
    elif not data.is_known_as(run.record.data):
        about = {"fingerprint": data.fingerprint, "path": str(data.path or ""), "warning": OTHER_DATA}
        folder = folder.with_name(f"{folder.name}-on-{data.fingerprint[:8]}")
        data = data.with_items_of(run.catalogue()["item_id"].to_list())
    chosen = run.settings.evaluation
    evaluator = Evaluator(chosen.metrics, cutoffs=chosen.cutoffs, filter_seen=filtered, targets=targets)
    result = evaluator.evaluate(run, data, split, stage=stage.id)
    result = replace(result, other_data=about)
    result.save(folder)
    return result


def saved_or_scored(
    run: Run, name: str, filter_seen: bool, data: Path | None = None, targets: str = "next"
) -> Evaluation:
    """The saved test evaluation of a stage, made now if it is not there, on `data` or where the run had its data.

    Raises:
        DataError, RunError: `data` is given and is no data set, or not the run's.
    """
    given = run.load_data(data) if data is not None else None
    stage_id = run.resolve(name)
    folder = _folder(run, stage_id, filter_seen, "test", targets)
    if folder.exists():
        saved = Evaluation.load(folder)
        chosen = run.settings.evaluation  # which may be changed
        if {metric.name for metric in expand(chosen.metrics, chosen.cutoffs)} <= saved.metric_info.keys():
            return saved
    return score(run, given or run.load_data(None), stage_id, filter_seen=filter_seen, targets=targets)


def _folder(run: Run, stage_id: str, filter_seen: bool, split: SplitName, targets: str) -> Path:
    asked = "" if targets == "next" else f"-{targets.replace(':', '-')}"
    return run.folder / "evaluation" / f"{stage_id}-{split}{asked}{'' if filter_seen else '-with-seen'}"


def score_run(run: Run, data: Dataset) -> list[Result]:
    """Scores every reported stage of the run on the test items."""
    run.require(data)
    stages = run.reported()
    evaluations = [score(run, data, stage.id) for stage in stages]
    scorers = [run.scorer(stage.id) for stage in stages]
    times = milliseconds_per_request([scorer.model for scorer in scorers], data)
    served = run.resolve(SERVED)
    return [
        Result(
            stage,
            evaluation,
            served=stage.id == served,
            parameters=count_parameters(scorer.model)[0],
            seconds=training_seconds(run, stage),
            milliseconds=milliseconds,
        )
        for stage, evaluation, scorer, milliseconds in zip(stages, evaluations, scorers, times, strict=True)
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
    shown = main_metrics(results[0].evaluation.metrics) if results else []
    for name in shown:
        table.add_column(results[0].evaluation.info(name).label, justify="right")
    for name in ("parameters", "training s", "ms/request"):
        table.add_column(name, justify="right")
    for result in results:
        found = result.evaluation
        table.add_row(
            result.stage.id + (" (served)" if result.served else ""),
            network_name(result.stage),
            *(found.info(name).shown(found.metrics.get(name)) for name in shown),
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
    """One evaluation as a table: all users at every cutoff, then each slice at one of them; below, what has no cutoff
    in common with it."""
    crossed: dict[str, dict[str, str]] = {}  # kind of metric → cutoff → name
    for name in result.per_user_metrics:
        key, _, k = name.partition("@")
        crossed.setdefault(key, {})[k] = name
    cutoffs = sorted({k for names in crossed.values() for k in names}, key=lambda k: int(k or 0))
    shown = "10" if "10" in cutoffs else next(iter(cutoffs), "")
    name, seen = label(result.stage, result.model), _filtered(result.filter_seen)
    asked = "" if result.targets == "next" else f", targets {result.targets} ({result.num_targets:,} in all)"
    table = Table(title=f"{escape(name)} · {result.split}{asked}, seen items {seen}")
    table.add_column("users")
    table.add_column("how many", justify="right")
    table.add_column("at", justify="right")
    for names in crossed.values():
        table.add_column(result.info(next(iter(names.values()))).label.partition("@")[0], justify="right")

    def row(label: str, values: Mapping[str, Any], k: str) -> None:
        cells = [result.info(names[k]).shown(values.get(names[k])) if k in names else "" for names in crossed.values()]
        table.add_row(label, f"{values['users']:,}", k, *cells)

    for k in cutoffs:
        row("all", {"users": result.users, **result.metrics}, k)
    table.add_section()
    for name, values in result.slices.items():
        row(SLICE_NAMES.get(name, name), values, shown)
    extra = {name: value for name, value in result.metrics.items() if name not in result.per_user_metrics}
    table.caption = " · ".join(f"{name} {result.info(name).shown(value)}" for name, value in extra.items())
    if result.other_data is not None:
        table.caption = f"Warning: {result.other_data['warning']}\n{table.caption}"
    return table
