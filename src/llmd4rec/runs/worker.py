"""`python -m llmd4rec.runs.worker RUN DATA STAGE THREADS PATH`: trains a stage of a run that another process holds."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

import torch

from llmd4rec.data.dataset import Dataset
from llmd4rec.distillation.plan import find
from llmd4rec.errors import LLMD4RecError
from llmd4rec.io.files import write_json
from llmd4rec.runs.jobs import RESULT
from llmd4rec.runs.pipeline import Pipeline
from llmd4rec.runs.run import Run
from llmd4rec.training.runtime import Interrupted


def main(folder: str, data: str, stage_id: str, threads: str, path: str) -> int:
    """Trains the stage and leaves its result beside its weights; the exit code."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(int(threads))
    # What that process has imported for these settings it was told to.
    sys.path += [entry for entry in json.loads(path) if entry not in sys.path]
    try:
        run = Run.open(folder, trust_code=True)
        result = Pipeline(run, Dataset.load(Path(data))).trained(find(run.plan, stage_id))
        write_json(run.checkpoint_of(stage_id) / RESULT, result)
    except LLMD4RecError as error:
        print(error)
        return error.exit_code
    except Interrupted as interrupted:
        return 128 + interrupted.signal_number
    return 0


def _end_with_parent() -> None:
    """Ends this process where the one that started it is gone, killed for example: nobody else keeps others out of the
    run, and the same command, given again, would train this stage a second time."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
