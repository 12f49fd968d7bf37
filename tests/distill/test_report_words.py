"""What the report says of who taught."""

from __future__ import annotations

import pytest

from llmd4rec.distill.report import teachers_in_words


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ({"taught_by": "llm-alone"}, "the language model"),
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
