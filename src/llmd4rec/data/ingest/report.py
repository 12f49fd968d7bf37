"""What `prepare` read, dropped and why, for a program (`report.json`) and for a person (`report.md`)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import polars as pl

#: How many row numbers are quoted per step.
EXAMPLES = 5


class Report:
    """Collects the steps in the order in which they happen."""

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}
        self.steps: list[dict[str, Any]] = []
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        """Something the user should look at though the data can be used."""
        self.warnings.append(message)

    def step(
        self, name: str, rows_in: int, frame: pl.DataFrame, dropped_rows: Iterable[int] = (), note: str = ""
    ) -> None:
        """Records one step.

        Args:
            name: what was done, in a few words.
            rows_in: rows before it.
            frame: what is left: columns `user` and `item` hold codes.
            dropped_rows: numbers of dropped rows (1 is the first data row), smallest first; a few are quoted.
            note: why.
        """
        examples = [int(row) for _, row in zip(range(EXAMPLES), dropped_rows, strict=False)]
        self.steps.append(
            {
                "step": name,
                "rows_in": rows_in,
                "rows_out": frame.height,
                "users": _distinct(frame["user"]),
                "items": _distinct(frame["item"]),
                **({"note": note} if note else {}),
                **({"example_rows": examples} if examples else {}),
            }
        )

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {**self.facts, "steps": self.steps, "warnings": self.warnings}


def _distinct(codes: pl.Series) -> int:
    return int(np.count_nonzero(np.bincount(codes.drop_nulls().to_numpy()))) if len(codes) else 0


def report_markdown(report: dict[str, Any]) -> str:
    """The report for a person."""
    lines = ["# Prepared data", ""]
    totals = report.get("totals", {})
    if totals:
        lines += [
            "| users | items | interactions | mean length | validation targets | test targets |",
            "|---|---|---|---|---|---|",
            f"| {totals['users']:,} | {totals['items']:,} | {totals['interactions']:,} "
            f"| {totals['mean_length']:.2f} | {totals['validation_targets']:,} | {totals['test_targets']:,} |",
            "",
        ]
    if report.get("warnings"):
        lines += ["## Look at this", "", *(f"- {warning}" for warning in report["warnings"]), ""]
    lines += ["## Interactions", ""]
    lines += [f"- {line}" for line in _source_lines(report.get("interactions", {}))]
    lines += ["", "| step | rows in | rows out | dropped | users | items |", "|---|---|---|---|---|---|"]
    for step in report.get("steps", []):
        lines.append(
            f"| {step['step']} | {step['rows_in']:,} | {step['rows_out']:,} "
            f"| {step['rows_in'] - step['rows_out']:,} | {step['users']:,} | {step['items']:,} |"
        )
    lines.append("")
    for step in report.get("steps", []):
        said = [step["note"]] if "note" in step else []
        if "example_rows" in step:
            said.append("Dropped rows, for example: " + ", ".join(map(str, step["example_rows"])) + ".")
        if said:
            lines.append(f"- **{step['step']}**: {' '.join(said)}")
    lines += ["", "## Catalogue", ""]
    lines += [f"- {line}" for line in _source_lines(report.get("catalogue", {}))]
    lines += ["", "## Split", ""]
    lines += [f"- {line}" for line in _source_lines(report.get("split", {}))]
    return "\n".join(lines) + "\n"


def _source_lines(facts: dict[str, Any]) -> list[str]:
    lines = []
    for name, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key}: {_shown(inner)}" for key, inner in value.items()) or "none"
        elif isinstance(value, list):
            value = ", ".join(map(_shown, value)) or "none"
        lines.append(f"{name.replace('_', ' ')}: {_shown(value)}")
    return lines


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
