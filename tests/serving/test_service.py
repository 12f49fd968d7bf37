"""The service as its clients see it: a real process, real connections."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from prometheus_client.parser import text_string_to_metric_families
from shop import IDS, ITEMS, Client, answered, command, head, running
from typer.testing import CliRunner

from llmd4rec.cli import app
from llmd4rec.inference.engine import Engine
from llmd4rec.inference.types import Filters

KEY = "a-key-of-twenty-three-x"


@pytest.fixture(scope="module")
def process(models):
    with running(
        models / "both", "--allow-changes", "--models", models, "--max-k", 50, "--max-history", 100, "--max-batch", 8
    ) as process:
        yield process


@pytest.fixture(scope="module")
def client(process) -> Client:
    return process.client


@pytest.fixture(scope="module")
def engine(models) -> Engine:
    return Engine.load(models / "both", threads=1)


def figures(client: Client) -> dict[tuple[Any, ...], float]:
    """All figures of /metrics, by name and labels."""
    reply = client.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain")
    families = text_string_to_metric_families(reply.content.decode())
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value for family in families for sample in family.samples
    }


# ---- answers ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "history",
    [["plain"], ["über", "🎬"], ["5", "5", "5"], [*IDS, *IDS], ["no such", "with/slash", "no other"]],
)
@pytest.mark.parametrize("model", ["served", "before"])
def test_the_service_answers_as_the_engine_does(client, engine, history, model):
    answering = engine if model == "served" else engine.before
    expected = answering.recommend(history, k=5, seen="keep", explain=True)
    body = {"history": history, "k": 5, "seen": "keep", "explain": True, "model": model}
    reply = client.post("/v1/recommend", body)
    assert reply.status == 200
    answer = reply.json
    assert [item["item_id"] for item in answer["items"]] == [item.item_id for item in expected.items]
    for item, scored in zip(answer["items"], expected.items, strict=True):
        assert item["score"] == pytest.approx(scored.score, abs=1e-4)
        assert item["title"] == ITEMS[item["item_id"]]
        assert [r["item_id"] for r in item["because"]] == [r.item_id for r in scored.because]
    assert answer["unknown"] == list(expected.unknown)
    assert answer["considered"] == expected.considered == len(IDS)
    assert answer["model"] == engine.info.fingerprint


def test_the_two_models_differ(client):
    served, before = (
        client.post("/v1/recommend", {"history": ["plain"], "model": model}).json["items"]
        for model in ("served", "before")
    )
    assert [item["score"] for item in served] != [item["score"] for item in before]


def test_a_batch_gives_what_single_requests_give(client):
    requests = [{"history": [one], "k": 3, "explain": place % 2 == 0} for place, one in enumerate(IDS[:8])]
    answers = client.post("/v1/recommend/batch", {"requests": requests}).json["answers"]
    for request, answer in zip(requests, answers, strict=True):
        single = client.post("/v1/recommend", request).json
        assert [item["item_id"] for item in answer["items"]] == [item["item_id"] for item in single["items"]]
        for ours, theirs in zip(answer["items"], single["items"], strict=True):
            assert ours["score"] == pytest.approx(theirs["score"], abs=1e-5)


def test_settings_of_a_request_reach_the_engine(client, engine):
    def ids(**more: Any) -> list[str]:
        return [
            item["item_id"] for item in client.post("/v1/recommend", {"history": ["5"], "k": 50, **more}).json["items"]
        ]

    assert "5" not in ids()
    assert "5" in ids(seen="keep")
    assert "null" not in ids(exclude=["null"])
    assert set(ids(filters={"where": {"brand": ["öko", "Plain"]}, "between": {"price": {"min": 3, "max": 8}}})) == {
        item.item_id
        for item in engine.recommend(
            ["5"], 50, filters=Filters(any_of={"brand": ["Öko", "Plain"]}, at_least={"price": 3}, at_most={"price": 8})
        ).items
    }
    assert set(ids(filters={"allow": ["plain", "über"], "deny": ["über"]})) == {"plain"}
    assert ids(diversity=0.9) == [item.item_id for item in engine.recommend(["5"], 50, diversity=0.9).items]
    popular = client.post("/v1/recommend", {"history": ["?"], "popular_in": {"brand": "Plain"}, "k": 50}).json
    assert popular["fallback"] == "popular"
    assert {item["fields"]["brand"] for item in popular["items"]} == {"Plain"}


def test_long_texts_come_only_when_asked_for(client):
    default = client.post("/v1/recommend", {"history": ["5"], "k": 1}).json["items"][0]["fields"]
    assert default.keys() == {"brand", "price", "year"}
    asked = client.post("/v1/recommend", {"history": ["5"], "k": 1, "fields": ["blurb", "title"]}).json
    assert asked["items"][0]["fields"].keys() == {"blurb"}


def test_similar_and_items(client, engine):
    for item_id, title in ITEMS.items():
        reply = client.get(f"/v1/items/{quote(item_id, safe='')}")
        assert (reply.status, reply.json["title"]) == (200, title)
        found = client.post("/v1/similar", {"item_id": item_id, "k": 4}).json["items"]
        assert [item["item_id"] for item in found] == [item.item_id for item in engine.similar(item_id, 4).items]
    soap = client.get("/v1/items?q=" + quote("SOAP") + "&limit=3").json["items"]
    assert [item["item_id"] for item in soap] == [item.item_id for item in engine.search("soap", 3)]
    assert len(soap) == 3
    assert client.get("/v1/items").json["items"][0]["title"] in ITEMS.values()
    ids = ["🎬", "no such", "plain", "🎬"]
    assert [i["item_id"] for i in client.post("/v1/items/lookup", {"ids": ids}).json["items"]] == ["🎬", "plain", "🎬"]
    assert client.post("/v1/similar", {"item_id": "no such"}).error["field"] == "item_id"
    assert client.get("/v1/items/no such".replace(" ", "%20")).error["code"] == "no_item"


def test_what_is_served_is_said(client, engine):
    models = client.get("/v1/models").json
    served = models["served"]
    assert (served["name"], served["stage"], served["before"]) == ("both", "distilled", True)
    assert served["digest"] == engine.info.fingerprint
    assert models["available"] == ["bare", "both"]
    assert models["limits"]["max_k"] == 50
    fields = {field["name"]: field for field in served["fields"]}
    assert fields["brand"]["kind"] == "category"
    assert sorted(fields["brand"]["values"]) == sorted(["<b>Bold</b>", "Plain", "Öko"])
    assert (fields["price"]["kind"], fields["price"]["min"], fields["price"]["max"]) == ("number", 0, 11)
    examples = client.get("/v1/examples").json["examples"]
    assert len(examples) == 4
    for example in examples:
        # In this log everybody walks up the catalogue.
        places = [IDS.index(item["item_id"]) for item in (*example["history"], example["next"])]
        assert all((second - first) % len(IDS) == 1 for first, second in pairwise(places))


# ---- bad requests -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        (b"{", 400, None),
        (b"", 400, None),
        (b"\xff\xfe", 400, None),
        (b'{"history": ["\\ud800"]}', 400, None),
        (b"[1, 2]", 422, "body"),
        (b"null", 422, "body"),
        (b"{}", 422, "history"),
        (b'{"history": "plain"}', 422, "history"),
        (b'{"history": [5]}', 422, "history[0]"),
        (b'{"history": ["plain", null]}', 422, "history[1]"),
        (b'{"history": ["plain", ""]}', 422, "history[1]"),
        (b'{"history": ["plain"], "k": "10"}', 422, "k"),
        (b'{"history": ["plain"], "k": true}', 422, "k"),
        (b'{"history": ["plain"], "k": 2.5}', 422, "k"),
        (b'{"history": ["plain"], "k": 0}', 422, "k"),
        (b'{"history": ["plain"], "k": -1}', 422, "k"),
        (b'{"history": ["plain"], "k": 51}', 422, "k"),
        (b'{"history": ["plain"], "k": 1e400}', 422, "k"),
        (b'{"history": ["plain"], "k": ' + b"9" * 400 + b"}", 422, "k"),
        (b'{"history": ["plain"], "diversity": NaN}', 422, "diversity"),
        (b'{"history": ["plain"], "diversity": Infinity}', 422, "diversity"),
        (b'{"history": ["plain"], "diversity": 1.5}', 422, "diversity"),
        (b'{"history": ["plain"], "seen": "maybe"}', 422, "seen"),
        (b'{"history": ["plain"], "model": "gpt"}', 422, "model"),
        (b'{"history": ["plain"], "user": "u1"}', 422, "user"),
        (b'{"history": ["plain"], "filters": {"where": {"brand": null}}}', 422, "filters.where.brand"),
        (b'{"history": ["plain"], "filters": {"where": {"brand": {}}}}', 422, "filters.where.brand"),
        (b'{"history": ["plain"], "filters": {"where": {"brand": [null]}}}', 422, "filters.where.brand[0]"),
        (b'{"history": ["plain"], "filters": {"between": {"price": {"min": 2, "max": 1}}}}', 422, None),
        (b'{"history": ["plain"], "fields": ["brand", "nope"]}', 422, "fields[1]"),
        (b'{"history": ["plain"], "filters": {"where": {"brand": [{}]}}}', 422, "filters.where.brand[0]"),
        (b'{"history": ["plain"], "filters": {"where": {"brand": []}}}', 422, "filters.where.brand"),
        (b'{"history": ["plain"], "filters": {"between": {"price": {"min": "1"}}}}', 422, "filters.between.price.min"),
        (b'{"history": ["plain"], "filters": {"between": {"price": {"min": NaN}}}}', 422, "filters.between.price.min"),
        (b'{"history": ' + b"[" * 5000 + b"]" * 5000 + b"}", 400, None),
        (json.dumps({"history": ["plain"] * 101}).encode(), 422, "history"),
        (json.dumps({"history": ["plain"] * 10_000}).encode(), 422, "history"),
        (json.dumps({"history": ["a" * 513]}).encode(), 422, "history[0]"),
    ],
)
def test_a_bad_request_is_told_what_is_wrong(client, body, status, field):
    reply = client.send("POST", "/v1/recommend", raw=body)
    assert (reply.status, reply.error.get("field")) == (status, field)


def test_a_filter_that_fits_no_field_names_those_there_are(client):
    for filters, said in (
        ({"where": {"colour": ["red"]}}, "colour"),
        ({"between": {"brand": {"min": 1}}}, "brand"),
    ):
        reply = client.post("/v1/recommend", {"history": ["plain"], "filters": filters})
        assert reply.status == 422
        assert said in reply.error["message"]
    assert (
        "brand" in client.post("/v1/recommend", {"history": ["5"], "filters": {"where": {"x": ["1"]}}}).error["remedy"]
    )


def test_one_value_is_a_list_of_one(client):
    def found(wanted):
        reply = client.post("/v1/recommend", {"history": ["5"], "filters": {"where": wanted}, "k": 50})
        assert reply.status == 200, reply.content
        return [item["item_id"] for item in reply.json["items"]]

    assert found({"brand": "plain", "price": 3}) == found({"brand": ["plain"], "price": [3]}) == [IDS[3]]
    assert found({"brand": True}) == []
    said = client.post("/v1/recommend", {"history": ["5"], "filters": {"where": {"brand": None}}}).error["message"]
    assert said.startswith("null is no value")


def test_in_a_batch_the_error_names_the_request(client):
    good, bad = {"history": ["plain"]}, {"history": ["plain"], "filters": {"where": {"x": ["1"]}}}
    assert client.post("/v1/recommend/batch", {"requests": [good, bad]}).error["field"] == "requests[1]"
    assert client.post("/v1/recommend/batch", {"requests": [good, {**good, "k": 99}]}).error["field"] == "requests[1].k"
    unknown = client.post("/v1/recommend/batch", {"requests": [good, {**good, "fields": ["x"]}]})
    assert unknown.error["field"] == "requests[1].fields[0]"
    assert client.post("/v1/recommend/batch", {"requests": [good] * 9}).error["field"] == "requests"
    assert client.post("/v1/recommend/batch", {"requests": []}).error["field"] == "requests"
    assert client.post("/v1/recommend/batch", {"requests": [good, bad, good]}).status == 422
    assert client.post("/v1/recommend/batch", {"requests": [good] * 8}).status == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/no/such/path", 404),
        ("GET", "/explorer/../settings.py", 404),
        ("GET", "/explorer/%2e%2e/settings.py", 404),
        ("GET", "/docs", 404),
        ("GET", "/v1/recommend", 405),
        ("OPTIONS", "/v1/recommend", 405),
        ("DELETE", "/healthz", 405),
        ("BREW", "/healthz", 400),
        ("GET", "/v1/items?limit=0", 422),
        ("GET", "/v1/items?limit=x", 422),
        ("GET", "/v1/items?q=" + "a" * 201, 422),
        ("GET", "/v1/items/" + "a" * 513, 422),
    ],
)
def test_what_is_not_there(client, method, path, status):
    reply = client.send(method, path)
    assert reply.status == status
    assert reply.error["message"]
    assert status != 405 or reply.headers["allow"]


def test_head_is_get_without_a_body(client):
    for path in ("/healthz", "/", "/v1/models"):
        whole, head = client.get(path), client.send("HEAD", path)
        assert (head.status, head.content) == (200, b"")
        assert head.headers["content-length"] == str(len(whole.content))


def test_what_is_no_http_is_told_so(client):
    with client.connect() as connection:
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        reply = answered(connection)
    assert (reply.status, reply.error["code"]) == (400, "no_http")
    assert client.get("/healthz").status == 200


def test_headers_without_end_are_refused(client):
    with client.connect() as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n")
        for _ in range(5):
            connection.sendall(b"X-Filler: " + b"a" * 8000 + b"\r\n")
            time.sleep(0.02)
        assert answered(connection).status == 431
    assert client.get("/healthz").status == 200


def test_a_body_that_is_not_declared_as_json_is_refused(client):
    """A page of another site may send such a body without asking the browser's permission first."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        reply = client.post("/v1/items/remove", {"ids": ["plain"]}, headers={"Content-Type": kind})
        assert (reply.status, reply.error["code"]) == (415, "no_json")
    assert client.get("/v1/items/plain").status == 200
    kind = "application/json; charset=utf-8"
    assert client.post("/v1/recommend", {"history": []}, headers={"Content-Type": kind}).status == 200


