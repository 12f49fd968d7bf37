"""A recommender in other processes: loaded again from its folder where it is unpickled, or says why not."""

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

from llmd4rec import NewItem, Recommender
from llmd4rec.errors import RunError

from .store import Store

HISTORY = ["i3", "i4"]


def best(recommender: Recommender) -> list[tuple[str, float]]:
    return [(item.item_id, round(item.score, 4)) for item in recommender.recommend(HISTORY, 5).items]


def test_copies_and_pickles_answer_alike_and_share_nothing(store: Store) -> None:
    recommender = Recommender.load(store.export, threads=1, index="exact")
    for other in (pickle.loads(pickle.dumps(recommender)), copy.deepcopy(recommender), copy.copy(recommender)):
        assert other is not recommender
        assert best(other) == best(recommender)
        other.add_items([NewItem("new", "red film")])
        assert recommender.item("new") is None
    assert recommender.undistilled is not None
    undistilled = pickle.loads(pickle.dumps(recommender.undistilled))
    assert best(undistilled) == best(recommender.undistilled) != best(recommender)
    assert len(pickle.dumps(recommender)) < 5000, "the folder's name goes, not the model"


def test_it_is_found_from_another_working_folder(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(store.export.parent)
    data = pickle.dumps(Recommender.load(store.export.name))
    monkeypatch.chdir(tmp_path)
    assert best(pickle.loads(data)) == best(Recommender.load(store.export))


def test_workers_that_are_spawned(store: Store) -> None:
    recommender = Recommender.load(store.export)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        answer = pool.submit(recommender.recommend, HISTORY, 5).result()
    assert [item.item_id for item in answer.items] == [item_id for item_id, _ in best(recommender)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_opens_its_own_session(store: Store) -> None:
    """ONNX Runtime's threads do not come along: with two of them a fork would wait forever."""
    program = """
import os, sys
from llmd4rec import Recommender
recommender = Recommender.load(sys.argv[1], threads=2)
whole = [item.item_id for item in recommender.recommend(["i3", "i4"], 5).items]
child = os.fork()
if not child:
    os._exit(0 if [item.item_id for item in recommender.recommend(["i3", "i4"], 5).items] == whole else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    ran = subprocess.run([sys.executable, "-c", program, str(store.export)], check=False, timeout=60)
    assert ran.returncode == 0


def test_what_would_be_lost_is_refused(store: Store) -> None:
    recommender = Recommender.load(store.export)
    recommender.add_items([NewItem("new", "red film")])
    with pytest.raises(RunError, match="items were added or removed") as caught:
        pickle.dumps(recommender)
    assert "save(FOLDER)" in caught.value.remedy
    recommender = Recommender.load(store.export)
    recommender.remove_items(["i1"])
    for one in (recommender, recommender.undistilled):
        with pytest.raises(RunError, match="items were added or removed"):
            copy.deepcopy(one)


def test_a_folder_that_is_gone_or_another_export_is_named(store: Store, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(store.export, tmp_path / "export"))
    recommender = Recommender.load(folder)
    data = pickle.dumps(recommender)
    other = Recommender.load(folder)
    other.remove_items(["i1"])
    other.save(tmp_path / "smaller")
    shutil.rmtree(folder)
    with pytest.raises(RunError, match="is not there on this machine"):
        pickle.loads(data)
    with pytest.raises(RunError, match="is gone"):
        pickle.dumps(recommender)
    shutil.copytree(tmp_path / "smaller", folder)
    with pytest.raises(RunError, match="contains another export"):
        pickle.loads(data)


def test_a_recommender_of_a_run_says_what_to_do(store: Store) -> None:
    recommender = store.run.recommender("distilled")
    with pytest.raises(RunError, match="made from a run") as caught:
        pickle.dumps(recommender)
    assert "Export the run" in caught.value.remedy
