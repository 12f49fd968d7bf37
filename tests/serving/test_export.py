"""The exported folder against PyTorch, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import polars as pl
import pytest
import torch
import yaml
from evaluation.examples import chain_dataset
from made_once import MadeOnce
from settings_of import changed, parse_settings

from llmd4rec import Recommender
from llmd4rec.data.batching import SequenceBatch
from llmd4rec.data.dataset import Dataset
from llmd4rec.errors import ConfigError, DataError, ModelError, RunError
from llmd4rec.evaluation.validation import validation_value
from llmd4rec.export.graphs import check_parity, write_encoder
from llmd4rec.export.write import ExportOptions, export_run
from llmd4rec.inference.graph import open_graph
from llmd4rec.io.files import sha256_file
from llmd4rec.models.base import last_states
from llmd4rec.models.sequential import MODELS, SASRec
from llmd4rec.models.sequential.sasrec import SASRecNetwork
from llmd4rec.runs.run import Run

from .store import STAGES, Store


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (1, 6), (5, 4), (7, 6), (64, 2)])
def test_onnx_runtime_gives_the_scores_of_pytorch(
    exports: dict[str, Path], chain_run: Path, batch: int, length: int
) -> None:
    model = Run.open(chain_run).load("distilled")
    rng = np.random.default_rng(0)
    items, lengths = rng.integers(0, 12, (batch, length)), rng.integers(1, length + 1, batch)
    session = onnxruntime.InferenceSession(exports["distilled"] / "encoder.onnx")
    table = np.load(exports["distilled"] / "item_table.npy")
    states = session.run(None, {"vectors": table[items], "lengths": lengths})[0]
    scores = states @ table.T
    with torch.no_grad():
        expected = (
            last_states(model, SequenceBatch(torch.from_numpy(items), torch.from_numpy(lengths))) @ model.item_table().T
        )
    np.testing.assert_allclose(scores, expected.numpy(), atol=1e-4)
    assert (np.argsort(-scores)[:, :10] == np.argsort(-expected.numpy())[:, :10]).all()


@pytest.mark.parametrize("threads", [None, 2])
def test_threads_of_the_graph_sleep_between_requests(exports: dict[str, Path], threads: int | None) -> None:
    """ONNX Runtime's default takes a core from what a request does beside the graph: it took twice as long."""
    session = open_graph(exports["distilled"] / "encoder.onnx", threads)
    assert session.get_session_options().get_session_config_entry("session.intra_op.allow_spinning") == "0"


def run_card(folder: Path, history: list[str]) -> list[str]:
    """What the model card's code without this package prints."""
    card = (folder / "README.md").read_text()
    code = card.split("Without it")[1].split("```python\n")[1].split("```")[0]
    code = code.replace('["an-item", "another-item"]', repr(history))
    for name in ("encoder.onnx", "item_table.npy", "item_scales.npy", "catalogue.parquet"):
        code = code.replace(f'"{name}"', repr(str(folder / name)))
    printed: list[Any] = []
    exec(code, {"print": printed.append})
    return list(printed[0])


def test_the_folder_answers_by_itself(exports: dict[str, Path], chain_data: Dataset, chain_run: Path) -> None:
    """As the model card says, with nothing of this package."""
    folder = exports["distilled"]
    head = json.loads((folder / "export.json").read_text())
    assert head["files"].keys() == {path.name for path in folder.iterdir()} - {"export.json"}
    for name, checksum in head["files"].items():
        assert sha256_file(folder / name) == checksum
    assert (head["items"], head["dim"], head["max_length"], head["stage"]) == (12, 8, 6, "distilled-round-1")
    assert head["data"] == chain_data.fingerprint
    ids = pl.read_parquet(folder / "catalogue.parquet")["item_id"].to_list()
    assert ids == chain_data.item_ids

    history = ["i3", "i4", "i5"]
    printed = run_card(folder, history)
    expected = Run.open(chain_run).recommender().recommend(history, k=9).items  # all there are but those seen
    assert printed[:9] == [answer.item_id for answer in expected]