def test_a_request_to_another_name_is_refused(client):
    """A page of another site can point its own name at 127.0.0.1, and would then be of the same origin."""
    for host in ("evil.example", "evil.example:8000", "localhost.evil.example", ""):
        assert client.get("/v1/models", headers={"Host": host}).status == 421
        assert client.get("/", headers={"Host": host}).status == 421
    for host in ("localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000"):
        assert client.get("/v1/models", headers={"Host": host}).status == 200


def test_what_browsers_are_told(client):
    for path in ("/", "/v1/models", "/no/such"):
        headers = client.get(path, headers={"Origin": "https://evil.example"}).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in headers
        assert "server" not in headers
    page = client.get("/")
    assert client.get("/", headers={"If-None-Match": page.headers["etag"]}).status == 304
    assert client.get("/v1/models").headers["cache-control"] == "no-store"


def test_a_request_id_is_kept_or_made(client):
    assert client.get("/healthz", headers={"X-Request-Id": "abc-1.2_3"}).headers["x-request-id"] == "abc-1.2_3"
    for bad in ("a b", "x" * 65, "<script>", "é"):
        made = client.get("/healthz", headers={"X-Request-Id": bad}).headers["x-request-id"]
        assert made != bad
        assert made.isascii()
    first, second = (client.get("/no").error["request_id"] for _ in range(2))
    assert first != second


