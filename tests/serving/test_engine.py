"""The engine against PyTorch, against counting by hand, and against asking one request at a time."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from llmd4rec import Engine, Filters, NewItem
from llmd4rec.errors import ConfigError, DataError, RunError
from llmd4rec.inference.catalogue import Catalogue, column_values, kinds_of
from llmd4rec.inference.index import ApproximateIndex
from llmd4rec.inference.types import Answer, ExportInfo, Request
from llmd4rec.models.base import last_states
from llmd4rec.server.service import _facet


class MeanEncoder:
    """The state of a history is the mean of its rows: an encoder whose answers can be worked out by hand."""

    def __call__(self, rows_BL: NDArray[Any], lengths_B: NDArray[Any], table_ID: NDArray[Any]) -> NDArray[Any]:
        real = np.arange(rows_BL.shape[1]) < lengths_B[:, None]
        return ((table_ID[rows_BL] * real[:, :, None]).sum(axis=1) / lengths_B[:, None]).astype(np.float32)


def by_hand(
    table: NDArray[Any],
    frame: pl.DataFrame | None = None,
    counts: Sequence[int] | None = None,
    max_length: int = 4,
    index: bool = False,
) -> Engine:
    table = np.asarray(table, dtype=np.float32)
    frame = pl.DataFrame({"item_id": [f"i{row}" for row in range(len(table))]}) if frame is None else frame
    kinds = kinds_of(frame)
    numbers = np.array(range(len(table), 0, -1) if counts is None else counts, dtype=np.int64)
    info = ExportInfo("hand", 0, "alone", "mean", table.shape[1], len(table), max_length, kinds, "", 0.0)
    approximate = ApproximateIndex(table) if index else None
    return Engine(info, MeanEncoder(), table, Catalogue.of(frame, numbers, kinds), index=approximate)


def ids(answer: Answer) -> list[str]:
    return [item.item_id for item in answer.items]


@pytest.fixture
def engine(store: Any) -> Engine:
    return Engine.load(store.export)


# ---- against PyTorch --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("stage", ["distilled", "alone"])
@pytest.mark.parametrize("seen", ["remove", "keep"])
def test_answers_are_those_of_the_trained_model(engine, store, stage, seen):
    model = store.run.load("crm", stage)
    asked = engine if stage == "distilled" else engine.before
    names = store.data.item_ids
    for position in store.data.test:
        history = store.data.history(int(position)).astype(np.int64)
        window = torch.from_numpy(history[-model.max_length :])[None]
        with torch.inference_mode():
            scores = (last_states(model, window, torch.tensor([window.shape[1]])) @ model.item_table().T)[0].numpy()
        if seen == "remove":
            scores[history] = -np.inf
        best = [row for row in np.argsort(-scores, kind="stable")[:10] if scores[row] > -np.inf]
        answer = asked.recommend([names[item] for item in history], 10, seen=seen)
        assert ids(answer) == [names[row] for row in best]
        np.testing.assert_allclose([item.score for item in answer.items], scores[best], atol=1e-4)
        assert answer.considered == (scores > -np.inf).sum()


def test_many_requests_at_once_are_answered_as_one_by_one(engine, store):
    names = store.data.item_ids
    requests = [Request([names[i] for i in store.data.history(int(p))], k=3) for p in store.data.test]
    requests += [
        Request([], k=2),
        Request(["i1", "nope"], k=4, filters=Filters(at_most={"price": 9}), explain=True),
        Request(["i2", "i3"], k=30, seen="keep", exclude=["i4"], diversity=0.5),
    ]
    for together, request in zip(engine.recommend_many(requests), requests, strict=True):
        alone = engine.recommend_many([request])[0]
        assert ids(together) == ids(alone)
        np.testing.assert_allclose([i.score for i in together.items], [i.score for i in alone.items], atol=1e-5)
        assert (together.unknown, together.fallback, together.considered) == (
            alone.unknown, alone.fallback, alone.considered,
        )  # fmt: skip
    assert engine.recommend_many([]) == []


def test_what_an_export_says_about_itself(engine, store):
    info = engine.info
    assert (info.stage, info.model, info.dim, info.items, info.max_length) == ("distilled", "sasrec", 8, 20, 6)
    assert info.fields == {"brand": "category", "category": "category", "price": "number"}
    assert info.validation == store.run.record.stages["crm-round-1"]["validation_ndcg"]
    assert engine.before is not None
    assert engine.before.info.stage == "alone"
    assert engine.before.info.validation == store.run.record.stages["crm-alone"]["validation_ndcg"]
    assert len(engine.examples) == 3
    ends = {
        (tuple(store.data.item_ids[i] for i in store.data.history(int(p))), store.data.item_ids[store.data.items[p]])
        for p in store.data.test
    }
    assert set(engine.examples) <= ends


# ---- histories --------------------------------------------------------------------------------------------------
def test_unknown_items_are_skipped_and_named(engine):
    with_strangers = engine.recommend(["x", "i3", "", "i4", "x"], 5)
    assert with_strangers.unknown == ("x", "", "x")
    assert with_strangers.fallback is None
    assert with_strangers.items == engine.recommend(["i3", "i4"], 5).items


def test_without_a_known_item_the_most_frequent_come(engine, store):
    counts = np.zeros(20, dtype=int)
    for user in range(store.data.num_users):
        for position in range(store.data.offsets[user], store.data.train_end[user]):
            counts[store.data.items[position]] += 1
    order = sorted(range(20), key=lambda row: (-counts[row], row))
    answer = engine.recommend([], 4)
    assert ids(answer) == [f"i{row}" for row in order[:4]]
    assert [item.score for item in answer.items] == [counts[row] for row in order[:4]]
    assert answer.fallback == "popular"
    unknown = engine.recommend(["who?"], 20, exclude=[f"i{order[0]}"])
    assert ids(unknown) == [f"i{row}" for row in order[1:]]
    books = engine.recommend([], 4, popular_in={"category": "books"})
    assert ids(books) == [f"i{row}" for row in order if row % 3 == 2][:4]
    # where the history is known, that wish is of no account
    assert engine.recommend(["i3"], 3, popular_in={"category": "books"}) == engine.recommend(["i3"], 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k is 0"),
        ({"seen": "maybe"}, "seen is 'maybe'"),
        ({"diversity": 1.5}, "diversity is 1.5"),
        ({"diversity": float("nan")}, "diversity is nan"),
        ({"history": "i1"}, "the history is one text"),
        ({"filters": Filters(any_of={"brnd": "acme"})}, "no field 'brnd'; did you mean 'brand'"),
        ({"filters": Filters(at_least={"brand": 3})}, "field 'brand' holds text"),
        ({"filters": Filters(any_of={"price": "cheap"})}, "'price' holds numbers, and 'cheap' is none"),
        ({"filters": Filters(at_most={"price": float("nan")})}, "nan is none"),
        ({"filters": Filters(at_least={"price": 5}, at_most={"price": 4})}, "at least 5 and at most 4"),
        ({"filters": Filters(any_of={"brand": None})}, "field 'brand' is asked for None"),
        ({"filters": {"brand": "acme"}}, "the filters are of type dict"),
        ({"filters": Filters(any_of="acme")}, "any_of of the filters is 'acme'"),
        ({"filters": Filters(allow="i1")}, "allow of the filters is one text, 'i1'"),
        ({"filters": Filters(deny="i1")}, "deny of the filters is one text, 'i1'"),
        ({"exclude": "i1"}, "exclude is one text, 'i1'"),
        ({"exclude": 1}, "exclude is no list, 1"),
        ({"history": ["i1", None]}, "the history has None in it"),
        ({"history": [["i1"]]}, r"the history has \['i1'\] in it"),
        ({"k": 2.5}, "k is 2.5, which is no whole number"),
        ({"diversity": "much"}, "diversity is 'much'"),
        ({"popular_in": {"colour": "red"}, "history": []}, "no field 'colour'"),
    ],
)
def test_what_cannot_be_asked(engine, arguments, message):
    with pytest.raises(DataError, match=message):
        engine.recommend(**{"history": ["i1"], **arguments})


def test_identifiers_may_be_whole_numbers_as_for_a_recommender():
    frame = pl.DataFrame({"item_id": ["1", "2", "3", "4"]})
    engine = by_hand(np.eye(4), frame)
    for of in (int, np.int64):
        answer = engine.recommend([of(1)], 4, exclude=[of(2)], filters=Filters(deny=[of(3)]))
        assert (ids(answer), answer.unknown, answer.fallback) == (["4"], (), None)
    assert "1" not in ids(engine.similar(1))  # type: ignore[arg-type]
    assert engine.recommend([9]).unknown == ("9",)
    nothing = engine.recommend(["1"], 4, exclude=None, filters=Filters(deny=None))
    assert ids(nothing) == ids(engine.recommend(["1"], 4))
    with pytest.raises(DataError, match="list of items is one text"):
        engine.remove_items("12")
    assert engine.info.items == 4


# ---- filters ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (Filters(any_of={"brand": "ACME"}), [1, 7, 10, 13, 16]),
        (Filters(any_of={"brand": ["acme", "öl & co"]}), [0, 1, 3, 6, 7, 10, 12, 13, 15, 16, 18]),
        (Filters(any_of={"category": "films"}), [row for row in range(20) if row % 3 < 2]),
        (Filters(any_of={"category": "Films > Drama"}), [row for row in range(20) if row % 3 == 1]),
        (Filters(any_of={"category": "Films > Dra"}), []),
        (Filters(any_of={"category": "Drama"}), []),
        (Filters(any_of={"price": 3}), [3]),
        (Filters(any_of={"price": [3, 5.0, 7]}), [3, 5]),
        (Filters(any_of={"brand": []}), []),
        (Filters(at_least={"price": 6}, at_most={"price": 9}), [6, 8, 9]),
        (Filters(allow=["i3", "i5", "who?"], deny=["i5"]), [3]),
        (Filters(allow=[]), []),
        (Filters(deny=[f"i{row}" for row in range(18)]), [18, 19]),
        (Filters(any_of={"brand": "acme", "category": "Films"}, at_most={"price": 12}), [1, 7, 10]),
    ],
)
def test_filters(engine, filters, expected):
    expected = [row for row in expected if filters.at_most == {} or row != 7]  # it has no price
    answer = engine.recommend(["i3"], 20, seen="keep", filters=filters)
    assert sorted(ids(answer)) == sorted(f"i{row}" for row in expected)
    assert answer.considered == len(expected)
    assert [item.score for item in answer.items] == sorted((item.score for item in answer.items), reverse=True)


def test_lists_are_split_where_prepare_has_joined_them():
    frame = pl.DataFrame(
        {
            "item_id": ["a", "b", "c"],
            "genres": ["Action, Comedy", "Comedy", "Drama"],
            "categories": ["Home > Kitchen; Gifts", "Home", None],
            "brand": ["Tom, Dick", "Tom", "Tom, Dick"],
        }
    )
    engine = by_hand(np.eye(3), frame)
    for field, value, expected in (
        ("genres", "comedy", {"a", "b"}),
        ("categories", "home", {"a", "b"}),
        ("categories", "gifts", {"a"}),
        ("brand", "tom", {"b"}),
        ("brand", "tom, dick", {"a", "c"}),
    ):
        assert set(ids(engine.recommend([], 3, filters=Filters(any_of={field: value})))) == expected


def test_kinds_of_fields():
    frame = pl.DataFrame(
        {
            "item_id": ["a", "b", "c", "d"],
            "title": ["x"] * 4,
            "price": ["$1,200.50", "3", None, "0.5"],
            "year": [1990, 1991, None, 1993],
            "zip": ["01234", "01235", "01234", "9"],
            "brand": ["m", "m", "n", "n"],
            "story": ["once", "upon", "a", "time"],
        }
    )
    assert kinds_of(frame) == {
        "price": "number", "year": "number", "zip": "text", "brand": "category", "story": "text",
    }  # fmt: skip
    engine = by_hand(np.eye(4), frame)
    assert ids(engine.recommend([], filters=Filters(at_least={"price": 3}))) == ["a", "b"]
    assert ids(engine.recommend([], filters=Filters(any_of={"zip": "01234"}))) == ["a", "c"]


@pytest.mark.parametrize(
    ("written", "kind", "numbers"),
    [
        (["9,99", "12,50", "100"], "text", None),  # prices in Europe, or codes
        (["28,12", "1,234", "7"], "text", None),
        (["0,5", "1"], "text", None),
        (["1,234", "$1,234,567.5", "-€12", "999"], "number", [1234, 1234567.5, -12, 999]),
    ],
)
def test_commas_make_a_number_only_between_thousands(written, kind, numbers):
    column = pl.Series("price", written)
    frame = pl.DataFrame({"item_id": [str(row) for row in range(len(written))], "price": column})
    assert kinds_of(frame) == {"price": kind}
    assert column_values(column, kind) == (written if numbers is None else numbers)


def test_numbers_too_long_to_be_told_apart_are_text():
    """As float64, 2**60 + 1 and 2**60 + 2 are the same."""
    codes = [2**60 + 1, 2**60 + 2, 2**60 + 1]
    frame = pl.DataFrame(
        {
            "item_id": ["a", "b", "c"],
            "upc": codes,
            "written": [str(code) for code in codes],
            "last": [2**53 - 1, 0, 0],
            "float": [1e300, 1.0, 2.0],
        }
    )
    kinds = kinds_of(frame)
    assert kinds == {"upc": "text", "written": "text", "last": "number", "float": "number"}
    assert kinds_of(frame.with_columns(last=pl.Series([2**53, 0, 0])))["last"] != "number"
    engine = by_hand(np.eye(3), frame)
    for field in ("upc", "written"):
        for wanted in (codes[1], str(codes[1])):
            assert ids(engine.recommend([], filters=Filters(any_of={field: wanted}))) == ["b"]
    assert engine.item("b").fields["upc"] == "1152921504606846978"


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
        "seen": draw(st.sampled_from(["keep", "remove"])),
        "exclude": draw(rows),
        "filters": draw(st.sampled_from([None, filters])),
    }


@pytest.mark.parametrize("index", [False, True])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=asked())
def test_k_items_come_whenever_there_are_k_and_they_are_the_best(index, as_if_large, case):
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
    engine = by_hand(table, frame, index=index)
    engine.remove_items(["i7", "i30"])

    banned = {"i7", "i30", *arguments["exclude"]}
    if arguments["seen"] == "remove":
        banned |= set(arguments["history"])
    filters = arguments["filters"]
    if filters is not None:
        wanted = filters.any_of.get("colour")
        for row in range(40):
            name = f"i{row}"
            fits = wanted is None or f"c{row % 3}" in ([wanted] if isinstance(wanted, str) else wanted)
            fits = fits and row <= filters.at_most.get("price", 99)
            fits = fits and (filters.allow is None or name in filters.allow) and name not in filters.deny
            banned |= set() if fits else {name}
    rows = [int(name[1:]) for name in arguments["history"]]
    scores = table @ table[rows[-4:]].mean(axis=0) if rows else np.arange(40, 0, -1)
    expected = sorted((row for row in range(40) if f"i{row}" not in banned), key=lambda row: -scores[row])

    answer = engine.recommend(**arguments)
    assert len(answer.items) == min(arguments["k"], len(expected))
    assert answer.considered == len(expected)
    assert {item.item_id for item in answer.items}.isdisjoint(banned)
    np.testing.assert_allclose(
        [item.score for item in answer.items], [scores[row] for row in expected[: arguments["k"]]], rtol=1e-4, atol=1e-5
    )


@pytest.fixture
def as_if_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a small table takes the way of a large one."""
    monkeypatch.setattr("llmd4rec.inference.engine.FEW", 0)
    monkeypatch.setattr("llmd4rec.inference.engine.MOST_FETCHED", 1.0)
    monkeypatch.setattr("llmd4rec.inference.index.LEAST_RESCORED", 8)


