"""The service as its clients see it: a real process, real connections."""

from __future__ import annotations

import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from llmd4rec.inference.recommender import Recommender
from llmd4rec.inference.types import Filters

from . import shop
from .by_hand import undistilled_of
from .shop import IDS, ITEMS, answered
from .store import Store


@pytest.fixture(scope="module")
def recommender(models: Path) -> Recommender:
    return Recommender.load(models / "both", threads=1)


@pytest.mark.parametrize(
    "history",
    [["plain"], ["über", "🎬"], ["5", "5", "5"], [*IDS, *IDS], ["no such", "with/slash", "no other"]],
)
@pytest.mark.parametrize("model", ["served", "undistilled"])
def test_the_service_answers_as_the_recommender_does(
    client: shop.Client, recommender: Recommender, history: list[str], model: str
) -> None:
    answering = recommender if model == "served" else undistilled_of(recommender)
    expected = answering.recommend(history, k=5, filter_seen=False, explain=True)
    body = {"history": history, "k": 5, "filter_seen": False, "explain": True, "model": model}
    reply = client.post("/v1/recommend", body)
    assert reply.status == 200
    answer = reply.json
    assert [item["item_id"] for item in answer["items"]] == [item.item_id for item in expected.items]
    for item, scored in zip(answer["items"], expected.items, strict=True):
        assert item["score"] == pytest.approx(scored.score, abs=1e-4)
        assert item["title"] == ITEMS[item["item_id"]]
        assert [r["item_id"] for r in item["reasons"]] == [r.item_id for r in scored.reasons or ()]
    assert answer["unknown"] == list(expected.unknown)
    assert answer["num_candidates"] == expected.num_candidates == len(IDS)
    assert answer["fingerprint"] == recommender.info.fingerprint


def test_the_two_models_differ(client: shop.Client) -> None:
    served, undistilled = (
        client.post("/v1/recommend", {"history": ["plain"], "model": model}).json["items"]
        for model in ("served", "undistilled")
    )
    assert [item["score"] for item in served] != [item["score"] for item in undistilled]


def test_a_batch_gives_what_single_requests_give(client: shop.Client) -> None:
    requests = [{"history": [one], "k": 3, "explain": place % 2 == 0} for place, one in enumerate(IDS[:8])]
    answers = client.post("/v1/recommend/batch", {"requests": requests}).json["answers"]
    for request, answer in zip(requests, answers, strict=True):
        single = client.post("/v1/recommend", request).json
        assert [item["item_id"] for item in answer["items"]] == [item["item_id"] for item in single["items"]]
        for ours, theirs in zip(answer["items"], single["items"], strict=True):
            assert ours["score"] == pytest.approx(theirs["score"], abs=1e-5)


def test_settings_of_a_request_reach_the_recommender(client: shop.Client, recommender: Recommender) -> None:
    def ids(**more: Any) -> list[str]:
        return [
            item["item_id"] for item in client.post("/v1/recommend", {"history": ["5"], "k": 50, **more}).json["items"]
        ]

    assert "5" not in ids()
    assert "5" in ids(filter_seen=False)
    assert "null" not in ids(exclude=["null"])
    assert set(ids(filters={"where": {"brand": ["öko", "Plain"]}, "between": {"price": {"min": 3, "max": 8}}})) == {
        item.item_id
        for item in recommender.recommend(
            ["5"], 50, filters=Filters(any_of={"brand": ["Öko", "Plain"]}, at_least={"price": 3}, at_most={"price": 8})
        ).items
    }
    assert set(ids(filters={"allow": ["plain", "über"], "deny": ["über"]})) == {"plain"}
    assert ids(diversity=0.9) == [item.item_id for item in recommender.recommend(["5"], 50, diversity=0.9).items]
    popular = client.post("/v1/recommend", {"history": ["?"], "popular_in": {"brand": "Plain"}, "k": 50}).json
    assert popular["fallback"] == "popular"
    assert {item["fields"]["brand"] for item in popular["items"]} == {"Plain"}


def test_long_texts_come_only_when_asked_for(client: shop.Client) -> None:
    default = client.post("/v1/recommend", {"history": ["5"], "k": 1}).json["items"][0]["fields"]
    assert default.keys() == {"brand", "price", "year"}
    asked = client.post("/v1/recommend", {"history": ["5"], "k": 1, "fields": ["blurb", "title"]}).json
    assert asked["items"][0]["fields"].keys() == {"blurb"}


def test_similar_and_items(client: shop.Client, recommender: Recommender) -> None:
    for item_id, title in ITEMS.items():
        reply = client.get(f"/v1/items/{quote(item_id, safe='')}")
        assert (reply.status, reply.json["title"]) == (200, title)
        found = client.post("/v1/similar", {"item_id": item_id, "k": 4}).json["items"]
        assert [item["item_id"] for item in found] == [item.item_id for item in recommender.similar(item_id, 4).items]
    soap = client.get("/v1/items?q=" + quote("SOAP") + "&limit=3").json["items"]
    assert [item["item_id"] for item in soap] == [item.item_id for item in recommender.search("soap", 3)]
    assert len(soap) == 3
    assert client.get("/v1/items").json["items"][0]["title"] in ITEMS.values()
    ids = ["🎬", "no such", "plain", "🎬"]
    assert [i["item_id"] for i in client.post("/v1/items/lookup", {"ids": ids}).json["items"]] == ["🎬", "plain", "🎬"]
    assert client.post("/v1/similar", {"item_id": "no such"}).error["field"] == "item_id"
    assert client.get("/v1/items/no such".replace(" ", "%20")).error["code"] == "item_not_found"


