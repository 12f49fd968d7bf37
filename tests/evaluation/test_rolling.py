from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from numpy.typing import NDArray

from llmd4rec.data.dataset import Dataset
from llmd4rec.errors import ConfigError, RunError
from llmd4rec.evaluation.ranking import NO_CANDIDATE
from llmd4rec.evaluation.rolling import rolling
from llmd4rec.evaluation.rolling_evaluation import RollingEvaluation
from llmd4rec.evaluation.rolling_tables import print_rolling
from llmd4rec.evaluation.windows import CountTo, History, Rolling, Window
from llmd4rec.scoring.base import Scorer
from llmd4rec.scoring.factors import FactorScorer
from llmd4rec.scoring.memory.settings import DEFAULT_WEIGHTS, Content

from .examples import LastItemModel, make_dataset
from .rolling_examples import ASKED, MEMORY, WEIGHTS, hand_made, random_log

DAY = 86_400
LAST = np.array([1, 0.7, 0.5, 0.35, 0.25])


def text_vectors(data: Dataset, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(data.num_items, 8)).astype(np.float32)


def counted_scores(data: Dataset, texts_IT: NDArray[np.float32], history: Sequence[int], now: int) -> dict[str, object]:
    """Scores of every item for one history, counted anew from all events strictly before `now`, in double precision."""
    assert data.times is not None
    items = data.num_items
    counts_II = np.zeros((items, items))
    recent_I = np.zeros(items)
    for user in range(data.num_users):
        span = range(int(data.offsets[user]), int(data.offsets[user + 1]))
        for at in span:
            if data.times[at] >= now:
                continue
            recent_I[data.items[at]] += 0.5 ** ((now - data.times[at]) / (4 * DAY))
            for gap in (1, 2):
                if at - gap >= span.start:
                    weight = (1 + 3 * 0.5 ** ((now - data.times[at]) / (10 * DAY))) / gap
                    counts_II[data.items[at - gap], data.items[at]] += weight
                    counts_II[data.items[at], data.items[at - gap]] += 0.5 * weight
    last = list(history)[-5:][::-1]
    weights = LAST[: len(last)]
    centred_IT = texts_IT - texts_IT.mean(axis=0)
    unit_IT = centred_IT / np.linalg.norm(centred_IT, axis=1, keepdims=True)
    content_I = unit_IT @ (weights @ unit_IT[last] / weights.sum())
    follows_I = np.log1p(3 * weights @ counts_II[last])
    parts = {"content": content_I, "transitions": follows_I, "recency": np.log1p(recent_I)}
    return parts | {"memory": sum(WEIGHTS[name] * part for name, part in parts.items())}


def rank_bounds(scores_I: NDArray[np.float64], target: int, seen: Sequence[int]) -> tuple[int, int]:
    """The rank of a target, ties against it, if scores are rounded in its favour and against it."""
    if target in seen:
        return NO_CANDIDATE, NO_CANDIDATE
    others = np.setdiff1d(np.arange(len(scores_I)), [*seen, target])
    near = 1e-5 * max(1.0, abs(float(scores_I[target])))
    ahead = scores_I[others] - scores_I[target]
    exact = (ahead == 0).sum()
    return 1 + int((ahead > near).sum() + exact), 1 + int((ahead >= -near).sum())


def own_targets(data: Dataset, asked: Rolling, window: Window) -> Iterator[tuple[int, int]]:
    """(user, flat position) of each target of a window."""
    assert data.times is not None
    for user in range(data.num_users):
        begin, end = int(data.offsets[user]), int(data.offsets[user + 1])
        inside = [at for at in range(begin, end) if window.start <= data.times[at] < window.end]
        if asked.history == "event":
            inside = [at for at in inside if at > begin]
        if inside and inside[0] > begin:
            yield user, inside[0]


@pytest.mark.parametrize("count_to", ["window", "event"])
@pytest.mark.parametrize("history", ["window", "event"])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_rank_is_that_of_counting_anew(seed: int, history: History, count_to: CountTo) -> None:
    data, asked = random_log(seed), replace(ASKED, history=history, count_to=count_to)
    texts_IT = text_vectors(data)
    found = rolling(data, asked, memory=MEMORY, texts_IT=texts_IT)
    assert data.times is not None
    checked = 0
    for window in found.windows:
        targets = list(own_targets(data, asked, window))
        rows = {
            name: found.per_target.filter(
                (pl.col("scorer") == name) & (pl.col("window") == window.number) & (pl.col("history_length") > 0)
            )
            for name in ("content", "transitions", "recency", "memory")
        }
        for place, (user, at) in enumerate(targets):
            past = data.items[data.offsets[user] : at].tolist()
            now = window.start if count_to == "window" else int(data.times[at])
            scores = counted_scores(data, texts_IT, past, now)
            for name, frame in rows.items():
                row = frame.row(place, named=True)
                assert (row["user_id"], row["item_id"]) == (f"u{user}", f"i{data.items[at]}")
                low, high = rank_bounds(np.asarray(scores[name]), int(data.items[at]), past)
                assert low <= row["rank"] <= high, (name, window, user)
                checked += 1
        assert len(targets) == rows["memory"].height
    assert checked > 100


