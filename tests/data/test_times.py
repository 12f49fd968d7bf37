"""The forms of time that programs write: those of one meaning are read, those of two are refused with the remedy."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmd4rec.data.dataset import Dataset
from llmd4rec.data.ingest.settings import Prepare
from llmd4rec.data.prepare import prepare_files
from llmd4rec.errors import ConfigError, DataError

#: 2022-04-16 04:39:25 in UTC, that day's beginning, and 39 minutes past four.
MOMENT, DAY, MINUTE = 1650083965, 1650067200, 1650083940


def log(times: list[Any] | pl.Series, **columns: Any) -> pl.DataFrame:
    """A log of two users, of whom the first has three rows."""
    size = len(times)
    items = [*(f"i{at}" for at in range(size - 1)), "i0"]
    return pl.DataFrame({"user": ["u"] * 3 + ["v"] * (size - 3), "item": items, "time": times, **columns})


def read(times: list[Any] | pl.Series, **settings: Any) -> list[int]:
    """The times as the data set has them, in the order of the rows, which they must not contradict."""
    data = Dataset.from_frames(log(times), **settings)
    assert data.times is not None
    return [int(time) for time in data.times]


def said(data: Dataset, words: str) -> bool:
    return any(words in warning for warning in data.report["warnings"])


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        # ISO 8601 and near it
        ("2022-04-16T04:39:25.123456789Z", MOMENT),
        ("2022-04-16T10:09:25+05:30", MOMENT),
        ("2022-04-16 10:24:25.5+0545", MOMENT),
        ("2022-04-15T20:39:25-08", MOMENT),
        ("20220416T043925Z", MOMENT),
        ("20220416T043925", MOMENT),
        ("2022-04-16 04:39:25 UTC", MOMENT),  # BigQuery
        ("2022-04-16 04:39:25.123 UTC", MOMENT),
        ("2022-04-16 04:39:25+00", MOMENT),  # PostgreSQL
        ("2022-04-15 21:39:25.000 -0700", MOMENT),  # Snowflake
        ("2022-04-16 04:39:25.1234567 +00:00", MOMENT),  # SQL Server
        ("2022-04-16 10:09:25 +0530 IST", MOMENT),  # Go
        ("2022-04-16 04:39:25.123 +0000 UTC", MOMENT),
        ("2022-04-16T06:39:25+02:00[Europe/Berlin]", MOMENT),  # Java
        ("2022-04-16 04:39:25,123", MOMENT),  # Python's logging
        ("2022-04-16-04.39.25.123456", MOMENT),  # DB2
        ("2022.04.16 04:39:25", MOMENT),
        ("2022/4/16 4:39", MINUTE),  # Excel in Japan and China
        ("2022-04-16 04:39:25 AM", MOMENT),
        ("2022-04-16 04", DAY + 4 * 3600),  # Tianchi
        ("2022年4月16日 04:39:25", MOMENT),
        ("20220416 04:39:25", MOMENT),
        ("20220416 043925", MOMENT),
        # weekdays and months by name
        ("Sat Apr 16 04:39:25 +0000 2022", MOMENT),  # Twitter, Foursquare, Goodreads
        ("Sat Apr 16 10:09:25 +0530 2022", MOMENT),
        ("Sat Apr 16 04:39:25 2022", MOMENT),  # C
        ("Sat Apr  9 04:39:25 2022", MOMENT - 7 * 86400),
        ("Sat Apr 16 04:39:25 UTC 2022", MOMENT),  # Java, date(1)
        ("Sat, 16 Apr 2022 04:39:25 +0000", MOMENT),  # RFC 2822
        ("Sat, 16 Apr 2022 04:39:25 GMT", MOMENT),  # HTTP
        ("Saturday, April 16, 2022 4:39:25 AM", MOMENT),
        ("Sat Apr 16 2022 10:09:25 GMT+0530 (India Standard Time)", MOMENT),  # JavaScript
        ("16/Apr/2022:04:39:25 +0000", MOMENT),  # web servers
        ("16APR2022:04:39:25.00", MOMENT),  # SAS
        ("16-APR-22", DAY),  # Oracle
        ("16-APR-22 04.39.25.123456 AM", MOMENT),
        ("16-Apr-2022", DAY),
        ("Apr 16 2022  4:39AM", MINUTE),  # SQL Server
        ("Apr 16, 2022, 4:39:25\u202fAM UTC", MOMENT),  # Google Takeout
        ("April 16th, 2022 at 4:39 p.m.", MINUTE + 12 * 3600),
        ("16 April 2022, 04:39", MINUTE),
        ("Sept 1, 2021", 1630454400),
        ("Apr-16-2022 04:39", MINUTE),
        ("04 16, 2022", DAY),  # Amazon
        # days whose numbers settle what they are
        ("4/16/2022 4:39:25 AM", MOMENT),  # .NET, Excel in America
        ("4/16/2022, 4:39:25 AM", MOMENT),
        ("4/16/2022 12:05 AM", DAY + 300),
        ("4/16/2022 12:05 PM", DAY + 43500),
        ("4/16/22 4:39", MINUTE),
        ("16/04/2022 04:39:25", MOMENT),
        ("16.04.2022 04:39", MINUTE),  # Excel in Germany
        ("16.04.2022, 04:39:25", MOMENT),
        ("16-04-2022", DAY),
        ("16/04/2022 à 04h39", MINUTE),
        ("16/04/2022 04", DAY + 4 * 3600),
        # digits alone
        ("2022041604", DAY + 4 * 3600),  # Google Analytics
        ("202204160439", MINUTE),
        ("20220416043925123", MOMENT),
        ("16042022", DAY),
        ("4162022", DAY),
        # numbers
        ("/Date(1650083965000+0200)/", MOMENT),  # .NET's JSON
        ("1650083965,123", MOMENT),
        ("1,650,083,965", MOMENT),
        ("1650083965.0", MOMENT),
        ("44667.19403935185", MOMENT),  # Excel's days
        ("44667,19403935185", MOMENT),
    ],
)
def test_texts_of_one_meaning_are_read(text: str, seconds: int) -> None:
    assert read([text] * 4) == [seconds] * 4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("03/04/2012", ["2012-04-03 00:00:00 or 2012-03-04 00:00:00", '"%d/%m/%Y" or --time-format "%m/%d/%Y"']),
        ("03.04.2012 10:00", ["2012-04-03 10:00:00 or 2012-03-04 10:00:00", '"%d.%m.%Y %H:%M"']),
        ("3/4/12 1:05 PM", ["2012-04-03 13:05:00", '"%m/%d/%y %I:%M %p"']),
        ("22-04-16", ["2016-04-22 00:00:00 or 2022-04-16 00:00:00", '"%y-%m-%d"']),
        ("16/04/22", ["2022-04-16 00:00:00 or 2016-04-22 00:00:00", '"%d/%m/%y"']),
        ("2022-W15-6", ["no time I can read", "--time-format"]),
        ("2022-106", ["no time I can read"]),
        ("Sat Apr 16 04:39:25 EST 2022", ["no time I can read"]),
        ("2022-04-31", ["no time I can read"]),
        ("16 avr. 2022", ["no time I can read"]),
        ("04:39:25", ["hours without a day, and no other column holds it"]),
        ("4:39 PM", ["hours without a day"]),
        ("44,667", ["no time I can read"]),
    ],
)
def test_texts_of_two_meanings_or_none_are_refused(text: str, words: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        read([text] * 4)
    for word in [*words, "column 'time'"]:
        assert word in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("text", "form", "seconds"),
    [
        ("03/04/2012", "%d/%m/%Y", 1333411200),
        ("03/04/2012", "%m/%d/%Y", 1330819200),
        ("3/4/2012, 1:05 PM", "%m/%d/%Y %I:%M %p", 1330819200 + 13 * 3600 + 300),
        ("22-04-16", "%y-%m-%d", DAY),
        ("2022-W15-6", "%G-W%V-%u", DAY),
        ("2022-106", "%Y-%j", DAY),
        ("Sat Apr 16 04:39:25 EST 2022", "%a %b %d %H:%M:%S EST %Y", MOMENT),
        ("44667", "excel", DAY),
        ("44667", "seconds", 44667),
        ("1650083965", "milliseconds", 1650083),
    ],
)
def test_what_is_refused_has_a_remedy(text: str, form: str, seconds: int) -> None:
    assert read([text] * 4, time_format=form) == [seconds] * 4
    assert read([text] * 4, time_format=[form, "%Y"]) == [seconds] * 4


def test_a_value_that_settles_the_days_settles_the_column_and_is_named() -> None:
    texts = ["03/04/2012", "04/04/2012", "16/04/2012", "05/04/2012 10:00"]
    data = Dataset.from_frames(log(texts))
    assert data.times is not None
    assert data.times.tolist() == [1333411200, 1333497600, 1334534400, 1333620000]
    assert said(data, "read as day, month, year, since '16/04/2012' in row 3 is no month, day, year")
    assert data.report["interactions"]["time_formats"] == ["%d/%m/%Y", "%d/%m/%Y %H:%M"]


def test_days_are_settled_by_a_value_far_down_and_never_both_ways() -> None:
    # More different values than are looked at first, none of them with a day above the twelfth.
    early = [
        f"{month:02}/{day:02}/{year}" for year in range(1960, 2040) for month in range(1, 13) for day in range(1, 13)
    ]
    texts = [*early, "12/13/2039"]
    assert len(texts) > 11_000
    data = Dataset.from_frames(log(texts))
    assert data.times is not None
    assert data.times[0] == -315619200
    assert said(data, f"since '12/13/2039' in row {len(texts)} is no day, month, year")
    with pytest.raises(
        DataError, match=r"no one reading fits all days \('12/13/2039' in row 11521, '13/12/2039' in row"
    ):
        Dataset.from_frames(log([*texts, "13/12/2039"]))
    with pytest.raises(DataError, match="may be 1960-02-01 00:00:00 or 1960-01-02 00:00:00"):
        Dataset.from_frames(log(early))


def test_a_column_settled_one_way_refuses_the_other() -> None:
    with pytest.raises(DataError, match="no one reading fits all days"):
        read(["16/04/2022", "04/16/2022", "05/04/2022", "06/04/2022"])


def test_several_forms_in_one_column() -> None:
    texts = ["2022-04-16 04:39:25", "Sat, 16 Apr 2022 04:39:26 GMT", "2022-04-16T10:09:27+05:30", "16-Apr-2022"]
    data = Dataset.from_frames(log(texts))
    assert data.times is not None
    assert data.times.tolist() == [MOMENT, MOMENT + 1, MOMENT + 2, DAY]
    assert said(data, "some times name a zone and some do not; the latter were taken as UTC")
    mixed = [str(MOMENT), "2022-04-16 04:39:26", "2022-04-16 04:39:27", str(MOMENT)]
    assert read(mixed, time_format=["seconds", "%Y-%m-%d %H:%M:%S"]) == [MOMENT, MOMENT + 1, MOMENT + 2, MOMENT]


def test_what_stands_for_no_time_is_missing() -> None:
    for text in (r"\N", "NULL", "null", "NaT", "None", "0000-00-00 00:00:00", "#N/A"):
        for good in ("2022-04-16 04:39:25", "1650083965"):
            with pytest.raises(DataError) as caught:
                read([good, good, good, text, good])
            assert "row 4: column 'time' is" in str(caught.value)
            assert "(1 of 5 rows)" in str(caught.value)
            assert "--missing-times drop" in caught.value.remedy
            assert read([good, good, good, text, good], missing_times="drop") == [MOMENT] * 4


def test_formats_do_not_touch_what_is_typed() -> None:
    moments = pl.Series([MOMENT * 1000] * 4).cast(pl.Datetime("ms"))
    assert read(moments, time_format="%d/%m/%Y") == [MOMENT] * 4


def test_what_cannot_be_a_time_is_refused_with_a_format_too() -> None:
    for values in (pl.Series([["a"]] * 4), pl.Series([b"\xff"] * 4), pl.Series([True] * 4)):
        with pytest.raises(DataError, match="is no time"):
            read(values, time_format="%d/%m/%Y")


def test_formats_are_checked() -> None:
    for form in ("%d/%m/%Y %H", "hours"):
        with pytest.raises(ConfigError, match="time_format"):
            read(["2022-04-16"] * 4, time_format=form)
    for name in ("time_format", "where"):
        with pytest.raises(ConfigError, match=f"{name} is 3"):
            read(["2022-04-16"] * 4, **{name: [3]})


def test_numbers_that_lost_their_last_digits_are_pointed_out() -> None:
    seconds = [MOMENT, MOMENT + 100, MOMENT + 200, MOMENT + 300]
    data = Dataset.from_frames(log(pl.Series(seconds).cast(pl.Float32)))
    assert said(data, "column 'time' is Float32, in which numbers as large as these stand 128 apart")
    assert not Dataset.from_frames(log(pl.Series([0.5, 1, 1.5, 2], dtype=pl.Float32))).report["warnings"][1:]
    data = Dataset.from_frames(log(["1.65008E+12", "1.65009E+12", "1.65010E+12", "1.65010E+12"]))
    assert said(data, "rounded numbers, such as '1.65008E+12': order within 10^7 is lost")


def test_excels_days_are_said() -> None:
    data = Dataset.from_frames(log([44667.25, 44667.5, 44668.0, 44668.0]))
    assert data.times is not None
    assert data.times.tolist() == [DAY + 21600, DAY + 43200, DAY + 86400, DAY + 86400]
    assert said(data, "days as Excel counts them")


def test_whole_floats_of_eight_digits_are_days() -> None:
    assert read([20220416.0, 20220416.0, 20220416.0, 20220417.0]) == [DAY, DAY, DAY, DAY + 86400]


def test_days_of_six_digits() -> None:
    texts = [f"{day:02}0422" for day in range(1, 13)]
    with pytest.raises(DataError, match='--time-format "%d%m%y"'):
        read(texts)
    assert read([*texts, "310322"], time_format="%d%m%y")[:3] == [1648771200, 1648857600, 1648944000]
    assert read(["10", "20", "100101", "300000"]) == [10, 20, 100101, 300000]


def test_a_time_of_zero_among_times_of_today_is_pointed_out() -> None:
    data = Dataset.from_frames(log([0, MOMENT, MOMENT + 1, MOMENT + 2, MOMENT + 3]))
    assert said(data, "1 times are before 1990 or in the future, unlike the others, the first in row 1 (0)")
    data = Dataset.from_frames(log(["1900-01-01", *["2022-04-16"] * 4]))
    assert said(data, "the first in row 1 ('1900-01-01')")


def test_hours_are_read_with_their_day() -> None:
    frame = log(["04:39:25", "4:39:26", "04:39:27", "04:39:25"], date=["2022-04-16"] * 4)
    for made in (frame, frame.with_columns(pl.col("date").str.to_date())):
        data = Dataset.from_frames(made)
        assert data.times is not None
        assert data.times.tolist() == [MOMENT, MOMENT + 1, MOMENT + 2, MOMENT]
        assert said(data, "column 'time' holds hours without a day: they were read together with column 'date'")
    with pytest.raises(DataError, match="several columns could hold it: date, due"):
        Dataset.from_frames(frame.with_columns(due=pl.Series(["2022-04-17"] * 4)))
    # Under a name that does not tell, hours may be a length: they are only named.
    other = frame.rename({"time": "Clock"})
    data = Dataset.from_frames(other)
    assert data.times is not None
    assert data.times.tolist() == [DAY] * 4
    assert said(
        data, "'date' holds days alone, and column 'Clock' holds hours: if they are the hours of these days, --time"
    )
    data = Dataset.from_frames(other, time_col="Clock")
    assert data.times is not None
    assert data.times.tolist() == [MOMENT, MOMENT + 1, MOMENT + 2, MOMENT]


def test_a_long_value_is_cut_in_the_error() -> None:
    with pytest.raises(DataError) as caught:
        read(["2022-04-16", "x" * 5000, "2022-04-16", "2022-04-16"])
    assert len(str(caught.value)) < 500


def test_a_column_of_times_that_is_empty_is_named() -> None:
    data = Dataset.from_frames(log(["NULL"] * 4))
    assert said(
        data, "no row has a time in column 'time': each user's rows were taken in the order in which they stand"
    )


def test_times_that_nothing_is_ordered_by_need_not_be_readable() -> None:
    for texts in (["04:39:25"] * 4, ["2022-04-16", "soon", "later", "2022-04-17"], ["03/04/2012", *["04/03/2012"] * 3]):
        with pytest.raises(DataError):
            read(texts)
        data = Dataset.from_frames(log(texts), order_by="row")
        assert data.times is None
        assert said(data, "left out")
        with pytest.raises(DataError):
            read(texts, order_by="row", time_col="time")


@pytest.mark.parametrize("zone", ["+05:30", "-03:30", "UTC", "Asia/Kolkata"])
def test_zones_of_half_an_hour_in_parquet_and_in_pandas(tmp_path: Path, zone: str) -> None:
    moments = pa.array([(MOMENT + at) * 10**6 for at in range(4)], pa.timestamp("us", tz=zone))
    table = pa.table({"user": list("uuuv"), "item": list("abca"), "time": [4, 3, 2, 1], "seen": moments})
    pq.write_table(table, tmp_path / "log.parquet")
    for source in (tmp_path / "log.parquet", table.to_pandas()):
        for column, first in (("time", 2), ("seen", MOMENT)):
            settings = {"time_col": column}
            if isinstance(source, Path):
                out = tmp_path / f"out-{column}"
                data = prepare_files(source, None, out, Prepare(**settings))  # type: ignore[arg-type]
            else:
                data = Dataset.from_frames(source, **settings)
            assert data.times is not None
            assert data.times[0] == first


def test_pandas_moments_of_a_fixed_zone() -> None:
    moments = pd.to_datetime(["2022-04-16 10:09:25+05:30"] * 4)
    frame = pd.DataFrame({"user": list("uuuv"), "item": list("abca"), "time": moments})
    data = Dataset.from_frames(frame)
    assert data.times is not None
    assert np.array_equal(data.times, [MOMENT] * 4)
    assert datetime.fromtimestamp(MOMENT, UTC).isoformat() == "2022-04-16T04:39:25+00:00"
