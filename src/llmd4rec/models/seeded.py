"""Initial weights that depend on nothing but their seed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within, random numbers on the CPU are those of a seed; afterwards they go on as before.

    `torch.manual_seed` would change those of every other device too, for good, and takes a stack trace for each.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
