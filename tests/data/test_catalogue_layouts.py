"""Catalogues in the layouts of public data sets and shops: which columns are texts, and which hold several values.

Each column is a few values that repeat over twelve items.
"""

from __future__ import annotations

import itertools
import json
from typing import Any

import polars as pl
import pytest

from llmd4rec import Dataset

ITEMS = 12
#: Columns, the texts in their order, and how fields with several values are written.
LAYOUTS: dict[str, tuple[dict[str, list[Any]], list[str], dict[str, str]]] = {
    "MyAnimeList": (
        {
            "name": [f"Anime {n}" for n in range(ITEMS)],
            "genre": ["Action, Comedy", "Comedy, Slice of Life", "Slice of Life", None],
            "type": ["TV", "OVA"],
            "episodes": ["12", "24", "Unknown"],
            "rating": [7.25, 8.0],
        },
        ["title", "genre"],
        {"genre": ","},
    ),
    "Steam": (
        {
            "name": [f"Game {n}" for n in range(ITEMS)],
            "genres": ["Action;Indie", "Indie", "Action"],
            "platforms": ["windows;mac;linux", "windows", "windows;mac"],
            "developer": ["Valve", "id Software, Inc.", "Bungie, LLC"],
            "owners": ["10000-20000", "50000-100000"],
            "release_date": ["2016-11-01", "2017-02-03"],
            "header_image": [f"https://cdn.example/{n}.jpg?t=1" for n in range(ITEMS)],
        },
        ["title", "genres", "developer", "platforms"],
        {"genres": ";", "platforms": ";"},
    ),
    "Netflix": (
        {
            "title": [f"Show {n}" for n in range(ITEMS)],
            "country": ["United States", "India, United States", "India", "Japan, India"],
            "listed_in": ["Dramas, Comedies", "Comedies"],
            "duration": ["90 min", "2 Seasons"],
            "date_added": ["September 25, 2021", "October 1, 2021"],
            "description": ["As her father nears the end, she stages it; again | they cope.", "He, she, they."],
        },
        ["title", "description", "country", "listed_in"],
        {"country": ",", "listed_in": ","},
    ),
    "Google Play": (
        {
            "App": [f"Paint it {'red' * (n + 1)}" for n in range(ITEMS)],
            "Category": ["ART_AND_DESIGN", "BEAUTY"],
            "Installs": ["10,000+", "500,000+"],
            "Genres": ["Art & Design;Creativity", "Art & Design", "Casual;Creativity"],
            "Current Ver": ["1.0.0", "2.0.1"],
        },
        ["Category", "Genres", "App"],
        {"Genres": ";"},
    ),
    "Goodreads": (
        {
            "title": [f"Book {n}" for n in range(ITEMS)],
            "authors": ["Ann Lee/Bo Ek", "Ann Lee", "Bo Ek"],
            "language_code": ["eng", "en-US"],
            "isbn13": [f"978043978{n:04d}" for n in range(ITEMS)],
            "shelves": ["{'Drama': 3, 'War': 1}", "{'War': 2}"],
        },
        ["title", "authors"],
        {},
    ),
    "TMDB": (
        {
            "title": [f"Film {n}" for n in range(ITEMS)],
            "genres": ["[{'id': 16, 'name': 'War'}, {'id': 35, 'name': 'Comedy'}]", "[{'id': 35, 'name': 'Comedy'}]"],
            "belongs_to_collection": ["{'id': 10194, 'name': 'Toy Story'}", None],
            "imdb_id": [f"tt{n:07d}" for n in range(ITEMS)],
            "overview": ["A toy, jealous; and | lost.", "Two boys play a game, which is real."],
            "poster_path": [f"/abc{n}.jpg" for n in range(ITEMS)],
        },
        ["title", "genres", "overview"],
        {"genres": "list"},
    ),
    "H&M": (
        {
            "prod_name": [f"Strap top {n}" for n in range(ITEMS)],
            "product_code": [str(108775 + n) for n in range(ITEMS)],
            "product_type_name": ["Vest top", "Bra"],
            "colour_group_name": ["Black", "White", "Dark Blue"],
            "index_code": ["A", "B"],
            "detail_desc": ["Jersey top with narrow shoulder straps.", "Microfibre T-shirt bra."],
        },
        ["title", "detail_desc", "product_type_name", "colour_group_name"],
        {},
    ),
    "Shopify": (
        {
            "Handle": [f"red-wool-hat-{n}" for n in range(ITEMS)],
            "Title": [f"Hat {n}" for n in range(ITEMS)],
            "Body (HTML)": ["<p>Warm hat, with wool; good | nice</p>", "<p>A hat for cold days and nights</p>"],
            "Vendor": ["Acme", "Zett"],
            "Product Category": ["Apparel & Accessories > Hats", "Home > Pots, Pans"],
            "Tags": ["new, sale", "wool", "sale, wool"],
            "Variant SKU": [f"A-{n}" for n in range(ITEMS)],
            "Status": ["active", "draft"],
        },
        ["title", "Tags", "Body (HTML)", "Vendor", "Product Category"],
        {"Tags": ","},
    ),
    "WooCommerce": (
        {
            "Name": [f"Thing {n}" for n in range(ITEMS)],
            "Categories": ["Clothing > Hats, Clothing > Men", "Clothing > Hats", "Clothing > Men"],
            "Images": ["https://a.example/1.jpg, https://a.example/2.jpg"],
            "GTIN, UPC, EAN": [f"40{n:010d}" for n in range(ITEMS)],
        },
        ["title", "Categories"],
        {"Categories": ","},
    ),
    "Yelp": (
        {
            "name": [f"Cafe {n}" for n in range(ITEMS)],
            "categories": ["Food, Coffee & Tea", "Coffee & Tea, Bars", "Bars, Food"],
            "hours": ["{'Monday': '7:0-20:0'}", "{'Tuesday': '8:0-20:0', 'Friday': '1:0-2:0'}"],
            "is_open": ["1", "0"],
        },
        ["title", "categories"],
        {"categories": ","},
    ),
    "Excel, lines within a cell": (
        {"title": [f"T {n}" for n in range(ITEMS)], "tags": ["new\nred", "red", "red\r\nold"]},
        ["title", "tags"],
        {"tags": "\n"},
    ),
    "Food.com": (
        {
            "name": [f"dish {n}" for n in range(ITEMS)],
            "tags": [str(["60-minutes-or-less", "vegan"]), str(["vegan"]), str(["easy", "60-minutes-or-less"])],
            "steps": [str(["cut the onions, fine; then wait for them", "put them on for an hour or two"])],
            "ingredients": [str(["winter squash", "milk"]), str(["milk"]), str(["honey", "milk"])],
            "nutrition": [str([51.5, 0.0, 13.0]), str([173.4, 18.0, 0.0])],
        },
        ["title", "tags", "ingredients"],
        {"tags": "list", "ingredients": "list"},
    ),
    "BigQuery, JSON": (
        {"title": [f"T {n}" for n in range(ITEMS)], "labels": [json.dumps(["new", "red"]), json.dumps(["red"]), "[]"]},
        ["title", "labels"],
        {"labels": "list"},
    ),
    "Last.fm": (
        {
            "name": [f"Artist {n}" for n in range(ITEMS)],
            "similar": [str([f"TRABC{n}", f"TRXYZ{n + 1}"]) for n in range(ITEMS)],
            "tags": [json.dumps([["rock", 5], ["pop", 3]]), json.dumps([["pop", 1]])],
        },
        ["title"],
        {"similar": "list"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(name: str) -> None:
    columns, texts, multi = LAYOUTS[name]
    ids = [f"i{number}" for number in range(ITEMS)]
    filled = {key: list(itertools.islice(itertools.cycle(values), ITEMS)) for key, values in columns.items()}
    log = pl.DataFrame({"user_id": ["u"] * ITEMS + ["v"] * ITEMS, "item_id": ids * 2})
    data = Dataset.from_frames(log, pl.DataFrame({"item_id": ids, **filled}))
    assert list(data.text_fields) == texts
    assert data.multi_fields == multi
    told = data.report["catalogue"]
    left_out = {key.split(":")[0] for key in columns} - {*texts, "name", "Name", "Title", "prod_name"}
    assert left_out <= {*told["filled_columns_not_taken_as_text"]}, "what is left out is said"
