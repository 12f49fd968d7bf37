from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from evaluation.examples import LastItemModel, evaluate, info_of, means_of, random_dataset, values_of

from llmd4rec.evaluation import compare
from llmd4rec.evaluation.evaluation import Evaluation
from llmd4rec.evaluation.significance import Comparison
from llmd4rec.report import (
    CurvePoint,
    Example,
    PlanRow,
    ReportContent,
    StageRow,
    WeightHistogram,
    charts,
    choose_examples,
    render,
    write_report,
)
from llmd4rec.report.charts import nice_ticks
from llmd4rec.report.sections import finding
from llmd4rec.report.words import ensemble

NASTY = """<script>alert("x")</script>'&"""
#: What the project once called its models, and what no reader knows.
OLD_WORDS = re.compile(r"\b(crm|wide|wider|alone|listen(?:s|ed)?|heard|before distillation|after distillation)\b", re.I)


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


def evaluation(ranks: np.ndarray, **changes: object) -> Evaluation:
    """Of one user per rank."""
    numbers = np.arange(len(ranks))
    per_user = pl.DataFrame(
        {
            "user_id": [f"u{user}" for user in numbers],
            "item_id": [f"i{user % 7}" for user in numbers],
            "rank": ranks,
            "history_length": numbers % 9 + 2,
            "train_count": numbers % 13,
            "tail": numbers % 2 == 0,
            "next_day": numbers % 4 == 0,
            **values_of(ranks),
        }
    )
    whole = Evaluation(
        metrics=means_of(ranks),
        metric_info=info_of(),
        slices={},
        users=len(ranks),
        model="SASRec 64",
        stage="undistilled",
        filter_seen=True,
        split="test",
        per_user=per_user,
        top=np.zeros((len(ranks), 20), dtype=np.int32),
    )
    return dataclasses.replace(whole, **changes)  # type: ignore[arg-type]


def random_ranks(users: int, seed: int, scale: float) -> np.ndarray:
    return np.random.default_rng(seed).exponential(scale, users).astype(np.int64) + 1


def comparison_of(scale: float, users: int = 2_000, **changes: object) -> Comparison:
    ranks = [
        np.random.default_rng(seed).exponential(s, users).astype(np.int64) + 1 for seed, s in enumerate((60, scale))
    ]
    first = evaluation(ranks[0], **changes)
    second = evaluation(ranks[1], stage="distilled-round-1", **changes)
    return compare(first, second, flips=999, resamples=200)


@pytest.fixture(scope="module")
def gain() -> Comparison:
    return comparison_of(40.0)


def full_content(comparison: Comparison, word: str = "word") -> ReportContent:
    metrics = {"hr@10": 0.0829, "ndcg@10": 0.0505, "coverage@10": 0.62}
    return ReportContent(
        title=word,
        model=word,
        llm=word,
        undistilled="undistilled",
        distilled="distilled-round-1",
        rows=[
            StageRow("undistilled", "model", 0, word, metrics, False, 862_464, 312.0, 1.82),
            StageRow("teacher-1", "teacher", 0, word, metrics),
            StageRow("llm-round-1", "llm", 1, word, metrics),
            StageRow("distilled-round-1", "model", 1, word, metrics | {"ndcg@10": 0.0556}, True, 862_464, 812.0, 1.82),
        ],
        plan=[
            PlanRow("undistilled", "model", 0, word, best_epoch=3, epochs=5, validation=0.0612, seconds=61.0),
            PlanRow("teacher-1", "teacher", 0, word, seconds=600.0),
            PlanRow(word, "llm", 1, word, {"teacher-1": 1}, 0.0, None, None, word, word, word),
            PlanRow("distilled-round-1", "model", 1, word, {"teacher-1": 3, "undistilled": 1, word: 0}, 0.2),
            PlanRow("distilled-round-2", "model", 2, word, {"teacher-1": None}),
        ],
        stopped_because=word,
        comparison=comparison,
        llm_comparison=dataclasses.replace(comparison, first=word, second=word),
        curves=[
            CurvePoint(f"{role}-{number}", role, number, epoch, 0.01 * epoch + 0.001 * number)
            for number in (0, 1)
            for role in ("llm", "model")
            for epoch in (1, 2, 3)
        ],
        weights=[
            WeightHistogram(f"{role}-round-1", role, 1, [0, 0.5, 1, 1.5, 2], [5, 1, 0, 4], 0.97)
            for role in ("llm", "model")
        ],
        examples=[
            Example(word, [word] * 12, word, [word] * 10, ["other", word], 3, 1, 4, 2),
            Example(word, [word], word, ["other"], ["other"], None, None, None, 1234),
        ],
        facts={word: word, "users": 22_363},
        settings=f"rounds: 3 # {word}",
        environment={word: word},
        commands=[f"llmd4rec train {word}"],
    )


