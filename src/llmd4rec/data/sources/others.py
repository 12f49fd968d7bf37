"""Steam reviews (Kang and McAuley 2018) and the Yelp Open Dataset."""

from __future__ import annotations

import polars as pl

from llmd4rec.data.sources.records import joined, number, read_records, scan_json, text
from llmd4rec.data.sources.source import Files, Origin, Source, Tables
from llmd4rec.io.download import RemoteFile, Url


def read_steam(files: Files) -> Tables:
    """Python literals; a user is known by the name, a time by the day."""
    log = read_records(
        files.text("steam_reviews.json.gz", "steam_reviews.json"),
        {
            "user_id": lambda record: text(record.get("username")),
            "item_id": lambda record: text(record.get("product_id")),
            "date": lambda record: text(record.get("date")),
            "hours": lambda record: number(record.get("hours")),
        },
        {"user_id": pl.String, "item_id": pl.String, "date": pl.String, "hours": pl.Float64},
        files.scratch,
        literal=True,
    )
    interactions = log.select(
        "user_id",
        "item_id",
        "hours",
        pl.col("date").str.to_date("%Y-%m-%d").cast(pl.Datetime("ms")).dt.epoch("s").alias("timestamp"),
    )
    columns = {
        "item_id": lambda record: text(record.get("id")),
        "title": lambda record: text(record.get("app_name")) or text(record.get("title")),
        "category": lambda record: joined(record.get("genres")),
        "tags": lambda record: joined(record.get("tags")),
        "developer": lambda record: text(record.get("developer")),
        "publisher": lambda record: text(record.get("publisher")),
    }
    items = read_records(
        files.text("steam_games.json.gz", "steam_games.json"),
        columns,
        {name: pl.String for name in columns},
        files.scratch,
        literal=True,
    )
    return Tables(interactions, items)


def read_yelp(files: Files) -> Tables:
    """JSON lines; categories are one text."""
    log = scan_json(files.text("yelp_academic_dataset_review.json"), ("user_id", "business_id", "stars", "date"))
    items = scan_json(
        files.text("yelp_academic_dataset_business.json"), ("business_id", "name", "categories", "city", "state")
    )
    return Tables(
        log.select(
            "user_id",
            pl.col("business_id").alias("item_id"),
            pl.col("stars").cast(pl.Float64).alias("rating"),
            pl.col("date").str.to_datetime("%Y-%m-%d %H:%M:%S").dt.epoch("s").alias("timestamp"),
        ),
        items.select(
            pl.col("business_id").alias("item_id"),
            pl.col("name").alias("title"),
            pl.col("categories").alias("category"),
            "city",
            "state",
        ),
    )


_STEAM_LICENCE = "Published for research with Kang and McAuley 2018, no formal licence text; cite it."
_STEAM = "https://cseweb.ucsd.edu/~wckang"

SOURCES = (
    Source(
        "steam",
        "Steam: reviews of games, with genres and tags",
        _STEAM_LICENCE,
        (
            Origin(
                tuple(
                    RemoteFile(f"steam/{name}.json.gz", (Url(f"{_STEAM}/{name}.json.gz"),), None, _STEAM_LICENCE)
                    for name in ("steam_reviews", "steam_games")
                ),
                read_steam,
            ),
        ),
        notes="Users are known by name, and two may share one. Times are whole days.",
    ),
    Source(
        "yelp",
        "Yelp Open Dataset: reviews of places, with names and categories",
        "Yelp Dataset Terms of Use: academic use only, no redistribution; to be accepted before the download.",
        (Origin((), read_yelp),),
        manual="Accept the terms and download the JSON archive at "
        "https://business.yelp.com/data/resources/open-dataset/ then run: llmd4rec data get yelp --from PATH "
        "(the archive, or the folder it was unpacked to)",
    ),
)
