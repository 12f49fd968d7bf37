"""The item table: rows and whole agree, and texts that help to train it leave nothing behind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import pytest
import scipy.sparse as sp
import torch

from llmd4rec import Dataset
from llmd4rec.data.batching import SequenceBatch
from llmd4rec.errors import ConfigError
from llmd4rec.features.attributes import item_attributes, item_words
from llmd4rec.features.cooccurrence import co_occurrence, top_k_per_row
from llmd4rec.features.item_features import ItemFeatures, item_features
from llmd4rec.features.neighbours import nearest_texts
from llmd4rec.models.base import count_parameters, last_states
from llmd4rec.models.embedding import LARGE, ItemEmbedding, item_embedding_of
from llmd4rec.models.sequential import SASRec

ITEMS, DIM, TEXT = 30, 8, 12


def texts() -> torch.Tensor:
    return torch.randn(ITEMS, TEXT, generator=torch.Generator().manual_seed(2))


def neighbours() -> sp.csr_matrix:
    """Three entries a row, the last item alone."""
    rng = np.random.default_rng(5)
    rows = np.repeat(np.arange(ITEMS - 1), 3)
    return sp.csr_matrix((rng.random(len(rows)), (rows, rng.integers(0, ITEMS, len(rows)))), (ITEMS, ITEMS))


def attributes() -> sp.csr_matrix:
    rng = np.random.default_rng(6)
    return sp.csr_matrix((rng.random((ITEMS, 4)) < 0.4).astype(np.float32))


def table(*, trained: bool = True, near: bool = True, dropout: float = 0.0, large: int = LARGE) -> Any:
    items: Any = ItemEmbedding(ITEMS, DIM, dropout, large=large)
    items.attach(ItemFeatures((texts(),), attributes(), neighbours() if near else None), seed=1)
    if trained:
        torch.nn.init.normal_(items.towers[0].last.weight)
        torch.nn.init.normal_(items.of_attributes)
    return items


def test_rows_are_those_of_the_whole_table_with_and_without_texts() -> None:
    asked = torch.tensor([[3, 0, 3], [29, 7, 7]])
    for items in (ItemEmbedding(ITEMS, DIM), table(near=False), table()):
        torch.testing.assert_close(items(asked), items.table()[asked])
        torch.testing.assert_close(items.table(asked[0]), items.table()[asked[0]])


def test_a_tower_moves_nothing_until_it_has_learned() -> None:
    items: Any = ItemEmbedding(ITEMS, DIM)
    before = items.table().clone()
    items.attach(ItemFeatures((texts(),)), seed=1)
    assert torch.equal(items.table(), before)
    items.table().square().sum().backward()
    assert items.towers[0].last.weight.grad.abs().sum() > 0


def test_items_with_the_same_text_get_the_same_help() -> None:
    items: Any = ItemEmbedding(ITEMS, DIM)
    vectors = texts()
    vectors[5] = vectors[4]
    items.attach(ItemFeatures((vectors,)), seed=1)
    torch.nn.init.normal_(items.towers[0].last.weight)
    help_ID = items.table() - items.weight
    torch.testing.assert_close(help_ID[4], help_ID[5])
    assert (help_ID[4] - help_ID[6]).abs().max() > 0.01


def test_merging_changes_no_score_and_leaves_an_ordinary_network() -> None:
    plain = SASRec(dim=DIM, layers=1, max_length=6).build(ITEMS, seed=0).eval()
    merged = SASRec(dim=DIM, layers=1, max_length=6, item_features="id+text").build(ITEMS, seed=0).eval()
    items: Any = item_embedding_of(merged)
    items.attach(ItemFeatures((texts(),)), seed=1)
    torch.nn.init.normal_(items.towers[0].last.weight, std=0.1)
    history, length = torch.tensor([[1, 5, 9, 2]]), torch.tensor([4])
    with torch.no_grad():
        before = last_states(merged, SequenceBatch(history, length)) @ merged.item_table().T
        items.merge()
        after = last_states(merged, SequenceBatch(history, length)) @ merged.item_table().T
    torch.testing.assert_close(after, before)
    assert count_parameters(merged) == count_parameters(plain)
    plain.load_saved_state(merged.saved_state())  # the same names and shapes
    assert torch.equal(last_states(plain, SequenceBatch(history, length)) @ plain.item_table().T, after)


def test_vectors_of_another_catalogue_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"30 rows cannot use vectors of shape \(29, 12\)"):
        ItemEmbedding(ITEMS, DIM).attach(ItemFeatures((texts()[1:],)), seed=0)
    cold = torch.zeros(ITEMS - 1, dtype=torch.bool)
    with pytest.raises(ConfigError, match=r"30 rows cannot use cold items of shape \(29,\)"):
        ItemEmbedding(ITEMS, DIM).attach(ItemFeatures((texts(),), cold=cold), seed=0)
    with pytest.raises(ConfigError, match="Linear has no ItemEmbedding"):
        item_embedding_of(torch.nn.Linear(1, 1))


def test_features_replace_the_id_embeddings_of_cold_items() -> None:
    """Item 4 has a text, 5 an attribute, 6 a neighbour (item 1), 7 nothing but its row."""
    vectors, has, near = torch.zeros(ITEMS, TEXT), np.zeros((ITEMS, 2), np.float32), np.zeros((ITEMS, ITEMS))
    vectors[:4] = vectors[4] = torch.ones(TEXT)
    has[5, 1] = near[6, 1] = 1
    cold = torch.zeros(ITEMS, dtype=torch.bool)
    cold[4:8] = True
    items: Any = ItemEmbedding(ITEMS, DIM)
    items.attach(ItemFeatures((vectors,), sp.csr_matrix(has), sp.csr_matrix(near), cold), seed=1)
    torch.nn.init.normal_(items.towers[0].last.weight)
    torch.nn.init.normal_(items.of_attributes)
    of_text, own = items.towers[0](torch.tensor([0]))[0], items.weight.detach().clone()

    assert items.training
    torch.testing.assert_close(items.table()[4], own[4] + of_text)  # it takes part in every softmax as it is
    items.eval()
    for rows in (items.table(), items(torch.arange(ITEMS))):
        torch.testing.assert_close(rows[4], of_text)
        torch.testing.assert_close(rows[5], items.of_attributes[1])
        torch.testing.assert_close(rows[6], 0.5 * (own[1] + of_text))
        torch.testing.assert_close(rows[7:9], own[7:9])  # without its row there would be nothing
        torch.testing.assert_close(rows[1], own[1] + of_text)
    answers = items.table().detach().clone()
    items.merge()
    assert items.id_counts is None
    assert torch.equal(items.weight, answers)
    assert torch.equal(items.train().table(), answers)


# ---- attributes and neighbours ----------------------------------------------------------------------------------
def test_the_table_is_its_formula() -> None:
    items = table()
    own = items.weight + items.towers[0]() + torch.from_numpy(attributes().toarray()) @ items.of_attributes
    mixed = own + 0.5 * torch.from_numpy(neighbours().toarray()).float() @ own
    torch.testing.assert_close(items.table(), mixed)


@pytest.mark.parametrize("near", [True, False])
def test_gradients_are_those_of_dense_matrices(near: bool) -> None:
    items, dense = table(near=near), table(near=near)
    dense.load_state_dict(items.state_dict())
    asked, weigh = torch.tensor([3, 3, 29, 7]), torch.randn(ITEMS, DIM)
    (items(asked).sin().sum() + (items.table() * weigh).sum()).backward()

    own = dense.weight + dense.towers[0]() + torch.from_numpy(attributes().toarray()) @ dense.of_attributes
    matrix = torch.from_numpy(neighbours().toarray()).float() if near else torch.zeros(ITEMS, ITEMS)
    whole = own + 0.5 * matrix @ own
    (whole[asked].sin().sum() + (whole * weigh).sum()).backward()
    for (name, ours), (_, theirs) in zip(items.named_parameters(), dense.named_parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=name)


def test_rows_of_a_large_catalogue_have_the_same_gradient() -> None:
    items, other = table(), table()
    other.load_state_dict(items.state_dict())
    asked = torch.tensor([3, 29, 7, 3])
    items.table(asked).sin().sum().backward()
    other.table()[asked].sin().sum().backward()
    for (name, ours), (_, theirs) in zip(items.named_parameters(), other.named_parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=name)


def test_a_step_changes_the_next_steps_table() -> None:
    """What is kept for one step must not outlive it, whatever way the weights change."""
    items = table()
    optimizer = torch.optim.AdamW(items.parameters(), 0.1)
    first = items.table()
    assert items.table() is first  # made once for both ends of the model
    first.sum().backward()
    optimizer.step()
    assert (items.table() - first).abs().max() > 0.01
    items.eval()
    before = items.table()
    items.weight.data = items.weight.data + 1  # as averaged weights are put in
    assert (items.table() - before).min() > 0.9


def test_an_id_embedding_is_dropped_in_training_only() -> None:
    items: Any = ItemEmbedding(ITEMS, DIM, 0.5)
    items.attach(ItemFeatures(attributes=attributes()), seed=0)
    left_out = (items.table() == 0).all(1)
    assert 3 < left_out.sum() < 27
    items.eval()
    assert torch.equal(items.table(), items.weight)
    plain = ItemEmbedding(ITEMS, DIM, 0.5)
    assert torch.equal(plain.table(), plain.weight)  # nothing could stand in for it


def test_features_of_another_catalogue_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"cannot use neighbours of shape \(29, 29\)"):
        ItemEmbedding(ITEMS, DIM).attach(ItemFeatures(neighbours=neighbours()[1:, 1:]), seed=0)


def shop() -> Dataset:
    interactions = pl.DataFrame(
        {
            "user_id": ["u"] * 5 + ["v"] * 4,
            "item_id": ["a", "b", "c", "d", "e", "b", "a", "c", "e"],
            "position": [*range(5), *range(4)],
        }
    )
    items = pl.DataFrame(
        {
            "item_id": ["a", "b", "c", "d", "e"],
            "title": ["One, of a kind", "Another; thing", "Third", "Fourth > of", "Fifth"],
            "category": ["Shop > Nails > Red", "Shop > Nails", "Shop > Nails; Hair", "Shop > Hair", "Shop > Hair"],
        }
    )
    return Dataset.from_frames(interactions, items)


def test_who_stands_together_is_counted_in_the_training_part_only() -> None:
    """u trains on a b c, v on b a: ab twice at distance 1, bc once, ac at distance 2."""
    data = shop()
    a, b, c, d, e = (data.item_index[name] for name in "abcde")
    found = co_occurrence(data).toarray()
    total = {a: 2.5, b: 3.0, c: 1.5}
    expected = np.zeros((5, 5))
    for i, j, count in ((a, b, 2.0), (b, c, 1.0), (a, c, 0.5)):
        expected[i, j] = expected[j, i] = count / np.sqrt(total[i] * total[j])
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert not found[[d, e]].any()


def test_the_strongest_of_each_row_stay() -> None:
    matrix = sp.csr_matrix(np.array([[0.1, 0.3, 0.2, 0.3], [0, 0.5, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1.0]]))
    expected = [[0, 0.3, 0, 0.3], [0, 0.5, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]]
    np.testing.assert_array_equal(top_k_per_row(matrix, 2).toarray(), expected)


def test_attributes_are_parts_that_several_items_have() -> None:
    """Nails and Hair have three items each; Shop has all, Red one, and titles share nothing."""
    data = shop()
    matrix = item_attributes(data)
    assert matrix is not None
    found = matrix.toarray()
    assert found.shape == (5, 2)
    held = {name: sorted((found[data.item_index[name]] > 0).nonzero()[0]) for name in "abcde"}
    assert held["a"] == held["b"]
    assert held["d"] == held["e"]
    assert len(held["c"]) == 2
    np.testing.assert_allclose((found**2).sum(1), 1, rtol=1e-6)
    assert item_attributes(data, ("title",)) is None


def titled(titles: Sequence[str | None], **more: list[str]) -> Dataset:
    names = [f"i{number}" for number in range(len(titles))]
    users, position = ["u", "v"], list(range(len(names)))
    interactions = pl.DataFrame(
        {"user_id": np.repeat(users, len(names)), "item_id": names * 2, "position": position * 2}
    )
    return Dataset.from_frames(interactions, pl.DataFrame({"item_id": names, "title": titles, **more}))


def test_words_of_titles_by_hand() -> None:
    """Of seven items, `opi` is in four, `red` and `nail` in three, so is `opi red`; nothing else is in three."""
    titles = ["OPI Red, nail", "opi RED - red", "Opi red", "opi nail!", "blue nail", None, "xyz"]
    data = titled(titles)
    matrix = item_words(data)
    assert matrix is not None
    found = matrix.toarray()
    rows = [data.item_index[f"i{number}"] for number in range(7)]
    four, three = np.log(7 / 4), np.log(7 / 3)  # columns: opi, then nail, opi red, red
    expected = np.zeros((7, 4))
    expected[rows] = [
        [four, three, three, three],
        [four, 0, three, three],
        [four, 0, three, three],
        [four, three, 0, 0],
        [0, three, 0, 0],
        [0, 0, 0, 0],
        [0, 0, 0, 0],
    ]
    expected /= np.maximum(np.linalg.norm(expected, axis=1, keepdims=True), 1e-9)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_only_titles_have_words_and_never_more_than_there_are_items() -> None:
    titles = [f"one two three four five x{n}" for n in range(3)] + ["six"]
    shared = ["Nails > red hot"] * 2 + ["Nails > Hair"] * 2
    data = titled(titles, category=shared, description=[" ".join(f"w{n}" for n in range(40))] * 3 + ["w1"])
    words = item_words(data)
    assert words is not None
    assert words.shape == (4, 4)  # of nine; not of the category, nor of forty words
    assert item_words(data, ("category",)) is None  # nails is everybody's
    assert item_words(titled(["a", "b", "c"])) is None
    assert item_words(titled(titles), ()) is None
    films = ["the end", "the start", "the middle way", "heat", "vertigo"]  # 3 of 13 words and pairs are shared
    assert item_words(titled(films)) is None


def test_nearest_texts_by_hand() -> None:
    vectors = torch.tensor([[1.0, 0], [0.9, 0.1], [0, 0], [0, 1.0], [0.1, 0.9]])
    near = nearest_texts(vectors, 1).toarray()
    assert (near > 0).tolist() == [
        [False, True, False, False, False],
        [True, False, False, False, False],
        [False] * 5,
        [False, False, False, False, True],
        [False, False, False, True, False],
    ]
    np.testing.assert_allclose(near.sum(1), [1, 1, 0, 1, 1])
    assert nearest_texts(torch.zeros(3, 2), 5).nnz == 0


def features_of(inputs: object, data: Dataset, vectors: torch.Tensor | None) -> Any:
    return item_features(SASRec(item_features=inputs).item_features, data, vectors)


def test_features_are_those_asked_for_as_far_as_the_data_have_them() -> None:
    data = shop()
    assert not features_of("id", data, torch.ones(5, 2))
    assert features_of("id+text", data, torch.ones(5, 2)).cold.tolist() == (data.train_counts == 0).tolist()
    assert features_of("id+text", data, None).vectors == ()
    everything = features_of("id+text+words+attributes+neighbours", data, torch.randn(5, 3))
    assert everything.vectors
    assert everything.attributes is not None
    assert everything.neighbours.nnz > co_occurrence(data).nnz  # texts bring some
    titles = titled(["red polish", "red", "red", "blue"], category=["A", "A", "A", "B"])
    both = features_of("id+words+attributes", titles, None).attributes.toarray()
    parts: list[Any] = [item_attributes(titles), item_words(titles)]
    np.testing.assert_array_equal(both, np.hstack([part.toarray() for part in parts]))
    assert features_of("id+words", titles, None).attributes.shape == (4, 1)
    assert features_of("id+neighbours", data, torch.randn(5, 3)).neighbours.nnz == co_occurrence(data).nnz


def test_in_a_large_catalogue_only_the_rows_that_are_read_are_made() -> None:
    whole, asked = table(), torch.tensor([[3, 0, 3], [29, 7, 7]])
    weights = torch.randn(2, 3, DIM)
    parts = table(large=ITEMS - 1)
    parts.load_state_dict(whole.state_dict())
    gradients = []
    for items in (whole, parts):
        rows = items(asked)
        (rows * weights).sum().backward()
        gradients.append((rows.detach(), *(parameter.grad.clone() for parameter in items.parameters())))
    for small, large in zip(*gradients, strict=True):
        torch.testing.assert_close(small, large)
    read = []
    parts.towers[0].register_forward_pre_hook(lambda module, arguments: read.append(arguments[0]))
    parts(asked)
    assert read
    assert all(which is not None for which in read)


def test_nearest_texts_are_looked_for_in_small_catalogues_only() -> None:
    data, vectors = shop(), torch.randn(5, 3)
    inputs = ["id", "text", {"name": "neighbours", "max_items": 4}]
    assert features_of(inputs, data, vectors).neighbours.nnz == co_occurrence(data).nnz


def test_nearest_texts_do_not_depend_on_how_many_are_compared_at_once() -> None:
    vectors = torch.randn(23, 6, generator=torch.Generator().manual_seed(3))
    assert (nearest_texts(vectors, 4, cosines_at_once=50) != nearest_texts(vectors, 4)).nnz == 0


def test_evaluation_makes_the_table_once_for_the_same_weights() -> None:
    items = table().eval()
    with torch.no_grad():
        made = items.table()
        assert items.table() is made
        items.weight[3] += 1
        changed = items.table()
        assert not torch.equal(changed[3], made[3])
        items.towers[0].last.weight.data = items.towers[0].last.weight.data * 2  # as averages are exchanged
        assert not torch.equal(items.table(), changed)
        with torch.inference_mode():
            inside = items.table()
        assert items.table() is not inside  # which no gradient could be taken through
    assert items.table().requires_grad
    items.train()
    torch.testing.assert_close(items.table(), items.eval().table())
