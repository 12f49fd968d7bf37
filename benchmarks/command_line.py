"""How long the commands take to start: their help, and importing the package, over an empty Python's start.

Each is a process of its own, started as a person starts it; they take turns. A second look lists which of the heavy
packages, that training needs and help does not, are imported on the way (`python -X importtime`).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable

from harness import Figure, alternate, best, median, report

HEAVY = ("torch", "transformers", "polars", "scipy", "numpy", "pyarrow", "onnx", "peft")
EMPTY = [sys.executable, "-c", "pass"]
#: Started as the `llmd4rec` script does, which need not lie on the path.
COMMAND = [sys.executable, "-c", "import sys; sys.argv[0] = 'llmd4rec'; from llmd4rec.cli import main; main()"]
WAYS = {
    "an empty Python": EMPTY,
    "import llmd4rec": [sys.executable, "-c", "import llmd4rec"],
    "import torch": [sys.executable, "-c", "import torch"],
    "llmd4rec --help": [*COMMAND, "--help"],
    "llmd4rec train --help": [*COMMAND, "train", "--help"],
    "llmd4rec prepare --help": [*COMMAND, "prepare", "--help"],
}
TARGET = 0.4


def main() -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="starts of each, after one to warm up")
    arguments = parser.parse_args()

    ways: dict[str, Callable[[], object]] = {
        name: lambda command=command: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        for name, command in WAYS.items()
    }
    seconds = alternate(ways, repeats=arguments.repeats)
    floor = best(seconds["an empty Python"])
    figures = []
    for name, taken in seconds.items():
        aimed = name.endswith("--help")
        figures.append(
            Figure(
                name,
                median(taken),
                "s",
                f"< {TARGET} s" if aimed else "",
                median(taken) < TARGET if aimed else None,
                f"{best(taken) - floor:.3f} s over an empty Python at best" if name != "an empty Python" else "",
            )
        )
    notes = [f"{name} imports {listed(heavy(command)) or 'none'} of {listed(HEAVY)}" for name, command in WAYS.items()]
    report("command_line", "Start of the commands", figures, [note for note in notes if "llmd4rec" in note])


def heavy(command: list[str]) -> list[str]:
    """Which of the heavy packages a command imports."""
    ran = subprocess.run([command[0], "-X", "importtime", *command[1:]], check=True, capture_output=True, text=True)
    # import time: self [us] | cumulative | imported package
    imported = {line.rpartition("|")[2].strip() for line in ran.stderr.splitlines() if line.startswith("import time:")}
    return [name for name in HEAVY if name in imported]


def listed(names: list[str] | tuple[str, ...]) -> str:
    """Names for a sentence."""
    return ", ".join(names)


if __name__ == "__main__":
    main()
