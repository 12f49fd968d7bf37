"""A small store with texts, brands, categories and prices, a finished run on it, and its export with everything."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from evaluation.examples import chain_dataset
from made_once import MadeOnce
from onnx_operators import remember_operators
from settings_of import parse_settings
from tiny_llama import WORDS, save

from llmd4rec import Recommender
from llmd4rec.data.dataset import Dataset
from llmd4rec.export.write import ExportOptions, export_run
from llmd4rec.runs.run import Run

from . import shop
from .store import STAGES, Store

ITEMS = 20


def catalogue() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "item_id": [f"i{item}" for item in range(ITEMS)],
            "title": [f"{'red' if item % 2 else 'blue'} film {item}" for item in range(ITEMS)],
            "brand": [None if item % 5 == 4 else ("Öl & Co", "acme", "Acme Plus")[item % 3] for item in range(ITEMS)],
            "category": [("Films > Comedy", "Films > Drama > Old", "Books")[item % 3] for item in range(ITEMS)],
            "price": [None if item == 7 else float(item) for item in range(ITEMS)],
        }
    )


@pytest.fixture(scope="session")
def sentences(made_once: MadeOnce) -> str:
    """A tiny sentence encoder."""
    from transformers import BertConfig, BertModel

    def make(folder: Path) -> None:
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(WORDS) + 2,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            initializer_range=0.5,
        )
        save(folder, BertModel(config))

    return str(made_once("sentences", make))


@pytest.fixture(scope="session")
def store(made_once: MadeOnce, tiny_settings: dict[str, Any], sentences: str) -> Store:
    """Export with both models, the text encoder and three example histories."""

    def make(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LLMD4REC_CACHE", str(folder / "cache"))
            data = chain_dataset(users=40, items=ITEMS, length=8)
            data = dataclasses.replace(data, catalogue=catalogue(), text_fields=("title", "brand"))
            data.save(folder / "data")
            data = Dataset.load(folder / "data")
            settings = {**tiny_settings, "model": {**tiny_settings["model"], "item_features": "id+text"}}
            settings["llm"] = {**tiny_settings["llm"], "item_features": "id+text"}
            settings["texts"] = {"encoder": sentences}
            run = parse_settings(settings).fit(data, folder / "run")
            options = ExportOptions(both=True, text_encoder=True, example_histories=3)
            remember_operators()
            export_run(run, data, folder / "export", "distilled", options=options)

    folder = made_once("store", make)
    return Store(Run.open(folder / "run"), Dataset.load(folder / "data"), folder / "export")


@pytest.fixture(scope="session")
def exports(made_once: MadeOnce, chain_run: Path, chain_data: Dataset) -> dict[str, Path]:
    """The small run's models, an export each."""

    def make(folder: Path) -> None:
        remember_operators()
        for stage in STAGES:
            assert "agree" in export_run(Run.open(chain_run), chain_data, folder / stage, stage)

    folder = made_once("exports", make)
    return {stage: folder / stage for stage in STAGES}


@pytest.fixture
def recommender(store: Store) -> Recommender:
    return Recommender.load(store.export)


@pytest.fixture(scope="session")
def models(made_once: MadeOnce, tiny_settings: dict[str, Any]) -> Path:
    """A shop's exports: `both`, with the undistilled model and examples, and `bare`, without either."""

    def make(folder: Path) -> None:
        run, data = shop.make_run(folder, tiny_settings)
        remember_operators()
        both = shop.export(run, data, folder / "models" / "both", both=True, example_histories=4)
        shop.bare(both, folder / "models" / "bare")

    return made_once("shop", make) / "models"


@pytest.fixture(scope="module")
def process(models: Path) -> Iterator[shop.Process]:
    with shop.running(
        models / "both", "--allow-changes", "--models", models, "--max-k", 50, "--max-history", 100, "--max-batch", 8
    ) as process:
        yield process


@pytest.fixture(scope="module")
def client(process: shop.Process) -> shop.Client:
    return process.client
