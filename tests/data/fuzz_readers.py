"""Throws broken, odd and hostile inputs at everything that reads files, and reports whatever is not answered properly.

An input is answered properly if it gives a sound data set or an `LLMD4RecError`. Any other exception, a crash of the
interpreter, or more than `SLOW` seconds of computing is a finding. An input follows from its number alone, so a finding
is its number:

    python tests/data/fuzz_readers.py --inputs 100000            # in a process of its own, which may crash
    python tests/data/fuzz_readers.py --only 4711                # one input again, with its traceback

The kinds of input: logs and catalogues as CSV, TSV, RecBole, S3-Rec, JSON lines and Parquet, plain or packed,
well-formed but odd, or with bytes cut, flipped and put in; frames; the files of public sets and archives of them; and
prepared folders whose files were altered by somebody who also corrected the checksums.
"""

from __future__ import annotations

import argparse
import datetime
import decimal
import gzip
import io
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import tarfile
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import polars as pl
import zstandard

from llmd4rec.data import folder as folder_module
from llmd4rec.data.dataset import Dataset
from llmd4rec.data.ingest.settings import Prepare
from llmd4rec.data.prepare import prepare_files
from llmd4rec.data.sources import get_source
from llmd4rec.data.sources.source import Files
from llmd4rec.errors import LLMD4RecError
from llmd4rec.io.files import read_json, sha256_file, write_json

SLOW = 30
MEMORY = 8 << 30

IDS = (
    *("a", "b", "c", "d", "1", "2", "3", "01", "1.0", "2.0", "1e5", "-1", "nan", "NaN", "None", "null", "", " ", "é"),
    *("日本", "🎈", "\u200b", "\ufeff", "a,b", 'q"q', '"', "x\ty", "x y", "\u2028", "\x00", "\x01", "\r", "\n", "inf"),
    *("9223372036854775808", "1" * 400, "0x1F", "true", "{}", "[1]", "a:token", "\\", "'", "__row__", "../../x"),
)  # fmt: skip
TIMES = (
    *("1", "2", "3", "1388620800", "1388620800123", "1388620800123456789", "1e300", "-1e300", "inf", "-inf", "nan", ""),
    *("2014-01-01", "2014-01-01T00:00:00Z", "2014-13-45", "99999999999999999999", "-9223372036854775808", " 7 "),
    *("9223372036854775807", "1e18", "9.3e18", "0x10", "１２", "2014-01-01 00:00:00+99:99", "03/04/2012", "0001-01-01"),
    *("9999-12-31 23:59:59.999999", "-1", "1.5", "07 9, 2012", "Jan 1, 2014", "\x00", "True"),
)  # fmt: skip
COLUMNS = (
    *("user_id", "user", "User ID", "userId:token", "item_id", "item", "asin", "item_id:token", "timestamp", "time"),
    *("date", "timestamp:float", "position", "pos", "rating", "title", "title:token_seq", "Title", "category", "brand"),
    *("description", "", " ", "__row__", "row", "bad", "at", "hash", "a" * 500, "é", "id", "line", "words", "item_id "),
)  # fmt: skip
TEXT_FORMATS = ("csv", "tsv", "recbole", "s3rec", "jsonl")
SUFFIXES = (".csv", ".tsv", ".inter", ".item", ".txt", ".jsonl", ".json", ".parquet", "", ".dat", ".csv.gz", ".zst")
SUFFIX_OF = {
    "csv": ".csv",
    "tsv": ".tsv",
    "recbole": ".inter",
    "s3rec": ".txt",
    "jsonl": ".jsonl",
    "parquet": ".parquet",
}
ENCODINGS = ("latin-1", "utf-16", "utf-16-le", "cp1252", "utf-32", "utf-7", "shift_jis", "base64", "rot13", "idna", "x")


