"""What is installed without the extra `train`: serving works, training says what to install."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from .store import Store

ROOT = Path(__file__).parents[2]
TRAIN = ("torch", "transformers", "peft", "gguf", "safetensors", "pyarrow", "filelock", "scipy", "onnx", "onnxscript")
#: Makes packages look as if they were not installed, also to importlib.metadata's users.
HOOK = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
"""


def without(packages: tuple[str, ...], code: str, *arguments: object, **more: Any) -> subprocess.CompletedProcess[str]:
    program = f"ABSENT = {packages!r}\n{HOOK}\n{code}"
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **more)


COMMAND = "sys.argv[0] = 'llmd4rec'\nfrom llmd4rec.cli import main\nmain()"


def test_an_export_answers_without_pytorch(store: Store) -> None:
    """New items by their text too, through the exported sentence encoder; no part of training is loaded."""
    code = """
import json
from llmd4rec import Recommender, Filters, NewItem
recommender = Recommender.load(sys.argv[1])
recommender.add_items([NewItem("new", "red film", {"price": 50})])
filters = Filters(any_of={"category": "films"})
answer = recommender.recommend(["i3", "new", "who?"], 5, explain=True, diversity=0.1, filters=filters)
loaded = sorted(set(ABSENT) & set(sys.modules))
print(json.dumps({"ids": [i.item_id for i in answer.items], "unknown": answer.unknown, "loaded": loaded}))
"""
    ran = without(TRAIN, code, store.export)
    assert ran.returncode == 0, ran.stderr
    from llmd4rec import Filters, NewItem, Recommender

    recommender = Recommender.load(store.export)
    recommender.add_items([NewItem("new", "red film", {"price": 50})])
    answer = recommender.recommend(["i3", "new"], 5, diversity=0.1, filters=Filters(any_of={"category": "films"}))
    expected = {"ids": [item.item_id for item in answer.items], "unknown": ["who?"], "loaded": []}
    assert json.loads(ran.stdout) == expected


def test_the_command_line_without_pytorch(store: Store, tmp_path: Path) -> None:
    out = tmp_path / "recs.csv"
    ran = without(TRAIN, COMMAND, "recommend", store.export, "--data", store.data.path, "--users", "all", "--out", out)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert len(out.read_text().splitlines()) == 1 + 40 * 10
    for command in (["train", "-d", store.data.path, "-r", tmp_path / "run"], ["evaluate", store.run.folder]):
        ran = without(TRAIN, COMMAND, *command)
        assert ran.returncode == 2
        assert "is not installed\n  Install it with: pip install 'llmd4rec[train]'" in ran.stderr
        assert "Traceback" not in ran.stderr


#: What is absent, what is asked for, and the extra that has it; none of them imports what a later one lacks.
LACKING = [
    ("torch", "from llmd4rec import SASRec", "train"),
    ("onnxruntime", "from llmd4rec import Recommender\nRecommender.load(sys.argv[1])", "serve"),
    ("huggingface_hub", "from llmd4rec import Recommender\nRecommender.load('owner/name')", "serve"),
    ("faiss", "from llmd4rec import Recommender\nRecommender.load(sys.argv[1], index='approximate')", "large"),
    (
        "tokenizers",
        "from llmd4rec import Recommender, NewItem\nRecommender.load(sys.argv[1]).add_items([NewItem('a', 'red')])",
        "serve",
    ),
]


@pytest.fixture(scope="module")
def messages(store: Store) -> dict[str, str]:
    """What is said where each of them is absent, from one process: starting one takes longer than all of them."""
    code = f"""
import json
messages = {{}}
for absent, code, _ in {LACKING!r}:
    assert absent not in sys.modules
    ABSENT = (absent,)
    try:
        exec(code)
    except Exception as error:
        messages[absent] = str(error)
print(json.dumps(messages))
"""
    ran = without((), code, store.export)
    assert ran.returncode == 0, ran.stderr
    found: dict[str, str] = json.loads(ran.stdout)
    return found


@pytest.mark.parametrize(("absent", "extra"), [(absent, extra) for absent, _, extra in LACKING])
def test_what_is_missing_is_named_with_its_extra(messages: dict[str, str], absent: str, extra: str) -> None:
    last = messages[absent].strip().splitlines()[-2:]
    assert f"this needs the package {absent}, which is not installed" in last[0]
    assert last[1] == f"  Install it with: pip install 'llmd4rec[{extra}]'"


def test_the_base_says_of_every_package_it_imports_lazily_which_extra_has_it() -> None:
    """pyproject.toml and the list behind the messages agree."""
    from llmd4rec.extras import EXTRA_OF

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    modules = {"faiss-cpu": "faiss", "prometheus-client": "prometheus_client"}
    for extra in ("train", "serve", "large"):
        for line in extras[extra]:
            name = re.split(r"[^\w-]", line)[0]
            assert EXTRA_OF[modules.get(name, name)] in (extra, "serve"), line
    assert {EXTRA_OF[name] for name in TRAIN} == {"train"}


def needed(extra: str) -> set[str]:
    """Distributions that installing this package with the extra brings, as they and it declare what they need."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found: set[str] = set()
    asked: set[tuple[str, str]] = set()
    left = [Requirement(line) for line in project["dependencies"] + project["optional-dependencies"][extra]]
    while left:
        requirement = left.pop()
        name = canonicalize_name(requirement.name)
        for part in {"", *requirement.extras}:
            if (name, part) in asked or not (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
                continue
            asked.add((name, part))
            found.add(name)
            for line in metadata.requires(name) or []:
                other = Requirement(line)
                if other.marker is None or other.marker.evaluate({"extra": part}):
                    other.marker = None
                    left.append(other)
    return found


@pytest.mark.slow
def test_an_environment_with_the_serving_extra_only(store: Store, tmp_path: Path) -> None:
    """Holding the package as it is built, and of what is installed here only what the extra declares."""
    if os.environ.get("LLMD4REC_OFFLINE"):
        pytest.skip("building the package needs the package index")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("src", "pyproject.toml", "README.md", "LICENSE"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, source / name)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(subprocess.run([python, "-c", where], capture_output=True, text=True, check=True).stdout.strip())
    names = needed("serve")
    assert {"numpy", "onnxruntime", "uvicorn"} <= names
    for name in names:
        for top in {file.parts[0] for file in metadata.files(name) or []} - {"..", "__pycache__"}:
            link = site / top
            if not link.exists():
                link.symlink_to(str(metadata.distribution(name).locate_file(top)))
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(source)]
    subprocess.run(install, check=True, cwd=tmp_path)
    code = (
        "import importlib.util as u, sys; import llmd4rec; from llmd4rec import Recommender, NewItem\n"
        "e = Recommender.load(sys.argv[1]); e.add_items([NewItem('n', 'red')])\n"
        "found = [n for n in ('torch', 'transformers', 'pyarrow') if u.find_spec(n)]\n"
        "print(len(e.recommend(['i3'], 5).items), found)\n"
        "print(llmd4rec.__file__)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ran = subprocess.run(
        [python, "-c", code, store.export], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == f"5 []\n{site / 'llmd4rec' / '__init__.py'}\n"
