"""Keys with scopes, revisions of the catalogue, and how the service ends."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmd4rec.server.keys import parse_key
from llmd4rec.server.middleware.keys import scope_of
from llmd4rec.server.settings import ServiceSettings

from . import shop
from .shop import answered, figures, head, running

DEPLOY = Path(__file__).parents[2] / "deploy"
READER, CHANGER, SCRAPER, OWNER = (f"key-of-the-{name}-0123456" for name in ("reader", "changer", "scraper", "owner"))
BODY = b'{"history": ["plain"]}'


# ---- keys -------------------------------------------------------------------------------------------------------
def test_keys_may_do_what_their_scopes_say_and_are_read_again(models: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{READER} read\n{CHANGER} change, read\n{SCRAPER} metrics\n{OWNER}\n")
    with running(models / "bare", "--api-keys", file) as process:
        client = process.client

        def statuses(key: str) -> list[int]:
            given = {"X-API-Key": key}
            return [
                client.post("/v1/recommend", {"history": ["plain"]}, headers=given).status,
                client.post("/v1/items/lookup", {"ids": ["plain"]}, headers=given).status,
                client.get("/v1/models", headers=given).status,
                client.post("/v1/items/remove", {"ids": ["no such"]}, headers=given).status,
                client.post("/v1/models/swap", {"name": "no"}, headers=given).status,
                client.get("/metrics", headers=given).status,
            ]

        assert statuses(READER) == [200, 200, 200, 403, 403, 403]
        assert statuses(CHANGER) == [200, 200, 200, 200, 403, 403]  # no other exports here
        assert statuses(SCRAPER) == [403, 403, 403, 403, 403, 200]
        assert statuses(OWNER) == [200, 200, 200, 200, 403, 200]
        assert statuses("somebody-who-has-no-key") == [401] * 6
        reply = client.post("/v1/items/remove", {"ids": ["plain"]}, headers={"X-API-Key": READER})
        assert (reply.error["code"], "'change'" in reply.error["message"]) == ("key_not_allowed", True)

        file.write_text(f"{READER} metrics\n")
        process.process.send_signal(signal.SIGHUP)
        process.wait_for("keys reloaded")
        assert statuses(READER) == [403, 403, 403, 403, 403, 200]
        assert statuses(OWNER) == [401] * 6

        for wrong in ("", "short", f"{OWNER} everything"):  # those there were stay
            file.write_text(wrong)
            process.process.send_signal(signal.SIGHUP)
            line = process.wait_for("keys not reloaded")
            process.lines.clear()
            assert OWNER not in str(line)
            assert statuses(READER) == [403, 403, 403, 403, 403, 200]


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("POST", "/v1/recommend/batch", "read"),
        ("POST", "/v1/similar", "read"),
        ("HEAD", "/v1/models", "read"),
        ("GET", "/v1/items/some/thing", "read"),
        ("POST", "/v1/events", "change"),
        ("POST", "/v1/items", "change"),
        ("DELETE", "/v1/items/some/thing", "change"),
        ("GET", "/metrics", "metrics"),
    ],
)
def test_what_needs_which_scope(method: str, path: str, scope: str) -> None:
    assert scope_of(method, path) == scope


def test_a_key_is_not_shown() -> None:
    assert OWNER not in repr(parse_key(OWNER))


# ---- revisions --------------------------------------------------------------------------------------------------
def test_every_change_has_a_revision(models: Path) -> None:
    def of(process: shop.Process) -> list[Any]:
        client = process.client

        def now() -> Any:
            return client.post("/v1/recommend", {"history": ["plain"]}).json["revision"]

        found = [now()]
        item = {"item_id": "new", "title": "New", "vector": [0.1, 0.2]}
        for path, body in (
            ("/v1/items", {"items": [item]}),
            ("/v1/items", {"items": [{**item, "title": "Newer"}]}),
            ("/v1/items/remove", {"ids": ["new"]}),
        ):
            found.append(client.post(path, body).json["revision"])
            assert now() == found[-1] == client.get("/v1/models").json["revision"]
        assert figures(client)["llmd4rec_catalogue_changes",] == 3
        assert client.post("/v1/items", {"items": [{"item_id": ""}]}).status == 422
        assert now() == found[-1]
        client.post("/v1/models/swap", {"name": "bare"})
        assert (now(), figures(client)["llmd4rec_catalogue_changes",]) == ("0", 0)
        return found

    options = (models / "bare", "--allow-changes", "--models", models)
    with running(*options) as first, running(*options) as second:
        revisions = of(first)
        assert of(second) == revisions  # the same changes
    assert [revision.partition("-")[0] for revision in revisions] == ["0", "1", "2", "3"]
    assert len(set(revisions)) == 4


# ---- the end ----------------------------------------------------------------------------------------------------
def test_while_it_stops_answers_send_clients_away(models: Path) -> None:
    with running(models / "bare", "--drain", 1.5) as process:
        connections = [process.client.connect() for _ in range(3)]
        for connection in connections:
            connection.sendall(head(len(BODY)) + BODY)
            assert "connection" not in answered(connection).headers
        process.process.send_signal(signal.SIGTERM)
        process.wait_for("stopping")
        for connection, request in zip(
            connections,
            (head(len(BODY)) + BODY, b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n", head(1) + b"{"),
            strict=True,
        ):
            connection.sendall(request)
            assert answered(connection).headers["connection"] == "close"
            assert connection.recv(10) == b""
            connection.close()
        assert process.process.wait(20) == 0


def hanging(root: Path, models: Path) -> Path:
    """A folder with an export that is never read to its end, as of a dead network drive."""
    export = shop.bare(models / "both", root / "stuck")
    (export / "counts.npy").unlink()
    os.mkfifo(export / "counts.npy")
    return root


@pytest.mark.parametrize("again", [True, False])
def test_nothing_holds_up_the_end(models: Path, tmp_path: Path, again: bool) -> None:
    """Neither a change that hangs nor a request that never comes to its end; a second signal does not wait at all."""
    options = ("--drain", 30) if again else ("--stop-timeout", 1)
    with running(
        models / "bare", "--allow-changes", "--models", hanging(tmp_path, models), "--timeout", 60, *options
    ) as process:
        half, swapping = process.client.connect(), process.client.connect()
        half.sendall(head(50))
        body = b'{"name": "stuck"}'
        swapping.sendall(head(len(body)).replace(b"recommend", b"models/swap") + body)
        time.sleep(0.5)
        process.process.send_signal(signal.SIGTERM)
        process.wait_for("stopping")
        if again:
            process.process.send_signal(signal.SIGTERM)
        assert process.process.wait(20) == (128 + signal.SIGTERM if again else 0)
        half.close()
        swapping.close()


def seconds(text: str) -> float:
    return float(re.fullmatch(r"(\d+)s?", text)[1])  # type: ignore[index]


def test_the_end_comes_before_those_that_wait_for_it_lose_patience() -> None:
    stopping = ServiceSettings().stop_timeout
    unit = (DEPLOY / "llmd4rec.service").read_text()
    drain, patience = re.search(r"--drain (\d+)", unit), re.search(r"^TimeoutStopSec=(\S+)$", unit, re.M)
    assert drain
    assert patience
    assert float(drain[1]) + stopping < seconds(patience[1])
    image = re.search(r'"--drain", "(\d+)"', (DEPLOY / "Containerfile").read_text())
    assert image
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    assert float(image[1]) + stopping < seconds(services["recommender"]["stop_grace_period"])


def test_a_port_is_free_again_at_once(models: Path) -> None:
    with running(models / "bare") as process:
        port = int(process.client.port or 0)
        with process.client.connect() as connection:
            connection.sendall(head(len(BODY)) + BODY)
            assert answered(connection).status == 200
            assert process.stop() == 0
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", port))