# ---- limits -----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def strict(models):
    """A service with small limits."""
    with running(models / "bare", "--allow-changes", "--max-body", 2048, "--timeout", 2, "--concurrency", 2) as process:
        yield process


@pytest.mark.parametrize("chunked", [False, True])
def test_large_bodies_are_refused(strict, chunked):
    body = json.dumps({"history": ["a" * 100] * 100}).encode()
    sent = iter([body[:500], body[500:]]) if chunked else body
    reply = strict.client.send("POST", "/v1/recommend", raw=sent)
    assert (reply.status, reply.error["code"]) == (413, "too_large")
    small = json.dumps({"history": ["plain"]}).encode()
    reply = strict.client.send("POST", "/v1/recommend", raw=iter([small[:5], small[5:]]) if chunked else small)
    assert reply.status == 200


@pytest.mark.parametrize(
    ("length", "more"),
    [(10**12, b""), (10**30, b""), (3000, b"Expect: 100-continue\r\n")],
    ids=["large", "huge", "asks"],
)
def test_a_body_that_is_announced_as_too_large_is_not_waited_for(strict, length, more):
    with strict.client.connect() as connection:
        connection.sendall(head(length)[:-2] + more + b"\r\n")
        reply = answered(connection)
        assert (reply.status, reply.error["code"]) in ((413, "too_large"), (400, "no_http"))


