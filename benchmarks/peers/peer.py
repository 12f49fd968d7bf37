"""A peer, seen from the measuring process: its environment, the data it reads, and its turns."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

if TYPE_CHECKING:
    from llmd4rec.data.dataset import Dataset

HERE = Path(__file__).resolve().parent
ENVIRONMENTS = HERE.parent / ".peers"
DATA = HERE.parent / "out" / "peers"
#: The peers, by the name of their worker, and the version their requirements pin.
PEERS = {"recbole": "RecBole 1.2.1", "rectools": "RecTools 0.19.0"}


@dataclass(frozen=True)
class Network:
    """What a peer trains: the network's size, the loss and the optimiser's step.

    Attributes:
        batch_positions: next items per step, for whoever counts a batch so.
        batch_users: users per step that hold about as many, for whoever counts whole sequences.
        negatives: items drawn for a softmax over them; 0: a softmax over all items. Of RecTools only.
    """

    batch_positions: int
    batch_users: int
    dim: int = 64
    layers: int = 2
    heads: int = 2
    dropout: float = 0.5
    max_length: int = 50
    learning_rate: float = 1e-3
    negatives: int = 0
    seed: int = 0


#: What the authors of each library have published as their best for SASRec. RecBole has nothing for Beauty; this is its
#: search on Amazon Books (`benchmark/hyper/sequential/SASRec-amazon-books_seq.md`), with that data set's batches.
#: RecTools: "SASRec+SS" of eSASRec (arXiv 2508.06450) on Beauty, as `configs/paper/loo/s3_vanilla.yaml` of its
#: repository has it; the table of hyperparameters there says 64 factors. Batches are RecTools' default.
PUBLISHED = {
    "recbole": Network(1024, 128, learning_rate=3e-4),
    "rectools": Network(1024, 128, dim=256, layers=1, heads=1, dropout=0.2, negatives=256),
}


def install(name: str) -> Path:
    """The interpreter of the peer's own environment, which is made first where it is missing or outdated."""
    requirements, folder = HERE / f"requirements-{name}.txt", ENVIRONMENTS / name
    python, mark = folder / "bin" / "python", folder / "installed.txt"
    if not mark.exists() or mark.read_text(encoding="utf-8") != requirements.read_text(encoding="utf-8"):
        print(f"Installing {PEERS[name]} into an environment of its own (minutes)", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-r", str(requirements)], check=True)
        mark.write_text(requirements.read_text(encoding="utf-8"), encoding="utf-8")
    return python


def write_log(dataset: Dataset) -> Path:
    """The training part as RecBole's atomic files, which RecTools' worker reads as the table they are.

    Users and items are named by their index; the time is the place in the user's sequence, which a 32-bit float holds.
    The catalogue is given too, so that a library that can know an item without a training interaction does.
    """
    folder = DATA / dataset.fingerprint
    if not (folder / "log" / "log.inter").exists():
        (folder / "log").mkdir(parents=True, exist_ok=True)
        items = "item_id:token\n" + "".join(f"{item}\n" for item in range(dataset.num_items))
        (folder / "log" / "log.item").write_text(items, encoding="utf-8")
        lines = ["user_id:token\titem_id:token\ttimestamp:float\n"]
        for user, (start, end) in enumerate(zip(dataset.offsets[:-1], dataset.train_end, strict=True)):
            lines += [f"{user}\t{item}\t{place}\n" for place, item in enumerate(dataset.items[start:end])]
        temporary = folder / "log" / "log.inter.part"
        temporary.write_text("".join(lines), encoding="utf-8")
        temporary.rename(folder / "log" / "log.inter")
    return folder


class Peer:
    """A running worker. Use as a context manager: leaving it ends the process.

    Attributes:
        facts: what the worker said when it was ready: its positions per epoch and its parameters.
    """

    def __init__(self, name: str, dataset: Dataset, network: Network) -> None:
        python, folder = install(name), write_log(dataset)
        self.name, self._log = name, folder / f"{name}-{network.batch_positions}-{network.dim}.log"
        with self._log.open("w") as errors:
            self._process = subprocess.Popen(
                [str(python), str(HERE / f"{name}_worker.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=folder,
            )
        self.facts = self._ask({"folder": str(folder), "items": dataset.num_items, **asdict(network)})

    def train(self, seconds: float) -> dict[str, float]:
        """Trains for about so long; gives the exact seconds, steps and positions."""
        return self._ask({"seconds": seconds})

    def states(self) -> tuple[np.ndarray, np.ndarray]:
        """States [U, d + 1] behind each user's training part, and the item table [I, d + 1].

        The last column puts items that the peer does not know behind all others.
        """
        path = self._log.with_suffix(".npz")
        self._ask({"states": str(path)})
        with np.load(path) as arrays:
            states_UD, table_ID, known_I = arrays["states"], arrays["table"], arrays["known"]
        path.unlink()
        last = np.where(known_I, 0, -1e6).astype(np.float32)[:, None]
        return np.hstack([states_UD, np.ones((len(states_UD), 1), np.float32)]), np.hstack([table_ID, last])

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(json.dumps(order), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(f"{PEERS[self.name]} ended:\n{self._log.read_text(encoding='utf-8')[-2000:]}")
        return json.loads(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()


if __name__ == "__main__":
    for peer in sys.argv[1:] or PEERS:
        install(peer)
