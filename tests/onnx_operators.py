"""PyTorch makes the list of its ONNX operators anew for each graph, a third of the time; once is enough in tests."""

from __future__ import annotations

import functools
import importlib
from typing import Any


def remember_operators() -> None:
    """To be called before graphs are written; imports what writing the first one imports."""
    registration: Any = importlib.import_module("torch.onnx._internal.exporter._registration")
    apis = registration.onnxscript_apis
    if not hasattr(apis.get_torchlib_ops, "cache_info"):
        apis.get_torchlib_ops = functools.cache(apis.get_torchlib_ops)
