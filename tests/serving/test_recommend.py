"""`llmd4rec recommend` on exports and for many users."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from test_cli import answer, ids, llmd4rec, refused

from llmd4rec import Dataset, Filters, Recommender

from .store import Store


def test_an_export_answers_as_its_run_does(store: Store) -> None:
    for stage, stage_id in (
        ("distilled", "distilled-round-1"),
        ("distilled-round-1", "distilled-round-1"),
        ("undistilled", "undistilled"),
    ):
        of_run = answer("recommend", store.run.folder, "--history", "i3,i4", "--stage", stage)
        of_export = answer("recommend", store.export, "--history", "i3,i4", "--stage", stage)
        assert ids(of_export) == ids(of_run)
        assert of_export["stage"] == of_run["stage"] == stage_id
        for ours, theirs in zip(of_export["recommendations"], of_run["recommendations"], strict=True):
            assert ours["title"] == theirs["title"]
            assert ours["score"] == pytest.approx(theirs["score"], abs=1e-4)


@pytest.mark.parametrize("source", ["export", "run"])
def test_conditions_reasons_and_exclusions(store: Store, source: str) -> None:
    folder = store.export if source == "export" else store.run.folder
    found = answer(
        "recommend", folder, "--history", "i3", "--filter", "brand=ACME", "--filter", "brand = öl & co",
        "--filter", "price>=6", "--filter", "price<= 13", "--exclude", "i12,who?", "--explain",
    )  # fmt: skip
    assert sorted(ids(found)) == ["i10", "i13", "i6"]
    assert found["recommendations"][0]["reasons"][0]["item_id"] == "i3"
    shown = llmd4rec("recommend", folder, "--history", "i3", "--explain").stdout
    assert "red film 3" in shown


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_all_users_into_a_file(store: Store, recommender: Recommender, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"recs{suffix}"
    result = llmd4rec("recommend", store.export, "--data", store.data.path, "--users", "all", "--out", out, "-k", 3)
    assert result.exit_code == 0, result.output
    assert "120 recommendations for 40 users" in result.stdout
    readers: dict[str, Callable[[Path], pl.DataFrame]] = {
        ".parquet": pl.read_parquet,
        ".csv": pl.read_csv,
        ".jsonl": pl.read_ndjson,
    }
    table = readers[suffix](out)
    assert table.columns == ["user_id", "rank", "item_id", "title", "score"]
    assert table["user_id"].unique(maintain_order=True).to_list() == store.data.user_ids.to_list()
    names = store.data.item_ids
    for user in range(40):
        history = [names[i] for i in store.data.items[store.data.offsets[user] : store.data.offsets[user + 1]]]
        expected = recommender.recommend(history, 3).items
        part = table.filter(pl.col("user_id") == f"u{user}")
        assert part["rank"].to_list() == [1, 2, 3]
        assert part["item_id"].to_list() == [item.item_id for item in expected]
        assert part["title"].to_list() == [item.title for item in expected]
        assert part["score"].to_list() == pytest.approx([item.score for item in expected], abs=1e-4)


def test_some_users_of_a_run_in_the_order_asked_for(store: Store, tmp_path: Path) -> None:
    out = tmp_path / "recs.csv"
    arguments = ["--users", '["u7", "u3"]', "--out", out, "-k", 2, "--filter", "category=Books"]
    assert llmd4rec("recommend", store.run.folder, *arguments).exit_code == 0
    table = pl.read_csv(out)
    assert table["user_id"].to_list() == ["u7", "u7", "u3", "u3"]
    assert {int(item[1:]) % 3 for item in table["item_id"]} == {2}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --history or --users"),
        (["--history", "i3", "--users", "all"], "give either --history or --users"),
        (["--users", "all"], "--users needs a file"),
        (["--history", "i3", "--out", "x.csv"], "--out is for --users"),
        (["--users", "all", "--out", "x.xls"], "ending '.xls' is not a known format"),
        (["--users", "all", "--out", "x.csv"], "holds no users"),
        (["--users", "u1,nobody", "--out", "x.csv", "--data", "DATA"], "has no user 'nobody'"),
        (["--history", "i3", "--filter", "brand"], "--filter 'brand' is no condition"),
        (["--history", "i3", "--filter", "price>=cheap"], "'cheap' is no number"),
        (["--history", "i3", "--filter", "colour=red"], "no field 'colour'"),
        (["--history", "i3", "--diversity", "2"], "diversity is 2.0"),
        (["--history", "i3", "--stage", "llm"], "is an export of distilled-round-1 and undistilled, not of llm"),
        (["--history", "i33"], "nearest known: 'i3'"),
        (["--history", "[3"], "the history is not a JSON list"),
    ],
)
def test_mistakes(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [store.data.path if argument == "DATA" else argument for argument in arguments]
    assert message in refused("recommend", store.export, *given)
    assert list(tmp_path.iterdir()) == []


def test_histories_that_nobody_knows_get_what_is_popular(
    recommender: Recommender, capsys: pytest.CaptureFixture[str]
) -> None:
    table = recommender.recommend(pl.DataFrame({"user_id": ["a", "b", "b"], "item_id": ["?", "i3", "!"]}), k=2)
    said = capsys.readouterr().err.replace("\n", " ")
    assert "2 items of histories are not in the catalogue and were skipped (such as '?', '!')" in said
    assert "1 users have no known item and got the most frequent ones (such as 'a')" in said
    assert table.filter(pl.col("user_id") == "a")["item_id"].to_list() == [
        item.item_id for item in recommender.recommend([], 2).items
    ]
    empty = recommender.recommend(
        pl.DataFrame({"user_id": [], "item_id": []}, schema={"user_id": pl.Int64, "item_id": pl.String})
    )
    assert empty.schema == {
        "user_id": pl.Int64, "rank": pl.Int32, "item_id": pl.String, "title": pl.String, "score": pl.Float32
    }  # fmt: skip
    assert empty.height == 0
    assert capsys.readouterr().err == ""


def test_an_export_of_one_model_has_no_other(exports: dict[str, Path]) -> None:
    export = exports["undistilled"]
    assert json.loads((export / "export.json").read_text())["stage"] == "undistilled"
    assert Recommender.load(export).undistilled is None
    for stage in ("distilled", "distilled-round-1", "llm"):
        said = refused("recommend", export, "--history", "i3", "--stage", stage)
        assert f"is an export of undistilled, not of {stage}" in said
    for stage in ("undistilled", "served"):
        found = answer("recommend", export, "--history", "i3", "--stage", stage)
        assert found["stage"] == "undistilled"


def test_an_export_holds_the_stages_it_names(store: Store) -> None:
    """The other model is picked by its stage; `served` is what the export is of; no other stage is there."""
    found = {
        stage: answer("recommend", store.export, "--history", "i3", *(["--stage", stage] if stage else []))
        for stage in ("", "served", "undistilled")
    }
    assert found[""] == found["served"]
    assert found["undistilled"]["stage"] == "undistilled"
    assert found["undistilled"]["recommendations"] != found[""]["recommendations"]
    for stage in ("distilled-round-2", "alone", "teacher-1"):
        said = refused("recommend", store.export, "--history", "i3", "--stage", stage)
        assert f"is an export of distilled-round-1 and undistilled, not of {stage}" in said
        assert "Leave out the stage, or name one that is there." in said


def newer_than(store: Store, folder: Any) -> Dataset:
    """Other users and a new item, in data that the run was not trained on."""
    log = pl.DataFrame({"user_id": ["x", "x", "x", "y", "y", "y"], "item_id": ["i3", "i4", "new", "i5", "i6", "i3"]})
    items = pl.DataFrame({"item_id": ["new"], "title": ["New film"]})
    items = store.data.catalogue.select("item_id", "title").vstack(items)
    Dataset.from_frames(log, items.with_columns(shelf=pl.lit("A"))).save(folder)
    return Dataset.load(folder)


@pytest.mark.parametrize("source", ["export", "run"])
def test_newer_data_gives_the_histories(store: Store, recommender: Recommender, tmp_path: Path, source: str) -> None:
    newer = newer_than(store, tmp_path / "newer")
    folder, out = store.export if source == "export" else store.run.folder, tmp_path / "recs.csv"
    ran = llmd4rec(
        "recommend", folder, "--data", newer.path, "--users", "all", "--out", out, "-k", 3, "--stage", "distilled"
    )
    assert ran.exit_code == 0, ran.output
    table = pl.read_csv(out)
    for user, history in (("x", ["i3", "i4", "new"]), ("y", ["i5", "i6", "i3"])):
        expected = [item.item_id for item in recommender.recommend(history, 3).items]
        assert table.filter(pl.col("user_id") == user)["item_id"].to_list() == expected
    assert "1 items of histories are not in the catalogue and were skipped (such as 'new')" in ran.stderr.replace(
        "\n", " "
    )


def test_a_run_whose_data_is_gone_answers_as_its_export_does(store: Store, tmp_path: Path) -> None:
    """The run folder has the fields, and the counts by which popular items are found."""
    run = shutil.copytree(store.run.folder, tmp_path / "run")
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    (run / "run.json").write_text(json.dumps({**record, "data_path": str(tmp_path / "gone")}), encoding="utf-8")
    of_run, of_export = (Recommender.load(folder, "distilled") for folder in (run, store.export))
    assert of_run.info.fields == of_export.info.fields
    for history in (["i3"], ["who?", "i4"], ["who?"], []):
        ours, theirs = (
            each.recommend(history, 5, filters=Filters(any_of={"category": "Films"}), diversity=0.3)
            for each in (of_run, of_export)
        )
        assert (ours.unknown, ours.fallback, ours.num_candidates) == (
            theirs.unknown, theirs.fallback, theirs.num_candidates,
        )  # fmt: skip
        assert [(item.item_id, item.title, item.fields) for item in ours.items] == [
            (item.item_id, item.title, item.fields) for item in theirs.items
        ]
    assert [item.item_id for item in of_run.similar("i3").items] == [i.item_id for i in of_export.similar("i3").items]
    assert [item.count for item in of_run.search("film")] == [item.count for item in of_export.search("film")]


def test_a_run_of_frames_says_how_to_save_them(store: Store, tmp_path: Path) -> None:
    run = shutil.copytree(store.run.folder, tmp_path / "run")
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    (run / "run.json").write_text(json.dumps({**record, "data_path": None}), encoding="utf-8")
    said = refused("recommend", run, "--users", "all", "--out", tmp_path / "recs.csv")
    assert "data.save(FOLDER)" in said
    assert "--data FOLDER" in said
