"""What a report shows, as plain values. Every part may be missing; its section is then left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from llmd4rec.evaluation.significance import Comparison

#: The served recommender, the language model, and a wider recommender that only teaches.
ModelName = Literal["crm", "llm", "wide"]


@dataclass(frozen=True)
class CurvePoint:
    """One validation of one model.

    Attributes:
        model: which model was being trained.
        round: 0 for training alone, from 1 for the rounds of distillation.
        epoch: within this model's training in this round, from 1.
        value: validation NDCG@10.
        name: which of several trainings of such models that stand beside each other; empty where there is one.
    """

    model: ModelName
    round: int
    epoch: int
    value: float
    name: str = ""


@dataclass(frozen=True)
class ModelRow:
    """One model at one stage, as a row of the table.

    Attributes:
        model: `crm`, `llm` or `wide`.
        stage: `alone` or `distilled`.
        metrics: test metrics, such as `hr@10`, `ndcg@10` (also `coverage@10`, `popularity@10` where known).
        parameters: what is needed to serve it.
        train_seconds: spent training it and everything it was made from.
        ms_per_request: time to answer one request.
    """

    model: ModelName
    stage: Literal["alone", "distilled"]
    metrics: Mapping[str, float]
    parameters: int | None = None
    train_seconds: float | None = None
    ms_per_request: float | None = None


@dataclass(frozen=True)
class WeightHistogram:
    """How the weights of the distillation loss were spread over the samples of one round.

    Attributes:
        round: from 1.
        direction: `w1`: the LLM is taught; `w2`: the CRM is.
        edges: of the bins, one more than `counts`, ascending.
        counts: samples per bin.
        mean: over all samples.
    """

    round: int
    direction: Literal["w1", "w2"]
    edges: Sequence[float]
    counts: Sequence[int]
    mean: float


@dataclass(frozen=True)
class Example:
    """What the CRM recommended to one real user before and after distillation.

    Attributes:
        user: the user's identifier.
        history: titles of the items before the true one, oldest first.
        target: title of the true item.
        before: titles recommended by the CRM alone, best first.
        after: titles recommended by the distilled CRM, best first.
        target_before: place of the true item in `before` from 0; None if it is not there.
        target_after: place of the true item in `after` from 0; None if it is not there.
        rank_before: rank of the true item among all items for the CRM alone; None where it was no candidate.
        rank_after: the same for the distilled CRM.
    """

    user: str
    history: Sequence[str]
    target: str
    before: Sequence[str]
    after: Sequence[str]
    target_before: int | None = None
    target_after: int | None = None
    rank_before: int | None = None
    rank_after: int | None = None


@dataclass(frozen=True)
class ReportContent:
    """All a report can show.

    Attributes:
        title: what the run is called.
        crm: what the served model is called, such as `SASRec`.
        wide: what the first wider recommender is called; empty: as the served model.
        llm: what the language model is called, such as `SmolLM2-135M, 8 layers`.
        teacher: who taught the distilled one.
        rows: models before and after, in the order of the table.
        comparison: CRM alone (first) against distilled CRM (second) on the test targets: the finding, and where it
            comes from.
        models_compared: distilled CRM (first) against distilled LLM (second): whose hits overlap.
        curves: validation NDCG@10 per epoch, in the order of training.
        weights: one per round and direction.
        examples: see :func:`~llmd4rec.report.examples.choose_examples`.
        facts: what the data set is, name → value, in order; for example users, items, interactions.
        settings: the run's settings as YAML text.
        environment: name → value, for example versions, device, commit, seed.
        commands: what made this run, one command line each.
    """

    title: str
    crm: str = "the recommender"
    wide: str = ""
    llm: str = "the language model"
    teacher: str = "the language model"
    rows: Sequence[ModelRow] = ()
    comparison: Comparison | None = None
    models_compared: Comparison | None = None
    curves: Sequence[CurvePoint] = ()
    weights: Sequence[WeightHistogram] = ()
    examples: Sequence[Example] = ()
    facts: Mapping[str, object] = field(default_factory=dict)
    settings: str = ""
    environment: Mapping[str, object] = field(default_factory=dict)
    commands: Sequence[str] = ()
