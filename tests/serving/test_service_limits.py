"""The limits of the service, and who has access to it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llmd4rec.cli import app

from . import shop
from .shop import Client, answered, figures, head, running

KEY = "a-key-of-twenty-three-x"


@pytest.fixture(scope="module")
def strict(models: Path) -> Iterator[shop.Process]:
    """A service with small limits."""
    with running(models / "bare", "--allow-changes", "--max-body", 2048, "--timeout", 2, "--concurrency", 2) as process:
        yield process


@pytest.mark.parametrize("chunked", [False, True])
def test_large_bodies_are_refused(strict: shop.Process, chunked: bool) -> None:
    body = json.dumps({"history": ["a" * 100] * 100}).encode()
    sent: Iterator[bytes] | bytes = iter([body[:500], body[500:]]) if chunked else body
    reply = strict.client.send("POST", "/v1/recommend", raw=sent)
    assert (reply.status, reply.error["code"]) == (413, "body_too_large")
    small = json.dumps({"history": ["plain"]}).encode()
    reply = strict.client.send("POST", "/v1/recommend", raw=iter([small[:5], small[5:]]) if chunked else small)
    assert reply.status == 200


@pytest.mark.parametrize(
    ("length", "more"),
    [(10**12, b""), (10**30, b""), (3000, b"Expect: 100-continue\r\n")],
    ids=["large", "huge", "asks"],
)
def test_a_body_that_is_announced_as_too_large_is_not_waited_for(
    strict: shop.Process, length: int, more: bytes
) -> None:
    with strict.client.connect() as connection:
        connection.sendall(head(length)[:-2] + more + b"\r\n")
        reply = answered(connection)
        assert (reply.status, reply.error["code"]) in ((413, "body_too_large"), (400, "invalid_http"))


def test_slow_senders_are_not_waited_for(strict: shop.Process) -> None:
    slow = [
        (b"", "head_timeout"),
        (b"POST /v1/rec", "head_timeout"),
        (head(50)[:-2], "head_timeout"),
        (head(50) + b'{"history":', "body_timeout"),
        (head(50).replace(b"recommend", b"items") + b"{", "body_timeout"),
    ]
    connections = [strict.client.connect() for _ in slow]
    for connection, (sent, _) in zip(connections, slow, strict=True):
        connection.sendall(sent)
    for connection, (_, code) in zip(connections, slow, strict=True):
        reply = answered(connection)
        assert (reply.status, reply.error["code"]) == (408, code)
        assert connection.recv(10) == b""
        connection.close()


def test_more_than_is_taken_at_once_is_sent_away(strict: shop.Process) -> None:
    body = b'{"history": ["plain"]}'
    connections = [strict.client.connect() for _ in range(24)]
    replies: list[shop.Reply] = []
    for _ in range(20):
        for connection in connections:
            connection.sendall(head(len(body)) + body)
        assert strict.client.get("/healthz").status == 200
        replies += [answered(connection) for connection in connections]
        if any(reply.status != 200 for reply in replies):
            break
    for connection in connections:
        connection.close()
    assert {reply.status for reply in replies} == {200, 503}
    refused = next(reply for reply in replies if reply.status == 503)
    assert (refused.error["code"], refused.headers["retry-after"]) == ("overloaded", "1")
    assert strict.client.post("/v1/recommend", {"history": ["plain"]}).status == 200
    assert figures(strict.client)["llmd4rec_http_rejected_total", ("reason", "overloaded")] >= 1


def test_without_the_undistilled_model(strict: shop.Process) -> None:
    reply = strict.client.post("/v1/recommend", {"history": ["plain"], "model": "undistilled"})
    assert (reply.status, reply.error["field"]) == (404, "model")
    assert strict.client.get("/v1/models").json["available"] == []
    reply = strict.client.post("/v1/models/swap", {"name": "both"})
    assert (reply.status, reply.error["code"]) == (403, "swap_disabled")


def test_a_key_is_asked_for(models: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# old and new\nanother-key-of-some-length\n")
    with running(models / "bare", "--host", "0.0.0.0", "--api-keys", tmp_path / "keys", key=KEY) as process:
        client = process.client
        for path in ("/v1/models", "/metrics", "/v1/items"):
            for headers in ({}, {"X-API-Key": "wrong"}, {"Authorization": "Bearer"}, {"X-API-Key": "é"}):
                reply = client.get(path, headers=headers)
                assert (reply.status, reply.error["code"]) == (401, "unauthorized")
                assert reply.headers["www-authenticate"] == "Bearer"
            for headers in (
                {"X-API-Key": KEY},
                {"Authorization": f"Bearer {KEY}"},
                {"Authorization": "bearer another-key-of-some-length"},
            ):
                assert client.get(path, headers=headers).status == 200
        assert client.post("/v1/recommend", {"history": []}).status == 401
        for path in ("/healthz", "/readyz", "/openapi.json", "/", "/explorer/main.js"):
            assert client.get(path).status == 200
        assert client.get("/openapi.json").json["security"] == [{"key": []}]
        with_key = Client(client.url, {"X-API-Key": KEY})
        assert with_key.post("/v1/items/remove", {"ids": ["plain"]}).json["removed"] == ["plain"]
        assert KEY not in b"".join(process.lines).decode() + process.said


@pytest.mark.parametrize("arguments", [("--host", "0.0.0.0"), ("--allow-host", "shop.example")])
def test_without_a_key_strangers_change_nothing(models: Path, arguments: tuple[str, str]) -> None:
    """Also where only this machine reaches it: a proxy here hands on everybody's requests."""
    with running(models / "bare", *arguments, "--models", models) as process:
        client = Client(process.client.url, {"Host": "shop.example"})
        assert "changes are off" in process.said
        for path, body in (
            ("/v1/items/remove", {"ids": ["plain"]}),
            ("/v1/items", {"items": [{"item_id": "new", "title": "New"}]}),
            ("/v1/models/swap", {"name": "both"}),
        ):
            reply = client.post(path, body)
            assert (reply.status, reply.error["code"]) == (403, "changes_disabled")
        assert client.get("/v1/models").json["changes_allowed"] is False
        assert client.get("/v1/items/plain").status == 200


def test_changes_without_a_key_are_for_this_machine_alone(models: Path) -> None:
    arguments = ["serve", str(models / "bare"), "--host", "0.0.0.0", "--allow-changes"]
    result = CliRunner().invoke(app, arguments, env={"LLMD4REC_API_KEY": ""})
    assert result.exit_code == 2
    assert "everybody who reaches 0.0.0.0" in result.stderr
