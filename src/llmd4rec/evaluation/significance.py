"""Is one result really better than another? Paired comparison of two evaluations over the same users.

Per user and metric the difference is `second − first`. Two questions are answered without assuming any distribution:

- how large is the gain: its mean and a 95% percentile bootstrap interval (Efron & Tibshirani 1993), for the absolute
  and for the relative difference;
- could it be chance: the two-sided sign-flip permutation test (Fisher's randomisation test, recommended for retrieval
  by Smucker, Allan & Carterette, CIKM 2007), p = (1 + flips at least as extreme) / (1 + flips).

Most users' metrics are 0 under both models. A user who is 0 twice moves neither a resampled mean nor a flipped sum, so
only the others are drawn, which gives the same distribution for a fraction of the work.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from llmd4rec.errors import RunError
from llmd4rec.evaluation.evaluation import Evaluation, MetricInfo
from llmd4rec.evaluation.slices import SLICE_NAMES, buckets

Floats = NDArray[np.float64]

RESAMPLES = 2_000
FLIPS = 9_999
#: A difference whose p is not below this is called chance.
LEVEL = 0.05
#: Behind the names of the second evaluation's columns in a joined table.
SECOND = "_second"
_BEST = "best_rank"
#: Random numbers held at once.
BLOCK_ELEMENTS = 2**21


@dataclass(frozen=True)
class Difference:
    """One metric over one group of users under two models.

    Attributes:
        first: mean under the first model.
        second: mean under the second.
        difference: second − first.
        interval: 95% bootstrap interval of the difference.
        relative: the relative gain in percent, 100 · difference / first; None if `first` is 0.
        relative_interval: its 95% bootstrap interval; None where `first` is 0 in a resample.
        p: two-sided p value of the sign-flip permutation test.
        better: how many users have a better value under the second model: a larger one, unless lower is better.
        worse: how many have a worse one.
    """

    first: float
    second: float
    difference: float
    interval: tuple[float, float]
    relative: float | None
    relative_interval: tuple[float, float] | None
    p: float
    better: int
    worse: int


@dataclass(frozen=True)
class Overlap:
    """How many users' true items (of several: any) are within the first 10 of both models, of one only, of none."""

    both: int
    only_first: int
    only_second: int
    neither: int


@dataclass(frozen=True)
class GroupComparison:
    """All metrics over one group of users."""

    users: int
    metrics: dict[str, Difference]


@dataclass(frozen=True)
class Comparison:
    """Two evaluations over the same users; see :func:`compare`.

    Attributes:
        first: what the first is called, such as `model undistilled`.
        second: what the second is called.
        filter_seen: whether items of the history were no candidates.
        split: `valid` or `test`.
        targets: what was to be found: `next`, `next:5`, `all`.
        metric_info: name → how to show the metric.
        overall: all users.
        slices: the slices of the evaluations that hold at least one user.
        history_length: buckets of about equal size by length of history, shortest first.
        popularity: buckets of about equal size by training count of the true item, rarest first.
        overlap: whose hits at 10 they are.
    """

    first: str
    second: str
    filter_seen: bool
    split: str
    targets: str
    metric_info: dict[str, MetricInfo]
    overall: GroupComparison
    slices: dict[str, GroupComparison]
    history_length: dict[str, GroupComparison]
    popularity: dict[str, GroupComparison]
    overlap: Overlap

    def to_json(self) -> dict[str, Any]:
        """All of it as nested dictionaries of plain values."""
        return asdict(self)

    @property
    def main_metric(self) -> str:
        """The metric that models are selected by, or else the first there is."""
        return "ndcg@10" if "ndcg@10" in self.overall.metrics else next(iter(self.overall.metrics))

    @property
    def verdict(self) -> str:
        """One sentence: how far the main metric moves, and whether that may be chance."""
        found, info = self.overall.metrics[self.main_metric], self.metric_info[self.main_metric]
        name, show = info.label, info.shown
        users = f"{self.overall.users:,} users"
        if found.second == found.first:
            return f"{name} stays at {show(found.first)} ({users})."
        gain = "" if found.relative is None else f" by {abs(found.relative):.1f}%"
        chance = "beyond chance" if found.p < LEVEL else "which may be chance"
        return (
            f"{name} {'rises' if found.second > found.first else 'falls'}{gain} from {show(found.first)} to "
            f"{show(found.second)}, {chance} ({users}, p = {found.p:.4f})."
        )

    def table(self) -> Table:
        """For a terminal: every metric over all users, then NDCG@10 (or the first metric) over each slice."""
        seen = f"seen items {'filtered' if self.filter_seen else 'kept'}"
        asked = "" if self.targets == "next" else f", targets {self.targets}"
        table = Table(title=f"{self.second} compared with {self.first} ({self.split}{asked}, {seen})")
        for name in ("", "users", "first", "second", "gain", "95% interval", "p", "better / worse"):
            table.add_column(name, justify="left" if not name else "right")
        for name, difference in self.overall.metrics.items():
            table.add_row(Text(name), f"{self.overall.users:,}", *_cells(difference, self.metric_info[name]))
        table.add_section()
        shown = self.main_metric
        table.add_row(f"{shown} of users with")
        for name, group in self.slices.items():
            cells = _cells(group.metrics[shown], self.metric_info[shown]) if shown in group.metrics else ()
            table.add_row(Text(SLICE_NAMES.get(name, name)), f"{group.users:,}", *cells)
        o = self.overlap
        table.caption = (
            f"hits at 10: both {o.both:,}, only first {o.only_first:,}, only second {o.only_second:,}, "
            f"neither {o.neither:,}\n{self.verdict}"
        )
        return table


