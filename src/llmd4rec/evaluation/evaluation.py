"""The result of evaluating one model, in memory and on disk."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llmd4rec.data.ingest.table import UNREADABLE
from llmd4rec.errors import RunError
from llmd4rec.evaluation.metrics import GlobalMetric, Metric, metric_of
from llmd4rec.evaluation.metrics.named import KNOWN
from llmd4rec.io.files import atomic_dir, read_json, write_json

HEAD, PER_USER, TOP = "evaluation.json", "per_user.parquet", "top.npy"
#: Of a saved evaluation. 1 had `seen` in place of `filter_seen`, and `later_day` in place of `next_day`; 2 had no
#: values of metrics per user.
FORMAT_VERSION = 3


@dataclass(frozen=True)
class MetricInfo:
    """What a table needs to know of a metric.

    Attributes:
        label: what a person reads, such as `NDCG@10`.
        per_user: whether users have values of their own.
        higher_is_better: None where neither is.
        number_format: how a figure is printed.
    """

    label: str
    per_user: bool = True
    higher_is_better: bool | None = True
    number_format: str = ".4f"

    @classmethod
    def of(cls, metric: Metric) -> MetricInfo:
        """Of a metric."""
        per_user = not isinstance(metric, GlobalMetric)
        return cls(metric.label, per_user, metric.higher_is_better, metric.number_format)

    @classmethod
    def named(cls, name: str) -> MetricInfo:
        """Of a name alone: what a built-in metric says, or the name itself."""
        return cls.of(metric_of(name)) if name.partition("@")[0] in KNOWN else cls(name)

    def shown(self, value: float | None) -> str:
        """A figure as printed; `-` where there is none."""
        return "-" if value is None or math.isnan(value) else format(value, self.number_format)


def main_metrics(names: Iterable[str]) -> list[str]:
    """What a table of several models has room for: HR and NDCG at 10 or else at the first cutoff, where they were not
    measured all that was at it, and in any case the metrics that are not built in."""
    at: dict[str, list[str]] = {}
    for name in names:
        at.setdefault(name.partition("@")[2], []).append(name)
    every = [name for some in at.values() for name in some]
    here = at.get("10") or next(iter(at.values()), [])
    chosen = [name for name in here if name.partition("@")[0] in ("hr", "ndcg")] or here
    return chosen + [name for name in every if name.partition("@")[0] not in KNOWN and name not in chosen]


@dataclass(frozen=True)
class Evaluation:
    """How well one model ranked the held-out targets of one split.

    Attributes:
        metrics: name → figure, such as `ndcg@10`.
        slices: name → {"users": how many, and the per-user metrics over them; only `users` where nobody is in
            it}. Users belong to a slice by their history and their first target.
        users: how many users had a target.
        model: which network this is, such as `SASRec 64`.
        stage: the id of the stage that it was trained in, such as `undistilled`.
        filter_seen: whether items of the history were no candidates.
        split: `valid` or `test`.
        per_user: one row per user in the order of the data set: `user_id`, `item_id` (the true next item),
            `rank`, `history_length`, `train_count` (of the true next item), a boolean column per slice, and a column
            per metric that users have values of. Where there are several targets, `item_ids` and `ranks` list them.
        top: the best item indices per row of `per_user`, best first, [U, k]; -1 where no candidate was left.
        targets: what was to be found: `next`, `next:5`, `all`.
        num_targets: how many targets all users have together; None where each has one.
        metric_info: name → how to show the metric.
        other_data: what was evaluated on, and a warning, where that is not what the model was trained on.
    """

    metrics: dict[str, float]
    slices: dict[str, dict[str, Any]]
    users: int
    model: str
    stage: str
    filter_seen: bool
    split: str
    per_user: pl.DataFrame
    top: NDArray[np.int32]
    targets: str = "next"
    num_targets: int | None = None
    metric_info: dict[str, MetricInfo] = field(default_factory=dict)
    other_data: dict[str, str] | None = None

    def info(self, name: str) -> MetricInfo:
        """How to show a metric."""
        return self.metric_info.get(name) or MetricInfo.named(name)

    @property
    def per_user_metrics(self) -> list[str]:
        """The metrics that users have values of, in the order of `metrics`."""
        return [name for name in self.metrics if name in self.per_user.columns]

    @property
    def ranks(self) -> NDArray[np.int64]:
        """The rank of every user's next item, [U]; 1 is best, `ranking.NO_CANDIDATE` a miss at any cutoff."""
        return self.per_user["rank"].to_numpy()

    def to_json(self) -> dict[str, Any]:
        """The figures without the per-user part. These keys are published and stay."""
        return {
            "metrics": self.metrics,
            "slices": self.slices,
            "users": self.users,
            "model": self.model,
            "stage": self.stage,
            "filter_seen": self.filter_seen,
            "split": self.split,
            **({} if self.targets == "next" else {"targets": self.targets, "num_targets": self.num_targets}),
            **({} if self.other_data is None else {"other_data": self.other_data}),
        }

    def save(self, folder: Path | str) -> None:
        """Writes `evaluation.json`, `per_user.parquet` and `top.npy`, all or nothing.

        Replaces an evaluation that is there already.

        Raises:
            RunError: the folder holds anything else.
        """
        folder = Path(folder)
        foreign = {path.name for path in folder.iterdir()} - {HEAD, PER_USER, TOP} if folder.is_dir() else set()
        if foreign:
            raise RunError(f"{folder} holds other files ({min(foreign)})", "Choose a folder of its own.")
        with atomic_dir(folder, replace=True) as temporary:
            info = {name: asdict(each) for name, each in self.metric_info.items()}
            write_json(temporary / HEAD, {"format": FORMAT_VERSION, **self.to_json(), "metric_info": info})
            self.per_user.write_parquet(temporary / PER_USER)
            np.save(temporary / TOP, self.top, allow_pickle=False)

    @classmethod
    def load(cls, folder: Path | str) -> Evaluation:
        """Reads what :meth:`save` wrote.

        Raises:
            RunError: the folder holds no evaluation, a damaged one, or one of another format version.
        """
        folder = Path(folder)
        if not (folder / HEAD).is_file():
            raise RunError(f"{folder} holds no evaluation", "Make one with: llmd4rec evaluate RUN")
        head = read_json(folder / HEAD)
        version = head.pop("format", 1)
        if version != FORMAT_VERSION:
            raise RunError(
                f"{folder} holds an evaluation of format {version!r}; this version of llmd4rec reads {FORMAT_VERSION}",
                "Run `llmd4rec evaluate` again.",
            )
        try:
            per_user = pl.read_parquet(folder / PER_USER, glob=False)
            top = np.load(folder / TOP, allow_pickle=False)
            head["metric_info"] = {name: MetricInfo(**each) for name, each in head["metric_info"].items()}
            evaluation = cls(per_user=per_user, top=top, **head)
            sound = bool((evaluation.ranks >= 1).all())
        except (*UNREADABLE, ValueError, TypeError, KeyError, AttributeError) as error:
            raise RunError(f"{folder} is damaged: {error}", "Run `llmd4rec evaluate` again.") from error
        if not sound or not evaluation.users == per_user.height == len(top):
            raise RunError(f"{folder} is damaged: its files do not agree", "Run `llmd4rec evaluate` again.")
        return evaluation
