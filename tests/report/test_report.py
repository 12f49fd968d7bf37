from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from llmd4rec.evaluation import compare, evaluate
from llmd4rec.evaluation.evaluation import Evaluation
from llmd4rec.evaluation.metrics import mean_metrics
from llmd4rec.evaluation.significance import Comparison
from llmd4rec.report import (
    CurvePoint,
    Example,
    ModelRow,
    ReportContent,
    WeightHistogram,
    charts,
    choose_examples,
    render,
    write_report,
)
from llmd4rec.report.charts import nice_ticks
from llmd4rec.report.sections import finding

from .examples import LastItemModel, random_dataset
from .test_significance import evaluation, random_ranks

NASTY = """<script>alert("x")</script>'&"""


class Page(HTMLParser):
    """The tags, the text outside script and style, and the attributes of a page; checks that tags are balanced."""

    VOID = ("meta", "br", "img", "link", "input", "hr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in self.VOID and tag != "path":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data


def comparison_of(scale: float, users: int = 2_000) -> Comparison:
    first = evaluation(random_ranks(users, 0))
    second = evaluation(random_ranks(users, 1, scale=scale), stage="distilled")
    return compare(first, second, flips=999, resamples=200)


@pytest.fixture(scope="module")
def gain() -> Comparison:
    return comparison_of(40.0)


def full_content(comparison: Comparison, word: str = "word") -> ReportContent:
    metrics = {"hr@10": 0.0829, "ndcg@10": 0.0505, "coverage@10": 0.62}
    return ReportContent(
        title=word,
        crm=word,
        llm=word,
        rows=[
            ModelRow("crm", "alone", metrics, 862_464, 312.0, 1.82),
            ModelRow("crm", "distilled", metrics | {"ndcg@10": 0.0556}, 862_464, 812.0, 1.82),
            ModelRow("llm", "distilled", metrics),
        ],
        comparison=comparison,
        models_compared=dataclasses.replace(comparison, first=word, second=word),
        curves=[CurvePoint(m, r, e, 0.01 * e + 0.001 * r) for r in (0, 1) for m in ("llm", "crm") for e in (1, 2, 3)],
        weights=[WeightHistogram(1, d, [0, 0.5, 1, 1.5, 2], [5, 1, 0, 4], 0.97) for d in ("w1", "w2")],
        examples=[
            Example(word, [word] * 12, word, [word] * 10, ["other", word], 3, 1, 4, 2),
            Example(word, [word], word, ["other"], ["other"], None, None, None, 1234),
        ],
        facts={word: word, "users": 22_363},
        settings=f"rounds: 3 # {word}",
        environment={word: word},
        commands=[f"llmd4rec train {word}"],
    )


def test_a_wider_recommender_has_the_name_of_its_own_network() -> None:
    rows = [ModelRow("crm", "alone", {"ndcg@10": 0.05}), ModelRow("wide", "alone", {"ndcg@10": 0.06})]
    page = Page(render(ReportContent("r", crm="SASRec", wide="GRU4Rec", rows=rows)))
    assert "Wider GRU4Rec" in page.text
    assert "Wider SASRec" not in page.text


def test_a_full_report_holds_the_figures(gain: Comparison) -> None:
    page = Page(render(full_content(gain)))
    d = gain.overall.metrics["ndcg@10"]
    for figure in (f"{d.first:.4f}", f"{d.second:.4f}", "0.0556", "862 k", "1.82 ms", "22,363", "mean 0.97", "1,234"):
        assert figure in page.text
    for section in ("before-after", "learning", "origins", "weights", "overlap", "histories", "background"):
        assert section in page.ids
    assert "4 earlier" in page.text
    assert "already in the history" in page.text


def test_a_gain_of_too_few_hits_for_an_interval_is_not_marked_as_sure(gain: Comparison) -> None:
    """As where a group has so few hits that some resample has none."""
    metrics = {name: dataclasses.replace(d, relative_interval=None) for name, d in gain.overall.metrics.items()}
    sure = charts.gains({"": {"all": gain.overall}}, "ndcg@10")
    unsure = charts.gains({"": {"all": dataclasses.replace(gain.overall, metrics=metrics)}}, "ndcg@10")
    assert 'class="point up"' in sure
    assert 'class="point open"' in unsure
    assert "too few hits for an interval" in unsure


def test_everything_from_outside_is_escaped(gain: Comparison) -> None:
    text = render(full_content(gain, NASTY))
    page = Page(text)
    assert page.tags.count("script") == 1
    assert "alert(" not in re.sub(r"&lt;script&gt;alert\(&quot;x&quot;\)&lt;/script&gt;&#x27;&amp;", "", text)
    assert NASTY in page.text
    assert not [name for name, _ in page.attributes if name.startswith("on")]


def test_nothing_is_loaded(gain: Comparison) -> None:
    text = render(full_content(gain))
    assert "default-src 'none'" in text
    assert not re.search(r"https?://|@import|url\(|\ssrc=|<link", text)
    assert len(text) < 200_000


@pytest.mark.parametrize(
    "missing",
    [
        {},
        {"rows": [ModelRow("crm", "alone", {"hr@10": 0.1, "ndcg@10": 0.05})]},
        {"rows": [ModelRow("crm", "alone", {}, parameters=12)]},
        {"curves": [CurvePoint("crm", 0, 1, 0.0)]},
        {"curves": [CurvePoint("crm", 0, 1, 0.02), CurvePoint("crm", 0, 2, float("nan"))]},
        {"curves": [CurvePoint("crm", 0, 1, float("nan"))]},
        {"curves": [CurvePoint("crm", 1, 1, 0.02)]},
        {"weights": [WeightHistogram(1, "w2", [0, 2], [0], 0.0)]},
        {"examples": [Example("u", [], "t", [], [])]},
        {"facts": {"users": 3}},
    ],
)
def test_parts_may_be_missing(missing: dict[str, object]) -> None:
    page = Page(render(ReportContent("run", **missing)))  # type: ignore[arg-type]
    assert "run" in page.text
    assert "Distillation" not in page.text


def test_identical_models_make_a_report() -> None:
    same = evaluation(np.full(30, 500))
    Page(render(full_content(compare(same, same, flips=9, resamples=9))))


def test_other_cutoffs_make_a_report() -> None:
    first = evaluation(np.arange(1, 40))
    first = dataclasses.replace(first, metrics=mean_metrics(first.ranks, (5,)))
    rows = [ModelRow("crm", "distilled", first.metrics)]
    content = ReportContent("run", rows=rows, comparison=compare(first, first, flips=9, resamples=9))
    page = Page(render(content))
    assert "NDCG@5" in page.text
    assert "NDCG@10:" not in page.text


def test_the_finding_is_what_was_found(gain: Comparison) -> None:
    d = gain.overall.metrics["ndcg@10"]
    up = finding(ReportContent("r", comparison=gain))
    assert up.startswith(f"Distillation lifted NDCG@10 from {d.first:.4f} to {d.second:.4f} (+{d.relative:.1f}%")
    assert "lowered" in finding(ReportContent("r", comparison=comparison_of(90.0)))
    assert "did not measurably change" in finding(ReportContent("r", comparison=comparison_of(60.0, 100)))
    alone = ReportContent("r", crm="SASRec", rows=[ModelRow("crm", "alone", {"ndcg@10": 0.05})])
    assert finding(alone) == "SASRec trained alone reaches NDCG@10 0.0500."
    assert "not been evaluated" in finding(ReportContent("r"))


def test_writing_replaces_the_file(tmp_path: Path, gain: Comparison) -> None:
    for title in ("first", "second"):
        write_report(tmp_path / "report.html", full_content(gain, title))
    assert "second" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_ticks_are_round_and_inside() -> None:
    assert nice_ticks(0.031, 0.062) == pytest.approx([0.04, 0.05, 0.06])
    assert nice_ticks(-12, 31, 6) == pytest.approx([-10, 0, 10, 20, 30])
    assert nice_ticks(1, 1) == [1]


def test_examples_take_turns_and_show_what_was_recommended() -> None:
    data = random_dataset(200, 40)
    generator = torch.Generator().manual_seed(0)
    before, after = (evaluate(LastItemModel(torch.randn(40, 4, generator=generator)), data) for _ in range(2))
    examples = choose_examples(data, before, after, count=12)
    assert len(examples) == len({example.user for example in examples}) == 12
    kinds = [(example.target_before is not None, example.target_after is not None) for example in examples]
    assert kinds == [(False, True), (True, False), (True, True), (False, False)] * 3
    assert examples == choose_examples(data, before, after, count=12)
    for example in examples:
        user = int(example.user[1:])
        position = int(data.test[user])
        assert list(example.history) == [data.titles[item] for item in data.history(position)]
        assert example.target == data.titles[data.items[position]]
        assert not set(example.after) & set(example.history)
        for place, titles, rank in (
            (example.target_before, example.before, example.rank_before),
            (example.target_after, example.after, example.rank_after),
        ):
            if place is not None:
                assert titles[place] == example.target
                assert rank == place + 1


def test_examples_fill_up_where_a_kind_is_empty() -> None:
    data = random_dataset(10, 40)
    same: Evaluation = evaluate(LastItemModel(torch.zeros(40, 4)), data)
    examples = choose_examples(data, same, same, count=12)
    assert len(examples) == 10
    assert all(example.target_after is None for example in examples)