def compare(
    first: Evaluation | Path | str,
    second: Evaluation | Path | str,
    *,
    names: tuple[str, str] | None = None,
    resamples: int = RESAMPLES,
    flips: int = FLIPS,
    seed: int = 0,
) -> Comparison:
    """Compares two evaluations user by user; differences are `second − first`.

    Args:
        first: the baseline: an evaluation or the folder of a saved one.
        second: what should be better.
        names: what to call them; default: stage and model, such as `undistilled (SASRec 64)`.
        resamples: of the bootstrap.
        flips: random sign flips of the permutation test; the smallest possible p is 1 / (flips + 1).
        seed: of both.

    Raises:
        RunError: a folder holds no evaluation, or the two do not have the same split, the same treatment of seen
            items, the same users and the same true items.
    """
    a = first if isinstance(first, Evaluation) else Evaluation.load(first)
    b = second if isinstance(second, Evaluation) else Evaluation.load(second)
    table = join_users(a, b)
    names_of_both = [name for name in a.per_user_metrics if name in b.per_user_metrics]
    if not names_of_both:
        raise RunError("the evaluations have no metric in common", "Evaluate both with the same metrics and cutoffs.")
    first_name, second_name = names or (f"{a.stage} ({a.model})", f"{b.stage} ({b.model})")
    rng = np.random.default_rng(seed)
    info = {name: a.info(name) for name in names_of_both}
    a_UM = table.select(names_of_both).to_numpy()
    b_UM = table.select(pl.col(f"{name}{SECOND}") for name in names_of_both).to_numpy()

    def group(mask: NDArray[np.bool_]) -> GroupComparison:
        return compare_values(
            names_of_both,
            a_UM[mask],
            b_UM[mask],
            resamples=resamples,
            flips=flips,
            rng=rng,
            lower_is_better=[name for name, each in info.items() if each.higher_is_better is False],
        )

    masks = {name: table[name].to_numpy() for name in SLICE_NAMES if name in table.columns}
    hit_a, hit_b = (table[f"{_BEST}{side}"].to_numpy() <= 10 for side in ("", SECOND))
    return Comparison(
        first=first_name,
        second=second_name,
        filter_seen=a.filter_seen,
        split=a.split,
        targets=a.targets,
        metric_info=info,
        overall=group(np.ones(table.height, dtype=np.bool_)),
        slices={name: group(mask) for name, mask in masks.items() if mask.any()},
        history_length={bucket.label: group(bucket.mask) for bucket in buckets(table, "history_length")},
        popularity={bucket.label: group(bucket.mask) for bucket in buckets(table, "train_count")},
        overlap=Overlap(
            both=int((hit_a & hit_b).sum()),
            only_first=int((hit_a & ~hit_b).sum()),
            only_second=int((~hit_a & hit_b).sum()),
            neither=int((~hit_a & ~hit_b).sum()),
        ),
    )


