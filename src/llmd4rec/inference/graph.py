"""ONNX graphs of an export: checked before ONNX Runtime has them, and run so that errors name the file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmd4rec.errors import RunError
from llmd4rec.extras import explained
from llmd4rec.io.arrays import LARGEST
from llmd4rec.io.files import sha256_file
from llmd4rec.log import logger

_AGAIN = "Export the run again with: llmd4rec export RUN --out FOLDER --overwrite"
#: What ONNX Runtime calls float32 and int64.
FLOATS, INTEGERS = "tensor(float)", "tensor(int64)"
#: Where tensors stand in a file: of each message its fields that lead to them, by number.
_FIELDS = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
#: Of a tensor: the names of other files, and that its numbers are there.
_EXTERNAL, _LOCATION = 13, 14


class Graph:
    """An ONNX Runtime session for each process: the threads of a session do not exist in a fork.

    Args:
        path: the graph.
        inputs: the type and number of axes of each.
        output: the name of the output, which is float [batch, width].
        threads: threads of one call; None: ONNX Runtime's choice.

    Raises:
        RunError: the file is not such a graph.
    """

    def __init__(
        self, path: Path, inputs: Mapping[str, tuple[str, int]], output: str, threads: int | None = None
    ) -> None:
        self._path, self._threads, self._output = path.resolve(), threads, output
        #: For errors that clients of a service read too.
        self.name = f"{path.parent.name}/{path.name}"
        self._digest = sha256_file(path)
        self._opened = os.getpid(), open_graph(path, threads)
        #: Sessions of processes this one was forked from. Closing one would wait for threads that do not exist here.
        self._inherited: list[Any] = []
        session = self._opened[1]
        self.inputs = {value.name: (value.type, len(value.shape or ())) for value in session.get_inputs()}
        outputs = {value.name: (value.type, list(value.shape or ())) for value in session.get_outputs()}
        kind, shape = outputs.get(output, ("", []))
        if dict(inputs) != {name: self.inputs.get(name) for name in inputs} or (kind, len(shape)) != (FLOATS, 2):
            raise RunError(
                f"{path} is not the graph that is needed here: its inputs are {', '.join(self.inputs)}, its outputs "
                f"{', '.join(outputs)}",
                _AGAIN,
            )
        read = [width for value in session.get_inputs() if value.name == "vectors" for width in value.shape[-1:]]
        #: Of the output, and of `vectors` where that is an input; 0 where they differ or are not fixed.
        self.width: int = shape[-1] if isinstance(shape[-1], int) and read in ([], [shape[-1]]) else 0

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """The output for some inputs.

        Raises:
            RunError: the graph fails, or gives another shape than it says or numbers that nothing can be done with; or
                this is a fork, and the file is gone or was changed.
        """
        session = self._session()
        try:
            found: NDArray[np.float32] = session.run([self._output], dict(inputs))[0]
        except Exception as error:  # ONNX Runtime's own kinds, which derive from Exception only
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
            raise RunError(f"{self.name} cannot be run: {reason}", _AGAIN) from error
        batch = len(next(iter(inputs.values())))
        if found.shape != (batch, self.width):
            raise RunError(f"{self.name} gave shape {found.shape}, but {batch} x {self.width} is needed", _AGAIN)
        if found.size and not (found.min() >= -LARGEST and found.max() <= LARGEST):
            raise RunError(f"{self.name} gave NaN, infinite values or numbers beyond {LARGEST:.0e}", _AGAIN)
        return found

    def _session(self) -> Any:
        process, session = self._opened
        if process != os.getpid():
            if not self._path.is_file() or sha256_file(self._path) != self._digest:
                raise RunError(
                    f"{self._path} is gone or was changed, and this process, a fork, has to open it again",
                    "Call Recommender.load(FOLDER) in each process.",
                )
            self._inherited.append(session)
            session = open_graph(self._path, self._threads)
            self._opened = os.getpid(), session
        return session


def open_graph(path: Path, threads: int | None = None) -> Any:
    """An ONNX Runtime session on the processor.

    Raises:
        RunError: the file is not a graph, or its numbers are in other files.
    """
    with explained():
        import onnxruntime

    logger.debug("reading %s", path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised
    if threads is not None:
        options.intra_op_num_threads = threads
    # A thread that spins while it waits for the next request takes a core from whatever comes between two of them.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        content = path.read_bytes()
        if _names_files(content):
            raise ValueError("its numbers are in other files")
        # Without the fall-back, which would try the same again and print so.
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception as error:  # ONNX Runtime's own kinds, which derive from Exception only
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise RunError(f"{path} cannot be read as an ONNX graph: {reason}", _AGAIN) from error


def _names_files(content: bytes) -> bool:
    """Whether a tensor of a graph is to be read from another file: that could be any file.

    Raises:
        ValueError: this is no graph.
    """
    waiting = [("model", memoryview(content))]
    while waiting:
        kind, message = waiting.pop()
        for field, value in _fields(message):
            if kind == "tensor":
                if field == _EXTERNAL or (field == _LOCATION and value != 0):
                    return True
            elif (inner := _FIELDS[kind].get(field)) is not None:
                if not isinstance(value, memoryview):
                    raise ValueError("it is no graph")
                waiting.append((inner, value))
    return False


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The fields of a message of protocol buffers: numbers, and the bytes of messages, texts and lists."""
    at, end = 0, len(message)
    while at < end:
        key, at = _varint(message, at)
        value: int | memoryview = 0
        if key & 7 == 0:
            value, at = _varint(message, at)
        elif key & 7 == 2:
            size, at = _varint(message, at)
            value, at = message[at : at + size], at + size
        elif key & 7 in (1, 5):
            at += 8 if key & 7 == 1 else 4
        else:
            raise ValueError("it is no graph")
        if at > end:
            raise ValueError("it is cut")
        yield (key & 0xFFFFFFFF) >> 3, value


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for place in range(at, min(at + 10, len(message))):
        value |= (message[place] & 127) << 7 * (place - at)
        if message[place] < 128:
            return value, place + 1
    raise ValueError("it is no graph")