def test_each_teacher_has_the_name_of_its_own_network() -> None:
    rows = [
        StageRow("undistilled", "model", 0, "SASRec 64", {"ndcg@10": 0.05}, served=True),
        StageRow("teacher-1", "teacher", 0, "SASRec 256", {"ndcg@10": 0.06}),
        StageRow("teacher-2", "teacher", 0, "GRU4Rec 256", {"ndcg@10": 0.06}),
    ]
    curves = [CurvePoint(row.stage, "model" if n == 0 else "teacher", 0, 1, 0.02) for n, row in enumerate(rows)]
    page = Page(render(ReportContent("r", model="SASRec 64", rows=rows, curves=curves)))
    assert "teacher-1SASRec 256" in page.text
    assert "teacher-2GRU4Rec 256" in page.text
    assert "undistilledSASRec 64 served" in page.text
    assert page.text.count("64 served") == 1
    assert page.text.count("256 served") == 0
    assert "Teachers: SASRec 256 and GRU4Rec 256" in page.text


def test_a_full_report_holds_the_figures(gain: Comparison) -> None:
    page = Page(render(full_content(gain)))
    d = gain.overall.metrics["ndcg@10"]
    for figure in (f"{d.first:.4f}", f"{d.second:.4f}", "0.0556", "862 k", "1.82 ms", "22,363", "mean 0.97", "1,234"):
        assert figure in page.text
    for section in ("results", "plan", "learning", "origins", "weights", "overlap", "histories", "background"):
        assert section in page.ids
    assert "4 earlier" in page.text
    assert "already in the history" in page.text
    assert "On next-day targets (25% of users" in page.text
    assert "seen items filtered" in page.text
    assert not OLD_WORDS.search(page.text), OLD_WORDS.search(page.text)


def test_the_plan_says_who_taught_whom(gain: Comparison) -> None:
    page = Page(render(full_content(gain)))
    assert "teacher-1 (75%) and undistilled (25%); unused: word0.2" in page.text  # and the τ beside it
    assert "Teachers, with their ensemble weights: teacher-1 [word] (75%) and undistilled [word] (25%)" in page.text
    assert "Logit adjustment: τ = 0.2." in page.text
    assert "word, item embeddings of word, rollouts of word" in page.text
    assert "5 (3)" in page.text
    assert "10 min" in page.text
    assert "not trained" in page.text


@pytest.mark.parametrize(
    ("teachers", "words"),
    [
        ({"llm": 1}, "llm"),
        ({"llm": None, "teacher-1": None}, "llm and teacher-1"),
        ({"a": 1, "b": 2, "c": 1}, "a (25%), b (50%) and c (25%)"),
        ({"llm": 0, "teacher-1": 2, "undistilled": 0}, "teacher-1; unused: llm, undistilled"),
        ({}, ""),
    ],
)
def test_ensemble_in_words(teachers: dict[str, int | None], words: str) -> None:
    assert ensemble(teachers) == words


def test_seen_items_that_stay_candidates_are_said_to(gain: Comparison) -> None:
    page = Page(render(full_content(comparison_of(40.0, 200, filter_seen=False))))
    assert "seen items kept" in page.text
    assert "seen items filtered" not in page.text


def test_a_served_undistilled_model_is_said_to_be(gain: Comparison) -> None:
    content = full_content(gain)
    said = "the undistilled model is better, so it is the one that is served"
    assert said not in Page(render(content)).text
    rows = [dataclasses.replace(row, served=row.stage == "undistilled") for row in content.rows]
    assert said in Page(render(dataclasses.replace(content, rows=rows))).text