# ---- diversity --------------------------------------------------------------------------------------------------
def test_diversity_by_hand():
    """Scores 4, 3.9, 2, 0 → 1, .975, .5, 0; the first two point the same way, the third stands across."""
    table = np.array([[4, 0, 0], [3.9, 0, 0], [2, 2, 0], [0, 0, 1], [1, 0, 0]])
    engine = by_hand(table)
    assert ids(engine.recommend(["i4"], 3)) == ["i0", "i1", "i2"]
    # i1: .5 · .975 - .5 · 1 = -.0125; i2: .5 · .5 - .5 · .707 = -.104; i3: -.5 · 0 = 0
    assert ids(engine.recommend(["i4"], 3, diversity=0.5)) == ["i0", "i3", "i1"]
    # i2: .8 · .5 - .2 · .707 = .259; i1: .8 · .975 - .2 = .58
    assert ids(engine.recommend(["i4"], 3, diversity=0.2)) == ["i0", "i1", "i2"]
    most = engine.recommend(["i4"], 4, diversity=1.0)
    assert ids(most)[:2] == ["i0", "i3"]
    assert {item.item_id: item.score for item in most.items} == pytest.approx({"i0": 4, "i1": 3.9, "i2": 2, "i3": 0})


# ---- reasons ----------------------------------------------------------------------------------------------------
def test_reasons_by_hand():
    """With a mean as state, taking an item out gives the mean of the others."""
    rng = np.random.default_rng(0)
    table = rng.standard_normal((9, 3)).astype(np.float32)
    engine = by_hand(table)
    history = ["i8", "i0", "i1", "i0", "i2"]  # i8 is not read as long as the others are there
    answer = engine.recommend(history, 3, explain=True)
    centre = table.mean(axis=0)
    full = table[[0, 1, 0, 2]].mean(axis=0)
    without = {"i0": table[[8, 1, 2]].mean(axis=0), "i1": table[[8, 0, 0, 2]].mean(axis=0)}
    without["i2"] = table[[8, 0, 1, 0]].mean(axis=0)
    for item in answer.items:
        row = table[int(item.item_id[1:])] - centre
        expected = {name: float((full - state) @ row) for name, state in without.items()}
        assert item.because is not None
        assert {reason.item_id: reason.effect for reason in item.because} == pytest.approx(expected, abs=1e-5)
        strengths = [abs(reason.effect) for reason in item.because]
        assert strengths == sorted(strengths, reverse=True)


