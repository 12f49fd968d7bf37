"""What PyTorch reads from the environment when it starts, for a process that this package starts."""

from __future__ import annotations

import os

#: The command line's settings; each gives way to what the environment has.
#:
#: - Threads that spin for long while they wait make a shared machine many times slower; threads that sleep at once
#:   make an idle one a third slower. So: spin for some tens of microseconds.
#: - Large tensors in pages of 2 MB: Linux hands out pages of 4 KB one by one, and a training step takes and frees
#:   megabytes all the time. PyTorch asks for large ones only where it is told to; no other system knows them.
ENVIRONMENT = {"GOMP_SPINCOUNT": "30000", "THP_MEM_ALLOC_ENABLE": "1"}


def set_environment() -> None:
    """Sets what is not set; to be called before PyTorch is imported."""
    for name, value in ENVIRONMENT.items():
        if name == "GOMP_SPINCOUNT" and "OMP_WAIT_POLICY" in os.environ:  # the standard's own way to say it
            continue
        os.environ.setdefault(name, value)
