"""What the Makefile installs with: pip's configuration, as uv understands it."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def install() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install", ROOT / "supply" / "install.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def settings_with(install: ModuleType, folder: Path, environment: Mapping[str, str]) -> dict[str, list[str]]:
    """What another process, with that configuration and environment, reads of pip."""
    (folder / "pip.conf").write_text(
        "[global]\nindex-url = https://mirror.example/simple\nextra-index-url =\n    https://one.example/simple\n"
        "    https://two.example/simple\n[download]\nno-index = true\n"
    )
    code = f"import sys, json; sys.path.insert(0, {str(ROOT / 'supply')!r}); import install; "
    code += "print(json.dumps(install.pip_settings()))"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    own = {**kept, "PIP_CONFIG_FILE": str(folder / "pip.conf"), **environment}
    found = subprocess.run([sys.executable, "-c", code], env=own, capture_output=True, text=True, check=True)
    settings: dict[str, list[str]] = json.loads(found.stdout)
    return settings


def test_where_pip_looks_uv_looks_too(install: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_with(install, tmp_path, {"PIP_FIND_LINKS": "/wheels /more"})
    for name in list(os.environ):
        if name.startswith("UV_"):
            monkeypatch.delenv(name)
    found = install.for_uv(settings)
    assert found["UV_DEFAULT_INDEX"] == "https://mirror.example/simple"
    assert {"https://one.example/simple", "https://two.example/simple"} <= set(found["UV_INDEX"].split())
    assert found["UV_FIND_LINKS"].split(",")[-2:] == ["/wheels", "/more"]
    assert "UV_NO_INDEX" not in found  # that was said of `pip download`


def test_what_was_said_to_uv_itself_stays(install: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://own.example/simple")
    assert "UV_DEFAULT_INDEX" not in install.for_uv({"index-url": ["https://mirror.example/simple"]})