def test_the_only_item_of_a_history_is_the_whole_reason(engine):
    answer = engine.recommend(["i3"], 2, explain=True)
    every = engine.recommend(["i3"], 20, seen="keep")
    mean = np.mean([item.score for item in every.items])
    for item in answer.items:
        assert item.because is not None
        assert [(reason.item_id, reason.title) for reason in item.because] == [("i3", "red film 3")]
        assert item.because[0].effect == pytest.approx(item.score - mean, abs=1e-4)
    assert engine.recommend(["i3"], 2).items[0].because is None
    assert engine.recommend([], 2, explain=True).items[0].because == ()


# ---- items and search -------------------------------------------------------------------------------------------
def test_an_item(engine, store):
    item = engine.item("i5")
    assert (item.item_id, item.title, item.count) == ("i5", "red film 5", int(store.data.train_counts[5]))
    assert item.fields == {"brand": "Acme Plus", "category": "Books", "price": 5.0}
    assert engine.item("i4").fields["brand"] is None
    assert engine.item("who?") is None


def test_similar_items_have_similar_rows():
    table = np.array([[1, 0], [10, 1], [1, 1], [-1, 0], [0, 0]])
    engine = by_hand(table)
    answer = engine.similar("i0", 3)
    assert ids(answer) == ["i1", "i2", "i4"]
    assert [item.score for item in answer.items] == pytest.approx([10 / np.sqrt(101), np.sqrt(0.5), 0])
    assert answer.considered == 4
    assert ids(engine.similar("i0", 9, filters=Filters(deny=["i1"]))) == ["i2", "i4", "i3"]
    with pytest.raises(DataError, match="no item 'x'"):
        engine.similar("x")


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
def test_search(text, expected):
    frame = pl.DataFrame({"item_id": [str(row) for row in range(8)], "title": TITLES})
    engine = by_hand(np.eye(8), frame)
    assert [item.item_id for item in engine.search(text)] == expected
    assert [item.item_id for item in engine.search(text, 1)] == expected[:1]


