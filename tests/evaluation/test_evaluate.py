from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from llmd4rec.data.dataset import NO_TIME
from llmd4rec.errors import ConfigError, DataError, ModelError, RunError
from llmd4rec.evaluation import Evaluation, validation_value
from llmd4rec.evaluation.ranking import NO_CANDIDATE

from .examples import LastItemModel, evaluate, make_dataset, random_dataset

DAY = 86_400


def successor_model(num_items: int, **options: int) -> LastItemModel:
    """Scores item i + 1 highest after item i, then i + 2, and so on round the circle."""
    model = LastItemModel(torch.eye(num_items), **options)
    order = (torch.arange(num_items)[None, :] - torch.arange(num_items)[:, None] - 1) % num_items
    scores = (num_items - order).float()
    model.item_table = lambda items=None: scores.T.contiguous()  # type: ignore[method-assign]
    return model


def test_ranks_by_hand() -> None:
    data = make_dataset([[0, 1, 2, 3], [4, 5, 6, 9]], num_items=10)
    result = evaluate(successor_model(10), data, filter_seen=False)
    assert result.ranks.tolist() == [1, 3]
    assert result.top[0, :3].tolist() == [3, 4, 5]
    assert result.metrics["hr@5"] == 1.0
    assert result.metrics["mrr@5"] == pytest.approx((1 + 1 / 3) / 2)
    assert result.metrics["coverage@10"] == 1.0


def test_removing_seen_items_moves_the_target_up() -> None:
    data = make_dataset([[3, 2, 1, 0, 5]], num_items=8)
    model = successor_model(8)
    assert evaluate(model, data, filter_seen=False).ranks.tolist() == [5]
    removed = evaluate(model, data, filter_seen=True)
    assert removed.ranks.tolist() == [2]
    assert removed.top[0].tolist() == [4, 5, 6, 7, *[-1] * 16]


def test_target_in_the_history_is_a_miss_only_if_seen_items_are_removed() -> None:
    data = make_dataset([[1, 0, 5, 0, 1]], num_items=8)
    assert evaluate(successor_model(8), data, filter_seen=False).ranks.tolist() == [1]
    removed = evaluate(successor_model(8), data, filter_seen=True)
    assert removed.ranks.tolist() == [NO_CANDIDATE]
    assert removed.metrics["hr@20"] == 0.0


def test_history_of_test_includes_the_validation_item_and_that_of_valid_only_what_precedes_it() -> None:
    data = make_dataset([[0, 1, 2, 3, 4, 5, 6]], num_items=10)
    model = LastItemModel(torch.eye(10), max_length=3)
    evaluate(model, data, split="test")
    evaluate(model, data, split="valid")
    assert [items.tolist() for items, _ in model.batches] == [[[3, 4, 5]], [[2, 3, 4]]]
    assert [lengths.tolist() for _, lengths in model.batches] == [[3], [3]]


def test_items_beyond_max_length_are_still_seen() -> None:
    data = make_dataset([[7, 1, 2, 3, 4, 6]], num_items=8)
    result = evaluate(successor_model(8, max_length=2), data, filter_seen=True)
    assert 7 not in result.top


@pytest.mark.parametrize("batch_size", [1, 3, 256])
def test_results_do_not_depend_on_batches(batch_size: int, integer_table: torch.Tensor) -> None:
    data = random_dataset(40, 30)
    model = LastItemModel(integer_table)
    result = evaluate(model, data, batch_size=batch_size)
    positions = data.test
    for index, position in enumerate(positions):
        history, target = data.history(int(position)), int(data.items[position])
        scores = integer_table @ integer_table[int(history[-1])]
        candidates = [item for item in range(30) if item not in history]
        others = sum(bool(scores[item] >= scores[target]) for item in candidates if item != target)
        assert result.ranks[index] == (1 + others if target in candidates else NO_CANDIDATE)
    for items, lengths in model.batches:
        assert items.shape == (len(lengths), int(lengths.max()))
        assert len(lengths) <= batch_size


def test_per_user_table() -> None:
    data = make_dataset([[0, 1, 2], [0, 1, 0, 1, 0, 1, 3]], num_items=5)
    table = evaluate(successor_model(5), data).per_user
    assert table["user_id"].to_list() == ["u0", "u1"]
    assert table["item_id"].to_list() == ["i2", "i3"]
    assert table["history_length"].to_list() == [2, 6]
    assert table["train_count"].to_list() == [0, 0]
    assert table["short_history"].to_list() == [True, False]
    assert {"tail", "head", "cold", "short_history", "long_history"} <= set(table.columns)


def test_slices_add_up(integer_table: torch.Tensor) -> None:
    result = evaluate(LastItemModel(integer_table), random_dataset(60, 30))
    for one, other in (("tail", "head"), ("short_history", "long_history")):
        a, b = result.slices[one], result.slices[other]
        assert a["users"] + b["users"] == result.users == 60
        total = a["users"] * a["ndcg@10"] + b["users"] * b["ndcg@10"]
        assert total / 60 == pytest.approx(result.metrics["ndcg@10"])


