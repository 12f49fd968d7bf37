"""Six types that the package does not know go from settings to a served answer, by the command line and in Python."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hours_shop import ITEMS, START, make_shop
from in_another_process import call_command, start
from made_once import MadeOnce
from my_types import Fading, HingeWalk, HourOfDay, NewBrand, Prices, Relational, SampledHinge
from torch import Tensor

import llmd4rec
from llmd4rec import Dataset, Distillation, Evaluator, Run, SASRec
from llmd4rec.config.settings import check
from llmd4rec.errors import RunError
from llmd4rec.metrics import NDCG

HERE = Path(__file__).parent
#: Of commands: they find the package, and nothing beside it.
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(llmd4rec.__file__ or "").parents[1])}
#: Settings of a run in which nothing but the language of the file is the package's.
SETTINGS: dict[str, Any] = {
    "seed": 1,
    "rounds": 1,
    "threads": 1,
    "model": {
        "name": "my_types:Fading",
        "dim": 16,
        "max_length": 10,
        "half_life": 2.0,
        "item_features": ["id", "words", {"name": "my_types:Prices", "path": "prices.csv"}],
        "event_features": ["my_types:HourOfDay"],
    },
    "teachers": [{"dim": 24}, {"name": "gru4rec", "dim": 16}],
    "llm": None,
    "memory": None,
    "distill": {"method": {"name": "my_types:Relational", "weight": 0.5}, "memory": False},
    "training": {
        "model": {
            "loss": {"name": "my_types:SampledHinge", "negatives": 16},
            "epochs": 3,
            "batch": 128,
            "min_steps": 4,
        }
    },
    "evaluation": {"metrics": ["hr", "ndcg", "my_types:NewBrand@5"], "cutoffs": [5, 10]},
}


@pytest.fixture(scope="module")
def shop(made_once: MadeOnce) -> Path:
    return made_once("shop of hours", make_shop)


@pytest.fixture(scope="module")
def work(made_once: MadeOnce) -> Path:
    """A folder as its owner would have it: their module, settings, data, and a run trained by the command line."""

    def make(folder: Path) -> None:
        make_shop(folder, users=80)
        shutil.copy(HERE / "my_types.py", folder)
        (folder / "settings.yaml").write_text(yaml.safe_dump(SETTINGS), encoding="utf-8")
        command(folder, "train", "-d", "data", "-r", "run", "settings.yaml")

    return made_once("work with types of one's own", make)


@pytest.fixture(scope="module")
def exported(made_once: MadeOnce, work: Path) -> Path:
    """The run's export, by the command line."""

    def make(folder: Path) -> None:
        command(work, "export", "run", "--out", str(folder / "export"), "--trust-code")

    return made_once("export with types of one's own", make) / "export"


def command(folder: Path, *arguments: str, fails: bool = False) -> str:
    """What the command line says, in a process that has never seen the types; standard error where it fails."""
    with tempfile.TemporaryDirectory() as printed:
        done = start(call_command, list(arguments), Path(printed), folder)
        done.join(300)
        out, err = ((Path(printed) / name).read_text(encoding="utf-8") for name in ("out", "err"))
    assert done.exitcode is not None
    assert (done.exitcode != 0) == fails, err
    return err if fails else out


