"""One HTML page that tells what a run found; see :class:`ReportContent` for what it can show."""

from llmd4rec.report.content import CurvePoint, Example, PlanRow, ReportContent, StageRow, WeightHistogram
from llmd4rec.report.examples import choose_examples
from llmd4rec.report.page import render, write_report

__all__ = [
    "CurvePoint",
    "Example",
    "PlanRow",
    "ReportContent",
    "StageRow",
    "WeightHistogram",
    "choose_examples",
    "render",
    "write_report",
]