# ---- content ----------------------------------------------------------------------------------------------------
def good_rows(rng: random.Random) -> list[list[str]]:
    """A header and rows that `prepare` takes."""
    users, items = rng.randint(2, 4), rng.randint(2, 5)
    rows = [["user_id", "item_id", "timestamp"]]
    rows += [[f"u{rng.randrange(users)}", f"i{rng.randrange(items)}", str(rng.randrange(99))] for _ in range(20)]
    return rows


def odd_rows(rng: random.Random) -> list[list[str]]:
    """A header and rows of anything."""
    if rng.random() < 0.6:
        rows = good_rows(rng)
        for _ in range(rng.randint(1, 6)):
            row = rows[rng.randrange(len(rows))]
            if row:
                column = rng.randrange(len(row))
                row[column] = rng.choice(TIMES if column == 2 and rng.random() < 0.8 else IDS)
    else:
        width = rng.randint(1, 6)
        rows = [rng.choices(COLUMNS, k=width)]
        rows += [[rng.choice(rng.choice((IDS, TIMES))) for _ in range(width)] for _ in range(rng.randint(0, 25))]
    if rng.random() < 0.3:
        for _ in range(rng.randint(1, 3)):  # ragged
            row = rows[rng.randrange(len(rows))]
            row.extend(rng.choices(IDS, k=rng.randint(1, 3))) if rng.random() < 0.5 else row and row.pop()
    if rng.random() < 0.05:
        rows[rng.randrange(len(rows))].append("x" * rng.choice((70_000, 200_000)))
    if rng.random() < 0.2:
        rows[0] = rows[0] + [rng.choice(COLUMNS)] * rng.randint(1, 2)
    return rows


def separated(rng: random.Random, rows: list[list[str]], separator: str) -> bytes:
    quoting = rng.random()

    def field(text: str) -> str:
        if quoting < 0.6 and any(mark in text for mark in (separator, '"', "\n", "\r")):
            return '"' + text.replace('"', '""') + '"'
        return text

    end = rng.choice(("\n", "\n", "\n", "\r\n", "\r"))
    return end.join(separator.join(map(field, row)) for row in rows).encode() + (b"\n" if rng.random() < 0.8 else b"")


def json_value(rng: random.Random, text: str, depth: int = 0) -> Any:
    kind = rng.random()
    if kind < 0.6 or depth > 3:
        return text
    others: tuple[Callable[[], Any], ...] = (
        lambda: rng.randint(-5, 10 ** rng.choice((1, 12, 25))),
        lambda: rng.choice((1.5, 1e300, float("nan"), float("inf"), 2.0)),
        lambda: None,
        lambda: rng.random() < 0.5,
        lambda: [json_value(rng, text, depth + 1) for _ in range(rng.randint(0, 3))],
        lambda: {text: json_value(rng, text, depth + 1)},
        lambda: text + "\ud800",
    )
    return rng.choice(others)()