def test_slow_senders_are_not_waited_for(strict):
    slow = [
        (b"", "slow_head"),
        (b"POST /v1/rec", "slow_head"),
        (head(50)[:-2], "slow_head"),
        (head(50) + b'{"history":', "slow_body"),
        (head(50).replace(b"recommend", b"items") + b"{", "slow_body"),
    ]
    connections = [strict.client.connect() for _ in slow]
    for connection, (sent, _) in zip(connections, slow, strict=True):
        connection.sendall(sent)
    for connection, (_, code) in zip(connections, slow, strict=True):
        reply = answered(connection)
        assert (reply.status, reply.error["code"]) == (408, code)
        assert connection.recv(10) == b""
        connection.close()


def test_more_than_is_taken_at_once_is_sent_away(strict):
    body = b'{"history": ["plain"]}'
    connections = [strict.client.connect() for _ in range(2)]
    try:
        for connection in connections:
            connection.sendall(head(len(body)))
        time.sleep(0.2)
        refused = strict.client.post("/v1/recommend", {"history": ["plain"]})
        assert (refused.status, refused.error["code"], refused.headers["retry-after"]) == (503, "overloaded", "1")
        assert strict.client.get("/healthz").status == 200
        for connection in connections:
            connection.sendall(body)
            assert answered(connection).status == 200
    finally:
        for connection in connections:
            connection.close()
    assert strict.client.post("/v1/recommend", {"history": ["plain"]}).status == 200
    assert figures(strict.client)["llmd4rec_http_rejected_total", ("reason", "overloaded")] == 1