def join_users(a: Evaluation, b: Evaluation) -> pl.DataFrame:
    """The per-user table of `a` with `b`'s ranks as column `rank_second`, and `b`'s metrics under their names with
    `_second`; `best_rank` is that of the best target of several.

    Raises:
        RunError: the evaluations are not about the same question; the message names the first mismatch.
    """
    for name in ("split", "filter_seen", "targets"):
        if getattr(a, name) != getattr(b, name):
            raise RunError(
                f"the evaluations cannot be compared: {name} is {getattr(a, name)!r} and {getattr(b, name)!r}",
                "Evaluate both with the same settings.",
            )
    wanted = "item_ids" if "item_ids" in a.per_user.columns and "item_ids" in b.per_user.columns else "item_id"
    second = b.per_user.with_columns(_best(b)).select(
        "user_id",
        pl.col(wanted).alias("other_item"),
        pl.col("rank", _BEST, *b.per_user_metrics).name.suffix(SECOND),
    )
    only_a = a.per_user.join(second, on="user_id", how="anti")
    only_b = second.join(a.per_user, on="user_id", how="anti")
    for frame, where, there in ((only_a, "first", "second"), (only_b, "second", "first")):
        if frame.height:
            raise RunError(
                f"{frame.height} users of the {where} evaluation are not in the {there}: {frame['user_id'][0]!r}, ...",
                "Evaluate both on the same data set and the same sample of users.",
            )
    first = a.per_user.with_columns(_best(a))
    table = first.join(second, on="user_id", how="left", maintain_order="left")
    wrong = table.filter(pl.col(wanted) != pl.col("other_item"))
    if wrong.height:
        user, one, two = wrong.select("user_id", wanted, "other_item").row(0)
        raise RunError(
            f"{wrong.height} users have different true items, such as user {user!r}: {one!r} and {two!r}",
            "Evaluate both on the same data set and split.",
        )
    return table.drop("other_item")


def _best(evaluation: Evaluation) -> pl.Expr:
    several = "ranks" in evaluation.per_user.columns
    return (pl.col("ranks").list.min() if several else pl.col("rank")).alias(_BEST)


def compare_values(
    names: Sequence[str],
    a_UM: Floats,
    b_UM: Floats,
    *,
    resamples: int = RESAMPLES,
    flips: int = FLIPS,
    rng: np.random.Generator,
    lower_is_better: Collection[str] = (),
) -> GroupComparison:
    """Every metric over one group of users.

    Args:
        names: of the metrics.
        a_UM: values under the first model, one row per user, one column per metric; NaN: the user has none, and is
            left out of this metric under both models.
        b_UM: the same users and metrics under the second.
        resamples: of the bootstrap.
        flips: of the permutation test.
        rng: where random numbers come from.
        lower_is_better: the metrics of which a smaller value is better.
    """
    known_UM = ~(np.isnan(a_UM) | np.isnan(b_UM))
    everywhere = known_UM.all(axis=0)
    found: dict[str, Difference] = {}
    # With M metrics side by side, all of them see the same draws.
    whole = np.flatnonzero(everywhere).tolist()
    if whole:
        found |= _differences([names[m] for m in whole], a_UM[:, whole], b_UM[:, whole], resamples, flips, rng)
    for m in np.flatnonzero(~everywhere & known_UM.any(axis=0)).tolist():
        rows = known_UM[:, m]
        found |= _differences([names[m]], a_UM[rows, m, None], b_UM[rows, m, None], resamples, flips, rng)
    for name in found.keys() & set(lower_is_better):
        found[name] = replace(found[name], better=found[name].worse, worse=found[name].better)
    return GroupComparison(len(a_UM), {name: found[name] for name in names if name in found})


