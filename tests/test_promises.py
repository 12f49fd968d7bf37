"""Every promise in docs/promises.md names tests, and every test named there exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "promises.md"
_NAMED = re.compile(r"`(tests/[\w/.]+\.py)(?:::(\w+))?`")


def rows() -> list[tuple[str, str]]:
    """(promise, its tests) of every line of every table."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [(first, rest[-1]) for first, *rest in cells if first not in ("promise", "---")]


def missing(tests: str) -> list[str]:
    """What of the tests named does not exist; all of it if it names none."""
    named = _NAMED.findall(tests)
    return [f"{path}::{name}" for path, name in named if not _exists(ROOT / path, name)] if named else [tests]


def _exists(path: Path, name: str) -> bool:
    if not path.is_file():
        return False
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tests = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test")}
    return name in tests if name else bool(tests)


@pytest.mark.parametrize(("promise", "tests"), rows())
def test_the_tests_of_a_promise_exist(promise: str, tests: str) -> None:
    assert missing(tests) == []
    # Nothing else stands there, such as a test that was mistyped.
    assert re.sub(r"[\s,]", "", _NAMED.sub("", tests)) == ""


def test_each_part_promises_something() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for part in ("Training", "Data", "Numbers", "Long runs", "Supply"):
        assert f"\n## {part}\n" in text
    assert len(rows()) >= 20


@pytest.mark.parametrize(
    "tests", ["", "soon", "`tests/test_files.py::test_none`", "`tests/no.py::test_x`", "`tests/no.py`"]
)
def test_a_promise_without_a_test_is_noticed(tests: str) -> None:
    assert missing(tests)
