"""A training step beside busy neighbours: one thread, and as many as there are cores that wait for each other in
several ways.

    python benchmarks/neighbours.py [--busy 0 1 2] [--rounds 5] [--steps 3]

A neighbour is a process that does nothing but count. How threads wait is read from the environment when a process
starts, so that each way has a process of its own; they take turns, and all but one sleep. What is aimed at: beside a
neighbour, threads as the command line sets them up are not slower than one thread alone.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator

from harness import Figure, machine, report

from llmd4rec.startup import ENVIRONMENT

ONE, OURS = "1 thread", "all threads, as the command line has it"
WAYS: dict[str, tuple[bool, dict[str, str]]] = {
    ONE: (False, {}),
    OURS: (True, ENVIRONMENT),
    "all threads, PyTorch's own": (True, {}),
    "all threads, asleep while they wait": (True, {"OMP_WAIT_POLICY": "PASSIVE"}),
}
#: Trains a step of the model on Beauty's catalogue as often as each line says; answers with the seconds.
WORKER = """
import sys, time
import torch
from llmd4rec.data.batching import SequenceBatch
from llmd4rec.losses.softmax import ranking_loss
from llmd4rec.models.sequential.sasrec import SASRec
torch.set_num_threads(int(sys.argv[1]))
torch.manual_seed(0)
model = SASRec().build(12101, seed=0)
batch = SequenceBatch(torch.randint(12101, (200, 8)), torch.full((200,), 8))
target_N = torch.randint(12101, (1600,))
optimizer = torch.optim.AdamW(model.parameters(), fused=True)
def step():
    optimizer.zero_grad()
    ranking_loss(model.states(batch).flatten(0, 1), model.item_table(), target_N).loss.backward()
    optimizer.step()
step()
print("ready", flush=True)
for line in sys.stdin:
    begun = time.perf_counter()
    for _ in range(int(line)):
        step()
    print(time.perf_counter() - begun, flush=True)
"""


class Worker:
    """A process that trains steps when it is asked to."""

    def __init__(self, threads: int, environment: dict[str, str]) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
        command = [sys.executable, "-c", WORKER, str(threads)]
        self.process = subprocess.Popen(
            command, env={**kept, **environment}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def answer(self) -> str:
        """Its next line."""
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def seconds(self, steps: int) -> float:
        """How long so many steps take."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        return float(self.answer())


@contextlib.contextmanager
def neighbours(count: int) -> Iterator[None]:
    """So many processes that count."""
    busy = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def main() -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", type=int, nargs="*", default=[0, 1, 2], help="how many neighbours")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each way")
    parser.add_argument("--steps", type=int, default=3, help="of a turn")
    arguments = parser.parse_args()
    cores = int(machine()["cores"])
    workers = {name: Worker(cores if every else 1, more) for name, (every, more) in WAYS.items()}
    figures = []
    try:
        for worker in workers.values():
            worker.answer()
        for busy in arguments.busy:
            took: dict[str, list[float]] = {name: [] for name in workers}
            with neighbours(busy):
                for _ in range(arguments.rounds):
                    for name, worker in workers.items():
                        took[name].append(worker.seconds(arguments.steps) / arguments.steps)
            usual = {name: statistics.median(each) for name, each in took.items()}
            for name, seconds in usual.items():
                against = seconds / usual[ONE]
                met = against <= 1 if name == OURS else None
                what, goal = f"{busy} neighbours: {name}", "≤ 1" if name == OURS else ""
                note = f"{1000 * seconds:.0f} ms a step; {1000 * min(took[name]):.0f} to {1000 * max(took[name]):.0f}"
                figures.append(Figure(what, against, "x", goal, met, note))
    finally:
        for worker in workers.values():
            worker.process.kill()
            worker.process.wait()
    notes = [f"{cores} cores; seconds of a step over those of one thread beside the same neighbours, medians of turns."]
    report("neighbours", "A training step beside busy neighbours", figures, notes)


if __name__ == "__main__":
    main()