def _differences(
    names: Sequence[str], a_UM: Floats, b_UM: Floats, resamples: int, flips: int, rng: np.random.Generator
) -> dict[str, Difference]:
    mean_a, mean_b = a_UM.mean(axis=0), b_UM.mean(axis=0)
    boot_a, boot_b = bootstrap_means(a_UM, b_UM, resamples, rng)
    low, high = np.quantile(boot_b - boot_a, (0.025, 0.975), axis=0)
    p_values = sign_flip_p(b_UM - a_UM, flips, rng)
    found = {}
    for m, name in enumerate(names):
        relative = relative_interval = None
        if mean_a[m] > 0:
            relative = float(100 * (mean_b[m] - mean_a[m]) / mean_a[m])
            if (boot_a[:, m] > 0).all():
                ratio = 100 * (boot_b[:, m] / boot_a[:, m] - 1)
                relative_interval = (float(np.quantile(ratio, 0.025)), float(np.quantile(ratio, 0.975)))
        found[name] = Difference(
            first=float(mean_a[m]),
            second=float(mean_b[m]),
            difference=float(mean_b[m] - mean_a[m]),
            interval=(float(low[m]), float(high[m])),
            relative=relative,
            relative_interval=relative_interval,
            p=float(p_values[m]),
            better=int((b_UM[:, m] > a_UM[:, m]).sum()),
            worse=int((b_UM[:, m] < a_UM[:, m]).sum()),
        )
    return found


def bootstrap_means(a_UM: Floats, b_UM: Floats, resamples: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Means of both tables over users drawn with replacement, the same users for both; each [resamples, M].

    Args:
        a_UM: one row per user, one column per metric.
        b_UM: the same users and metrics under another model.
        resamples: how many draws of U users.
        rng: where random numbers come from.
    """
    users, metrics = a_UM.shape
    counted = (a_UM != 0).any(axis=1) | (b_UM != 0).any(axis=1)
    values = np.concatenate([a_UM[counted], b_UM[counted]], axis=1)
    means = np.zeros((resamples, 2 * metrics))
    rows = len(values)
    if rows:
        # How many of the U draws fall on users that count at all, then which of them.
        sizes = rng.binomial(users, rows / users, size=resamples)
        for start, end in _blocks(resamples, rows):
            draw = np.repeat(np.arange(end - start), sizes[start:end])
            drawn = rng.integers(0, rows, size=len(draw))
            counts = np.bincount(draw * rows + drawn, minlength=(end - start) * rows).reshape(end - start, rows)
            means[start:end] = counts.astype(np.float64) @ values / users
    return means[:, :metrics], means[:, metrics:]


def sign_flip_p(differences_UM: Floats, flips: int, rng: np.random.Generator) -> Floats:
    """Two-sided p values, [M], that the differences are as likely positive as negative.

    Each flip gives every user a random sign; p = (1 + flips whose |sum| reaches the observed one) / (1 + flips), which
    is valid for any number of flips (Phipson & Smyth 2010). 1 where nothing differs.

    Args:
        differences_UM: second − first, one row per user, one column per metric.
        flips: how many.
        rng: where random numbers come from.
    """
    changed = differences_UM[(differences_UM != 0).any(axis=1)]
    observed = np.abs(changed.sum(axis=0))
    # Sums of the same numbers in another order may differ in the last digits.
    observed -= 1e-9 * np.abs(changed).sum(axis=0)
    extreme = np.zeros(differences_UM.shape[1], dtype=np.int64)
    for start, end in _blocks(flips, max(1, len(changed))):
        signs = rng.integers(0, 2, size=(end - start, len(changed)), dtype=np.int8).astype(np.float64) * 2 - 1
        extreme += (np.abs(signs @ changed) >= observed).sum(axis=0)
    return (1 + extreme) / (1 + flips)


def _blocks(total: int, width: int) -> Iterator[tuple[int, int]]:
    size = max(1, BLOCK_ELEMENTS // width)
    for start in range(0, total, size):
        yield start, min(total, start + size)


def _cells(d: Difference, info: MetricInfo) -> tuple[str, ...]:
    gain = "–" if d.relative is None else f"{d.relative:+.1f}%"
    interval = "–" if d.relative_interval is None else "{:+.1f}% to {:+.1f}%".format(*d.relative_interval)
    return (info.shown(d.first), info.shown(d.second), gain, interval, f"{d.p:.4f}", f"{d.better:,} / {d.worse:,}")
