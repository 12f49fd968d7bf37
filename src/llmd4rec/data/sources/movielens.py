"""MovieLens 100K, 1M and 20M, by GroupLens.

A title `Toy Story (1995)` becomes title `Toy Story` and year 1995; genres become the text `Animation, Comedy`.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from llmd4rec.data.sources.source import Files, Origin, Source, Tables
from llmd4rec.io.download import Package, RemoteFile, Url

_LICENCE = (
    "GroupLens: research use, cite Harper and Konstan 2015, no redistribution without permission, no commercial use "
    "without permission. https://files.grouplens.org/datasets/movielens/"
)
#: Of the archives as published; several public projects record the same ones.
_SHA256 = {
    "ml-100k": "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
    "ml-1m": "a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
    "ml-20m": "96f243c338a8665f6bcc89c53edf6ee39162a846940de6b7c8c48aeada765ff3",
}
#: The order of the flags in u.item.
GENRES = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"),
    *("Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
_YEAR = r"\s*\((\d{4})\)(?:\s*\([A-Z]+\))?\s*$"


def _titled(full: pl.Expr) -> list[pl.Expr]:
    """Title and year of `Toy Story (1995)`; a mark behind the year, as in `(1995) (V)`, goes too."""
    return [
        full.str.replace(_YEAR, "").str.strip_chars().alias("title"),
        full.str.extract(_YEAR).cast(pl.Int32).alias("year"),
    ]


def _interactions(lazy: pl.LazyFrame) -> pl.LazyFrame:
    return lazy.select(
        "user_id", "item_id", pl.col("rating").cast(pl.Float64), pl.col("timestamp").cast(pl.Float64).cast(pl.Int64)
    )


def _lines(path: Path, separator: str, names: tuple[str, ...]) -> pl.LazyFrame:
    """Text without header and quoting, split at a separator of any length."""
    line = pl.scan_csv(
        path, glob=False, has_header=False, new_columns=["line"], separator="\x01", quote_char=None, infer_schema=False
    ).drop_nulls()
    parts = pl.col("line").str.split(separator)
    return line.select(parts.list.get(at, null_on_oob=True).alias(name) for at, name in enumerate(names))


def read_100k(files: Files) -> Tables:
    """`u.data` (tabs) and `u.item` (bars, Latin-1, one flag per genre)."""
    log = _lines(files.text("u.data"), "\t", ("user_id", "item_id", "rating", "timestamp"))
    head = ("item_id", "full", "released", "video", "address")
    items = _lines(files.text("u.item", encoding="latin-1"), "|", (*head, *GENRES))
    flagged = [pl.when(pl.col(genre) == "1").then(pl.lit(genre)) for genre in GENRES]
    category = pl.concat_list(flagged).list.drop_nulls().list.join(", ").alias("category")
    return Tables(_interactions(log), items.select("item_id", *_titled(pl.col("full")), category))


def read_100k_recbole(files: Files) -> Tables:
    """RecBole's atomic files. They cut the last bracket off each title as the year; it is put back and read again."""
    log = _table(files.text("ml-100k.inter"))
    items = _table(files.text("ml-100k.item"))
    full = pl.format("{} ({})", "movie_title", "release_year").replace("unkonwn (unkonwn)", "unknown")
    category = pl.col("class").str.replace_all(" ", ", ", literal=True).alias("category")
    return Tables(_interactions(log), items.select("item_id", *_titled(full), category))


def _table(path: Path) -> pl.LazyFrame:
    lazy = pl.scan_csv(path, glob=False, separator="\t", quote_char=None, infer_schema=False)
    return lazy.rename(lambda name: name.split(":")[0])


def read_1m(files: Files) -> Tables:
    """`ratings.dat` and `movies.dat`: `::` between fields, Latin-1, genres joined by bars."""
    log = _lines(files.text("ratings.dat"), "::", ("user_id", "item_id", "rating", "timestamp"))
    items = _lines(files.text("movies.dat", encoding="latin-1"), "::", ("item_id", "full", "genres"))
    return Tables(_interactions(log), items.select("item_id", *_titled(pl.col("full")), _bars()))


def read_20m(files: Files) -> Tables:
    """`ratings.csv` and `movies.csv`."""
    log = pl.scan_csv(files.text("ratings.csv"), glob=False, infer_schema=False).rename(
        {"userId": "user_id", "movieId": "item_id"}
    )
    items = pl.scan_csv(files.text("movies.csv"), glob=False, infer_schema=False).rename(
        {"movieId": "item_id", "title": "full"}
    )
    return Tables(_interactions(log), items.select("item_id", *_titled(pl.col("full")), _bars()))


def _bars() -> pl.Expr:
    genres = pl.col("genres").str.replace_all("|", ", ", literal=True)
    return pl.when(genres != "(no genres listed)").then(genres).alias("category")


def _zip(name: str) -> tuple[RemoteFile, ...]:
    address = Url(f"https://files.grouplens.org/datasets/movielens/{name}.zip")
    return (RemoteFile(f"movielens/{name}.zip", (address,), _SHA256[name], _LICENCE),)


def _packed(suffix: str) -> RemoteFile:
    wheel = Package(
        "recbole",
        "1.2.1",
        f"recbole/dataset_example/ml-100k/ml-100k.{suffix}",
        "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
    )
    return RemoteFile(f"movielens/ml-100k.{suffix}", (wheel,), None, _LICENCE)


SOURCES = (
    Source(
        "ml-100k",
        "MovieLens: ratings of films, with titles and genres",
        _LICENCE,
        (Origin(_zip("ml-100k"), read_100k), Origin((_packed("inter"), _packed("item")), read_100k_recbole)),
        notes="Both origins give the same tables: 943 users, 1,682 films, 100,000 ratings.",
    ),
    Source("ml-1m", "MovieLens: ratings of films, with titles and genres", _LICENCE, (Origin(_zip("ml-1m"), read_1m),)),
    Source(
        "ml-20m", "MovieLens: ratings of films, with titles and genres", _LICENCE, (Origin(_zip("ml-20m"), read_20m),)
    ),
)