def json_lines(rng: random.Random, rows: list[list[str]]) -> bytes:
    odd = rng.random() < 0.5
    lines = []
    for row in rows[1:]:
        record = {name: json_value(rng, value) if odd else value for name, value in zip(rows[0], row, strict=False)}
        lines.append(json.dumps(record, ensure_ascii=rng.random() < 0.9))
    if rng.random() < 0.1:
        lines.insert(
            rng.randint(0, len(lines)),
            rng.choice(
                ("[" * 100_000, '{"a":' * 5000, "1" * 5000, '{"user_id": ' + "9" * 5000 + "}", "[]", "3", '"x"', "nul")
            ),
        )
    if rng.random() < 0.05:
        lines = ["[" + ",".join(lines) + "]"]
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def series(rng: random.Random, name: str, height: int) -> pl.Series:
    """A column of any type that Parquet can hold."""
    numbers = [rng.choice((None, rng.randrange(5), rng.randrange(5), rng.randrange(5))) for _ in range(height)]
    some = [0 if number is None else number for number in numbers]
    make: tuple[Callable[[], pl.Series], ...] = (
        lambda: pl.Series(name, [f"v{number}" for number in some]),
        lambda: pl.Series(name, numbers, dtype=rng.choice((pl.Int8, pl.UInt64, pl.Int64, pl.Float32, pl.Float64))),
        lambda: pl.Series(name, [rng.choice((2**64 - 1, 2**63, 5)) for _ in some], dtype=pl.UInt64),
        lambda: pl.Series(name, [rng.choice((np.nan, np.inf, -np.inf, 1e300, 2.0**60, 1.0)) for _ in some]),
        lambda: pl.Series(name, [rng.choice(IDS).replace("\x00", "") for _ in some]).cast(pl.Categorical),
        lambda: pl.Series(
            name, [datetime.datetime(1 + 1111 * number, 1, 1) for number in some], dtype=pl.Datetime("us")
        ).dt.replace_time_zone(rng.choice((None, "UTC", "Asia/Tokyo"))),
        lambda: pl.Series(name, numbers, dtype=pl.Int64).cast(pl.Datetime(rng.choice(("ns", "us", "ms")))),
        lambda: pl.Series(name, some, dtype=pl.Int32).cast(pl.Date),
        lambda: pl.Series(name, some, dtype=pl.Int64).cast(rng.choice((pl.Time, pl.Duration("us"), pl.Boolean))),
        lambda: pl.Series(name, [decimal.Decimal(number) / 4 for number in some]),
        lambda: pl.Series(name, [[f"v{number}", None] for number in some]),
        lambda: pl.Series(name, [[[f"v{number}"], []] for number in some]),
        lambda: pl.Series(name, [{"a": number, "b": [number]} for number in some]),
        lambda: pl.Series(name, [[{"a": number}] for number in some]),
        lambda: pl.Series(name, [bytes([number, 255]) for number in some]),
        lambda: pl.Series(name, [None] * height),
    )
    return (make[0] if rng.random() < 0.3 else rng.choice(make))()


def frame(rng: random.Random) -> pl.DataFrame:
    height = rng.choice((0, 1, 20, 20, 20))
    names = ["user_id", "item_id", "timestamp"] if rng.random() < 0.7 else []
    names += [name for name in rng.sample(COLUMNS, rng.randint(0, 4)) if name not in names]
    if rng.random() < 0.5 and names[:1] == ["user_id"]:
        rows = [row for row in good_rows(rng)[1:]]
        rows = rows[:height] if height else rows
        base = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
        changed = rng.choice(("user_id", "item_id", "timestamp", None))
        base = base.with_columns(pl.col("timestamp").cast(rng.choice((pl.Int64, pl.Float64, pl.String))))
        extra = [series(rng, name, len(rows)) for name in names[3:]]
        return base.with_columns(*extra, *([series(rng, changed, len(rows))] if changed else []))
    return pl.DataFrame([series(rng, name, height) for name in names or ["user"]])


def parquet(rng: random.Random) -> bytes:
    buffer = io.BytesIO()
    try:
        frame(rng).write_parquet(buffer, compression=rng.choice(("zstd", "snappy", "uncompressed", "gzip")))
    except Exception:  # a type that Parquet does not have
        pl.DataFrame({"user_id": ["a"], "item_id": ["b"]}).write_parquet(buffer)
    return buffer.getvalue()


def mutated(rng: random.Random, content: bytes, times: int) -> bytes:
    for _ in range(times):
        at = rng.randint(0, len(content))
        end = min(len(content), at + rng.choice((1, 1, 2, 8, 100)))
        kind = rng.randrange(7)
        if kind == 0:
            content = content[:at]
        elif kind == 1:
            content = content[:at] + content[end:]
        elif kind == 2:
            content = content[:at] + rng.randbytes(rng.choice((1, 2, 8))) + content[at:]
        elif kind == 3 and at < len(content):
            content = content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :]
        elif kind == 4:
            content = content[:at] + content[at:end] * rng.choice((2, 50)) + content[end:]
        elif kind == 5:
            odd = (
                b"\0",
                b"\xff\xfe",
                b"\xef\xbb\xbf",
                b'"',
                b"\n",
                b"\r",
                b",",
                b"\t",
                b"{",
                b"[",
                b"\xf4\x90\x80\x80",
            )
            content = content[:at] + rng.choice(odd) + content[at:]
        else:
            other = rng.randint(0, len(content))
            content = content[:at] + content[other : other + 50] + content[end:]
    return content


