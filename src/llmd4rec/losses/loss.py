"""What a model is trained towards without a teacher: an open type; by default a softmax over the catalogue."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated

from pydantic import BaseModel, ConfigDict

from llmd4rec.config.open_types import open_type
from llmd4rec.losses.base import LossSettings, Objective
from llmd4rec.losses.objective import RankingObjective


class Loss(BaseModel, ABC):
    """Settings of a loss; derive from it to add one. A distillation method adds its term to whichever is set.

    This one draws one item for each true one and wants it ranked below (BPR, Rendle et al., UAI 2009):

        class BPR(Loss):
            weight: float = Field(1.0, gt=0, description="of the loss")

            def objective(self, training: LossSettings) -> Objective:
                def loss(states_ND, model, batch, seed):
                    generator = torch.Generator().manual_seed(seed)
                    drawn_N = torch.randint(model.num_items, (len(states_ND),), generator=generator)
                    true_ND = model.item_table(batch.target_N)
                    other_ND = model.item_table(drawn_N.to(states_ND.device))
                    above_N = (states_ND * (true_ND - other_ND)).sum(1)
                    mean = self.weight * F.softplus(-above_N).mean()
                    return StepLoss(mean, {"bpr": mean.detach()})

                return loss

    `training: {model: {loss: my_package.losses:BPR}}` then trains the model by it, or `loss=BPR()` in Python.
    """

    model_config = ConfigDict(extra="forbid")

    @abstractmethod
    def objective(self, training: LossSettings) -> Objective:
        """What is computed in each step; a `torch.nn.Module` where it has parameters to be trained.

        Args:
            training: label smoothing, and when and how a large catalogue is drawn from.
        """


class Softmax(Loss):
    """Cross-entropy over the whole catalogue, or over candidates of a large one; see :mod:`llmd4rec.losses.softmax`."""

    def objective(self, training: LossSettings) -> Objective:
        """See :meth:`Loss.objective`."""
        return RankingObjective(training)


#: The losses that are known by name.
LOSSES = open_type("loss", Loss, {"softmax": "llmd4rec.losses.loss:Softmax"}, default="softmax")

#: Settings of any loss.
AnyLoss = Annotated[Loss, LOSSES]
