"""How a student learns from its teachers: LLMD4Rec's way, and other published ones to compare it with.

How to add one says :class:`~llmd4rec.distillation.methods.base.Method`.
"""

from __future__ import annotations

from typing import Annotated

from llmd4rec.config.open_types import open_type
from llmd4rec.distillation.methods.base import Method
from llmd4rec.distillation.methods.dllm2rec import DLLM2Rec
from llmd4rec.distillation.methods.leader import LEADER
from llmd4rec.distillation.methods.llmd4rec import LLMD4Rec

#: The methods that are known by name.
METHODS = open_type(
    "distillation method",
    Method,
    {
        "llmd4rec": "llmd4rec.distillation.methods.llmd4rec:LLMD4Rec",
        "dllm2rec": "llmd4rec.distillation.methods.dllm2rec:DLLM2Rec",
        "leader": "llmd4rec.distillation.methods.leader:LEADER",
    },
    default="llmd4rec",
)

#: Settings of any distillation method.
AnyMethod = Annotated[Method, METHODS]

__all__ = ["LEADER", "METHODS", "AnyMethod", "DLLM2Rec", "LLMD4Rec", "Method"]
