"""Histories in a row, in the layouts of public data sets: oldest first, each interaction once, or an error."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pytest

from llmd4rec.data.dataset import Dataset
from llmd4rec.data.ingest.settings import Prepare
from llmd4rec.data.prepare import prepare_files
from llmd4rec.errors import DataError

USERS = ["u0", "u1", "u2", "u3"]
ITEMS = [["a", "b", "c", "a"], ["c", "a", "d"], ["b", "d", "e", "a"], ["e", "c", "b"]]
TIMES = [[1650000000 + 100 * user + 10 * at for at in range(len(items))] for user, items in enumerate(ITEMS)]
HISTORIES = dict(zip(USERS, ITEMS, strict=True))


def histories(data: Dataset) -> dict[str, list[str]]:
    bounds = zip(data.offsets[:-1], data.offsets[1:], strict=True)
    return {
        user: [data.item_ids[item] for item in data.items[start:end]]
        for user, (start, end) in zip(data.user_ids, bounds, strict=True)
    }


def prepared(tmp_path: Path, name: str, content: str | pl.DataFrame, **settings: object) -> Dataset:
    path = tmp_path / name
    if isinstance(content, pl.DataFrame):
        content.write_parquet(path)
    else:
        path.write_text(content)
    return prepare_files(path, None, tmp_path / "out", Prepare.from_settings(settings), overwrite=True)


def recbole(rows: Sequence[tuple[str, ...]], *names: str) -> str:
    return "\n".join("\t".join(row) for row in [names, *rows]) + "\n"


def test_recbole_list_and_next_item(tmp_path: Path) -> None:
    rows = [(user, " ".join(items[:-1]), items[-1]) for user, items in HISTORIES.items()]
    text = recbole(rows, "session_id:token", "item_id_list:token_seq", "item_id:token")
    data = prepared(tmp_path, "s.inter", text)
    assert histories(data) == HISTORIES
    assert any("taken as histories, oldest first" in warning for warning in data.report["warnings"])
    assert data.report["interactions"]["histories_in_rows"] == 4


def test_recbole_list_with_times(tmp_path: Path) -> None:
    rows = [
        (user, " ".join(items[:-1]), " ".join(map(str, times[:-1])), items[-1], str(times[-1]))
        for (user, items), times in zip(HISTORIES.items(), TIMES, strict=True)
    ]
    names = ["user_id:token", "item_id_list:token_seq", "timestamp_list:float_seq", "item_id:token", "timestamp:float"]
    data = prepared(tmp_path, "s.inter", recbole(rows, *names))
    assert histories(data) == HISTORIES
    assert data.report["interactions"]["ordered_by"] == "time"


def test_rows_that_grow_are_read_once(tmp_path: Path) -> None:
    rows = [(user, " ".join(items[:at]), items[at]) for user, items in HISTORIES.items() for at in range(1, len(items))]
    names = ("user_id:token", "item_id_list:token_seq", "item_id:token")
    data = prepared(tmp_path, "s.inter", recbole(rows, *names))
    assert histories(data) == HISTORIES
    assert any("6 rows that are the beginning of another row" in warning for warning in data.report["warnings"])
    # Each row under a name of its own: the same interactions would be there again and again.
    renamed = [(f"s{at}", *row[1:]) for at, row in enumerate(rows)]
    with pytest.raises(DataError, match="continue the row before"):
        prepared(tmp_path, "s.inter", recbole(renamed, *names))
    windows = [(user, " ".join(items[at - 2 : at]), items[at]) for user, items in HISTORIES.items() for at in (2, 3)
               if at < len(items)]  # fmt: skip
    with pytest.raises(DataError, match="overlap"):
        prepared(tmp_path, "s.inter", recbole(windows, *names))


@pytest.mark.parametrize("newest_first", [False, True])
def test_events_as_otto_has_them(tmp_path: Path, newest_first: bool) -> None:
    lines = []
    for (user, items), times in zip(HISTORIES.items(), TIMES, strict=True):
        events = [{"aid": item, "ts": 1000 * time, "type": "clicks"} for item, time in zip(items, times, strict=True)]
        lines.append(json.dumps({"session": user, "events": events[::-1] if newest_first else events}))
    data = prepared(tmp_path, "otto.jsonl", "\n".join(lines))
    assert histories(data) == HISTORIES
    turned = any("begin with the newest" in warning for warning in data.report["warnings"])
    assert turned == newest_first


@pytest.mark.parametrize("between", [" ", "\n ", ", "])
def test_amazon_m2(tmp_path: Path, between: str) -> None:
    rows = [f'"[{between.join(map(repr, items[:-1]))}]",{items[-1]},DE' for items in ITEMS]
    data = prepared(tmp_path, "sessions.csv", "prev_items,next_item,locale\n" + "\n".join(rows) + "\n")
    assert list(histories(data).values()) == ITEMS
    assert any("names no user" in warning for warning in data.report["warnings"])
    cut = "prev_items,next_item,locale\n" + "\"['a' ... 'b']\",c,DE\n" * 3
    with pytest.raises(DataError, match="row 1, column 'prev_items': a list that cannot be taken apart"):
        prepared(tmp_path, "sessions.csv", cut)


@pytest.mark.parametrize("newest_first", [False, True])
def test_nvtabular_lists(tmp_path: Path, newest_first: bool) -> None:
    step = -1 if newest_first else 1
    frame = pl.DataFrame(
        {
            "session_id": USERS,
            "item_id-list": [items[::step] for items in ITEMS],
            "timestamp-list": [times[::step] for times in TIMES],
            "day_index": [1, 1, 2, 2],
        }
    )
    assert histories(prepared(tmp_path, "nv.parquet", frame)) == HISTORIES
    uneven = frame.with_columns(pl.col("timestamp-list").list.head(3))
    with pytest.raises(DataError, match="row 1: column 'item_id-list' and column 'timestamp-list' have lists of two"):
        prepared(tmp_path, "nv.parquet", uneven)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "user_id,item_ids\n" + "".join(f"{u},{' '.join(i)}\n" for u, i in HISTORIES.items())),
        ("a.csv", "user_id,item_seq\n" + "".join(f"{u},{'|'.join(i)}\n" for u, i in HISTORIES.items())),
        ("a.csv", "user_id,history\n" + "".join(f'{u},"{",".join(i)}"\n' for u, i in HISTORIES.items())),
        ("a.tsv", "user_id\titem_list\n" + "".join(f"{u}\t[{', '.join(i)}]\n" for u, i in HISTORIES.items())),
        ("a.tsv", "user_id\titems\n" + "".join(f"{u}\t{json.dumps(i)}\n" for u, i in HISTORIES.items())),
        ("a.jsonl", "".join(json.dumps({"user_id": u, "items": i}) + "\n" for u, i in HISTORIES.items())),
        ("a.jsonl", "".join(json.dumps({"user_id": u, "item_id": i}) + "\n" for u, i in HISTORIES.items())),
        ("a.jsonl", "".join(json.dumps({"uid": u, "history": i[:-1], "target": i[-1]}) + "\n"
                            for u, i in HISTORIES.items())),
        ("a.csv", "user_id,start,item_ids,date\n" + "".join(f"{u},0,{' '.join(i)},2024-01-01\n"
                                                            for u, i in HISTORIES.items())),
    ],
)  # fmt: skip
def test_lists_as_text_and_json(tmp_path: Path, name: str, text: str) -> None:
    """Also where one moment stands for a whole row: a repeated item is then no duplicate."""
    assert histories(prepared(tmp_path, name, text)) == HISTORIES


def test_lists_are_taken_apart_in_one_way_or_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"column 'item_ids': items are separated by ',' and by '\|'"):
        prepared(tmp_path, "a.csv", 'user_id,item_ids\nu,"a,b|c"\nv,a|b\n')
    with pytest.raises(DataError, match="row 2, column 'item_ids'"):
        prepared(tmp_path, "a.csv", 'user_id,item_ids\nu,"[a, b]"\nv,"[red apple, b]"\n')
    frame = pl.DataFrame({"user_id": USERS, "basket": ITEMS})
    with pytest.raises(DataError, match=r"a list in each row of column 'basket'(.|\n)*--item-col basket"):
        prepared(tmp_path, "a.parquet", frame)
    assert histories(prepared(tmp_path, "a.parquet", frame, item_col="basket")) == HISTORIES


def test_sessions_of_a_user_follow_their_times(tmp_path: Path) -> None:
    rows = [("v", 30, "b c"), ("u", 20, "c a c"), ("u", 10, "a b"), ("v", 40, "a d")]
    text = "user_id,timestamp,item_ids\n" + "".join(f"{user},{time},{items}\n" for user, time, items in rows)
    data = prepared(tmp_path, "a.csv", text)
    assert histories(data) == {"v": ["b", "c", "a", "d"], "u": ["a", "b", "c", "a", "c"]}
    assert any("several rows" in warning for warning in data.report["warnings"])


def test_frames_with_lists(tmp_path: Path) -> None:
    data = Dataset.from_frames(pl.DataFrame({"user_id": USERS, "item_id": ITEMS, "timestamp": TIMES}))
    assert histories(data) == HISTORIES
