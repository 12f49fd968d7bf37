"""Settings of the language model and of texts, and what is made of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch
from evaluation.examples import make_dataset
from pydantic import ValidationError

from llmd4rec.errors import ConfigError
from llmd4rec.features.text_settings import TextSettings
from llmd4rec.models.llm.assemble import load_text_vectors, prepare_text_vectors
from llmd4rec.models.llm.settings import LLM

CPU = torch.device("cpu")


def test_the_item_table_starts_at_a_models_wherever_it_can() -> None:
    assert LLM().starts_from_model(64)
    assert not LLM(dim=32).starts_from_model(64)
    assert LLM(dim=32).starts_from_model(32)
    assert not LLM(item_features="text").starts_from_model(64)
    assert not LLM(inject="never").starts_from_model(64)
    assert not LLM(init_table_from_model=False).starts_from_model(64)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"item_features": "text"}, "set item_features to id or id"),
        ({"inject": "never"}, "set inject to once or every"),
    ],
)
def test_a_start_that_cannot_be_is_refused(values: dict[str, str], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LLM(init_table_from_model=True, **values)


def test_texts_are_encoded_once_by_the_language_model_of_the_run(tmp_path: Path, llama: str) -> None:
    data = make_dataset([[0, 1, 2]], num_items=3)
    prepare_text_vectors(TextSettings(encoder="llm"), LLM(llama, layers=1), data, tmp_path, CPU)
    vectors = load_text_vectors(tmp_path)
    assert vectors is not None
    assert len(vectors) == 3
    prepare_text_vectors(TextSettings(encoder="nowhere"), None, data, tmp_path, CPU)  # they are there


def test_texts_are_made_of_the_fields_asked_for(tmp_path: Path, llama: str) -> None:
    data = make_dataset([[0, 1, 2]], num_items=3)
    same = replace(data, catalogue=data.catalogue.with_columns(kind=pl.lit("shirt")))
    prepare_text_vectors(TextSettings(encoder="llm", fields=["kind"]), LLM(llama, layers=1), same, tmp_path, CPU)
    vectors = load_text_vectors(tmp_path)
    assert vectors is not None
    assert torch.equal(vectors[0], vectors[1])


def test_texts_that_nobody_can_encode_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no language model"):
        prepare_text_vectors(TextSettings(encoder="llm"), None, make_dataset([[0, 1, 2]], 3), tmp_path, CPU)


def test_without_texts_nothing_is_written_unless_a_model_reads_nothing_else(tmp_path: Path) -> None:
    data = replace(make_dataset([[0, 1, 2]], 3), text_fields=())
    for llm in (None, LLM()):
        prepare_text_vectors(TextSettings(), llm, data, tmp_path, CPU)
        assert load_text_vectors(tmp_path) is None
    with pytest.raises(ConfigError, match=r"llm\.item_features is text"):
        prepare_text_vectors(TextSettings(), LLM(item_features="text"), data, tmp_path, CPU)
