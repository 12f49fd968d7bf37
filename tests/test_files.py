from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmd4rec.errors import DataError, LLMD4RecError
from llmd4rec.io.files import (
    atomic_dir,
    atomic_file,
    cache_dir,
    exchange_names,
    read_json,
    remove,
    sha256_file,
    write_json,
)
from llmd4rec.io.leftovers import remove_leftovers


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_file_appears_whole_with_readable_permissions(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "a.txt"
    with atomic_file(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        assert path.parent in temporary.parents  # a rename must not cross file systems
        temporary.write_text("whole")
    assert contents(tmp_path) == {"deep/er/a.txt": b"whole"}
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), atomic_file(path) as temporary:  # noqa: PT012
        temporary.write_text("new")
        raise error
    assert contents(tmp_path) == {"a.txt": b"old"}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_the_old_folder(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a"
    path.mkdir()
    (path / "x").write_text("old")
    with pytest.raises(error), atomic_dir(path, replace=True) as temporary:  # noqa: PT012
        (temporary / "x").write_text("new")
        raise error
    assert contents(tmp_path) == {"a/x": b"old"}
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_folder_is_replaced_as_a_whole_and_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with atomic_dir(path) as temporary:
        (temporary / "x").write_text("1")
    assert path.stat().st_mode & 0o777 == 0o755
    with pytest.raises(DataError, match="already exists"), atomic_dir(path):
        raise AssertionError("must not come here")
    with atomic_dir(path, replace=True) as temporary:
        (temporary / "y").write_text("2")
    assert contents(tmp_path) == {"a/y": b"2"}


def test_an_empty_folder_may_be_filled_and_a_file_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with atomic_dir(tmp_path / "empty") as temporary:
        (temporary / "x").write_text("1")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match="already exists"), atomic_dir(tmp_path / "file"):
        pass
    with pytest.raises(LLMD4RecError, match="cannot write"), atomic_file(tmp_path / "file" / "below"):
        pass
    assert contents(tmp_path) == {"empty/x": b"1", "file": b"mine"}


def test_a_full_disk_is_named_and_nothing_is_left(small_disk: Path) -> None:
    (small_disk / "a.txt").write_text("old")
    with pytest.raises(LLMD4RecError, match=r"the disk is full: cannot write .*a\.txt"):
        write_json(small_disk / "a.txt", "x" * 200_000)
    with (
        pytest.raises(LLMD4RecError, match=r"the disk is full: cannot write .*/b"),
        atomic_dir(small_disk / "b") as folder,
    ):
        (folder / "x").write_bytes(bytes(200_000))
    assert contents(small_disk) == {"a.txt": b"old"}
    assert [p.name for p in small_disk.iterdir()] == ["a.txt"]


def test_a_full_disk_during_a_checkpoint_keeps_the_last_one(small_disk: Path) -> None:
    import torch

    from llmd4rec.training import checkpoint

    path = small_disk / "last.safetensors"
    checkpoint.save(path, {"x": torch.ones(10)}, {"step": 1})
    with pytest.raises(LLMD4RecError, match="the disk is full"):
        checkpoint.save(path, {"x": torch.ones(100_000)}, {"step": 2})
    assert checkpoint.load(path)[1]["step"] == 1
    assert [p.name for p in small_disk.iterdir()] == ["last.safetensors"]


def test_what_is_written_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Content, then name, then the folder that holds the name: else a machine that crashes may keep the name alone."""
    happened: list[tuple[str, str]] = []

    def watched(kind: str, real: Any) -> Any:
        def call(*arguments: Any, **more: Any) -> Any:
            place = arguments[-1] if kind == "named" else os.readlink(f"/proc/self/fd/{arguments[0]}")
            happened.append((kind, str(Path(place).relative_to(tmp_path))))
            return real(*arguments, **more)

        return call

    monkeypatch.setattr(os, "fsync", watched("flushed", os.fsync))
    for name in ("replace", "rename"):
        monkeypatch.setattr(os, name, watched("named", getattr(os, name)))

    def settled() -> list[tuple[str, str]]:
        """With the temporary names made predictable."""
        found = [(kind, re.sub(r"\.(\w+)\.\w+\.part", r"new \1", place)) for kind, place in happened]
        happened.clear()
        return found

    write_json(tmp_path / "a" / "x", 1)
    assert settled() == [("flushed", "."), ("flushed", "a/new x/x"), ("named", "a/x"), ("flushed", "a")]
    with atomic_dir(tmp_path / "d") as folder:
        (folder / "y").write_text("1")
    assert settled() == [("flushed", "new d/y"), ("flushed", "new d"), ("named", "d"), ("flushed", ".")]


def test_the_file_before_is_kept_where_asked(tmp_path: Path) -> None:
    for number in range(4):
        with atomic_file(tmp_path / "last", keep=tmp_path / "before") as temporary:
            temporary.write_text(str(number))
    assert contents(tmp_path) == {"last": b"3", "before": b"2"}


def test_a_folder_that_another_process_was_faster_to_make_is_not_lost(tmp_path: Path) -> None:
    """It was not there when this one began."""
    path = tmp_path / "run"
    with pytest.raises(LLMD4RecError, match="something else is there already"), atomic_dir(path) as mine:  # noqa: PT012
        (mine / "x").write_text("mine")
        with atomic_dir(path) as theirs:
            (theirs / "x").write_text("theirs")
    assert contents(tmp_path) == {"run/x": b"theirs"}


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_folder_is_replaced_without_ever_being_half_there(tmp_path: Path, can_exchange: bool) -> None:
    """Seen at each of Python's dealings with files: all of the old folder, all of the new, or for a moment none."""
    exchange = exchange_names if can_exchange else lambda *_: False
    path = tmp_path / "a"
    versions = [{f"{number}/{file}": number.encode() for file in "abcdef"} for number in ("1", "2")]

    def write(number: int) -> None:
        with atomic_dir(path, replace=True, exchange=exchange) as folder:
            for name, content in versions[number].items():
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_bytes(content)

    write(0)
    seen: list[dict[str, bytes]] = []
    watching = [True]

    def look(event: str, _arguments: Any) -> None:
        if watching[0] and event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.scandir"):
            watching[0] = False
            seen.append(contents(path) if path.exists() else {})
            watching[0] = True

    sys.addaudithook(look)
    write(1)
    remove(path)
    watching[0] = False
    assert all(each in (*versions, {}) for each in seen)
    assert len(seen) > 10
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_refusal_to_write_names_the_path(tmp_path: Path, number: int) -> None:
    with (
        pytest.raises(LLMD4RecError, match=r"no permission to write .*a\.txt"),
        atomic_file(tmp_path / "a.txt"),
    ):
        raise OSError(number, os.strerror(number))
    assert list(tmp_path.iterdir()) == []


def test_json_comes_back_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    value = {"b": [1, 2.5, None], "a": "ü🎬"}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value
    (tmp_path / "x.json").write_text('{"b": [1, ')
    with pytest.raises(DataError, match=r"x\.json is not valid JSON"):
        read_json(tmp_path / "x.json")
    (tmp_path / "x.json").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"x\.json is not valid JSON"):
        read_json(tmp_path / "x.json")
    with pytest.raises(DataError, match="does not exist"):
        read_json(tmp_path / "none.json")


