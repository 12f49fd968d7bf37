"""Settings of training one model."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from llmd4rec.losses.loss import AnyLoss, Softmax
from llmd4rec.training.runtime import Precision

Schedule = Literal["constant", "cosine", "plateau"]
#: What each of them does.
SCHEDULES = (
    "cosine: it falls to 0 in the last epoch; plateau: it is halved where two epochs make validation less than 1% "
    "better"
)
#: A rate at which a network trains fast and does not diverge, times its width.
WIDTH_RATE = 0.512


class Training(BaseModel):
    """How one model is trained."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    epochs: int = Field(100, ge=0, description="at most so many epochs")
    round_epochs: int | None = Field(
        None, ge=0, description="at most so many epochs in a round of distillation (null: as many as undistilled)"
    )
    patience: int = Field(5, ge=1, description="stop after so many epochs without a better validation value")
    batch: int = Field(256, ge=1, description="training positions per step, about; fewer on small data")
    min_steps: int = Field(
        32, ge=1, description="steps of an epoch at least, where the data allow it; small data get smaller batches"
    )
    learning_rate: float | None = Field(
        1e-3,
        gt=0,
        description=f"peak learning rate of AdamW; null: {WIDTH_RATE / 64:g} up to a width of 64, and less in "
        "proportion above it",
    )
    round_learning_rate: float | None = Field(
        None, gt=0, description="the same in a round of distillation (null: as undistilled)"
    )
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay")
    warmup: int = Field(
        100, ge=0, description="steps over which the learning rate rises from 0; at most a tenth of all steps"
    )
    loss: AnyLoss = Field(
        default_factory=Softmax,
        description="what is minimised without a teacher, and beside the distillation term: softmax (cross-entropy "
        "over the catalogue), or package.module:Name",
    )
    schedule: Schedule = Field("constant", description=f"what the learning rate does afterwards; {SCHEDULES}")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="label smoothing of the cross-entropy")
    clip: float | None = Field(None, gt=0, description="largest gradient norm; longer gradients are scaled down")
    ema: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="decay per step of the exponential moving average of the weights, which is validated "
        "and kept; 0: no average",
    )
    epoch_positions: int | None = Field(
        None, ge=1, description="train only about so many positions per epoch, sampled anew (null: all)"
    )
    full_softmax_items: int = Field(
        200_000, ge=1, description="larger catalogues are trained on sampled candidates with a log-Q correction"
    )
    large_catalogue_batch: int = Field(
        1, ge=1, description="so many times more positions per step where candidates are sampled"
    )
    num_candidates: int = Field(
        16_384, ge=1, description="items sampled per step when the catalogue is larger than that"
    )
    precision: Precision = Field(
        "auto", description="of the forward pass: fp32, bf16, fp16; auto: fp32 on a CPU, bf16 on a GPU that has it"
    )
    checkpoint_seconds: float = Field(
        60, ge=0, description="save at the first step after so many seconds, less often where saving takes long"
    )

    #: Which setting gave :attr:`learning_rate`.
    _learning_rate_name: str = PrivateAttr("learning_rate")

    @property
    def learning_rate_name(self) -> str:
        """Which setting the learning rate is of: its own, or that of distillation rounds."""
        return self._learning_rate_name

    def batch_positions(self, num_items: int, num_positions: int) -> int:
        """How many positions a step trains, about.

        Args:
            num_items: of the catalogue.
            num_positions: there are to train on.
        """
        per_epoch = min(self.epoch_positions or num_positions, num_positions)
        # A small log would see too few steps before patience runs out, and a noisier step does it no harm.
        sampled = num_items > self.full_softmax_items
        wanted = self.batch * (self.large_catalogue_batch if sampled else 1)
        return min(wanted, max(1, per_epoch // self.min_steps))

    def peak_rate(self, width: int) -> float:
        """The peak learning rate of a network of that width."""
        return WIDTH_RATE / max(64, width) if self.learning_rate is None else self.learning_rate

    def in_round(self) -> Self:
        """The same for a model that is trained with teachers, in a round of distillation."""
        epochs, rate = self.round_epochs, self.round_learning_rate
        changes = {
            "epochs": self.epochs if epochs is None else min(self.epochs, epochs),
            "learning_rate": self.learning_rate if rate is None else rate,
        }
        changed = self.model_copy(update=changes)
        if rate is not None:
            changed._learning_rate_name = "round_learning_rate"
        return changed