@pytest.fixture
def in_work(work: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(work)
    return work


def settings_in_python(folder: Path) -> Distillation:
    """The same run by instances."""
    features = ["id", "words", Prices(path=folder / "prices.csv")]
    model = Fading(dim=16, max_length=10, half_life=2.0, item_features=features, event_features=(HourOfDay(),))
    return Distillation(
        seed=1,
        rounds=1,
        threads=1,
        model=model,
        teachers=[{"dim": 24}, {"name": "gru4rec", "dim": 16}],
        distill={"method": Relational(weight=0.5)},
        training={"model": {"loss": SampledHinge(negatives=16), "epochs": 3, "batch": 128, "min_steps": 4}},
        evaluation={"metrics": ["hr", "ndcg", NewBrand(5)], "cutoffs": [5, 10]},
    )


# ---- the whole way ----------------------------------------------------------------------------------------------
def test_the_command_line_takes_all_six_from_training_to_an_answer(work: Path, exported: Path, tmp_path: Path) -> None:
    scored = json.loads(command(work, "evaluate", "run", "--trust-code", "--json"))
    assert {"hr@5", "ndcg@10", "new_brand@5"} <= scored["metrics"].keys()
    assert 0 < scored["metrics"]["new_brand@5"] < 1
    compared = json.loads(command(work, "compare", "run", "run", "--stage-a", "undistilled", "--trust-code", "--json"))
    assert "new_brand@5" in json.dumps(compared)
    assert "NewBrand@5" in (work / "run" / "report.html").read_text(encoding="utf-8")
    # Served where none of the types can be imported.
    history, at = "i1,i14", ["--times", f"{START},{START + 40_000}", "--now", str(START + 50_000)]
    answer = json.loads(command(tmp_path, "recommend", str(exported), "--history", history, *at, "--json"))
    assert len(answer["recommendations"]) == 10


def test_python_gives_the_same_weights_as_the_command_line(in_work: Path, tmp_path: Path) -> None:
    run = settings_in_python(in_work).fit(Dataset.load(in_work / "data"), tmp_path / "run")
    other = Run.open(in_work / "run", trust_code=True)
    assert list(run.record.stages) == list(other.record.stages)
    for stage in run.record.stages:
        ours, theirs = run.weights_of(stage), other.weights_of(stage)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), stage


def test_an_export_answers_by_http_as_the_run_does(in_work: Path, exported: Path, tmp_path: Path) -> None:
    run = Run.open(in_work / "run", trust_code=True)
    history, times, now = ["i1", "i14", "i30"], [START, START + 9_000, START + 80_000], START + 200_000
    expected = run.recommender().recommend(history, times=times, now=now)
    # In a folder where nobody finds the types.
    command = [sys.executable, "-m", "llmd4rec", "serve", str(exported), "--port", "0"]
    with subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as service:
        assert service.stdout is not None
        address = next(found.group() for line in service.stdout if (found := re.search(r"http://[^\s/]+", line)))
        status, answered = post(address, {"history": history, "times": times, "now": now})
        refused, why = post(address, {"history": history})
        service.terminate()
    assert status == 200
    assert [item["item_id"] for item in answered["items"]] == [item.item_id for item in expected.items]
    assert refused == 422
    assert "times" in json.dumps(why)


