"""Metrics by name: `ndcg@10`, `ndcg` (at each cutoff), `my_package.metrics:MeanPrice@10`."""

from __future__ import annotations

import difflib
import importlib

from llmd4rec.errors import ConfigError
from llmd4rec.evaluation.metrics.base import Metric
from llmd4rec.evaluation.metrics.lists import Coverage, Popularity
from llmd4rec.evaluation.metrics.ranks import HR, MAP, MRR, NDCG, Precision, Recall

#: The metrics that have a short name.
KNOWN: dict[str, type[Metric]] = {
    kind().key: kind for kind in (HR, NDCG, MRR, Recall, Precision, MAP, Coverage, Popularity)
}


def metric_of(name: str) -> Metric:
    """The metric that a name means.

    Args:
        name: `ndcg@10`, or an outside one as `package.module:Class@10`; without `@k` it counts at every cutoff.

    Raises:
        ConfigError: there is no such metric, or k is no whole number from 1.
    """
    key, _, cutoff = name.strip().partition("@")
    if cutoff and not cutoff.isdecimal():
        raise ConfigError(f"the cutoff of metric {name!r} is {cutoff!r}", "Give a whole number from 1, as in ndcg@10.")
    kind = _outside(key) if ":" in key else KNOWN.get(key.lower())
    if kind is None:
        near = difflib.get_close_matches(key.lower(), KNOWN, 1)
        meant = f"Did you mean {near[0]}? " if near else ""
        raise ConfigError(
            f"there is no metric {key!r}", f"{meant}Known: {', '.join(KNOWN)}; or give one as package.module:Class."
        )
    return kind(int(cutoff)) if cutoff else kind()


def _outside(path: str) -> type[Metric]:
    module, _, attribute = path.partition(":")
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"metric {path!r} cannot be imported: {error}", "Check the path.") from error
    if not (isinstance(kind, type) and issubclass(kind, Metric)):
        raise ConfigError(f"{path!r} is no metric", "Derive it from RankMetric, ListMetric or GlobalMetric.")
    return kind
