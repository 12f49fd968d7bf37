"""What is installed is what was pinned, and an audit that could not look anything up does not say that all is well."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


def pins(text: str) -> dict[str, str]:
    """Name → version; names as package indices compare them."""
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s\\]+)", text, flags=re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


def test_the_lock_holds_every_pin_with_hashes() -> None:
    lock = (ROOT / "supply" / "requirements.lock").read_text()
    pinned = pins((ROOT / "constraints.txt").read_text())
    assert pinned.pop("torch")
    assert pins(lock) == pinned, "constraints.txt has changed: run `make lock`"
    for block in re.split(r"\n(?=[A-Za-z0-9])", lock.rstrip())[1:]:
        assert re.fullmatch(r"\S+==\S+( \\\n +--hash=sha256:[0-9a-f]{64})+", block), block.splitlines()[0]


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", ROOT / "supply" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CLEAN = {"name": "a", "version": "1.0", "vulns": []}
KNOWN = {"name": "b", "version": "2.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.1"], "description": "bad"}]}
SKIPPED = {"name": "c", "skip_reason": "Dependency not found"}


@pytest.mark.parametrize(
    ("dependencies", "status", "words"),
    [
        ([CLEAN], 0, "1 packages looked up, nothing is known"),
        ([CLEAN, KNOWN], 1, "b 2.0: PYSEC-1, fixed in 2.1"),
        ([SKIPPED, SKIPPED], 2, "NOT AUDITED: 2 of 2"),
        ([CLEAN, SKIPPED], 2, "NOT AUDITED: 1 of 2"),
        ([KNOWN, SKIPPED], 1, "NOT AUDITED: 1 of 2"),
        ([], 2, "NOT AUDITED"),
    ],
)
def test_an_audit_is_clean_only_if_everything_was_looked_up(
    audit: ModuleType, dependencies: list[dict[str, object]], status: int, words: str
) -> None:
    code, lines = audit.verdict(dependencies)
    assert code == status
    assert words in "\n".join(lines)
    assert ("nothing is known" in "\n".join(lines)) == (status == 0)


def test_an_audit_without_a_network_says_so(audit: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """This interpreter has no pip-audit, or its database cannot be reached: no JSON comes back in either case."""
    assert audit.main("constraints.txt", python="/bin/false") == 2
    assert "NOT AUDITED" in capsys.readouterr().out
