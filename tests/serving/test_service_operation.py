"""Changes of a running service, its metrics and logs, its start and its end."""

from __future__ import annotations

import hashlib
import itertools
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llmd4rec.cli import app
from llmd4rec.server.explorer import pages

from . import shop
from .shop import IDS, answered, command, figures, head, running


def test_items_come_and_go(models: Path) -> None:
    with running(models / "both", "--allow-changes") as process:
        client = process.client
        new = {"item_id": "new/one", "title": "Brand new soap", "fields": {"brand": "New"}, "vector": [0.3, 0.4]}
        reply = client.post("/v1/items", {"items": [new]})
        assert reply.status == 200
        assert reply.json.items() >= {"added": ["new/one"], "replaced": [], "items": len(IDS) + 1}.items()
        assert client.get("/v1/items?q=brand+new").json["items"][0]["item_id"] == "new/one"
        for model in ("served", "undistilled"):
            body = {"history": ["new/one"], "model": model, "filter_seen": False, "k": 50}
            answer = client.post("/v1/recommend", body).json
            assert answer["unknown"] == []
            assert "new/one" in [item["item_id"] for item in answer["items"]]
        fields = {field["name"]: field for field in client.get("/v1/models").json["served"]["fields"]}
        assert "New" in fields["brand"]["values"]

        removed = client.post("/v1/items/remove", {"ids": ["plain", "no such"]}).json
        assert removed.items() >= {"removed": ["plain"], "unknown": ["no such"], "items": len(IDS)}.items()
        answer = client.post("/v1/recommend", {"history": ["plain"], "filter_seen": False, "k": 50}).json
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


def test_another_export_is_loaded_without_losing_a_request(models: Path) -> None:
    with running(models / "both", "--allow-changes", "--models", models) as process:
        client = process.client
        first = client.get("/v1/models").json["served"]["fingerprint"]
        askers: list[list[tuple[int, Any]]] = [[], []]
        stop = threading.Event()

        def ask(answers: list[tuple[int, Any]]) -> None:
            while not stop.is_set():
                reply = client.post("/v1/recommend", {"history": ["plain", "5"]})
                answers.append((reply.status, reply.json["fingerprint"] if reply.status == 200 else reply.content))

        def wait_for_answers() -> None:
            """Until every asker has an answer to what it asked from here on."""
            counts, end = [len(answers) + 2 for answers in askers], time.monotonic() + 60
            while any(len(answers) < count for answers, count in zip(askers, counts, strict=True)):
                assert time.monotonic() < end
                time.sleep(0.005)

        threads = [threading.Thread(target=ask, args=(answers,)) for answers in askers]
        for thread in threads:
            thread.start()
        wait_for_answers()
        for name in ("both", "bare"):
            reply = client.post("/v1/models/swap", {"name": name})
            assert (reply.status, reply.json["served"]["name"]) == (200, name)
        last = reply.json["served"]["fingerprint"]
        wait_for_answers()
        stop.set()
        for thread in threads:
            thread.join()
        assert last != first
        for answers in askers:
            # Each asker sees the old export until it sees the new one, and never the old one again.
            assert [answer for answer, _ in itertools.groupby(answers)] == [(200, first), (200, last)]
        assert client.post("/v1/recommend", {"history": ["plain"]}).json["fingerprint"] == last
        assert figures(client)["llmd4rec_model_swaps_total", ("outcome", "done")] == 2
        assert [labels for name, *labels in figures(client) if name == "llmd4rec_model_info"] == [
            [("fingerprint", last), ("name", "bare"), ("stage", "distilled-round-1")]
        ]


def test_only_whole_exports_of_the_models_folder_are_loaded(models: Path, tmp_path: Path) -> None:
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
        for name, broken in files.items():
            reply = client.post("/v1/models/swap", {"name": name})
            assert (reply.status, reply.error["code"]) == (422, "invalid_export")
            assert broken in reply.error["message"]
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


def test_metrics_count_what_happened(client: shop.Client) -> None:
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
    assert grown("llmd4rec_histories_fallback_total") == 2
    assert grown("llmd4rec_answers_empty_total") == 1
    assert grown("llmd4rec_batch_histories_sum") == 5
    assert grown("llmd4rec_http_requests_total", method="POST", route="/v1/recommend", status="200") == 5
    assert grown("llmd4rec_http_requests_total", method="POST", route="/v1/recommend", status="400") == 1
    assert grown("llmd4rec_http_requests_total", method="GET", route="none", status="404") == 1
    assert grown("llmd4rec_http_request_seconds_count", route="/v1/recommend") == 6
    assert after["llmd4rec_http_requests_in_flight",] == 0
    assert after["llmd4rec_errors_total",] == 0


