"""The machine a run uses: device, threads, random seeds, and a record of all of them."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.metadata
import os
import platform
import signal
import subprocess
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch

from llmd4rec.errors import ConfigError
from llmd4rec.training.backends.torch_distributed import current_backend

Precision = Literal["auto", "fp32", "bf16", "fp16"]

# glibc's numbers for what `mallopt` sets.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def select_device(name: str) -> torch.device:
    """`auto` is the first CUDA device, else the CPU; anything else is torch's name for a device.

    Apple's devices have no double precision, which sums and weights are computed in.

    Raises:
        ConfigError: the device is unknown or not there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise ConfigError(f"device {name!r} cannot be used: {first}", "Set device to auto or cpu.") from error
    return device


def autocast(
    precision: Precision, device: torch.device
) -> tuple[Callable[[], contextlib.AbstractContextManager[Any]], bool]:
    """What to run a forward pass in, and whether its gradients are to be scaled against underflow.

    Raises:
        ConfigError: the device has no such precision.
    """
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(False) else "fp32"
    if precision == "fp32":
        return contextlib.nullcontext, False
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(False):
        raise ConfigError("this GPU has no bf16", "Set precision to fp16, fp32 or auto.")
    return functools.partial(torch.autocast, device.type, dtype=dtype), precision == "fp16"


def keep_freed_memory() -> None:
    """Asks the C library to keep up to 256 MB that were freed, instead of giving them back and asking again.

    A training step frees and takes the same megabytes many times over; fresh pages from the system cost about a tenth
    of the prediction layer's time. Does nothing where the C library has no such switch.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the largest it accepts
        mallopt(_M_TRIM_THRESHOLD, 256 << 20)


def derive_seed(seed: int, *parts: str | int) -> int:
    """A seed for one purpose (a stage, an epoch, a step) that depends on nothing but the run's seed and its name."""
    return zlib.crc32(repr((seed, *parts)).encode()) & 0x7FFFFFFF


class Interrupted(KeyboardInterrupt):
    """Raised where a run was asked to stop.

    Attributes:
        signal_number: the signal that asked.
        saved: whether a checkpoint was written first; not at a second, impatient signal.
    """

    def __init__(self, signal_number: int, *, saved: bool) -> None:
        super().__init__()
        self.signal_number, self.saved = signal_number, saved


class StopRequest:
    """Whether a signal has asked to stop; see :func:`deferred_signals`."""

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._times, self._now = 0, False

    def __bool__(self) -> bool:
        return self.signal_number is not None

    def raise_if_set(self) -> None:
        """Raises :class:`Interrupted` if a signal came; a checkpoint must have been written."""
        if self.signal_number is not None:
            raise Interrupted(self.signal_number, saved=True)

    @property
    def again(self) -> bool:
        """Whether a second signal has asked, impatiently."""
        return self._times > 1

    def receive(self, number: int, _frame: FrameType | None) -> None:
        """Handles a signal."""
        self.signal_number, self._times = number, self._times + 1
        if self.again or self._now:
            self._now = False
            raise Interrupted(number, saved=False)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Within the block, which changes nothing that is saved, the first signal interrupts, too."""
        self._now = True
        try:
            if self.signal_number is not None:
                raise Interrupted(self.signal_number, saved=False)
            yield
        finally:
            self._now = False


@contextlib.contextmanager
def deferred_signals() -> Iterator[StopRequest]:
    """While active, the first SIGINT or SIGTERM only sets the flag; a second one interrupts at once.

    A signal that the process was started to ignore, as a shell does for what it runs in the background, stays ignored.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    previous = {number: old for number, old in previous.items() if old not in (signal.SIG_IGN, None)}
    try:
        for number in previous:
            signal.signal(number, request.receive)
        yield request
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


def environment() -> dict[str, Any]:
    """Versions, machine and threads, for the run folder."""
    packages = ("llmd4rec", "torch", "transformers", "peft", "numpy", "polars", "safetensors", "pydantic")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": current_backend().count,
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "commit": _commit(),
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def _commit() -> str | None:
    """The commit of the source tree this package runs from; None for an installed package."""
    folder = Path(__file__).resolve().parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    with contextlib.suppress(OSError):
        done = subprocess.run(
            command, capture_output=True, text=True, encoding="utf-8", errors="replace", timeout=10, check=False
        )
        if done.returncode == 0 and (folder.parents[2] / ".git").exists():
            return done.stdout.strip()
    return None
