"""Item features of one's own: given by name, path or instance, used by their kind, and merged when training ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import polars as pl
import pytest
import scipy.sparse as sp
import torch
from evaluation.examples import chain_dataset
from settings_of import parse_settings
from torch import Tensor

from llmd4rec.config.settings import dump_settings, load_settings, save_settings
from llmd4rec.data.dataset import Dataset
from llmd4rec.distillation.efforts import EFFORTS
from llmd4rec.distillation.plan import find, plan
from llmd4rec.distillation.settings import DistillationSettings
from llmd4rec.errors import ConfigError
from llmd4rec.features.item_features import ItemFeature, Kind, item_features, written
from llmd4rec.features.neighbours import Neighbours
from llmd4rec.features.text import Text
from llmd4rec.models.base import count_parameters
from llmd4rec.models.embedding import ItemEmbedding
from llmd4rec.models.sequential import SASRec

ITEMS = 12
ALONE: dict[str, Any] = {"rounds": 0, "llm": None}


class Prices(ItemFeature):
    """Prices of a CSV file: item_id, price."""

    kind: ClassVar[Kind] = "vectors"
    path: str

    def of(self, dataset: Dataset, text_vectors: Tensor | None) -> Tensor | None:
        table = pl.read_csv(self.path, schema_overrides={"item_id": pl.String, "price": pl.Float64})
        prices = dataset.catalogue.select("item_id").join(table, on="item_id", how="left", maintain_order="left")
        return torch.from_numpy(prices["price"].fill_null(0.0).to_numpy().copy())[:, None]


class Shelves(ItemFeature):
    """Four items to a shelf, as attributes or as neighbours of each other."""

    kind: ClassVar[Kind] = "attributes"

    def of(self, dataset: Dataset, text_vectors: Tensor | None) -> Any:
        return sp.csr_matrix(np.eye(3, dtype=np.float32)[np.arange(ITEMS) // 4])


class Together(Shelves):
    kind: ClassVar[Kind] = "neighbours"

    def of(self, dataset: Dataset, text_vectors: Tensor | None) -> Any:
        shelf = np.arange(ITEMS) // 4
        return sp.csr_matrix((shelf[:, None] == shelf).astype(np.float32) - np.eye(ITEMS))


class Wrong(ItemFeature):
    """What `gives` names."""

    kind: ClassVar[Kind] = "vectors"
    gives: str

    def of(self, dataset: Dataset, text_vectors: Tensor | None) -> Any:
        return {
            "another kind": sp.csr_matrix((ITEMS, 2)),
            "another catalogue": torch.zeros(ITEMS - 1, 2),
            "no number": np.full((ITEMS, 1), np.nan),
        }[self.gives]


@pytest.fixture
def prices(tmp_path: Path) -> Path:
    path = tmp_path / "prices.csv"
    path.write_text("item_id,price\n" + "".join(f"i{item},{item / 10}\n" for item in range(1, ITEMS)))
    return path


def data() -> Dataset:
    return chain_dataset(users=30, items=ITEMS, length=8)


# ---- how they are given -----------------------------------------------------------------------------------------
def test_a_short_text_a_list_and_instances_say_the_same() -> None:
    inputs: list[Any] = ["id+neighbours+text", ["id", "neighbours", "text"], (Text(), Neighbours())]
    inputs += [["text", "id", {"name": "neighbours", "count": 20}], ["id", Neighbours(), "text", Text()]]
    for given in inputs:
        assert SASRec(item_features=given).item_features == (Text(), Neighbours())
        assert SASRec(item_features=given).model_dump(mode="json")["item_features"] == "id+text+neighbours"


def test_features_of_ones_own_stand_behind_known_ones_and_survive_yaml(tmp_path: Path) -> None:
    given = ["id", {"name": f"{__name__}:Prices", "path": "prices.csv"}, {"name": "neighbours", "count": 5}, "text"]
    settings = parse_settings(ALONE | {"model": {"item_features": given}})
    expected = ["id", "text", {**Neighbours(count=5).model_dump(), "name": "neighbours"}]
    expected.append({"name": f"{__name__}:Prices", "path": "prices.csv"})
    assert written(settings.model.item_features) == expected
    save_settings(settings, tmp_path / "config.yaml")
    again = load_settings(DistillationSettings, tmp_path / "config.yaml")
    assert again.model == settings.model
    assert dump_settings(again) == dump_settings(settings)


def test_a_teacher_does_without_one_by_its_name() -> None:
    values = dict(EFFORTS["best"]) | {"model": {"item_features": ["id", "text", f"{__name__}:Shelves"]}}
    for name, left in ((f"{__name__}:Shelves", (Text(),)), ("text", (Shelves(),))):
        settings = parse_settings(values | {"teachers": [{"without": [name]}]})
        assert find(plan(settings), "teacher-1").network.item_features == left
    assert find(plan(settings), "teacher-1").texts is None
    with pytest.raises(ConfigError, match="no item feature is called 'shelves'"):
        parse_settings(values | {"teachers": [{"without": ["shelves"]}]})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["text"], "the list must name id"),
        (["id", "colour"], r"model\.item_features.*no item feature has this name.*package\.module:Name"),
        (["id", "no_such_module:Prices"], "no module 'no_such_module'"),
        (["id", f"{__name__}:ITEMS"], "is no item feature"),
        (["id", {"name": f"{__name__}:Prices", "file": "x"}], r"item_features.*file"),
        (["id", f"{__name__}:Prices"], r"item_features.*path"),
    ],
)
def test_what_is_wrong_is_named(given: list[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_settings(ALONE | {"model": {"item_features": given}})


@pytest.mark.parametrize(
    ("gives", "message"),
    [
        ("another kind", "gives a csr_matrix, and its kind is vectors"),
        ("another catalogue", r"gives vectors of shape \(11, 2\) for 12 items"),
        ("no number", "gives NaN or infinite values"),
    ],
)
def test_arrays_that_cannot_be_used_are_refused(gives: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        item_features([Wrong(gives=gives)], data(), None)


# ---- how they are used ------------------------------------------------------------------------------------------
def test_each_kind_is_used_in_its_way(prices: Path) -> None:
    texts = torch.randn(ITEMS, 5)
    found: Any = item_features([Text(), Prices(path=str(prices)), Shelves(), Neighbours(), Together()], data(), texts)
    assert [tuple(vectors.shape) for vectors in found.vectors] == [(ITEMS, 5), (ITEMS, 1)]
    torch.testing.assert_close(found.vectors[1][:, 0], torch.arange(ITEMS) / 10)
    near = Neighbours().of(data(), texts).toarray()
    together = Together().of(data(), None).toarray()
    np.testing.assert_allclose(found.neighbours.toarray(), (near + together) / 2, rtol=1e-6)

    items = ItemEmbedding(ITEMS, 4)
    items.attach(found, seed=0)
    assert items.of_attributes is not None
    torch.nn.init.normal_(items.of_attributes)
    for tower in items.towers:
        torch.nn.init.normal_(tower.last.weight)  # type: ignore[union-attr, arg-type]
    own = items.weight + items.towers[0]() + items.towers[1]() + items.of_attributes[torch.arange(ITEMS) // 4]
    torch.testing.assert_close(items.table(), own + 0.5 * torch.from_numpy(found.neighbours.toarray()) @ own)
    asked = torch.tensor([3, 0, 11, 3])
    torch.testing.assert_close(items(asked), items.table()[asked])
    items.merge()
    assert {name for name, _ in items.named_parameters()} == {"weight"}


def test_text_vectors_are_for_models_that_read_texts() -> None:
    class Sees(ItemFeature):
        kind: ClassVar[Kind] = "vectors"

        def of(self, dataset: Dataset, text_vectors: Tensor | None) -> Tensor | None:
            seen.append(text_vectors is not None)
            return None

    seen: list[bool] = []
    for features in ([Sees()], [Text(), Sees()]):
        item_features(features, data(), torch.randn(ITEMS, 5))
    assert seen == [False, True]


def test_a_run_learns_from_a_file_and_serves_a_model_of_the_same_size(
    prices: Path, tmp_path: Path, tiny_settings: dict[str, Any]
) -> None:
    """The only thing that differs is the feature, so it is what changes the weights."""
    found = {}
    for name, inputs in {"plain": "id", "priced": ["id", {"name": f"{__name__}:Prices", "path": str(prices)}]}.items():
        model = tiny_settings["model"] | {"item_features": inputs}
        values = tiny_settings | {"rounds": 0, "llm": None, "model": model}
        found[name] = parse_settings(values).fit(data(), tmp_path / name).load("undistilled")
    assert count_parameters(found["plain"]) == count_parameters(found["priced"])
    assert not torch.equal(found["plain"].item_table(), found["priced"].item_table())
