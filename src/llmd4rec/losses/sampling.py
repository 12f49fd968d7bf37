"""Sampled candidates in place of the whole catalogue, where that is too large for a full softmax."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def draw_candidates(
    target_N: Tensor, num_items: int, draws: int, generator: torch.Generator, among_C: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Candidates for one step: the batch's true items and a uniform sample of all others.

    The log-Q correction lets each sampled item stand for `(I - own) / draws` items, so that the partition function over
    the candidates is an unbiased estimate of the one over the catalogue, given the batch.

    Args:
        target_N: the true items of the step, on the CPU, where all of this is.
        num_items: |I|.
        draws: how many items to sample.
        generator: source of randomness, on the CPU.
        among_C: the items to draw from, on the CPU, with all true ones; None: all.

    Returns:
        candidate_C: item indices, ascending; target_N as rows of it; bias_C: the correction, 0 for true items.
    """
    own = torch.unique(target_N)
    available = num_items if among_C is None else len(among_C)
    drawn = torch.unique(torch.randint(available, (draws,), generator=generator))
    drawn = drawn if among_C is None else among_C[drawn]
    drawn = drawn[~torch.isin(drawn, own, assume_unique=True)]
    candidate_C, order = torch.cat([own, drawn]).sort()
    bias_C = torch.zeros(len(candidate_C))
    if len(drawn):
        bias_C[len(own) :] = math.log((available - len(own)) / len(drawn))
    return candidate_C, torch.searchsorted(candidate_C, target_N), bias_C[order]
