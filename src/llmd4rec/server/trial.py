"""Whether an export can be served: it is asked once before anybody else asks it.

At the start the service itself does so, and ends with an error where that takes too long. Another export, which is to
take the place of one that is served, is first loaded and asked in a process of its own: it may run out of memory there,
crash, or never end, and the service goes on.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Protocol

from llmd4rec.errors import LLMD4RecError, RunError
from llmd4rec.inference.head import AGAIN, HEAD
from llmd4rec.inference.recommender import Recommender
from llmd4rec.inference.types import Answer, Request
from llmd4rec.log import logger
from llmd4rec.server.description import describe


class At(Protocol):
    """Is told which file of an export is in use, and how many times as long as usual it may take."""

    def __call__(self, file: str, times: int = 1) -> None:
        """Tells it."""


#: Bytes that loading may take, beside so many times those of the files.
MEMORY, TIMES_FILES = 2 << 30, 20
#: Texts on which tokenizers have taken for ever.
_TEXTS = ("a" * 64 + " b", "1" * 64 + ".", " " * 64 + "x", "Ab-" * 32, "ü🎬\u200b日本" * 8, "!?" * 32)


# ---- asking -----------------------------------------------------------------------------------------------------
def ask_once(recommender: Recommender, at: At = lambda file, times=1: None, *, texts: bool) -> None:
    """Asks for what a service is asked for. Nothing is changed, and what is made at the first request is there then.

    Args:
        recommender: of an export or a run.
        at: is told which file is in use.
        texts: whether texts are encoded too, as for new items.

    Raises:
        LLMD4RecError: an answer is empty or no number, or something cannot be asked at all; names the file.
    """
    at("catalogue.parquet")
    describe(recommender)
    (first,) = recommender.search("", 1)
    recommender.search(first.title, 1)
    for folder, one in (("", recommender), ("undistilled/", recommender.undistilled)):
        if one is None:
            continue
        at(f"{folder}encoder.onnx")
        for length, explain in ((1, True), (one.info.max_length, False)):
            history = [*islice(cycle([first.item_id]), length)]
            times = [0] * length if one.info.reads else None
            request = Request(history, 1, times=times, filter_seen=False, explain=explain)
            _check(one.recommend_many([request])[0], f"{one.info.name}/{folder}encoder.onnx")
        if one.catalogue.size > 1 and one.info.dim:
            at(f"{folder}item_table.npy")
            _check(one.similar(first.item_id, 1), f"{one.info.name}/{folder}item_table.npy")
    if texts and recommender.info.can_add == "text":
        at("text_encoder/encoder.onnx or tokenizer.json", 10)  # it is opened, too
        titles = [item.title for item in recommender.search("", 32) if item.title.strip()]
        vectors = recommender.text_vectors([*_TEXTS, *titles])
        if vectors is not None and not vectors.any():
            raise RunError(f"{recommender.info.name}/text_encoder/encoder.onnx gave no vector for any text", AGAIN)


def _check(answer: Answer, file: str) -> None:
    if not answer.items:
        raise RunError(f"{file} gave no recommendation for a history of the catalogue's items", AGAIN)
    scores = [item.score for item in answer.items]
    scores += [reason.effect for item in answer.items for reason in item.reasons or ()]
    if not all(map(math.isfinite, scores)):
        raise RunError(f"{file} gave scores that are NaN or infinite", AGAIN)


@contextlib.contextmanager
def limited(name: str, seconds: float, refuse: Callable[[RunError], None]) -> Iterator[At]:
    """Ends this process where one file of an export takes too much processor time; gives what is told the file.

    Args:
        name: of the export.
        seconds: for each file.
        refuse: is told why before the process ends.
    """
    done = threading.Event()
    state = "", time.process_time() + seconds

    def at(file: str, times: int = 1) -> None:
        nonlocal state
        state = file, time.process_time() + times * seconds

    def watch() -> None:
        while not done.wait(0.1):
            file, end = state
            if time.process_time() > end:
                what = f"{name}/{file} takes more than {seconds:g} s of processor time for its first answer"
                refuse(RunError(what, "Do not serve this export, or allow more with --timeout."))
                os._exit(LLMD4RecError.exit_code)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield at
    finally:
        done.set()
        thread.join()


# ---- in a process of its own ------------------------------------------------------------------------------------
class Trial:
    """Loads exports and asks them in processes of their own, one after the other.

    Args:
        seconds: in which all must be done.
        answer_seconds: of processor time, for the first answer of each file.
    """

    def __init__(self, seconds: float, answer_seconds: float) -> None:
        self._seconds, self._answer_seconds = seconds, answer_seconds
        self._process: subprocess.Popen[str] | None = None

    def run(self, folder: Path) -> str:
        """The fingerprint of an export that can be served.

        Raises:
            RunError: it cannot; names the file.
        """
        # One thread each: what a library reserves for its threads is counted as memory.
        threads = ("POLARS_MAX_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
        environment = {**os.environ, **dict.fromkeys(threads, "1"), "MALLOC_ARENA_MAX": "2"}
        limits = [str(folder), self._seconds, self._answer_seconds]
        self._process = process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, json.dumps(limits)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
            env=environment,
        )
        late = False
        try:
            said, _ = process.communicate(timeout=self._seconds)
        except subprocess.TimeoutExpired:
            late = True
            process.kill()
            said, _ = process.communicate()
        finally:
            self._process = None
        last = [f"at {HEAD}", *(line for line in said.splitlines() if line.startswith(("at ", "{")))][-1]
        if last.startswith("{"):
            told: dict[str, str] = json.loads(last)
            if "fingerprint" in told:
                return told["fingerprint"]
            raise RunError(told["what"], told["remedy"])
        why = f"did not come to an end in {self._seconds:g} s" if late else f"ended with status {process.returncode}"
        raise RunError(
            f"{folder / last.removeprefix('at ')} cannot be served: the process in which it was tried {why}",
            "It needs far more memory or time than files of its size should, or is damaged. " + AGAIN,
        )

    def stop(self) -> None:
        """Ends the process that is running, if there is one."""
        if (process := self._process) is not None:
            process.kill()


def main(argument: str) -> None:
    """The other process: says which file it has come to, and at last whether all is well."""
    folder, seconds, answer_seconds = json.loads(argument)
    _limit(Path(folder), seconds)

    def say(line: str) -> None:
        print(line, flush=True)

    def refuse(error: LLMD4RecError) -> None:
        say(json.dumps({"what": error.what, "remedy": error.remedy}))

    class Reading(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.msg == "reading %s" and isinstance(record.args, tuple):
                say(f"at {os.path.relpath(str(record.args[0]), folder)}")

    logger.handlers[:], logger.propagate = [Reading()], False
    logger.setLevel(logging.DEBUG)
    try:
        recommender = Recommender.load(folder, threads=1, index="exact")
        with limited(Path(folder).name, answer_seconds, refuse) as at:

            def now(file: str, times: int = 1) -> None:
                say(f"at {file}")
                at(file, times)

            ask_once(recommender, now, texts=True)
    except LLMD4RecError as error:
        refuse(error)
    else:
        say(json.dumps({"fingerprint": recommender.info.fingerprint}))


def _limit(folder: Path, seconds: float) -> None:
    """Limits memory and processor time, as far as this system can; where memory is short, this process goes first."""
    if sys.platform == "win32":
        return
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    most = math.ceil(seconds) * (os.cpu_count() or 1)
    resource.setrlimit(resource.RLIMIT_CPU, (most, most))
    with contextlib.suppress(OSError):  # where there is no /proc
        Path("/proc/self/oom_score_adj").write_text("1000")
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        files = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        allowed = now + MEMORY + TIMES_FILES * files
        resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))


if __name__ == "__main__":
    main(sys.argv[1])