def test_more_connections_than_are_kept_are_closed(process):
    idle = [process.client.connect() for _ in range(900)]
    try:
        with process.client.connect() as one_more:
            assert one_more.recv(10) == b""
    finally:
        for connection in idle:
            connection.close()
    deadline = time.monotonic() + 10
    while True:  # they are closed one by one
        try:
            assert process.client.get("/healthz").status == 200
            break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_without_the_model_before(strict):
    reply = strict.client.post("/v1/recommend", {"history": ["plain"], "model": "before"})
    assert (reply.status, reply.error["field"]) == (404, "model")
    assert strict.client.get("/v1/models").json["available"] == []
    reply = strict.client.post("/v1/models/swap", {"name": "both"})
    assert (reply.status, reply.error["code"]) == (403, "no_models")


# ---- who may ---------------------------------------------------------------------------------------------------
def test_a_key_is_asked_for(models, tmp_path):
    (tmp_path / "keys").write_text("# old and new\nanother-key-of-some-length\n")
    with running(models / "bare", "--host", "0.0.0.0", "--api-keys", tmp_path / "keys", key=KEY) as process:
        client = process.client
        for path in ("/v1/models", "/metrics", "/v1/items"):
            for headers in ({}, {"X-API-Key": "wrong"}, {"Authorization": "Bearer"}, {"X-API-Key": "é"}):
                reply = client.get(path, headers=headers)
                assert (reply.status, reply.error["code"]) == (401, "no_key")
                assert reply.headers["www-authenticate"] == "Bearer"
            for headers in (
                {"X-API-Key": KEY},
                {"Authorization": f"Bearer {KEY}"},
                {"Authorization": "bearer another-key-of-some-length"},
            ):
                assert client.get(path, headers=headers).status == 200
        assert client.post("/v1/recommend", {"history": []}).status == 401
        for path in ("/healthz", "/readyz", "/openapi.json", "/", "/explorer/explorer.js"):
            assert client.get(path).status == 200
        assert client.get("/openapi.json").json["security"] == [{"key": []}]
        with_key = Client(client.url, {"X-API-Key": KEY})
        assert with_key.post("/v1/items/remove", {"ids": ["plain"]}).json["removed"] == ["plain"]
        assert KEY not in b"".join(process.lines).decode() + process.said


@pytest.mark.parametrize("arguments", [("--host", "0.0.0.0"), ("--allow-host", "shop.example")])
def test_without_a_key_strangers_change_nothing(models, arguments):
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
            assert (reply.status, reply.error["code"]) == (403, "read_only")
        assert client.get("/v1/models").json["may_change"] is False
        assert client.get("/v1/items/plain").status == 200


def test_changes_without_a_key_are_for_this_machine_alone(models):
    arguments = ["serve", str(models / "bare"), "--host", "0.0.0.0", "--allow-changes"]
    result = CliRunner().invoke(app, arguments, env={"LLMD4REC_API_KEY": ""})
    assert result.exit_code == 2
    assert "everybody who reaches 0.0.0.0" in result.stderr


