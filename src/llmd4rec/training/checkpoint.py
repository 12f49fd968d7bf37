"""Checkpoints: one safetensors file each, its JSON state in the header, written aside and renamed. No pickle.

The header also holds a SHA-256 over state and tensors: a file that was cut, altered or rotted is seen when it is read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from llmd4rec.errors import RunError
from llmd4rec.io.files import atomic_file

#: 1 had no checksum; it is still read.
FORMAT_VERSION = 2


class DamagedCheckpoint(RunError):
    """A checkpoint is not what was written."""


def save(path: Path, tensors: dict[str, Tensor], state: dict[str, Any], *, keep: Path | None = None) -> str:
    """Writes tensors and JSON state as one file, atomically; its checksum.

    Args:
        path: the file.
        tensors: by name.
        state: anything that is JSON; not `format` and `checksum`.
        keep: where the file goes that was at `path`; None: it is replaced.
    """
    # Tied or sliced tensors share storage, which safetensors refuses; a checkpoint wants values, not sharing.
    owned = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    state = {"format": FORMAT_VERSION, **state}
    checksum = _checksum(owned, state)
    # One entry: safetensors does not say in which order it writes several.
    header = {"llmd4rec": json.dumps({"checksum": checksum, **state})}
    with atomic_file(path, keep=keep) as temporary:
        try:
            save_file(owned, temporary, metadata=header)
        except SafetensorError as error:
            for number, message in ((28, "No space left"), (27, "File too large")):
                if message in str(error):
                    raise OSError(number, message) from error
            raise
    return checksum


def load(path: Path, device: torch.device | str = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the state of a checkpoint.

    Raises:
        DamagedCheckpoint: it is not what was written.
        RunError: it is missing or of another format version.
    """
    with _opened(path) as (file, state):
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    checksum = state.pop("checksum", None)
    if checksum != _checksum(tensors, state) and state["format"] > 1:
        raise _damaged(path, "its checksum is not that of its content")
    return {name: tensor.to(device) for name, tensor in tensors.items()}, state


def checksum_of(path: Path) -> str | None:
    """The checksum that a checkpoint names in its header, unverified; None for one of a format without.

    Raises:
        DamagedCheckpoint: it is not what was written.
        RunError: it is missing or of another format version.
    """
    with _opened(path) as (_, state):
        return state.get("checksum")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The open file and its state."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file, _state(path, (file.metadata() or {}).get("llmd4rec", ""))
    except FileNotFoundError as error:
        raise RunError(f"{path} does not exist", "The run has not come that far; run `train` again.") from error
    except (SafetensorError, OSError) as error:
        raise _damaged(path, str(error)) from error


def _state(path: Path, text: str) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads(text)
        version = state["format"]
    except (ValueError, TypeError, KeyError) as error:
        raise _damaged(path, "its header holds no state") from error
    if version not in range(1, FORMAT_VERSION + 1):
        raise RunError(
            f"{path} has checkpoint format {version!r}; this version reads 1 to {FORMAT_VERSION}",
            "It was written by a newer llmd4rec: install that, or train a new run.",
        )
    return state


def _checksum(tensors: dict[str, Tensor], state: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(state, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _damaged(path: Path, why: str) -> DamagedCheckpoint:
    return DamagedCheckpoint(
        f"{path} is damaged: {why}",
        "Put it back from a copy. Or delete it and run `train` again, which then trains that stage anew, and those "
        "after it.",
    )


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    """The optimiser's state as named tensors; `names` are its parameters' names in order."""
    state = optimizer.state_dict()["state"]
    return {
        f"optimizer/{names[index]}/{key}": torch.as_tensor(value)
        for index, entries in state.items()
        for key, value in entries.items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, names: list[str], tensors: dict[str, Tensor]) -> None:
    """Restores what :func:`optimizer_tensors` gave."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer/"):
            parameter, key = name.removeprefix("optimizer/").rsplit("/", 1)
            state.setdefault(names.index(parameter), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
