"""Overload, slow clients and damaged requests: what strangers' connections may not do to others."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmd4rec.server.connections import MAX_CONNECTIONS, MAX_HEAD_BYTES

from . import shop
from .shop import answered, figures, head, running

BODY = b'{"history": ["plain"]}'
GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def guarded(models: Path) -> Iterator[shop.Process]:
    """A service with short deadlines."""
    with running(
        models / "bare", "--timeout", 1.5, "--keep-alive", 1.5, "--concurrency", 4, "--max-history", 20, "--max-k", 20
    ) as process:
        yield process


@pytest.fixture(scope="module")
def patient(models: Path) -> Iterator[shop.Process]:
    """A service that waits long, for bodies of up to 8 MB."""
    with running(models / "bare", "--timeout", 60, "--max-body", 8 << 20) as process:
        yield process


def read_to_the_end(connection: socket.socket) -> bytes:
    """Everything that still comes."""
    parts = []
    while True:
        try:
            part = connection.recv(1 << 20)
        except ConnectionResetError:
            break
        if not part:
            break
        parts.append(part)
    return b"".join(parts)


# ---- overload ---------------------------------------------------------------------------------------------------
def test_new_connections_are_taken_under_overload(models: Path) -> None:
    """Counts the answers that others get before so many new connections have theirs: time depends on the machine."""
    clients, new = 256, 24

    async def count(host: str, port: int) -> tuple[int, Counter[bytes]]:
        statuses: Counter[bytes] = Counter()
        stop = asyncio.Event()

        async def ask(request: bytes, once: bool) -> None:
            reader, writer = await asyncio.open_connection(host, port)
            while not stop.is_set():
                writer.write(request)
                lines = await reader.readuntil(b"\r\n\r\n")
                length = int(lines.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
                await reader.readexactly(length)
                statuses[(b"new " if once else b"") + lines[9:12]] += 1
                if once:
                    break
            writer.close()

        pounding = [asyncio.create_task(ask(head(len(BODY)) + BODY, False)) for _ in range(clients)]
        while sum(statuses.values()) < 2 * clients:
            await asyncio.sleep(0.01)
        before = sum(statuses.values())
        await asyncio.gather(*(ask(GET, True) for _ in range(new)))
        after = sum(statuses.values())
        stop.set()
        await asyncio.gather(*pounding)
        return after - before - new, statuses

    with running(models / "bare", "--concurrency", 64, "--no-access-log") as process:
        others, statuses = asyncio.run(count("127.0.0.1", int(process.client.port or 0)))
        assert statuses[b"new 200"] == new
        assert set(statuses) == {b"new 200", b"200", b"503"}
        assert others < clients * new / 4


# ---- slow senders -----------------------------------------------------------------------------------------------
def test_half_sent_bodies_take_no_place_of_others(guarded: shop.Process) -> None:
    slow = [guarded.client.connect() for _ in range(20)]  # five times what is answered at once
    for connection in slow:
        connection.sendall(head(50) + b"{")
    time.sleep(0.2)
    assert {guarded.client.post("/v1/recommend", {"history": ["plain"]}).status for _ in range(5)} == {200}
    for connection in slow:
        reply = answered(connection)
        assert (reply.status, reply.error["code"]) == (408, "body_timeout")
        connection.close()


@pytest.mark.parametrize("sent", [b"", head(50)[:-10], head(50) + b"{"], ids=["nothing", "half a head", "half a body"])
def test_a_full_house_makes_room_for_a_newcomer(patient: shop.Process, sent: bytes) -> None:
    idle = [patient.client.connect() for _ in range(MAX_CONNECTIONS)]
    try:
        for connection in idle:
            connection.sendall(sent)
        for _ in range(5):
            assert patient.client.post("/v1/recommend", {"history": ["plain"]}).status == 200
        idle[0].settimeout(5)
        assert read_to_the_end(idle[0]) == b""  # the one that had waited for longest
        idle[-1].setblocking(False)
        with pytest.raises(BlockingIOError):
            idle[-1].recv(1)
    finally:
        for connection in idle:
            connection.close()


def test_memory_of_half_sent_bodies_is_bounded(patient: shop.Process) -> None:
    connections = [patient.client.connect() for _ in range(16)]
    for connection in connections:
        connection.sendall(head(8 << 20) + bytes((8 << 20) - 1000))
    reply = answered(connections[0])
    assert (reply.status, reply.error["code"]) == (408, "body_too_slow")
    assert patient.client.post("/v1/recommend", {"history": ["plain"]}).status == 200
    assert figures(patient.client)["process_resident_memory_bytes",] < 600e6
    for connection in connections:
        connection.close()


def test_a_blank_line_does_not_keep_a_connection(guarded: shop.Process) -> None:
    with guarded.client.connect() as connection:
        connection.sendall(GET)
        assert answered(connection).status == 200
        began = time.monotonic()
        connection.settimeout(0.2)
        while time.monotonic() < began + 10:
            try:
                connection.sendall(b"\r\n")
                if connection.recv(10) == b"":
                    return
            except TimeoutError:
                continue
            except OSError:
                return
        raise AssertionError("it is still open")


def test_a_rest_of_a_refused_body_does_not_keep_a_connection(guarded: shop.Process) -> None:
    with guarded.client.connect() as connection:
        connection.sendall(head(10**6).replace(b"POST /v1/recommend", b"GET /healthz"))
        assert answered(connection).status == 200
        began = time.monotonic()
        while time.monotonic() < began + 10:
            try:
                connection.sendall(b"x")
            except OSError:
                return
            time.sleep(0.1)
        raise AssertionError("it is still open")


# ---- slow readers -----------------------------------------------------------------------------------------------
def unread(client: shop.Client) -> tuple[socket.socket, int]:
    """A connection that has asked for more than buffers hold, and reads nothing; and how many answers it is due."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(20)
    connection.connect((str(client.host), int(client.port or 0)))
    body = json.dumps({"requests": [{"history": ["plain"], "k": 20}] * 256}).encode()
    request = head(len(body)).replace(b"recommend", b"recommend/batch") + body
    for _ in range(12):
        connection.sendall(request)
    return connection, 12


