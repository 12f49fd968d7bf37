"""Which stages a changed setting invalidates, and so what may still be changed in a run that has begun.

A language model that does not fit the GPU must not cost the models that were trained before it: whatever no stage that
has begun depends on may be changed, and the run goes on to what it would have come to with the new settings from the
start. What a stage depends on is what its plan says, and no list beside it: the plans of the old and the new settings
are compared.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from llmd4rec.config.settings import differences
from llmd4rec.distillation.plan import Stage, plan
from llmd4rec.distillation.settings import DistillationSettings
from llmd4rec.errors import RunError

if TYPE_CHECKING:
    from llmd4rec.runs.run import Run


def invalidated(old: DistillationSettings, new: DistillationSettings) -> set[str]:
    """The ids of the stages of the old plan that the new one lacks, would train otherwise, or from other stages."""
    after = {stage.id: stage for stage in plan(new)}
    found: set[str] = set()
    for stage in plan(old):  # each stands behind what it needs
        same = stage.id in after and _equal(stage, after[stage.id])
        if not same or not found.isdisjoint(stage.needs):
            found.add(stage.id)
    return found


def go_elsewhere(old: DistillationSettings, new: DistillationSettings) -> bool:
    """Whether other models come out, be it of stages that have not begun: what was made of the old ones is void."""
    same = [stage.id for stage in plan(old)] == [stage.id for stage in plan(new)]
    return not same or bool(invalidated(old, new)) or old.round_patience != new.round_patience


def conflicts(old: DistillationSettings, new: DistillationSettings, begun: Iterable[str]) -> dict[str, list[str]]:
    """The differences that stand in the way of stages that have begun: `key: old → new`, and which stages those are."""
    begun = list(begun)
    lines = differences(old, new)
    wrong = invalidated(old, new)
    stopping = [stage for stage in begun if stage in wrong]
    found: dict[str, list[str]] = {}
    for line in lines if stopping else ():
        alone = _with_one(old, new, line.partition(":")[0])
        blamed = wrong if alone is None else invalidated(old, alone)
        if stages := [stage for stage in stopping if stage in blamed]:
            found[line] = stages
    if stopping and not found:  # only together
        found = dict.fromkeys(lines, stopping)
    rounds = [stage.id for stage in plan(old) if stage.round and stage.id in begun]
    if rounds and new.round_patience < old.round_patience:  # it might have stopped before
        found |= {line: rounds for line in lines if line.startswith("round_patience:")}
    return found


def require_no_conflict(run: Run, new: DistillationSettings) -> None:
    """Refuses settings that stand in the way of what was trained in a run.

    Raises:
        RunError: they do.
    """
    stopping = conflicts(run.settings, new, run.begun())
    if not stopping:
        return
    concerned = list(dict.fromkeys(stage for stages in stopping.values() for stage in stages))
    remedy = "Choose another run folder, or use the settings in its config.yaml to continue it."
    if not any(stage in run.record.stages for stage in concerned):
        parts = ", ".join(str(run.checkpoint_of(stage) / "training") for stage in concerned)
        remedy = f"Use the settings in its config.yaml, or remove {parts} to begin that training again."
    raise RunError(
        f"{run.folder} holds a run with other settings: {'; '.join(stopping)} (trained with the old ones: "
        f"{', '.join(concerned)})",
        remedy,
    )


def _equal(a: Stage, b: Stage) -> bool:
    return a.identity() == b.identity()


def _with_one(old: DistillationSettings, new: DistillationSettings, key: str) -> DistillationSettings | None:
    """The old settings with the new value of one dotted key; None where that alone does not fit together."""
    values, wanted = old.model_dump(mode="json"), new.model_dump(mode="json")
    into: dict[str, Any] = values
    *groups, last = key.split(".")
    for group in groups:
        if not isinstance(into.get(group), dict) or not isinstance(wanted.get(group), dict):
            last = group  # a group that is there in one of them only
            break
        into, wanted = into[group], wanted[group]
    if last in wanted:
        into[last] = wanted[last]
    else:  # a setting of another network than the new one
        into.pop(last, None)
    try:
        return DistillationSettings.model_validate(values)
    except ValidationError:
        return None
