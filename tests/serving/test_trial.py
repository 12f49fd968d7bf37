"""What is served has answered before: at the start in the service itself, at a swap in a process of its own."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import polars as pl
import pytest
from onnx import TensorProto, helper, numpy_helper

from llmd4rec import Recommender
from llmd4rec.errors import RunError
from llmd4rec.io.files import sha256_file
from llmd4rec.server.logs import Log
from llmd4rec.server.metrics import Metrics
from llmd4rec.server.service import Service
from llmd4rec.server.settings import ServiceSettings
from llmd4rec.server.trial import Trial, ask_once

from . import shop
from .fuzz_exports import fuzz
from .store import Store

Damage = Callable[[Path], object]


def encoder(folder: Path, nodes: Sequence[onnx.NodeProto], *constants: onnx.TensorProto) -> None:
    """Puts a graph of some nodes behind `mean`, the mean of a history, in place of an export's encoder."""
    dim = json.loads((folder / "export.json").read_text())["dim"]
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["vectors"], ["mean"], axes=[1], keepdims=0), *nodes],
        "graph",
        [
            helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["batch", "length", dim]),
            helper.make_tensor_value_info("lengths", TensorProto.INT64, ["batch"]),
        ],
        [helper.make_tensor_value_info("states", TensorProto.FLOAT, ["batch", dim])],
        list(constants),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    (folder / "encoder.onnx").write_bytes(model.SerializeToString())


def nan(folder: Path) -> None:
    nought = numpy_helper.from_array(np.zeros(1, np.float32), "nought")
    encoder(folder, [helper.make_node("Div", ["mean", "nought"], ["states"])], nought)


def another_batch(folder: Path) -> None:
    encoder(folder, [helper.make_node("Concat", ["mean", "mean"], ["states"], axis=0)])


def endless(folder: Path) -> None:
    """A loop whose condition stays true."""
    scalar = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Identity", ["x"], ["y"])],
        "body",
        [scalar("i", TensorProto.INT64, []), scalar("go", TensorProto.BOOL, []), scalar("x", TensorProto.FLOAT, None)],
        [scalar("on", TensorProto.BOOL, []), scalar("y", TensorProto.FLOAT, None)],
    )
    true = numpy_helper.from_array(np.array(True), "true")
    encoder(folder, [helper.make_node("Loop", ["", "true", "mean"], ["states"], body=body)], true)


def hungry(folder: Path) -> None:
    """It fills 32 GB, of which a machine may have promised the half before it has them."""
    size = numpy_helper.from_array(np.array([1 << 33]), "size")
    nodes = [
        helper.make_node("ConstantOfShape", ["size"], ["large"]),
        helper.make_node("ReduceSum", ["large"], ["sum"], keepdims=0),
        helper.make_node("Add", ["mean", "sum"], ["states"]),
    ]
    encoder(folder, nodes, size)


def bomb(folder: Path) -> None:
    """Few bytes of Parquet that are a hundred million rows."""
    rows = pl.select(pl.repeat("x" * 40, 1_000_000).alias("item_id"))
    written = io.BytesIO()
    rows.lazy().select(pl.all()).collect().write_parquet(written, compression="zstd", statistics=False)
    (folder / "catalogue.parquet").write_bytes(written.getvalue())


def damaged(export: Path, folder: Path, damage: Damage) -> Path:
    """A copy of an export, damaged by somebody who also corrected the checksums."""
    shutil.copytree(export, folder)
    damage(folder)
    head = json.loads((folder / "export.json").read_text())
    head["files"] = {name: sha256_file(folder / name) for name in head["files"]}
    (folder / "export.json").write_text(json.dumps(head))
    return folder


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (nan, "export/encoder.onnx gave NaN, infinite values"),
        (another_batch, r"export/encoder.onnx gave shape \(2, 8\), but 1 x 8 is needed"),
    ],
)
def test_an_encoder_without_an_answer_never_answers(store: Store, tmp_path: Path, damage: Damage, message: str) -> None:
    """It gave an empty answer before, as if there were nothing to recommend."""
    recommender = Recommender.load(damaged(store.export, tmp_path / "export", damage))
    with pytest.raises(RunError, match=message):
        recommender.recommend(["i1"])
    with pytest.raises(RunError, match=message):
        ask_once(recommender, texts=False)


