"""The ids of stages: made here, and read nowhere but here."""

from __future__ import annotations

UNDISTILLED, LANGUAGE_MODEL = "undistilled", "llm"
#: Names that stand for a stage that depends on how a run went: the last round's model, and what validation chose.
DISTILLED, SERVED = "distilled", "served"
#: The model that learns what the memory does not say, and is served beside it.
BESIDE_MEMORY = "beside-memory"
#: The memory without a model. Behind the name of a stage: the two together.
MEMORY = "memory"


def teacher_id(number: int) -> str:
    """Of a teacher, counted from 1."""
    return f"teacher-{number}"


def round_id(student: str, number: int) -> str:
    """Of a student (`model` or `llm`) in a round."""
    return f"{DISTILLED if student == 'model' else student}-round-{number}"


def with_memory(name: str) -> str:
    """What a stage's model with the memory beside it is called."""
    return f"{name}+{MEMORY}"


def without_memory(name: str) -> tuple[str, bool]:
    """The stage in a name, and whether the memory is asked for beside it."""
    stage, plus, beside = name.partition("+")
    return (stage, True) if plus and beside == MEMORY else (name, False)


def is_distilled(stage_id: str) -> bool:
    """Whether an id is the served model's in a round; for exports, which have an id and no plan."""
    return stage_id.startswith(round_id("model", 0)[:-1])
