"""How a student learns from its teachers: LLMD4Rec's way, and other published ones to compare it with.

A method is a settings class with `name`, `uses_teachers(...)`, `check(...)` and `objective(...) -> Objective` in a
file of its own, added to :data:`Method`. All of them have the same teachers, student, samples and schedule; a method is
a loss.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Tag

from llmd4rec.distillation.methods.dllm2rec import DLLM2Rec
from llmd4rec.distillation.methods.leader import LEADER
from llmd4rec.distillation.methods.llmd4rec import LLMD4Rec


def _name(settings: Any) -> Any:
    """Which method settings are of: the paper's where they do not say."""
    return settings.get("name", "llmd4rec") if isinstance(settings, dict) else getattr(settings, "name", None)


#: Settings of any method, told apart by `name`.
Method = Annotated[
    Annotated[LLMD4Rec, Tag("llmd4rec")] | Annotated[DLLM2Rec, Tag("dllm2rec")] | Annotated[LEADER, Tag("leader")],
    Discriminator(_name),
]

__all__ = ["LEADER", "DLLM2Rec", "LLMD4Rec", "Method"]
