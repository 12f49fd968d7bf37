"""What PyTorch reads from the environment when it starts, for a process that this package starts."""

from __future__ import annotations

import os

#: The command line's settings; each gives way to what the environment has.
#:
#: - Threads that spin while they wait for each other take the core that another program leaves them: beside one busy
#:   neighbour two of them are half as fast as one thread alone. Asleep they are as fast as one, and on an idle machine
#:   as fast as when they spin (`benchmarks/neighbours.py`).
#: - Large tensors in pages of 2 MB: Linux hands out pages of 4 KB one by one, and a training step takes and frees
#:   megabytes all the time. PyTorch asks for large ones only where it is told to; no other system knows them.
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "THP_MEM_ALLOC_ENABLE": "1"}


def set_environment() -> None:
    """Sets what is not set; to be called before PyTorch is imported."""
    for name, value in ENVIRONMENT.items():
        if name == "OMP_WAIT_POLICY" and "GOMP_SPINCOUNT" in os.environ:  # another way to say it
            continue
        os.environ.setdefault(name, value)