def file(rng: random.Random) -> tuple[str, bytes]:
    """A name and a content."""
    kind = rng.choice((*TEXT_FORMATS, "csv", "jsonl", "parquet"))
    rows = good_rows(rng) if rng.random() < 0.4 else odd_rows(rng)
    if kind == "parquet":
        content = parquet(rng)
    elif kind == "jsonl":
        content = json_lines(rng, rows)
    elif kind == "s3rec":
        content = "\n".join(" ".join(row) for row in rows[1:]).encode()
    else:
        content = separated(rng, rows, {"csv": rng.choice(",;|"), "tsv": "\t", "recbole": "\t"}[kind])
    if rng.random() < 0.35:
        content = mutated(rng, content, rng.randint(1, 4))
    if kind != "parquet" and rng.random() < 0.1:
        content = content.decode("utf-8", "replace").encode(rng.choice(("utf-16", "latin-1", "utf-8-sig")), "replace")
    name = "log" + (SUFFIX_OF[kind] if rng.random() < 0.8 else rng.choice(SUFFIXES))
    if rng.random() < 0.25:
        packs = (gzip.compress, zstandard.compress, lambda plain: zstandard.compress(plain[:9]) + gzip.compress(plain))
        content = rng.choice(packs)(content)
        name += rng.choice((".gz", ".zst", ""))
        if rng.random() < 0.5:
            content = mutated(rng, content, rng.randint(1, 3))
    return name, content


def columns(rng: random.Random) -> dict[str, Any]:
    return {option: rng.choice(COLUMNS) for option in ("user_col", "item_col", "time_col") if rng.random() < 0.05}


def settings(rng: random.Random) -> Prepare:
    if rng.random() < 0.5:
        return Prepare()
    cut = rng.random() < 0.3
    return Prepare(
        order_by="auto" if cut else rng.choice(("auto", "auto", "time", "position", "row")),
        ties=rng.choice(("row", "row", "hash", "last-first")),
        missing_times=rng.choice(("refuse", "drop")),
        where=rng.choice(((), (), (), ("timestamp > 2",), ("item_id != 'i1'", "time >= 2001-01-01"))),
        time_format=rng.choice(((), (), (), (), ("%d/%m/%Y",), ("seconds", "%Y-%m-%d"), ("excel",))),
        duplicates=rng.choice(("exact", "keep", "drop-consecutive", "drop")),
        k_core=rng.choice((0, 0, 2)),
        min_history=rng.choice((1, 1, 2)),
        max_history=rng.choice((None, None, 5)),
        split="temporal" if cut else "leave-one-out",
        keep_unseen_items=rng.random() < 0.5,
        **columns(rng),
        text_cols=(rng.choice(COLUMNS),) if rng.random() < 0.1 else None,
    )


# ---- what is done with it ---------------------------------------------------------------------------------------
def check_sound(data: Dataset) -> None:
    """What holds for any prepared data set."""
    assert data.offsets[0] == 0
    assert data.offsets[-1] == len(data.items)
    assert (np.diff(data.offsets) > 0).all()
    assert len(data.user_ids) == data.num_users == len(set(data.user_ids))
    assert len(data.item_ids) == data.num_items == len(set(data.item_ids))
    assert data.items.min() >= 0
    assert data.items.max() < data.num_items
    assert data.times is None or len(data.times) == len(data.items)
    for positions in (data.valid, data.test):
        assert (positions >= data.train_end[data.users_of(positions)]).all()
    assert not set(data.valid.tolist()) & set(data.test.tolist())
    assert len(data.texts()) == len(data.titles) == data.num_items
    assert data.report["steps"][-1]["rows_out"] == len(data.items)


