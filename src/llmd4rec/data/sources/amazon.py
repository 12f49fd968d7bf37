"""Amazon reviews of 2014, 2018 and 2023, by the McAuley lab: 5-core reviews and product data per category."""

from __future__ import annotations

import html
from collections.abc import Callable
from functools import partial
from typing import Any

import polars as pl

from llmd4rec.data.sources.records import Record, joined, read_records, scan_json, text
from llmd4rec.data.sources.source import Files, MissingFileError, Origin, Source, Tables
from llmd4rec.io.download import RemoteFile, Url

_TERMS = (
    "Amazon Review Data, McAuley lab, UCSD: published for research, no formal licence text; cite {cite}; not to be "
    "redistributed as one's own."
)
_LAB = "https://mcauleylab.ucsd.edu/public_datasets/data"

CATEGORIES_2014 = (
    *("Books", "Electronics", "Movies_and_TV", "CDs_and_Vinyl", "Clothing_Shoes_and_Jewelry", "Home_and_Kitchen"),
    *("Kindle_Store", "Sports_and_Outdoors", "Cell_Phones_and_Accessories", "Health_and_Personal_Care"),
    *("Toys_and_Games", "Video_Games", "Tools_and_Home_Improvement", "Beauty", "Apps_for_Android"),
    *("Office_Products", "Pet_Supplies", "Automotive", "Grocery_and_Gourmet_Food", "Patio_Lawn_and_Garden", "Baby"),
    *("Digital_Music", "Musical_Instruments", "Amazon_Instant_Video"),
)
CATEGORIES_2018 = (
    *("AMAZON_FASHION", "All_Beauty", "Appliances", "Arts_Crafts_and_Sewing", "Automotive", "Books"),
    *("CDs_and_Vinyl", "Cell_Phones_and_Accessories", "Clothing_Shoes_and_Jewelry", "Digital_Music", "Electronics"),
    *("Gift_Cards", "Grocery_and_Gourmet_Food", "Home_and_Kitchen", "Industrial_and_Scientific", "Kindle_Store"),
    *("Luxury_Beauty", "Magazine_Subscriptions", "Movies_and_TV", "Musical_Instruments", "Office_Products"),
    *("Patio_Lawn_and_Garden", "Pet_Supplies", "Prime_Pantry", "Software", "Sports_and_Outdoors"),
    *("Tools_and_Home_Improvement", "Toys_and_Games", "Video_Games"),
)
CATEGORIES_2023 = (
    *("All_Beauty", "Amazon_Fashion", "Appliances", "Arts_Crafts_and_Sewing", "Automotive", "Baby_Products"),
    *("Beauty_and_Personal_Care", "Books", "CDs_and_Vinyl", "Cell_Phones_and_Accessories"),
    *("Clothing_Shoes_and_Jewelry", "Digital_Music", "Electronics", "Gift_Cards", "Grocery_and_Gourmet_Food"),
    *("Handmade_Products", "Health_and_Household", "Health_and_Personal_Care", "Home_and_Kitchen"),
    *("Industrial_and_Scientific", "Kindle_Store", "Magazine_Subscriptions", "Movies_and_TV", "Musical_Instruments"),
    *("Office_Products", "Patio_Lawn_and_Garden", "Pet_Supplies", "Software", "Sports_and_Outdoors"),
    *("Subscription_Boxes", "Tools_and_Home_Improvement", "Toys_and_Games", "Video_Games"),
)


def _clean(value: str | None) -> str | None:
    """Without HTML entities; null where the title is a page's script, as in some records of 2018."""
    if value is None or "getTime" in value:
        return None
    return html.unescape(value)


def _items(files: Files, names: tuple[str, ...], fields: dict[str, tuple[str, ...]], *, literal: bool) -> pl.LazyFrame:
    """The catalogue; each column is the first of its fields that holds anything."""

    def getter(keys: tuple[str, ...]) -> Callable[[Record], Any]:
        return lambda record: next((v for key in keys if (v := _clean(joined(record.get(key))))), None)

    columns = {name: getter(keys) for name, keys in fields.items()}
    columns["item_id"] = lambda record: text(record.get(fields["item_id"][0]))
    types = {name: pl.String for name in fields}
    return read_records(files.text(*names), columns, types, files.scratch, literal=literal)


