"""Imports of the lower packages go one way, and none hides in a function."""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import llmd4rec

ROOT = Path(llmd4rec.__file__).parent
LOWER = ("errors", "log", "io", "config", "data")


def modules() -> dict[str, Path]:
    paths = [path for name in LOWER for path in [ROOT / f"{name}.py", *(ROOT / name).rglob("*.py")] if path.is_file()]
    names = (".".join(("llmd4rec", *path.relative_to(ROOT).with_suffix("").parts)) for path in paths)
    return {name.removesuffix(".__init__"): path for name, path in zip(names, paths, strict=True)}


def imports(node: ast.AST) -> list[tuple[str, str]]:
    """Module and name of each import below a node, those for types alone apart."""
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return []
    own = [(node.module or "", alias.name) for alias in node.names] if isinstance(node, ast.ImportFrom) else []
    return own + [each for child in ast.iter_child_nodes(node) for each in imports(child)]


def test_imports_of_the_lower_packages_go_one_way() -> None:
    known = modules()
    graph: dict[str, set[str]] = {}
    for name, path in known.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found = [(module, what) for module, what in imports(tree) if module.split(".")[0] == "llmd4rec"]
        graph[name] = {full if (full := f"{module}.{what}") in known else module for module, what in found}
        assert graph[name] <= known.keys(), f"{name} imports what stands above it"
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        inside = [module for function in functions for module, _ in imports(function)]
        assert not [module for module in inside if module.startswith("llmd4rec")], f"{name} imports in a function"
    assert len(graph) > 40
    graphlib.TopologicalSorter(graph).prepare()  # raises where there is a circle