def test_search_among_filtered_items_and_after_changes(engine):
    assert {item.item_id for item in engine.search("red", filters=Filters(at_most={"price": 4}))} == {"i1", "i3"}
    engine.add_items([NewItem("n", "a Red thing")])
    engine.remove_items(["i1"])
    found = [item.item_id for item in engine.search("red", 50)]
    assert "n" in found
    assert "i1" not in found


# ---- new items --------------------------------------------------------------------------------------------------
def test_a_new_item_takes_the_place_its_text_gives(engine, store):
    twin = store.data.catalogue.row(6, named=True)
    fields = {"brand": twin["brand"], "category": "Books", "price": 99}
    report = engine.add_items([NewItem("new", twin["title"], fields)])
    assert (report.added, report.replaced) == (("new",), ())
    item = engine.item("new")
    assert (item.title, item.count, dict(item.fields)) == (twin["title"], 0, {**fields, "price": 99.0})
    text_map = np.load(store.export / "text_map.npy")
    from llmd4rec.models.llm.item_text import encode_texts

    vector = encode_texts(store.data.texts()[6:7], store.run.settings.llm.encoder)
    expected = np.append(vector[0], 1).astype(np.float32) @ text_map
    # the exported encoder is in 8-bit numbers
    np.testing.assert_allclose(engine._state.table_ID[-1], expected, atol=0.05 * np.abs(expected).max() + 1e-3)
    given = Engine.load(store.export)
    given.add_items([NewItem("new", vector=vector[0])])
    np.testing.assert_allclose(given._state.table_ID[-1], expected, atol=1e-5)
    assert ids(engine.recommend(["i3"], filters=Filters(at_least={"price": 50}))) == ["new"]
    assert engine.recommend(["new"], 3).unknown == ()
    assert engine.info.items == 21
    assert engine.before.info.items == 21
    assert engine.before.item("new") is not None
    assert not np.allclose(engine.before._state.table_ID[-1], engine._state.table_ID[-1])


