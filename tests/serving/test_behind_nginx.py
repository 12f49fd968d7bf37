"""The service behind nginx with the configuration that `deploy/` ships; the real program, where it is installed."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import shop
from .shop import Client, answered, figures, head, running

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
CONF = Path(__file__).parents[2] / "deploy" / "nginx.conf"
BODY = b'{"history": ["plain"]}'


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def service(models: Path) -> Iterator[shop.Process]:
    with running(models / "bare", "--concurrency", 4, "--timeout", 5, "--allow-changes") as process:
        yield process


@pytest.fixture(scope="module")
def proxy(service: shop.Process, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder, port = tmp_path_factory.mktemp("nginx"), free_port()
    text = CONF.read_text()
    for shipped, here in (
        ("server 127.0.0.1:8000;", f"server 127.0.0.1:{service.client.port};"),
        ("listen 80;", f"listen 127.0.0.1:{port};"),
    ):
        assert text.count(shipped) == 1
        text = text.replace(shipped, here)
    kept = "".join(
        f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/pid; error_log {folder}/errors; events {{}}\n"
        f"http {{ access_log off; {kept}\n{text}}}\n"
    )
    assert NGINX
    process = subprocess.Popen([NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf")])
    try:
        client = Client(f"http://127.0.0.1:{port}")
        deadline = time.monotonic() + 10
        while True:
            try:
                assert client.get("/readyz").status == 200
                break
            except OSError:
                assert process.poll() is None, (folder / "errors").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield client
    finally:
        process.terminate()
        process.wait(10)


def test_requests_go_through(proxy: Client, service: shop.Process) -> None:
    reply = proxy.post("/v1/recommend", {"history": ["plain"], "k": 3})
    assert (reply.status, len(reply.json["items"])) == (200, 3)
    assert len(reply.headers["x-request-id"]) == 32  # nginx's, which the log has too
    service.wait_for("request", request_id=reply.headers["x-request-id"])
    assert proxy.post("/v1/recommend", {"history": 5}).error["field"] == "history"
    assert proxy.post("/v1/items/remove", {"ids": ["no such"]}).json["unknown"] == ["no such"]
    assert proxy.get("/metrics").status == 404
    assert proxy.send("POST", "/v1/recommend", raw=b" " * (2 << 20)).status == 413


def test_slow_clients_do_not_reach_the_service(proxy: Client, service: shop.Process) -> None:
    before = figures(service.client)["llmd4rec_http_requests_in_flight",]
    slow = [proxy.connect() for _ in range(50)]
    for connection in slow:
        connection.sendall(head(len(BODY)) + BODY[:1])
    time.sleep(0.3)
    log = len(service.lines)
    assert proxy.post("/v1/recommend", {"history": ["plain"]}).status == 200
    assert figures(service.client)["llmd4rec_http_requests_in_flight",] == before
    for connection in slow:
        connection.sendall(BODY[1:])
        assert answered(connection).status == 200
        connection.close()
    assert len(service.lines) > log


def test_a_client_has_so_many_connections(proxy: Client) -> None:
    asking = [proxy.connect() for _ in range(120)]
    for connection in asking:
        connection.sendall(head(len(BODY)) + BODY[:1])
    time.sleep(0.3)
    statuses = []
    for connection in asking:
        connection.settimeout(0.05)
        try:
            statuses.append(answered(connection).status)
        except TimeoutError:
            statuses.append(0)
        connection.close()
    assert statuses.count(429) == 20


def test_large_answers_are_kept_for_their_client(proxy: Client, service: shop.Process) -> None:
    body = json.dumps({"requests": [{"history": ["plain"]}] * 256}).encode()
    with proxy.connect() as connection:
        connection.sendall(head(len(body)).replace(b"recommend", b"recommend/batch") + body)
        time.sleep(1.0)
        assert proxy.post("/v1/recommend", {"history": ["plain"]}).status == 200
        assert len(answered(connection).json["answers"]) == 256