def test_nothing_at_or_behind_a_windows_start_is_counted() -> None:
    data = random_log(3)
    assert data.times is not None
    whole = rolling(data, ASKED, memory=MEMORY)
    changed = np.array(data.items)
    late = np.flatnonzero(data.times >= 20 * DAY)  # from the second window on
    changed[late] = (changed[late] + 7) % data.num_items
    other = rolling(replace(data, items=changed), ASKED, memory=MEMORY)
    first = pl.col("window") == 0
    assert whole.per_target.filter(first).equals(other.per_target.filter(first))
    assert not whole.per_target.filter(~first).equals(other.per_target.filter(~first))


def test_users_without_history_are_answered_by_what_is_chosen_now() -> None:
    days = [[1, 2], [3, 9], [4, 12], [11], [12, 13]]
    data = make_dataset(
        [[0, 1], [2, 3], [2, 0], [2], [3, 1]], num_items=5, times=[[day * DAY for day in user] for user in days]
    )
    found = rolling(data, Rolling(windows=1, every=10 * DAY, choose_on=0, cut=10 * DAY), memory=MEMORY)
    rows = found.per_target.filter(pl.col("history_length") == 0)
    # By day 10: item 2 of days 3 and 4, item 3 of day 9, item 0 of day 1, item 1 of day 2. Day 9 is worth the most.
    assert rows.select("scorer", "user_id", "item_id", "rank").rows() == [
        ("recency", "u3", "i2", 2),
        ("recency", "u4", "i3", 1),
    ]
    assert found.without_history()["targets"] == 2
    assert found.without_history()["scorers"]["recency"]["hr@10"] == 1.0
    assert found.targets() == [1]  # u2, and nobody without history


class Asked:
    """Gives a model for each window, and remembers which it was asked for."""

    def __init__(self, tables: Sequence[torch.Tensor]) -> None:
        self.tables, self.windows = tables, list[Window]()

    def __call__(self, window: Window) -> Scorer:
        self.windows.append(window)
        return FactorScorer(LastItemModel(self.tables[window.number]))


def test_each_window_asks_for_its_own_model() -> None:
    data = make_dataset(
        [[0, 1, 2, 3]] * 6, num_items=5, times=[[0, 10 * DAY + user, 20 * DAY, 30 * DAY] for user in range(6)]
    )
    # One-hot states of the last item: scores are a row of the table, here that of the true next item or of another.
    right = torch.eye(5).roll(1, dims=0)
    wrong = torch.eye(5)
    models = Asked([right, wrong, right])
    asked = Rolling(windows=3, every=10 * DAY, choose_on=0, cut=10 * DAY)

    class OneHot(LastItemModel):
        def states(self, batch):  # type: ignore[no-untyped-def]
            return torch.eye(5)[batch.items_BL]

        def item_table(self, items=None):  # type: ignore[no-untyped-def]
            return self.table

    def model_of(window: Window) -> Scorer:
        models(window)
        return FactorScorer(OneHot(models.tables[window.number]))

    found = rolling(data, asked, models={"updated": model_of})
    assert [window.number for window in models.windows] == [0, 1, 2]
    by_window = found.by_window("updated", "hr@10")
    ranks = found.per_target.filter(pl.col("scorer") == "updated")["rank"].to_list()
    assert ranks[:6] == [1] * 6
    assert ranks[12:] == [1] * 6
    assert all(rank > 1 for rank in ranks[6:12])
    assert by_window == [1.0, 1.0, 1.0]  # five items, of which ten are shown
    assert found.kinds["updated"] == "model"
    assert found.kinds["updated + memory"] == "model and memory"


def test_totals_leave_out_the_windows_that_weights_are_chosen_on() -> None:
    found = rolling(random_log(0), ASKED, memory=MEMORY)
    rows = found.per_target.filter((pl.col("scorer") == "memory") & (pl.col("history_length") > 0))
    for part, inside in (("chosen", pl.col("window") < 1), ("shown", pl.col("window") >= 1)):
        assert found.figure("memory", "ndcg@10", part) == rows.filter(inside)["ndcg@10"].mean()  # type: ignore[arg-type]
    sizes = rows.group_by("window").len().sort("window")["len"].to_list()
    assert found.targets() == sizes
    means, shown = found.by_window("memory", "ndcg@10"), found.figure("memory", "ndcg@10")
    assert np.average([mean or 0.0 for mean in means[1:]], weights=sizes[1:]) == pytest.approx(shown)


