"""The settings of a run: which models are trained, who teaches whom, in how many rounds. One class, one YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    field_validator,
    model_validator,
)

from llmd4rec.config.settings import check
from llmd4rec.distillation.methods import METHODS, AnyMethod, LLMD4Rec
from llmd4rec.distillation.renamed import RENAMED
from llmd4rec.distillation.teachers import Teacher, teachers_of
from llmd4rec.evaluation.metrics import DEFAULT_METRICS, GlobalMetric, Metric, MetricSetting, metric_of
from llmd4rec.features.text_settings import TextSettings
from llmd4rec.losses.loss import LOSSES, Softmax
from llmd4rec.models.llm.settings import LLM
from llmd4rec.models.sequential import SASRec, SequentialModel
from llmd4rec.scoring.memory.settings import Memory
from llmd4rec.training.loggers.json_lines import JSONLines
from llmd4rec.training.loggers.named import AnyLogger
from llmd4rec.training.settings import SCHEDULES, WIDTH_RATE, Schedule, Training

#: A model that teachers can teach: the served one, and the language model.
Student = Literal["model", "llm"]


# Defaults that differ between the two models are those of a class each, not arguments of a default factory: a file
# that names one setting of a model must leave its others as they are.
class ModelTraining(Training):
    """How the served model and the teachers are trained."""

    # A rate that is high at first and falls comes in these epochs to where a small constant one came in 20 to 35.
    epochs: int = Field(16, ge=0, description="at most so many epochs, over which the learning rate falls to 0")
    round_epochs: int | None = Field(
        8, ge=0, description="the same in a round of distillation, or fewer (null: as many as without a teacher)"
    )
    patience: int = Field(4, ge=1, description="stop after so many epochs without a better validation value")
    learning_rate: float | None = Field(
        None,
        gt=0,
        description=f"peak learning rate of AdamW; null: {WIDTH_RATE / 64:g} up to a width of 64, and less in "
        "proportion above it",
    )
    round_learning_rate: float | None = Field(
        4e-3, gt=0, description="the peak learning rate in a round of distillation (null: as without a teacher)"
    )
    schedule: Schedule = Field("cosine", description=f"what the rate does after the warm-up; {SCHEDULES}")
    batch: int = Field(2048, ge=1, description="training positions per step, about; fewer on small data")
    ema: float = Field(
        0.999, ge=0, lt=1, description="validate and keep an exponential moving average of the weights with this decay"
    )
    # A step over a large catalogue costs mostly the update of its embeddings, whatever it reads.
    large_catalogue_batch: int = Field(
        8, ge=1, description="so many times more positions per step where candidates are drawn"
    )


class LLMTraining(Training):
    """How the language model is trained."""

    epochs: int = Field(6, ge=0, description="at most so many epochs")
    round_epochs: int | None = Field(
        3, ge=0, description="at most so many epochs in a round of distillation (null: as many as without a teacher)"
    )
    patience: int = Field(2, ge=1, description="stop after so many epochs without a better validation value")
    batch: int = Field(512, ge=1, description="training positions per step, about; fewer on small data")
    schedule: Schedule = Field("cosine", description=f"what the rate does after the warm-up; {SCHEDULES}")
    weight_decay: float = Field(0.1, ge=0, description="AdamW's weight decay")
    epoch_positions: int | None = Field(
        200_000, ge=1, description="train only about so many positions, drawn anew, in each epoch (null: all)"
    )
    clip: float | None = Field(1.0, gt=0, description="largest gradient norm; longer gradients are scaled down")


class Trainings(BaseModel):
    """How each kind of model is trained."""

    model_config = ConfigDict(extra="forbid")

    model: ModelTraining = Field(default_factory=ModelTraining)
    llm: LLMTraining = Field(default_factory=LLMTraining)
    negatives: Literal["auto", "known", "all"] = Field(
        "auto",
        description="which items the softmax ranks the true one above: known: those that somebody chose in the "
        "training part; all: the whole catalogue; auto: known where a moment divides the data (split: temporal), "
        "because the others may not have been there yet, and all otherwise",
    )
    half_life_days: Literal["auto"] | Annotated[float, Field(gt=0, le=1e9, strict=True)] | None = Field(
        "auto",
        description="days of age after which a pass takes an interaction half as often, each at least once in 20 "
        "passes; null: all alike; auto: 30 or more where a moment divides the data (split: temporal) and counts say "
        "that newer interactions predict validation better, and null otherwise",
    )
    newest_days: Literal["auto"] | Annotated[float, Field(gt=0, le=1e9, strict=True)] | None = Field(
        "auto",
        description="so many of the newest days are left out of the passes, and learned last, a week at a time; null: "
        "none; auto: 28 where a moment divides the data and passes have a half-life, and null otherwise",
    )


class EvaluationSettings(BaseModel):
    """How models are compared and selected."""

    model_config = ConfigDict(extra="forbid")

    filter_seen: bool = Field(True, description="whether items of the user's history are left out of the ranking")
    cutoffs: tuple[PositiveInt, ...] = Field((5, 10, 20), min_length=1, description="the k of metrics that give none")
    metrics: tuple[MetricSetting, ...] = Field(
        tuple(map(metric_of, DEFAULT_METRICS)),
        min_length=1,
        description="what is measured: names as ndcg (at each cutoff) or ndcg@10, or package.module:Name",
    )
    selection: MetricSetting = Field(
        metric_of("ndcg@10"),
        description="what epochs, rounds, ensemble weights and the logit adjustment are chosen by on validation: a "
        "metric with its cutoff, such as hr@20",
    )
    validation_users: int | None = Field(
        20_000, ge=1, description="choose them on so many users, drawn once (null: all)"
    )

    @field_validator("selection")
    @classmethod
    def _can_select(cls, metric: Metric) -> Metric:
        if isinstance(metric, GlobalMetric) or not metric.higher_is_better:
            raise ValueError(f"{metric.name} cannot choose: it needs a value of each user of which more is better")
        if metric.k is None and metric.has_cutoff:
            raise ValueError(f"{metric.name} needs a cutoff, such as {metric.name}@10")
        return metric


def _memory(value: Any) -> Any:
    """`auto`, `null` or its settings."""
    if value == "auto":
        return Memory()
    if isinstance(value, str | int | float):  # `yes` is True in YAML
        raise ValueError("must be `auto`, null, or parts such as {content: {dim: 64}, recency: null}")
    return value


class PerStudent(BaseModel):
    """A number for each model that is taught."""

    model_config = ConfigDict(extra="forbid")

    model: float
    llm: float


class DistillationWeights(PerStudent):
    """λ of the distillation term."""

    model: float = Field(64.0, ge=0, description="weight of the distillation term when the model is taught (λ2)")
    llm: float = Field(8.0, ge=0, description="the same when the language model is taught (λ1)")


class Temperatures(PerStudent):
    """T of both distributions."""

    model: float = Field(1.0, gt=0, description="softens both distributions when the model is taught (T2)")
    llm: float = Field(1.0, gt=0, description="the same when the language model is taught (T1)")


class DistillSettings(BaseModel):
    """Who is taught, by whom and how."""

    model_config = ConfigDict(extra="forbid")

    students: tuple[Student, ...] = Field(("model", "llm"), min_length=1, description="which models are taught")
    source: Literal["ensemble", "partner", "self"] = Field(
        "ensemble",
        description="who teaches a student. ensemble: the mean of all other models, and of the student as it was; "
        "partner: the model is taught by the language model, and the language model by all others; self: a control, "
        "only models of the student's own kind",
    )
    weight: DistillationWeights = Field(default_factory=DistillationWeights)
    temperature: Temperatures = Field(default_factory=Temperatures)
    scale_by_t2: bool = Field(True, description="multiply the distillation term by T²")
    sample_weights: Literal["rank", "none"] = Field(
        "rank", description="weight each training position by who ranks its true item better, student or teacher"
    )
    student_ranks: Literal["current", "round-start"] = Field(
        "current",
        description="the student's rank in these weights: as it is now, with its dropout if it has any (which makes "
        "ranks worse and weights larger), or at the start of the round",
    )
    logit_adjustment: Literal["auto"] | Annotated[float, Field(ge=-1, le=1)] = Field(
        "auto",
        description="τ of logit adjustment: while the model is taught, τ · log(1 + training count) is added to its "
        "scores, and left out when it serves, which favours rare items; auto: 0.2, or less where the teachers' own "
        "the selection metric would fall by more than 0.5% on validation; 0: none, as in the paper",
    )
    method: AnyMethod = Field(
        default_factory=LLMD4Rec,
        description="the loss by which the model is taught: llmd4rec, with weight, temperature and sample_weights as "
        "set above; or, to compare, that of others: dllm2rec or leader, with settings of their own (docs/paper.md); or "
        "package.module:Name",
    )
    memory: Literal["auto"] | bool = Field(
        False,
        description="the memory teaches the model too, beside the other teachers: content, transitions and "
        "item-kNN, less what the user who is taught added; for a model that is served without it. auto: where "
        "there is a memory, and the model learns from an ensemble by distill.method = llmd4rec",
    )
    beside_memory: bool = Field(
        False,
        description="where the memory teaches: one more model, `beside-memory`, is taught by the same teachers with "
        "the memory's scores added to its own, as where both are served; it learns what the memory does not say, and "
        "is served with it. Not where a moment divides the data, nor where the newest days are learned last: that is "
        "done without a memory",
    )
    exclude_seen: bool = Field(
        False,
        description="while the model is taught, items of the history have no probability, neither its own nor the "
        "teachers'; where they are filtered when it serves",
    )
    teacher_precision: Literal["int8", "float32"] = Field(
        "int8", description="of what a teacher's scores are computed from; int8 is faster, 1e-4 nats from float32"
    )
    warm_start: tuple[Student, ...] = Field(
        ("llm",),
        description="which students go on from their weights of the round before; the others are trained from scratch",
    )
    rollout_length: int = Field(
        0,
        ge=0,
        description="teach on longer histories too: so many items (say 12) are drawn behind each by the model as it is "
        "before the round; helps a language model on a small log; 0: the log alone",
    )
    dropout: float | None = Field(
        0.0,
        ge=0,
        lt=1,
        description="dropout of a student while it is taught, and how often an item's ID embedding is left out then: "
        "teachers keep it from overfitting; adapters of a language model keep theirs (null: as without a teacher)",
    )


class EnsembleSettings(BaseModel):
    """How several teachers are averaged."""

    model_config = ConfigDict(extra="forbid")

    weights: Literal["validation", "equal"] = Field(
        "validation",
        description="of each model's scores in the mean. validation: hill climbing from one for each teacher and 0 for "
        "the others, where a change makes the mean better by more than one standard error; equal: all the same",
    )


class DistillationSettings(BaseModel):
    """All settings of a run: models, teachers, distillation, training, evaluation.

    In Python, what is not named is not trained: `llm` and `teachers` are none by default. The command line adds
    what :mod:`llmd4rec.distillation.efforts` says below what a file says.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    #: Old keys, each with its new name or what to do.
    renamed: ClassVar[Mapping[str, str]] = RENAMED

    seed: int = Field(0, ge=0, description="everything random in the run follows from it")
    rounds: int = Field(2, ge=0, description="at most so many rounds of distillation; 0: no teacher, no language model")
    round_patience: int = Field(1, ge=1, description="stop after so many rounds without a better validation value")
    model: SequentialModel = Field(
        default_factory=SASRec,
        description="the network that is served: sasrec, bsarec, ligr, gru4rec, or package.module:Name",
    )
    teachers: Annotated[tuple[Teacher, ...], BeforeValidator(teachers_of)] = Field(
        (),
        description="models that teach and are never served, `[{name: gru4rec, dim: 256, without: [text]}, ...]`; "
        "default: SASRec (or what `model` is), GRU4Rec and BSARec, four times as wide as `model`; a number: so many "
        "that differ by their seeds alone; null: none, as in the paper",
    )
    llm: LLM | None = Field(None, description="the language model; null: none")
    memory: Annotated[Memory | None, BeforeValidator(_memory)] = Field(
        None,
        description="what stands beside the model without being trained: what reads alike, what follows what, what is "
        "chosen now. auto: all that the data has and validation wants; null: none; or its parts, such as "
        "`{recency: {half_life_days: 7}}`",
    )
    texts: TextSettings = Field(default_factory=TextSettings)
    distill: DistillSettings = Field(default_factory=DistillSettings)
    ensemble: EnsembleSettings = Field(default_factory=EnsembleSettings)
    training: Trainings = Field(default_factory=Trainings)
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings)
    loggers: tuple[AnyLogger, ...] = Field(
        (JSONLines(),),
        description="where the figures of each epoch go: json (which the report reads), csv, tensorboard, mlflow, or "
        "package.module:Name",
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, ...")
    threads: int | None = Field(None, ge=1, description="CPU threads (null: torch's choice)")

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        width = self.item_source.dim  # which is checked in being made, as all teachers are
        for teacher in self.teachers:
            teacher.network(self.model)
        distill, llm = self.distill, self.llm
        if distill.memory is True and self.memory is None:
            raise ValueError(
                "distill.memory has the memory teach, and memory is null; set memory: auto, or distill.memory: false"
            )
        nobody = llm is None and not self.teachers and not self.memory_teaches
        if self.rounds and nobody and distill.source != "self":
            raise ValueError(
                "nothing teaches: set llm, teachers (such as teachers: default), distill.memory with memory: auto, or "
                "rounds: 0 to train the model without a teacher"
            )
        for name in ("memory", "exclude_seen"):
            if getattr(distill, name) is True and ("model" not in distill.students or distill.method != LLMD4Rec()):
                raise ValueError(
                    f"distill.{name} is part of how the model is taught by distill.method = llmd4rec; name the model "
                    f"in distill.students and use that method, or leave distill.{name} out"
                )
        if distill.exclude_seen and (self.training.model.label_smoothing or not self.evaluation.filter_seen):
            raise ValueError(
                "distill.exclude_seen needs evaluation.filter_seen: true, and training.model.label_smoothing: 0"
            )
        if self.rounds and llm is None and distill.source == "partner":
            raise ValueError(
                "distill.source = partner has the language model teach the model, and llm is null; set llm, or "
                "distill.source: ensemble"
            )
        if self.rounds and llm is None and "model" not in distill.students:
            raise ValueError("distill.students names only the language model, and llm is null; name the model too")
        if distill.method != LLMD4Rec() and "model" not in distill.students:
            raise ValueError(
                f"distill.method = {METHODS.name_of(type(distill.method))} is how the model is taught, and "
                "distill.students leaves it out; name it"
            )
        loss, adjustment = self.training.model.loss, distill.logit_adjustment
        if not isinstance(loss, Softmax) and adjustment not in ("auto", 0.0):
            raise ValueError(
                f"distill.logit_adjustment = {adjustment} is added to the scores of the softmax, and "
                f"training.model.loss is {LOSSES.name_of(type(loss))}; set it to auto or 0"
            )
        if self.texts.encoder == "llm" and llm is None:
            raise ValueError("texts.encoder = llm reads the texts with the language model, and llm is null; set either")
        if llm is None:
            return self
        if not llm.pretrained and self.texts.encoder == "llm":
            raise ValueError(
                "texts.encoder = llm would read the texts with the weights that llm.pretrained = false is to do "
                "without; set texts.encoder to a sentence encoder"
            )
        if llm.starts_from_model(width) and llm.width(width) != width:
            raise ValueError("llm.init_table_from_model needs the width of the model; set llm.dim to model")
        return self

    @property
    def memory_teaches(self) -> bool:
        """Whether the memory is among those that teach the model."""
        distill = self.distill
        if distill.memory != "auto":
            return distill.memory
        learns = "model" in distill.students and distill.source == "ensemble" and distill.method == LLMD4Rec()
        return learns and self.memory is not None

    @property
    def item_source(self) -> SequentialModel:
        """The model whose item embeddings the language model reads: the first teacher, or the served model."""
        return self.teachers[0].network(self.model) if self.teachers else self.model


def parse_settings(values: dict[str, Any]) -> DistillationSettings:
    """Checks plain values as settings of a run.

    Raises:
        ConfigError: with every wrong key and value, and the nearest known key.
    """
    return check(DistillationSettings, values, "the settings")
