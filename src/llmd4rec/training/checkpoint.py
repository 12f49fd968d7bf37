"""Checkpoints: one safetensors file each, its JSON state in the header, written aside and renamed. No pickle.

A training folder holds `best.safetensors` (the model alone, at its best validation) and, until the training is done,
`last.safetensors` (model, optimiser, random state and position in the epoch).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from llmd4rec.errors import RunError
from llmd4rec.files import atomic_file

FORMAT_VERSION = 1


def save(path: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Writes tensors and JSON state as one file, atomically."""
    # Tied or sliced tensors share storage, which safetensors refuses; a checkpoint wants values, not sharing.
    owned = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    header = {"llmd4rec": json.dumps({"format": FORMAT_VERSION, **state})}
    with atomic_file(path) as temporary:
        try:
            save_file(owned, temporary, metadata=header)
        except SafetensorError as error:
            if "No space left" in str(error):
                raise OSError(28, "No space left on device") from error
            raise


def load(path: Path, device: torch.device | str = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the state of a checkpoint.

    Raises:
        RunError: the file is missing, damaged or of another format version.
    """
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            state = json.loads((file.metadata() or {}).get("llmd4rec", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except FileNotFoundError as error:
        raise RunError(f"{path} does not exist", "The run has not come that far; run `train` again.") from error
    except (SafetensorError, json.JSONDecodeError, OSError) as error:
        raise RunError(f"{path} is damaged: {error}", "Delete it and run `train` again.") from error
    if state.get("format") != FORMAT_VERSION:
        raise RunError(
            f"{path} has checkpoint format {state.get('format')!r}; this version reads {FORMAT_VERSION}",
            "Use the version of llmd4rec that wrote it.",
        )
    return tensors, state


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