def test_day_slices_leave_unknown_times_out() -> None:
    times = [
        [0, DAY - 1, DAY],  # one second later, but the next day
        [0, 5, 9],  # the same day
        [0, 5, NO_TIME],
        [0, NO_TIME, 9 * DAY],
    ]
    data = make_dataset([[0, 1, 2]] * 4, num_items=4, times=times)
    result = evaluate(successor_model(4), data)
    assert result.per_user["next_day"].to_list() == [True, False, False, False]
    assert result.per_user["same_day"].to_list() == [False, True, False, False]
    assert (result.slices["next_day"]["users"], result.slices["same_day"]["users"]) == (1, 1)
    assert "next_day" not in evaluate(successor_model(4), make_dataset([[0, 1, 2]], 4)).slices


def test_an_empty_slice_has_no_figures() -> None:
    data = make_dataset([[0, 1, 2]], num_items=4, times=[[NO_TIME] * 3])
    assert evaluate(successor_model(4), data).slices["next_day"] == {"users": 0}


def test_the_mode_is_restored_and_no_gradients_are_kept(integer_table: torch.Tensor) -> None:
    model = LastItemModel(integer_table).train()
    evaluate(model, random_dataset(5, 30))
    validation_value(model, random_dataset(5, 30))
    modes = [model.training]
    assert set(model.modes) == {(False, True)}
    model.eval()
    evaluate(model, random_dataset(5, 30))
    modes.append(model.training)
    assert modes == [True, False]
    model.train()
    with pytest.raises(ModelError):
        evaluate(model, random_dataset(5, 31))
    assert model.training


def test_a_collapsed_model_scores_nothing() -> None:
    result = evaluate(LastItemModel(torch.zeros(30, 4)), random_dataset(50, 30), filter_seen=False)
    assert result.metrics["hr@20"] == result.metrics["ndcg@20"] == result.metrics["mrr@20"] == 0.0


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("row", [0, 29])
def test_a_diverged_model_is_refused(value: float, row: int) -> None:
    """Also where a single item is to blame, wherever in the catalogue it stands."""
    table = torch.ones(30, 4)
    table[row, 1] = value
    for check in (evaluate, validation_value):
        with pytest.raises(ModelError, match="NaN"):
            check(LastItemModel(table), random_dataset(5, 30))


def popularity_model(counts: list[int]) -> LastItemModel:
    """Gives every history the items by how often they were trained on."""
    model = LastItemModel(torch.ones(len(counts), 1))
    model.item_table = lambda items=None: torch.tensor(counts).float()[:, None]  # type: ignore[method-assign]
    return model


def test_a_model_of_popularity_by_hand() -> None:
    """Items 0 to 3 are trained on 3, 2, 1 and 0 times; what ties is counted against the target."""
    data = make_dataset([[0, 1, 4, 2], [0, 1, 4, 3], [0, 2, 4, 1]], num_items=5)
    assert data.train_counts.tolist() == [3, 2, 1, 0, 0]
    kept = evaluate(popularity_model([3, 2, 1, 0, 0]), data, filter_seen=False)
    assert kept.ranks.tolist() == [3, 5, 2]
    removed = evaluate(popularity_model([3, 2, 1, 0, 0]), data)
    assert removed.ranks.tolist() == [1, 2, 1]
    assert removed.metrics["mrr@5"] == pytest.approx((1 + 1 / 2 + 1) / 3)
    assert removed.metrics["coverage@10"] == 3 / 5
    assert kept.metrics["popularity@10"] == pytest.approx(6 / 5)


def test_cutoffs_beyond_the_catalogue_count_all_of_it() -> None:
    data = make_dataset([[0, 1, 2], [1, 2, 0]], num_items=3)
    metrics = evaluate(successor_model(3), data, filter_seen=False, cutoffs=(1, 3, 50)).metrics
    assert metrics["hr@3"] == metrics["hr@50"] == 1.0
    assert metrics["ndcg@3"] == metrics["ndcg@50"]


def test_a_catalogue_of_one_item() -> None:
    data = make_dataset([[0, 0, 0]], num_items=1)
    model = LastItemModel(torch.ones(1, 2))
    assert evaluate(model, data, filter_seen=False).ranks.tolist() == [1]
    removed = evaluate(model, data)
    assert removed.ranks.tolist() == [NO_CANDIDATE]
    assert removed.metrics["hr@20"] == removed.metrics["coverage@10"] == removed.metrics["popularity@10"] == 0.0


def test_validation_ndcg_is_that_of_evaluate(integer_table: torch.Tensor) -> None:
    data, model = random_dataset(80, 30), LastItemModel(integer_table)
    for filter_seen in (True, False):
        full = evaluate(model, data, split="valid", filter_seen=filter_seen)
        assert validation_value(model, data, filter_seen) == pytest.approx(full.metrics["ndcg@10"], abs=1e-15)
        sample = evaluate(model, data, split="valid", filter_seen=filter_seen, max_users=20, seed=3)
        assert sample.users == 20
        assert validation_value(model, data, filter_seen, 20, 3) == pytest.approx(sample.metrics["ndcg@10"], abs=1e-15)


