"""The recommender against PyTorch, against counting by hand, and against asking one request at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmd4rec import Filters, NewItem, Recommender
from llmd4rec.data.batching import SequenceBatch
from llmd4rec.errors import ConfigError, DataError
from llmd4rec.inference.factors import FactorRowScorer
from llmd4rec.inference.types import Request
from llmd4rec.models.base import last_states
from llmd4rec.scoring.index import ApproximateIndex
from llmd4rec.scoring.rows import SearchLimits

from .by_hand import by_hand, ids, item_of, undistilled_of
from .store import Store


@pytest.mark.parametrize("stage", ["distilled", "undistilled"])
@pytest.mark.parametrize("filter_seen", [True, False])
def test_answers_are_those_of_the_trained_model(
    recommender: Recommender, store: Store, stage: str, filter_seen: bool
) -> None:
    model = store.run.load(stage)
    asked = recommender if stage == "distilled" else undistilled_of(recommender)
    names = store.data.item_ids
    for position in store.data.test:
        history = store.data.history(int(position)).astype(np.int64)
        window = torch.from_numpy(history[-model.max_length :])[None]
        with torch.inference_mode():
            scores = (
                last_states(model, SequenceBatch(window, torch.tensor([window.shape[1]]))) @ model.item_table().T
            )[0].numpy()
        if filter_seen:
            scores[history] = -np.inf
        best = [row for row in np.argsort(-scores, kind="stable")[:10] if scores[row] > -np.inf]
        answer = asked.recommend([names[item] for item in history], 10, filter_seen=filter_seen)
        assert ids(answer) == [names[row] for row in best]
        np.testing.assert_allclose([item.score for item in answer.items], scores[best], atol=1e-4)
        assert answer.num_candidates == (scores > -np.inf).sum()


def test_many_requests_at_once_are_answered_as_one_by_one(recommender: Recommender, store: Store) -> None:
    names = store.data.item_ids
    requests = [Request([names[i] for i in store.data.history(int(p))], k=3) for p in store.data.test]
    requests += [
        Request([], k=2),
        Request(["i1", "nope"], k=4, filters=Filters(at_most={"price": 9}), explain=True),
        Request(["i2", "i3"], k=30, filter_seen=False, exclude=["i4"], diversity=0.5),
    ]
    for together, request in zip(recommender.recommend_many(requests), requests, strict=True):
        alone = recommender.recommend_many([request])[0]
        assert ids(together) == ids(alone)
        np.testing.assert_allclose([i.score for i in together.items], [i.score for i in alone.items], atol=1e-5)
        assert (together.unknown, together.fallback, together.num_candidates) == (
            alone.unknown, alone.fallback, alone.num_candidates,
        )  # fmt: skip
    assert recommender.recommend_many([]) == []


def test_what_an_export_says_about_itself(recommender: Recommender, store: Store) -> None:
    info = recommender.info
    assert (info.stage, info.model, info.dim, info.items, info.max_length) == ("distilled-round-1", "sasrec", 8, 20, 6)
    assert info.fields == {"brand": "category", "category": "category", "price": "number"}
    assert info.validation == store.run.record.stages["distilled-round-1"]["validation"]
    assert recommender.undistilled is not None
    assert recommender.undistilled.info.stage == "undistilled"
    assert recommender.undistilled.info.validation == store.run.record.stages["undistilled"]["validation"]
    assert len(recommender.examples) == 3
    ends = {
        (tuple(store.data.item_ids[i] for i in store.data.history(int(p))), store.data.item_ids[store.data.items[p]])
        for p in store.data.test
    }
    assert set(recommender.examples) <= ends


def test_unknown_items_are_skipped_and_named(recommender: Recommender) -> None:
    with_strangers = recommender.recommend(["x", "i3", "", "i4", "x"], 5)
    assert with_strangers.unknown == ("x", "", "x")
    assert with_strangers.fallback is None
    assert with_strangers.items == recommender.recommend(["i3", "i4"], 5).items


def test_without_a_known_item_the_most_frequent_come(recommender: Recommender, store: Store) -> None:
    counts = np.zeros(20, dtype=int)
    for user in range(store.data.num_users):
        for position in range(store.data.offsets[user], store.data.train_end[user]):
            counts[store.data.items[position]] += 1
    order = sorted(range(20), key=lambda row: (-counts[row], row))
    answer = recommender.recommend([], 4)
    assert ids(answer) == [f"i{row}" for row in order[:4]]
    assert [item.score for item in answer.items] == [counts[row] for row in order[:4]]
    assert answer.fallback == "popular"
    unknown = recommender.recommend(["who?"], 20, exclude=[f"i{order[0]}"])
    assert ids(unknown) == [f"i{row}" for row in order[1:]]
    books = recommender.recommend([], 4, popular_in={"category": "books"})
    assert ids(books) == [f"i{row}" for row in order if row % 3 == 2][:4]
    # where the history is known, that wish is of no account
    assert recommender.recommend(["i3"], 3, popular_in={"category": "books"}) == recommender.recommend(["i3"], 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k is 0"),
        ({"filter_seen": "keep"}, "filter_seen is 'keep'"),
        ({"diversity": 1.5}, "diversity is 1.5"),
        ({"diversity": float("nan")}, "diversity is nan"),
        ({"history": "i1"}, "the history is a single text"),
        ({"filters": Filters(any_of={"brnd": "acme"})}, "no field 'brnd'; did you mean 'brand'"),
        ({"filters": Filters(at_least={"brand": 3})}, "field 'brand' contains text"),
        ({"filters": Filters(any_of={"price": "cheap"})}, "'price' contains numbers, but 'cheap' is not a number"),
        ({"filters": Filters(at_most={"price": float("nan")})}, "nan is not a number"),
        ({"filters": Filters(at_least={"price": 5}, at_most={"price": 4})}, "cannot be at least 5 and at most 4"),
        ({"filters": Filters(any_of={"brand": None})}, "field 'brand' is filtered by None"),  # type: ignore[dict-item]
        ({"filters": {"brand": "acme"}}, "the filters are of type dict"),
        ({"filters": Filters(any_of="acme")}, "any_of of the filters is 'acme'"),  # type: ignore[arg-type]
        ({"filters": Filters(allow="i1")}, "allow of the filters is a single text: 'i1'"),
        ({"filters": Filters(deny="i1")}, "deny of the filters is a single text: 'i1'"),
        ({"exclude": "i1"}, "exclude is a single text: 'i1'"),
        ({"exclude": 1}, "exclude is not a list: 1"),
        ({"history": ["i1", None]}, "the history contains None"),
        ({"history": ["i1", ["i1"]]}, r"the history contains \['i1'\]"),
        ({"k": 2.5}, "k is 2.5, not a whole number"),
        ({"diversity": "much"}, "diversity is 'much'"),
        ({"popular_in": {"colour": "red"}, "history": []}, "no field 'colour'"),
    ],
)
def test_what_cannot_be_asked(recommender: Recommender, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        recommender.recommend(**{"history": ["i1"], **arguments})


def test_identifiers_may_be_whole_numbers_as_for_a_recommender() -> None:
    frame = pl.DataFrame({"item_id": ["1", "2", "3", "4"]})
    recommender = by_hand(np.eye(4), frame)
    kinds: tuple[Callable[[int], Any], ...] = (int, np.int64)
    for of in kinds:
        answer = recommender.recommend([of(1)], 4, exclude=[of(2)], filters=Filters(deny=[of(3)]))
        assert (ids(answer), answer.unknown, answer.fallback) == (["4"], (), None)
    assert "1" not in ids(recommender.similar(1))
    assert recommender.recommend([9]).unknown == ("9",)
    nothing = recommender.recommend(["1"], 4, exclude=None, filters=Filters(deny=None))
    assert ids(nothing) == ids(recommender.recommend(["1"], 4))
    with pytest.raises(DataError, match="list of items is a single text"):
        recommender.remove_items("12")
    assert recommender.info.items == 4


@st.composite
def asked(draw: st.DrawFn) -> tuple[int, dict[str, Any]]:
    rows = st.lists(st.integers(0, 39), max_size=30).map(lambda found: [f"i{row}" for row in found])
    filters = Filters(
        any_of=draw(st.sampled_from([{}, {"colour": "c1"}, {"colour": ["c0", "c2"]}])),
        at_most=draw(st.sampled_from([{}, {"price": 25}])),
        allow=draw(st.none() | rows),
        deny=draw(rows),
    )
    return draw(st.integers(0, 10)), {
        "history": draw(rows),
        "k": draw(st.integers(1, 45)),
        "filter_seen": draw(st.booleans()),
        "exclude": draw(rows),
        "filters": draw(st.sampled_from([None, filters])),
    }


@pytest.mark.parametrize("index", [False, True])
@settings(max_examples=150, deadline=None)
@given(case=asked())
def test_k_items_come_whenever_there_are_k_and_they_are_the_best(index: bool, case: tuple[int, dict[str, Any]]) -> None:
    seed, arguments = case
    rng = np.random.default_rng(seed)
    table = rng.standard_normal((40, 4)).astype(np.float32)
    frame = pl.DataFrame(
        {
            "item_id": [f"i{row}" for row in range(40)],
            "colour": [f"c{row % 3}" for row in range(40)],
            "price": [float(row) for row in range(40)],
        }
    )
    # So that a small table takes the way of a large one.
    always = SearchLimits(exact_up_to=0, largest_share=1.0)
    recommender = by_hand(table, frame, index=ApproximateIndex(table, min_rescored=8, limits=always) if index else None)
    recommender.remove_items(["i7", "i30"])

    excluded = {"i7", "i30", *arguments["exclude"]}
    if arguments["filter_seen"]:
        excluded |= set(arguments["history"])
    filters = arguments["filters"]
    if filters is not None:
        wanted = filters.any_of.get("colour")
        for row in range(40):
            name = f"i{row}"
            fits = wanted is None or f"c{row % 3}" in ([wanted] if isinstance(wanted, str) else wanted)
            fits = fits and row <= filters.at_most.get("price", 99)
            fits = fits and (filters.allow is None or name in filters.allow) and name not in filters.deny
            excluded |= set() if fits else {name}
    rows = [int(name[1:]) for name in arguments["history"]]
    scores = table @ table[rows[-4:]].mean(axis=0) if rows else np.arange(40, 0, -1)
    expected = sorted((row for row in range(40) if f"i{row}" not in excluded), key=lambda row: -scores[row])

    answer = recommender.recommend(**arguments)
    assert len(answer.items) == min(arguments["k"], len(expected))
    assert answer.num_candidates == len(expected)
    assert {item.item_id for item in answer.items}.isdisjoint(excluded)
    np.testing.assert_allclose(
        [item.score for item in answer.items], [scores[row] for row in expected[: arguments["k"]]], rtol=1e-4, atol=1e-5
    )


def test_diversity_by_hand() -> None:
    """Scores 4, 3.9, 2, 0 → 1, .975, .5, 0; the first two point the same way, the third stands across."""
    table = np.array([[4, 0, 0], [3.9, 0, 0], [2, 2, 0], [0, 0, 1], [1, 0, 0]])
    recommender = by_hand(table)
    assert ids(recommender.recommend(["i4"], 3)) == ["i0", "i1", "i2"]
    # i1: .5 · .975 - .5 · 1 = -.0125; i2: .5 · .5 - .5 · .707 = -.104; i3: -.5 · 0 = 0
    assert ids(recommender.recommend(["i4"], 3, diversity=0.5)) == ["i0", "i3", "i1"]
    # i2: .8 · .5 - .2 · .707 = .259; i1: .8 · .975 - .2 = .58
    assert ids(recommender.recommend(["i4"], 3, diversity=0.2)) == ["i0", "i1", "i2"]
    most = recommender.recommend(["i4"], 4, diversity=1.0)
    assert ids(most)[:2] == ["i0", "i3"]
    assert {item.item_id: item.score for item in most.items} == pytest.approx({"i0": 4, "i1": 3.9, "i2": 2, "i3": 0})


def test_reasons_by_hand() -> None:
    """With a mean as state, taking an item out gives the mean of the others."""
    rng = np.random.default_rng(0)
    table = rng.standard_normal((9, 3)).astype(np.float32)
    recommender = by_hand(table)
    history = ["i8", "i0", "i1", "i0", "i2"]  # i8 is not read as long as the others are there
    answer = recommender.recommend(history, 3, explain=True)
    centre = table.mean(axis=0)
    full = table[[0, 1, 0, 2]].mean(axis=0)
    without = {"i0": table[[8, 1, 2]].mean(axis=0), "i1": table[[8, 0, 0, 2]].mean(axis=0)}
    without["i2"] = table[[8, 0, 1, 0]].mean(axis=0)
    for item in answer.items:
        row = table[int(item.item_id[1:])] - centre
        expected = {name: float((full - state) @ row) for name, state in without.items()}
        assert item.reasons is not None
        assert {reason.item_id: reason.effect for reason in item.reasons} == pytest.approx(expected, abs=1e-5)
        strengths = [abs(reason.effect) for reason in item.reasons]
        assert strengths == sorted(strengths, reverse=True)


def test_the_only_item_of_a_history_is_the_whole_reason(recommender: Recommender) -> None:
    answer = recommender.recommend(["i3"], 2, explain=True)
    every = recommender.recommend(["i3"], 20, filter_seen=False)
    mean = np.mean([item.score for item in every.items])
    for item in answer.items:
        assert item.reasons is not None
        assert [(reason.item_id, reason.title) for reason in item.reasons] == [("i3", "red film 3")]
        assert item.reasons[0].effect == pytest.approx(item.score - mean, abs=1e-4)
    assert recommender.recommend(["i3"], 2).items[0].reasons is None
    assert recommender.recommend([], 2, explain=True).items[0].reasons == ()


def test_an_item(recommender: Recommender, store: Store) -> None:
    item = item_of(recommender, "i5")
    assert (item.item_id, item.title, item.count) == ("i5", "red film 5", int(store.data.train_counts[5]))
    assert item.fields == {"brand": "Acme Plus", "category": "Books", "price": 5.0}
    assert item_of(recommender, "i4").fields["brand"] is None
    assert recommender.item("who?") is None


def test_similar_items_have_similar_rows() -> None:
    table = np.array([[1, 0], [10, 1], [1, 1], [-1, 0], [0, 0]])
    recommender = by_hand(table)
    answer = recommender.similar("i0", 3)
    assert ids(answer) == ["i1", "i2", "i4"]
    assert [item.score for item in answer.items] == pytest.approx([10 / np.sqrt(101), np.sqrt(0.5), 0])
    assert answer.num_candidates == 4
    assert ids(recommender.similar("i0", 9, filters=Filters(deny=["i1"]))) == ["i2", "i4", "i3"]
    with pytest.raises(DataError, match="no item 'x'"):
        recommender.similar("x")


TITLES = [
    "Crème brûlée torch",
    "Torch (large), red",
    "STRASSE map",
    "Straße und Weg",
    "a.b*c",
    "",
    None,
    "red red wine",
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("creme", ["0"]),
        ("BRULEE torch", ["0"]),
        ("torch", ["1", "0"]),  # begins so, then by frequency
        ("tor cre", []),  # only the last word may be a beginning
        ("torch cre", ["0"]),
        ("strasse", ["2", "3"]),
        ("straß", ["2", "3"]),
        (".*", []),
        ("a.b*", ["4"]),
        ("(", []),
        ("red", ["7", "1"]),
        ("6", ["6"]),  # an identifier, where there is no title
        ("", ["0", "1", "2", "3", "4", "5", "6", "7"]),
        ("   ", ["0", "1", "2", "3", "4", "5", "6", "7"]),
        ("torch torch", ["0", "1"]),
    ],
)
def test_search(text: str, expected: list[str]) -> None:
    frame = pl.DataFrame({"item_id": [str(row) for row in range(8)], "title": TITLES})
    recommender = by_hand(np.eye(8), frame)
    assert [item.item_id for item in recommender.search(text)] == expected
    assert [item.item_id for item in recommender.search(text, 1)] == expected[:1]


def test_search_among_filtered_items_and_after_changes(recommender: Recommender) -> None:
    assert {item.item_id for item in recommender.search("red", filters=Filters(at_most={"price": 4}))} == {"i1", "i3"}
    recommender.add_items([NewItem("n", "a Red thing")])
    recommender.remove_items(["i1"])
    found = [item.item_id for item in recommender.search("red", 50)]
    assert "n" in found
    assert "i1" not in found


def test_what_is_left_unsaid_about_seen_items_is_as_it_was_evaluated() -> None:
    removing, keeping = by_hand(np.eye(4)), by_hand(np.eye(4))
    keeping._info = replace(keeping._info, filter_seen=False)
    assert ids(removing.recommend(["i2"], 4)) == ids(keeping.recommend(["i2"], 4, filter_seen=True))
    assert ids(keeping.recommend(["i2"], 4)) == ids(removing.recommend(["i2"], 4, filter_seen=False))
    assert ids(keeping.recommend(["i2"], 1)) == ["i2"]


def test_similar_items_are_others(recommender: Recommender) -> None:
    """Also where items of the history may come back."""
    recommender._info = replace(recommender._info, filter_seen=False)
    answer = recommender.similar("i3", 50)
    assert "i3" not in ids(answer)
    assert len(answer.items) == answer.num_candidates == 19


@pytest.mark.parametrize("rows", [2, 20, 700])
def test_an_index_of_few_rows_is_made_without_warnings(rows: int, capfd: pytest.CaptureFixture[str]) -> None:
    index = ApproximateIndex(np.random.default_rng(0).normal(size=(rows, 8)).astype(np.float32))
    assert len(index.candidates(np.ones((1, 8), dtype=np.float32), 5)[0]) > 0
    assert capfd.readouterr() == ("", "")


def test_large_catalogues_are_asked_through_an_index(store: Store) -> None:
    """Where large begins can be set; what comes is the same."""

    def index_of(recommender: Recommender) -> ApproximateIndex | None:
        scorer = recommender._snapshot.scorer
        assert isinstance(scorer, FactorRowScorer)
        return scorer.index

    plain = Recommender.load(store.export)
    indexed = Recommender.load(store.export, index_above=19)
    assert index_of(plain) is None
    assert index_of(indexed) is not None
    assert index_of(Recommender.load(store.export, index="approximate")) is not None
    assert index_of(Recommender.load(store.export, index="exact", index_above=1)) is None
    for history in (["i3"], ["i4", "i5"]):
        assert ids(indexed.recommend(history, 5)) == ids(plain.recommend(history, 5))
    with pytest.raises(ConfigError, match="index is 'fast'"):
        Recommender.load(store.export, index="fast")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"i1"}, "a set, which has no order"),
        (frozenset(["i1"]), "a set, which has no order"),
        ({"i1": 3}, "a mapping"),
        (pl.DataFrame({"item_id": ["i1"]}), "a table"),
    ],
)
def test_a_history_needs_an_order(wrong: Any, said: str) -> None:
    recommender = by_hand(np.eye(4))
    with pytest.raises(DataError, match=said) as caught:
        recommender.recommend_many([Request(wrong)])
    assert "list" in caught.value.remedy
    assert recommender.recommend(pl.Series(["i1"]), exclude={"i2"}, filters=Filters(deny={"i3"})).items
