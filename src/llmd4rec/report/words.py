"""How a report writes numbers and names."""

from __future__ import annotations

from collections.abc import Callable, Mapping

#: A space at which no line breaks.
NBSP = "\u00a0"


def percent(value: float) -> str:
    """A signed percentage with a real minus sign, such as `+12.3%`."""
    return f"{value:+.1f}%".replace("-", "−")


def p_value(p: float) -> str:
    """`p < 0.001` or `p = 0.02`, with as many digits as mean something."""
    if p < 0.001:
        return f"p{NBSP}<{NBSP}0.001"
    return f"p{NBSP}={NBSP}{p:.3f}" if p < 0.1 else f"p{NBSP}={NBSP}{p:.2f}"


def figure(value: float | None) -> str:
    """`0.0505`; empty for None, as below."""
    return "" if value is None else f"{value:.4f}"


def share(value: float | None) -> str:
    """`0.62` → `62%`."""
    return "" if value is None else f"{100 * value:.0f}%"


def count(value: int | None) -> str:
    """`862_464` → `862 k`."""
    if value is None:
        return ""
    for size, unit in ((10**9, " B"), (10**6, " M"), (10**3, " k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return str(value)


def duration(seconds: float | None) -> str:
    """`312` → `5 min`."""
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, hours = seconds / 60, seconds / 3600
    return f"{minutes:.0f} min" if minutes < 120 else f"{hours:.1f} h"


def capital(text: str) -> str:
    """With a capital letter first."""
    return text[:1].upper() + text[1:]


def items(label: str) -> str:
    """`5–7` → `5–7 items`."""
    return f"{label} item" if label == "1" else f"{label} items"


def ensemble(teachers: Mapping[str, int | None], name: Callable[[str], str] = str) -> str:
    """Who taught, with shares of the ensemble: `teacher-1 (75%) and undistilled (25%); unused: llm`.

    Args:
        teachers: stage id → ensemble weight; None: not known.
        name: what a stage is called.
    """
    weights = {stage: weight for stage, weight in teachers.items() if weight}
    total = sum(weight for weight in weights.values() if weight)
    used = [
        name(stage) if weight is None or weight == total else f"{name(stage)} ({weight / total:.0%})"
        for stage, weight in teachers.items()
        if weight != 0
    ]
    unused = [name(stage) for stage, weight in teachers.items() if weight == 0]
    said = [enumeration(used)] if used else []
    return "; ".join([*said, *([f"unused: {', '.join(unused)}"] if unused else [])])


def enumeration(words: list[str]) -> str:
    """`a, b and c`."""
    return " and ".join([*([", ".join(words[:-1])] if len(words) > 1 else []), *words[-1:]])
