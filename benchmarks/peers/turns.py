"""The peer's side of a measurement: it trains when told to, so that its turns can alternate with those of others.

A worker runs its library's own training loop and calls :meth:`Turns.stepped` behind every step. When a turn is over it
stays inside that call until the next order arrives on standard input, one JSON object a line:

    {"seconds": s}      train until s seconds have passed  →  {"seconds", "steps", "positions"}
    {"states": path}    write users' states and item table →  {}

This file is read by the peers' environments too: it imports nothing but what they all have.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

#: Gives states [U, d] behind the training part of each user, item table [I, d], and which items [I] the model knows.
States = Callable[[], tuple[np.ndarray, np.ndarray, np.ndarray]]


class Turns:
    """The conversation with the measuring process."""

    def __init__(self) -> None:
        # What the libraries print must not mix with the answers.
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._states: States | None = None
        self._limit = 0.0

    def settings(self) -> dict[str, Any]:
        """The first line: what to train."""
        return self._read()

    def begin(self, states: States, **facts: Any) -> None:
        """Says that everything is set up, and waits for the first turn."""
        self._states = states
        self._answer(facts)
        self._wait()

    def stepped(self, positions: int) -> None:
        """To be called behind every training step.

        Args:
            positions: how many next items the step was trained on.
        """
        self._steps, self._positions = self._steps + 1, self._positions + positions
        seconds = time.perf_counter() - self._started
        if seconds >= self._limit:
            self._answer({"seconds": seconds, "steps": self._steps, "positions": self._positions})
            self._wait()

    def _wait(self) -> None:
        while "states" in (order := self._read()):
            assert self._states is not None
            states_UD, table_ID, known_I = self._states()
            np.savez(order["states"], states=states_UD, table=table_ID, known=known_I)
            self._answer({})
        self._limit, self._steps, self._positions = order["seconds"], 0, 0
        self._started = time.perf_counter()

    def _read(self) -> dict[str, Any]:
        line = sys.stdin.readline()
        if not line:
            sys.exit()
        return json.loads(line)

    def _answer(self, answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=self._answers, flush=True)
