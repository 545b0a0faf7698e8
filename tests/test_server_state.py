"""The routes beside the answers: models, health, slots, metrics, tokenizer, schema, page."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest
from cli_fakes import SHORT, TEMPLATE, fake_pair
from server_fakes import SERVED, a_client, a_worker, ask, chat
from test_server_chat import fault

from edge_nudge.errors import InputError
from edge_nudge.runtime import Pair
from edge_nudge.server.app import Served, make_app
from edge_nudge.testing import FakeBackend, ToyVocabulary, scripted_scores
from edge_nudge.worker import Worker


def asking(use: Callable[[httpx.AsyncClient], Awaitable[Any]], *, served: Served = SERVED, **settings: Any) -> Any:
    async def run(worker: Worker) -> Any:
        async with a_client(worker, served) as client:
            return await use(client)

    with a_worker(**settings) as worker:
        return asyncio.run(run(worker))


def test_the_served_model() -> None:
    served = replace(SERVED, about={"base": "b.gguf"})

    async def use(client: httpx.AsyncClient) -> None:
        models = (await client.get("/v1/models")).json()
        assert models["object"] == "list"
        (model,) = models["data"]
        assert model == {
            "id": "fake", "object": "model", "created": 1_700_000_000, "owned_by": "edge-nudge",
            "aliases": ["fake-latest"], "meta": {"base": "b.gguf"},
        }  # fmt: skip
        assert (await client.get("/v1/models/fake")).json() == model
        assert (await client.get("/v1/models/fake-latest")).json()["id"] == "fake-latest"
        assert fault(await client.get("/v1/models/user/repo:Q4"), 404)["code"] == "model_not_found"

    asking(use, served=served)


def test_an_id_may_have_slashes() -> None:
    async def use(client: httpx.AsyncClient) -> None:
        assert (await client.get("/v1/models/user/repo:Q4_K_M")).json()["id"] == "user/repo:Q4_K_M"

    asking(use, served=Served("user/repo:Q4_K_M"))


def test_slots_say_what_the_worker_does() -> None:
    async def use(client: httpx.AsyncClient) -> None:
        await client.post("/v1/chat/completions", json=chat())
        await client.post("/v1/chat/completions", json=chat(max_tokens=-1))
        (slot,) = (await client.get("/slots")).json()
        assert slot["is_processing"] is False
        assert slot["state"] == "ready"
        assert slot["job"] is None
        assert slot["counts"] == {"done": 1, "failed": 0, "cancelled": 0, "refused": 0, "loads": 1}
        assert (slot["n_queued"], slot["max_queue"], slot["keep_alive_s"]) == (0, 5, 300.0)

    asking(use, max_queue=5)


def test_metrics_are_off_unless_asked_for() -> None:
    assert ask("/metrics").status_code == 404


def test_metrics_add_up_what_was_answered() -> None:
    async def use(client: httpx.AsyncClient) -> str:
        for fields in ({}, {"stream": True}, {"max_tokens": 2}, {"stop": 7}):
            await client.post("/v1/chat/completions", json=chat(**fields))
        response = await client.get("/metrics")
        assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
        return response.text

    text = asking(use, served=replace(SERVED, has_metrics=True))
    from prometheus_client.parser import text_string_to_metric_families

    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert found["edge_nudge_answers_total", "stop"] == 2
    assert found["edge_nudge_answers_total", "length"] == 1
    assert found["edge_nudge_written_tokens_total", "base"] == 4 + 4 + 1
    assert found["edge_nudge_written_tokens_total", "nudging"] == 4 + 4 + 1
    assert found["edge_nudge_handoffs_total",] == 6 + 6 + 1
    assert found["edge_nudge_jobs_total", "done"] == 3
    assert found["edge_nudge_loads_total",] == 1
    assert found["edge_nudge_queue_length",] == 0
    assert found["edge_nudge_state", "ready"] == 1
    assert found["edge_nudge_state", "loading"] == 0
    assert found["edge_nudge_evaluated_tokens_total", "own", "base"] > 0
    assert found["edge_nudge_native_seconds_total", "nudging"] > 0


def test_metrics_without_their_package_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(InputError, match=r"pip install 'edge-nudge\[metrics\]'"):
        make_app(Worker(fake_pair), served=replace(SERVED, has_metrics=True))
    make_app(Worker(fake_pair), served=SERVED)


# --- the tokenizer


def test_tokens_of_a_text_under_both_names() -> None:
    with fake_pair() as pair:
        ids = pair.base.tokenize(b"The sky!")
    for body in (
        {"content": "The sky!"},
        {"prompt": "The sky!", "add_special_tokens": False},
        {"content": "The sky!", "add_special": False, "model": "fake", "what": 1},
    ):
        assert ask("/tokenize", body).json() == {"tokens": ids, "count": len(ids), "max_model_len": 4096}
    for name in ("add_special", "add_special_tokens"):
        assert ask("/tokenize", {"content": "The sky!", name: True}).json()["tokens"] == [0, *ids]
    pieces = ask("/tokenize", {"content": "The é", "with_pieces": True}).json()["tokens"]
    assert [token["piece"] for token in pieces] == ["The", " ", [0xC3], [0xA9]]


def test_tokens_become_text_again() -> None:
    for text in ("The sky!", "", "é 日本 👩", "<eos>"):
        ids = ask("/tokenize", {"content": text}).json()["tokens"]
        assert ask("/detokenize", {"tokens": ids}).json() == {"content": text, "prompt": text}
    cut = ask("/tokenize", {"content": "é"}).json()["tokens"][:1]
    assert ask("/detokenize", {"tokens": cut}).json()["content"] == "\ufffd"
    assert ask("/detokenize", {"tokens": [0, 1]}).json()["content"] == ""
    assert ask("/detokenize", {"tokens": [0, 1], "parse_special": True}).json()["content"] == "<bos><eos>"


def test_a_control_token_is_reached_on_request_only() -> None:
    assert 1 not in ask("/tokenize", {"content": "a<eos>"}).json()["tokens"]
    assert 1 not in ask("/tokenize", {"prompt": "a<eos>"}).json()["tokens"]
    assert ask("/tokenize", {"content": "a<eos>", "parse_special": True}).json()["tokens"][-1] == 1
    # lm-eval asks for the ids of these two by their spelling
    info = ask("/tokenizer_info").json()
    for name, token in (("bos_token", 0), ("eos_token", 1)):
        assert ask("/tokenize", {"prompt": info[name], "add_special_tokens": False}).json()["tokens"] == [token]
        assert ask("/tokenize", {"content": info[name]}).json()["tokens"] != [token]
        assert info[f"{name}_id"] == token
    assert info["chat_template"] == TEMPLATE
    assert (info["vocab_size"], info["model_max_length"], info["add_bos_token"]) == (269, 4096, True)


def test_either_model_can_be_asked() -> None:
    def load() -> Pair:
        pair = fake_pair(SHORT)
        other = ToyVocabulary((" sky!",), space_prefix=True)
        pair.backends[next(role for role in pair.backends if role.value == "nudging")] = FakeBackend(
            other, scripted_scores(other, lambda text: (" sky!", 0.9))
        )
        return pair

    async def use(client: httpx.AsyncClient) -> None:
        ids = (await client.post("/tokenize", json={"content": "sky!", "role": "nudging"})).json()["tokens"]
        assert len(ids) == 1
        text = (await client.post("/detokenize", json={"tokens": ids, "role": "nudging"})).json()["content"]
        assert text == "sky!"  # without the blank that tokenizing put there

    asking(use, load=load)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "content"),
        ("/tokenize", {"content": 7}, "content"),
        ("/tokenize", {"content": "a", "prompt": "b"}, "prompt"),
        ("/tokenize", {"content": "\ud83d"}, "content"),
        ("/tokenize", {"content": "a", "role": "judge"}, "role"),
        ("/tokenize", {"content": "a", "parse_special": 1}, "parse_special"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens.0"),
        ("/detokenize", {"tokens": [1, "a"]}, "tokens.1"),
        ("/detokenize", {"tokens": [True]}, "tokens.0"),
        ("/detokenize", {"tokens": [5000]}, "tokens"),
        ("/detokenize", {"tokens": [2**70]}, "tokens.0"),
    ],
)
def test_a_bad_field_is_named(path: str, body: dict[str, Any], param: str) -> None:
    assert fault(ask(path, body))["param"] == param


# --- the schema


def test_the_schema_names_every_route_and_needs_no_network() -> None:
    schema = ask("/openapi.json").json()
    assert set(schema["paths"]) == {
        *("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize", "/tokenizer_info"),
        *("/health", "/v1/models", "/v1/models/{name}", "/slots"),
    }
    for path in schema["paths"].values():
        for operation in path.values():
            assert "422" not in operation["responses"]
            assert "4XX" in operation["responses"]
    chat_body = schema["components"]["schemas"]["ChatBody"]
    assert chat_body["required"] == ["messages"]
    assert {"gamma", "rule", "lookahead", "temperature", "max_completion_tokens"} <= set(chat_body["properties"])
    assert "http://" not in str(schema)
    assert "https://" not in str(schema)


def test_a_plain_page_lists_every_route_and_field() -> None:
    response = ask("/docs")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.headers["content-security-policy"].startswith("default-src 'self'")
    for word in ("POST /v1/chat/completions", "GET /slots", "max_completion_tokens", "lookahead", "add_special_tokens"):
        assert word in response.text
    for outside in ("http://", "https://", "<script", "src="):
        assert outside not in response.text