def prepare(rng: random.Random, folder: Path) -> None:
    paths = []
    for which in ("log", "items")[: rng.choice((1, 1, 2))]:
        name, content = file(rng)
        path = folder / name.replace("log", which)
        path.write_bytes(content)
        paths.append(path)
    encoding = rng.choice(ENCODINGS) if rng.random() < 0.1 else "utf-8"
    data = prepare_files(paths[0], paths[1] if paths[1:] else None, folder / "out", settings(rng), encoding=encoding)
    check_sound(data)
    loaded = Dataset.load(folder / "out")
    assert loaded.fingerprint == data.fingerprint


def frames(rng: random.Random, folder: Path) -> None:
    log: Any = frame(rng)
    items: Any = frame(rng) if rng.random() < 0.5 else None
    if rng.random() < 0.4:
        odd = [rng.choice((1, 1.5, "a", None, b"b", [1], {"a": 1}, np.nan, pd.NaT, True)) for _ in range(log.height)]
        try:
            log = log.to_pandas()
        except Exception:  # a type that pandas does not have
            log = pd.DataFrame({"user": ["a"], "item": ["b"]})
        if len(log) == len(odd) and rng.random() < 0.7:
            log[rng.choice(("user_id", "item_id", "timestamp", "title"))] = pd.Series(odd, dtype=object)
    check_sound(Dataset.from_frames(log, items, **settings(rng).as_dict()))


PACKED: dict[str, Literal["w:", "w:gz", "w:xz", "w:bz2"]] = {
    ".tar": "w:", ".gz": "w:gz", ".xz": "w:xz", ".bz2": "w:bz2",
}  # fmt: skip


def archive(rng: random.Random, folder: Path) -> None:
    name, content = rng.choice(("u.data", "../u.data", "/etc/u.data", "a/b/u.data")), file(rng)[1]
    path = folder / rng.choice(("set.zip", "set.tar", "set.tar.gz", "set.tar.xz", "set.tar.bz2"))
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", rng.choice((0, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA))) as out:
            out.writestr(name, content)
    else:
        with tarfile.open(path, PACKED[path.suffix]) as tar:
            entry = tarfile.TarInfo(name)
            entry.type = rng.choice(
                (tarfile.REGTYPE, tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE)
            )
            entry.linkname, entry.size = "/etc/passwd", len(content) if entry.type == tarfile.REGTYPE else 0
            tar.addfile(entry, io.BytesIO(content))
    if rng.random() < 0.7:
        path.write_bytes(mutated(rng, path.read_bytes(), rng.randint(1, 3)))
    with Files([path]) as files:
        assert files.text("u.data").resolve().is_relative_to(files.scratch.resolve())


def literal(rng: random.Random, record: dict[str, Any]) -> str:
    """A record as JSON, or as a Python literal, with values that are not what they were."""
    for key in rng.sample(list(record), rng.choice((0, 0, 1, 2))):
        record[key] = json_value(rng, rng.choice(IDS)) if rng.random() < 0.9 else [[["x"]], {"y": [1]}]
    return json.dumps(record) if rng.random() < 0.5 else repr(record)