def test_what_is_served_is_said(client: shop.Client, recommender: Recommender) -> None:
    models = client.get("/v1/models").json
    served = models["served"]
    assert (served["name"], served["stage"], served["has_undistilled"]) == ("both", "distilled-round-1", True)
    assert served["fingerprint"] == recommender.info.fingerprint
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
        (b'{"history": ["plain"], "filter_seen": "keep"}', 422, "filter_seen"),
        (b'{"history": ["plain"], "seen": "keep"}', 422, "seen"),
        (b'{"history": ["plain"], "model": "before"}', 422, "model"),
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
def test_a_bad_request_is_told_what_is_wrong(client: shop.Client, body: bytes, status: int, field: str | None) -> None:
    reply = client.send("POST", "/v1/recommend", raw=body)
    assert (reply.status, reply.error.get("field")) == (status, field)


def test_an_old_name_of_a_field_is_answered_with_the_new_one(client: shop.Client) -> None:
    error = client.post("/v1/recommend", {"history": ["plain"], "seen": "keep"}).error
    assert (error["field"], "`filter_seen`" in error["message"]) == ("seen", True)
    error = client.post("/v1/recommend", {"history": ["plain"], "model": "before"}).error
    assert "'undistilled'" in error["message"]
    error = client.post("/v1/recommend", {"history": ["plain"], "user": "u1"}).error
    assert error["message"] == "there is no such field"


def test_a_filter_that_fits_no_field_names_those_there_are(client: shop.Client) -> None:
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


def test_one_value_is_a_list_of_one(client: shop.Client) -> None:
    def found(wanted: Any) -> Any:
        reply = client.post("/v1/recommend", {"history": ["5"], "filters": {"where": wanted}, "k": 50})
        assert reply.status == 200, reply.content
        return [item["item_id"] for item in reply.json["items"]]

    assert found({"brand": "plain", "price": 3}) == found({"brand": ["plain"], "price": [3]}) == [IDS[3]]
    assert found({"brand": True}) == []
    said = client.post("/v1/recommend", {"history": ["5"], "filters": {"where": {"brand": None}}}).error["message"]
    assert said.startswith("null is not a value")


def test_in_a_batch_the_error_names_the_request(client: shop.Client) -> None:
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
def test_what_is_not_there(client: shop.Client, method: str, path: str, status: int) -> None:
    reply = client.send(method, path)
    assert reply.status == status
    assert reply.error["message"]
    assert status != 405 or reply.headers["allow"]


def test_head_is_get_without_a_body(client: shop.Client) -> None:
    for path in ("/healthz", "/", "/v1/models"):
        whole, head = client.get(path), client.send("HEAD", path)
        assert (head.status, head.content) == (200, b"")
        assert head.headers["content-length"] == str(len(whole.content))


def test_what_is_no_http_is_told_so(client: shop.Client) -> None:
    with client.connect() as connection:
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        reply = answered(connection)
    assert (reply.status, reply.error["code"]) == (400, "invalid_http")
    assert client.get("/healthz").status == 200


def test_headers_without_end_are_refused(client: shop.Client) -> None:
    with client.connect() as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n")
        for _ in range(5):
            connection.sendall(b"X-Filler: " + b"a" * 8000 + b"\r\n")
            time.sleep(0.02)
        assert answered(connection).status == 431
    assert client.get("/healthz").status == 200


def test_a_body_that_is_not_declared_as_json_is_refused(client: shop.Client) -> None:
    """A page of another site may send such a body without asking the browser's permission first."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        reply = client.post("/v1/items/remove", {"ids": ["plain"]}, headers={"Content-Type": kind})
        assert (reply.status, reply.error["code"]) == (415, "unsupported_media_type")
    assert client.get("/v1/items/plain").status == 200
    kind = "application/json; charset=utf-8"
    assert client.post("/v1/recommend", {"history": []}, headers={"Content-Type": kind}).status == 200


def test_a_request_to_another_name_is_refused(client: shop.Client) -> None:
    """A page of another site can point its own name at 127.0.0.1, and would then be of the same origin."""
    for host in ("evil.example", "evil.example:8000", "localhost.evil.example", ""):
        assert client.get("/v1/models", headers={"Host": host}).status == 421
        assert client.get("/", headers={"Host": host}).status == 421
    for host in ("localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000"):
        assert client.get("/v1/models", headers={"Host": host}).status == 200


def test_what_browsers_are_told(client: shop.Client) -> None:
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


def test_a_request_id_is_kept_or_made(client: shop.Client) -> None:
    assert client.get("/healthz", headers={"X-Request-Id": "abc-1.2_3"}).headers["x-request-id"] == "abc-1.2_3"
    for bad in ("a b", "x" * 65, "<script>", "é"):
        made = client.get("/healthz", headers={"X-Request-Id": bad}).headers["x-request-id"]
        assert made != bad
        assert made.isascii()
    first, second = (client.get("/no").error["request_id"] for _ in range(2))
    assert first != second


def test_a_run_is_served_as_its_export_is(store: Store) -> None:
    body = {"history": ["i3", "who?"], "k": 5, "times": [1_700_000_000, "2023-11-15T00:00:00Z"], "now": 1_700_100_000}
    with shop.running(store.run.folder, "--stage", "undistilled") as process:
        answer = process.client.post("/v1/recommend", body).json
        served = process.client.get("/v1/models").json["served"]
        assert process.client.post("/v1/recommend", {**body, "times": [1]}).error["code"] == "invalid"
    expected = Recommender.load(store.export, "undistilled").recommend(["i3", "who?"], 5)
    assert [item["item_id"] for item in answer["items"]] == [item.item_id for item in expected.items]
    assert answer["unknown"] == ["who?"]
    assert (served["stage"], served["can_add"], served["reads"]) == ("undistilled", None, [])
