from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

from evaluation.rolling_examples import ASKED, MEMORY, hand_made, random_log
from test_report import OLD_WORDS, Page

from llmd4rec.data.dataset import Dataset
from llmd4rec.evaluation.rolling import rolling
from llmd4rec.report import ReportContent, render
from llmd4rec.report.from_run import report_content
from llmd4rec.report.rolling import chart, finding
from llmd4rec.runs.results import score_run
from llmd4rec.runs.run import Run

VALUES = {
    "recency": [0.0, 1.0, 1.0], "memory": [0.5, 0.5, 0.5], "frozen": [0.0, 0.5, 0.0], "frozen + memory": [0.5, 1.0, 1.0]
}  # fmt: skip
KINDS = {"recency": "baseline", "memory": "memory", "frozen": "model", "frozen + memory": "model and memory"}


def test_the_section_tells_what_is_best_and_marks_the_rest() -> None:
    found = replace(hand_made(VALUES, ["a", "b", "c"], KINDS), weights={"frozen + memory": {"frozen": 1, "memory": 1}})
    page = Page(render(ReportContent("shop", rolling=[found])))
    assert "Where time passes" in page.text
    assert "Best: frozen + memory, NDCG@10 0.8333." in page.text
    assert re.search(r"frozen no better than recency\s*model", page.text)
    assert "frozen + memory no better" not in page.text
    assert "frozen + memory against memory" in page.text
    assert not OLD_WORDS.search(page.text)


def test_the_chart_has_a_point_for_each_window_and_line() -> None:
    found = rolling(random_log(0), ASKED, memory=MEMORY)
    page = Page(chart(found))
    tips = [value or "" for name, value in page.attributes if name == "data-tip"]
    assert len(tips) == 2 * len(found.windows)  # the memory, and the best of the others
    assert sum(tip.startswith("memory, window") for tip in tips) == len(found.windows)
    assert "on which weights were chosen" in finding(found)
    assert "rolling" in Page(render(ReportContent("shop", rolling=[found]))).ids


def test_names_from_outside_are_escaped() -> None:
    nasty = "<script>x</script>"
    found = hand_made({"recency": [1.0], nasty: [0.0]}, ["a"], {"recency": "baseline", nasty: "model"})
    assert nasty not in render(ReportContent("shop", rolling=[found]))


def test_a_saved_rolling_evaluation_is_in_the_report(chain_run: Path, chain_data: Dataset, tmp_path: Path) -> None:
    shutil.copytree(chain_run, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    results = score_run(run, chain_data)
    assert not report_content(run, chain_data, results).rolling
    rolling(random_log(0), ASKED, memory=MEMORY).save(run.folder / "evaluation" / "rolling-undistilled")
    assert len(report_content(run, chain_data, results).rolling) == 1
