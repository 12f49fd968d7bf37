"""Time zones that polars does not know, such as `+05:30`: the moments are the same in any."""

from __future__ import annotations

import os

import polars as pl

# Without it polars panics over a Parquet file or a pandas frame with a column of such a zone, used or not.
os.environ.setdefault("POLARS_IGNORE_TIMEZONE_PARSE_ERROR", "1")


def in_utc(lazy: pl.LazyFrame) -> pl.LazyFrame:
    """The rows with moments of zones that are no names (`+05:30`) in UTC; polars fails to print them as text."""
    try:
        schema = lazy.collect_schema()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError):
        return lazy  # a damaged file: what reads it says so
    zoned = [
        pl.col(name).cast(pl.Datetime(dtype.time_unit)).dt.replace_time_zone("UTC")
        for name, dtype in schema.items()
        if isinstance(dtype, pl.Datetime) and dtype.time_zone and dtype.time_zone[0] in "+-"
    ]
    return lazy.with_columns(zoned) if zoned else lazy
