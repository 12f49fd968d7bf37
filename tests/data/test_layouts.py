"""Where the rows of a table are: several files, no header, blanks between fields, JSON of other shapes."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from llmd4rec.data.dataset import Dataset
from llmd4rec.data.ingest.separated import Layout
from llmd4rec.data.prepare import prepare_files
from llmd4rec.errors import ConfigError, DataError

LOG = pl.DataFrame(
    {
        "user_id": [user for user in range(6) for _ in range(4)],
        "item_id": [(user + 2 * at) % 7 for user in range(6) for at in range(4)],
        "timestamp": [1650000000 + 10 * user + at for user in range(6) for at in range(4)],
    }
)
FINGERPRINT = Dataset.from_frames(LOG).fingerprint
COLUMNS = Layout(columns=("user_id", "item_id", "timestamp"))


def prepared(tmp_path: Path, given: object, **options: object) -> Dataset:
    return prepare_files(given, None, tmp_path / "out", overwrite=True, **options)  # type: ignore[arg-type]


def write(frame: pl.DataFrame, path: Path) -> None:
    """In the format of the suffix."""
    if path.suffix == ".csv":
        frame.write_csv(path)
    elif path.suffix == ".parquet":
        frame.write_parquet(path)
    else:
        assert path.suffix == ".json"
        frame.write_ndjson(path)


def parts(folder: Path, suffix: str, count: int = 12) -> Path:
    """A folder as Spark leaves it, in which names sort otherwise than numbers."""
    folder.mkdir()
    size = LOG.height // count
    for at in range(count):
        part = LOG[at * size : (at + 1) * size]
        path = folder / f"part-{at}-c0de.{suffix}"
        write(part, path)
    (folder / "_SUCCESS").write_text("")
    (folder / f".part-0-c0de.{suffix}.crc").write_bytes(b"crc")
    (folder / "part-99-empty.csv").write_text("")
    return folder


@pytest.mark.parametrize("suffix", ["csv", "parquet", "json"])
def test_a_folder_of_parts(tmp_path: Path, suffix: str) -> None:
    data = prepared(tmp_path, parts(tmp_path / "log", suffix))
    assert data.fingerprint == FINGERPRINT
    assert data.report["interactions"]["files"] == 12
    first = ["part-0-c0de", "part-1-c0de", "part-2-c0de", "part-3-c0de", "…", "part-11-c0de"]
    assert data.report["interactions"]["order_of_files"] == ", ".join(
        name if name == "…" else f"{name}.{suffix}" for name in first
    )


def test_several_files_and_patterns(tmp_path: Path) -> None:
    folder = parts(tmp_path / "log", "csv", 2)
    first, second = folder / "part-0-c0de.csv", folder / "part-1-c0de.csv"
    assert prepared(tmp_path, [first, second]).fingerprint == FINGERPRINT
    assert prepared(tmp_path, folder / "part-*-c0de.csv").fingerprint == FINGERPRINT
    with pytest.raises(DataError, match="given twice"):
        prepared(tmp_path, [first, first])
    with pytest.raises(DataError, match="no file matches"):
        prepared(tmp_path, folder / "nothing*.csv")


def test_histories_that_follow_the_order_of_files_are_said(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    for at in (10, 9):
        LOG.drop("timestamp")[:12].with_columns(pl.col("item_id") + at).write_csv(folder / f"part-{at}.csv")
    data = prepared(tmp_path, folder)
    assert data.item_ids[data.items[0]] == "9"
    assert "histories follow the order of the files: part-9.csv, part-10.csv" in data.report["warnings"]


def test_columns_of_parts_go_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    LOG[:12].write_csv(folder / "a.csv")
    LOG[12:].select("timestamp", "user_id", "item_id").write_csv(folder / "b.csv")
    assert prepared(tmp_path, folder).fingerprint == FINGERPRINT
    LOG[12:].with_columns(extra=1).write_csv(folder / "b.csv")
    with pytest.raises(DataError, match=r"a\.csv has no column 'extra', which .*b\.csv has"):
        prepared(tmp_path, folder)
    LOG[12:].write_csv(folder / "b.csv", include_header=False)
    with pytest.raises(DataError, match=r"b\.csv: its first line looks like data(.|\n)*--columns user,item,time"):
        prepared(tmp_path, folder)
    (folder / "b.csv").unlink()
    LOG[12:].write_parquet(folder / "b.parquet")
    with pytest.raises(DataError, match="is parquet: they cannot be parts of one table"):
        prepared(tmp_path, folder)


def test_numbers_of_other_types_in_parts(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    LOG[:12].write_parquet(folder / "a.parquet")
    LOG[12:].cast({"user_id": pl.Int32, "item_id": pl.UInt16}).write_parquet(folder / "b.parquet")
    assert prepared(tmp_path, folder).fingerprint == FINGERPRINT


@pytest.mark.parametrize("suffix", ["csv", "parquet", "json"])
def test_folders_that_name_a_column(tmp_path: Path, suffix: str) -> None:
    for at in range(6):
        folder = tmp_path / "log" / f"user_id={at}"
        folder.mkdir(parents=True)
        part = LOG.filter(pl.col("user_id") == at).drop("user_id")
        path = folder / f"part-0.{suffix}"
        write(part, path)
    assert prepared(tmp_path, tmp_path / "log").fingerprint == FINGERPRINT


def test_folders_of_table_formats_are_refused(tmp_path: Path) -> None:
    folder = parts(tmp_path / "log", "parquet")
    (folder / "_delta_log").mkdir()
    with pytest.raises(DataError, match="Delta Lake"):
        prepared(tmp_path, folder)


# ---- no header ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "separator"),
    [("a.csv", ","), ("a.tsv", "\t"), ("a.dat", "::"), ("a.data", " "), ("a.csv", "|"), ("a", ";")],
)
def test_named_columns(tmp_path: Path, name: str, separator: str) -> None:
    path = tmp_path / name
    path.write_text("".join(separator.join(map(str, row)) + "\n" for row in LOG.rows()))
    assert prepared(tmp_path, path, layout=COLUMNS).fingerprint == FINGERPRINT
    if separator != " ":
        with pytest.raises(DataError, match=r"first line looks like data(.|\n)*--columns user,item,time"):
            prepared(tmp_path, path)


def test_columns_without_a_name_are_left_out(tmp_path: Path) -> None:
    """As Last.fm's log: user, moment, artist's id and name, track's id and name."""
    lines = [f"u{user}\t2009-05-0{at + 1}T23:08:57Z\tmb\tArtist\tt{item}\tTitle" for user, item, at in
             [(user, (user + 2 * at) % 7, at) for user in range(6) for at in range(4)]]  # fmt: skip
    path = tmp_path / "log.tsv"
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"'2009-05-01T23:08:57Z' in it is a time"):
        prepared(tmp_path, path)
    data = prepared(tmp_path, path, layout=Layout(columns=("user", "time", "", "", "item", "")))
    assert (data.num_interactions, data.item_ids[data.items[0]]) == (24, "t0")
    with pytest.raises(DataError, match="row 1: 6 fields where --columns names 3"):
        prepared(tmp_path, path, layout=Layout(columns=("user", "time", "item")))


