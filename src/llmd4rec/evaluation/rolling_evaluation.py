"""What a rolling evaluation found: figures per window and in total, differences, slices; in memory and on disk."""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from llmd4rec.data.ingest.table import UNREADABLE
from llmd4rec.data.ingest.times import as_text
from llmd4rec.errors import RunError
from llmd4rec.evaluation.evaluation import MetricInfo
from llmd4rec.evaluation.metrics import Floats
from llmd4rec.evaluation.significance import FLIPS, RESAMPLES, bootstrap_means, sign_flip_p
from llmd4rec.evaluation.slices import Heading, rolling_slices, wilson
from llmd4rec.evaluation.windows import Rolling, Window
from llmd4rec.io.files import atomic_dir, read_json, write_json

HEAD, PER_TARGET = "rolling.json", "per_target.parquet"
FORMAT_VERSION = 1
#: What is ranked by training-free scorers, by their weighted sum, by a model, and by a model and the memory together.
Kind = Literal["baseline", "memory", "model", "model and memory"]
Part = Literal["chosen", "shown"]


@dataclass(frozen=True)
class RollingDifference:
    """One metric of two scorers over the same targets.

    Attributes:
        first, second: names of the scorers.
        metric: the metric.
        values: the two means.
        interval: 95% bootstrap interval of second − first; whole users are drawn, with all of their targets.
        p: two-sided, of the sign-flip permutation test, in which a user's targets change sign together.
    """

    first: str
    second: str
    metric: str
    values: tuple[float, float]
    interval: tuple[float, float]
    p: float