def test_a_trained_item_keeps_its_row_and_needs_no_text(store):
    engine, plain = Engine.load(store.export), Engine.load(store.export)
    engine._new_items = None
    engine.remove_items(["i3"])
    assert engine.item("i3") is None
    assert "i3" not in ids(engine.recommend(["i2"], 20))
    assert engine.recommend(["i2", "i3"], 1).unknown == ()  # it was seen, whether or not it is sold
    report = engine.add_items([NewItem("i3", None, {"price": "$1,001.5"}), NewItem("i4", "renamed")])
    assert (report.added, report.replaced) == (("i3",), ("i4",))
    assert engine.item("i3").fields == {**plain.item("i3").fields, "price": 1001.5}
    assert engine.item("i4").title == "renamed"
    assert engine.item("i3").count == plain.item("i3").count
    ours, theirs = (
        {item.item_id: item.score for item in each.recommend(["i2", "i3"], 20).items} for each in (engine, plain)
    )
    assert ours == pytest.approx(theirs, abs=1e-5)
    with pytest.raises(RunError, match=r"'new' is new, and .* cannot place it"):
        engine.add_items([NewItem("new", "red")])


def test_of_a_known_item_only_what_is_given_changes(engine, store):
    """An item that was added too: it is placed again only by what is given of what it is placed by."""
    engine.add_items([NewItem("n", "red film", {"brand": "acme", "category": "Books"})])
    row = engine._state.table_ID[-1].copy()
    for item_id, title in (("i3", "red film 3"), ("n", "red film")):
        before = engine.item(item_id)
        engine.add_items([NewItem(item_id, fields={"price": 7.5, "category": None})])
        after = engine.item(item_id)
        assert after.title == title
        assert after.fields == {**before.fields, "price": 7.5, "category": None}
    np.testing.assert_array_equal(engine._state.table_ID[-1], row)
    engine.add_items([NewItem("n", fields={"brand": "blue"})])
    assert not np.array_equal(engine._state.table_ID[-1], row)  # by its title and the new brand
    fresh = Engine.load(store.export)
    fresh.add_items([NewItem("n", "red film", {"brand": "blue"})])
    np.testing.assert_allclose(engine._state.table_ID[-1], fresh._state.table_ID[-1], atol=1e-6)
    engine.add_items([NewItem("i3", "")])
    assert engine.item("i3").title == "i3"