def test_columns_of_a_file_with_a_header_are_refused(tmp_path: Path) -> None:
    LOG.write_csv(tmp_path / "log.csv")
    with pytest.raises(DataError, match="its first line is a header"):
        prepared(tmp_path, tmp_path / "log.csv", layout=COLUMNS)
    for columns in (("a", "a"), ("", "")):
        with pytest.raises(ConfigError):
            Layout(columns=columns)
    LOG.write_parquet(tmp_path / "log.parquet")
    with pytest.raises(DataError, match="names its columns itself"):
        prepared(tmp_path, tmp_path / "log.parquet", layout=COLUMNS)


# ---- blanks between fields ----------------------------------------------------------------------------------------
def test_ratings_between_blanks(tmp_path: Path) -> None:
    path = tmp_path / "ratings.txt"
    path.write_text("".join(f" {user}  {item} {item % 5 + 1}\t{time}\n" for user, item, time in LOG.rows()))
    path.write_text(path.read_text().replace("\t", " "))
    data = prepared(tmp_path, path)
    assert data.fingerprint == FINGERPRINT
    assert any("columns were taken as user item rating time" in warning for warning in data.report["warnings"])
    path.write_text("user_id item_id timestamp\n" + "".join(" ".join(map(str, row)) + "\n" for row in LOG.rows()))
    assert prepared(tmp_path, path).fingerprint == FINGERPRINT
    path.write_text("".join(f"{user} {item}\n" for user, item, _ in LOG.rows()))
    with pytest.raises(DataError, match=r"rows of 2 columns between blanks(.|\n)*--columns"):
        prepared(tmp_path, path)
    path.write_text(
        "".join(f"{user} {item}{' 1' if at == 9 else ''}\n" for at, (user, item, _) in enumerate(LOG.rows()))
    )
    with pytest.raises(DataError, match="row 10: 3 fields where --columns names 2"):
        prepared(tmp_path, path, layout=Layout(columns=("user", "item")))


