"""Every input format gives the same data set; every bad input an error that says what, where and what to do."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import polars as pl
import pytest
import zstandard

from llmd4rec.data.dataset import Dataset
from llmd4rec.data.ingest.settings import Prepare
from llmd4rec.data.prepare import prepare_files
from llmd4rec.errors import DataError, LLMD4RecError

ROWS = [
    ("01", 'comma, "quote"', 1388620800),
    ("01", "ключ", 1388620801),
    ("01", "日本 🎈", 1388620802),
    ("é x", "ключ", 1388620800),
    ("é x", "007", 1388620803),
]
LOG = pl.DataFrame(ROWS, schema={"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64}, orient="row")


def write_csv(path: Path) -> None:
    LOG.write_csv(path)


def write_csv_for_excel(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbf" + LOG.write_csv(separator=";").replace("\n", "\r\n").encode())


def write_utf16(path: Path) -> None:
    path.write_text(LOG.write_csv(), encoding="utf-16")


def write_tsv(path: Path) -> None:
    LOG.write_csv(path, separator="\t")


def write_parquet(path: Path) -> None:
    LOG.write_parquet(path)


def write_jsonl(path: Path) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in LOG.to_dicts()), encoding="utf-8")


def write_jsonl_with_mark(path: Path) -> None:
    write_jsonl(path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())


def write_recbole(path: Path) -> None:
    lines = ["user_id:token\titem_id:token\ttimestamp:float", *("\t".join(map(str, row)) for row in ROWS)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_gz(path: Path) -> None:
    path.write_bytes(gzip.compress(LOG.write_csv().encode()))


def write_zst(path: Path) -> None:
    whole = LOG.write_csv().encode()
    # Two frames, as made by tools that compress in parallel.
    path.write_bytes(zstandard.compress(whole[:40]) + zstandard.compress(whole[40:]))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("log.csv", write_csv),
        ("excel.csv", write_csv_for_excel),
        ("utf16.csv", write_utf16),
        ("log.tsv", write_tsv),
        ("log.parquet", write_parquet),
        ("log.jsonl", write_jsonl),
        ("log.json", write_jsonl),
        ("marked.jsonl", write_jsonl_with_mark),
        ("unnamed-marked-jsonl", write_jsonl_with_mark),
        ("log.inter", write_recbole),
        ("log.csv.gz", write_gz),
        ("log.csv.zst", write_zst),
        ("unnamed-csv", write_csv),
        ("unnamed-tsv", write_tsv),
        ("unnamed-parquet", write_parquet),
        ("unnamed-jsonl", write_jsonl),
        ("unnamed-recbole", write_recbole),
        ("unnamed-gz", write_gz),
        ("log[1]*.csv", write_csv),
        ("log[1]*.parquet", write_parquet),
        ("log[1]*.jsonl", write_jsonl),
    ],
)
def test_formats(tmp_path: Path, name: str, write: Callable[[Path], None]) -> None:
    path = tmp_path / name
    write(path)
    data = prepare_files(path, None, tmp_path / "out")
    assert data.fingerprint == Dataset.from_frames(LOG).fingerprint
    assert Dataset.load(tmp_path / "out").fingerprint == data.fingerprint


def test_s3rec_text(tmp_path: Path) -> None:
    path = tmp_path / "Beauty.txt"
    path.write_text("1 5 3 5 9\n2 3 9 \n1 3\n")
    data = prepare_files(path, None, tmp_path / "out")
    sequences = [[data.item_ids[i] for i in data.items[a:b]] for a, b in zip(data.offsets, data.offsets[1:])]  # noqa: B905
    assert data.user_ids.to_list() == ["1", "2"]
    assert sequences == [["5", "3", "5", "9", "3"], ["3", "9"]]


def test_other_encodings(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("user,item\né,a\né,b\né,ü\nb,a\n", encoding="latin-1")
    data = prepare_files(path, None, tmp_path / "out", encoding="latin-1")
    assert data.user_ids.to_list() == ["é", "b"]


def test_named_columns_and_ids_with_dots(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("who;what;when\n1.0;10.0;3\n1.0;11.0;2\n1.0;12.0;1\n2.0;10.0;1\n")
    data = prepare_files(path, None, tmp_path / "out", Prepare(user_col="who", item_col="what", time_col="when"))
    assert [data.item_ids[item] for item in data.items] == ["12", "11", "10", "10"]


GOOD = "user,item,time\nu,a,1\nu,b,2\nu,c,3\nv,a,4\n"


def bad(content: str | bytes, *words: str, name: str = "log.csv", **settings: object) -> object:
    return pytest.param(name, content if isinstance(content, bytes) else content.encode(), words, settings, id=words[0])


@pytest.mark.parametrize(
    ("name", "content", "words", "settings"),
    [
        bad("", "is empty"),
        bad("user,item,time\n", "has no rows"),
        bad("usr,item,time\nu,a,1\n", "looks like the user", "usr, item, time", "Nearest is 'usr'", "--user-col"),
        bad("1,2,3\n1,3,4\n", "looks like the user", "add a header line"),
        bad(GOOD, "no column 'tme'", "user, item, time", "Did you mean 'time'", time_col="tme"),
        bad(GOOD.replace("b,2", "b,soon"), "row 2, column 'time': 'soon'"),
        bad(GOOD.replace("b,2", "b,03/04/2012"), "row 2, column 'time': '03/04/2012'"),
        bad(GOOD.replace("b,2", "b,inf"), "row 2, column 'time': 'inf'"),
        bad(GOOD.replace("b,2", "b,"), "row 2: column 'time' is empty", "--order-by"),
        bad(GOOD.replace("b,2", "b,2,9"), "row 2: 4 fields where the header names 3"),
        bad(GOOD.replace("b,2", "b"), "row 2: column 'time' is empty"),
        bad(GOOD.replace("u,b", '"u,b'), "quotation mark that is never closed"),
        bad("user,item\nu,a\nu,\n,b\n ,c\n", "3 of 4 rows have no user or no item", "row 2"),
        bad("user,item\nu,a\nu,b\nu,c\n", "only one user"),
        bad("user,item\nu,a\nu,a\nu,a\nv,a\n", "only one item"),
        bad("user,item\nu,a\nv,b\n", "no user has 3 interactions"),
        bad(GOOD, "nothing is left", "Lower", k_core=9),
        bad(GOOD.replace("b", "é").encode("latin-1"), "row 2: byte 0xe9 is not UTF-8", "--encoding latin-1"),
        bad(GOOD.replace("user", "é").encode("latin-1"), "the header: byte"),
        bad(bytes(range(256)) * 9, "binary"),
        bad(b"not parquet at all", "named like Parquet", name="log.parquet"),
        bad(b"PAR1 and then nothing", "cannot be read", name="log.parquet"),
        bad(gzip.compress(GOOD.encode() * 99)[:-30], "damaged or cut short", name="log.csv.gz"),
        bad(gzip.compress(GOOD.encode() * 99)[:-4], "damaged or cut short", name="log2.csv.gz"),
        bad(zstandard.compress(GOOD.encode() * 99)[:-9], "damaged or cut short", name="log.csv.zst"),
        bad(gzip.compress(b""), "is empty once unpacked", name="log.csv.gz"),
        bad('{"user": 1, "item": 2}\n{"user": 1, "it\n', "row 2: no valid JSON", name="log.jsonl"),
        bad('[{"user": 1, "item": 2}, 3]', "element 2 of the array: not a JSON object", name="log.json"),
        bad('[{"user": 1, "item": 2}', "array does not end", name="log.json"),
        bad('{"user": 1}, {"item": 2}\n{"user": 1, "item": 2}', "row 1: no valid JSON", name="log.jsonl"),
        bad('{"user": 1, "item": "a"}\n' * 1500 + "7\n", "row 1501: not a JSON object", name="log.jsonl"),
        bad('{"user": 1, "item": "a"}\n{"user": 1, "item": {"id": 2}}', "column 'item': a plain value in row 1 and an "
            "object in row 2", name="log.jsonl"),
        bad("oneword\n", "format cannot be told", name="log"),
        bad("user,item,time,item\nu,a,1,b\n", "column 'item': two columns have this name", "Rename"),
        bad(GOOD.replace("b,2", '"b" c,2'), "row 2: a quotation mark that is never closed", "--quoting"),
        bad(GOOD.replace(",b", ',19"').replace("a,4", '"a,4'), "row 2: a quotation mark inside", "quote the field"),
        bad(GOOD, "has no positions", order_by="position"),
    ],
)  # fmt: skip
def test_bad_inputs(
    tmp_path: Path, name: str, content: bytes, words: tuple[str, ...], settings: dict[str, object]
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(LLMD4RecError) as caught:
        prepare_files(path, None, tmp_path / "out", Prepare.from_settings(settings))
    for word in words:
        assert word in str(caught.value)
    assert str(path) in str(caught.value) or caught.value.remedy
    assert caught.value.remedy
    assert os.listdir(tmp_path) == [name]


def prepared(tmp_path: Path, log: str, items: str = "", **settings: object) -> Dataset:
    """A log, and a catalogue as JSON lines where there is one."""
    (tmp_path / "log.jsonl").write_text(log)
    (tmp_path / "items.jsonl").write_text(items)
    catalogue = tmp_path / "items.jsonl" if items else None
    wanted = Prepare.from_settings(settings)
    return prepare_files(tmp_path / "log.jsonl", catalogue, tmp_path / "out", wanted, overwrite=True)


def lines(records: Iterable[Mapping[str, object]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


JSON_LOG = lines({"user_id": f"u{at % 3}", "item_id": f"i{at % 4}", "timestamp": at} for at in range(12))


def test_a_field_of_json_that_comes_late_is_read(tmp_path: Path) -> None:
    items = [{"item_id": f"i{at}", "title": f"T{at}"} for at in range(3, 5000)]
    items += [{"item_id": f"i{at}", "title": f"T{at}", "brand": f"b{at}"} for at in range(3)]
    data = prepared(tmp_path, JSON_LOG, lines(items))
    assert data.text_fields == ("title", "brand")
    assert data.texts()[data.item_index["i2"]] == "title: T2; brand: b2"
    late = [{"user_id": at % 3, "item_id": at % 7, **({"timestamp": at} if at > 2100 else {})} for at in range(2500)]
    with pytest.raises(DataError, match=r"row 1: column 'timestamp' is empty \(2,101 of 2,500 rows\)"):
        prepared(tmp_path, lines(late))


def test_the_first_list_of_json_does_not_decide_what_lists_there_are(tmp_path: Path) -> None:
    lists: list[object] = [[], [["A", "B"], ["C"]], [["D"]], None]
    data = prepared(
        tmp_path, JSON_LOG, lines({"item_id": f"i{at}", "categories": each} for at, each in enumerate(lists))
    )
    values = dict(zip(data.item_ids, data.catalogue["categories"], strict=True))
    assert values == {"i0": None, "i1": "A > B; C", "i2": "D", "i3": None}


def test_json_lists_are_joined_as_filters_cut_them_and_what_is_left_out_is_named(tmp_path: Path) -> None:
    items = [
        {
            "item_id": f"i{at}",
            "title": "T",
            "tags": ["Hair", "Skin"],
            "colours": ["red"],
            "vector": [0.5],
            "details": {"size": at},
        }
        for at in range(4)
    ]
    data = prepared(tmp_path, JSON_LOG, lines(items))
    assert data.catalogue["tags"].to_list() == ["Hair; Skin"] * 4
    assert data.multi_fields == {"tags": "list", "colours": "list"}, "a list can be filtered by, text or not"
    facts = data.report["catalogue"]
    assert (facts["columns_left_out"], facts["fields_of_objects_left_out"]) == (["vector"], ["details"])
    report = (tmp_path / "out" / "report.md").read_text()
    assert "columns left out: vector" in report
    assert "fields of objects left out: details" in report


def test_json_values_of_two_kinds_are_refused_where_they_are_used(tmp_path: Path) -> None:
    items = lines({"item_id": f"i{at}", "title": {"en": "x"} if at == 2 else "T", "brand": "B"} for at in range(4))
    with pytest.raises(DataError, match="column 'title': a plain value in row 1 and an object in row 3") as caught:
        prepared(tmp_path, JSON_LOG, items)
    assert caught.value.remedy
    data = prepared(tmp_path, JSON_LOG, items, text_cols=["brand"])
    assert data.catalogue.columns == ["item_id", "brand"]
    assert data.report["catalogue"]["columns_left_out"] == ["title"]


@pytest.mark.parametrize("name", ['5" disk', '19"'])
def test_inch_marks_between_tabs_are_text(tmp_path: Path, name: str) -> None:
    rows = [("u", "a", "1"), ("u", name, "2"), ("u", "b", "3"), ("v", name, "4")]
    (tmp_path / "log.tsv").write_text("\n".join("\t".join(row) for row in [("user", "item", "time"), *rows]))
    data = prepare_files(tmp_path / "log.tsv", None, tmp_path / "out")
    assert [data.item_ids[item] for item in data.items] == ["a", name, "b", name]
    assert any("since row 2 has one inside a field" in warning for warning in data.report["warnings"])


def test_quoted_fields_between_tabs_are_still_read_as_such(tmp_path: Path) -> None:
    odd = LOG.with_columns(item_id=pl.col("item_id").replace({"007": 'a\tb\n"c"\td'}))
    odd.write_csv(tmp_path / "log.tsv", separator="\t")
    assert 'a\tb\n"c"\td' in prepare_files(tmp_path / "log.tsv", None, tmp_path / "out").item_ids


def test_a_bad_row_far_down_is_found(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    lines = [f"u{number % 9},i{number % 7},{number}" for number in range(50_000)]
    lines[41_234] += "x"
    path.write_text("user,item,time\n" + "\n".join(lines))
    with pytest.raises(DataError, match="row 41235, column 'time': '41234x'"):
        prepare_files(path, None, tmp_path / "out")


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        prepare_files(tmp_path / "no.csv", None, tmp_path / "out")
    with pytest.raises(DataError, match="is a folder"):
        prepare_files(tmp_path, None, tmp_path.parent / "elsewhere")


def test_the_result_never_replaces_its_input(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    path = tmp_path / "log.csv"
    write_csv(path)
    prepare_files(path, None, folder)
    inside = folder / "log.csv"
    write_csv(inside)
    with pytest.raises(DataError, match="would be replaced"):
        prepare_files(inside, None, folder, overwrite=True)
    with pytest.raises(DataError, match="already exists"):
        prepare_files(path, None, path, overwrite=True)
    assert inside.is_file()
    assert path.is_file()


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the full disk: the kernel refuses the write all the same."""
    path = tmp_path / "log.csv"
    rows = "".join(f"user{number % 999},item{number % 777},{number}\n" for number in range(30_000))
    path.write_text("user,item,time\n" + rows)
    program = (
        "import resource, signal, sys\n"
        "from llmd4rec.cli import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "sys.argv = ['llmd4rec', 'prepare', '--interactions', 'log.csv', '--out', 'out']\n"
        "main()\n"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert os.listdir(tmp_path) == ["log.csv"]
