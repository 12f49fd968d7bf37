"""What the report says of who taught."""

from __future__ import annotations

from dataclasses import replace

import pytest
from in_another_process import changed

from llmd4rec.report import render
from llmd4rec.report.from_run import report_content, teachers_in_words
from llmd4rec.runs.run import parse_settings


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ({"taught_by": "llm-alone"}, "the language model"),
        (
            {"taught_by": "wide-alone", "logit_adjustment": 0.25},
            "a wider recommender; taught to leave out 0.25 · log(1 + training count) of the items' popularity",
        ),
        (
            {"taught_by": "llm-round-1 + crm-alone", "teachers": {"llm-round-1": 1, "crm-alone": 3}},
            "the language model (25%) and itself as it was before (75%)",
        ),
        (
            {"taught_by": "", "teachers": {"llm-alone": 0, "wide-alone": 2, "wide-alone-2": 1, "crm-alone": 1}},
            "2 wider recommenders (75%) and itself as it was before (25%), but not by the language model: on "
            "validation the mean of the scores is as good or better without",
        ),
        (
            {"taught_by": "", "teachers": {"wide-alone": 1, "wide-alone-2": 0, "crm-alone": 0}},
            "a wider recommender, but not by itself as it was before: on validation the mean of the scores is as good "
            "or better without",
        ),
    ],
)  # fmt: skip
def test_teachers_in_words(stage, words):
    assert teachers_in_words(stage) == words


def test_what_orders_the_histories_is_said(tiny_settings, chain_data, tmp_path):
    run = parse_settings(tiny_settings).fit(chain_data, tmp_path / "run")
    assert "ordered by" not in report_content(run, replace(chain_data, report={}), []).facts
    ties = {"broken_by": "row", "neighbours": 8, "tied": 2, "tied_share": 0.25, "ascending_by_identifier": 1.0}
    data = replace(chain_data, report={"interactions": {"ordered_by": "timestamp", "ties": ties}})
    facts = report_content(run, data, []).facts
    assert facts["ordered by"] == "time"
    assert facts["tied neighbours"] == "25.0%, 100% of them ascending by identifier"


def test_each_wide_training_has_a_line_and_a_name_of_its_own(tiny_settings, chain_data, tmp_path):
    settings = changed(
        tiny_settings, wide=16, teacher="self", direction="up", training__crm__epochs=1,
        wides=[{}, {"name": "gru4rec"}, {"name": "gru4rec", "without": []}],
    )  # fmt: skip
    run = parse_settings(settings).fit(chain_data, tmp_path / "run")
    content = report_content(run, chain_data, [])
    points = {(point.model, point.round, point.name): point.value for point in content.curves}
    logged = {line["phase"]: line["validation_ndcg"] for line in run.log.read() if line["epoch"] == 1}
    assert points == {
        ("crm", 0, ""): logged["crm-alone"],
        ("wide", 0, "Wider SASRec"): logged["wide-alone"],
        ("wide", 0, "Wider GRU4Rec 1"): logged["wide-alone-2"],
        ("wide", 0, "Wider GRU4Rec 2"): logged["wide-alone-3"],
        ("crm", 1, ""): logged["crm-round-1"],
    }
    page = render(content)
    assert page.count("<th scope='row'>Wider GRU4Rec") == 2
    assert "Wider recommenders" in page
    assert "language model" not in page.partition("round by round")[2].partition("</section>")[0]
