"""A training run to be stopped from outside; imported ahead, so that starting one takes no seconds."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import Any

import peft  # noqa: F401
import torch
import transformers.models.llama.modeling_llama  # noqa: F401
from settings_of import parse_settings
from torch.optim.optimizer import register_optimizer_step_post_hook

import llmd4rec
from llmd4rec.cli import main
from llmd4rec.data.dataset import Dataset
from llmd4rec.errors import LLMD4RecError
from llmd4rec.report.from_run import write_run_report
from llmd4rec.runs import results
from llmd4rec.training.backends.torch_distributed import TorchDistributedBackend, init_distributed

torch.set_num_threads(1)

#: What Python reports of a process's dealings with files before each of them.
FILE_EVENTS = {
    "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree", "tempfile.mkstemp",
    "tempfile.mkdtemp",
}  # fmt: skip
#: Where tests are; what commands must not import from.
TESTS = str(Path(__file__).parent)
#: Exit code of a run that says that the disk is full.
DISK_FULL = 28


def nothing() -> None:
    """Only starts the server that processes are forked from, which takes as long as the imports."""


def train(settings: dict[str, Any], data: Path, folder: Path, errors: Path | None = None) -> None:
    """Exits with 130 when it was interrupted, as the command does.

    Args:
        errors: where standard error goes.
    """
    if errors is not None:
        sys.stderr = errors.open("w", encoding="utf-8")
    try:
        parse_settings(settings).fit(Dataset.load(data), folder)
    except KeyboardInterrupt:
        os._exit(130)


def train_as(rank: int, count: int, port: int, settings: dict[str, Any], data: Path, folder: Path) -> None:
    """As one of `count` processes, as `torchrun` would start them."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    train(settings, data, folder)


def train_with_ddp(rank: int, count: int, port: int, settings: dict[str, Any], data: Path, folder: Path) -> None:
    """As :func:`train_as`, with gradients left to DistributedDataParallel."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    init_distributed()
    parse_settings(settings).fit(Dataset.load(data), folder, backend=TorchDistributedBackend(ddp=True))


def train_and_score(
    settings: dict[str, Any], data: Path, folder: Path, die_at: int = 0, count: Path | None = None
) -> None:
    """As the command does it, up to the report; exits with :data:`DISK_FULL` where that is what it says.

    Args:
        die_at: kill this process at so many events, which are its steps and whatever it does with files; 0: never.
        count: where to write how many there were.
    """
    events = [0]

    def happens(*_: Any) -> None:
        events[0] += 1
        if events[0] == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event in FILE_EVENTS or (event == "open" and str(arguments[0]).startswith(str(folder))):
            happens()

    register_optimizer_step_post_hook(happens)
    sys.addaudithook(watch)
    dataset = Dataset.load(data)
    try:
        run = parse_settings(settings).fit(dataset, folder)
        write_run_report(run, dataset, results.score_run(run, dataset))
    except (LLMD4RecError, OSError) as error:
        # As the command does, which has one message for both.
        full = "the disk is full" in str(error) or (isinstance(error, OSError) and error.errno == errno.ENOSPC)
        print(error, file=sys.stderr)
        os._exit(DISK_FULL if full else 1)
    if count is not None:
        count.write_text(str(events[0]))


def print_into(folder: Path) -> None:
    """What this process prints goes into the folder's `out` and `err`."""
    for number, name in ((1, "out"), (2, "err")):
        file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)


def work_in(folder: Path) -> None:
    """Makes this the working directory, and the only place beside the installed packages to import from."""
    os.chdir(folder)
    sys.path[:] = ["", *(path for path in sys.path if path and not path.startswith(TESTS))]
    os.environ["PYTHONPATH"] = str(Path(llmd4rec.__file__ or "").parents[1])


def call_command(arguments: list[str], folder: Path, work: Path | None = None) -> None:
    """The command line; what it prints is in the folder's `out` and `err`.

    Args:
        work: see :func:`work_in`; None: the working directory of the tests.
    """
    print_into(folder)
    if work is not None:
        work_in(work)
    sys.argv = ["llmd4rec", *arguments]
    main()


def run_code(code: str, folder: Path) -> None:
    """Python code as a script in the folder, where `out` and `err` have what it prints; nothing is downloaded."""
    print_into(folder)
    work_in(folder)
    os.environ["HF_HUB_OFFLINE"] = "1"
    exec(code, {"__name__": "__main__"})


def start(target: Any, *arguments: Any) -> Any:
    """Calls a function of this module in a process forked from one that has done nothing but the imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *([path] if path else [])])
    try:  # the server takes its path from here
        process = context.Process(target=target, args=arguments)
        process.start()
    finally:
        if path is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = path
    return process


def outcome(folder: Path) -> dict[str, Any]:
    """Everything a run leaves, without the times.

    Also without what a killed evaluation has left half-done: another one may be at work, so it goes only after an hour.
    """
    record = json.loads((folder / "run.json").read_text())
    for stage in record["stages"].values():
        del stage["seconds"]
    logs = {
        path: [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted(folder.glob("checkpoints/*/metrics.jsonl"))
    }
    files = [path for name in ("checkpoints", "evaluation", "teachers") for path in sorted(folder.glob(f"{name}/**/*"))]
    files = [path for path in files if not (path.parent.name.startswith(".") and "evaluation" in path.parts)]
    return {
        "record": record,
        "log": {
            path.parent.name: [{key: value for key, value in line.items() if key != "seconds"} for line in lines]
            for path, lines in logs.items()
        },
        **{str(path.relative_to(folder)): path.read_bytes() for path in files if path.is_file() and path not in logs},
    }