def test_the_graph_of_the_distilled_model_is_that_of_the_undistilled_one(exports: dict[str, Path]) -> None:
    graphs = [onnx.load(exports[stage] / "encoder.onnx").graph for stage in ("undistilled", "distilled")]
    undistilled, distilled = (
        {
            "nodes": [(node.op_type, list(node.input), list(node.output)) for node in graph.node],
            "weights": [(tensor.name, tuple(tensor.dims), tensor.data_type) for tensor in graph.initializer],
            "inputs": [str(value.type) for value in graph.input],
            "outputs": [str(value.type) for value in graph.output],
        }
        for graph in graphs
    )
    assert undistilled == distilled
    assert len(graphs[0].node) > 10


@pytest.fixture(scope="module")
def small_table(made_once: MadeOnce, store: Store) -> Path:
    """The store's export with an 8-bit table, both models."""
    options = ExportOptions(both=True, table="int8")
    folder = made_once(
        "store int8", lambda folder: export_run(store.run, store.data, folder / "export", "distilled", options=options)
    )
    return folder / "export"


@pytest.mark.parametrize("table", ["float32", "int8"])
def test_the_distilled_model_is_as_large_as_the_undistilled_one(store: Store, small_table: Path, table: str) -> None:
    """Byte for byte: every file of the model, and every array in it, has the size and type it has without."""
    export = small_table if table == "int8" else store.export
    undistilled = {path.name: path for path in (export / "undistilled").iterdir()}
    assert undistilled.keys() >= {"encoder.onnx", "item_table.npy", "text_map.npy"}
    assert ("item_scales.npy" in undistilled) == (table == "int8")
    for name, path in undistilled.items():
        other = export / name
        assert other.stat().st_size == path.stat().st_size
        assert other.read_bytes() != path.read_bytes()
        if name.endswith(".npy"):
            ours, theirs = np.load(other), np.load(path)
            assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)


def test_an_8_bit_table_serves_nearly_the_same_and_says_what_it_costs(store: Store, small_table: Path) -> None:
    head = json.loads((small_table / "export.json").read_text())
    assert np.load(small_table / "item_table.npy").dtype == np.int8
    stage = store.run.record.stages["distilled-round-1"]
    assert head["table"]["ndcg@10_float32"] == pytest.approx(stage["validation"], abs=1e-6)
    assert abs(head["table"]["ndcg@10_rounded"] - head["table"]["ndcg@10_float32"]) < 0.1
    small, plain = Recommender.load(small_table), Recommender.load(store.export)
    for item in ("i3", "i11"):
        ours, theirs = (
            {found.item_id: found.score for found in recommender.recommend([item], 19).items}
            for recommender in (small, plain)
        )
        most = max(abs(score) for score in theirs.values())
        assert ours == pytest.approx(theirs, abs=0.03 * most)
    assert run_card(small_table, ["i3", "i4"]) == [item.item_id for item in small.recommend(["i3", "i4"], 10).items]


def test_an_export_keeps_what_was_decided_about_seen_items(
    chain_run: Path, chain_data: Dataset, tmp_path: Path
) -> None:
    """A model selected with seen items among the candidates answers with them, and its figures are of that."""
    folder = Path(shutil.copytree(chain_run, tmp_path / "run"))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["evaluation"]["filter_seen"] = False
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    run, history = Run.open(folder), ["i3", "i4", "i5"]
    export_run(run, chain_data, tmp_path / "export", "undistilled", options=ExportOptions(table="int8"))
    table = json.loads((tmp_path / "export" / "export.json").read_text())["table"]
    ranker = run.load("undistilled")
    assert table["ndcg@10_float32"] == pytest.approx(validation_value(ranker, chain_data, filter_seen=False), abs=1e-6)
    assert table["ndcg@10_float32"] != pytest.approx(validation_value(ranker, chain_data), abs=1e-3)
    recommender = Recommender.load(tmp_path / "export")
    kept = [item.item_id for item in recommender.recommend(history, 12).items]
    assert set(history) <= set(kept)
    assert kept[:10] == run_card(tmp_path / "export", history)
    assert run.recommender("undistilled").info.filter_seen is False
    assert {item.item_id for item in run.recommender("undistilled").recommend(history, 12).items} == set(kept)
    assert not set(history) & {item.item_id for item in recommender.recommend(history, 12, filter_seen=True).items}