def test_new_prices_do_not_make_the_engine_larger(store):
    """Whatever changes again and again is written over: trained items, and those that were added."""
    engine = Engine.load(store.export)
    vectors = np.random.default_rng(0).normal(size=(5, 1, len(np.load(store.export / "text_map.npy")) - 1))
    trained = ids(engine.recommend(["i3"], 20, seen="keep"))
    for turn in range(5):
        changed = [NewItem(item_id, f"title {turn}", {"price": turn}) for item_id in trained]
        report = engine.add_items([*changed, NewItem("n", f"new {turn}", vector=vectors[turn][0])])
        assert set(report.added) == ({"i5"} if turn else {"n"})  # it had been removed, which is no replacement
        assert set(report.replaced) == {*trained, "n"} - set(report.added)
        engine.remove_items(["i5"])
    assert len(engine.catalogue) == len(engine._state.table_ID) == engine.before._state.table_ID.shape[0] == 21
    assert ids(engine.recommend(["i3"], 20, seen="keep", filters=Filters(deny=["n"]))) == [
        item for item in trained if item != "i5"
    ]
    assert engine.item("n").title == "new 4"
    assert engine.item("i4").fields["price"] == 4
    fresh = Engine.load(store.export)
    fresh.add_items([NewItem("n", "new 4", vector=vectors[4][0])])
    np.testing.assert_array_equal(engine._state.table_ID, fresh._state.table_ID)


def test_rows_that_an_index_knows_are_not_written_over():
    """An export may hold items whose rows were made from texts; the index was built over those rows."""
    frame = pl.DataFrame({"item_id": ["a", "b"]})
    every, trained = np.ones(2, dtype=np.int64), np.array([True, False])
    catalogue = Catalogue.of(frame, every, {}, trained)
    items = [NewItem("b", "x"), NewItem("a", "y"), NewItem("c", "z")]
    rows = catalogue.rows_for(items, 2)
    assert rows == [2, 0, 3]
    larger = catalogue.with_items(items, rows)
    assert (larger.ids, larger.titles) == (["a", "b", "b", "c"], ["y", None, "x", "z"])
    assert larger.present.tolist() == [True, False, True, True]
    assert larger.trained.tolist() == [True, False, False, False]
    assert dict(larger.index) == {"a": 0, "b": 2, "c": 3}
    assert larger.rows_for(items, 2) == [2, 0, 3]


def test_what_is_left_unsaid_about_seen_items_is_as_it_was_evaluated():
    removing, keeping = by_hand(np.eye(4)), by_hand(np.eye(4))
    keeping._info = replace(keeping._info, seen="keep")
    assert ids(removing.recommend(["i2"], 4)) == ids(keeping.recommend(["i2"], 4, seen="remove"))
    assert ids(keeping.recommend(["i2"], 4)) == ids(removing.recommend(["i2"], 4, seen="keep"))
    assert ids(keeping.recommend(["i2"], 1)) == ["i2"]


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([NewItem("a", "red"), NewItem(" ", "red")], r"items\[1\] has no identifier"),
        ([NewItem("a", "red"), NewItem("a", "blue")], "'a' is given twice"),
        ([NewItem("a", "red", {"colour": "x"})], "'a': the catalogue has no field 'colour'"),
        ([NewItem("a", "red", {"price": "dear"})], "'a': field 'price' holds numbers, and 'dear' is none"),
        ([NewItem("a", "red", {"price": "9,99"})], "and '9,99' is none"),  # 999 of what would be guessed
        ([NewItem("a", "red", {"price": float("inf")})], "field 'price' cannot hold inf"),
        ([NewItem("b", "red"), NewItem("a", None, {"price": 3})], "'a' has no text"),
        ([NewItem("a", vector=[1.0, 2.0])], r"'a': its vector has shape \(2,\)"),
        ([NewItem("a", vector=[float("inf")] * 16)], "not finite"),
        ([NewItem("a", vector=[0.0] * 16)], "'a': its vector is zero"),
    ],
)
def test_items_that_cannot_be_added(engine, items, message):
    with pytest.raises(DataError, match=message):
        engine.add_items(items)
    assert engine.info.items == 20


@pytest.mark.parametrize("size", [3e38, 1e300, 7.0, 1e-300])
def test_the_length_of_a_vector_does_not_matter(store, size):
    """Texts' vectors have length 1 in training; a longer one made a row that was no number, for all to see."""
    direction = np.random.default_rng(1).normal(size=16)
    unit, scaled = Engine.load(store.export), Engine.load(store.export)
    unit.add_items([NewItem("n", vector=direction / np.linalg.norm(direction))])
    scaled.add_items([NewItem("n", vector=direction / np.abs(direction).max() * size)])
    np.testing.assert_allclose(scaled._state.table_ID, unit._state.table_ID, atol=1e-5)
    assert len(scaled.recommend(["i3"], 50, seen="keep").items) == 21


