"""An ensemble scores with the mean of its models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation.examples import random_dataset

from llmd4rec.data.batching import SequenceBatch
from llmd4rec.distillation.cache import Precision, open_cache, write_cache
from llmd4rec.errors import ModelError
from llmd4rec.losses.int8 import Int8Rows
from llmd4rec.models.base import SequenceEncoder, last_states
from llmd4rec.models.ensemble import Ensemble
from llmd4rec.models.sequential import SASRec

ITEMS = 40


def member(dim: int, max_length: int, seed: int) -> Any:
    network: Any = SASRec(dim=dim, layers=1, max_length=max_length).build(ITEMS, seed).eval()
    with torch.no_grad():
        network.items.weight *= 20
    return network


def scores(model: SequenceEncoder, items_BL: torch.Tensor) -> torch.Tensor:
    lengths = torch.full((len(items_BL),), items_BL.shape[1])
    with torch.no_grad():
        return last_states(model, SequenceBatch(items_BL, lengths)) @ model.item_table().T


def test_scores_are_the_mean_of_the_members_scores() -> None:
    members = [member(8, 6, 1), member(16, 9, 2), member(8, 6, 3)]
    ensemble = Ensemble(members).eval()
    items = torch.randint(ITEMS, (5, 6), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(scores(ensemble, items), sum(scores(m, items) for m in members) / 3)
    assert (ensemble.dim, ensemble.max_length, ensemble.num_items) == (32, 6, ITEMS)
    some = torch.tensor([4, 0, 4])
    assert torch.equal(ensemble.item_table(some), ensemble.item_table()[some])


def test_its_distribution_is_the_members_normalised_geometric_mean() -> None:
    members = [member(8, 6, 1), member(16, 6, 2)]
    items = torch.tensor([[1, 2, 3]])
    product = torch.stack([scores(m, items).softmax(1) for m in members]).prod(0).sqrt()
    torch.testing.assert_close(scores(Ensemble(members), items).softmax(1), product / product.sum())


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_it_is_published_like_any_model(precision: Precision, tmp_path: Path) -> None:
    data = random_dataset(20, ITEMS, longest=12)
    members = [member(8, 6, 1), member(16, 6, 2)]
    folders = [tmp_path / name for name in ("ensemble", "first", "second")]
    for folder, model in zip(folders, [Ensemble(members), *members], strict=True):
        write_cache(model, data, folder, label=folder.name)
    opened: list[Any] = [open_cache(folder, data, torch.device("cpu")) for folder in folders]
    ensemble, first, second = opened
    mean = (first.states @ first.table.numpy().T + second.states @ second.table.numpy().T) / 2
    if precision == "float32":
        ours = ensemble.states @ ensemble.table.numpy().T
        assert abs(ours - mean).max() < 2e-2 * abs(mean).max()
    else:
        rounded = open_cache(folders[0], data, torch.device("cpu"), "int8")
        of_teacher: Any = rounded.batch(torch.arange(len(rounded.rank)))
        states = Int8Rows.of(of_teacher.scores.states_NK.float())
        ours = states.matmul(of_teacher.scores.table_IK, torch.empty(len(mean), ITEMS)).numpy()
        assert abs(ours - mean).max() < 3e-2 * abs(mean).max()


def test_models_of_different_catalogues_form_no_ensemble() -> None:
    with pytest.raises(ModelError, match="different catalogues"):
        Ensemble([member(8, 6, 1), SASRec(dim=8, heads=1).build(ITEMS + 1, 0)])