def test_an_answer_that_is_not_read_is_given_up(guarded: shop.Process) -> None:
    connection, due = unread(guarded.client)
    time.sleep(4.5)
    assert read_to_the_end(connection).count(b"HTTP/1.1 200 OK") < due
    connection.close()
    assert guarded.client.post("/v1/recommend", {"history": ["plain"]}).status == 200


def test_an_answer_that_is_not_read_does_not_hold_up_the_end(models: Path) -> None:
    with running(models / "bare", "--timeout", 1) as process:
        connection, _ = unread(process.client)
        time.sleep(1.0)
        assert process.stop() == 0
        connection.close()


# ---- unusual requests -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("together", [True, False])
def test_an_upgrade_that_is_not_supported_is_ignored(guarded: shop.Process, together: bool) -> None:
    lines = (
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAA\r\n"
    )
    request = head(len(BODY))[:-2] + lines + b"\r\n"
    with guarded.client.connect() as connection:
        if together:
            connection.sendall((request + BODY) * 3)
        else:
            for part in (request, BODY[:5], BODY[5:] + request[:40], request[40:] + BODY, request, BODY):
                connection.sendall(part)
                time.sleep(0.05)
        connection.sendall(GET.replace(b"Host", b"Connection: close\r\nHost"))
        answers = read_to_the_end(connection)
    assert answers.count(b"HTTP/1.1 200 OK") == answers.count(b"HTTP/") == 4
    assert answers.count(b'"num_candidates"') == 3


