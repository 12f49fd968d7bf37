"""Time gaps: how long ago the event before was, and how long it is until the next item is chosen.

A gap of s seconds falls into bucket ⌊log2(1 + s)⌋: 0, 1 to 2, 3 to 6 seconds, and so on; longer gaps share the last.
Each bucket has a learned vector, of either gap. The first event of a history has no event before it, which is a bucket
too. HSTU (Zhai et al., ICML 2024) has such buckets in its attention instead.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from llmd4rec.data.batching import SequenceBatch
from llmd4rec.features.event_features import EventFeature


class TimeGaps(EventFeature):
    """Settings of time gaps."""

    reads: ClassVar[tuple[str, ...]] = ("times", "target_times")

    buckets: int = Field(32, ge=2, le=62, description="of gaps, each twice as wide as the one before")

    def build(self, dim: int) -> TimeGapEmbedding:
        """See :class:`~llmd4rec.features.event_features.EventFeature`."""
        return TimeGapEmbedding(self.buckets, dim)


class TimeGapEmbedding(nn.Module):
    """Vectors [B, L, dim] of the two gaps at each event."""

    starts_K: Tensor

    def __init__(self, buckets: int, dim: int) -> None:
        super().__init__()
        self.before, self.until_target = nn.Embedding(buckets + 1, dim), nn.Embedding(buckets, dim)
        for table in (self.before, self.until_target):
            nn.init.normal_(table.weight, std=0.02)
        # Whole numbers, so that PyTorch and ONNX Runtime agree at the edges of buckets.
        self.register_buffer("starts_K", 2 ** torch.arange(1, buckets) - 1, persistent=False)

    def forward(self, batch: SequenceBatch) -> Tensor:
        """Both gaps' vectors, added up."""
        times_BL = batch.times_BL
        place_L = torch.arange(times_BL.shape[1], device=times_BL.device)
        before_BL = self._bucket(times_BL - times_BL.index_select(1, (place_L - 1).clamp(min=0)))
        before_BLD: Tensor = self.before(torch.where(place_L == 0, self.before.num_embeddings - 1, before_BL))
        until_BLD: Tensor = self.until_target(self._bucket(batch.target_times_BL - times_BL))
        return before_BLD + until_BLD

    def _bucket(self, seconds: Tensor) -> Tensor:
        """⌊log2(1 + s)⌋ of each gap, at most the last bucket; a gap below 0 counts as 0."""
        return (seconds[..., None] >= self.starts_K).sum(-1)
