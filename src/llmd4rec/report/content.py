"""What a report shows, as plain values. Every part may be missing; its section is then left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from llmd4rec.distillation.plan import Role
from llmd4rec.evaluation.evaluation import MetricInfo
from llmd4rec.evaluation.rolling_evaluation import RollingEvaluation
from llmd4rec.evaluation.significance import Comparison


@dataclass(frozen=True)
class CurvePoint:
    """One validation during a training.

    Attributes:
        stage: the id of the stage that was trained.
        role: what its model is for.
        round: of distillation; 0 for a stage before the first one.
        epoch: of this stage, from 1.
        value: the validation value.
    """

    stage: str
    role: Role
    round: int
    epoch: int
    value: float


@dataclass(frozen=True)
class StageRow:
    """The model of one stage, alone or with the memory, or a method without training: a row of the table of results.

    Attributes:
        stage: the stage's id, `undistilled+memory` and the like, or the name of the method.
        role: what its model is for; `baseline`: nothing was trained.
        round: of distillation; 0 for a stage before the first one.
        network: what the model is called, such as `SASRec 64`.
        metrics: test metrics, such as `hr@10`, `ndcg@10` (also `coverage@10`, `popularity@10` where known).
        served: whether this is what is served.
        parameters: all of the model's.
        train_seconds: training time of this stage and of all stages that it needs.
        ms_per_request: time to answer one request.
        below_baseline: whether the best method without training is at least as good.
    """

    stage: str
    role: Role | Literal["baseline"]
    round: int
    network: str
    metrics: Mapping[str, float]
    served: bool = False
    parameters: int | None = None
    train_seconds: float | None = None
    ms_per_request: float | None = None
    below_baseline: bool = False


@dataclass(frozen=True)
class PlanRow:
    """One training of the plan, and how it went.

    Attributes:
        stage: the stage's id.
        role: what its model is for.
        round: of distillation; 0 for a stage before the first one.
        network: what the model is called.
        teachers: stage id → ensemble weight of each teacher; a weight of 0: unused; None: not known yet.
        logit_adjustment: τ that it was trained with; 0: none.
        half_life_days: after how many days a pass takes an interaction half as often; None: all alike.
        newest_days: how many of the newest days were learned last; None: all were learned together.
        starts_from: the stage whose weights it goes on from; None: random weights.
        item_embeddings_of: the stage whose item embeddings it reads; None: none.
        rollouts_by: the stage whose model extends the training histories; None: they are the log's.
        best_epoch: the epoch whose weights were kept; None: not trained.
        epochs: how many were trained; None: not trained.
        validation: value of the selection metric on the validation items; None: not trained.
        seconds: training time of this stage only; None: not trained.
    """

    stage: str
    role: Role
    round: int
    network: str
    teachers: Mapping[str, int | None] = field(default_factory=dict)
    logit_adjustment: float = 0.0
    half_life_days: float | None = None
    newest_days: float | None = None
    starts_from: str | None = None
    item_embeddings_of: str | None = None
    rollouts_by: str | None = None
    best_epoch: int | None = None
    epochs: int | None = None
    validation: float | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class WeightHistogram:
    """How the sample weights of one stage with teachers were spread.

    Attributes:
        stage: the stage's id.
        role: what the model is for that was taught.
        round: of distillation, from 1.
        edges: of the bins, one more than `counts`, ascending.
        counts: training positions per bin.
        mean: over all training positions.
    """

    stage: str
    role: Role
    round: int
    edges: Sequence[float]
    counts: Sequence[int]
    mean: float


@dataclass(frozen=True)
class Example:
    """What the undistilled and the distilled model recommended to one real user.

    Attributes:
        user: the user's identifier.
        history: titles of the items before the true one, oldest first.
        target: title of the true item.
        undistilled: titles recommended by the undistilled model, best first.
        distilled: titles recommended by the distilled model, best first.
        target_undistilled: place of the true item in `undistilled` from 0; None if it is not there.
        target_distilled: place of the true item in `distilled` from 0; None if it is not there.
        rank_undistilled: rank that the undistilled model gives the true item among all items; None where it was no
            candidate.
        rank_distilled: the same for the distilled model.
    """

    user: str
    history: Sequence[str]
    target: str
    undistilled: Sequence[str]
    distilled: Sequence[str]
    target_undistilled: int | None = None
    target_distilled: int | None = None
    rank_undistilled: int | None = None
    rank_distilled: int | None = None


@dataclass(frozen=True)
class ReportContent:
    """All a report can show.

    Attributes:
        title: what the run is called.
        model: what the served network is called, such as `SASRec 64`.
        llm: what the language model is called, such as `SmolLM2-135M, 8 layers`.
        undistilled: id of the stage that is `comparison.first`.
        distilled: id of the stage that is `comparison.second`.
        rows: one per evaluated stage, in the order of the table.
        plan: all stages in the order of training.
        stopped_because: why there were no more rounds.
        comparison: the undistilled model (first) against the distilled one (second) on the test targets: the finding,
            and where it comes from.
        llm_comparison: the distilled model (first) against the language model (second): whose hits overlap.
        selection: what validation values are of, such as `NDCG@10`.
        curves: validation values per epoch, in the order of training.
        weights: one per stage with sample weights.
        examples: see :func:`~llmd4rec.report.examples.choose_examples`.
        rolling: what was found in windows behind the cut.
        metric_info: name → how to show a metric of `rows`; built-in ones need none.
        facts: what the data set is, name → value, in order; for example users, items, interactions.
        settings: the run's settings as YAML text.
        environment: name → value, for example versions, device, commit, seed.
        commands: what made this run, one command line each.
    """

    title: str
    model: str = ""
    llm: str = ""
    undistilled: str = "undistilled"
    distilled: str = "distilled"
    rows: Sequence[StageRow] = ()
    plan: Sequence[PlanRow] = ()
    stopped_because: str = ""
    comparison: Comparison | None = None
    llm_comparison: Comparison | None = None
    selection: str = "NDCG@10"
    curves: Sequence[CurvePoint] = ()
    weights: Sequence[WeightHistogram] = ()
    examples: Sequence[Example] = ()
    rolling: Sequence[RollingEvaluation] = ()
    metric_info: Mapping[str, MetricInfo] = field(default_factory=dict)
    facts: Mapping[str, object] = field(default_factory=dict)
    settings: str = ""
    environment: Mapping[str, object] = field(default_factory=dict)
    commands: Sequence[str] = ()

    def info(self, name: str) -> MetricInfo:
        """How to show a metric."""
        return self.metric_info.get(name) or MetricInfo.named(name)

    def network_of(self, stage: str) -> str:
        """What the model of a stage is called; empty where neither table has the stage."""
        named = {row.stage: row.network for row in self.rows} | {row.stage: row.network for row in self.plan}
        return named.get(stage, "")
