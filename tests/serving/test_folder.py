"""A folder that is not as it was exported is refused, with the file's name and what to do."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from llmd4rec import NewItem, Recommender
from llmd4rec.errors import RunError
from llmd4rec.io.files import sha256_file

from .store import Store

Change = Callable[[Path], object]


@pytest.fixture
def folder(store: Store, tmp_path: Path) -> Path:
    return Path(shutil.copytree(store.export, tmp_path / "export"))


def sealed(folder: Path) -> None:
    """Makes the checksums those of the files as they are now: as if it had been exported so."""
    head = json.loads((folder / "export.json").read_text())
    head["files"] = {name: sha256_file(folder / name) for name in head["files"]}
    (folder / "export.json").write_text(json.dumps(head))


def head_with(**changes: Any) -> Change:
    def change(folder: Path) -> None:
        head = json.loads((folder / "export.json").read_text())
        (folder / "export.json").write_text(json.dumps({**head, **changes}))

    return change


def saved(name: str, make: Callable[[np.ndarray], Any], **more: Any) -> Change:
    def change(folder: Path) -> None:
        np.save(folder / name, make(np.load(folder / name)), **more)

    return change


def cut(name: str) -> Change:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-7])


def written(name: str, content: bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(content)


def npy(name: str, shape: str, kind: str = "<f4") -> Change:
    """An array that says that it is larger than it is."""
    head = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"
    head += " " * (63 - (len(head) + 10) % 64) + "\n"
    return written(name, b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode())


def elsewhere(folder: Path) -> None:
    """Weights that are read from another file: that could be any file of the machine."""
    import onnx

    model = onnx.load(folder / "encoder.onnx")
    weight = model.graph.initializer[0]
    weight.data_location = onnx.TensorProto.EXTERNAL
    entry = weight.external_data.add()
    entry.key, entry.value = "location", "README.md"
    (folder / "encoder.onnx").write_bytes(model.SerializeToString())


def catalogue(change: Callable[[pl.DataFrame], pl.DataFrame]) -> Change:
    def write(folder: Path) -> None:
        path = folder / "catalogue.parquet"
        change(pl.read_parquet(path)).write_parquet(path)

    return write


FILES = [
    "encoder.onnx", "item_table.npy", "catalogue.parquet", "counts.npy", "README.md", "text_map.npy", "histories.json",
    "text_encoder/encoder.onnx", "undistilled/item_table.npy",
]  # fmt: skip


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["missing", "cut", "altered"])
def test_a_file_that_is_not_the_one_exported(folder: Path, name: str, how: str) -> None:
    path = folder / name
    if how == "missing":
        path.unlink()
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    with pytest.raises(RunError) as caught:
        Recommender.load(folder)
    assert str(path) in caught.value.what
    assert "llmd4rec export" in caught.value.remedy


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "export.json").unlink(), "is neither a run folder nor an export"),
        (shutil.rmtree, "does not exist"),
        (cut("export.json"), "export.json is not valid JSON"),
        (written("export.json", b"[1]"), "has export format None; this version of llmd4rec reads formats 3 and 4"),
        (head_with(format=2), r"was made by an older version of llmd4rec \(export format 2, now 3\)"),
        (head_with(format=5), "has export format 5; this version of llmd4rec reads formats 3 and 4"),
        (head_with(format="3"), "has export format '3'"),
        (head_with(filter_seen="keep"), r"export.json is damaged: 'filter_seen': Input should be a valid boolean"),
        (head_with(dim=None), r"export.json is damaged: 'dim': Field required"),
        (head_with(files={}), "does not list encoder.onnx"),
        (head_with(items=0), "'items': Input should be greater than or equal to 1"),
        (head_with(items=21), r"counts.npy has shape \(20,\), but 21 is needed"),
        (head_with(fields={"colour": "category"}), "has no field 'colour'"),
        (head_with(fields={"brand": "mood"}), "'fields.brand': Input should be 'category', 'text' or 'number'"),
        (head_with(validation=float("nan")), "NaN is no number of JSON"),
        (written("export.json", b"[" * 200_000), "export.json is not valid JSON: maximum recursion depth"),
        (written("export.json", b'{"format": ' + b"9" * 5000 + b"}"), "export.json is not valid JSON"),
        (head_with(max_length=10**9), "'max_length': Input should be less than or equal to 65536"),
        (head_with(dim=10**300), "'dim': Input should be less than or equal to 65536"),
        (head_with(new_items={"width": "x"}), "'new_items.encoder': Field required"),
        (head_with(text_fields={"a": 5}), "'text_fields': Input should be a valid list"),
        (head_with(untrained_rows={"a": 1}), "'untrained_rows': Input should be a valid list"),
        (head_with(files={"a\0b": "0" * 64}), "'files.a"),
        (head_with(untrained_rows=[20]), "'untrained_rows' names rows"),
    ],
)
def test_a_head_that_is_wrong(folder: Path, change: Change, message: str) -> None:
    change(folder)
    with pytest.raises(RunError, match=message):
        Recommender.load(folder)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a\\b", "x/../../y"])
def test_no_file_outside_the_folder_is_read(folder: Path, name: str) -> None:
    (folder.parent / "outside").write_text("x")
    head = json.loads((folder / "export.json").read_text())
    head_with(files={**head["files"], name: "0" * 64})(folder)
    with pytest.raises(RunError, match="which is not inside the folder"):
        Recommender.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (saved("item_table.npy", lambda table: table[1:]), r"item_table.npy has shape \(19, 8\), but 20 x 8 is needed"),
        (saved("item_table.npy", lambda table: table.astype(np.float64)), "contains float64, but float32 is needed"),
        (saved("item_table.npy", lambda table: np.where(table > 0, np.nan, table)), "item_table.npy contains NaN"),
        (saved("undistilled/item_table.npy", lambda table: table + np.inf), "undistilled/item_table.npy contains N"),
        (saved("counts.npy", lambda counts: counts.astype(object), allow_pickle=True), "counts.npy contains object"),
        (saved("counts.npy", lambda counts: -1 - counts), "counts.npy contains numbers below 0"),
        (saved("item_table.npy", lambda table: table * np.float32(1e20)), "infinite values or numbers beyond 1e"),
        (npy("item_table.npy", "(1000000000000, 8)"), r"has shape \(1000000000000, 8\), but 20 x 8 is needed"),
        (npy("counts.npy", "(20,)", "<i8"), "counts.npy has 0 bytes of numbers, but 160 are needed"),
        (npy("counts.npy", "(" * 250 + "1," + ")" * 250), "counts.npy cannot be read as a NumPy array"),
        (catalogue(lambda frame: pl.concat([frame] * 1000)), "has 20,000 items, export.json names 20"),
        (catalogue(lambda frame: frame.with_columns(title=pl.concat_list("title"))), "column 'title' holds List"),
        (catalogue(lambda frame: frame.with_columns(item_id=pl.col("item_id") + "x" * 600)), "longer than 512 charac"),
        (written("histories.json", b"[" * 100_000), "histories.json is not valid JSON"),
        (written("histories.json", b'[{"history": "i1", "next": null}]'), "histories.json is damaged"),
        (elsewhere, "encoder.onnx cannot be read as an ONNX graph: its numbers are in other files"),
        (
            lambda folder: shutil.copy(folder / "encoder.onnx", folder / "text_encoder" / "encoder.onnx"),
            "is not the graph that is needed here: its inputs are vectors, lengths",
        ),
        (written("item_table.npy", b""), "cannot be read as a NumPy array"),
        (written("item_table.npy", b"PK\x03\x04"), "cannot be read as a NumPy array"),
        (saved("counts.npy", lambda counts: counts[:-1]), "counts.npy has shape"),
        (saved("text_map.npy", lambda found: found[:-3]), "text_map.npy has shape"),
        (written("encoder.onnx", b"no graph at all"), "encoder.onnx cannot be read as an ONNX graph"),
        (cut("encoder.onnx"), "encoder.onnx"),
        (written("encoder.onnx", b""), "encoder.onnx"),
        (
            lambda folder: shutil.copy(folder / "text_encoder" / "encoder.onnx", folder / "encoder.onnx"),
            "encoder.onnx is not the graph that is needed here: its inputs are tokens, mask, its outputs vectors",
        ),
        (written("catalogue.parquet", b"no"), "catalogue.parquet cannot be read"),
        (catalogue(lambda frame: frame.head(19)), "has 19 items, export.json names 20"),
        (catalogue(lambda frame: frame.drop("item_id")), "has no column item_id"),
        (catalogue(lambda frame: frame.with_columns(item_id=pl.lit("x"))), "an item_id is missing or repeated"),
        (catalogue(lambda frame: frame.drop("brand")), "has no field 'brand'"),
        (written("histories.json", b'[{"history": [1], "next": null}]'), "histories.json is damaged"),
        (written("histories.json", b"[3]"), "histories.json is damaged"),
    ],
)  # fmt: skip
def test_files_that_do_not_fit_each_other(folder: Path, change: Change, message: str) -> None:
    """Their checksums are right: somebody exported them so, or put the folder together."""
    change(folder)
    sealed(folder)
    with pytest.raises(RunError, match=message):
        Recommender.load(folder).add_items([NewItem("n", "red")])


def test_a_tokenizer_that_is_none_is_found_when_it_is_needed(folder: Path) -> None:
    written("text_encoder/tokenizer.json", b"{}")(folder)
    sealed(folder)
    recommender = Recommender.load(folder)
    with pytest.raises(RunError, match=r"tokenizer.json cannot be read"):
        recommender.add_items([NewItem("n", "red")])
    assert recommender.info.items == 20


def test_an_untouched_copy_is_fine(folder: Path) -> None:
    assert Recommender.load(folder).info.items == 20
    sealed(folder)
    assert Recommender.load(folder).info.items == 20
