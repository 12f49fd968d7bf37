"""Independent stages side by side: each in a process of its own."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from llmd4rec.data.dataset import Dataset
from llmd4rec.distillation.plan import Stage, ready
from llmd4rec.errors import RunError
from llmd4rec.io.files import read_json
from llmd4rec.log import logger
from llmd4rec.runs.run import Run
from llmd4rec.training.runtime import Interrupted, deferred_signals

#: What a worker leaves in its stage's folder of checkpoints for the process that keeps the record.
RESULT = "result.json"
#: Seconds between two looks at the workers.
_PAUSE = 0.05


def run_side_by_side(
    run: Run, data: Dataset, stages: Sequence[Stage], jobs: int, record: Callable[[Stage, dict[str, Any]], None]
) -> None:
    """Trains stages in at most `jobs` processes at a time, each as soon as what it needs is done.

    Args:
        run: the open run; this process alone writes its record.
        data: the run's data set.
        stages: not done yet; what they need is done or among them.
        jobs: how many processes.
        record: called with each finished stage and its result.

    Raises:
        RunError: a stage failed. Those beside it are stopped with a checkpoint first.
        Interrupted: a signal came; each worker wrote a checkpoint.
    """
    threads = run.settings.threads or max(1, torch.get_num_threads() // jobs)
    logger.info(f"{jobs} stages side by side, {threads} thread{'s' if threads > 1 else ''} each")
    with _on_disk(data) as path, deferred_signals() as stop:
        left, workers = list(stages), dict[str, _Worker]()
        try:
            while left:
                runnable = [stage for stage in ready(run.plan, run.record.stages) if stage in left]
                for stage in runnable:
                    if len(workers) < jobs and stage.id not in workers:
                        logger.info(f"{stage.id}  begins")
                        workers[stage.id] = _Worker(run.folder, path, stage, threads)
                for worker in [worker for worker in workers.values() if worker.process.poll() is not None]:
                    del workers[worker.stage.id]
                    result = worker.result()
                    record(worker.stage, result)
                    value, seconds = result["validation"], result["seconds"]
                    label = run.settings.evaluation.selection.label
                    logger.info(f"{worker.stage.id}: validation {label} {value:.4f}, {seconds:.0f} s")
                    left.remove(worker.stage)
                if stop:
                    break
                time.sleep(_PAUSE)
        finally:
            for worker in workers.values():  # all are asked before the first is waited for
                worker.ask_to_stop()
            saved = all([worker.stop() for worker in workers.values()])
        if stop:
            try:
                stop.raise_if_set()
            except Interrupted as interrupted:
                raise Interrupted(interrupted.signal_number, saved=saved) from None


class _Worker:
    """A process that trains one stage."""

    def __init__(self, folder: Path, data: Path, stage: Stage, threads: int) -> None:
        self.stage, self.path = stage, folder / "checkpoints" / stage.id / RESULT
        arguments = [str(folder), str(data), stage.id, str(threads), json.dumps(sys.path)]
        command = [sys.executable, "-m", "llmd4rec.runs.worker", *arguments]
        # A session of its own: a Ctrl-C reaches it once, from this process.
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # closed with this process, however that ends: see `worker.py`
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._last: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        """Hands on what it prints: warnings, and how far it is."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if text := line.rstrip():
                self._last = [*self._last[-9:], text]
                print(text, file=sys.stderr, flush=True)

    def result(self) -> dict[str, Any]:
        """What the record will say of the stage.

        Raises:
            RunError: the worker failed.
        """
        self._reader.join()
        if self.process.returncode != 0:
            why = "\n  ".join(self._last) or "it said nothing"
            raise RunError(
                f"{self.stage.id} stopped with exit code {self.process.returncode}: {why}",
                "Correct what it says, then run the same command again: what is finished stays.",
            )
        result: dict[str, Any] = read_json(self.path)
        self.path.unlink()
        return result

    def ask_to_stop(self) -> None:
        """Lets the worker write a checkpoint and end; waits for nothing."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def stop(self) -> bool:
        """Waits for a worker that was asked to stop; whether it wrote a checkpoint."""
        self.process.wait()
        self._reader.join()
        return self.process.returncode in (0, 128 + signal.SIGTERM)


@contextlib.contextmanager
def _on_disk(data: Dataset) -> Iterator[Path]:
    """Where workers find the data set."""
    if data.path is not None:
        yield data.path
        return
    with tempfile.TemporaryDirectory(prefix="llmd4rec-") as folder:
        data.save(Path(folder, "data"))
        yield Path(folder, "data")
