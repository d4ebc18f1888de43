"""The HTTP server on loopback: what it answers, what it refuses, what a change and a stop cost."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import uvicorn

from recipes.hub.saved import load_model
from recipes.serve import taken
from recipes.serving import batches
from recipes.serving.batches import Batches, BusyError
from recipes.serving.server import MAX_BODY, TOKEN, Service, build_app
from tests.conftest import ROOT, altered, build_model, build_tokenizer

SECRET = "correct horse"
BEARER = {"Authorization": f"Bearer {SECRET}"}


@pytest.fixture(scope="module")
def folder(split, states, options, tmp_path_factory):
    """A saved model that also knows what is bought together."""
    settings = altered(options, tasks={"bought_together": 0.1})
    tokenizer = build_tokenizer(split, settings, None)
    model = build_model(split, states, tokenizer, settings, None, seed=0)
    model.share_sid_table()
    folder = tmp_path_factory.mktemp("served") / "model"
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(folder):
    return load_model(str(folder))


@pytest.fixture
def serve(folder):
    """Return a function that starts a server in this process: a client of it, and its service."""
    running = []

    def start(token=SECRET):
        service = Service(str(folder), load_model)
        server = uvicorn.Server(uvicorn.Config(build_app(service, token), log_level="warning"))
        address = taken("127.0.0.1", 0)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [address]})
        thread.start()
        client = httpx.Client(
            base_url=f"http://127.0.0.1:{address.getsockname()[1]}", timeout=60,
            limits=httpx.Limits(max_connections=50),
        )  # fmt: skip
        running.append((server, thread, client))
        ready(client)
        return client, service

    yield start
    for server, thread, client in running:
        client.close()
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def ready(client):
    for _ in range(1200):
        try:
            return client.get("/health").raise_for_status().json()
        except httpx.TransportError:
            time.sleep(0.05)
    raise AssertionError("the server does not come up")


def ids(entries):
    return [entry["item_id"] for entry in entries]


# Batches


def test_requests_of_a_few_milliseconds_share_a_batch(monkeypatch):
    monkeypatch.setattr(batches, "LARGEST", 8)
    monkeypatch.setattr(batches, "WAIT", 0.2)
    seen = []

    def answer(requests):
        seen.append(list(requests))
        return [f"answer {request}" for request in requests]

    async def main():
        shared = Batches(answer)
        task = asyncio.create_task(shared.run())
        found = await asyncio.gather(*(shared.ask(number) for number in range(20)))
        assert found == [f"answer {number}" for number in range(20)]
        await asyncio.sleep(0.3)
        await shared.ask("late")
        task.cancel()

    asyncio.run(main())
    assert [len(batch) for batch in seen] == [8, 8, 4, 1]


def test_a_fault_reaches_its_batch_and_no_other(monkeypatch):
    def answer(requests):
        if "fault" in requests:
            raise KeyError("fault")
        return [ValueError("no") if request == "bad" else request for request in requests]

    async def main():
        shared = Batches(answer)
        task = asyncio.create_task(shared.run())
        with pytest.raises(KeyError):
            await shared.ask("fault")
        found = await asyncio.gather(
            *(shared.ask(request) for request in ("good", "bad", "good")), return_exceptions=True
        )
        assert found[::2] == ["good", "good"] and isinstance(found[1], ValueError)
        monkeypatch.setattr(batches, "MOST_WAITING", 0)
        with pytest.raises(BusyError, match="wait already"):
            await shared.ask("one too many")
        task.cancel()

    asyncio.run(main())


# Answers


def test_many_at_once_get_the_lists_of_recommend(serve, loaded):
    client, _ = serve()
    items = [entry["item_id"] for entry in loaded.catalogue]
    histories = [items[n : n + n % 4] for n in range(24)]
    expected = loaded.recommend(histories, top_k=5)

    def ask(history):
        return client.post("/recommend", json={"history": history, "top_k": 5})

    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(ask, histories))
    for answer, entries in zip(answers, expected, strict=True):
        assert answer.status_code == 200, answer.text
        assert ids(answer.json()) == [entry.item_id for entry in entries]
        assert answer.json()[0]["score"] == pytest.approx(entries[0].score, abs=1e-4)
    few = client.post("/recommend", json={"history": [], "allowed": items[:3]}).json()
    assert sorted(ids(few)) == sorted(items[:3])
    assert len(client.post("/recommend", json={"history": ["?"], "unknown": "skip"}).json()) == 10

    found = client.post("/similar", json={"item_ids": items[:2], "top_k": 4}).json()
    expected = loaded.similar_items(items[:2], top_k=4)
    assert [ids(entries) for entries in found] == [[e.item_id for e in one] for one in expected]
    assert client.get("/health").json() == {
        "status": "ok", "model": str(loaded.name_or_path), "items": len(items),
    }  # fmt: skip


HISTORY = '{"history": %s}'
WRONG = [
    ("/recommend", "", "body"),
    ("/recommend", "{", "The body is no JSON: "),
    ("/recommend", "[]", "`Content-Type: application/json`"),
    ("/recommend", b'{"history": ["\xff"]}', "The body is no JSON that can be read"),
    ("/recommend", "[" * 100_000, "The body is no JSON that can be read"),
    ("/recommend", HISTORY % '[], "user_history": ["nobody"]', "`user_history` holds the unknown"),
    ("/recommend", HISTORY % json.dumps(["x" * 1_000_000]), "`history` holds the unknown item"),
    ("/recommend", HISTORY % '[], "query": "..."', "`query` is '...', which holds no word"),
    ("/recommend", "{}", "`history`"),
    ("/recommend", HISTORY % '"a"', "`history`"),
    ("/recommend", HISTORY % "[1]", "`history.0`"),
    ("/recommend", HISTORY % '["\\ud800"]', "unknown item"),
    ("/recommend", HISTORY % json.dumps(["a"] * 1001), "at most 1000 items"),
    ("/recommend", HISTORY % '["nobody"]', "unknown item 'nobody'"),
    ("/recommend?top_k=3", HISTORY % "[]", "'top_k' stands in the address; send it in the body."),
    ("/recommend", '{"history": [], "top_k": 0}', "`top_k`"),
    ("/recommend", '{"history": [], "top_k": 101}', "`top_k`"),
    ("/recommend", '{"history": [], "top_k": "5"}', "`top_k`"),
    ("/recommend", '{"history": [], "top_k": true}', "`top_k`"),
    ("/recommend", '{"history": [], "top_k": NaN}', "`top_k`"),
    ("/recommend", '{"history": [], "top_k": 90}', "`top_k` is 90"),
    ("/recommend", '{"history": [], "topk": 5}', "`topk`"),
    ("/recommend", '{"history": [], "unknown": "drop"}', "`unknown`"),
    ("/recommend", '{"history": [], "allowed": ["nobody"]}', "`allowed` holds the unknown item"),
    ("/recommend", '{"history": [], "query": "kettle"}', "not tuned for the question 'query'"),
    ("/recommend", '{"history": [], "query": "%s"}' % ("x" * 501), "at most 500 characters"),
    ("/similar", '{"item_ids": []}', "`item_ids`"),
    ("/similar", '{"item_ids": ["nobody"]}', "`item_ids` holds the unknown item 'nobody'"),
    ("/items", '{"items": [{"title": "x"}]}', "`items.0.item_id`"),
    ("/items", '{"items": [{"item_id": "x", "colour": "red"}]}', "`items.0.colour`"),
    ("/items", '{"items": [{"item_id": "\\ud800"}]}', "half a character"),
    ("/items", '{"items": [{"item_id": " "}]}', "`item_id` is empty"),
    ("/items", '{"items": [{"item_id": "x"}, {"item_id": "x"}]}', "`item_id` 'x' of item 1"),
    ("/items/remove", '{"item_ids": ["nobody"]}', "unknown item 'nobody'"),
    ("/reload", '{"model": "/no/such/folder"}', "/no/such/folder"),
    ("/reload", '{"model": 3}', "`model`"),
]


def test_what_is_wrong_is_refused_by_name_and_nothing_breaks(serve, loaded):
    client, _ = serve()
    for route, body, said in WRONG:
        answer = client.post(
            route, content=body, headers=BEARER | {"Content-Type": "application/json"}
        )
        assert answer.status_code == 422, (route, body[:80], answer.text)
        detail = answer.json()["detail"]
        assert said in detail and detail.endswith("."), (body[:80], detail)
        assert "\n" not in detail and len(detail) < 500
    answer = client.post("/recommend", content=b" " * (MAX_BODY + 1))
    assert answer.status_code == 413 and "8,000,000 bytes" in answer.json()["detail"]
    assert client.get("/nothing").status_code == 404
    assert len(client.post("/recommend", json={"history": []}).json()) == 10
    pages = client.get("/openapi.json").json()["paths"]
    assert set(pages) == {
        "/health", "/recommend", "/similar", "/items", "/items/remove", "/reload",
    }  # fmt: skip
    shape = pages["/recommend"]["post"]["responses"]["422"]["content"]["application/json"]
    assert shape["schema"]["$ref"].endswith("/Refusal")
    assert client.get("/docs").status_code == 200


# Changes


def test_items_join_and_leave_for_who_has_the_token(serve, loaded):
    client, service = serve()
    first = loaded.catalogue[0]["item_id"]
    new = {"items": [{"item_id": "new", "title": "A walnut kettle", "categories": ["A", "B"]}]}
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {SECRET}"}):
        for route, body in (("/items", new), ("/items/remove", {}), ("/reload", {})):
            answer = client.post(route, json=body, headers=headers)
            assert answer.status_code == 401 and "Bearer TOKEN" in answer.json()["detail"]
    before = client.post("/recommend", json={"history": [first]}).json()
    assert client.post("/items", json=new, headers=BEARER).json()["items"] == 73
    only = client.post("/recommend", json={"history": [first], "allowed": ["new"]}).json()
    assert [entry["title"] for entry in only] == ["A walnut kettle"]
    gone = {"item_ids": ["new"]}
    assert client.post("/items/remove", json=gone, headers=BEARER).json()["items"] == 72
    assert client.post("/recommend", json={"history": ["new"]}).status_code == 422
    assert client.post("/recommend", json={"history": [first]}).json() == before
    service.model.config.text_encoder = "/no/such/encoder"
    answer = client.post("/items", json=new, headers=BEARER)
    assert answer.status_code == 422 and "cannot be loaded" in answer.json()["detail"]
    assert client.get("/health").json()["items"] == 72


def test_items_that_nothing_tells_the_place_of_are_named(serve, loaded):
    client, _ = serve()
    known = loaded.catalogue[0]["item_id"]
    names = ("worded", "chosen", "alone", "dumb")
    items = [{"item_id": name, "title": "kettle" if name == "worded" else ""} for name in names]
    body = {"items": items, "histories": [[known, "chosen"], ["alone", "dumb"]]}
    with pytest.warns(UserWarning, match="arbitrary") as warned:
        added = client.post("/items", json=body, headers=BEARER).json()
    assert added["arbitrary"] == ["alone", "dumb"] and added["items"] == 76
    assert len(warned) == 2, "the model says the same of each"


@pytest.mark.parametrize("token", [None, ""])
def test_without_a_token_nothing_changes(serve, token):
    client, _ = serve(token=token)
    for route in ("/items", "/items/remove", "/reload"):
        for headers in (BEARER, {}):
            answer = client.post(route, json={}, headers=headers)
            assert answer.status_code == 403
            assert f"start it with {TOKEN}" in answer.json()["detail"]


def test_a_reload_loses_no_request(serve, loaded, tmp_path):
    client, service = serve()
    items = [entry["item_id"] for entry in loaded.catalogue]
    other = load_model(loaded.name_or_path)
    other.remove_items(items[40:])
    other.save_pretrained(tmp_path / "other")
    stop, statuses = threading.Event(), []

    def ask(number):
        while not stop.is_set():
            body = {"history": [items[number]], "top_k": 5}
            statuses.append(client.post("/recommend", json=body).status_code)

    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask, number) for number in range(4)]
        try:
            for name in (str(tmp_path / "other"), str(loaded.name_or_path)):
                answer = client.post("/reload", json={"model": name}, headers=BEARER)
                assert answer.status_code == 200, answer.text
                assert answer.json() == client.get("/health").json()
                assert answer.json()["items"] == (40 if name.endswith("other") else 72)
                count = len(statuses)
                while len(statuses) < count + 8:
                    time.sleep(0.01)
        finally:
            stop.set()
        for job in asked:
            job.result()
    assert set(statuses) == {200}
    again = service.model
    weights = tmp_path / "other" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])  # a copy that is still under way
    cut = client.post("/reload", json={"model": str(tmp_path / "other")}, headers=BEARER)
    assert cut.status_code == 422 and "other is not whole" in cut.json()["detail"]
    assert service.model is again
    assert client.post("/reload", json={}, headers=BEARER).json()["items"] == 72
    assert service.model is not again


# The script


def test_a_stop_finishes_what_runs(folder):
    command = [sys.executable, "recipes/serve.py", "--model", str(folder), "--port", "0"]
    environment = os.environ | {TOKEN: SECRET, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        said = process.stdout.readline()
        assert said.startswith(f"{folder} is served at http://127.0.0.1:"), process.stderr.read()
        url = said.split()[4].rstrip(",")
        with httpx.Client(base_url=url, timeout=60) as client, ThreadPoolExecutor(17) as pool:
            assert ready(client)["items"] == 72
            item = load_model(str(folder)).catalogue[0]["item_id"]
            body = {"history": [item]}
            asked = [pool.submit(client.post, "/recommend", json=body) for _ in range(16)]
            new = {"items": [{"item_id": "new", "title": "Kettle"}]}
            asked.append(pool.submit(client.post, "/items", json=new, headers=BEARER))
            while not any(job.done() for job in asked):
                time.sleep(0.001)
            process.send_signal(signal.SIGTERM)
            answers = [job.result() for job in asked]
            assert [answer.status_code for answer in answers] == [200] * 17
            assert process.wait(60) in (0, -signal.SIGTERM)
            with pytest.raises(httpx.ConnectError):
                client.get("/health")
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def test_an_address_that_another_has_is_refused_before_the_model_is_loaded(tmp_path):
    with taken("127.0.0.1", 0) as address:
        address.listen()
        port = address.getsockname()[1]
        for wish, said in ((port, "in use"), (70_000, "port")):
            with pytest.raises(ValueError, match=f"`--port` {wish} cannot be had .*{said}"):
                taken("127.0.0.1", wish)
    with pytest.raises(ValueError, match="`--host` no.such.host"):
        taken("no.such.host", 8000)
