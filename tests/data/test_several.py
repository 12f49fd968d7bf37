"""Fields with several values: split once, however they are written, and never where a sign is part of a value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from llmd4rec import Dataset
from llmd4rec.data.ingest.settings import Prepare
from llmd4rec.data.prepare import prepare_files
from llmd4rec.errors import ConfigError, DataError
from llmd4rec.features.attributes import item_attributes, item_words

#: What six items hold, however it is written.
VALUES: list[list[str]] = [["Drama", "Sci-Fi"], ["Comedy"], ["Comedy", "Drama"], [], ["Sci-Fi"], ["Drama", "Comedy"]]
IDS = [f"i{number}" for number in range(len(VALUES))]


def log(ids: list[str] = IDS) -> pl.DataFrame:
    return pl.DataFrame({"user_id": ["u"] * len(ids) + ["v"] * len(ids), "item_id": ids * 2})


def prepared(name: str, fields: list[Any], **settings: Any) -> Dataset:
    ids = [f"i{number}" for number in range(len(fields))]
    items = pl.DataFrame({"item_id": ids, "title": [f"Film {n}, The" for n in ids], name: fields}, strict=False)
    return Dataset.from_frames(log(ids), items, **settings)


def kept(data: Dataset, name: str) -> list[str | None]:
    values = data.catalogue[name.split(":")[0]].to_list()
    return [values[data.item_index[f"i{number}"]] for number in range(data.num_items)]


def sql(values: list[str]) -> str:
    return "{" + ",".join(f'"{value}"' if "-" in value else value for value in values) + "}"


WRITTEN: dict[str, tuple[str, Any]] = {
    "MovieLens": ("|", "|".join),
    "IMDb and Google Play, comma": (",", ",".join),
    "a, b": (",", ", ".join),
    "Steam, Goodbooks; semicolons": (";", ";".join),
    "a; b": (";", "; ".join),
    "Python": ("list", str),
    "NumPy": ("list", lambda values: "[" + " ".join(map(repr, values)) + "]"),
    "JSON, Snowflake": ("list", json.dumps),
    "Snowflake, indented": ("list", lambda values: json.dumps(values, indent=2)),
    "Spark, cast to text": ("list", lambda values: f"[{', '.join(values)}]"),
    "DuckDB, as CSV": ("list", lambda values: f"[{', '.join(repr(value) for value in values)}]"),
    "Postgres": ("list", sql),
    "R, Food.com": ("list", lambda v: f"c({', '.join(json.dumps(x) for x in v)})" if v else "character(0)"[:0]),
    "TMDB": ("list", lambda values: str([{"id": n, "name": value} for n, value in enumerate(values)])),
    "tuple": ("list", lambda values: str(tuple(values))),
    "RecBole's Amazon": ("list", lambda values: ", ".join(map(repr, values))),
    "Hive": ("\x01", "\x01".join),
    "bullets": ("•", " • ".join),
    "spaced bars": ("|", " | ".join),
}


@pytest.mark.parametrize("layout", WRITTEN)
def test_every_layout_gives_the_same_values(layout: str) -> None:
    how, write = WRITTEN[layout]
    data = prepared("genres", [write(values) or None for values in VALUES])
    assert data.multi_fields == {"genres": how}
    assert kept(data, "genres") == ["; ".join(values) or None for values in VALUES]
    said = data.report["catalogue"]["fields_with_several_values"]["genres"]
    assert said.endswith("3 items have several, 3 different values")
    assert data.text_fields == ("title", "genres")


@pytest.mark.parametrize("dtype", [pl.List(pl.String), pl.List(pl.Categorical)])
def test_real_lists(dtype: pl.DataType) -> None:
    data = prepared("genres", pl.Series(VALUES, dtype=pl.List(pl.String)).cast(dtype))  # type: ignore[arg-type]
    assert data.multi_fields == {"genres": "list"}
    assert kept(data, "genres") == ["; ".join(values) or None for values in VALUES]


def test_lists_of_numbers_are_values_and_vectors_are_none() -> None:
    assert prepared("genre_ids", [[28, 12], [12], [], [28], [5], [5]]).multi_fields == {"genre_ids": "list"}
    data = prepared("embedding", [[0.1, 0.2]] * 6)
    assert data.multi_fields == {}
    assert data.report["catalogue"]["columns_left_out"] == ["embedding"]


def test_recbole_token_seq_is_parted_at_blanks_but_not_a_title(tmp_path: Path) -> None:
    (tmp_path / "x.inter").write_text(
        "user_id:token\titem_id:token\n" + "".join(f"{u}\t{i}\n" for u in "ab" for i in "123")
    )
    (tmp_path / "x.item").write_text(
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        "1\tThe Big Sleep\t1946\tFilm-Noir Crime\n2\tHeat\t1995\tCrime\n3\tAir Force One\t1997\tAction\n"
    )
    data = prepare_files(tmp_path / "x.inter", tmp_path / "x.item", tmp_path / "out")
    assert data.multi_fields == {"class": "blank"}
    rows = {row["item_id"]: row for row in data.catalogue.to_dicts()}
    assert rows["1"] == {"item_id": "1", "title": "The Big Sleep", "class": "Film-Noir; Crime", "release_year": "1946"}


LEFT_WHOLE: dict[str, tuple[str, list[str]]] = {
    "a firm's name": ("brand", ["Dove, Inc.", "Acme, Inc.", "Zett, Ltd.", "Dove, Inc.", "Plain", "Acme, Inc."]),
    "surname, first name": ("author", ["King, Stephen", "King, Owen", "Fry, Stephen", "Mann, T", "Fry, A"]),
    "city, country": ("place", ["Paris, France", "Lyon, France", "Bonn, Germany", "Köln, Germany", "Rome, Italy", "x"]),
    "a category's name": ("category", ["Clothing, Shoes & Jewelry", "Home, Garden", "Toys", "Home, Garden"]),
    "a path": ("category", ["Home > Pots, Pans", "Home > Beds, Sofas", "Home > Pots, Pans", "Home", "Home", "Home"]),
    "sentences": ("blurb", ["A man; a plan; a canal, as they say.", "He, she, and it; they | all go home."] * 3),
    "a description": ("description", ["red, blue", "blue; red", "red|blue", "red", "blue", "red"]),
    "thousands": ("price", ["1,200", "3,400,000", "1,000", "12", "7", "1,000"]),
    "moments": ("released", ["Jan 5, 2012", "Mar 7, 2013", "Jan 6, 2012", "Jan 5, 2014", "May 1, 2000", "x"]),
    "coordinates": ("geo", ["48.1,2.3", "48.2,2.3", "48.1,2.4", "47.0,1.0", "1,2", "3,4"]),
    "shop titles in another column": ("headline", ["Shoes | Running | Blue", "Ball | Play | Red", "x", "y", "z", "w"]),
    "a slash within a genre": ("genre", ["R&B/Soul", "Hip-Hop/Rap", "R&B/Soul", "Pop", "Pop", "Hip-Hop/Rap"]),
    "entities": ("shelf", ["Toys &amp; Games", "Home &amp; Garden", "Toys &amp; Games", "Home", "Toys", "Games"]),
}  # fmt: skip


@pytest.mark.parametrize("what", LEFT_WHOLE)
def test_what_is_one_value_is_left_whole(what: str) -> None:
    name, fields = LEFT_WHOLE[what]
    data = prepared(name, fields)
    assert data.multi_fields == {}
    assert kept(data, name) == fields


def test_what_might_be_several_values_is_said_with_the_option() -> None:
    whole = prepared("brand", LEFT_WHOLE["a firm's name"][1]).report["catalogue"]["left_whole"]
    assert whole == {"brand": "commas, as in 'Acme, Inc.'; if these are several values: --multi-cols 'brand=SIGN'"}


def test_a_title_is_never_parted() -> None:
    ids = [f"i{number}" for number in range(4)]
    items = pl.DataFrame({"item_id": ids, "title": ["Red | Blue", "Red", "Blue", "['a', 'b']"]})
    data = Dataset.from_frames(log(ids), items)
    assert data.multi_fields == {}
    assert sorted(data.titles) == ["Blue", "Red", "Red | Blue", "['a', 'b']"]
    with pytest.raises(DataError, match="a title is one value"):
        Dataset.from_frames(log(ids), items, multi_cols={"title": "|"})


def test_the_caller_decides() -> None:
    fields = ["a/b", "b", "c", "a", "a/c", "c"]
    assert prepared("kinds", fields, multi_cols={"kinds": "/"}).multi_fields == {"kinds": "/"}
    assert kept(prepared("kinds", fields, multi_cols={"kinds": "/"}), "kinds")[4] == "a; c"
    bars = [field.replace("/", "|") for field in fields]
    assert prepared("kinds", bars).multi_fields == {"kinds": "|"}
    assert prepared("kinds", bars, split_fields=False).multi_fields == {}
    assert prepared("kinds", bars, multi_cols={"kinds": ""}).multi_fields == {}
    assert prepared("kinds", bars, split_fields=False, multi_cols={"kinds": "|"}).multi_fields == {"kinds": "|"}
    with pytest.raises(DataError, match="no column 'kind' for the values"):
        prepared("kinds", bars, multi_cols={"kind": "|"})
    for wrong in ({"kinds": "x"}, "kinds=|", {"kinds": None}):
        with pytest.raises(ConfigError, match="multi_cols"):
            Prepare(multi_cols=wrong)  # type: ignore[arg-type]


def test_odd_values_within_lists() -> None:
    fields = [
        '["Children\'s", "say \\"hi\\""]',
        "['it\\'s']",
        '["\\u00e9t\\u00e9"]',
        "plain",
        '["a; b", "a; b"]',
        "[null, 'x', '']",
    ]
    assert kept(prepared("tags", fields), "tags") == [
        "Children's; say \"hi\"", "it's", "été", "plain", "a, b", "x"
    ]  # fmt: skip
    fields = ["Toys &amp; Games|Home", "Home", "Toys &amp; Games", "a||Home", "|Home|", " Home "]
    assert kept(prepared("tags", fields), "tags") == [
        "Toys & Games; Home",
        "Home",
        "Toys & Games",
        "a; Home",
        "Home",
        "Home",
    ]


def test_attributes_and_words_read_them_alike() -> None:
    """Of six items `dark red` is in three, Drama in three; nothing is cut within a value."""
    data = prepared("tags", ["dark red|Drama, New", "dark red", "Drama, New", "dark red", "Drama, New", "x"])
    assert data.multi_fields == {"tags": "|"}
    attributes = item_attributes(data)
    assert attributes is not None
    assert attributes.shape == (6, 2)
    words = item_words(data, ("tags",))
    assert words is not None
    # dark, red, dark red; drama, new, drama new; and no `red drama` across two values.
    assert words.shape == (6, 6)
    assert words[data.item_index["i0"]].nnz == 6


def test_it_is_kept_with_the_data_set_and_older_folders_load(tmp_path: Path) -> None:
    data = prepared("genres", ["a|b", "b", "a", "a", "b", None])
    data.save(tmp_path / "data")
    loaded = Dataset.load(tmp_path / "data")
    assert loaded.multi_fields == {"genres": "|"}
    assert loaded.fingerprint == data.fingerprint
    old = prepared("genres", ["a; b", "b", "a", "a", "b", None], split_fields=False)
    object.__setattr__(old, "multi_fields", None)
    old.save(tmp_path / "old")
    assert "multi_fields" not in json.loads((tmp_path / "old" / "dataset.json").read_text())
    loaded = Dataset.load(tmp_path / "old")
    assert loaded.multi_fields is None
    assert loaded.fingerprint != data.fingerprint
    assert item_attributes(loaded, ("genres",)) is not None, "split as it was then"
