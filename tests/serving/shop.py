"""A small shop with names that are hard to print, its export, and the real service in a process of its own."""

from __future__ import annotations

import dataclasses
import hashlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import polars as pl
from evaluation.examples import chain_dataset
from prometheus_client.parser import text_string_to_metric_families
from settings_of import parse_settings

from llmd4rec.data.dataset import Dataset
from llmd4rec.export.write import ExportOptions, export_run
from llmd4rec.runs.run import Run

ITEMS = {
    "plain": "Rose water",
    "with/slash": "<img src=x onerror=\"document.title='owned'\">",
    "with space": "Seife & Öl — «Zürich»",
    "über": "日本の石鹸 soap",
    "🎬": "A film, “quoted” 'soap'",
    "%2e%2e": "</script><script>document.title='owned'</script>",
    "comma,inside": "Soap one",
    "5": "Soap two",
    "null": "Soap three",
    "../../etc/passwd": "Towel",
    "#hash?query=1": "Brush",
    "a" * 300: "Comb " + "very " * 60 + "long",
}
IDS = list(ITEMS)
BRANDS = ["Öko", "<b>Bold</b>", "Öko", "Plain"] * 3


def make_run(folder: Path, tiny_settings: dict[str, Any]) -> tuple[Any, Dataset]:
    """A run of one round on a log in which every item is followed by the next one."""
    data = chain_dataset(users=30, items=len(IDS), length=8)
    catalogue = pl.DataFrame(
        {
            "item_id": IDS,
            "title": list(ITEMS.values()),
            "brand": BRANDS,
            "price": [float(place) for place in range(len(IDS))],
            "year": [1977 + place for place in range(len(IDS))],
            "blurb": [f"About number {place}." for place in range(len(IDS))],
        }
    )
    dataclasses.replace(data, catalogue=catalogue).save(folder / "data")
    data = Dataset.load(folder / "data")
    return parse_settings(tiny_settings).fit(data, folder / "run"), data


def export(run: Run, data: Dataset, folder: Path, **options: Any) -> Path:
    """An export, to which vectors of two numbers can be added."""
    export_run(run, data, folder, "distilled", options=ExportOptions(**options))
    head = json.loads((folder / "export.json").read_text())
    head["new_items"] = {"encoder": "two numbers", "width": 2}
    head.setdefault("text_fields", ["title"])
    places = [folder, *([folder / "undistilled"] if options.get("both") else [])]
    for place in places:
        path = place / "text_map.npy"
        np.save(path, np.full((3, head["dim"]), 0.1, dtype=np.float32))
        head["files"][path.relative_to(folder).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "export.json").write_text(json.dumps(head))
    return folder


def bare(whole: Path, folder: Path) -> Path:
    """The same export without the undistilled model and without examples."""
    shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("undistilled", "histories.json"))
    head = json.loads((folder / "export.json").read_text())
    del head["undistilled"]
    head["files"] = {name: digest for name, digest in head["files"].items() if (folder / name).exists()}
    (folder / "export.json").write_text(json.dumps(head))
    return folder


class Client:
    """Requests over a connection of their own each, as strangers send them."""

    def __init__(self, url: str, headers: dict[str, str] | None = None) -> None:
        parts = urlsplit(url)
        self.host, self.port = parts.hostname, parts.port
        self.url, self.headers = url, headers or {}
        self.seconds = 20

    def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        raw: bytes | Iterator[bytes] | None = None,
    ) -> Reply:
        connection = http.client.HTTPConnection(str(self.host), self.port, timeout=self.seconds)
        sent = dict(self.headers)
        content = raw
        if body is not None:
            content = json.dumps(body).encode()
        if content is not None:
            sent["Content-Type"] = "application/json"
        sent.update(headers or {})
        try:
            connection.request(method, path, content, sent)
            answer = connection.getresponse()
            return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def get(self, path: str, **more: Any) -> Reply:
        return self.send("GET", path, **more)

    def post(self, path: str, body: Any = None, **more: Any) -> Reply:
        return self.send("POST", path, body, **more)

    def connect(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout=20)


@dataclasses.dataclass
class Reply:
    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.content)

    @property
    def error(self) -> Any:
        """The error; checks that it has the one shape all errors have."""
        assert self.status >= 400, self.content
        assert self.headers["content-type"] == "application/json"
        body = self.json
        assert body.keys() == {"error"}
        assert body["error"].keys() <= {"code", "message", "request_id", "field", "remedy", "details"}
        assert {"code", "message", "request_id"} <= body["error"].keys()
        return body["error"]


def figures(client: Client) -> dict[tuple[Any, ...], float]:
    """All figures of /metrics, by name and labels."""
    reply = client.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain")
    families = text_string_to_metric_families(reply.content.decode())
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value for family in families for sample in family.samples
    }


def answered(connection: socket.socket) -> Reply:
    """The next answer on a connection."""
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    return Reply(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())


def head(length: int) -> bytes:
    """The head of a request to recommend, with a body of so many bytes to come."""
    lines = ("POST /v1/recommend HTTP/1.1", "Host: localhost", "Content-Type: application/json")
    return "\r\n".join([*lines, f"Content-Length: {length}", "", ""]).encode()


def command(*arguments: object) -> list[str]:
    code = "from llmd4rec.cli import main; main()"
    return [sys.executable, "-c", code, "serve", *map(str, arguments)]


class Process:
    """The service as people start it."""

    def __init__(self, folder: Path, *arguments: object, key: str = "") -> None:
        environment = {**os.environ, "LLMD4REC_API_KEY": key}
        self.process = subprocess.Popen(
            command(folder, "--port", 0, *arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
        )
        self.lines: list[bytes] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.said = ""
        assert self.process.stdout is not None
        while "http://" not in self.said:
            line = self.process.stdout.readline().decode()
            assert line, b"".join(self.lines).decode()
            self.said += line
        found = re.search(r"http://\S+", self.said)
        assert found
        self.client = Client(found.group().replace("0.0.0.0", "127.0.0.1"))

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ends it as an operator does; gives its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        status = self.process.wait(30)
        self._reader.join(10)
        return status

    def logged(self) -> list[dict[str, Any]]:
        """What it has written to standard error so far."""
        return [json.loads(line) for line in self.lines]

    def wait_for(self, event: str, **facts: Any) -> dict[str, Any]:
        """The first line of the log that says so."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            for line in self.logged():
                if line["event"] == event and all(line.get(name) == value for name, value in facts.items()):
                    return line
            time.sleep(0.01)
        raise AssertionError(f"nothing logged about {event}: {b''.join(self.lines).decode()}")


@contextmanager
def running(folder: Path, *arguments: object, key: str = "") -> Iterator[Process]:
    process = Process(folder, *arguments, key=key)
    try:
        yield process
    finally:
        if process.process.poll() is None:
            process.process.kill()
        process.process.wait(30)
        for stream in (process.process.stdout, process.process.stderr):
            if stream is not None:
                stream.close()
