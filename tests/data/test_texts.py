"""Which columns of a catalogue are texts: told by their content, whatever they are called."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from llmd4rec import Dataset
from llmd4rec.data.ingest.text_columns import not_text
from llmd4rec.features.attributes import item_attributes

COLUMNS: dict[str, tuple[list[str], str]] = {
    "sentences": (["A lamp for reading in bed.", "Warm wool, hand knit.", "Oak, oiled twice"], ""),
    "names in capitals": (["WHITE HANGING HEART T-LIGHT HOLDER", "CREAM CUPID COAT HANGER"], ""),
    "labels that are shared": (["Red", "Blue", "Red", "Blue"], ""),
    "German": (["Malmö Stuhl", "Große Kanne", "Öl fürs Holz"], ""),
    "Japanese": (["赤いランプ", "青いソファ"], ""),
    "Russian labels": (["красный", "синий", "красный", "синий"], ""),
    "identifiers": (["B000123", "A00012X", "B00077"], "codes"),
    "UUIDs": (["550e8400-e29b-41d4-a716-446655440000", "650e8400-e29b-41d4-a716-446655440001"], "identifiers"),
    "hashes": (["9e107d9d372bb6826bd81d3542a419d6", "e4d909c290d0fb1ca068ffaddf22cbd0"], "identifiers"),
    "base 64": (["aGVsbG8gd29ybGQgaGVsbG8=", "bGVsbG8gd29ybGQgaGVsbG8="], "identifiers"),
    "slugs": (["red-cotton-dress", "blue-wool-hat", "a-b-c"], "identifiers"),
    "words of their own": (["johnsmith", "maryjane", "petersen"], "names"),
    "web addresses": (["https://a.example/red lamp", "www.b.example"], "addresses"),
    "mail addresses": (["a@x.example", "b@y.example"], "addresses"),
    "file names": (["img/a.jpg", "img/b.png", "c.webp"], "addresses"),
    "cloud paths": (["s3://bucket/a b", "gs://bucket/b"], "addresses"),
    "numbers": (["12", "1,200.50", "-7"], "numbers"),
    "prices": (["9,99 €", "$12.00", "EUR 5"], "numbers"),
    "measures": (["12 oz", "128GB", "3.5 x 4 inches"], "numbers"),
    "telephone numbers": (["+49 151 1234", "030 123"], "numbers"),
    "days": (["2012-01-02", "2013-04-05 12:00:01"], "times"),
    "days, American": (["Jan 5, 2012", "March 3, 2013"], "times"),
    "days, spelled out": (["Tuesday, 3 March 2020", "Monday, 4 May 2021"], "times"),
    "times ago": (["5 days ago", "3 weeks ago"], "times"),
    "language codes": (["en", "de", "en"], "codes"),
    "country codes": (["DE", "USA", "DE"], "codes"),
    "ratings": (["PG-13", "R", "PG", "R"], "codes"),
    "postal codes": (["SW1A 1AA", "EC1A 1BB"], "codes"),
    "seasons": (["SS 21", "AW 20"], "codes"),
    "flags": (["true", "false", "true"], "flags"),
    "yes and no": (["Y", "N", "Y"], "flags"),
    "one value": (["New in stock", "New in stock"], "the same everywhere"),
    "JSON": (['{"a": 1}', '{"b": [1, 2]}'], "structures"),
    "nothing": (["", " "], "empty"),
}


@pytest.mark.parametrize("what", COLUMNS)
def test_kinds_of_columns(what: str) -> None:
    values, reason = COLUMNS[what]
    assert not_text("column", pl.Series(values)) == reason


@pytest.mark.parametrize(
    ("name", "reason"),
    [("productUrl", "addresses"), ("category_code", "codes"), ("SKU", "identifiers"), ("release_date", "times"),
     ("parent_id:token", "identifiers"), ("video", ""), ("identity", "")],
)  # fmt: skip
def test_a_name_that_says_what_it_is(name: str, reason: str) -> None:
    assert not_text(name, pl.Series(["red wool hat", "blue silk scarf"])) == reason


def prepared(**columns: Any) -> Dataset:
    ids = ["a", "b", "c", "d"]
    log = pl.DataFrame({"user_id": ["u"] * 4 + ["v"] * 4, "item_id": ids * 2})
    return Dataset.from_frames(log, pl.DataFrame({"item_id": ids, **columns}, strict=False))


def test_an_empty_title_and_full_keywords() -> None:
    data = prepared(
        title=["", None, " ", ""], keywords=["red wool", "red wool", "red wool", "lamp"], price=[1, 2, 3, 4]
    )
    assert data.text_fields == ("keywords",)
    assert data.texts()[data.item_index["a"]] == "keywords: red wool"
    assert item_attributes(data) is not None, "it learns from them"
    facts = data.report["catalogue"]
    assert facts["text_columns"] == {"keywords": 4}
    assert facts["text_columns_without_text"] == ["title"]
    assert facts["items_with_a_text"] == "4 of 4"
    assert facts["filled_columns_not_taken_as_text"] == {"price": "numbers"}
    assert facts["other_columns"] == ["price"]


def test_the_next_usual_name_is_the_title_where_the_first_is_empty() -> None:
    data = prepared(
        title=[None] * 4, name=["Red hat", "Blue hat", "Hat", "Lamp"], colour=["Red", "Blue", "Red", "Blue"]
    )
    assert data.titles[data.item_index["b"]] == "Blue hat"
    assert data.text_fields == ("title", "colour")


def test_filled_columns_that_are_left_out_are_said() -> None:
    data = prepared(
        title=["Red hat", "Blue hat", None, None],
        sku=["A1", "A2", "A3", "A4"],
        image=["a.jpg", "b.jpg", None, None],
        store=["https://x.example/1", "https://x.example/2", "https://x.example/1", None],
        name=["Red hat", "Blue hat", None, None],
    )
    assert data.text_fields == ("title",)
    facts = data.report["catalogue"]
    assert facts["items_with_a_text"] == "2 of 4"
    assert facts["filled_columns_not_taken_as_text"] == {
        "sku": "identifiers", "image": "addresses", "store": "addresses", "name": "as the title",
    }  # fmt: skip


def test_no_text_at_all_is_a_warning() -> None:
    data = prepared(sku=["A1", "A2", "A3", "A4"])
    assert data.text_fields == ()
    assert any("no item has a text" in warning for warning in data.report["warnings"])