def following_log() -> Dataset:
    """Each item is followed by the next one round the circle, at moments that say nothing."""
    rng = np.random.default_rng(0)
    sequences = [((int(rng.integers(0, 30)) + np.arange(6)) % 30).tolist() for _ in range(150)]
    times = [np.sort(rng.integers(0, 35 * DAY, 6)).tolist() for _ in sequences]
    return make_dataset(sequences, 30, times)


def test_weights_are_chosen_on_the_first_windows() -> None:
    data, auto = following_log(), MEMORY.model_copy(update={"weights": "auto"})
    asked = replace(ASKED, choose_on=2)
    found = rolling(data, asked, memory=auto, texts_IT=text_vectors(data))
    chosen = found.weights["memory"]
    assert chosen["transitions"] > 0
    assert chosen["content"] < 0.5 * chosen["transitions"]
    assert any(note.startswith("recency is halved every") for note in found.notes)
    # What comes later has no part in it.
    assert data.times is not None
    changed = np.array(data.items)
    late = np.flatnonzero(data.times >= asked.cut + 2 * asked.every)  # type: ignore[operator]
    changed[late] = (changed[late] + 7) % 30
    other = rolling(replace(data, items=changed), asked, memory=auto, texts_IT=text_vectors(data))
    assert other.weights["memory"] == chosen


def test_a_useless_model_has_next_to_no_weight_beside_the_memory() -> None:
    data, auto = following_log(), MEMORY.model_copy(update={"weights": "auto"})
    noise = FactorScorer(LastItemModel(torch.randn(30, 8, generator=torch.Generator().manual_seed(0))))
    found = rolling(data, replace(ASKED, choose_on=2), memory=auto, models={"frozen": lambda window: noise})
    weights = found.weights["frozen + memory"]
    assert weights["frozen"] < 0.2 * weights["transitions"]
    both, memory = (found.figure(name, "ndcg@10") for name in ("frozen + memory", "memory"))
    assert both == pytest.approx(memory, abs=0.05)
    assert found.beats_baselines("frozen") is False


def test_beside_a_model_content_has_fewer_directions() -> None:
    """A model that scores nothing changes no rank of the memory, unless that has fewer directions beside it."""
    data = following_log()
    nothing = FactorScorer(LastItemModel(torch.zeros(30, 8)))
    ranks = {}
    for beside in (8, 1):
        content = Content(dim=8, dim_beside=beside)
        memory = MEMORY.model_copy(update={"content": content, "weights": {"content": 1.0, "transitions": 0.0}})
        found = rolling(data, ASKED, memory=memory, texts_IT=text_vectors(data), models={"frozen": lambda _: nothing})
        for name in ("memory", "frozen + memory"):
            kept = found.per_target.filter((pl.col("scorer") == name) & (pl.col("history_length") > 0))
            ranks[name, beside] = kept["rank"].to_list()
    assert ranks["memory", 8] == ranks["memory", 1] == ranks["frozen + memory", 8]
    assert ranks["frozen + memory", 1] != ranks["memory", 1]


def test_without_windows_to_choose_on_weights_are_the_defaults() -> None:
    auto = MEMORY.model_copy(update={"weights": "auto"})
    found = rolling(random_log(0), replace(ASKED, choose_on=0), memory=auto)
    assert found.weights["memory"] == {name: DEFAULT_WEIGHTS[name] for name in ("transitions", "recency", "item_knn")}
    assert "weights are the defaults, since there is no window to choose them on" in found.notes


def test_parts_that_cannot_be_are_named() -> None:
    found = rolling(random_log(0), ASKED, memory=MEMORY)
    assert "content" not in found.kinds
    assert any("no texts" in note for note in found.notes)


def test_only_released_items_are_candidates() -> None:
    data = random_log(0)
    dates = ["1970-01-01" if item % 2 else "1999-01-01" for item in range(data.num_items)]
    data = replace(data, catalogue=data.catalogue.with_columns(pl.Series("released", dates)))
    every = rolling(data, ASKED, memory=MEMORY).per_target
    some = rolling(data, replace(ASKED, released="released"), memory=MEMORY).per_target
    early = pl.Series([int(item[1:]) % 2 == 1 for item in every["item_id"]])
    assert (some.filter(~early)["rank"] == NO_CANDIDATE).all()
    candidates = every["rank"] < NO_CANDIDATE
    assert (some.filter(early & candidates)["rank"] <= every.filter(early & candidates)["rank"]).all()
    assert some.filter(early & candidates)["rank"].max() <= 12  # type: ignore[operator]


