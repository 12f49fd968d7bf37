"""Named public sets, read from small files in their published formats."""

from __future__ import annotations

import gzip
import json
import os
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from llmd4rec.data.prepare import prepare_files
from llmd4rec.data.sources import all_sources, get_source
from llmd4rec.data.sources.movielens import GENRES
from llmd4rec.errors import DataError, FetchError


def tables(out: Path) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    items = pl.read_parquet(out / "items.parquet").to_dicts()
    return pl.read_parquet(out / "interactions.parquet").to_dicts(), {item["item_id"]: item for item in items}


def gz(path: Path, lines: list[str]) -> None:
    path.write_bytes(gzip.compress("".join(line + "\n" for line in lines).encode()))


def film(number: int, title: str, *genres: str) -> str:
    flags = "|".join("1" if genre in genres else "0" for genre in GENRES)
    return f"{number}|{title}|01-Jan-1995||http://us.imdb.com/x|{flags}"


RATINGS = "196\t1\t3\t881250949\n186\t543\t3\t891717742\n196\t267\t1\t878887116\n"


def make_100k_zip(folder: Path) -> Path:
    films = [
        film(1, "Toy Story (1995)", "Animation", "Children's", "Comedy"),
        film(267, "unknown", "unknown"),
        film(543, "Misérables, Les (1995)", "Drama", "Musical"),
        film(1412, "Land Before Time III: The Time of the Great Giving (1995) (V)", "Animation", "Children's"),
    ]
    path = folder / "ml-100k.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ml-100k/u.data", RATINGS)
        archive.writestr("ml-100k/u.item", "\n".join(films).encode("latin-1"))
    return path