def test_leftovers_in_a_folder_of_ours_go_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in (".a.txt.x1.part", "deep/.b.x2.part"):
        (tmp_path / name).write_text("half")
    (tmp_path / ".c.x3.part").mkdir()
    (tmp_path / ".c.x3.part" / "inside").write_text("half")
    for name in ("a.txt", "deep/b.part", ".hidden"):
        (tmp_path / name).write_text("kept")
    remove_leftovers(tmp_path)
    assert sorted(contents(tmp_path)) == [".hidden", "a.txt", "deep/b.part"]


WRITES_AND_WAITS = """
import sys
from pathlib import Path
from llmd4rec.io.files import atomic_dir, atomic_file
with {write}(Path(sys.argv[1])) as temporary:
    if "{write}" == "atomic_file":
        temporary.write_text("half")
    print("writing", flush=True)
    sys.stdin.read()
    if "{write}" == "atomic_file":
        temporary.write_text("whole")
"""


@pytest.mark.parametrize("write", ["atomic_dir", "atomic_file"])
def test_what_a_killed_process_leaves_goes_with_the_next_write_and_never_a_living_ones(
    tmp_path: Path, write: str
) -> None:
    living, killed = (
        subprocess.Popen(
            [sys.executable, "-c", WRITES_AND_WAITS.format(write=write), str(tmp_path / name)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for name in ("living", "killed")
    )
    with living, killed:
        for process in (living, killed):
            assert process.stdout is not None
            assert process.stdout.readline() == b"writing\n"
        killed.kill()
        killed.wait()
        assert len(list(tmp_path.glob(".killed.*"))) == 1
        write_json(tmp_path / "next.json", 1)
        assert list(tmp_path.glob(".killed.*")) == []
        assert len(list(tmp_path.glob(".living.*"))) == 1
        remove_leftovers(tmp_path)
        assert len(list(tmp_path.glob(".living.*"))) == 1
        living.communicate(b"")
    assert living.returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["living", "next.json"]


def test_another_programs_part_file_is_not_ours_to_remove(tmp_path: Path) -> None:
    (tmp_path / ".film.mkv.part").write_text("somebody's download")
    with atomic_dir(tmp_path / "a") as folder:
        (folder / "x").write_text("1")
    write_json(tmp_path / "b", 1)
    assert sorted(contents(tmp_path)) == [".film.mkv.part", "a/x", "b"]


def test_checksum_and_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256_file(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    monkeypatch.setenv("LLMD4REC_CACHE", str(tmp_path / "cache"))
    assert cache_dir("a", "b") == tmp_path / "cache" / "a" / "b"
    assert (tmp_path / "cache" / "a" / "b").is_dir()
