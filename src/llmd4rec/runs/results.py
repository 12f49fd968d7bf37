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
from llmd4rec.distillation.stage_ids import MEMORY, SERVED, with_memory, without_memory
from llmd4rec.evaluation.evaluation import Evaluation, main_metrics
from llmd4rec.evaluation.evaluator import Evaluator
from llmd4rec.evaluation.latency import milliseconds_per_request
from llmd4rec.evaluation.metrics import expand
from llmd4rec.evaluation.slices import SLICE_NAMES
from llmd4rec.io.leftovers import remove_leftovers
from llmd4rec.log import print_json, stdout_console
from llmd4rec.models.base import count_parameters
from llmd4rec.runs import memory
from llmd4rec.runs.origin import nothing_held_out
from llmd4rec.runs.run import Run
from llmd4rec.scoring.base import Scorer
from llmd4rec.scoring.baselines import BASELINES

#: Said wherever figures come from data that the run was not trained on.
OTHER_DATA = (
    "these figures are of other data than the model was trained on: what is held out there may have been trained on, "
    "and popularity, tail and cold are those of that data's training part"
)


#: By which models are compared with what needs no training.
LEAD = "ndcg@10"


@dataclass(frozen=True)
class Result:
    """One row of a results table.

    Attributes:
        stage: the trained stage; None: no training.
        evaluation: its test figures; `evaluation.stage` is what the row is called.
        served: whether this is what is served.
        parameters: all of the model's; None: no model.
        seconds: training time of this stage and of all that it needs; None: no training.
        milliseconds: median time of one request on this machine, through PyTorch.
    """

    stage: Stage | None
    evaluation: Evaluation
    served: bool
    parameters: int | None = None
    seconds: float | None = None
    milliseconds: float | None = None

    @property
    def name(self) -> str:
        """`undistilled`, `undistilled+memory`, `memory`, `popularity`, ..."""
        return self.evaluation.stage

    @property
    def network(self) -> str:
        """What scores: `SASRec 64`, `SASRec 64 + memory`, or that nothing was trained."""
        return self.evaluation.model

    @property
    def beside_memory(self) -> bool:
        """Whether this is a model with the memory beside it."""
        return without_memory(self.name)[1]

    def to_json(self) -> dict[str, Any]:
        """Plain values, with the evaluation's published form."""
        values = {key: value for key, value in vars(self).items() if key not in ("evaluation", "stage")}
        role = "baseline" if self.stage is None else self.stage.role
        return {"stage": self.name, "role": role} | values | self.evaluation.to_json()


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
    """Evaluates a model of a run, its memory or a training-free baseline, and saves the per-user results.

    Args:
        run: the run; results go under its evaluation/.
        data: its data set.
        name: see :meth:`Run.scorer`; or the name of a baseline.
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
    name = name if name in BASELINES else memory.label_of(run, name)
    filtered = run.settings.evaluation.filter_seen if filter_seen is None else filter_seen
    folder = _folder(run, name, filtered, split, targets)
    about = None
    nothing_held_out(run, data)
    if not other_data:
        run.require(data)
    elif not data.is_known_as(run.record.data):
        about = {"fingerprint": data.fingerprint, "path": str(data.path or ""), "warning": OTHER_DATA}
        folder = folder.with_name(f"{folder.name}-on-{data.fingerprint[:8]}")
        data = data.with_items_of(run.catalogue()["item_id"].to_list())
    scorer = memory.baseline_scorers_of(run, data)[name] if name in BASELINES else run.scorer(name)
    result = replace(_evaluated(run, data, scorer, filtered, split, targets), other_data=about)
    remove_leftovers(run.folder)
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
    name = name if name in BASELINES else memory.label_of(run, name)
    folder = _folder(run, name, filter_seen, "test", targets)
    if folder.exists():
        saved = Evaluation.load(folder)
        chosen = run.settings.evaluation  # which may be changed
        if {metric.name for metric in expand(chosen.metrics, chosen.cutoffs)} <= saved.metric_info.keys():
            return saved
    return score(run, given or run.load_data(None), name, filter_seen=filter_seen, targets=targets)


def _folder(run: Run, name: str, filter_seen: bool, split: SplitName, targets: str) -> Path:
    asked = "" if targets == "next" else f"-{targets.replace(':', '-')}"
    return run.folder / "evaluation" / f"{name}-{split}{asked}{'' if filter_seen else '-with-seen'}"


def score_run(run: Run, data: Dataset) -> list[Result]:
    """Scores every reported stage of the run on the test items, the memory beside it, and what needs no training."""
    run.require(data)
    stages = {stage.id: stage for stage in run.reported()}
    beside = {with_memory(name): stages[name] for name in memory.stages_with_memory(run) if name in stages}
    models = {name: run.model_scorer(name) for name in stages}
    parameters = {name: count_parameters(model.model)[0] for name, model in models.items()}
    # What was taught beside the memory says by itself only what the memory does not.
    alone = [model for name, model in models.items() if not stages[name].beside_memory]
    scorers = [*alone, *(run.scorer(name) for name in beside)]
    times = milliseconds_per_request(scorers, data)
    served = memory.label_of(run, SERVED)
    results = []
    for scorer, milliseconds in zip(scorers, times, strict=True):
        stage = beside.get(scorer.stage) or stages[scorer.stage]
        results.append(
            Result(
                stage,
                score(run, data, scorer.stage),
                served=scorer.stage == served,
                parameters=parameters[stage.id],
                seconds=training_seconds(run, stage),
                milliseconds=milliseconds,
            )
        )
    if run.record.memory is not None:
        results.append(Result(None, score(run, data, MEMORY), served=False))
    return results + [Result(None, found, served=False) for found in _score_baselines(run, data)]


def _score_baselines(run: Run, data: Dataset) -> list[Evaluation]:
    """The evaluations of the training-free methods; saved ones are taken, and are gone where the memory was changed."""
    filtered = run.settings.evaluation.filter_seen
    folders = {name: _folder(run, name, filtered, "test", "next") for name in BASELINES}
    wanted = {metric.name for metric in expand(run.settings.evaluation.metrics, run.settings.evaluation.cutoffs)}
    saved = {name: Evaluation.load(folder) for name, folder in folders.items() if folder.exists()}
    saved = {name: found for name, found in saved.items() if wanted <= found.metric_info.keys()}
    scorers = {} if len(saved) == len(BASELINES) else memory.baseline_scorers_of(run, data)
    for name, scorer in scorers.items():
        if name not in saved:
            saved[name] = _evaluated(run, data, scorer, filtered, "test", "next")
            saved[name].save(folders[name])
    return [saved[name] for name in BASELINES if name in saved]


def _evaluated(
    run: Run, data: Dataset, scorer: Scorer, filter_seen: bool, split: SplitName, targets: str
) -> Evaluation:
    chosen = run.settings.evaluation
    evaluator = Evaluator(chosen.metrics, cutoffs=chosen.cutoffs, filter_seen=filter_seen, targets=targets)
    return evaluator.evaluate(scorer, data, split)


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
    bar = best_baseline(results)
    for place, result in enumerate(results):
        found = result.evaluation
        if place and kind_of(result) != kind_of(results[place - 1]):
            table.add_section()
        table.add_row(
            result.name + (" (served)" if result.served else "") + (" !" if is_below(result, bar) else ""),
            result.network,
            *(found.info(name).shown(found.metrics.get(name)) for name in shown),
            "" if result.parameters is None else f"{result.parameters:,}",
            "0" if result.seconds is None else f"{result.seconds:.0f}",
            "" if result.milliseconds is None else f"{result.milliseconds:.2f}",
        )
    console = stdout_console()
    console.print(table)
    if bar is not None and any(is_below(result, bar) for result in results):
        console.print(f"! is not better than the best method without training: {bar.name}, {_figure(bar)}.")
    console.print(f"Training seconds include the stages that a stage needs. Report: {escape(str(report))}")


def kind_of(result: Result) -> str:
    """What a table keeps together: models, models with the memory, and what needs no training."""
    if result.stage is None:
        return "baseline"
    return "model+memory" if result.beside_memory else "model"


def lead_metric(results: Sequence[Result]) -> str:
    """By which a model is compared with the baselines: NDCG@10, or else the first metric shown."""
    names = main_metrics(results[0].evaluation.metrics) if results else []
    return LEAD if LEAD in names or not names else names[0]


def best_baseline(results: Sequence[Result]) -> Result | None:
    """The best of what needs no training; None where none was evaluated."""
    lead = lead_metric(results)
    found = [result for result in results if result.stage is None and lead in result.evaluation.metrics]
    lower = bool(found) and found[0].evaluation.info(lead).higher_is_better is False
    return max(found, key=lambda result: (-1 if lower else 1) * result.evaluation.metrics[lead], default=None)


def is_below(result: Result, bar: Result | None) -> bool:
    """Whether a model is not better than the best baseline."""
    if bar is None or result.stage is None:
        return False
    lead = lead_metric([bar])
    value, wanted = result.evaluation.metrics.get(lead), bar.evaluation.metrics[lead]
    if value is None:
        return False
    return value >= wanted if bar.evaluation.info(lead).higher_is_better is False else value <= wanted


def _figure(result: Result) -> str:
    lead = lead_metric([result])
    info = result.evaluation.info(lead)
    return f"{info.label} {info.shown(result.evaluation.metrics[lead])}"


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
