"""Scorers: what gives every item of a catalogue a score for a history."""

from llmd4rec.scoring.base import Candidates, Query, Scorer
from llmd4rec.scoring.factors import FactorQuery, FactorScorer
from llmd4rec.scoring.sums import WeightedSum, weighted_sum

__all__ = ["Candidates", "FactorQuery", "FactorScorer", "Query", "Scorer", "WeightedSum", "weighted_sum"]