def test_what_is_whole_is_asked_and_not_changed(store: Store) -> None:
    recommender = Recommender.load(store.export)
    asked: list[str] = []
    ask_once(recommender, lambda file, times=1: asked.append(file), texts=True)
    assert [file for file in asked if file.startswith("undistilled/")]
    assert recommender.info.items == 20
    assert Trial(60, 30).run(store.export) == recommender.info.fingerprint


@pytest.mark.parametrize(("damage", "file"), [(endless, "encoder.onnx"), (hungry, "encoder.onnx")])
def test_what_ends_a_process_ends_one_of_its_own(store: Store, tmp_path: Path, damage: Damage, file: str) -> None:
    folder = damaged(store.export, tmp_path / "export", damage)
    with pytest.raises(RunError, match=file):
        Trial(60, 0.5).run(folder)


def test_at_a_swap_a_hostile_export_is_refused_by_name_and_the_service_goes_on(models: Path, tmp_path: Path) -> None:
    root = tmp_path / "models"
    hostile: dict[str, tuple[Damage, str]] = {
        "nan": (nan, "nan/encoder.onnx gave NaN"),
        "endless": (endless, "endless/encoder.onnx takes more than"),
        "bomb": (bomb, "bomb/catalogue.parquet has 1,000,000 items, export.json names 12"),
    }
    shutil.copytree(models / "bare", root / "good")
    for name, (damage, _) in hostile.items():
        damaged(models / "bare", root / name, damage)
    with shop.running(root / "good", "--allow-changes", "--models", root, "--timeout", 1) as process:
        client = process.client
        client.seconds = 120  # another process starts, and computes until it is stopped
        before = client.get("/v1/models").json["served"]
        for name, (_, said) in hostile.items():
            reply = client.post("/v1/models/swap", {"name": name})
            assert (reply.status, reply.error["code"]) == (422, "invalid_export")
            assert said in reply.error["message"]
            assert str(tmp_path) not in reply.content.decode()
        assert client.get("/v1/models").json["served"] == before
        assert client.post("/v1/recommend", {"history": ["plain"]}).json["items"]
        assert client.post("/v1/models/swap", {"name": "good"}).status == 200
        assert client.post("/v1/items/remove", {"ids": ["plain"]}).status == 200


def test_a_swap_whose_client_has_gone_is_completed_and_frees_the_lock(models: Path) -> None:
    settings = ServiceSettings(models=models, allow_changes=True)

    async def scenario() -> str:
        service = Service(Recommender.load(models / "bare"), settings, Metrics(), Log(io.BytesIO()))
        asked = asyncio.create_task(service.swap("both"))
        await asyncio.sleep(0.05)
        asked.cancel()
        await asyncio.wait([asked])
        assert asked.cancelled()
        await service.remove([])  # waits for the lock
        service.close()
        return service.recommender.info.name

    assert asyncio.run(scenario()) == "both"


@pytest.mark.parametrize(
    ("damage", "said"),
    [(nan, "encoder.onnx gave NaN"), (endless, "encoder.onnx takes more than 1 s of processor time")],
)
def test_at_the_start_an_export_that_cannot_answer_is_said(
    models: Path, tmp_path: Path, damage: Damage, said: str
) -> None:
    folder = damaged(models / "bare", tmp_path / "export", damage)
    command = shop.command(folder, "--port", 0, "--timeout", 0.1)
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("error: ")
    assert said in ran.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are those of Linux")
def test_damaged_exports_are_refused_by_name_or_served_rightly(store: Store, tmp_path: Path) -> None:
    counts, findings = fuzz(range(30), [store.export], tmp_path)
    assert findings == []
    assert sum(counts.values()) == 30
    assert sum(count for what, count in counts.items() if what.endswith("refused")) > 15
    assert sum(count for what, count in counts.items() if what.endswith("served")) > 1