def test_logs_say_nothing_about_people(models: Path) -> None:
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
def test_a_signal_ends_it_in_order(models: Path, number: signal.Signals) -> None:
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


def test_a_port_in_use_is_said(models: Path, process: shop.Process) -> None:
    port = process.client.port
    ran = subprocess.run(command(models / "bare", "--port", port), capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith(f"error: port {port} is in use on 127.0.0.1\n")


def refused(*arguments: object) -> str:
    """The message of a service that must not start; it says so before it changes anything in this process."""
    with pytest.MonkeyPatch.context() as patch:  # also what the command sets in the environment
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            patch.setenv(name, "1")
        wide = {"COLUMNS": "250", "TERM": "dumb"}
        ran = CliRunner().invoke(app, ["serve", *map(str, arguments)], env=wide)
    assert (ran.exit_code, ran.stdout) == (2, "")
    return ran.stderr


def test_what_cannot_be_served_is_said(models: Path, tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "nothing", "--port", 0)
    assert "is neither a run folder nor an export" in refused(tmp_path, "--port", 0)
    broken = Path(shutil.copytree(models / "bare", tmp_path / "broken"))
    (broken / "counts.npy").write_bytes(b"")
    assert "counts.npy is not the file that was exported" in refused(broken, "--port", 0)
    (broken / "counts.npy").unlink()
    assert "counts.npy is missing" in refused(broken, "--port", 0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "no.such.host.invalid"], "no such address"),
        (["--host", "192.0.2.1"], "not an address of this machine"),
        (["--models", "/no/such/folder"], "is no folder"),
        (["--api-keys", "/no/such/file"], "cannot be read"),
        (["--index", "magic"], "magic"),
        (["--port", "70000"], "--port"),
        (["--max-k", "0"], "--max-k"),
    ],
)
def test_options_that_cannot_be(models: Path, arguments: list[str], said: str) -> None:
    assert said in refused(models / "bare", "--port", 0, *arguments)


def test_a_weak_key_is_refused(models: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("secret\n")
    assert "shorter than 16" in refused(models / "bare", "--port", 0, "--api-keys", tmp_path / "keys")
    (tmp_path / "keys").write_text("# of the shop\na-key-of-the-shop-0123456 read, wrte\n")
    said = refused(models / "bare", "--port", 0, "--api-keys", tmp_path / "keys")
    assert "keys, line 2" in said.replace("\n", " ")
    assert "no scope" in said
    assert "a-key-of-the-shop" not in said
    (tmp_path / "keys").write_text("# nothing\n")
    assert "holds no key" in refused(models / "bare", "--port", 0, "--api-keys", tmp_path / "keys")


def test_serving_imports_no_torch() -> None:
    code = (
        "import sys; import llmd4rec.server.server, llmd4rec.inference.recommender, llmd4rec.cli.serve\n"
        "print(sorted({'torch', 'transformers', 'onnx', 'scipy', 'pandas'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


def test_the_document_says_the_limits(client: shop.Client) -> None:
    schemas = client.get("/openapi.json").json["components"]["schemas"]
    assert schemas["RecommendIn"]["properties"]["history"]["maxItems"] == 100
    assert schemas["RecommendIn"]["properties"]["k"]["maximum"] == 50
    assert schemas["BatchIn"]["properties"]["requests"]["maxItems"] == 8
    assert "HTTPValidationError" not in schemas


def test_the_pages_are_plain_and_load_nothing_from_elsewhere(client: shop.Client) -> None:
    page = client.get("/").content.decode()
    for path in ("/explorer/main.js", "/explorer/explorer.css", "/explorer/icon.svg"):
        reply = client.get(path)
        assert reply.status == 200
        assert path in page
        assert b"://" not in reply.content.replace(b"http://www.w3.org/2000/svg", b"")
        assert hashlib.sha256(reply.content).hexdigest()[:24] in reply.headers["etag"]
    for path in re.findall(r'"\./(\w+\.js)"', client.get("/explorer/main.js").content.decode()):
        assert client.get(f"/explorer/{path}").status == 200
    scripts = [file for file in pages() if file.endswith(".js")]
    assert len(scripts) == 10
    script = "".join(client.get(file).content.decode() for file in scripts)
    assert "://" not in script
    for risky in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert risky not in script
    assert "<script>" not in page
    assert "style=" not in page