def _reviews(files: Files, *names: str) -> pl.LazyFrame:
    log = scan_json(files.text(*names), ("reviewerID", "asin", "overall", "unixReviewTime"))
    return log.select(
        pl.col("reviewerID").alias("user_id"),
        pl.col("asin").alias("item_id"),
        pl.col("overall").cast(pl.Float64).alias("rating"),
        pl.col("unixReviewTime").cast(pl.Int64).alias("timestamp"),
    )


def read_2014(category: str, files: Files) -> Tables:
    """Reviews are JSON lines; products are Python literals, with categories as paths."""
    fields = {"item_id": ("asin",), "title": ("title",), "category": ("categories",), "brand": ("brand",)}
    items = _items(
        files,
        (f"meta_{category}.json.gz", f"meta_{category}.json"),
        {**fields, "description": ("description",)},
        literal=True,
    )
    return Tables(_reviews(files, f"reviews_{category}_5.json.gz", f"reviews_{category}_5.json"), items)


def read_2018(category: str, files: Files) -> Tables:
    """Reviews and products are JSON lines; a category is one path, a description a list."""
    fields = {"item_id": ("asin",), "title": ("title",), "category": ("category",), "brand": ("brand",)}
    items = _items(
        files,
        (f"meta_{category}.json.gz", f"meta_{category}.json"),
        {**fields, "description": ("description",)},
        literal=False,
    )
    return Tables(_reviews(files, f"{category}_5.json.gz", f"{category}_5.json"), items)


def read_2023(category: str, files: Files) -> Tables:
    """The 5-core ratings (CSV), or full reviews (JSON lines) from a folder; times are in milliseconds."""
    try:
        log = pl.scan_csv(files.text(f"{category}.csv.gz", f"{category}.csv"), glob=False, infer_schema=False)
    except MissingFileError:
        fields = ("user_id", "parent_asin", "rating", "timestamp")
        log = scan_json(files.text(f"{category}.jsonl.gz", f"{category}.jsonl"), fields)
    interactions = log.select(
        "user_id",
        pl.col("parent_asin").alias("item_id"),
        pl.col("rating").cast(pl.Float64),
        pl.col("timestamp").cast(pl.Int64),
    )
    items = _items(
        files,
        (f"meta_{category}.jsonl.gz", f"meta_{category}.jsonl"),
        {
            "item_id": ("parent_asin",),
            "title": ("title",),
            "category": ("categories", "main_category"),
            "brand": ("store",),
            "description": ("description", "features"),
        },
        literal=False,
    )
    return Tables(interactions, items)


def _source(year: int, category: str, addresses: tuple[str, str], read: Callable[..., Tables], cite: str) -> Source:
    licence = _TERMS.format(cite=cite)
    files = tuple(
        RemoteFile(f"amazon-{year}/{address.rsplit('/', 1)[1]}", (Url(address),), None, licence)
        for address in addresses
    )
    return Source(
        f"amazon-{year}-{category.lower().replace('_', '-')}",
        f"Amazon {year}: reviews of products in one category, 5-core, with titles, categories and more",
        licence,
        (Origin(files, partial(read, category)),),
        notes="Times are whole days: order within a day is that of the file." if year < 2023 else "",
    )


_SNAP = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles"
SOURCES = (
    *(
        _source(
            2014,
            category,
            (f"{_SNAP}/reviews_{category}_5.json.gz", f"{_SNAP}/meta_{category}.json.gz"),
            read_2014,
            "He and McAuley 2016",
        )
        for category in CATEGORIES_2014
    ),
    *(
        _source(
            2018,
            category,
            (
                f"{_LAB}/amazon_v2/categoryFilesSmall/{category}_5.json.gz",
                f"{_LAB}/amazon_v2/metaFiles2/meta_{category}.json.gz",
            ),
            read_2018,
            "Ni, Li and McAuley 2019",
        )
        for category in CATEGORIES_2018
    ),
    *(
        _source(
            2023,
            category,
            (
                f"{_LAB}/amazon_2023/benchmark/5core/rating_only/{category}.csv.gz",
                f"{_LAB}/amazon_2023/raw/meta_categories/meta_{category}.jsonl.gz",
            ),
            read_2023,
            "Hou et al. 2024",
        )
        for category in CATEGORIES_2023
    ),
)