def public(rng: random.Random, folder: Path) -> None:
    """The files of a named set as they are published, more or less."""
    review = {"reviewerID": "A1", "asin": "B1", "overall": 5.0, "unixReviewTime": 1369699200}
    product = {"asin": "B1", "title": "Soap", "category": ["a", "b"], "categories": [["a"], ["b"]], "brand": "X"}
    newer = {"user_id": "AE", "parent_asin": "B1", "rating": 4.0, "timestamp": 1588687728923}
    steam = {"username": "u", "hours": 9.1, "product_id": "1", "date": "2017-12-17"}
    game = {"id": "1", "app_name": "g", "genres": ["a", "b"], "tags": ["c"]}
    place = {"user_id": "u", "business_id": "b", "stars": 3.0, "date": "2018-07-07 22:09:11", "name": "Cafe"}
    ratings, film = "196\t1\t3\t881250949", "1|Toy Story (1995)|01-Jan-1995||x|" + "|".join("01" + "0" * 17)
    sets: dict[str, dict[str, list[Any]]] = {
        "ml-100k": {"u.data": [ratings], "u.item": [film]},
        "ml-1m": {"ratings.dat": ["1::1193::5::978300760"], "movies.dat": ["1193::Face/Off (1975)::Drama|War"]},
        "ml-20m": {
            "ratings.csv": ["userId,movieId,rating,timestamp", "1,2,3.5,1112486027"],
            "movies.csv": ["movieId,title,genres", '2,"A, The (1995)",Comedy|Drama'],
        },
        "amazon-2014-beauty": {"reviews_Beauty_5.json": [review] * 3, "meta_Beauty.json": [product] * 2},
        "amazon-2018-all-beauty": {"All_Beauty_5.json": [review] * 3, "meta_All_Beauty.json": [product] * 2},
        "amazon-2023-all-beauty": {"All_Beauty.jsonl": [newer] * 3, "meta_All_Beauty.jsonl": [newer | product]},
        "steam": {"steam_reviews.json": [steam] * 3, "steam_games.json": [game] * 2},
        "yelp": {"yelp_academic_dataset_review.json": [place] * 3, "yelp_academic_dataset_business.json": [place]},
    }
    name = rng.choice(sorted(sets))
    for path, lines in sets[name].items():
        text = [literal(rng, dict(line)) if isinstance(line, dict) else line for line in lines]
        content = "\n".join(text).encode() + b"\n"
        content = mutated(rng, content, rng.choice((0, 0, 1, 3)))
        packed = rng.random() < 0.3 and name.startswith(("amazon", "steam"))
        (folder / (path + ".gz" * packed)).write_bytes(gzip.compress(content) if packed else content)
    get_source(name, folder / "out", from_path=folder)
    assert pl.read_parquet(folder / "out" / "items.parquet")["item_id"].is_unique().all()


def stranger(rng: random.Random, folder: Path) -> None:
    rows = good_rows(rng)
    log = pl.DataFrame(
        [*rows[1:], ["u9", "i0", "1"], ["u9", "i1", "2"], ["u9", "i0", "3"]], schema=rows[0], orient="row"
    )
    items = pl.DataFrame({"item_id": [f"i{n}" for n in range(5)], "title": list("abcde")})
    Dataset.from_frames(log, items).save(folder / "data")
    names = sorted(path.name for path in (folder / "data").iterdir())
    path = folder / "data" / rng.choice([name for name in names if name != "report.md"])
    odd = (
        np.zeros((3, 3)), np.array(["a", "b"]), np.array([1.5, np.nan]), np.array(5), np.array([], dtype=np.int64),
        np.array([2**63, 0], dtype=np.uint64), np.array([(1, 2)], dtype="i4,i4"), np.arange(len(rows)) - 5,
    )  # fmt: skip
    if path.suffix == ".npy" and rng.random() < 0.5:
        np.save(path, rng.choice(odd))
    elif path.suffix == ".parquet" and rng.random() < 0.5:
        path.write_bytes(parquet(rng))
    elif path.suffix == ".json" and rng.random() < 0.5:
        value = read_json(path)
        if isinstance(value, dict) and value:
            value[rng.choice(list(value))] = json_value(rng, "x")
        path.write_text(json.dumps(rng.choice((value, [], 3, None, "x", value, value, value))))
    else:
        path.write_bytes(mutated(rng, path.read_bytes(), rng.randint(1, 4)))
    try:  # as somebody would who wants the folder to be believed
        head = json.loads((folder / "data" / "dataset.json").read_text())
        if rng.random() < 0.5:
            head["files"] = {name: sha256_file(folder / "data" / name) for name in names if name != "dataset.json"}
            head["sha256"] = folder_module.head_digest(head)
        else:
            del head["files"]
        write_json(folder / "data" / "dataset.json", head)
    except Exception:
        pass
    data = Dataset.load(folder / "data")
    data.texts()
    assert len(data.fingerprint) == 32


