"""A load test of the service over HTTP: latency at a steady rate, the most it sustains, what a request costs.

    python benchmarks/serve_http.py --url http://127.0.0.1:8000 [--rate 200] [--seconds 10] [--key KEY]
    python benchmarks/serve_http.py            # part of the benchmark: starts a service of Beauty's size itself

With --url it needs nothing but Python and a running service. Requests ask for the ten best after histories of 3 to 15
items of the catalogue. At a steady rate they are sent when they are due (Poisson), whether earlier ones have been
answered or not, over as many connections as needed: a slow answer does not slow the requests down.

The generator needs a core of its own. On a machine with two cores it takes part of what the service could use.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RATE, MORE, SECONDS, CLIENTS = 200.0, 1500.0, 8.0, 64


# ---- the generator ----------------------------------------------------------------------------------------------
class Connection(asyncio.Protocol):
    """One connection, one request at a time; answers are read only as far as their status and length."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.buffer = b""
        self.waiting: asyncio.Future[int] | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def ask(self, request: bytes) -> asyncio.Future[int]:
        """The status of the answer to come."""
        self.waiting = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self.waiting

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, end, body = self.buffer.partition(b"\r\n\r\n")
        if end and self.waiting is not None:
            length = re.search(rb"content-length: (\d+)", head)
            if length and len(body) >= int(length[1]):
                self.buffer = b""
                self.waiting.set_result(int(head[9:12]))

    def connection_lost(self, error: Exception | None) -> None:
        if self.waiting is not None and not self.waiting.done():
            self.waiting.set_result(0)


@dataclass
class Load:
    """The measurements of a load.

    Attributes:
        latency: seconds of each answer, from the sending of its request.
        late: seconds by which each request was sent after it was due.
        failed: answers with another status than 200.
        seconds: from the first request to the last answer.
        cpu: seconds of processor time the service has taken meanwhile.
    """

    latency: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    failed: int = 0
    seconds: float = 0.0
    cpu: float = 0.0

    def percentile(self, share: float) -> float:
        """Milliseconds within which this share of the answers came."""
        ordered = sorted(self.latency)
        return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    @property
    def rate(self) -> float:
        """Good answers a second."""
        return (len(self.latency) - self.failed) / self.seconds


async def steadily(host: str, port: int, requests: list[bytes], rate: float, seconds: float) -> Load:
    """Sends requests at a rate, whatever becomes of them."""
    loop, load, idle, tasks = asyncio.get_running_loop(), Load(), [], set()

    async def one(request: bytes, due: float) -> None:
        connection = idle.pop() if idle else (await loop.create_connection(Connection, host, port))[1]
        sent = time.perf_counter()
        status = await connection.ask(request)
        load.latency.append(time.perf_counter() - sent)
        load.late.append(sent - due)
        load.failed += status != 200
        if status:
            idle.append(connection)

    for _ in range(16):
        idle.append((await loop.create_connection(Connection, host, port))[1])
    began = due = time.perf_counter()
    clock = random.Random(1)
    while due < began + seconds:
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        task = asyncio.create_task(one(clock.choice(requests), due))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        due += clock.expovariate(rate)
    await asyncio.gather(*tasks)
    load.seconds = time.perf_counter() - began
    for connection in idle:
        connection.transport.close()
    return load


async def at_once(host: str, port: int, requests: list[bytes], clients: int, seconds: float) -> Load:
    """So many clients, each of which asks again as soon as it is answered."""
    loop, load = asyncio.get_running_loop(), Load()
    began = time.perf_counter()

    async def client(number: int) -> None:
        connection = (await loop.create_connection(Connection, host, port))[1]
        clock = random.Random(number)
        while (sent := time.perf_counter()) < began + seconds:
            status = await connection.ask(clock.choice(requests))
            load.latency.append(time.perf_counter() - sent)
            load.failed += status != 200
            if not status:
                break
        connection.transport.close()

    await asyncio.gather(*(client(number) for number in range(clients)))
    load.seconds = time.perf_counter() - began
    return load


