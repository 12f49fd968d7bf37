"""An engine in other processes: it is loaded again from its folder where it is unpickled, or says why it cannot be."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from llmd4rec import Engine, NewItem
from llmd4rec.errors import RunError
from llmd4rec.export.from_run import engine_of_run

HISTORY = ["i3", "i4"]


def best(engine: Engine) -> list[tuple[str, float]]:
    return [(item.item_id, round(item.score, 4)) for item in engine.recommend(HISTORY, 5).items]


def test_copies_and_pickles_answer_alike_and_share_nothing(store):
    engine = Engine.load(store.export, threads=1, index="exact")
    for other in (pickle.loads(pickle.dumps(engine)), copy.deepcopy(engine), copy.copy(engine)):
        assert other is not engine
        assert best(other) == best(engine)
        other.add_items([NewItem("new", "red film")])
        assert engine.item("new") is None
    assert engine.undistilled is not None
    undistilled = pickle.loads(pickle.dumps(engine.undistilled))
    assert best(undistilled) == best(engine.undistilled) != best(engine)
    assert len(pickle.dumps(engine)) < 5000, "the folder's name goes, not the model"


def test_it_is_found_from_another_working_folder(store, tmp_path, monkeypatch):
    monkeypatch.chdir(store.export.parent)
    data = pickle.dumps(Engine.load(store.export.name))
    monkeypatch.chdir(tmp_path)
    assert best(pickle.loads(data)) == best(Engine.load(store.export))


def test_workers_that_are_spawned(store):
    engine = Engine.load(store.export)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        answer = pool.submit(engine.recommend, HISTORY, 5).result()
    assert [item.item_id for item in answer.items] == [item_id for item_id, _ in best(engine)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_opens_its_own_session(store):
    """ONNX Runtime's threads do not come along: with two of them a fork would wait forever."""
    program = """
import os, sys
from llmd4rec import Engine
engine = Engine.load(sys.argv[1], threads=2)
whole = [item.item_id for item in engine.recommend(["i3", "i4"], 5).items]
child = os.fork()
if not child:
    os._exit(0 if [item.item_id for item in engine.recommend(["i3", "i4"], 5).items] == whole else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    ran = subprocess.run([sys.executable, "-c", program, str(store.export)], check=False, timeout=60)
    assert ran.returncode == 0


def test_what_would_be_lost_is_refused(store):
    engine = Engine.load(store.export)
    engine.add_items([NewItem("new", "red film")])
    with pytest.raises(RunError, match="items were added or removed") as caught:
        pickle.dumps(engine)
    assert "save_pretrained" in caught.value.remedy
    engine = Engine.load(store.export)
    engine.remove_items(["i1"])
    for one in (engine, engine.undistilled):
        with pytest.raises(RunError, match="items were added or removed"):
            copy.deepcopy(one)


def test_a_folder_that_is_gone_or_another_export_is_named(store, tmp_path):
    folder = Path(shutil.copytree(store.export, tmp_path / "export"))
    engine = Engine.load(folder)
    data = pickle.dumps(engine)
    other = Engine.load(folder)
    other.remove_items(["i1"])
    other.save_pretrained(tmp_path / "smaller")
    shutil.rmtree(folder)
    with pytest.raises(RunError, match="is not there on this machine"):
        pickle.loads(data)
    with pytest.raises(RunError, match="is gone"):
        pickle.dumps(engine)
    shutil.copytree(tmp_path / "smaller", folder)
    with pytest.raises(RunError, match="contains another export"):
        pickle.loads(data)


def test_an_engine_of_a_run_says_what_to_do(store):
    engine = engine_of_run(store.run, "distilled", store.data)
    with pytest.raises(RunError, match="made from a run") as caught:
        pickle.dumps(engine)
    assert "Export the run" in caught.value.remedy