@pytest.mark.filterwarnings("ignore:overflow")
def test_a_row_that_is_no_number_is_refused_in_both_models(engine):
    broken = engine.before._new_items
    engine.before._new_items = replace(broken, text_map=np.full_like(broken.text_map, 3e38))
    with pytest.raises(DataError, match="'n': the row made from its vector is not finite"):
        engine.add_items([NewItem("n", vector=[1.0] * 16)])
    assert engine.info.items == engine.before.info.items == 20


def test_similar_items_are_others(engine):
    """Also where items of the history may come back."""
    engine._info = replace(engine._info, seen="keep")
    answer = engine.similar("i3", 50)
    assert "i3" not in ids(answer)
    assert len(answer.items) == answer.considered == 19


def test_removing(engine):
    report = engine.remove_items(["i1", "who?", "i1", "i2"])
    assert (report.removed, report.unknown) == (("i1", "i2"), ("who?",))
    assert engine.info.items == 18
    assert {"i1", "i2"}.isdisjoint(ids(engine.recommend([], 20)))
    assert {"i1", "i2"}.isdisjoint(ids(engine.similar("i3", 20)))
    assert {"i1", "i2"}.isdisjoint(ids(engine.recommend(["i3"], 20, filters=Filters(allow=["i1", "i4"]))))
    assert engine.before.item("i1") is None
    assert engine.remove_items(["i1"]).unknown == ("i1",)


def test_changes_do_not_disturb_requests_in_flight(store):
    """Every answer is that of the catalogue before or after a change, never a mixture."""
    engine = Engine.load(store.export)
    vector = np.ones(16) / 4
    allowed = [{f"i{row}" for row in range(20)} | extra for extra in (set(), {"n"})]
    wrong: list[object] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            try:
                answer = engine.recommend(["n", "i3"], 50, seen="keep", explain=True)
                found = set(ids(answer))
                if found not in allowed or ("n" in answer.unknown and "n" in found):
                    wrong.append(found)
            except Exception as error:  # what escapes is what is looked for
                wrong.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(25):
        engine.add_items([NewItem("n", "red", vector=vector)])
        engine.remove_items(["n"])
    done.set()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("rows", [2, 20, 700])
def test_an_index_of_few_rows_is_made_without_warnings(rows, capfd):
    index = ApproximateIndex(np.random.default_rng(0).normal(size=(rows, 8)).astype(np.float32))
    assert len(index.candidates(np.ones((1, 8), dtype=np.float32), 5)[0]) > 0
    assert capfd.readouterr() == ("", "")


def test_large_catalogues_are_asked_through_an_index(store):
    """Where large begins can be set; what comes is the same."""
    plain = Engine.load(store.export)
    indexed = Engine.load(store.export, index_above=19)
    assert plain._state.index is None
    assert indexed._state.index is not None
    assert Engine.load(store.export, index="approximate")._state.index is not None
    assert Engine.load(store.export, index="exact", index_above=1)._state.index is None
    for history in (["i3"], ["i4", "i5"]):
        assert ids(indexed.recommend(history, 5)) == ids(plain.recommend(history, 5))
    with pytest.raises(ConfigError, match="index is 'fast'"):
        Engine.load(store.export, index="fast")  # type: ignore[arg-type]


