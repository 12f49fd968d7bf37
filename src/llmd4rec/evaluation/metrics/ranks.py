"""Metrics of the targets' ranks: HR, NDCG, MRR, recall, precision, MAP.

With one target per user, as in leave-one-out, HR and recall are the same, MRR and MAP too, and the ideal DCG is 1.

What is defined: k may be larger than the catalogue, and then counts all of it; a target that is no candidate has a rank
beyond every k, and still counts among the targets of its user.
"""

from __future__ import annotations

import numpy as np

from llmd4rec.evaluation.metrics.base import Floats, RankMetric, TargetRanks


class HR(RankMetric):
    """Hit rate: 1 if any target is among the first k items, else 0.

    Source: Deshpande & Karypis, "Item-based top-N recommendation algorithms", TOIS 2004.
    """

    def per_user(self, ranks: TargetRanks) -> Floats:
        """Hits, 0 or 1."""
        return (ranks.best_U <= self.places).astype(np.float64)


class NDCG(RankMetric):
    """Normalised discounted cumulative gain: Σ 1 / log2(1 + rank) over the targets within k, divided by its
    largest possible value, Σ 1 / log2(1 + i) for i = 1 ... min(k, targets).

    Source: Järvelin & Kekäläinen, "Cumulated gain-based evaluation of IR techniques", TOIS 2002, with the discount
    log2(1 + rank).
    """

    def per_user(self, ranks: TargetRanks) -> Floats:
        """Between 0 and 1."""
        gains = np.where(ranks.ranks_P <= self.places, 1.0 / np.log2(1.0 + ranks.ranks_P), 0.0)
        most = np.minimum(ranks.num_targets_U, self.places)
        ideal = np.cumsum(1.0 / np.log2(1.0 + np.arange(1, most.max(initial=0) + 1)))
        values: Floats = ranks.total(gains) / ideal[most - 1]
        return values


class MRR(RankMetric):
    """Mean reciprocal rank: 1 / rank of the best target if that is within k, else 0.

    Source: Voorhees, "The TREC-8 question answering track report", 1999.
    """

    def per_user(self, ranks: TargetRanks) -> Floats:
        """Between 0 and 1."""
        return np.where(ranks.best_U <= self.places, 1.0 / ranks.best_U, 0.0)


class Recall(RankMetric):
    """The share of the targets that are among the first k items. Below 1 where there are more than k targets.

    Source: Manning, Raghavan & Schütze, "Introduction to information retrieval", 2008, section 8.3.
    """

    def per_user(self, ranks: TargetRanks) -> Floats:
        """Between 0 and 1."""
        return ranks.total((ranks.ranks_P <= self.places).astype(np.float64)) / ranks.num_targets_U


class Precision(RankMetric):
    """The share of the first k places that hold targets; always divided by k, also where fewer items were candidates.

    Source: Manning, Raghavan & Schütze, "Introduction to information retrieval", 2008, section 8.3.
    """

    def per_user(self, ranks: TargetRanks) -> Floats:
        """Between 0 and 1."""
        return ranks.total((ranks.ranks_P <= self.places).astype(np.float64)) / self.places


class MAP(RankMetric):
    """Mean average precision: Σ (targets up to here / rank) over the targets within k, divided by the number of
    targets.

    That is `map_cut_k` of trec_eval. Others divide by min(k, targets), which gives more where there are more than k.

    Source: Buckley & Voorhees, "Evaluating evaluation measure stability", SIGIR 2000.
    """

    def per_user(self, ranks: TargetRanks) -> Floats:
        """Between 0 and 1."""
        precision = np.where(ranks.ranks_P <= self.places, ranks.place_P / ranks.ranks_P, 0.0)
        return ranks.total(precision) / ranks.num_targets_U