def test_a_sample_is_the_same_for_the_same_seed(integer_table: torch.Tensor) -> None:
    data, model = random_dataset(80, 30), LastItemModel(integer_table)
    users = [evaluate(model, data, max_users=9, seed=seed).per_user["user_id"].to_list() for seed in (0, 0, 1)]
    assert users[0] == users[1] != users[2]


def test_targets_without_a_history_are_left_out() -> None:
    data = make_dataset([[1], [0, 1, 2]], num_items=4)
    assert evaluate(successor_model(4), data).per_user["user_id"].to_list() == ["u1"]
    with pytest.raises(DataError, match="no test targets"):
        evaluate(successor_model(4), make_dataset([[1]], num_items=4))


@pytest.mark.parametrize("split", ["valid", "test"])
def test_an_empty_split_is_named(split: str) -> None:
    nothing: dict[str, Any] = {split: np.array([], dtype=np.int64)}
    data = dataclasses.replace(make_dataset([[0, 1, 2]], 4), **nothing)
    with pytest.raises(DataError, match=f"no {split} targets") as caught:
        evaluate(successor_model(4), data, split=split)  # type: ignore[arg-type]
    assert caught.value.remedy


def test_unknown_settings_are_named() -> None:
    data, model = random_dataset(3, 30), successor_model(30)
    options: list[dict[str, Any]] = [
        {"split": "train"}, {"filter_seen": "keep"}, {"cutoffs": (0, 5)}, {"cutoffs": ()}, {"max_users": 0}
    ]  # fmt: skip
    for wrong in options:
        with pytest.raises(ConfigError):
            evaluate(model, data, **wrong)


def test_json_keys_are_the_published_ones(integer_table: torch.Tensor) -> None:
    result = evaluate(LastItemModel(integer_table), random_dataset(9, 30), name="llm", stage="undistilled")
    value = json.loads(json.dumps(result.to_json()))
    assert set(value) == {"metrics", "slices", "users", "model", "stage", "filter_seen", "split"}
    assert (value["model"], value["stage"], value["filter_seen"], value["split"]) == (
        "llm",
        "undistilled",
        True,
        "test",
    )
    assert {f"{m}@{k}" for m in ("hr", "ndcg", "mrr") for k in (5, 10, 20)} <= set(value["metrics"])


def test_saving_and_loading(tmp_path: Path, integer_table: torch.Tensor) -> None:
    result = evaluate(LastItemModel(integer_table), random_dataset(9, 30))
    result.save(tmp_path / "model")
    result.save(tmp_path / "model")
    loaded = Evaluation.load(tmp_path / "model")
    assert loaded.to_json() == result.to_json()
    assert loaded.per_user.equals(result.per_user)
    assert np.array_equal(loaded.top, result.top)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_evaluation_of_another_format_is_named(tmp_path: Path, integer_table: torch.Tensor) -> None:
    evaluate(LastItemModel(integer_table), random_dataset(9, 30)).save(tmp_path / "model")
    path = tmp_path / "model" / "evaluation.json"
    head = json.loads(path.read_text())
    del head["format"], head["filter_seen"]
    path.write_text(json.dumps({**head, "seen": "remove"}))
    with pytest.raises(RunError, match="an evaluation of format 1; this version of llmd4rec reads 3"):
        Evaluation.load(tmp_path / "model")


def test_a_damaged_or_missing_evaluation_is_named(tmp_path: Path, integer_table: torch.Tensor) -> None:
    with pytest.raises(RunError, match="no evaluation"):
        Evaluation.load(tmp_path)
    (tmp_path / "notes.txt").touch()
    result = evaluate(LastItemModel(integer_table), random_dataset(9, 30))
    with pytest.raises(RunError, match="other files"):
        result.save(tmp_path)
    result.save(tmp_path / "model")
    pl.read_parquet(tmp_path / "model/per_user.parquet").head(3).write_parquet(tmp_path / "model/per_user.parquet")
    with pytest.raises(RunError, match="do not agree"):
        Evaluation.load(tmp_path / "model")
    result.per_user.with_columns(rank=pl.lit(0)).write_parquet(tmp_path / "model/per_user.parquet")
    with pytest.raises(RunError, match="do not agree"):
        Evaluation.load(tmp_path / "model")
    result.per_user.drop("rank").write_parquet(tmp_path / "model/per_user.parquet")
    with pytest.raises(RunError, match="damaged"):
        Evaluation.load(tmp_path / "model")
    (tmp_path / "model/per_user.parquet").write_bytes(b"PAR1")
    with pytest.raises(RunError, match="damaged"):
        Evaluation.load(tmp_path / "model")
