"""Metrics by name: `ndcg@10`, `ndcg` (at each cutoff), `my_package.metrics:MeanPrice@10`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import TypeAdapter, ValidationError

from llmd4rec.config.open_types import OpenType
from llmd4rec.errors import ConfigError
from llmd4rec.evaluation.metrics.base import Metric, RankMetric
from llmd4rec.evaluation.metrics.lists import Coverage, Diversity, Gini, Novelty, Popularity
from llmd4rec.evaluation.metrics.ranks import HR, MAP, MRR, NDCG, Precision, Recall

#: The metrics that have a short name.
KNOWN = {
    kind().key: f"{kind.__module__}:{kind.__name__}"
    for kind in (HR, NDCG, MRR, Recall, Precision, MAP, Coverage, Popularity, Novelty, Diversity, Gini)
}
#: What is measured where nothing else is said.
DEFAULT_METRICS = ("hr", "ndcg", "mrr", "coverage@10", "popularity@10")


class _Metrics(OpenType):
    """Adds the short form `ndcg@10` to what other open types accept."""

    def validate(self, value: Any) -> Any:
        if isinstance(value, str) and "@" in value:
            name, _, cutoff = value.partition("@")
            value = {"name": name, "k": int(cutoff) if cutoff.isdecimal() else cutoff}
        if isinstance(value, str):
            value = value.strip()
        return super().validate(value)

    def dump(self, value: Any, mode: Literal["json", "python"] = "json") -> Any:
        found = super().dump(value, mode)
        name, k = found["name"], found.get("k")
        if found.keys() - {"name", "k"}:
            return found
        return name if k is None else f"{name}@{k}"


#: A metric as a setting: `ndcg@10`, `ndcg`, `package.module:Name@10`, a group with `name`, or an instance.
MetricSetting = Annotated[Metric, _Metrics("metric", Metric, KNOWN)]


def metric_of(name: str | Metric) -> Metric:
    """The metric that a name means.

    Args:
        name: `ndcg@10`, or an outside one as `package.module:Name@10`; without `@k` it counts at every cutoff.

    Raises:
        ConfigError: there is no such metric, or k is no whole number from 1.
    """
    try:
        return _ADAPTER.validate_python(name)
    except ValidationError as error:
        problem = error.errors()[0]
        at = "".join(f"{part}: " for part in problem["loc"] if part != "name")
        raise ConfigError(f"metric {name!r}: {at}{problem['msg']}", "Give one as ndcg@10.") from error


_ADAPTER: TypeAdapter[Metric] = TypeAdapter(MetricSetting)


def expand(metrics: Sequence[Metric | str], cutoffs: Sequence[int]) -> tuple[Metric, ...]:
    """What is measured: at each cutoff the metrics that give none, then those that do.

    Raises:
        ConfigError: there is no such metric, two have one name, or a cutoff is below 1.
    """
    if not cutoffs or min(cutoffs) < 1:
        raise ConfigError(f"cutoffs are {list(cutoffs)}", "Give at least one whole number from 1.")
    given = [metric_of(metric) for metric in metrics]
    crossed = [metric for metric in given if metric.k is None and metric.has_cutoff]
    found = [metric.at(k) for k in cutoffs for metric in crossed]
    found += [metric for metric in given if metric not in crossed]
    for metric in found:
        if metric.k is None and not isinstance(metric, RankMetric):
            raise ConfigError(f"metric {metric.name} has no cutoff", f"Give one, as in {metric.name}@10.")
    names = [metric.name for metric in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(
            f"two metrics are called {twice[0]}", "Leave one out, or give it another name by its property `key`."
        )
    return tuple(found)
