"""Log-probabilities as clients read them: both shapes, streamed and whole, and what lm-eval computes from them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from cli_fakes import TEMPLATE, fake_pair
from server_fakes import SHORT_TEXT, a_client, a_worker, ask, chat, events

from edge_nudge.core.events import TokenScore
from edge_nudge.runtime import Pair, PairSpec
from edge_nudge.server.scores import ChatScores, LegacyScores, spell
from edge_nudge.testing import FakeBackend, ToyVocabulary, scripted_scores

CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"


def token(data: bytes, logprob: float | None = -0.5, *, is_rest: bool = False) -> TokenScore:
    top = () if logprob is None or is_rest else ((data, logprob), (b"x", -2.0), (b"\xe2\x82", -3.0))
    return TokenScore(data, 7, logprob, top, is_rest)


def byte_pair(answer: str = " é") -> Pair:
    """A pair that writes an answer, a byte by token, and ends."""
    vocabulary = ToyVocabulary()
    text = answer.encode()

    def rule(so_far: bytes) -> tuple[str | int, float]:
        for n_bytes in range(len(text) - 1, -1, -1):
            if so_far.endswith(text[:n_bytes]) and n_bytes < len(text):
                return vocabulary.byte(text[n_bytes]), 0.9
        raise AssertionError

    def base(so_far: bytes) -> tuple[str | int, float]:
        return ("<eos>", 0.9) if so_far.endswith(text) else rule(so_far)

    def nudging(so_far: bytes) -> tuple[str | int, float]:
        return ("<|end|>", 0.9) if so_far.endswith(text) else rule(so_far)

    return Pair(
        FakeBackend(vocabulary, scripted_scores(vocabulary, base)),
        FakeBackend(vocabulary, scripted_scores(vocabulary, nudging), chat_template=TEMPLATE),
        PairSpec(Path("base.gguf"), Path("nudging.gguf")),
    )


# --- the shapes alone


def test_a_token_that_is_no_character_is_spelled_as_bytes() -> None:
    assert spell(" é".encode()) == " é"
    assert spell(b"\xe2\x82") == "bytes:\\xe2\\x82"
    assert spell(b"") == ""


def test_offsets_count_characters_from_one_call_to_the_next() -> None:
    scores = LegacyScores()
    first = scores.document([token("aé".encode()), token(b"\xe2\x82"), token(b"\xac"), token(b"b")])
    assert first["text_offset"] == [0, 2, 2, 3]
    assert first["tokens"] == ["aé", "bytes:\\xe2\\x82", "bytes:\\xac", "b"]
    assert scores.document([token(b"c")])["text_offset"] == [4]


def test_the_older_table_keeps_the_better_of_two_that_read_alike() -> None:
    (table,) = LegacyScores().document([TokenScore(b"a", 1, -1.0, ((b"b", -0.5), (b"a", -1.0), (b"a", -4.0)))])[
        "top_logprobs"
    ]
    assert table == {"b": -0.5, "a": -1.0}


def test_the_first_token_of_a_prompt_has_no_score() -> None:
    document = LegacyScores().document([token(b"a", None), token(b"b")])
    assert document["token_logprobs"] == [None, -0.5]
    assert document["top_logprobs"][0] is None
    assert len(document["tokens"]) == len(document["text_offset"]) == 2


def test_minus_infinity_can_be_sent() -> None:
    lost = TokenScore(b"a", 1, -math.inf, ((b"b", -0.5), (b"a", -math.inf)))
    document = LegacyScores().document([lost])
    assert document["token_logprobs"] == [-9999.0]
    assert document["top_logprobs"] == [{"b": -0.5, "a": -9999.0}]
    assert ChatScores(2).document([lost])["content"][0]["logprob"] == -9999.0


def test_the_newer_shape_has_bytes_and_as_many_alternatives_as_asked_for() -> None:
    (entry,) = ChatScores(2).document([token(b"\xe2\x82")])["content"]
    assert entry["bytes"] == [0xE2, 0x82]
    assert [top["logprob"] for top in entry["top_logprobs"]] == [-0.5, -2.0]
    assert ChatScores(0).document([token(b"a")])["content"][0]["top_logprobs"] == []


# --- in answers


def test_scores_of_a_whole_chat_answer() -> None:
    document = ask(CHAT, chat(logprobs=True, top_logprobs=3)).json()
    content = document["choices"][0]["logprobs"]["content"]
    assert "".join(entry["token"] for entry in content) == SHORT_TEXT
    assert len(content) == document["usage"]["completion_tokens"] == 8
    for entry in content:
        logprobs = [top["logprob"] for top in entry["top_logprobs"]]
        assert len(logprobs) == 3
        assert logprobs == sorted(logprobs, reverse=True)
        assert entry["logprob"] == logprobs[0]
        assert bytes(entry["bytes"]).decode() == entry["token"]
    # each by the model that wrote it: the nudging model is sure to 0.8, the base model to 0.9
    assert math.exp(content[0]["logprob"]) == pytest.approx(0.8, abs=1e-3)
    assert math.exp(content[1]["logprob"]) == pytest.approx(0.9, abs=1e-3)


def test_scores_in_a_stream_are_those_of_the_whole_answer() -> None:  # B68
    whole = ask(CHAT, chat(logprobs=True, top_logprobs=2)).json()["choices"][0]["logprobs"]["content"]
    chunks = events(ask(CHAT, chat(logprobs=True, top_logprobs=2, stream=True)).text)[1:-2]
    streamed: list[Any] = []
    for chunk in chunks:
        choice = chunk["choices"][0]
        assert "".join(entry["token"] for entry in choice["logprobs"]["content"]) == choice["delta"]["content"]
        streamed += choice["logprobs"]["content"]
    assert sum(entry["logprob"] for entry in streamed) == pytest.approx(sum(entry["logprob"] for entry in whole))
    assert len(chunks) == 9  # a nudging token of two words is shown word by word


@pytest.mark.parametrize("fields", [{"logprobs": True}, {"logprobs": True, "top_logprobs": 0}])
def test_scores_without_alternatives(fields: dict[str, Any]) -> None:
    content = ask(CHAT, chat(**fields)).json()["choices"][0]["logprobs"]["content"]
    assert len(content) == 8
    assert all(entry["top_logprobs"] == [] for entry in content)


def test_no_scores_unless_asked_for() -> None:
    for fields in ({}, {"logprobs": False}, {"logprobs": None}):
        assert ask(CHAT, chat(**fields)).json()["choices"][0]["logprobs"] is None
    assert ask(PLAIN, {"prompt": "The", "max_tokens": 1}).json()["choices"][0]["logprobs"] is None


@pytest.mark.parametrize("n_top", [0, 1, 3])
def test_scores_of_a_plain_completion(n_top: int) -> None:
    body = {"prompt": "The", "rule": "base-only", "max_tokens": 2, "logprobs": n_top}
    scores = ask(PLAIN, body).json()["choices"][0]["logprobs"]
    assert scores["tokens"] == [" sky", " is"]
    assert scores["text_offset"] == [0, 4]
    for logprob, table in zip(scores["token_logprobs"], scores["top_logprobs"], strict=True):
        assert len(table) == max(n_top, 1)
        assert max(table.values()) == logprob
    streamed = [c["choices"][0]["logprobs"] for c in events(ask(PLAIN, {**body, "stream": True}).text)[:-2]]
    for name in ("tokens", "token_logprobs", "text_offset", "top_logprobs"):
        assert [item for part in streamed for item in part[name]] == scores[name]


def test_characters_of_several_tokens() -> None:
    async def run() -> tuple[Any, Any]:
        async with a_client(worker) as client:
            in_chat = await client.post(CHAT, json=chat(logprobs=True))
            plain = await client.post(PLAIN, json={"prompt": "x", "logprobs": 0, "max_tokens": 8})
            return in_chat.json()["choices"][0], plain.json()["choices"][0]

    with a_worker(byte_pair) as worker:
        in_chat, plain = asyncio.run(run())
    assert in_chat["message"]["content"].strip() == "é"
    data = b"".join(bytes(entry["bytes"]) for entry in in_chat["logprobs"]["content"])
    assert data.decode() == in_chat["message"]["content"]
    assert [entry["token"] for entry in in_chat["logprobs"]["content"]][-2:] == ["bytes:\\xc3", "bytes:\\xa9"]
    assert plain["logprobs"]["tokens"][-2:] == ["bytes:\\xc3", "bytes:\\xa9"]
    assert plain["logprobs"]["text_offset"][-2] == plain["logprobs"]["text_offset"][-1]


# --- echo


def base_scores(prompt: str | Sequence[int]) -> list[TokenScore]:
    with fake_pair() as pair:
        return pair.score(prompt, 3)


def ids_of(text: str) -> list[int]:
    with fake_pair() as pair:
        return pair.base.tokenize(text.encode())


@pytest.mark.parametrize("is_ids", [False, True])
@pytest.mark.parametrize("max_tokens", [0, 1, 2])
def test_echoed_scores_are_the_base_models(is_ids: bool, max_tokens: int) -> None:
    text = "The sky is x"
    prompt: Any = ids_of(text) if is_ids else text
    expected = base_scores(prompt)
    body = {"prompt": prompt, "echo": True, "logprobs": 3, "max_tokens": max_tokens, "rule": "base-only"}
    choice = ask(PLAIN, {**body, "loop_guard": False}).json()["choices"][0]
    scores = choice["logprobs"]
    n_prompt = len(ids_of(text))  # whatever BOS does: exactly the tokens of the prompt, and what was added
    assert {len(scores[name]) for name in scores} == {n_prompt + max_tokens}
    assert scores["token_logprobs"][0] is None
    assert scores["top_logprobs"][0] is None
    assert scores["token_logprobs"][:n_prompt] == [score.logprob for score in expected]
    assert "".join(scores["tokens"]) == choice["text"]
    assert choice["text"].startswith(text)
    assert choice["finish_reason"] == "length"
    streamed = [c["choices"][0]["logprobs"] for c in events(ask(PLAIN, {**body, "stream": True}).text)[:-2]]
    assert [item for part in streamed for item in part["tokens"]] == scores["tokens"]


def test_echo_without_a_generated_token_has_the_end_token_instead() -> None:
    # lm-eval cuts off the last entry: it must never be one of the prompt's
    text = SHORT_TEXT
    for max_tokens in (1, 5):
        body = {"prompt": text, "echo": True, "logprobs": 1, "max_tokens": max_tokens, "rule": "nudging-only"}
        choice = ask(PLAIN, body).json()["choices"][0]
        n_prompt = len(ids_of(text))
        n_written = len(choice["logprobs"]["tokens"]) - n_prompt
        assert n_written >= 1
        assert choice["logprobs"]["token_logprobs"][:n_prompt] == [score.logprob for score in base_scores(text)]


@pytest.mark.parametrize("is_stream", [False, True])
def test_echo_with_half_a_character_has_the_end_token_instead(is_stream: bool) -> None:
    body = {"prompt": "xy", "echo": True, "logprobs": 1, "max_tokens": 1, "stream": is_stream}

    async def run() -> Any:
        async with a_client(worker) as client:
            return await client.post(PLAIN, json=body)

    with a_worker(lambda: byte_pair("é")) as worker:
        response = asyncio.run(run())
    parts = [c["choices"][0] for c in events(response.text)[:-1]] if is_stream else response.json()["choices"]
    scores = {name: [item for part in parts for item in part["logprobs"][name]] for name in parts[0]["logprobs"]}
    assert "".join(part["text"] for part in parts) == "xy"
    assert {len(values) for values in scores.values()} == {3}
    assert scores["tokens"][:2] == ["x", "y"]
    assert scores["text_offset"] == [0, 1, 2]
    assert scores["token_logprobs"][2] < 0


def lm_eval_result(choice: dict[str, Any], n_context: int) -> tuple[float, bool]:
    """What lm-eval makes of a choice: the sum of the continuation's scores, and whether each was the best one."""
    logprobs = choice["logprobs"]["token_logprobs"][n_context:-1]
    tables = choice["logprobs"]["top_logprobs"][n_context:-1]
    is_greedy = all(logprob == max(table.values()) for logprob, table in zip(logprobs, tables, strict=True))
    return sum(logprobs), is_greedy


def test_lm_evals_log_likelihoods() -> None:
    context, continuations = "The sky", (" is", " is blue", " the", "é", "x y z")
    prompts = [ids_of(context) + ids_of(continuation) for continuation in continuations]
    body = {
        "model": "fake",
        "prompt": prompts,
        "temperature": 0,
        "max_tokens": 1,
        "logprobs": 1,
        "seed": 1234,
        "echo": True,
    }
    answer = ask(PLAIN, body)
    assert answer.status_code == 200, answer.text
    n_context = len(ids_of(context))
    for choice, prompt in zip(answer.json()["choices"], prompts, strict=True):
        expected = base_scores(prompt)[n_context:]
        total, is_greedy = lm_eval_result(choice, n_context)
        assert total == pytest.approx(sum(score.logprob or 0.0 for score in expected), abs=1e-6)
        assert is_greedy == all(score.logprob == score.top[0][1] for score in expected)