# ---- saving and the hub -----------------------------------------------------------------------------------------
def test_what_is_saved_is_what_was_served(engine, tmp_path):
    engine.add_items([NewItem("n", "red film", {"price": 3.5}), NewItem("i4", "renamed", {"brand": "new brand"})])
    engine.remove_items(["i9"])
    engine.save_pretrained(tmp_path / "saved")
    again = Engine.from_pretrained(tmp_path / "saved")
    assert again.info.items == engine.info.items == 20
    for asked, back in ((engine, again), (engine.before, again.before)):
        for history in (["i3", "n"], ["i4"], []):
            ours, theirs = asked.recommend(history, 30, explain=True), back.recommend(history, 30, explain=True)
            assert [(i.item_id, i.title, i.fields) for i in ours.items] == [
                (i.item_id, i.title, i.fields) for i in theirs.items
            ]
            np.testing.assert_allclose([i.score for i in ours.items], [i.score for i in theirs.items], atol=1e-6)
    assert again.item("i9") is None
    assert again.recommend(["i9"]).unknown == ("i9",)
    assert again.catalogue.is_trained("i4")
    assert not again.catalogue.is_trained("n")
    assert "catalogue of 20" in (tmp_path / "saved" / "README.md").read_text()
    assert again.info.fingerprint != engine.info.fingerprint
    with pytest.raises(DataError, match="already exists"):
        again.save_pretrained(tmp_path / "saved")
    again.save_pretrained(tmp_path / "saved", overwrite=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(RunError, match="is no export"):
        again.save_pretrained(tmp_path / "mine", overwrite=True)


def test_an_export_in_the_local_cache_of_the_hub(store, tmp_path, monkeypatch):
    """As huggingface_hub lays it out; nothing is asked of the network."""
    import shutil

    commit = "0123456789abcdef0123456789abcdef01234567"
    home = tmp_path / "hub" / "models--owner--shop"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(commit)
    shutil.copytree(store.export, home / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("LLMD4REC_OFFLINE", "1")
    engine = Engine.from_pretrained("owner/shop", index="exact")
    assert engine.recommend(["i3"], 5).items == Engine.load(store.export).recommend(["i3"], 5).items
    assert Engine.from_pretrained("owner/shop", revision=commit).info.items == 20
    with pytest.raises(RunError, match=r"no folder owner/other, and the hub did not give it: .*network is forbidden"):
        Engine.from_pretrained("owner/other")
    with pytest.raises(RunError, match="network is forbidden"):
        engine.push_to_hub("owner/shop")
    with pytest.raises(RunError, match="does not exist"):
        Engine.from_pretrained(Path("nowhere"))


def test_an_export_of_before_seen_was_written_down_is_served_and_saved(store, tmp_path):
    old = shutil.copytree(store.export, tmp_path / "old")
    head = json.loads((old / "export.json").read_text())
    del head["seen"]
    (old / "export.json").write_text(json.dumps(head))
    engine = Engine.load(old)
    assert engine.info.seen == "remove"
    engine.save_pretrained(tmp_path / "saved")
    assert "removed from the candidates" in (tmp_path / "saved" / "README.md").read_text()
    assert ids(Engine.load(tmp_path / "saved").recommend(["i3"], 5)) == ids(engine.recommend(["i3"], 5))


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
    engine = by_hand(np.eye(4))
    with pytest.raises(DataError, match=said) as caught:
        engine.recommend(wrong)
    assert "list" in caught.value.remedy
    assert engine.recommend(pl.Series(["i1"]), exclude={"i2"}, filters=Filters(deny={"i3"})).items


def test_fields_with_several_values_are_parted_as_prepare_did() -> None:
    """Genres came as `a|b` and are kept as `a; b`; of the brand nothing is split."""
    frame = pl.DataFrame(
        {
            "item_id": ["i0", "i1", "i2", "i3"],
            "genres": ["Drama; Sci-Fi, old", "Drama", "Sci-Fi, old", None],
            "brand": ["A; B", "A; B", "B", "B"],
            "codes": ["1; 2", "2", "1", "2"],
        }
    )
    multi = {"genres": "|", "codes": "list"}
    kinds = kinds_of(frame, multi)
    assert kinds == {"genres": "category", "brand": "category", "codes": "category"}
    catalogue = Catalogue.of(frame, np.ones(4, dtype=np.int64), kinds, multi=multi)

    def passing(field: str, *values: str) -> list[int]:
        return np.flatnonzero(catalogue.mask(Filters(any_of={field: values}))).tolist()

    assert passing("genres", "drama") == [0, 1]
    assert passing("genres", "sci-fi, OLD") == [0, 2]
    assert passing("genres", "old") == []
    assert passing("brand", "B") == [2, 3]
    assert passing("brand", "a; b") == [0, 1]
    assert passing("codes", "1") == [0, 2]
    # An item that is added may give them as the file did, as they are kept, or as a list.
    for written in ("Drama|War", "Drama; War", ["Drama", "War"]):
        item = catalogue.completed(NewItem("new", None, {"genres": written}))
        assert item.fields == {"genres": "Drama; War"}
        larger = catalogue.with_items([item], [4])
        assert np.flatnonzero(larger.mask(Filters(any_of={"genres": "war"}))).tolist() == [4]
    assert catalogue.completed(NewItem("new", None, {"brand": "A; B|C"})).fields == {"brand": "A; B|C"}
    with pytest.raises(DataError, match="'brand' holds one value"):
        catalogue.completed(NewItem("new", None, {"brand": ["A", "B"]}))
    facet = _facet(catalogue.field("genres"), catalogue.present)
    assert facet.values == ["Drama", "Sci-Fi, old"]


def test_an_export_that_does_not_say_which_fields_hold_several_values() -> None:
    """As it was: at `; `, and at `, ` in genres, tags and keywords."""
    frame = pl.DataFrame({"item_id": ["i0", "i1"], "genres": ["a, b; c", "b"], "brand": ["A; B", "A, B"]})
    catalogue = Catalogue.of(frame, np.ones(2, dtype=np.int64), kinds_of(frame))
    for field, value, rows in (
        ("genres", "b", [0, 1]),
        ("genres", "c", [0]),
        ("brand", "b", [0]),
        ("brand", "a, b", [1]),
    ):
        assert np.flatnonzero(catalogue.mask(Filters(any_of={field: value}))).tolist() == rows