class Target:
    """A running service."""

    def __init__(self, url: str, key: str = "") -> None:
        parts = urllib.parse.urlsplit(url)
        self.url, self.host, self.port = url.rstrip("/"), parts.hostname or "127.0.0.1", parts.port or 80
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.ids = sorted({item["item_id"] for letter in "abcdefghijklmnoprstuw" for item in self._items(letter)})
        if len(self.ids) < 2:
            raise SystemExit(f"error: {url} knows no items")
        draw = random.Random(0)
        self.requests = [self._request(draw.choices(self.ids, k=draw.randint(3, 15))) for _ in range(2000)]

    def get(self, path: str) -> bytes:
        request = urllib.request.Request(self.url + path, headers=self.headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return bytes(answer.read())
        except OSError as error:
            raise SystemExit(f"error: {self.url}{path} does not answer: {error}") from error

    def _items(self, word: str) -> list[dict[str, Any]]:
        return list(json.loads(self.get(f"/v1/items?limit=100&q={word}"))["items"])

    def _request(self, history: list[str]) -> bytes:
        body = json.dumps({"history": history, "k": 10}).encode()
        lines = [
            "POST /v1/recommend HTTP/1.1",
            f"Host: {self.host}:{self.port}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            *(f"{name}: {value}" for name, value in self.headers.items()),
        ]
        return "\r\n".join([*lines, "", ""]).encode() + body

    def figure(self, name: str) -> float:
        """A figure of /metrics; 0 where the system does not give it."""
        found = re.search(rf"^{name} (\S+)$", self.get("/metrics").decode(), re.M)
        return float(found[1]) if found else 0.0

    def under(self, how: Any, *arguments: Any) -> Load:
        """The service under a load."""
        before = self.figure("process_cpu_seconds_total")
        load: Load = asyncio.run(how(self.host, self.port, self.requests, *arguments))
        load.cpu = self.figure("process_cpu_seconds_total") - before
        return load


def described(name: str, load: Load) -> str:
    """A load in one line."""
    places = ", ".join(f"p{100 * share:g} {load.percentile(share):.2f}" for share in (0.5, 0.9, 0.99, 0.999))
    cost = 1000 * load.cpu / max(1, len(load.latency))
    late = f", sent {lateness(load):.2f} ms late" if load.late else ""
    return (
        f"{name}: {load.rate:,.0f} answers/s, {places} ms, slowest {load.percentile(1):.1f} ms, {load.failed} failed, "
        f"{cost:.2f} ms of processor time each{late}"
    )


def lateness(load: Load) -> float:
    """The middle one of the milliseconds by which requests were sent after they were due."""
    return 1000 * sorted(load.late)[len(load.late) // 2]


# ---- as a stage of the benchmark --------------------------------------------------------------------------------
def start(folder: Path) -> tuple[subprocess.Popen[str], str]:
    """A service of Beauty's size, and its address."""
    from harness import beauty

    from llmd4rec.estimators import Distillation
    from llmd4rec.export.write import export_run

    data = beauty()
    data.save(folder / "data")
    # What the numbers of the network are makes no difference to how long it takes: one epoch will do.
    settings = {"rounds": 0, "model": {"item_features": "id"}, "training": {"model": {"epochs": 1}}}
    run = Distillation(**settings).fit(type(data).load(folder / "data"), folder / "run")
    export_run(run, run.load_data(), folder / "export", "undistilled")
    command = ["from llmd4rec.cli import main; main()", "serve", str(folder / "export"), "--port", "0"]
    with (folder / "log").open("w") as log:
        service = subprocess.Popen([sys.executable, "-c", *command], stdout=subprocess.PIPE, stderr=log, text=True)
    assert service.stdout is not None
    for line in service.stdout:
        if found := re.search(r"http://\S+", line):
            return service, found[0]
    raise SystemExit((folder / "log").read_text())


def stage() -> None:
    """Starts a service, loads it, reports."""
    from harness import Figure, report

    with tempfile.TemporaryDirectory() as temporary:
        service, url = start(Path(temporary))
        try:
            target = Target(url)
            target.under(at_once, CLIENTS, 2.0)
            steady = target.under(steadily, RATE, SECONDS)
            more = target.under(steadily, MORE, SECONDS)
            most = target.under(at_once, CLIENTS, SECONDS)
            memory = target.figure("process_resident_memory_bytes") / 1e6
        finally:
            service.terminate()
            service.wait(30)
    for name, load in (("steady", steady), ("more", more), ("most", most)):
        print(described(name, load), file=sys.stderr)
    p50, p99 = steady.percentile(0.5), steady.percentile(0.99)
    figures = [
        Figure(f"p50 at {RATE:g} requests/s", p50, "ms", "under 2 ms", p50 < 2),
        Figure(f"p99 at {RATE:g} requests/s", p99, "ms", "under 10 ms", p99 < 10),
        Figure(
            f"answers/s when {MORE:,.0f} are asked for", more.rate, "/s", "at least 1,500",
            more.failed == 0 and more.rate > 0.97 * MORE,
            f"p50 {more.percentile(0.5):.1f} ms, p99 {more.percentile(0.99):.1f} ms",
        ),
        Figure(f"most answers/s, {CLIENTS} clients", most.rate, "/s", note=f"p50 {most.percentile(0.5):.0f} ms"),
        Figure("processor time of an answer, one by one", 1000 * steady.cpu / len(steady.latency), "ms"),
        Figure("processor time of an answer, in batches", 1000 * most.cpu / len(most.latency), "ms"),
        Figure("memory of the service", memory, "MB"),
    ]  # fmt: skip
    report(
        "serve_http",
        "The service over HTTP (12,101 items, histories of 3 to 15 items, the ten best)",
        figures,
        [
            "One process, a log line for every request, latency as the client sees it. The load generator runs on the "
            "same cores as the service and takes its part of them.",
            f"Requests were sent {lateness(steady):.2f} ms after they were due (median).",
        ],
    )


def main() -> None:
    """Loads a running service, or runs the stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="address of a running service")
    parser.add_argument("--key", default=os.environ.get("LLMD4REC_API_KEY", ""), help="its API key, if it asks for one")
    parser.add_argument("--rate", type=float, default=RATE, help="requests a second (default: %(default)g)")
    parser.add_argument("--clients", type=int, default=CLIENTS, help="clients of the last part (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each part (default: %(default)g)")
    arguments = parser.parse_args()
    if arguments.url is None:
        stage()
        return
    target = Target(arguments.url, arguments.key)
    target.under(at_once, 4, 1.0)  # to warm up
    print(described(f"{arguments.rate:g} requests/s", target.under(steadily, arguments.rate, arguments.seconds)))
    print(described(f"{arguments.clients} clients", target.under(at_once, arguments.clients, arguments.seconds)))


if __name__ == "__main__":
    main()