# ---- changes ----------------------------------------------------------------------------------------------------
def test_items_come_and_go(models):
    with running(models / "both", "--allow-changes") as process:
        client = process.client
        new = {"item_id": "new/one", "title": "Brand new soap", "fields": {"brand": "New"}, "vector": [0.3, 0.4]}
        reply = client.post("/v1/items", {"items": [new]})
        assert (reply.status, reply.json) == (200, {"added": ["new/one"], "replaced": [], "items": len(IDS) + 1})
        assert client.get("/v1/items?q=brand+new").json["items"][0]["item_id"] == "new/one"
        for model in ("served", "before"):
            body = {"history": ["new/one"], "model": model, "seen": "keep", "k": 50}
            answer = client.post("/v1/recommend", body).json
            assert answer["unknown"] == []
            assert "new/one" in [item["item_id"] for item in answer["items"]]
        fields = {field["name"]: field for field in client.get("/v1/models").json["served"]["fields"]}
        assert "New" in fields["brand"]["values"]

        removed = client.post("/v1/items/remove", {"ids": ["plain", "no such"]}).json
        assert removed == {"removed": ["plain"], "unknown": ["no such"], "items": len(IDS)}
        answer = client.post("/v1/recommend", {"history": ["plain"], "seen": "keep", "k": 50}).json
        assert answer["unknown"] == []
        assert "plain" not in [item["item_id"] for item in answer["items"]]
        assert client.get("/v1/items/plain").status == 404
        assert figures(client)["llmd4rec_catalogue_items",] == len(IDS)

        # Of what is there, what is given changes: a price alone, a brand that is a word to Python, no title.
        for fields, now in (
            ({"price": "$1,200"}, {"brand": "New", "price": 1200.0, "year": None, "blurb": None}),
            ({"brand": True, "price": None}, {"brand": "true", "price": None, "year": None, "blurb": None}),
            ({"blurb": 2**60 + 1}, {"brand": "true", "price": None, "year": None, "blurb": str(2**60 + 1)}),
        ):
            reply = client.post("/v1/items", {"items": [{"item_id": "new/one", "fields": fields}]})
            assert (reply.status, reply.json["replaced"]) == (200, ["new/one"])
            item = client.get("/v1/items/new/one").json
            assert (item["title"], item["fields"]) == ("Brand new soap", now)
        client.post("/v1/items", {"items": [{"item_id": "5", "title": None}]})
        assert client.get("/v1/items/5").json["title"] == "5"

        for wrong, said in (
            ({**new, "vector": [1.0]}, "vector"),
            ({**new, "vector": [0.0, 0.0]}, "'new/one': its vector is zero"),
            ({**new, "item_id": " "}, "identifier"),
            ({**new, "fields": {"colour": "red"}}, "colour"),
            ({"item_id": "text", "text": "As text"}, "text encoder"),
        ):
            reply = client.post("/v1/items", {"items": [wrong]})
            assert reply.status == 422, reply.content
            assert said in reply.error["message"]
        assert client.post("/v1/items", {"items": [{"item_id": "x", "vector": [1, None]}]}).error["field"] == (
            "items[0].vector[1]"
        )


def test_another_export_is_loaded_without_losing_a_request(models):
    with running(models / "both", "--allow-changes", "--models", models) as process:
        client = process.client
        first = client.get("/v1/models").json["served"]["digest"]
        answers: list[tuple[int, str]] = []
        stop = threading.Event()

        def ask() -> None:
            while not stop.is_set():
                reply = client.post("/v1/recommend", {"history": ["plain", "5"]})
                answers.append((reply.status, reply.json["model"] if reply.status == 200 else reply.content))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for name in ("bare", "both", "bare"):
            reply = client.post("/v1/models/swap", {"name": name})
            assert (reply.status, reply.json["served"]["name"]) == (200, name)
        last = reply.json["served"]["digest"]
        stop.set()
        for thread in threads:
            thread.join()
        assert {status for status, _ in answers} == {200}
        assert {digest for _, digest in answers} == {first, last}
        assert client.post("/v1/recommend", {"history": ["plain"]}).json["model"] == last
        assert figures(client)["llmd4rec_model_swaps_total", ("outcome", "done")] == 3
        assert [labels for name, *labels in figures(client) if name == "llmd4rec_model_info"] == [
            [("digest", last), ("name", "bare"), ("stage", "distilled")]
        ]