def test_the_card_and_the_head_say_what_new_items_are_worth(store: Store) -> None:
    head = json.loads((store.export / "export.json").read_text())
    found = head["new_items"]
    assert (found["items"], found["width"]) == (20, 16)
    assert 0 < found["cases"] <= 40
    for name in ("recall", "recall_trained_rows", "recall_without_texts", "recall_by_chance"):
        values = list(found[name].values())
        assert list(found[name]) == ["@10", "@50", "@100"]
        assert values == sorted(values)
        assert found[name]["@50"] == (1 if name != "recall" else pytest.approx(1))  # of 20 items
    card = (store.export / "README.md").read_text()
    assert f"| embeddings made from texts | {found['recall']['@10']:.4f} |" in card
    assert head["text_encoder"]["precision"] in ("int8", "float32")
    assert head["text_encoder"]["cosine_min"] >= 0.99
    assert head["text_encoder"]["bytes"] == sum(
        path.stat().st_size for path in (store.export / "text_encoder").iterdir()
    )
    assert head["undistilled"]["new_items"]["recall"] != {}


@pytest.mark.parametrize(
    ("options", "stage", "message"),
    [
        (ExportOptions(both=True), "undistilled", "the undistilled model is what is exported"),
        (ExportOptions(text_encoder=True), "undistilled", "no item of this data set has a text"),
        (ExportOptions(new_items=True), "undistilled", "no item of this data set has a text"),
        (ExportOptions(text_encoder=True, new_items=False), "undistilled", "of no use without --new-items"),
    ],
)
def test_options_that_make_no_sense(
    chain_run: Path, chain_data: Dataset, tmp_path: Path, options: ExportOptions, stage: str, message: str
) -> None:
    run = Run.open(chain_run)
    data = dataclasses.replace(chain_data, text_fields=())
    run.require = lambda _: None  # type: ignore[method-assign, assignment]
    with pytest.raises(ConfigError, match=message):
        export_run(run, data, tmp_path / "export", stage, options=options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stage", ["llm", "llm-round-1"])
def test_a_language_model_is_not_exported(chain_run: Path, chain_data: Dataset, tmp_path: Path, stage: str) -> None:
    with pytest.raises(ConfigError, match=f"{stage} is a language model") as caught:
        export_run(Run.open(chain_run), chain_data, tmp_path / "export", stage)
    assert "--stage" in caught.value.remedy
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def taught_run(made_once: MadeOnce, tiny_settings: dict[str, Any], chain_data: Dataset) -> Run:
    """A run with a teacher of another kind and width."""
    settings = {**tiny_settings, "llm": None, "teachers": [{"name": "gru4rec", "dim": 12}]}
    settings = changed(settings, distill__source="ensemble")
    folder = made_once("taught run", lambda folder: parse_settings(settings).fit(chain_data, folder / "run"))
    return Run.open(folder / "run")


@pytest.mark.parametrize(
    ("stage", "network", "dim"), [("teacher-1", "gru4rec", 12), ("distilled-round-1", "sasrec", 8)]
)
def test_a_teacher_can_be_exported_as_a_student_can(
    taught_run: Run, chain_data: Dataset, tmp_path: Path, stage: str, network: str, dim: int
) -> None:
    assert "agree" in export_run(taught_run, chain_data, tmp_path / "export", stage)
    recommender, of_run = Recommender.load(tmp_path / "export"), taught_run.recommender(stage)
    for info in (recommender.info, of_run.info):
        assert (info.stage, info.model, info.dim) == (stage, network, dim)
        assert info.validation == taught_run.validation_of(stage)
    history = ["i3", "i4", "i5"]
    expected = taught_run.recommender(stage).recommend(history, k=9).items
    for asked in (recommender, of_run):
        answer = asked.recommend(history, 9).items
        assert [item.item_id for item in answer] == [item.item_id for item in expected]
        assert [item.score for item in answer] == pytest.approx([item.score for item in expected], abs=1e-4)


def test_the_undistilled_model_stands_beside_the_same_network_only(
    taught_run: Run, chain_data: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="teacher-1 is another network than the undistilled model"):
        export_run(taught_run, chain_data, tmp_path / "export", "teacher-1", options=ExportOptions(both=True))
    assert list(tmp_path.iterdir()) == []


def test_what_validation_chose_is_exported_by_default_and_nothing_overwritten_unasked(
    exports: dict[str, Path], chain_run: Path, chain_data: Dataset, tmp_path: Path
) -> None:
    run = Run.open(chain_run)
    chosen = run.resolve("served")
    (other,) = (stage for stage in STAGES if run.resolve(stage) != chosen)
    target = Path(shutil.copytree(exports[other], tmp_path / "export"))
    with pytest.raises(DataError, match="already exists"):
        export_run(run, chain_data, target)
    assert json.loads((target / "export.json").read_text())["stage"] == run.resolve(other)
    export_run(run, chain_data, target, overwrite=True)
    assert Recommender.load(target).info.stage == chosen
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


@pytest.mark.parametrize("place", ["a run", "a folder", "a file"])
def test_only_an_export_is_ever_replaced(chain_run: Path, chain_data: Dataset, tmp_path: Path, place: str) -> None:
    precious = tmp_path / "precious"
    if place == "a run":
        shutil.copytree(chain_run, precious)
    elif place == "a folder":
        precious.mkdir()
        (precious / "thesis.txt").write_text("years")
    else:
        precious.write_text("years")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with pytest.raises(RunError, match="is not an export: it is not replaced"):
        export_run(Run.open(chain_run), chain_data, precious, "undistilled", overwrite=True)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


class Fickle(SASRec):
    """A model that does not give the same states twice, which no graph can follow."""

    def build(self, num_items: int, seed: int) -> SASRecNetwork:
        return FickleNetwork(num_items, self)


class FickleNetwork(SASRecNetwork):
    calls = 0

    def states(self, batch: SequenceBatch) -> torch.Tensor:
        self.calls += 1
        return super().states(batch) * self.calls


def test_a_graph_that_disagrees_is_not_kept(tiny_settings: dict[str, Any], chain_data: Dataset, tmp_path: Path) -> None:
    values = changed(tiny_settings, rounds=0, llm=None, training__model__epochs=0)
    fickle = {**values["model"], "name": f"{__name__}:Fickle"}
    run = parse_settings({**values, "model": fickle}).fit(chain_data, tmp_path / "run")
    with pytest.raises(ModelError, match="the exported graph differs from the model"):
        export_run(run, chain_data, tmp_path / "export", "undistilled")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_undefined_scores_do_not_pass_the_check(exports: dict[str, Path], chain_run: Path, chain_data: Dataset) -> None:
    model = Run.open(chain_run).load("distilled")
    table = np.load(exports["distilled"] / "item_table.npy")
    path = exports["distilled"] / "encoder.onnx"
    assert check_parity(model, path, table, chain_data) < 1e-4
    table[3] = np.nan
    with pytest.raises(RunError, match="gave NaN"):
        check_parity(model, path, table, chain_data)


def test_other_data_is_refused(chain_run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="was trained on other data"):
        export_run(Run.open(chain_run), chain_dataset(users=30, items=12, length=7), tmp_path / "export", "undistilled")


@pytest.mark.parametrize("max_length", [1, 2, 3])
def test_models_that_read_very_little(max_length: int, tmp_path: Path, chain_data: Dataset) -> None:
    model = SASRec(dim=4, layers=1, max_length=max_length).build(12, 0).eval()
    write_encoder(model, tmp_path / "encoder.onnx")
    table = model.item_table().detach().numpy()
    assert check_parity(model, tmp_path / "encoder.onnx", table, chain_data) < 1e-4
    no_test = dataclasses.replace(chain_data, test=chain_data.test[:0], path=None)
    assert check_parity(model, tmp_path / "encoder.onnx", table, no_test) < 1e-4


@pytest.mark.parametrize("name", MODELS.known)
def test_every_network_can_be_exported(
    name: str, tiny_settings: dict[str, Any], chain_data: Dataset, tmp_path: Path
) -> None:
    network: dict[str, Any] = {"name": name, "dim": 8, "max_length": 6, "item_features": "id"}
    if name in ("bsarec", "ligr"):  # of several layers as sasrec is
        network["layers"] = 1
    run = parse_settings({**tiny_settings, "rounds": 0, "model": network}).fit(chain_data, tmp_path / "run")
    assert "agree" in export_run(run, chain_data, tmp_path / "export", "undistilled")
    model = run.load("undistilled")
    items, lengths = np.array([[3, 4, 5], [7, 0, 0]]), np.array([3, 1])
    session = onnxruntime.InferenceSession(tmp_path / "export" / "encoder.onnx")
    table = np.load(tmp_path / "export" / "item_table.npy")
    states = session.run(None, {"vectors": table[items], "lengths": lengths})[0]
    with torch.no_grad():
        expected = last_states(model, SequenceBatch(torch.from_numpy(items), torch.from_numpy(lengths)))
    np.testing.assert_allclose(states, expected.numpy(), atol=1e-5)