#: How often which comes.
Kinds = tuple[tuple[int, Callable[[random.Random, Path], None]], ...]
KINDS: Kinds = (
    (66, prepare), (12, frames), (5, archive), (10, stranger), (7, public)
)  # fmt: skip


def run_one(number: int, place: Path, kinds: Kinds = KINDS) -> str:
    """Answers one input; `fine`, the kind of error, or raises what it should not have raised."""
    rng = random.Random(number)
    kind = rng.choices([function for _, function in kinds], [weight for weight, _ in kinds])[0]
    folder = Path(tempfile.mkdtemp(dir=place))
    try:
        kind(rng, folder)
        return f"{kind.__name__}: a data set"
    except LLMD4RecError as error:
        if not str(error).strip():
            raise AssertionError("an error that says nothing") from error
        return f"{kind.__name__}: {type(error).__name__}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# ---- many of them -----------------------------------------------------------------------------------------------
def work(numbers: range, place: Path, findings: Path, at: Any, own_process: bool = True, kinds: Kinds = KINDS) -> None:
    """Runs inputs in this process, noting in `at` which one, and findings as lines of JSON."""
    if own_process:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        # What Rust prints when it panics.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)

    def late(*_: Any) -> None:
        raise TimeoutError(f"longer than {SLOW} s")

    signal.signal(signal.SIGPROF, late)
    counts: Counter[str] = Counter()
    for number in numbers:
        at.value = number
        signal.setitimer(signal.ITIMER_PROF, SLOW)
        try:
            counts[run_one(number, place, kinds)] += 1
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            frames = traceback.extract_tb(error.__traceback__)
            own = next(
                (f for f in reversed(frames) if "llmd4rec" in f.filename and "fuzz" not in f.filename), frames[-1]
            )
            where = f"{Path(own.filename).name}:{own.lineno}"
            line = {"number": number, "error": type(error).__name__, "where": where, "what": str(error)[:300]}
            with findings.open("a") as out:
                out.write(json.dumps(line) + "\n")
            counts["FINDING"] += 1
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    with findings.open("a") as out:
        out.write(json.dumps({"done": len(numbers), "counts": counts}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--only", type=int, help="run this one here, with its traceback")
    parser.add_argument("--out", type=Path, default=Path("fuzz-findings.jsonl"))
    arguments = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="llmd4rec-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    try:
        if arguments.only is not None:
            print(run_one(arguments.only, place))
            return
        begun, number, last = time.monotonic(), arguments.first, arguments.first + arguments.inputs
        while number < last:
            afresh = multiprocessing.get_context("spawn")
            at = afresh.Value("q", number)
            part = range(number, min(last, number + 5000))
            process = afresh.Process(target=work, args=(part, place, arguments.out, at))
            process.start()
            seen, looks = -1, 0
            while process.is_alive():
                process.join(2)
                seen, looks = at.value, looks + 1 if at.value == seen else 0
                if looks > 2 * SLOW:
                    process.kill()
            number = part.stop
            if process.exitcode:
                with arguments.out.open("a") as out:
                    out.write(json.dumps({"number": at.value, "error": f"died: {process.exitcode}"}) + "\n")
                number = at.value + 1
            print(f"{number - arguments.first:,} inputs, {time.monotonic() - begun:.0f} s", flush=True)
    finally:
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main()