def test_sequences_between_blanks_stay_sequences(tmp_path: Path) -> None:
    path = tmp_path / "Beauty.txt"
    path.write_text("1 5 3 9\n2 3 9 4\n3 3 9 7\n")
    assert prepared(tmp_path, path).num_interactions == 9


# ---- JSON ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("form", ["lines", "array", "indented array", "indented objects", "numbers as texts"])
def test_json_of_other_shapes(tmp_path: Path, form: str) -> None:
    records = LOG.to_dicts()
    if form == "numbers as texts":
        records = [{name: str(value) for name, value in record.items()} for record in records]
    text = "\n".join(json.dumps(record, indent=2 if form == "indented objects" else None) for record in records)
    if "array" in form:
        text = json.dumps(records, indent=2 if "indented" in form else None)
    (tmp_path / "log.json").write_text(text)
    assert prepared(tmp_path, tmp_path / "log.json").fingerprint == FINGERPRINT


def test_numbers_that_are_none_are_missing(tmp_path: Path) -> None:
    records = [
        record | {"price": [2.0, float("inf"), float("-inf"), float("nan")][at % 4], "list": [1.0, float("nan")]}
        for at, record in enumerate(LOG.to_dicts())
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    data = prepared(tmp_path, tmp_path / "log.jsonl")
    assert data.fingerprint == FINGERPRINT
    assert data.report["interactions"]["nan_and_infinity_read_as_missing"] == 18 + 24
    items = [{"item_id": at, "title": 'NaN \\" Infinity' if at else float("nan"), "x": float("nan")} for at in range(7)]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(record) + "\n" for record in items))
    data = prepare_files(tmp_path / "log.jsonl", tmp_path / "items.jsonl", tmp_path / "two")
    titles = dict(zip(data.item_ids, data.catalogue["title"], strict=True))
    assert (titles["0"], titles["1"]) == (None, 'NaN \\" Infinity')


def test_errors_of_the_catalogue_name_its_options(tmp_path: Path) -> None:
    LOG.write_csv(tmp_path / "log.csv")
    (tmp_path / "items.csv").write_text('item_id,title\n0,C:\\\\x\n1,"y"\n')
    with pytest.raises(DataError, match="--item-quoting double, backslash or none"):
        prepare_files(tmp_path / "log.csv", tmp_path / "items.csv", tmp_path / "out")
    layout = Layout(quoting="backslash")
    data = prepare_files(tmp_path / "log.csv", tmp_path / "items.csv", tmp_path / "out", item_layout=layout)
    assert data.catalogue["title"][data.item_index["0"]] == "C:\\x"
