"""Files of strangers: archives that lead elsewhere, bombs, devices, code in settings; and the modes of our own."""

from __future__ import annotations

import ast
import gzip
import io
import os
import stat
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pytest
import zstandard

import llmd4rec
from llmd4rec.config.settings import load_settings
from llmd4rec.data.dataset import Dataset
from llmd4rec.data.ingest import unpack
from llmd4rec.data.ingest.unpack import unpacked
from llmd4rec.data.prepare import prepare_files
from llmd4rec.data.sources.source import Files, MissingFileError
from llmd4rec.errors import ConfigError, DataError
from llmd4rec.estimators import Distillation
from llmd4rec.io.files import atomic_dir, atomic_file

SECRET, MINE = b"of somebody else", b"1\t2\t3\t4\n"


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def tar_of(path: Path, *entries: tuple[str, bytes, bytes, str]) -> Path:
    """A tar archive of (name, type, content, where it links to)."""
    with tarfile.open(path, "w") as tar:
        for name, kind, content, target in entries:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname, entry.size = kind, target, len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def zip_of(path: Path, *entries: tuple[str, bytes, int]) -> Path:
    """A zip archive of (name, content, mode of the file)."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content, mode in entries:
            entry = zipfile.ZipInfo(name)
            entry.external_attr, entry.compress_type = mode << 16, zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    return path


# ---- archives that want out -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "name", ["../u.data", "../../../../../../tmp/u.data", "/etc/u.data", "a/../../u.data", "C:\\x\\u.data/u.data"]
)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_where_a_member_lands_is_not_the_archives_to_say(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / "work").mkdir()
    path = tmp_path / "work" / f"set.{kind}"
    if kind == "zip":
        zip_of(path, (name, MINE, 0o644))
    else:
        tar_of(path, (name, tarfile.REGTYPE, MINE, ""))
    before = everything(tmp_path)
    with Files([path]) as files:
        found = files.find("u.data")
        assert found == files.scratch / "u.data"
        assert found.read_bytes() == MINE
        assert stat.S_IMODE(files.scratch.stat().st_mode) == 0o700
        scratch = files.scratch
    assert everything(tmp_path) == before
    assert not scratch.exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_are_no_files(tmp_path: Path, kind: bytes) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET)
    for target in (str(secret), "../secret", "/etc/passwd"):
        path = tar_of(tmp_path / "set.tar", ("u.data", kind, b"", target))
        with Files([path]) as files, pytest.raises(MissingFileError):
            files.find("u.data")
    # One that comes first does not hide the real file behind it.
    path = tar_of(tmp_path / "set.tar", ("u.data", kind, b"", str(secret)), ("d/u.data", tarfile.REGTYPE, MINE, ""))
    with Files([path]) as files:
        assert files.find("u.data").read_bytes() == MINE


def test_a_link_in_a_zip_is_only_its_text(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "set.zip", ("u.data", b"/etc/passwd", stat.S_IFLNK | 0o777))
    with Files([path]) as files:
        found = files.find("u.data")
        assert not found.is_symlink()
        assert found.read_bytes() == b"/etc/passwd"


def test_a_locked_archive_says_so(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "set.zip", ("u.data", MINE, 0o644))
    content = bytearray(path.read_bytes())
    for signature, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + at] |= 1  # "is encrypted"
    path.write_bytes(content)
    with Files([path]) as files, pytest.raises(DataError, match="password") as caught:
        files.find("u.data")
    assert "Unpack it yourself" in caught.value.remedy


# ---- bombs ------------------------------------------------------------------------------------------------------
def zstd_bomb(size: int) -> bytes:
    """A frame of blocks of 128 KiB in four bytes each: one byte, so many times."""
    blocks = size >> 17
    block = (1 << 17 << 3 | 1 << 1).to_bytes(3, "little") + b"x"
    last = (1 << 17 << 3 | 1 << 1 | 1).to_bytes(3, "little") + b"x"
    return b"\x28\xb5\x2f\xfd\x00\x50" + block * (blocks - 1) + last


def test_the_bomb_is_one() -> None:
    assert zstandard.ZstdDecompressor().decompressobj().decompress(zstd_bomb(1 << 20)) == b"x" * (1 << 20)


@pytest.mark.parametrize("kind", ["gz", "zst", "zip", "tar.gz"])
def test_a_bomb_is_refused_before_it_fills_the_disk(tmp_path: Path, kind: str) -> None:
    most_bytes = 1 << 22
    big, path = bytes(50 << 20), tmp_path / f"u.data.{kind}"
    if kind == "gz":
        path.write_bytes(gzip.compress(big, 9))
    elif kind == "zst":
        path.write_bytes(zstd_bomb(1 << 33))
    elif kind == "zip":
        zip_of(path, ("u.data", big, 0o644))
    else:
        with tarfile.open(path, "w:gz") as tar:
            entry = tarfile.TarInfo("u.data")
            entry.size = len(big)
            tar.addfile(entry, io.BytesIO(big))
    allowed = max(most_bytes, unpack.MOST_TIMES * path.stat().st_size)
    work = tmp_path / "work"
    work.mkdir()
    written = []

    def opened() -> None:
        if kind in ("gz", "zst"):
            try:
                unpacked(path, work, "utf-8", most_bytes)
            finally:
                written.append(sum(file.stat().st_size for file in work.iterdir()))
        else:
            with Files([path], most_bytes) as files:
                try:
                    files.find("u.data")
                finally:
                    written.append(sum(file.stat().st_size for file in files.scratch.iterdir()))

    with pytest.raises(DataError, match=r"unpacks to more than [\d,]+ bytes") as caught:
        opened()
    assert "unpack it yourself" in caught.value.remedy
    assert written[0] <= allowed


def test_a_block_of_zstandard_comes_in_pieces_that_memory_holds(tmp_path: Path) -> None:
    path = tmp_path / "log.csv.zst"
    path.write_bytes(zstd_bomb(1 << 33))
    with path.open("rb") as file:
        assert len(next(unpack._unzstd(path, file))[0]) <= 1 << 27


def test_a_log_packed_as_tightly_as_logs_are_is_no_bomb(tmp_path: Path) -> None:
    rows = "".join(f"user{number % 50},item{number % 30},{number}\n" for number in range(50_000))
    path = tmp_path / "log.csv.gz"
    path.write_bytes(gzip.compress(rows.encode(), 9))
    (tmp_path / "work").mkdir()
    assert unpacked(path, tmp_path / "work", "utf-8", most_bytes=1).read_text() == rows


# ---- encodings ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("encoding", ["base64", "rot13", "hex", "zlib", "klingon", "", "utf-8\0"])
def test_an_encoding_that_is_none_for_text_is_refused(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "log.csv"
    path.write_text("user,item\na,b\n")
    with pytest.raises(DataError, match="unknown encoding"):
        prepare_files(path, None, tmp_path / "out", encoding=encoding)


def test_a_text_cut_inside_a_character_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes("user,item\nu,a\nu,b\nu,c\nv,a\n".encode("utf-16")[:-1])
    with pytest.raises(DataError, match="is not in utf-8: truncated data"):
        prepare_files(path, None, tmp_path / "out")


# ---- settings -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch {file}']",
        "rounds: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{file}']]",
        "rounds: !!python/name:os.system",
        "rounds: " + "[" * 20_000,
    ],
    ids=["call", "nested call", "name", "depth"],
)
def test_settings_run_no_code(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.yaml").write_text(text.replace("{file}", str(tmp_path / "proof")))
    with pytest.raises(ConfigError):
        load_settings(Distillation, tmp_path / "run.yaml")
    assert not (tmp_path / "proof").exists()


def test_a_value_made_long_by_aliases_is_quoted_in_short(tmp_path: Path) -> None:
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    (tmp_path / "run.yaml").write_text("\n".join([*lines, "rounds: *a29", "model: *a29", "wides: *a29"]))
    with pytest.raises(ConfigError) as caught:
        load_settings(Distillation, tmp_path / "run.yaml")
    assert len(str(caught.value)) < 20_000


#: Calls by which files run code, and arguments that let them. `make lint` looks for more such calls.
FORBIDDEN_CALLS = {"torch.load", "pickle.load", "pickle.loads", "yaml.load", "yaml.unsafe_load", "eval", "exec"}
FORBIDDEN_ARGUMENTS = {"allow_pickle": True, "trust_remote_code": True, "weights_only": False, "use_safetensors": False}


def dangers(source: str) -> list[str]:
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    found = [name for call in calls if (name := ast.unparse(call.func)) in FORBIDDEN_CALLS]
    arguments = [argument for call in calls for argument in call.keywords if argument.arg in FORBIDDEN_ARGUMENTS]
    return found + [
        ast.unparse(argument)
        for argument in arguments
        if not isinstance(argument.value, ast.Constant)
        or argument.value.value is FORBIDDEN_ARGUMENTS[argument.arg or ""]
    ]


def test_no_reader_of_ours_is_one_that_runs_code() -> None:
    sources = sorted(Path(llmd4rec.__file__).parent.rglob("*.py"))
    assert len(sources) > 60
    assert {path.name: found for path in sources if (found := dangers(path.read_text(encoding="utf-8")))} == {}
    assert dangers("torch.load(x); np.load(x, allow_pickle=True); f(trust_remote_code=allowed)") == [
        "torch.load", "allow_pickle=True", "trust_remote_code=allowed",
    ]  # fmt: skip


# ---- what we write ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o000])
def test_nothing_written_is_writable_by_others_and_the_umask_holds(tmp_path: Path, umask: int) -> None:
    program = (
        f"import os; os.umask({umask})\n"
        "from llmd4rec.cli import main\nimport sys\n"
        "sys.argv = ['llmd4rec', 'prepare', '--interactions', 'log.csv', '--out', 'out']\nmain()\n"
    )
    (tmp_path / "log.csv").write_text("user,item,time\nu,a,1\nu,b,2\nu,c,3\nv,a,4\n")
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, capture_output=True)
    made = [tmp_path / "out", *(tmp_path / "out").iterdir()]
    assert len(made) > 9
    for path in made:
        assert stat.S_IMODE(path.stat().st_mode) == (0o755 if path.is_dir() else 0o644) & ~umask, path


def test_what_is_half_written_is_nobody_elses_to_change(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "a") as file, atomic_dir(tmp_path / "b") as folder:
        for path in (file, folder):
            assert not path.stat().st_mode & 0o077
            assert tmp_path in path.parents


def test_unpacked_copies_are_private_and_go(tmp_path: Path) -> None:
    path = tmp_path / "only-of-this-test.csv.gz"
    path.write_bytes(gzip.compress(b"user,item\nu,a\nu,b\nu,c\nv,a\n"))
    from llmd4rec.data.ingest.readers import open_table

    with open_table(path):
        (copy,) = Path(tempfile.gettempdir()).glob("llmd4rec-*/only-of-this-test.csv")
        assert stat.S_IMODE(copy.parent.stat().st_mode) == 0o700
        assert os.listdir(copy.parent) == [copy.name]
    assert not copy.parent.exists()


def test_a_prepared_folder_holds_no_pickle(tmp_path: Path) -> None:
    """An array of objects, which is where a pickle could hide, is refused however it is announced."""
    import numpy as np

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return os.system, (f"touch {tmp_path / 'proof'}",)

    (tmp_path / "log.csv").write_text("user,item,time\nu,a,1\nu,b,2\nu,c,3\nv,a,4\n")
    prepare_files(tmp_path / "log.csv", None, tmp_path / "data")
    np.save(tmp_path / "data" / "items.npy", np.array([Evil()] * 4, dtype=object), allow_pickle=True)
    head = tmp_path / "data" / "dataset.json"
    import json

    values = json.loads(head.read_text())
    del values["files"]
    head.write_text(json.dumps(values))
    with pytest.raises(DataError, match="damaged"):
        Dataset.load(tmp_path / "data")
    assert not (tmp_path / "proof").exists()