def test_who_has_closed_the_sending_side_is_answered(guarded: shop.Process) -> None:
    with guarded.client.connect() as connection:
        connection.sendall(head(len(BODY)) + BODY)
        connection.shutdown(socket.SHUT_WR)
        assert answered(connection).status == 200
        assert connection.recv(10) == b""


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org\r\n\r\n", 405),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (head(5)[:-2] + b"Content-Length: 6\r\n\r\n" + BODY, 400),
        (head(5)[:-2] + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 2 * MAX_HEAD_BYTES, 431),
        (b"GET /" + b"a" * 2 * MAX_HEAD_BYTES, 431),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + b"A: b\r\n" * MAX_HEAD_BYTES, 431),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.0\r\n\r\n", 200),
        (GET.replace(b"Host", b"Connection: close\r\nHost"), 200),
    ],
)
def test_unusual_heads(guarded: shop.Process, sent: bytes, status: int) -> None:
    with guarded.client.connect() as connection:
        connection.sendall(sent)
        assert answered(connection).status == status
        assert read_to_the_end(connection) == b""
    assert guarded.client.get("/healthz").status == 200


@pytest.mark.parametrize("part", [b"1\r\n{\r\n", b"1;name=value\r\n{\r\n"], ids=["chunks", "with names"])
def test_a_chunked_body_without_end_is_refused(guarded: shop.Process, part: bytes) -> None:
    with guarded.client.connect() as connection:
        connection.sendall(head(1).replace(b"Content-Length: 1", b"Transfer-Encoding: chunked"))
        for _ in range(100):
            try:
                connection.sendall(part)
            except OSError:
                break
            time.sleep(0.05)
        reply = answered(connection)
        assert (reply.status, reply.error["code"]) == (408, "body_timeout")


def test_headers_after_a_body_mean_nothing(guarded: shop.Process) -> None:
    chunked = head(1).replace(b"Content-Length: 1", b"Transfer-Encoding: chunked")
    body = b"%x\r\n%s\r\n0\r\nX-Request-ID: from-behind\r\nHost: other\r\n\r\n" % (len(BODY), BODY)
    with guarded.client.connect() as connection:
        connection.sendall(chunked + body)
        reply = answered(connection)
        assert (reply.status, reply.headers["x-request-id"] == "from-behind") == (200, False)


def test_pipelined_requests_are_answered_in_order(guarded: shop.Process) -> None:
    with guarded.client.connect() as connection:
        connection.sendall(b"".join(GET.replace(b"Host", b"X-Request-ID: n%d\r\nHost" % n) for n in range(200)))
        connection.sendall(GET.replace(b"Host", b"Connection: close\r\nHost"))
        answers = read_to_the_end(connection)
        assert re.findall(rb"x-request-id: n(\d+)\r\n", answers) == [b"%d" % n for n in range(200)]
        assert answers.count(b'{"status":"ok"}') == 201


def test_a_client_that_asks_whether_to_go_on_is_told(guarded: shop.Process) -> None:
    with guarded.client.connect() as connection:
        connection.sendall(head(len(BODY))[:-2] + b"Expect: 100-continue\r\n\r\n")
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(BODY)
        assert answered(connection).status == 200


# ---- reasons ----------------------------------------------------------------------------------------------------
def test_reasons_hold_nobody_else_up(models: Path) -> None:
    with running(models / "bare", "--timeout", 60) as process:
        one = {"history": shop.IDS * 8, "explain": True}
        body = json.dumps({"requests": [one] * 256}).encode()
        asking = [process.client.connect() for _ in range(8)]
        for connection in asking:
            connection.sendall(head(len(body)).replace(b"recommend", b"recommend/batch") + body)
        ordinary = {process.client.post("/v1/recommend", {"history": ["plain"]}).status for _ in range(20)}
        replies = [answered(connection) for connection in asking]
        for connection in asking:
            connection.close()
    assert ordinary == {200}
    assert Counter(reply.status for reply in replies).keys() == {200, 503}
    assert {reply.headers["retry-after"] for reply in replies if reply.status == 503} == {"1"}
