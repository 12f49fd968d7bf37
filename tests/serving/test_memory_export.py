"""An export with a memory: its figures are those of its run, it is saved with what it counted, and served over HTTP."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from evaluation.examples import chain_dataset
from made_once import MadeOnce
from onnx_operators import remember_operators
from settings_of import parse_settings

from llmd4rec import Evaluator, NewItem, Recommender
from llmd4rec.data.dataset import Dataset
from llmd4rec.errors import RunError
from llmd4rec.export.memory import users_of_pairs
from llmd4rec.export.write import ExportOptions, export_run
from llmd4rec.runs.run import Run

from . import shop
from .by_hand import ids

ITEMS = 20


@pytest.fixture(scope="module")
def made(made_once: MadeOnce, tiny_settings: dict[str, Any], sentences: str) -> Path:
    """A run with texts, times and a memory, its data and its export."""

    def make(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LLMD4REC_CACHE", str(folder / "cache"))
            data = chain_dataset(users=40, items=ITEMS, length=8)
            frame = pl.DataFrame({
                "item_id": [f"i{item}" for item in range(ITEMS)],
                "title": [f"{'red' if item % 2 else 'blue'} film {item}" for item in range(ITEMS)],
            })  # fmt: skip
            times = 1_600_000_000 + 3600 * np.arange(data.num_interactions, dtype=np.int64)
            data = dataclasses.replace(data, catalogue=frame, text_fields=("title",), times=times)
            data.save(folder / "data")
            data = Dataset.load(folder / "data")
            settings = {**tiny_settings, "rounds": 0, "llm": None, "memory": "auto", "texts": {"encoder": sentences}}
            run = parse_settings(settings).fit(data, folder / "run")
            remember_operators()
            export_run(run, data, folder / "export", options=ExportOptions(memory="on", text_encoder=True))

    return made_once("memory-export", make)


def test_an_export_has_the_figures_of_its_run(made: Path) -> None:
    run, data, exported = Run.open(made / "run"), Dataset.load(made / "data"), Recommender.load(made / "export")
    evaluator = Evaluator(["hr@5", "ndcg@10"])
    for stage in ("undistilled+memory", "undistilled"):
        expected = evaluator.evaluate(run, data, stage=stage)
        for source in (exported, run.recommender(stage)):
            found = evaluator.evaluate(source, data, stage=stage)
            assert found.metrics == pytest.approx(expected.metrics, abs=1e-12)
            assert found.stage == expected.stage == stage
    history = ["i3", "i4"]
    assert ids(exported.recommend(history, 5)) == ids(run.recommender("undistilled+memory").recommend(history, 5))
    assert run.recommender("memory").recommend(history, 3, explain=True).items[0].reasons
    with pytest.raises(RunError, match="not of distilled"):
        exported.scorer("distilled")


def test_what_an_export_says_of_its_memory(made: Path) -> None:
    head = json.loads((made / "export" / "export.json").read_text())
    assert head["format"] == 4
    assert set(head["memory"]["weights"]) <= {"model", "content", "transitions", "recency"}
    assert head["memory"]["bytes"] == sum(path.stat().st_size for path in (made / "export" / "memory").iterdir())
    assert head["memory"]["milliseconds"] > 0
    info = Recommender.load(made / "export").info
    assert dict(info.memory) == head["memory"]["weights"]
    card = (made / "export" / "README.md").read_text()
    assert "Beside the model stands a memory" in card


def test_without_a_memory_an_export_is_as_before(made: Path, tmp_path: Path) -> None:
    run, data = Run.open(made / "run"), Dataset.load(made / "data")
    export_run(run, data, tmp_path / "plain", "undistilled", options=ExportOptions(memory="off"))
    head = json.loads((tmp_path / "plain" / "export.json").read_text())
    assert head["format"] == 3
    assert "memory" not in head
    assert not (tmp_path / "plain" / "memory").exists()
    plain = Recommender.load(tmp_path / "plain")
    assert plain.recommend([], 1).fallback == "popular"
    with pytest.raises(RunError, match="has no memory"):
        plain.observe(["i1"], "i2")


def test_a_changed_memory_is_saved(made: Path, tmp_path: Path) -> None:
    recommender = Recommender.load(made / "export")
    recommender.add_items([NewItem("new", title="red film")])
    recommender.remove_items(["i5"])
    last = recommender._snapshot.memory.last_event  # type: ignore[union-attr]
    recommender.observe(["i3", "i4"], "new", last + 60)  # type: ignore[operator]
    recommender.save(tmp_path / "saved")
    again = Recommender.load(tmp_path / "saved")
    for history in (["i4"], ["new"], []):
        ours, theirs = (each.recommend(history, 30, now=last + 120) for each in (recommender, again))  # type: ignore[operator]
        assert ids(ours) == ids(theirs)
        np.testing.assert_allclose([i.score for i in ours.items], [i.score for i in theirs.items], rtol=1e-4, atol=1e-5)
    assert json.loads((tmp_path / "saved" / "export.json").read_text())["memory"]["last_event"] == last + 60  # type: ignore[operator]


def test_a_damaged_memory_is_refused(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    shutil.copytree(made / "export", folder)
    (folder / "memory" / "more.npy").write_bytes(b"x")
    with pytest.raises(RunError, match=r"more.npy is not listed in export.json"):
        Recommender.load(folder)
    (folder / "memory" / "more.npy").unlink()
    (folder / "memory" / "memory.json").write_text("{}")
    with pytest.raises(RunError, match="not the file that was exported"):
        Recommender.load(folder)


def test_pairs_of_few_users_are_left_out(made: Path, tmp_path: Path) -> None:
    run, data = Run.open(made / "run"), Dataset.load(made / "data")
    export_run(run, data, tmp_path / "private", options=ExportOptions(memory="on", min_pair_users=5))
    part = Recommender.load(tmp_path / "private")._snapshot.memory.transitions  # type: ignore[union-attr]
    whole = Recommender.load(made / "export")._snapshot.memory.transitions  # type: ignore[union-attr]
    assert part is not None
    assert whole is not None
    starts, columns, _ = whole.arrays()
    users = users_of_pairs(starts, columns, data, whole.settings.gaps, None)
    expected: dict[tuple[int, int], set[int]] = {}
    for user in range(data.num_users):  # by hand
        history = np.asarray(data.items[data.offsets[user] : data.train_end[user]]).tolist()
        for gap in (1, 2, 3):
            for one, two in zip(history, history[gap:], strict=False):
                expected.setdefault((one, two), set()).add(user)
                expected.setdefault((two, one), set()).add(user)
    rows = np.repeat(np.arange(ITEMS), np.diff(starts))
    found = dict(zip(zip(rows.tolist(), columns.tolist(), strict=True), users.tolist(), strict=True))
    assert found == {pair: len(who) for pair, who in expected.items()}
    kept = {pair for pair, who in expected.items() if len(who) >= 5}
    starts, columns, _ = part.arrays()
    rows = np.repeat(np.arange(ITEMS), np.diff(starts))
    assert set(zip(rows.tolist(), columns.tolist(), strict=True)) == kept
    about = json.loads((tmp_path / "private" / "export.json").read_text())["memory"]
    assert about["min_pair_users"] == 5
    assert about["pairs_kept"] == pytest.approx(len(kept) / len(expected))
    assert {"ndcg@10_all_pairs", "ndcg@10_kept_pairs"} <= about.keys()


def test_events_over_http(made: Path) -> None:
    with shop.running(made / "export", "--allow-changes", "--max-batch", 3, "--max-history", 4) as process:
        client = process.client
        assert set(client.get("/v1/models").json["served"]["memory"]) <= {"model", "content", "transitions", "recency"}
        event = {"history": ["i1", "who?"], "item_id": "i9"}
        before = {
            i["item_id"]: i["score"] for i in client.post("/v1/recommend", {"history": ["i1"], "k": 20}).json["items"]
        }
        assert client.post("/v1/events", {"events": [event, event]}).json["counted"] == 2
        answer = client.post("/v1/recommend", {"history": ["i1"], "k": 20, "explain": True}).json
        after = {item["item_id"]: item["score"] for item in answer["items"]}
        assert after["i9"] > before["i9"]
        (first,) = [item for item in answer["items"] if item["item_id"] == "i9"]
        assert {reason["kind"] for reason in first["reasons"]} & {"follows", "recent"}
        assert client.post("/v1/recommend", {"history": []}).json["fallback"] == "recent"
        wrong = client.post("/v1/events", {"events": [event, {**event, "item_id": "no such"}]})
        assert (wrong.status, wrong.error["code"]) == (422, "invalid")
        assert "events[1]" in wrong.error["message"]
        assert client.post("/v1/events", {"events": [event] * 4}).status == 422
        assert client.post("/v1/events", {"events": [{**event, "history": ["i1"] * 5}]}).status == 422
        assert client.post("/v1/events", {"events": [{**event, "time": 99_999_999_999}]}).status == 422
        assert shop.figures(client)[("llmd4rec_events_total",)] == 2
    with shop.running(made / "export") as process:
        assert process.client.post("/v1/events", {"events": [event]}).error["code"] == "changes_disabled"


def test_a_memory_forgets_the_rows_of_removed_items_and_goes_on_counting(made: Path) -> None:
    recommender, fresh = (Recommender.load(made / "export") for _ in range(2))
    last = fresh._snapshot.memory.last_event or 0  # type: ignore[union-attr]
    for turn in range(12):
        names = [f"{turn}/{number}" for number in range(100)]
        recommender.add_items([NewItem(name, title="blue film") for name in names])
        recommender.observe(["i3"], names[0], last)
        recommender.remove_items(names)
    assert len(recommender.catalogue) == ITEMS + 100  # those before were forgotten when there were more than a thousand
    for each in (recommender, fresh):
        each.add_items([NewItem("new", title="red film")])
        each.observe(["i3", "i4"], "new", last + 60)
    for history in (["i4"], ["new"]):
        ours, theirs = (each.recommend(history, 30, now=last + 120) for each in (recommender, fresh))
        assert ids(ours) == ids(theirs)
        np.testing.assert_allclose([i.score for i in ours.items], [i.score for i in theirs.items], rtol=1e-4, atol=1e-5)
