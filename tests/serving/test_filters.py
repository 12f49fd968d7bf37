"""Filters and the kinds of fields, against counting by hand."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from llmd4rec import Filters, NewItem
from llmd4rec.errors import DataError
from llmd4rec.inference.catalogue import Catalogue
from llmd4rec.inference.fields import column_values, kinds_of
from llmd4rec.inference.recommender import Recommender
from llmd4rec.inference.types import FieldKind
from llmd4rec.server.description import facet_of

from .by_hand import by_hand, ids, item_of


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
def test_filters(recommender: Recommender, filters: Filters, expected: list[int]) -> None:
    expected = [row for row in expected if filters.at_most == {} or row != 7]  # it has no price
    answer = recommender.recommend(["i3"], 20, filter_seen=False, filters=filters)
    assert sorted(ids(answer)) == sorted(f"i{row}" for row in expected)
    assert answer.num_candidates == len(expected)
    assert [item.score for item in answer.items] == sorted((item.score for item in answer.items), reverse=True)


def test_lists_are_split_where_prepare_has_joined_them() -> None:
    frame = pl.DataFrame(
        {
            "item_id": ["a", "b", "c"],
            "genres": ["Action, Comedy", "Comedy", "Drama"],
            "categories": ["Home > Kitchen; Gifts", "Home", None],
            "brand": ["Tom, Dick", "Tom", "Tom, Dick"],
        }
    )
    recommender = by_hand(np.eye(3), frame)
    for field, value, expected in (
        ("genres", "comedy", {"a", "b"}),
        ("categories", "home", {"a", "b"}),
        ("categories", "gifts", {"a"}),
        ("brand", "tom", {"b"}),
        ("brand", "tom, dick", {"a", "c"}),
    ):
        assert set(ids(recommender.recommend([], 3, filters=Filters(any_of={field: value})))) == expected


def test_kinds_of_fields() -> None:
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
    recommender = by_hand(np.eye(4), frame)
    assert ids(recommender.recommend([], filters=Filters(at_least={"price": 3}))) == ["a", "b"]
    assert ids(recommender.recommend([], filters=Filters(any_of={"zip": "01234"}))) == ["a", "c"]


@pytest.mark.parametrize(
    ("written", "kind", "numbers"),
    [
        (["9,99", "12,50", "100"], "text", None),  # prices in Europe, or codes
        (["28,12", "1,234", "7"], "text", None),
        (["0,5", "1"], "text", None),
        (["1,234", "$1,234,567.5", "-€12", "999"], "number", [1234, 1234567.5, -12, 999]),
    ],
)
def test_commas_make_a_number_only_between_thousands(
    written: list[str], kind: FieldKind, numbers: list[float] | None
) -> None:
    column = pl.Series("price", written)
    frame = pl.DataFrame({"item_id": [str(row) for row in range(len(written))], "price": column})
    assert kinds_of(frame) == {"price": kind}
    assert column_values(column, kind) == (written if numbers is None else numbers)


def test_numbers_too_long_to_be_told_apart_are_text() -> None:
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
    recommender = by_hand(np.eye(3), frame)
    for field in ("upc", "written"):
        for wanted in (codes[1], str(codes[1])):
            assert ids(recommender.recommend([], filters=Filters(any_of={field: wanted}))) == ["b"]
    assert item_of(recommender, "b").fields["upc"] == "1152921504606846978"


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
    with pytest.raises(DataError, match="'brand' has one value"):
        catalogue.completed(NewItem("new", None, {"brand": ["A", "B"]}))
    facet = facet_of(catalogue.field("genres"), catalogue.present)
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