def test_only_whole_exports_of_the_models_folder_are_loaded(models, tmp_path):
    root = tmp_path / "models"
    shutil.copytree(models / "bare", tmp_path / "outside")
    for name in ("good", "cut", "altered", "missing", "head"):
        shutil.copytree(models / "bare", root / name)
    with (root / "cut" / "item_table.npy").open("r+b") as file:
        file.truncate(100)
    encoder = bytearray((root / "altered" / "encoder.onnx").read_bytes())
    encoder[1000] ^= 1
    (root / "altered" / "encoder.onnx").write_bytes(encoder)
    (root / "missing" / "catalogue.parquet").unlink()
    (root / "head" / "export.json").write_text("{")
    (root / "empty").mkdir()
    with running(root / "good", "--allow-changes", "--models", root) as process:
        client = process.client
        before = client.get("/v1/models").json["served"]
        files = {
            "cut": "item_table.npy",
            "altered": "encoder.onnx",
            "missing": "catalogue.parquet",
            "head": "export.json",
        }
        for name, file in files.items():
            reply = client.post("/v1/models/swap", {"name": name})
            assert (reply.status, reply.error["code"]) == (422, "damaged_export")
            assert file in reply.error["message"]
            assert str(tmp_path) not in reply.content.decode()
        for name in ("empty", "no such", "none"):
            assert client.post("/v1/models/swap", {"name": name}).status in (404, 422)
        for name in (
            "../outside",
            "..",
            ".",
            "/etc",
            str(tmp_path / "outside"),
            "good/../cut",
            "good\u0000",
            "",
            ".hidden",
        ):
            assert client.post("/v1/models/swap", {"name": name}).error["field"] == "name"
        assert client.get("/v1/models").json["served"] == before
        assert client.post("/v1/recommend", {"history": ["plain"]}).status == 200
        assert figures(client)["llmd4rec_model_swaps_total", ("outcome", "failed")] == 4


# ---- operation --------------------------------------------------------------------------------------------------
def test_metrics_count_what_happened(client):
    before = figures(client)
    for history in (["plain", "no such"], ["no such", "nor this", "🎬"], [], ["nothing known"]):
        client.post("/v1/recommend", {"history": history})
    client.post("/v1/recommend", {"history": ["plain"], "filters": {"allow": []}})
    client.send("POST", "/v1/recommend", raw=b"{")
    client.get("/nowhere/at/all")
    after = figures(client)

    def grown(name: str, **labels: str) -> float:
        key = (name, *sorted(labels.items()))
        return after[key] - before.get(key, 0)

    assert grown("llmd4rec_histories_total") == 5
    assert grown("llmd4rec_history_items_total") == 7
    assert grown("llmd4rec_history_items_unknown_total") == 4
    assert grown("llmd4rec_histories_cold_total") == 2
    assert grown("llmd4rec_answers_empty_total") == 1
    assert grown("llmd4rec_batch_histories_sum") == 5
    assert grown("llmd4rec_http_requests_total", method="POST", route="/v1/recommend", status="200") == 5
    assert grown("llmd4rec_http_requests_total", method="POST", route="/v1/recommend", status="400") == 1
    assert grown("llmd4rec_http_requests_total", method="GET", route="none", status="404") == 1
    assert grown("llmd4rec_http_request_seconds_count", route="/v1/recommend") == 6
    assert after["llmd4rec_http_requests_in_flight",] == 0
    assert after["llmd4rec_errors_total",] == 0


def test_logs_say_nothing_about_people(models):
    with running(models / "both", "--allow-changes") as process:
        client = process.client
        secret = "somebody-quite-special"
        client.post("/v1/recommend", {"history": [secret, "🎬"], "exclude": [secret]})
        wrong = {"history": [secret], "filters": {"where": {secret: [secret]}}}
        client.post("/v1/recommend", wrong)
        client.post("/v1/recommend/batch", {"requests": [wrong, wrong, wrong]})
        client.get(f"/v1/items?q={secret}")
        client.get(f"/v1/items/{secret}")
        client.get(f"/{secret}")
        client.post("/v1/items", {"items": [{"item_id": secret, "vector": [1.0]}]})
        client.send("POST", "/v1/recommend", raw=f'{{"{secret}": '.encode(), headers={"User-Agent": secret})
        with client.connect() as connection:
            connection.sendall(secret.encode() + b" / HTTP/1.1\r\n\r\n")
            connection.recv(1000)
        process.wait_for("request", route="/v1/recommend", status=400)
        assert process.stop() == 0
        text = b"".join(process.lines).decode()
        assert secret not in text
        assert "🎬" not in text
        assert "127.0.0.1" not in text
        requests = [line for line in process.logged() if line["event"] == "request"]
        assert ("POST", "/v1/recommend", 200) in {(line["method"], line["route"], line["status"]) for line in requests}
        assert {line["route"] for line in requests} >= {"/v1/items", "none"}
        assert all(line["ms"] > 0 and line["request_id"] for line in requests)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(models, number):
    with running(models / "bare", "--drain", 1) as process:
        client = process.client
        body = b'{"history": ["plain"]}'
        connection = client.connect()
        connection.sendall(head(len(body)))
        assert client.get("/readyz").status == 200
        process.process.send_signal(number)
        process.wait_for("stopping")
        ready = client.get("/readyz")
        assert (ready.status, ready.error["code"]) == (503, "draining")
        assert client.post("/v1/recommend", {"history": ["plain"]}).status == 200  # still taken
        time.sleep(1.3)  # now nothing new is, but what has begun is finished
        with pytest.raises(OSError):
            client.connect()
        connection.sendall(body)
        assert answered(connection).status == 200
        connection.close()
        assert process.process.wait(10) == 0
        process.wait_for("stopped")


