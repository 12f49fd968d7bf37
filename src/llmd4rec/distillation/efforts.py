"""How much a training may cost: the settings that the command line starts from, and lays a file of settings over.

Three points of the curve from seconds to accuracy; docs/accuracy.md shows what each costs and gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

Effort = Literal["fast", "default", "best"]

EFFORTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        # Nothing teaches: the model learns from the log and its item features, and the memory stands beside it.
        "fast": {"memory": "auto", "rounds": 0},
        # A wider model of another kind, and the memory; each teaches what the other does not.
        "default": {
            "memory": "auto",
            "rounds": 1,
            "teachers": [{"name": "bsarec", "dim": "2x"}],
            "distill": {"memory": "auto", "beside_memory": True},
        },
        # All that was ever found to help, and the language model.
        "best": {
            "memory": "auto",
            "rounds": 2,
            "teachers": "default",
            "llm": {},
            "distill": {"memory": "auto", "beside_memory": True},
        },
    }
)

#: What the command line trains where neither `--effort` nor a file of settings says otherwise.
RECIPE: Mapping[str, Any] = EFFORTS["default"]
