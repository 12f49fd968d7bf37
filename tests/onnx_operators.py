"""PyTorch makes the list of its ONNX operators anew for each graph, a third of the time; once is enough in tests."""

from __future__ import annotations

import functools
from typing import Any


def remember_operators() -> None:
    """To be called before graphs are written; imports what writing the first one imports."""
    from torch.onnx._internal.exporter import _registration

    apis: Any = _registration.onnxscript_apis
    if not hasattr(apis.get_torchlib_ops, "cache_info"):
        apis.get_torchlib_ops = functools.cache(apis.get_torchlib_ops)