def test_a_port_in_use_is_said(models, process):
    port = process.client.port
    ran = subprocess.run(command(models / "bare", "--port", port), capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith(f"error: port {port} is in use on 127.0.0.1\n")


@pytest.fixture
def refused(monkeypatch):
    """The message of a service that must not start."""

    def started(*_: object) -> None:
        raise AssertionError("it started")

    monkeypatch.setattr("llmd4rec.server.server._serve", started)

    def message(*arguments: object) -> str:
        result = CliRunner().invoke(app, ["serve", *map(str, arguments)], env={"COLUMNS": "250", "TERM": "dumb"})
        assert result.exit_code == 2, result.output
        assert result.stdout == ""
        return result.stderr

    return message


def test_what_cannot_be_served_is_said(refused, models, tmp_path):
    assert "does not exist" in refused(tmp_path / "nothing", "--port", 0)
    assert "is no export folder" in refused(tmp_path, "--port", 0)
    broken = Path(shutil.copytree(models / "bare", tmp_path / "broken"))
    (broken / "counts.npy").write_bytes(b"")
    assert "counts.npy is not the file that was exported" in refused(broken, "--port", 0)
    (broken / "counts.npy").unlink()
    assert "counts.npy is missing" in refused(broken, "--port", 0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "no.such.host.invalid"], "no such address"),
        (["--host", "192.0.2.1"], "no address of this machine"),
        (["--models", "/no/such/folder"], "is no folder"),
        (["--api-keys", "/no/such/file"], "cannot be read"),
        (["--index", "magic"], "magic"),
        (["--port", "70000"], "--port"),
        (["--max-k", "0"], "--max-k"),
    ],
)
def test_options_that_cannot_be(refused, models, arguments, said):
    assert said in refused(models / "bare", "--port", 0, *arguments)


def test_a_weak_key_is_refused(refused, models, tmp_path):
    (tmp_path / "keys").write_text("secret\n")
    assert "shorter than 16" in refused(models / "bare", "--port", 0, "--api-keys", tmp_path / "keys")
    (tmp_path / "keys").write_text("# nothing\n")
    assert "holds no key" in refused(models / "bare", "--port", 0, "--api-keys", tmp_path / "keys")


def test_serving_imports_no_torch():
    code = (
        "import sys; import llmd4rec.server.server, llmd4rec.inference.engine, llmd4rec.cli.serve\n"
        "print(sorted({'torch', 'transformers', 'onnx', 'scipy', 'pandas'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


def test_the_document_says_the_limits(client):
    schemas = client.get("/openapi.json").json["components"]["schemas"]
    assert schemas["RecommendIn"]["properties"]["history"]["maxItems"] == 100
    assert schemas["RecommendIn"]["properties"]["k"]["maximum"] == 50
    assert schemas["BatchIn"]["properties"]["requests"]["maxItems"] == 8
    assert "HTTPValidationError" not in schemas


def test_the_pages_are_plain_and_load_nothing_from_elsewhere(client):
    page = client.get("/").content.decode()
    for path in ("/explorer/explorer.js", "/explorer/explorer.css", "/explorer/icon.svg"):
        reply = client.get(path)
        assert reply.status == 200
        assert path in page
        assert b"://" not in reply.content.replace(b"http://www.w3.org/2000/svg", b"")
        assert hashlib.sha256(reply.content).hexdigest()[:24] in reply.headers["etag"]
    script = client.get("/explorer/explorer.js").content.decode()
    for risky in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert risky not in script
    assert "<script>" not in page
    assert "style=" not in page
