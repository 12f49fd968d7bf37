"""The settings of a run: what learns, from whom, in how many rounds. `MutualDistillation` is the whole config."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from llmd4rec.distillation.methods import LLMD4Rec, Method
from llmd4rec.features.item_features import ItemPart
from llmd4rec.losses.softmax import DistillationTerm
from llmd4rec.models.embedding import ItemSettings
from llmd4rec.models.llm.settings import LLM
from llmd4rec.models.sequential import NetworkName, SASRec, SequentialModel
from llmd4rec.training.settings import Training

if TYPE_CHECKING:
    from llmd4rec.data.dataset import Dataset
    from llmd4rec.runs.run import Run

#: A model that learns: the served CRM, the language model, and the CRM that is wider than the served one.
Student = Literal["crm", "llm", "wide"]


# Defaults that differ between the two models are those of a class each, not arguments of a default factory: a file
# that names one setting of a model must leave its others as they are.
class CRMTraining(Training):
    """How the conventional model is trained."""

    epochs: int = Field(200, ge=0, description="at most so many epochs")
    patience: int = Field(6, ge=1, description="stop after so many epochs without a better validation NDCG@10")
    # What teachers say has no noise that a slow rate would have to average out.
    round_learning_rate: float | None = Field(
        4e-3, gt=0, description="the peak learning rate in a round of distillation (null: as alone)"
    )
    batch: int = Field(2048, ge=1, description="training positions per step, about; fewer on small data")
    ema: float = Field(
        0.999, ge=0, lt=1, description="validate and keep a running average of the weights with this decay per step"
    )
    # A step over a large catalogue costs mostly the update of its table, whatever it reads.
    large_catalogue_batch: int = Field(
        8, ge=1, description="so many times more positions per step where candidates are drawn"
    )


class LLMTraining(Training):
    """How the language model is trained."""

    epochs: int = Field(6, ge=0, description="at most so many epochs")
    round_epochs: int | None = Field(
        3, ge=0, description="at most so many epochs in a round of distillation (null: as many as alone)"
    )
    patience: int = Field(2, ge=1, description="stop after so many epochs without a better validation NDCG@10")
    batch: int = Field(512, ge=1, description="training positions per step, about; fewer on small data")
    schedule: Literal["constant", "cosine"] = Field("cosine", description="what the rate does after the warm-up")
    weight_decay: float = Field(0.1, ge=0, description="AdamW's weight decay")
    epoch_positions: int | None = Field(
        200_000, ge=1, description="train only about so many positions, drawn anew, in each epoch (null: all)"
    )
    clip: float | None = Field(1.0, gt=0, description="largest gradient norm; longer gradients are scaled down")


class Trainings(BaseModel):
    """How each of the two models is trained."""

    model_config = ConfigDict(extra="forbid")

    crm: CRMTraining = Field(default_factory=CRMTraining)
    llm: LLMTraining = Field(default_factory=LLMTraining)


class EvaluationSettings(BaseModel):
    """How models are compared and selected."""

    model_config = ConfigDict(extra="forbid")

    seen: Literal["keep", "remove"] = Field("remove", description="whether items of the history are candidates")
    cutoffs: tuple[PositiveInt, ...] = Field((5, 10, 20), min_length=1, description="the k of HR, NDCG and MRR")
    validation_users: int | None = Field(
        20_000, ge=1, description="select epochs and rounds on so many users, drawn once (null: all)"
    )


class Wide(BaseModel):
    """In what a wider CRM differs from the served one but for its width and chance."""

    model_config = ConfigDict(extra="forbid")

    name: NetworkName | None = Field(
        None, description="its network, with that network's own defaults (null: the served one's, as it is set)"
    )
    without: tuple[ItemPart, ...] = Field(
        (), description="what of the served one's `items` its table is not trained from"
    )

    def of(self, served: SequentialModel, width: int) -> SequentialModel:
        """The settings of the wider CRM beside a served one."""
        if self.name in (None, served.name):
            values = served.model_dump()
        else:
            values = served.model_dump(include={"max_length", *ItemSettings.model_fields}) | {"name": self.name}
        items = "+".join(part for part in served.item_features.split("+") if part not in self.without)
        # Checked anew, because a width may not fit what stands beside it (heads that do not divide it).
        try:
            wider: SequentialModel = TypeAdapter(SequentialModel).validate_python(
                values | {"dim": width, "item_features": items}
            )
        except ValidationError as error:
            why = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise ValueError(f"wide = {width} does not fit its network, {values['name']}: {why}") from error
        return wider


def _so_many_alike(value: Any) -> Any:
    """A number in place of a list says how many, which differ by chance alone."""
    several = [{}] * value if isinstance(value, int) and not isinstance(value, bool) else value
    if several == []:
        raise ValueError("must be one at least; `wide: null` is for none")
    return several


class MutualDistillation(BaseModel):
    """Mutual distillation between a conventional model (CRM) and a language model (LLM): all settings of a run."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    seed: int = Field(0, ge=0, description="everything random in the run follows from it")
    rounds: int = Field(2, ge=0, description="at most so many rounds; 0 trains the CRM alone")
    round_patience: int = Field(1, ge=1, description="stop after so many rounds without a better validation NDCG@10")
    direction: Literal["both", "up", "down"] = Field(
        "both", description="up: only the LLM teaches the CRM; down: only the CRM teaches the LLM"
    )
    teacher: Literal["partner", "consensus", "self"] = Field(
        "consensus",
        description="whose scores a student learns: the other model's (a language model's partners are all the CRMs), "
        "the mean of all models', or (a control) those of models of its own kind",
    )
    consensus: Literal["validation", "equal"] = Field(
        "validation",
        description="how much each model counts in a mean: the wide ones once and any of them more or less, or another "
        "model too, where that makes the mean better on validation by more than one standard error; or all the same",
    )
    weights: Literal["rank", "none"] = Field("rank", description="sample weights by who ranks the true item better")
    ranks: Literal["current", "round-start"] = Field(
        "current",
        description="the student's rank in the weights: as it is now, with its dropout if it has any (which makes "
        "ranks worse and weights larger), or at the start of the round",
    )
    inject: Literal["every-round", "once", "never"] = Field(
        "every-round", description="when the CRM's item table becomes the LLM's item embedding"
    )
    lambda_down: float = Field(8.0, ge=0, description="λ1, weight of the distillation term when the LLM learns")
    lambda_up: float = Field(64.0, ge=0, description="λ2, weight of the distillation term when the CRM learns")
    temperature_down: float = Field(1.0, gt=0, description="T1, softens both distributions when the LLM learns")
    temperature_up: float = Field(1.0, gt=0, description="T2, softens both distributions when the CRM learns")
    scale_by_t2: bool = Field(True, description="multiply the distillation term by T²")
    logit_adjustment: Literal["auto"] | Annotated[float, Field(ge=-1, le=1)] = Field(
        "auto",
        description="how much of the items' popularity the served CRM leaves out: its scores have so many times "
        "log(1 + count) more while it is taught than when it serves, which gives rare items back what a mean of "
        "teachers takes from them; auto: .2, or less where that costs the teachers more than next to nothing on "
        "validation; 0: nothing, as in the paper",
    )
    method: Method = Field(default_factory=LLMD4Rec)
    teacher_precision: Literal["int8", "float32"] = Field(
        "int8", description="of what a teacher's scores are computed from; int8 is faster, 1e-4 nats from float32"
    )
    crm_start: Literal["restart", "continue"] = Field(
        "restart", description="each round trains the CRM from scratch, or goes on from the round before"
    )
    llm_start: Literal["restart", "continue"] = Field("continue", description="the same for the LLM")
    continue_by: int = Field(
        0,
        ge=0,
        description="teach on histories as they might go on too: so many items (say 12) are drawn behind each by the "
        "served CRM as it is before the round; helps a language model on a small log; 0: the log alone",
    )
    wide: Literal["auto"] | PositiveInt | None = Field(
        "auto",
        description="width of further CRMs that are never served (auto: four times the served one's), of their items "
        "and states (a GRU4Rec's recurrent state keeps its own): the language model reads the items of the first, and "
        "they teach the served one with it; null: none, as in the paper",
    )
    wides: Annotated[tuple[Wide, ...], BeforeValidator(_so_many_alike)] = Field(
        (Wide(), Wide(name="gru4rec"), Wide(name="bsarec")),
        description="in what each of them differs from the served one, `{name: gru4rec, without: [text]}`, as models "
        "that err differently are better together; or how many there are that differ by chance alone",
    )
    taught_dropout: float | None = Field(
        0.0,
        ge=0,
        lt=1,
        description="dropout of a model while it is taught, and how often an item's own row is left out then: what "
        "teachers say keeps it from learning by heart; a language model's adapters keep theirs (null: as when it "
        "learns alone)",
    )
    crm: SequentialModel = Field(default_factory=SASRec)
    llm: LLM = Field(default_factory=LLM)
    training: Trainings = Field(default_factory=Trainings)
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings)
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, ...")
    threads: int | None = Field(None, ge=1, description="CPU threads (null: torch's choice)")

    @model_validator(mode="after")
    def _widths_agree(self) -> Self:
        width, _ = self.partner_crm.dim, self.wide_crms  # which are checked in being made
        if self.llm.init_table_from_model is True and "id" not in self.llm.item_features.split("+"):
            raise ValueError(
                "llm.init_table_from_model needs items read by identifier; set llm.item_features to id or id+text"
            )
        if not self.llm.pretrained and self.llm.encoder == "llm":
            raise ValueError(
                "llm.encoder = llm would read the texts with the weights that llm.pretrained = false is to do without; "
                "set llm.encoder to a sentence encoder"
            )
        if self.method.name != "llmd4rec" and self.direction == "down":
            raise ValueError(
                f"method = {self.method.name} is how the served CRM is taught, and direction = down teaches none; set "
                "direction to both or up"
            )
        if self.inject == "never" and self.llm.init_table_from_model is True:
            raise ValueError("llm.init_table_from_model needs an injected table; set inject to once or every-round")
        if self.llm.starts_from_model(width) and self.llm.width(width) != width:
            raise ValueError("llm.init_table_from_model needs the width of the CRM; set llm.dim to crm")
        return self

    @property
    def partner(self) -> Student:
        """The CRM whose items the language model reads and with whom it teaches."""
        return "crm" if self.wide is None else "wide"

    @property
    def partner_crm(self) -> SequentialModel:
        """That CRM's settings: the served one's, or the first wide one's."""
        return self.crm if self.wide is None else self.wide_crms[0]

    @property
    def wide_crms(self) -> tuple[SequentialModel, ...]:
        """The settings of the CRMs that are not served."""
        if self.wide is None:
            return ()
        width = 4 * self.crm.dim if self.wide == "auto" else self.wide
        return tuple(wide.of(self.crm, width) for wide in self.wides)

    @property
    def wide_stages(self) -> tuple[str, ...]:
        """The trainings of the CRMs that are not served, of those that anybody reads or may listen to."""
        if self.wide is None:
            return ()
        # A student listens to them but where the language model is its one partner, or where that hears itself alone.
        deaf = {"crm": "partner", "llm": "self"}
        if any(self.teacher != deaf[student] for student in self.students):
            return self._all_wide_stages
        return self._all_wide_stages[:1] if self.uses_llm and self.inject != "never" else ()

    @property
    def _all_wide_stages(self) -> tuple[str, ...]:
        return ("wide-alone", *(f"wide-alone-{number}" for number in range(2, len(self.wides) + 1)))

    def crm_in(self, stage: str) -> SequentialModel:
        """The settings of the CRM trained in a stage: wide ones differ as `wides` say, a taught one in its dropout."""
        if stage.startswith("wide"):
            return self.wide_crms[self._all_wide_stages.index(stage)]
        return self.crm.model_copy(update=self._taught(stage, "dropout", "id_dropout"))

    def llm_in(self, stage: str) -> LLM:
        """The settings of the language model in a stage: a taught one differs in dropout."""
        changes: dict[str, Any] = self._taught(stage, "dropout", "state_dropout", "branch_dropout")
        if self.inject == "never" and self.llm.init_table_from_model == "auto":  # there is none to start from
            changes["init_table_from_model"] = False
        return self.llm.model_copy(update=changes)

    def _taught(self, stage: str, *rates: str) -> dict[str, float]:
        """What dropout rates become in a stage where a model is taught."""
        return (
            dict.fromkeys(rates, self.taught_dropout) if "-round-" in stage and self.taught_dropout is not None else {}
        )

    @property
    def students(self) -> tuple[Student, ...]:
        """The models that are taught, in the order of a round."""
        return {"both": ("llm", "crm"), "up": ("crm",), "down": ("llm",)}[self.direction]  # type: ignore[return-value]

    @property
    def uses_llm(self) -> bool:
        """Whether the language model learns or teaches at all: not where the CRM only learns from CRMs."""
        return self.rounds > 0 and not (self.teacher == "self" and self.direction == "up")

    def training_of(self, student: Student) -> Training:
        """How the given student is trained."""
        return self.training.llm if student == "llm" else self.training.crm

    def distill(self, student: Student) -> DistillationTerm:
        """How the given student listens to its teachers."""
        down = student == "llm"
        return DistillationTerm(
            weight=self.lambda_down if down else self.lambda_up,
            temperature=self.temperature_down if down else self.temperature_up,
            sample_weights=self.weights,
            scale_by_t2=self.scale_by_t2,
        )

    def fit(self, data: Dataset, folder: Path | str | None = None) -> Run:
        """Trains on `data`; continues an unfinished run found in `folder` (a temporary folder when None).

        Raises:
            RunError: the folder holds a run of other data or settings.
        """
        from llmd4rec.runs.pipeline import train

        return train(self, data, folder)
