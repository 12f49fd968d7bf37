"""Sample-wise adaptive weights: more where the teacher ranks the true item better (LLMD4Rec, arXiv 2505.18120).

With `r_s` and `r_t` the ranks (1 = best) that student and teacher give the true next item:

    w = clip( 1 + (r_s - r_t) / max(r_t, 1), 0, 2 )    if r_s > r_t     the teacher knows better: up to 2
    w = clip( 1 - (r_t - r_s) / max(r_s, 1), 0, 2 )    otherwise        the student knows better: down to 0

The paper's w1 (training the LLM) has the LLM as student; its w2 (training the sequential model) is the same formula
with the roles exchanged. Equal ranks give 1; the weight leaves (0, 2) as soon as one rank is twice the other.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Bins of the sample weights' histogram in the log, over [0, 2].
WEIGHT_BINS = 20


def rank_weights(student_rank_N: Tensor, teacher_rank_N: Tensor) -> Tensor:
    """The weight of each sample's distillation term, in [0, 2]; float64, shape [N].

    Args:
        student_rank_N: rank of the true item under the model being trained, 1 = best. Integers or floats.
        teacher_rank_N: the same under the model that teaches.

    Source: LLMD4Rec's sample-wise adaptive weights w1, w2.
    """
    student, teacher = student_rank_N.double(), teacher_rank_N.double()
    raised = 1 + (student - teacher) / teacher.clamp(min=1)
    lowered = 1 - (teacher - student) / student.clamp(min=1)
    return torch.where(student > teacher, raised, lowered).clamp(0, 2)


def weight_figures(weight_N: Tensor) -> dict[str, Tensor]:
    """The mean of a step's sample weights, and their histogram of :data:`WEIGHT_BINS` bins over [0, 2]."""
    return {"weight_mean": weight_N.mean(), "weight_counts": torch.histc(weight_N.float(), WEIGHT_BINS, 0, 2)}
