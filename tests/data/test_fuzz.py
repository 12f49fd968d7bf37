"""A few hundred inputs of the fuzzer, and what it found in its long runs, as inputs of their own."""

from __future__ import annotations

import json
import multiprocessing
import random
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from llmd4rec.data import folder as folder_module
from llmd4rec.data.dataset import Dataset
from llmd4rec.data.ingest.settings import Prepare
from llmd4rec.data.prepare import prepare_files
from llmd4rec.errors import DataError
from llmd4rec.io.files import sha256_file

from . import fuzz_readers

FOUND = Path(__file__).parent / "found"
LOG = "user,item,time\nu,a,1\nu,b,2\nu,c,3\nv,a,4\n"


def test_three_hundred_odd_inputs_are_answered_properly(tmp_path: Path) -> None:
    """In a process of its own, which they might end."""
    afresh = multiprocessing.get_context("spawn")
    at = afresh.Value("q", -1)
    found = tmp_path / "findings.jsonl"
    process = afresh.Process(target=fuzz_readers.work, args=(range(300), tmp_path, found, at))
    process.start()
    process.join(300)
    assert process.exitcode == 0, f"died of input {at.value}"
    *findings, summary = [json.loads(line) for line in found.read_text().splitlines()]
    assert findings == []
    assert sum(summary["counts"].values()) == 300
    # They are no good if nothing gets through, or if everything does.
    for kind in ("prepare", "frames", "archive", "public", "stranger"):
        assert summary["counts"][f"{kind}: a data set"] > 0
        assert summary["counts"][f"{kind}: DataError"] > 0


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        pytest.param("log.jsonl", '{"user": ' + "[" * 100_000, "row 1: no valid JSON", id="depth of JSON"),
        pytest.param("log.jsonl", '{"user": ' + "9" * 5000 + "}", "row 1: no valid JSON", id="length of a number"),
        pytest.param("log.csv", LOG.replace("2\n", "1e20\n"), "row 2, column 'time': '1e20'", id="time too large"),
        pytest.param(
            "log.csv", LOG.replace("2\n", f"{-(2**63)}\n"), "row 2, column 'time'", id="time that means no time"
        ),
    ],
)
def test_found_in_text(tmp_path: Path, name: str, content: str, words: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(DataError) as caught:
        prepare_files(path, None, tmp_path / "out")
    assert words in str(caught.value)


def test_found_a_damaged_parquet_file_that_makes_the_reader_panic(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        prepare_files(FOUND / "panic.parquet", None, tmp_path / "out")


def test_found_titles_that_are_bytes(tmp_path: Path) -> None:
    log = pl.DataFrame({"user": list("uuuv"), "item": list("abca")})
    items = pl.DataFrame({"item": list("abc"), "title": [b"\xff", b"b", b"c"]})
    assert Dataset.from_frames(log, items).text_fields == ()
    with pytest.raises(DataError, match="'title': Binary is no text"):
        Dataset.from_frames(log, items, text_cols=["title"])


def test_found_columns_of_durations(tmp_path: Path) -> None:
    log = pl.DataFrame({"user": list("uuuv"), "item": list("abca")})
    items = pl.DataFrame({"item": list("abc"), "title": list("xyz"), "length": [1, 2, 3]})
    data = Dataset.from_frames(log, items.with_columns(pl.col("length").cast(pl.Duration("us"))))
    assert data.catalogue.columns == ["item_id", "title"]
    with pytest.raises(DataError, match="no identifier"):
        Dataset.from_frames(log.with_columns(item=pl.Series([1, 2, 3, 1]).cast(pl.Duration("us"))))


@pytest.mark.parametrize(
    "head",
    [b"{'descr': '<i8', 'fortran_order': False, 'shape': (", b"{'descr': [1], 'fortran_order': False, 'shape': (1,)}"],
)
def test_found_arrays_with_heads_that_numpy_stumbles_over(tmp_path: Path, head: bytes) -> None:
    (tmp_path / "log.csv").write_text(LOG)
    prepare_files(tmp_path / "log.csv", None, tmp_path / "data")
    head = head.ljust(117) + b"\n"
    (tmp_path / "data" / "valid.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head)
    believed(tmp_path / "data")
    with pytest.raises(DataError, match=r"valid\.npy cannot be read"):
        Dataset.load(tmp_path / "data")


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("valid", np.array(5)),
        ("offsets", np.zeros((2, 2), dtype=np.int64)),
        ("items", np.array([0.0, 1.0, 2.0, 0.0])),
        ("times", np.array(["a", "b", "c", "d"])),
    ],
)
def test_found_arrays_of_other_kinds(tmp_path: Path, name: str, array: np.ndarray) -> None:
    (tmp_path / "log.csv").write_text(LOG)
    prepare_files(tmp_path / "log.csv", None, tmp_path / "data")
    np.save(tmp_path / "data" / f"{name}.npy", array)
    believed(tmp_path / "data")
    with pytest.raises(DataError, match=rf"{name}\.npy holds"):
        Dataset.load(tmp_path / "data")


@pytest.mark.parametrize("fields", [3, "title", ["title"], [["a"]], None])
def test_found_a_head_with_text_fields_that_are_none(tmp_path: Path, fields: object) -> None:
    (tmp_path / "log.csv").write_text(LOG)
    prepare_files(tmp_path / "log.csv", None, tmp_path / "data")
    believed(tmp_path / "data", text_fields=fields)
    with pytest.raises(DataError, match="text fields"):
        Dataset.load(tmp_path / "data")


def test_found_a_head_that_names_no_files(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(LOG)
    prepare_files(tmp_path / "log.csv", None, tmp_path / "data")
    head = json.loads((tmp_path / "data" / "dataset.json").read_text()) | {"files": 3}
    head["sha256"] = folder_module.head_digest(head)
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(head))
    with pytest.raises(DataError, match="damaged"):
        Dataset.load(tmp_path / "data")


def believed(folder: Path, **changes: object) -> None:
    """Rewrites the head as somebody would who wants the rest to be believed."""
    head = json.loads((folder / "dataset.json").read_text()) | changes
    head["files"] = {name: sha256_file(folder / name) for name in head["files"]}
    head["sha256"] = folder_module.head_digest(head)
    (folder / "dataset.json").write_text(json.dumps(head))


def test_a_finding_is_found(tmp_path: Path) -> None:
    """The fuzzer itself: an exception that is none for people becomes a line with its number and place."""

    def broken(*_: object) -> None:
        raise KeyError("x")

    at = multiprocessing.Value("q", -1)
    fuzz_readers.work(range(2), tmp_path, tmp_path / "out", at, own_process=False, kinds=((1, broken),))
    first = json.loads((tmp_path / "out").read_text().splitlines()[0])
    assert (first["number"], first["error"]) == (0, "KeyError")


def test_settings_of_the_fuzzer_are_settings() -> None:
    assert len({fuzz_readers.settings(random.Random(number)) for number in range(200)} - {Prepare()}) > 20