def post(address: str, body: dict[str, Any]) -> tuple[int, Any]:
    """Status and JSON of a request for recommendations."""
    request = urllib.request.Request(
        address + "/v1/recommend", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_a_stopped_training_goes_on_to_the_same_weights(work: Path, tmp_path: Path) -> None:
    for name in ("my_types.py", "prices.csv", "settings.yaml"):
        shutil.copy(work / name, tmp_path)
    arguments = ["train", "-d", str(work / "data"), "-r", "run", "settings.yaml"]
    begun = start(call_command, arguments, tmp_path, tmp_path)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("run/checkpoints/teacher-1/training/best-*")):
        assert begun.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(begun.pid, signal.SIGINT)
    begun.join(60)
    assert begun.exitcode == 130
    command(tmp_path, *arguments)
    ours, theirs = (Run.open(folder / "run", trust_code=True) for folder in (tmp_path, work))
    for stage in theirs.record.stages:
        pairs = zip(ours.weights_of(stage).values(), theirs.weights_of(stage).values(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs), stage


# ---- whose code is run ------------------------------------------------------------------------------------------
def test_a_run_of_others_imports_nothing_unless_it_is_trusted(work: Path, tmp_path: Path) -> None:
    shutil.copytree(work / "run", tmp_path / "run")
    shutil.copytree(work / "data", tmp_path / "data")
    (tmp_path / "my_types.py").write_text("open('imported', 'w').close()\nraise SystemExit(3)\n", encoding="utf-8")
    said = command(tmp_path, "evaluate", "run", "-d", "data", fails=True)
    assert "--trust-code" in said
    assert "my_types" in said
    assert not (tmp_path / "imported").exists()


def test_a_class_that_is_imported_already_needs_no_trust(work: Path) -> None:
    assert isinstance(Run.open(work / "run").settings.model, Fading)


# ---- each of them -----------------------------------------------------------------------------------------------
def test_the_hour_is_learned_where_it_is_read_and_nowhere_else(shop: Path) -> None:
    data = Dataset.load(shop / "data")
    ndcg = {}
    for features in ((), (HourOfDay(),)):
        model = SASRec(dim=16, layers=1, item_features="id", event_features=features, dropout=0.1)
        training = {"model": {"epochs": 6, "batch": 128, "learning_rate": 0.01, "ema": 0.9}}
        run = Distillation(model=model, rounds=0, threads=1, training=training).fit(data)
        found = Evaluator(metrics=[NDCG(10)], filter_seen=False).evaluate(run, data)
        ndcg[bool(features)] = found.metrics["ndcg@10"]
    # Any of 48 items, or any of the 12 of this hour: the mean gain of the first ten places.
    gain = sum(1 / math.log2(1 + rank) for rank in range(1, 11))
    assert ndcg[False] == pytest.approx(gain / ITEMS, abs=0.05)
    assert ndcg[True] == pytest.approx(gain / (ITEMS / 4), abs=0.08)


def test_the_hinge_has_the_gradient_of_its_value() -> None:
    torch.manual_seed(0)
    shapes = ((5, 3), (5, 3), (4, 3))
    states, true, drawn = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    hinge: Callable[..., Tensor] = HingeWalk.apply
    assert torch.autograd.gradcheck(lambda *given: hinge(*given, 0.5), (states, true, drawn))


def test_new_brands_by_hand(shop: Path) -> None:
    data = Dataset.load(shop / "data")
    run = Distillation(model=Fading(dim=8), rounds=0, threads=1, training={"model": {"epochs": 0}}).fit(data)
    found = Evaluator(metrics=[NewBrand(3)]).evaluate(run, data)
    brand = data.catalogue["brand"].to_list()
    expected = []
    for top, position in zip(found.top, data.test, strict=True):
        had = {brand[item] for item in data.history(int(position))} - {None}
        shown = [brand[item] for item in top[:3] if brand[item] is not None]
        expected += [np.mean([each not in had for each in shown])] if shown and had else []
    assert found.metrics["new_brand@3"] == pytest.approx(np.mean(expected))


def test_prices_move_items_of_like_price_together(shop: Path) -> None:
    data = Dataset.load(shop / "data")
    prices = Prices(path=shop / "prices.csv").of(data, None)
    assert prices.shape == (ITEMS, 2)
    assert prices[:, 1].sum() == sum(int(item.removeprefix("i")) % 7 != 0 for item in data.item_ids)
    assert prices[prices[:, 1] == 1, 0].mean() == pytest.approx(0, abs=1e-6)


def test_a_missing_module_is_named_with_what_to_do(work: Path, tmp_path: Path) -> None:
    said = command(work, "train", "-d", "data", "-r", str(tmp_path / "run"), "--set", "model=no_such:Model", fails=True)
    assert "no_such" in said
    assert "PYTHONPATH" in said
    with pytest.raises(RunError, match="trust"):
        Run.open(_run_that_names(work, tmp_path, "no_such:Model"))


def _run_that_names(work: Path, folder: Path, name: str) -> Path:
    run = Path(shutil.copytree(work / "run", folder / "hostile"))
    config = (run / "config.yaml").read_text(encoding="utf-8")
    (run / "config.yaml").write_text(config.replace("my_types:Fading", name), encoding="utf-8")
    return run


def test_the_docs_show_these_types_as_they_are() -> None:
    page = (HERE.parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
    shown = re.findall(r"```python\n(.*?)\n```", page, re.DOTALL)
    code = (HERE / "my_types.py").read_text(encoding="utf-8")
    assert len(shown) == 6
    for block in shown:
        for part in block.split("\n\n\n"):
            assert part in code
    settings = re.findall(r"```yaml\n(.*?)\n```", page, re.DOTALL)
    for written in settings:
        check(Distillation, yaml.safe_load(written), "docs/extending.md")