def test_several_targets() -> None:
    found = rolling(random_log(0), replace(ASKED, targets="all"), memory=MEMORY, metrics=["recall@10", "hr@10"])
    one = rolling(random_log(0), ASKED, memory=MEMORY, metrics=["recall@10", "hr@10"])
    assert found.targets() == one.targets()
    assert (found.per_target["hr@10"] >= one.per_target["hr@10"]).all()
    assert found.figure("memory", "recall@10") != found.figure("memory", "hr@10")


def test_metrics_of_all_lists_have_no_windows() -> None:
    with pytest.raises(ConfigError, match="coverage@10 has no values per user"):
        rolling(random_log(0), ASKED, memory=MEMORY, metrics=["coverage@10"])


def test_a_model_no_better_than_the_best_baseline_is_marked(capsys: pytest.CaptureFixture[str]) -> None:
    values = {"recency": [0.0, 1.0, 1.0], "frozen": [0.0, 1.0, 0.0], "updated": [1.0, 1.0, 1.0]}
    found = hand_made(values, ["a", "b", "c"], {"recency": "baseline", "frozen": "model", "updated": "model"})
    assert found.best_baseline == "recency"
    assert [found.beats_baselines(name) for name in values] == [None, False, True]
    print_rolling(found, "shop")
    said = capsys.readouterr().out
    assert "frozen ▼" in said
    assert "updated ▼" not in said
    assert "▼ is no better than recency" in said


def test_differences_draw_users_with_all_of_their_targets() -> None:
    # 200 users with one target each, and the same values given to ten users twenty times each.
    rng = np.random.default_rng(0)
    effects = rng.normal(0.05, 0.3, 10)
    values = {"memory": [0.0] * 200, "frozen": np.repeat(effects, 20).tolist()}
    kinds = {"memory": "memory", "frozen": "model"}
    clustered = hand_made(values, [f"u{place // 20}" for place in range(200)], kinds).differences()[0]
    apart = hand_made(values, [f"u{place}" for place in range(200)], kinds).differences()[0]
    assert (clustered.first, clustered.second) == ("memory", "frozen")
    assert clustered.values == apart.values
    assert clustered.values == pytest.approx((0.0, effects.mean()))
    widths = [high - low for low, high in (clustered.interval, apart.interval)]
    # The standard error of ten independent values, and of two hundred.
    assert widths[0] == pytest.approx(2 * 1.96 * effects.std() / np.sqrt(10), rel=0.15)
    assert widths[1] == pytest.approx(2 * 1.96 * effects.std() / np.sqrt(200), rel=0.15)
    assert clustered.p > apart.p


def test_models_are_compared_with_the_memory_and_with_each_other() -> None:
    values: dict[str, list[float]] = {"memory": [0.0, 1.0], "updated": [1.0, 1.0], "refitted": [0.0, 0.5]}
    sums = {"updated + memory": [1.0, 0.5], "refitted + memory": [0.0, 0.0]}
    kinds = {"memory": "memory", "updated": "model", "refitted": "model", **dict.fromkeys(sums, "model and memory")}
    found = replace(
        hand_made(values | sums, ["a", "b"], kinds),
        weights={name: {name.removesuffix(" + memory"): 1.0} for name in sums},
    )
    pairs = {(each.first, each.second): each.values for each in found.differences()}
    assert pairs["updated", "refitted"] == (1.0, 0.25)
    assert pairs["updated + memory", "refitted + memory"] == (0.75, 0.0)
    assert list(pairs)[:3] == [("memory", "updated"), ("memory", "updated + memory"), ("updated", "updated + memory")]
    assert len(pairs) == 8


def test_saved_and_loaded(tmp_path: Path) -> None:
    found = rolling(random_log(0), ASKED, memory=MEMORY)
    found.save(tmp_path / "rolling")
    again = RollingEvaluation.load(tmp_path / "rolling")
    assert again.to_json() == found.to_json()
    assert again.per_target.equals(found.per_target)
    assert json.loads(json.dumps(found.to_json()))["cut"] == "1970-01-16 00:00:00"
    (tmp_path / "rolling" / "per_target.parquet").write_bytes(b"PAR1")
    with pytest.raises(RunError, match="is damaged"):
        RollingEvaluation.load(tmp_path / "rolling")
    with pytest.raises(RunError, match="no rolling evaluation"):
        RollingEvaluation.load(tmp_path)
