"""What a process that the command line starts has in its environment, and what PyTorch makes of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SMAPS = Path("/proc/self/smaps")

_LARGE_PAGES = """
from llmd4rec.startup import set_environment
set_environment()
import torch
tensor = torch.ones(1 << 23)
address, flags = tensor.data_ptr() + (1 << 24), []
for line in open("/proc/self/smaps"):
    first = line.split()[0]
    if "-" in first:
        low, high = (int(part, 16) for part in first.split("-"))
    elif first == "VmFlags:" and low <= address < high:
        flags = line.split()[1:]
print("hg" in flags)
"""


def _said(code: str, **environment: str) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("THP_", "GOMP_", "OMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**kept, **environment}, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.skipif(not SMAPS.exists(), reason="this system does not say which pages a process asked for")
def test_large_tensors_ask_for_large_pages() -> None:
    if "thp" not in SMAPS.read_text().lower():
        pytest.skip("a kernel without large pages")
    assert _said(_LARGE_PAGES) == "True"
    assert _said(_LARGE_PAGES, THP_MEM_ALLOC_ENABLE="0") == "False"


def test_what_the_environment_says_is_kept() -> None:
    show = (
        "import os; from llmd4rec.startup import set_environment; set_environment(); "
        "print(os.environ.get('OMP_WAIT_POLICY'), os.environ['THP_MEM_ALLOC_ENABLE'])"
    )
    assert _said(show) == "PASSIVE 1"
    assert _said(show, GOMP_SPINCOUNT="7") == "None 1"
    assert _said(show, OMP_WAIT_POLICY="active") == "active 1"
