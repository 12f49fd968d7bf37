"""The objective of one training: softmax over the catalogue, with or without a teacher."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llmd4rec.data.batching import TrainingBatch, to_device
from llmd4rec.losses.base import BatchTeacher, LossSettings, Objective, StepLoss
from llmd4rec.losses.sampling import draw_candidates
from llmd4rec.losses.scores import BLOCK_ELEMENTS, SparseScores
from llmd4rec.losses.softmax import GPU_BLOCK_ELEMENTS, DistillationTerm, ranking_loss
from llmd4rec.models.base import SequenceEncoder


@dataclass(frozen=True)
class RankingObjective:
    """Cross-entropy over the catalogue and, with a teacher, the distillation term.

    Attributes:
        settings: label smoothing, and when and how many candidates are sampled.
        teacher: gives the teacher's states and ranks; None for plain training.
        distill: the distillation term; required with a teacher.
        cross_entropy: False for the distillation term alone, beside another loss.
    """

    settings: LossSettings
    teacher: BatchTeacher | None = None
    distill: DistillationTerm | None = None
    cross_entropy: bool = True

    def __call__(self, states_ND: Tensor, ranker: SequenceEncoder, batch: TrainingBatch, seed: int) -> StepLoss:
        """See :class:`~llmd4rec.losses.base.Objective`."""
        target_N, bias_C, candidate_C = batch.target_N, None, batch.candidate_C
        if ranker.num_items > self.settings.full_softmax_items:
            generator = torch.Generator().manual_seed(seed)
            drawn = draw_candidates(
                batch.target_on_cpu_N, ranker.num_items, self.settings.num_candidates, generator, batch.candidate_C
            )
            candidate_C, target_N, bias_C = (to_device(each, target_N.device) for each in drawn)
            table_ID = ranker.item_table(candidate_C)
        elif candidate_C is not None:
            candidate_C = to_device(candidate_C, target_N.device)
            target_N = torch.searchsorted(candidate_C, target_N)
            # The whole table, which the network's input has made for this step already, and the rows of it.
            table_ID = ranker.item_table()[candidate_C]
        else:
            table_ID = ranker.item_table()
        teacher = self.teacher.batch(batch.position_N, candidate_C) if self.teacher is not None else None
        if self.distill is not None and self.distill.logit_adjustment_I is not None:
            adjustment_I = self.distill.logit_adjustment_I
            states_ND, table_ID = _with_adjustment(
                states_ND, table_ID, adjustment_I if candidate_C is None else adjustment_I[candidate_C]
            )
        excluded = None
        if self.distill is not None and self.distill.exclude_seen:
            excluded = seen_items(batch) if candidate_C is None else seen_items(batch).among(candidate_C)
        added = None
        if self.distill is not None and self.distill.beside_memory and teacher is not None:
            added = teacher.memory
        return ranking_loss(
            states_ND,
            table_ID,
            target_N,
            teacher,
            self.distill,
            bias_I=bias_C,
            label_smoothing=self.settings.label_smoothing,
            # With a teacher there are three such blocks. A matrix product with only a few rows is bound by memory; a
            # large catalogue's blocks may be larger.
            block_elements=max(
                (BLOCK_ELEMENTS if states_ND.device.type == "cpu" else GPU_BLOCK_ELEMENTS)
                // (1 if teacher is None else 2),
                32 * len(table_ID),
            ),
            cross_entropy=self.cross_entropy,
            excluded=excluded,
            added=added,
        )


class SumOfLosses(nn.Module):
    """Two objectives added up, with the figures of both; trains the parameters that either has."""

    def __init__(self, first: Objective, second: Objective) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, states_ND: Tensor, ranker: SequenceEncoder, batch: TrainingBatch, seed: int) -> StepLoss:
        """See :class:`~llmd4rec.losses.base.Objective`."""
        first = self.first(states_ND, ranker, batch, seed)
        second = self.second(states_ND, ranker, batch, seed)
        return StepLoss(first.loss + second.loss, {**first.figures, **second.figures})


def _with_adjustment(states_ND: Tensor, table_ID: Tensor, adjustment_I: Tensor) -> tuple[Tensor, Tensor]:
    """States [N, D + 1] and table [I, D + 1] whose products are the scores plus the logit adjustment."""
    return (
        torch.cat([states_ND, states_ND.new_ones(len(states_ND), 1)], 1),
        torch.cat([table_ID, adjustment_I.to(table_ID)[:, None]], 1),
    )


def seen_items(batch: TrainingBatch) -> SparseScores:
    """Excludes the items of each trained position's history, as far as the batch shows it; not the true next item."""
    length = batch.items_BL.shape[1]
    window_N, column_N = batch.trained_N // length, batch.trained_N % length
    items_NL = batch.items_BL[window_N]
    before_NL = torch.arange(length, device=column_N.device) <= column_N[:, None]
    return SparseScores.excluding(items_NL, before_NL & (items_NL != batch.target_N[:, None]))
