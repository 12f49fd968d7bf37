"""The item table: rows and whole agree, and texts that help to train it leave nothing behind."""

from __future__ import annotations

import pytest
import torch

from llmd4rec.errors import ConfigError
from llmd4rec.models.crm import SASRec
from llmd4rec.models.crm.items import ItemTable, item_table_of
from llmd4rec.models.ranker import count_parameters, last_states

ITEMS, DIM, TEXT = 30, 8, 12


def texts() -> torch.Tensor:
    return torch.randn(ITEMS, TEXT, generator=torch.Generator().manual_seed(2))


def table(*, trained: bool = True) -> ItemTable:
    items = ItemTable(ITEMS, DIM)
    items.read_texts(texts(), seed=1)
    if trained:
        torch.nn.init.normal_(items.tower.last.weight)
    return items


def test_rows_are_those_of_the_whole_table_with_and_without_texts():
    asked = torch.tensor([[3, 0, 3], [29, 7, 7]])
    for items in (ItemTable(ITEMS, DIM), table()):
        torch.testing.assert_close(items(asked), items.table()[asked])
        torch.testing.assert_close(items.table(asked[0]), items.table()[asked[0]])


def test_a_tower_moves_nothing_until_it_has_learned():
    items = ItemTable(ITEMS, DIM)
    before = items.table().clone()
    items.read_texts(texts(), seed=1)
    assert torch.equal(items.table(), before)
    items.table().square().sum().backward()
    assert items.tower.last.weight.grad.abs().sum() > 0


def test_items_with_the_same_text_get_the_same_help():
    items = ItemTable(ITEMS, DIM)
    vectors = texts()
    vectors[5] = vectors[4]
    items.read_texts(vectors, seed=1)
    torch.nn.init.normal_(items.tower.last.weight)
    help_ID = items.table() - items.weight
    torch.testing.assert_close(help_ID[4], help_ID[5])
    assert (help_ID[4] - help_ID[6]).abs().max() > 0.01


def test_folding_changes_no_answer_and_leaves_an_ordinary_network():
    plain = SASRec(dim=DIM, layers=1, max_length=6).build(ITEMS, seed=0).eval()
    folded = SASRec(dim=DIM, layers=1, max_length=6, items="id+text").build(ITEMS, seed=0).eval()
    items = item_table_of(folded)
    items.read_texts(texts(), seed=1)
    torch.nn.init.normal_(items.tower.last.weight, std=0.1)
    history, length = torch.tensor([[1, 5, 9, 2]]), torch.tensor([4])
    with torch.no_grad():
        before = last_states(folded, history, length) @ folded.item_table().T
        items.fold_texts()
        after = last_states(folded, history, length) @ folded.item_table().T
    torch.testing.assert_close(after, before)
    assert count_parameters(folded) == count_parameters(plain)
    plain.load_saved_state(folded.saved_state())  # the same names and shapes
    assert torch.equal(last_states(plain, history, length) @ plain.item_table().T, after)


def test_vectors_of_another_catalogue_are_refused():
    with pytest.raises(ConfigError, match=r"30 rows cannot read text vectors of shape \(29, 12\)"):
        ItemTable(ITEMS, DIM).read_texts(texts()[1:], seed=0)
    with pytest.raises(ConfigError, match="Linear cannot read item texts"):
        item_table_of(torch.nn.Linear(1, 1))  # type: ignore[arg-type]
