"""Six types as somebody else would write them, each of another kind than what the package has. docs/extending.md shows
them; `test_outside.py` takes each from training to serving without a change to any file of the package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import polars as pl
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from llmd4rec import Dataset, Model
from llmd4rec.extend import (
    EventEmbedding,
    EventFeature,
    Floats,
    ItemEmbedding,
    ItemFeature,
    ListMetric,
    Loss,
    LossSettings,
    Method,
    Objective,
    RecommendedLists,
    SequenceBatch,
    SequenceEncoder,
    StepLoss,
    TrainingBatch,
)


# ---- a model without attention or recurrence --------------------------------------------------------------------
class Fading(Model):
    """A history is the mean of its items, of which older ones count less and less."""

    half_life: float = Field(3.0, gt=0, description="after so many items an item counts half")
    dropout: float = Field(0.2, ge=0, lt=1, description="of the embedded items")

    def build(self, num_items: int, seed: int) -> SequenceEncoder:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return FadingNetwork(num_items, self)


class FadingNetwork(SequenceEncoder):
    def __init__(self, num_items: int, settings: Fading) -> None:
        super().__init__()
        self.max_length, self.half_life = settings.max_length, settings.half_life
        self.items = ItemEmbedding(num_items, settings.dim, settings.id_dropout)
        self.events = EventEmbedding(settings.event_features, settings.dim)
        self.reads = self.events.reads
        self.dropout = nn.Dropout(settings.dropout)
        self.out = nn.Linear(settings.dim, settings.dim)

    def states(self, batch: SequenceBatch) -> Tensor:
        x_BLD = self.dropout(self.events(self.items(batch.items_BL), batch))
        place_L = torch.arange(x_BLD.shape[1], device=x_BLD.device)
        age_LL = (place_L[:, None] - place_L).clamp(min=0)
        weight_LL = torch.tril(0.5 ** (age_LL / self.half_life))
        weight_LL = weight_LL / weight_LL.sum(1, keepdim=True)
        mean_BLD: Tensor = weight_LL @ x_BLD
        return mean_BLD + torch.tanh(self.out(mean_BLD))


# ---- a distillation method with a loss of another shape ----------------------------------------------------------
class Relational(Method):
    """Histories that get like scores from the teacher shall have like states in the student (relational distillation,
    Park et al., CVPR 2019); which items these are is left to the loss."""

    weight: float = Field(1.0, ge=0, description="of the difference of cosines")

    def objective(self, training: Any, teacher: Any, term: Any, student: SequenceEncoder, seed: int) -> Objective:
        base = training.loss.objective(training)

        def loss(states_ND: Tensor, model: SequenceEncoder, batch: TrainingBatch, seed: int) -> StepLoss:
            step = base(states_ND, model, batch, seed)
            scores = teacher.batch(batch.position_N[:128]).scores
            teacher_nI = scores.of(slice(0, 128), states_ND.new_empty(len(scores), scores.num_items))
            apart = F.mse_loss(_cosines(states_ND[:128]), _cosines(teacher_nI))
            return StepLoss(step.loss + self.weight * apart, {**step.figures, "relations": apart.detach()})

        return loss


def _cosines(rows_ND: Tensor) -> Tensor:
    unit_ND = F.normalize(rows_ND, dim=1)
    return unit_ND @ unit_ND.T


# ---- a sampled loss with its own gradient ------------------------------------------------------------------------
class SampledHinge(Loss):
    """The true item shall score higher than drawn ones by a margin; few of them violate it, and only these are felt."""

    negatives: int = Field(32, ge=1, description="items drawn in each step, for all its positions")
    margin: float = Field(1.0, gt=0, description="by how much a true item shall score higher")

    def objective(self, training: LossSettings) -> Objective:
        def loss(states_ND: Tensor, model: SequenceEncoder, batch: TrainingBatch, seed: int) -> StepLoss:
            generator = torch.Generator().manual_seed(seed)
            drawn_C = torch.randint(model.num_items, (self.negatives,), generator=generator).to(states_ND.device)
            true_ND, drawn_CD = model.item_table(batch.target_N), model.item_table(drawn_C)
            mean = HingeWalk.apply(states_ND, true_ND, drawn_CD, self.margin)  # type: ignore[no-untyped-call]
            return StepLoss(mean, {"hinge": mean.detach()})

        return loss


class HingeWalk(torch.autograd.Function):
    """mean over positions and drawn items of max(0, margin + score of the drawn one - score of the true one)."""

    @staticmethod
    def forward(ctx: Any, states_ND: Tensor, true_ND: Tensor, drawn_CD: Tensor, margin: float) -> Tensor:
        above_NC = margin + states_ND @ drawn_CD.T - (states_ND * true_ND).sum(1, keepdim=True)
        violated_NC = (above_NC > 0).to(states_ND.dtype) / above_NC.numel()
        ctx.save_for_backward(states_ND, true_ND, drawn_CD, violated_NC)
        return (above_NC * violated_NC).sum()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        states_ND, true_ND, drawn_CD, violated_NC = ctx.saved_tensors
        share_N1 = violated_NC.sum(1, keepdim=True)
        to_states_ND = violated_NC @ drawn_CD - share_N1 * true_ND
        to_true_ND, to_drawn_CD = -share_N1 * states_ND, violated_NC.T @ states_ND
        return upstream[0] * to_states_ND, upstream[0] * to_true_ND, upstream[0] * to_drawn_CD, None


# ---- a metric that reads the catalogue ---------------------------------------------------------------------------
@dataclass(frozen=True)
class NewBrand(ListMetric):
    """The share of recommended items of a brand that the user has not had; users without a known brand have none."""

    column: str = "brand"

    def per_user(self, lists: RecommendedLists) -> Floats:
        brand_I = lists.catalogue[self.column].to_list()
        found = np.full(len(lists.items_UK), np.nan)
        for user, (top, position) in enumerate(zip(lists.top(self.k), lists.positions_U, strict=True)):
            had = {brand_I[item] for item in lists.dataset.history(int(position))} - {None}
            shown = [brand_I[item] for item in top if item >= 0 and brand_I[item] is not None]
            if had and shown:
                found[user] = np.mean([brand not in had for brand in shown])
        return found


# ---- an item feature from a file ---------------------------------------------------------------------------------
class Prices(ItemFeature):
    """The logarithm of each item's price, from a file with the columns item_id and price."""

    kind: ClassVar[Literal["vectors"]] = "vectors"

    path: Path = Field(description="of the CSV file")

    def of(self, dataset: Dataset, text_vectors: Tensor | None) -> Tensor:
        table = pl.read_csv(self.path, schema_overrides={"item_id": pl.String})
        log_price = dataset.catalogue.select("item_id").join(table, on="item_id", how="left")["price"].log1p()
        standard = (log_price - log_price.mean()) / log_price.std()
        known = log_price.is_not_null()
        columns = {"price": standard.fill_null(0), "known": known}
        return pl.DataFrame(columns).cast(pl.Float32).to_torch()


# ---- an event feature --------------------------------------------------------------------------------------------
class HourOfDay(EventFeature):
    """The hour (UTC) in which the next item is chosen."""

    reads: ClassVar[tuple[str, ...]] = ("target_times",)

    def build(self, dim: int) -> nn.Module:
        return HourEmbedding(24, dim)


class HourEmbedding(nn.Embedding):
    def forward(self, batch: SequenceBatch) -> Tensor:  # type: ignore[override]  # of a batch, not of indices
        return super().forward(batch.target_times_BL // 3600 % 24)
