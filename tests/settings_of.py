"""Settings of runs in tests: plain values with some changed, and the object that is fitted."""

from __future__ import annotations

import copy
from typing import Any

from llmd4rec.config.settings import check
from llmd4rec.estimators import Distillation


def parse_settings(values: dict[str, Any]) -> Distillation:
    """Checked settings, with `fit`."""
    return check(Distillation, values, "the settings")


def changed(settings: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A copy in which the setting `a__b` of group `a` is another."""
    result = copy.deepcopy(settings)
    for name, value in changes.items():
        group = result
        *groups, last = name.split("__")
        for part in groups:
            if not isinstance(group.get(part), dict):
                group[part] = {}
            group = group[part]
        group[last] = value
    return result