@dataclass(frozen=True)
class RollingEvaluation:
    """How well scorers ranked what users chose in windows behind a cut.

    Attributes:
        rolling: what was asked for; its cut is the moment at which the first window begins.
        windows: the windows that were evaluated.
        kinds: scorer → what it is, in the order of the tables.
        weights: scorer → weight of each of its parts, for those that are sums.
        metrics: name → how to show it; the first is the one that weights are chosen by.
        per_target: one row per scorer, window and user: `scorer`, `window`, `user_id`, `item_id` (the user's next item
            in the window), `time`, `history_length`, `gap` (seconds since the user's last event), `item_count` (how
            often the item occurs before the window), `rank`, and a column per metric. Users without history have
            `history_length` 0; they are in no figure but their own.
        notes: what was left out, and why.
    """

    rolling: Rolling
    windows: tuple[Window, ...]
    kinds: dict[str, Kind]
    weights: dict[str, dict[str, float]]
    metrics: dict[str, MetricInfo]
    per_target: pl.DataFrame
    notes: tuple[str, ...] = ()

    # ---- figures ------------------------------------------------------------------------------------------------
    @property
    def main_metric(self) -> str:
        """The metric that scorers are compared by."""
        return next(iter(self.metrics))

    @cached_property
    def _of(self) -> dict[str, pl.DataFrame]:
        """The targets with a history of each scorer."""
        with_history = self.per_target.filter(pl.col("history_length") > 0)
        return {name: with_history.filter(pl.col("scorer") == name) for name in self.kinds}

    def part(self, scorer: str, part: Part) -> pl.DataFrame:
        """The targets of the windows that weights were chosen on, or of those to be shown."""
        first = pl.col("window") < self.rolling.choose_on
        return self._of[scorer].filter(first if part == "chosen" else ~first)

    def figure(self, scorer: str, metric: str, part: Part = "shown") -> float | None:
        """The mean over all targets of these windows; None where there is none."""
        mean = self.part(scorer, part)[metric].drop_nans().mean()
        return None if mean is None else float(mean)  # type: ignore[arg-type]

    def by_window(self, scorer: str, metric: str) -> list[float | None]:
        """The mean of each window; None where it has no target."""
        means = dict(self._of[scorer].group_by("window").agg(pl.col(metric).drop_nans().mean()).iter_rows())
        return [means.get(window.number) for window in self.windows]

    def targets(self) -> list[int]:
        """How many targets each window has."""
        counts = dict(self._of[next(iter(self.kinds))].group_by("window").len().iter_rows())
        return [counts.get(window.number, 0) for window in self.windows]

    @property
    def best_baseline(self) -> str:
        """The best of what needs no training, by the main metric over the windows to be shown."""
        free = [name for name, kind in self.kinds.items() if kind in ("baseline", "memory")]
        return max(free, key=lambda name: self.figure(name, self.main_metric) or 0.0)

    def beats_baselines(self, scorer: str) -> bool | None:
        """Whether a model is better than all that needs no training; None for what is no model."""
        if self.kinds[scorer] not in ("model", "model and memory"):
            return None
        best = self.figure(self.best_baseline, self.main_metric) or 0.0
        return (self.figure(scorer, self.main_metric) or 0.0) > best

    def differences(self, seed: int = 0) -> list[RollingDifference]:
        """Over the windows to be shown: each model against the memory, and both together against each; then each
        model against those before it, alone and beside the memory.
        """
        pairs: list[tuple[str, str]] = []
        models = [name for name, kind in self.kinds.items() if kind == "model"]
        beside = {name: both for both, weights in self.weights.items() for name in models if name in weights}
        for name in models:
            pairs += [("memory", name)] if "memory" in self.kinds else []
            pairs += [("memory", beside[name]), (name, beside[name])] if name in beside else []
        for one, other in itertools.combinations(models, 2):
            pairs.append((one, other))
            pairs += [(beside[one], beside[other])] if one in beside and other in beside else []
        return [self.difference(first, second, seed) for first, second in pairs]

    def difference(self, first: str, second: str, seed: int = 0) -> RollingDifference:
        """Two scorers by the main metric, over the windows to be shown."""
        metric = self.main_metric
        a, b = self.part(first, "shown"), self.part(second, "shown")
        users, user_P = np.unique(a["user_id"].to_numpy(), return_inverse=True)
        known_P = ~(np.isnan(a[metric].to_numpy()) | np.isnan(b[metric].to_numpy()))
        user_P = user_P[known_P]

        def per_user(values_P: Floats) -> Floats:
            return np.bincount(user_P, weights=values_P, minlength=len(users)).astype(np.float64)

        a_P, b_P = a[metric].to_numpy()[known_P], b[metric].to_numpy()[known_P]
        count_U = per_user(np.ones(len(user_P)))
        rng = np.random.default_rng(seed)
        sums, others = bootstrap_means(
            np.stack([per_user(a_P), count_U], 1), np.stack([per_user(b_P), count_U], 1), RESAMPLES, rng
        )
        drawn = (others[:, 0] - sums[:, 0]) / np.maximum(sums[:, 1], 1e-12)
        low, high = np.quantile(drawn, (0.025, 0.975))
        p = sign_flip_p((per_user(b_P) - per_user(a_P))[:, None], FLIPS, rng)
        return RollingDifference(
            first, second, metric, (float(a_P.mean()), float(b_P.mean())), (float(low), float(high)), float(p[0])
        )

    def slices(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Heading → group → `targets`, and per scorer its metrics; HR@10 with a 95% interval, since groups are small.

        Over the windows to be shown; days since training over all windows.
        """
        found: dict[str, dict[str, dict[str, Any]]] = {}
        headings: tuple[tuple[Heading, bool], ...] = (("days", True), ("gap", False), ("items", False))
        for heading, every in headings:
            frames = {name: self._of[name] if every else self.part(name, "shown") for name in self.kinds}
            one = next(iter(frames.values()))
            for label, mask in rolling_slices(one, heading, self.rolling.every, self.rolling.cut or 0).items():
                rows = {name: self._group(frame.filter(pl.Series(mask))) for name, frame in frames.items()}
                found.setdefault(heading, {})[label] = {"targets": int(mask.sum()), "scorers": rows}
        return found

    def without_history(self) -> dict[str, Any]:
        """Targets of users without history, and the figures of what can answer them; over the windows to be shown."""
        rows = self.per_target.filter((pl.col("history_length") == 0) & (pl.col("window") >= self.rolling.choose_on))
        scorers = {name: self._group(rows.filter(pl.col("scorer") == name)) for name in rows["scorer"].unique().sort()}
        return {"targets": rows.height // max(1, len(scorers)), "scorers": scorers}

    def _group(self, frame: pl.DataFrame) -> dict[str, Any]:
        if not frame.height:
            return {}
        values: dict[str, Any] = {
            name: float(frame[name].drop_nans().mean())  # type: ignore[arg-type]
            for name in self.metrics
            if len(frame[name].drop_nans())
        }
        if "hr@10" in values:
            values["hr@10_interval"] = wilson(int(frame["hr@10"].sum()), frame.height)
        return values

    # ---- in and out ---------------------------------------------------------------------------------------------
    def to_json(self) -> dict[str, Any]:
        """All figures as plain values, without the rows of targets."""
        shown = [window.number >= self.rolling.choose_on for window in self.windows]
        targets = self.targets()
        return {
            "cut": as_text(self.rolling.cut),
            "settings": asdict(self.rolling),
            "windows": [
                {
                    "number": window.number,
                    "start": as_text(window.start),
                    "end": as_text(window.end),
                    "targets": count,
                    "shown": is_shown,
                }
                for window, count, is_shown in zip(self.windows, targets, shown, strict=True)
            ],
            "scorers": {
                name: {
                    "kind": kind,
                    "shown": {metric: self.figure(name, metric) for metric in self.metrics},
                    "chosen_on": {metric: self.figure(name, metric, "chosen") for metric in self.metrics},
                    "windows": self.by_window(name, self.main_metric),
                    "weights": self.weights.get(name),
                    "beats_baselines": self.beats_baselines(name),
                }
                for name, kind in self.kinds.items()
            },
            "best_baseline": self.best_baseline,
            "differences": [asdict(each) for each in self.differences()],
            "slices": self.slices(),
            "without_history": self.without_history(),
            "notes": list(self.notes),
        }

    def save(self, folder: Path | str) -> None:
        """Writes `rolling.json` and `per_target.parquet`, all or nothing; replaces what was written before.

        Raises:
            RunError: the folder holds anything else.
        """
        folder = Path(folder)
        foreign = {path.name for path in folder.iterdir()} - {HEAD, PER_TARGET} if folder.is_dir() else set()
        if foreign:
            raise RunError(f"{folder} holds other files ({min(foreign)})", "Choose a folder of its own.")
        info = {name: asdict(each) for name, each in self.metrics.items()}
        with atomic_dir(folder, replace=True) as temporary:
            write_json(temporary / HEAD, {"format": FORMAT_VERSION, **self.to_json(), "metric_info": info})
            self.per_target.write_parquet(temporary / PER_TARGET)

    @classmethod
    def load(cls, folder: Path | str) -> RollingEvaluation:
        """Reads what :meth:`save` wrote.

        Raises:
            RunError: the folder holds no rolling evaluation, a damaged one, or one of another format version.
        """
        folder = Path(folder)
        if not (folder / HEAD).is_file():
            raise RunError(f"{folder} holds no rolling evaluation", "Make one with: llmd4rec evaluate RUN --rolling")
        head = read_json(folder / HEAD)
        if head.get("format") != FORMAT_VERSION:
            raise RunError(
                f"{folder} holds a rolling evaluation of format {head.get('format')!r}; this version of llmd4rec reads "
                f"{FORMAT_VERSION}",
                "Run `llmd4rec evaluate --rolling` again.",
            )
        try:
            rolling = Rolling(**head["settings"])
            assert rolling.cut is not None
            starts = [rolling.cut + each["number"] * rolling.every for each in head["windows"]]
            return cls(
                rolling,
                tuple(Window(n, start, start + rolling.every) for n, start in enumerate(starts)),
                {name: each["kind"] for name, each in head["scorers"].items()},
                {name: each["weights"] for name, each in head["scorers"].items() if each["weights"]},
                {name: MetricInfo(**each) for name, each in head["metric_info"].items()},
                pl.read_parquet(folder / PER_TARGET, glob=False).rechunk(),
                tuple(head["notes"]),
            )
        except (*UNREADABLE, ValueError, TypeError, KeyError, AttributeError, AssertionError) as error:
            raise RunError(f"{folder} is damaged: {error}", "Run `llmd4rec evaluate --rolling` again.") from error