def make_100k_recbole(folder: Path) -> Path:
    folder = folder / "recbole"
    folder.mkdir()
    (folder / "ml-100k.inter").write_text("user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + RATINGS)
    (folder / "ml-100k.item").write_text(
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        "1\tToy Story\t1995\tAnimation Children's Comedy\n"
        "267\tunkonwn\tunkonwn\tunknown\n"
        "543\tMisérables, Les\t1995\tDrama Musical\n"
        "1412\tLand Before Time III: The Time of the Great Giving (1995)\tV\tAnimation Children's\n",
        encoding="utf-8",
    )
    return folder


def test_both_forms_of_ml_100k_give_the_same_tables(tmp_path: Path) -> None:
    get_source("ml-100k", tmp_path / "a", from_path=make_100k_zip(tmp_path))
    get_source("ml-100k", tmp_path / "b", from_path=make_100k_recbole(tmp_path))
    log, items = tables(tmp_path / "a")
    assert log[0] == {"user_id": "196", "item_id": "1", "rating": 3.0, "timestamp": 881250949}
    assert items["1"] == {
        "item_id": "1",
        "title": "Toy Story",
        "year": 1995,
        "category": "Animation, Children's, Comedy",
    }
    assert items["543"]["title"] == "Misérables, Les"
    assert (items["1412"]["title"], items["1412"]["year"]) == (
        "Land Before Time III: The Time of the Great Giving",
        1995,
    )
    assert (items["267"]["title"], items["267"]["year"]) == ("unknown", None)
    assert tables(tmp_path / "b") == (log, items)
    for name in ("interactions.parquet", "items.parquet"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_ml_1m(tmp_path: Path) -> None:
    (tmp_path / "ratings.dat").write_text("1::1193::5::978300760\n2::73::4::978300761\n")
    films = "73::Misérables, Les (1995)::Drama|Musical\n1193::Face/Off: Cut (1975)::Drama\n"
    (tmp_path / "movies.dat").write_text(films, encoding="latin-1")
    get_source("ml-1m", tmp_path / "out", from_path=tmp_path)
    log, items = tables(tmp_path / "out")
    assert log[0] == {"user_id": "1", "item_id": "1193", "rating": 5.0, "timestamp": 978300760}
    assert items["73"] == {"item_id": "73", "title": "Misérables, Les", "year": 1995, "category": "Drama, Musical"}
    assert items["1193"]["title"] == "Face/Off: Cut"


def test_ml_20m(tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,2,3.5,1112486027\n")
    films = 'movieId,title,genres\n2,"American President, The (1995)",Comedy|Drama\n3,Plain,(no genres listed)\n'
    (tmp_path / "movies.csv").write_text(films)
    get_source("ml-20m", tmp_path / "out", from_path=tmp_path)
    log, items = tables(tmp_path / "out")
    assert log == [{"user_id": "1", "item_id": "2", "rating": 3.5, "timestamp": 1112486027}]
    assert items["2"] == {"item_id": "2", "title": "American President, The", "year": 1995, "category": "Comedy, Drama"}
    assert items["3"] == {"item_id": "3", "title": "Plain", "year": None, "category": None}


REVIEW = {"reviewerID": "A1", "asin": "B1", "overall": 5.0, "unixReviewTime": 1369699200, "helpful": [0, 1]}


def test_amazon_2014(tmp_path: Path) -> None:
    gz(tmp_path / "reviews_Beauty_5.json.gz", [json.dumps(REVIEW)])
    products = [
        "{'asin': 'B1', 'title': \"Nail &amp; Hair's\", 'categories': [['Beauty', 'Nails'], ['Gifts']], 'brand': ''}",
        "{'asin': 'B2', 'description': 'd', 'salesRank': {'Beauty': 1}, 'price': 4.5}",
        "{'asin': 'B1', 'title': 'again'}",
    ]
    gz(tmp_path / "meta_Beauty.json.gz", products)
    counts = get_source("amazon-2014-beauty", tmp_path / "out", from_path=tmp_path)
    assert (counts["interactions"], counts["catalogue_rows"]) == (1, 2)
    log, items = tables(tmp_path / "out")
    assert log == [{"user_id": "A1", "item_id": "B1", "rating": 5.0, "timestamp": 1369699200}]
    assert items["B1"]["title"] == "Nail & Hair's"
    assert items["B1"]["category"] == "Beauty > Nails; Gifts"
    assert items["B1"]["brand"] is None
    assert items["B2"]["description"] == "d"


def test_lines_are_parsed_and_never_run(tmp_path: Path) -> None:
    gz(tmp_path / "reviews_Beauty_5.json.gz", [json.dumps(REVIEW)])
    gz(tmp_path / "meta_Beauty.json.gz", ["{'asin': __import__('os').mkdir('" + str(tmp_path / "pwned") + "')}"])
    with pytest.raises(DataError, match=r"meta_Beauty\.json, line 1: cannot be parsed"):
        get_source("amazon-2014-beauty", tmp_path / "out", from_path=tmp_path)
    assert not (tmp_path / "pwned").exists()
    assert not (tmp_path / "out").exists()
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".part")]


def test_amazon_2018(tmp_path: Path) -> None:
    gz(tmp_path / "All_Beauty_5.json.gz", [json.dumps({**REVIEW, "style": {"Size:": "5"}})])
    products = [
        {"asin": "B1", "title": "Soap", "category": ["Beauty", "Bath"], "description": ["Two", "parts"], "brand": "X"},
        {"asin": "B2", "title": "var x = new Date().getTime();", "category": [], "description": "one text"},
    ]
    gz(tmp_path / "meta_All_Beauty.json.gz", [json.dumps(product) for product in products])
    get_source("amazon-2018-all-beauty", tmp_path / "out", from_path=tmp_path)
    _, items = tables(tmp_path / "out")
    assert items["B1"] == {
        **{"item_id": "B1", "title": "Soap", "category": "Beauty, Bath", "brand": "X"},
        "description": "Two, parts",
    }
    assert items["B2"]["title"] is None
    assert items["B2"]["description"] == "one text"


@pytest.mark.parametrize("full", [False, True])
def test_amazon_2023(tmp_path: Path, full: bool) -> None:
    if full:
        review = {"user_id": "AE", "parent_asin": "B1", "asin": "B9", "rating": 4.0, "timestamp": 1588687728923}
        gz(tmp_path / "All_Beauty.jsonl.gz", [json.dumps({**review, "images": [], "text": "x"})])
    else:
        gz(tmp_path / "All_Beauty.csv.gz", ["user_id,parent_asin,rating,timestamp", "AE,B1,4.0,1588687728923"])
    product = {"parent_asin": "B1", "title": "Comb", "categories": [], "main_category": "All Beauty", "store": "S"}
    gz(tmp_path / "meta_All_Beauty.jsonl.gz", [json.dumps({**product, "features": ["f"], "details": {"a": "b"}})])
    get_source("amazon-2023-all-beauty", tmp_path / "out", from_path=tmp_path)
    log, items = tables(tmp_path / "out")
    assert log == [{"user_id": "AE", "item_id": "B1", "rating": 4.0, "timestamp": 1588687728923}]
    assert items["B1"] == {
        **{"item_id": "B1", "title": "Comb", "category": "All Beauty", "brand": "S"},
        "description": "f",
    }


def test_steam(tmp_path: Path) -> None:
    review = "{u'username': u'Chaos \\u2665', u'hours': 9.1, u'product_id': u'725280', u'date': u'2017-12-17'}"
    gz(tmp_path / "steam_reviews.json.gz", [review])
    game = "{u'id': u'725280', u'app_name': u'Galactic', u'genres': [u'Action', u'Indie'], u'price': u'Free'}"
    gz(tmp_path / "steam_games.json.gz", [game, "{u'app_name': u'without id'}"])
    get_source("steam", tmp_path / "out", from_path=tmp_path)
    log, items = tables(tmp_path / "out")
    assert log == [{"user_id": "Chaos ♥", "item_id": "725280", "hours": 9.1, "timestamp": 1513468800}]
    assert list(items) == ["725280"]
    assert items["725280"]["category"] == "Action, Indie"


def test_records_with_odd_values(tmp_path: Path) -> None:
    """Found by the fuzzer: half a character, which JSON can name, and a list where a number should be."""
    every: tuple[object, ...] = (1.5, [[2]], {})
    rows = [{"username": "u\ud800", "hours": hours, "product_id": "1", "date": "2017-12-17"} for hours in every]
    gz(tmp_path / "steam_reviews.json.gz", [repr(row) for row in rows])
    gz(tmp_path / "steam_games.json.gz", ["{'id': '1', 'app_name': 'g'}"])
    get_source("steam", tmp_path / "out", from_path=tmp_path)
    log, _ = tables(tmp_path / "out")
    assert [(row["user_id"], row["hours"]) for row in log] == [("u?", 1.5), ("u?", None), ("u?", None)]


def test_records_in_another_encoding_are_named_by_line(tmp_path: Path) -> None:
    gz(tmp_path / "reviews_Beauty_5.json.gz", [json.dumps(REVIEW)])
    (tmp_path / "meta_Beauty.json").write_bytes("{'asin': 'B1'}\n{'asin': 'B2', 'title': 'é'}\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"meta_Beauty\.json, line 2: cannot be parsed: .*utf-8"):
        get_source("amazon-2014-beauty", tmp_path / "out", from_path=tmp_path)


def test_yelp_from_its_archive(tmp_path: Path) -> None:
    review = {"user_id": "u", "business_id": "b", "stars": 3.0, "date": "2018-07-07 22:09:11", "text": "If…"}
    place = {"business_id": "b", "name": "Cafe", "categories": "Food, Coffee", "city": "X", "hours": {"Mon": "8-9"}}
    names = {"review": review, "business": place}
    with tarfile.open(tmp_path / "yelp_dataset.tar", "w") as archive:
        for name, record in names.items():
            path = tmp_path / f"yelp_academic_dataset_{name}.json"
            path.write_text(json.dumps(record) + "\n")
            archive.add(path, arcname=path.name)
            path.unlink()
    get_source("yelp", tmp_path / "out", from_path=tmp_path / "yelp_dataset.tar")
    log, items = tables(tmp_path / "out")
    assert log == [{"user_id": "u", "item_id": "b", "rating": 3.0, "timestamp": 1531001351}]
    assert items["b"] == {"item_id": "b", "title": "Cafe", "category": "Food, Coffee", "city": "X", "state": None}


def test_what_is_got_can_be_prepared(tmp_path: Path) -> None:
    (tmp_path / "ratings.dat").write_text("".join(f"{n % 2}::{n % 5}::5::{978300760 + n}\n" for n in range(20)))
    (tmp_path / "movies.dat").write_text("".join(f"{n}::Film {n} (1990)::Drama\n" for n in range(5)))
    get_source("ml-1m", tmp_path / "raw", from_path=tmp_path)
    data = prepare_files(tmp_path / "raw/interactions.parquet", tmp_path / "raw/items.parquet", tmp_path / "data")
    assert (data.num_users, data.num_items, data.num_interactions) == (2, 5, 20)
    assert data.text_fields == ("title", "category")


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="amazon-2018-industrial-and-scientific"):
        get_source("amazon-2018-industrial", tmp_path / "out")
    with pytest.raises(DataError, match="Accept the terms"):
        get_source("yelp", tmp_path / "out")
    with pytest.raises(DataError, match=r"no u\.data in it"):
        get_source("ml-100k", tmp_path / "out", from_path=tmp_path)
    archive = make_100k_zip(tmp_path)
    archive.write_bytes(archive.read_bytes()[:-40])
    with pytest.raises(DataError):
        get_source("ml-100k", tmp_path / "out", from_path=archive)
    monkeypatch.setenv("LLMD4REC_OFFLINE", "1")
    monkeypatch.setenv("LLMD4REC_CACHE", str(tmp_path / "cache"))
    with pytest.raises(FetchError, match="LLMD4REC_OFFLINE"):
        get_source("ml-100k", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="holds other things"):
        get_source("ml-100k", tmp_path / "kept", from_path=archive, overwrite=True)


def test_every_source_has_a_unique_name_terms_and_a_way_to_get_it() -> None:
    sources = all_sources()
    assert len({source.name for source in sources}) == len(sources)
    for source in sources:
        assert source.licence
        assert source.origin_lines()
        assert source.name == source.as_dict()["name"]
    assert {"ml-100k", "ml-1m", "ml-20m", "steam", "yelp", "amazon-2018-industrial-and-scientific"} <= {
        source.name for source in sources
    }