def test_the_plan_says_how_fast_interactions_age(gain: Comparison) -> None:
    content = full_content(gain)
    assert "half-life" not in Page(render(content)).text
    plan = [dataclasses.replace(row, half_life_days=120.0) for row in content.plan]
    page = Page(render(dataclasses.replace(content, plan=plan)))
    assert "half-life" in page.text
    assert "120 days" in page.text


def test_what_was_learned_last_is_said(gain: Comparison) -> None:
    content = full_content(gain)
    assert "learned last" not in Page(render(content)).text
    plan = [dataclasses.replace(row, newest_days=28.0) for row in content.plan]
    text = Page(render(dataclasses.replace(content, plan=plan))).text
    assert "learned last" in text
    assert "before the newest 28 days are learned" in text


def test_a_control_without_teachers_is_said_to_be(gain: Comparison) -> None:
    plan = [PlanRow("distilled-round-1", "model", 1, "SASRec 64")]
    page = Page(render(dataclasses.replace(full_content(gain), plan=plan)))
    assert "the second one has no teachers" in page.text
    assert "from its teachers" not in page.text


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
        {"rows": [StageRow("undistilled", "model", 0, "SASRec 64", {"hr@10": 0.1, "ndcg@10": 0.05})]},
        {"rows": [StageRow("undistilled", "model", 0, "SASRec 64", {}, parameters=12)]},
        {"plan": [PlanRow("undistilled", "model", 0, "SASRec 64")]},
        {"curves": [CurvePoint("undistilled", "model", 0, 1, 0.0)]},
        {
            "curves": [
                CurvePoint("undistilled", "model", 0, 1, 0.02),
                CurvePoint("undistilled", "model", 0, 2, float("nan")),
            ]
        },
        {"curves": [CurvePoint("undistilled", "model", 0, 1, float("nan"))]},
        {"curves": [CurvePoint("distilled-round-1", "model", 1, 1, 0.02)]},
        {"weights": [WeightHistogram("distilled-round-1", "model", 1, [0, 2], [0], 0.0)]},
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
    first = dataclasses.replace(first, metrics=means_of(first.ranks, (5,)))
    rows = [StageRow("distilled-round-1", "model", 1, "SASRec 64", first.metrics)]
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
    rows = [
        StageRow("teacher-1", "teacher", 0, "SASRec 256", {"ndcg@10": 0.06}),
        StageRow("undistilled", "model", 0, "SASRec 64", {"ndcg@10": 0.05}, served=True),
    ]
    assert finding(ReportContent("r", rows=rows)) == "SASRec 64 (undistilled) reaches NDCG@10 0.0500."
    assert finding(ReportContent("r", rows=rows[:1])) == "SASRec 256 (teacher-1) reaches NDCG@10 0.0600."
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
    first, second = (evaluate(LastItemModel(torch.randn(40, 4, generator=generator)), data) for _ in range(2))
    examples = choose_examples(data, first, second, count=12)
    assert len(examples) == len({example.user for example in examples}) == 12
    kinds = [(each.target_undistilled is not None, each.target_distilled is not None) for each in examples]
    assert kinds == [(False, True), (True, False), (True, True), (False, False)] * 3
    assert examples == choose_examples(data, first, second, count=12)
    for example in examples:
        user = int(example.user[1:])
        position = int(data.test[user])
        assert list(example.history) == [data.titles[item] for item in data.history(position)]
        assert example.target == data.titles[data.items[position]]
        assert not set(example.distilled) & set(example.history)
        for place, titles, rank in (
            (example.target_undistilled, example.undistilled, example.rank_undistilled),
            (example.target_distilled, example.distilled, example.rank_distilled),
        ):
            if place is not None:
                assert titles[place] == example.target
                assert rank == place + 1


def test_examples_fill_up_where_a_kind_is_empty() -> None:
    data = random_dataset(10, 40)
    same: Evaluation = evaluate(LastItemModel(torch.zeros(40, 4)), data)
    examples = choose_examples(data, same, same, count=12)
    assert len(examples) == 10
    assert all(example.target_distilled is None for example in examples)
