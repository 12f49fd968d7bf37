"""A model, a loss and a distillation method as somebody else would add them, without a change to the package."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from llmd4rec import Model
from llmd4rec.data.batching import SequenceBatch, TrainingBatch
from llmd4rec.distillation.cache import TeacherCache
from llmd4rec.distillation.methods import Method
from llmd4rec.losses.base import LossSettings, Objective, StepLoss
from llmd4rec.losses.loss import Loss
from llmd4rec.losses.scores import score_blocks
from llmd4rec.losses.softmax import DistillationTerm
from llmd4rec.models.base import SequenceEncoder
from llmd4rec.models.embedding import ItemEmbedding
from llmd4rec.training.settings import Training


class Decayed(Model):
    """A sum of the items seen, each weighted by a learned power of its distance; no attention, no recurrence."""

    decay: float = Field(0.5, gt=0, lt=1, description="of an item's weight per step, at the start")

    def build(self, num_items: int, seed: int) -> SequenceEncoder:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return DecayedNetwork(num_items, self)


class DecayedNetwork(SequenceEncoder):
    def __init__(self, num_items: int, settings: Decayed) -> None:
        super().__init__()
        self.max_length = settings.max_length
        self.items = ItemEmbedding(num_items, settings.dim, settings.id_dropout)
        self.log_decay = nn.Parameter(torch.tensor(settings.decay).log())
        self.out = nn.Linear(settings.dim, settings.dim)

    @property
    def num_items(self) -> int:
        return self.items.num_items

    @property
    def dim(self) -> int:
        return self.items.dim

    def states(self, batch: SequenceBatch) -> Tensor:
        x_BLD: Tensor = self.items(batch.items_BL)
        place_L = torch.arange(x_BLD.shape[1], device=x_BLD.device)
        lag_LL = (place_L[:, None] - place_L[None, :]).clamp(min=0)
        weight_LL = torch.exp(lag_LL * self.log_decay).tril()
        states_BLD: Tensor = self.out(weight_LL @ x_BLD)
        return states_BLD

    def item_table(self, items: Tensor | None = None) -> Tensor:
        return self.items.table(items)


class Counted(Model):
    """Bare tables without an `ItemEmbedding`: the state is that of the last item."""

    def build(self, num_items: int, seed: int) -> SequenceEncoder:
        return CountedNetwork(num_items, self, seed)


class CountedNetwork(SequenceEncoder):
    def __init__(self, num_items: int, settings: Counted, seed: int) -> None:
        super().__init__()
        self.max_length = settings.max_length
        generator = torch.Generator().manual_seed(seed)
        self.read = nn.Parameter(torch.randn(num_items, settings.dim, generator=generator) / 10)
        self.written = nn.Parameter(torch.randn(num_items, settings.dim, generator=generator) / 10)

    @property
    def num_items(self) -> int:
        return len(self.read)

    @property
    def dim(self) -> int:
        return self.read.shape[1]

    def states(self, batch: SequenceBatch) -> Tensor:
        return F.embedding(batch.items_BL, self.read)

    def item_table(self, items: Tensor | None = None) -> Tensor:
        return self.written if items is None else F.embedding(items, self.written)


class BPR(Loss):
    """-log σ(true - drawn), with drawn items and a gradient of its own."""

    draws: int = Field(4, ge=1, description="items drawn for each true one")

    def objective(self, training: LossSettings) -> Objective:
        return self.loss

    def loss(self, states_ND: Tensor, ranker: SequenceEncoder, batch: TrainingBatch, seed: int) -> StepLoss:
        drawn_NC = torch.randint(
            ranker.num_items, (len(states_ND), self.draws), generator=torch.Generator().manual_seed(seed)
        )
        table_ID = ranker.item_table()
        drawn_NCD = table_ID[drawn_NC.to(states_ND.device)]
        value: Tensor = Pairwise.apply(states_ND, table_ID[batch.target_N], drawn_NCD)  # type: ignore[no-untyped-call]
        return StepLoss(value, {"bpr": value.detach()})


class Pairwise(torch.autograd.Function):
    """The mean of softplus(drawn - true) and its gradient, by hand."""

    @staticmethod
    def forward(ctx: Any, state_ND: Tensor, true_ND: Tensor, drawn_NCD: Tensor) -> Tensor:
        difference_NCD = drawn_NCD - true_ND[:, None]
        score_NC = torch.einsum("nd,ncd->nc", state_ND, difference_NCD)
        ctx.save_for_backward(state_ND, difference_NCD, torch.sigmoid(score_NC) / score_NC.numel())
        return F.softplus(score_NC).mean()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        state_ND, difference_NCD, slope_NC = ctx.saved_tensors
        slope_NC = slope_NC * gradients[0]
        drawn_NCD = slope_NC[:, :, None] * state_ND[:, None]
        return torch.einsum("nc,ncd->nd", slope_NC, difference_NCD), -drawn_NCD.sum(1), drawn_NCD


class Margin(Method):
    """A hinge: the teacher's best item stands at least a margin above the student's mean score."""

    weight: float = Field(0.5, ge=0, description="of the hinge")
    margin: float = Field(1.0, ge=0, description="in nats")

    def objective(
        self, training: Training, teacher: TeacherCache, term: DistillationTerm, student: SequenceEncoder, seed: int
    ) -> Objective:
        base = training.loss.objective(training)

        def loss(states_ND: Tensor, ranker: SequenceEncoder, batch: TrainingBatch, seed: int) -> StepLoss:
            blocks = score_blocks(teacher.batch(batch.position_N).scores)
            best_N = torch.cat([block_nI.argmax(1) for block_nI in blocks])
            table_ID = ranker.item_table()
            above_N = (states_ND * (table_ID[best_N] - table_ID.mean(0))).sum(1)
            hinge = (self.margin - above_N).clamp(min=0).mean()
            step = base(states_ND, ranker, batch, seed)
            return StepLoss(step.loss + self.weight * hinge, {**step.figures, "hinge": hinge.detach()})

        return loss
