"""POST /v1/completions: raw prompts, several of them, ids, limits."""

from __future__ import annotations

from typing import Any

import pytest
from cli_fakes import fake_pair
from server_fakes import ask, events
from test_server_chat import fault

PATH = "/v1/completions"
PROMPT = "The"


def body(**fields: Any) -> dict[str, Any]:
    """The models write what follows of the script: " sky is blue by day and..."."""
    return {"prompt": PROMPT, "rule": "base-only", "max_tokens": 2, **fields}


def ids_of(text: str) -> list[int]:
    with fake_pair() as pair:
        return pair.base.tokenize(text.encode())


def test_a_whole_completion() -> None:
    document = ask(PATH, body()).json()
    assert document["id"].startswith("cmpl-")
    assert document["object"] == "text_completion"
    assert document["choices"] == [{"text": " sky is", "index": 0, "logprobs": None, "finish_reason": "length"}]
    usage = document["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (2, 2, 4)  # BOS, The
    assert document["nudge"]["rule"] == "base-only"
    assert document["timings"]["predicted_n"] == 2


def test_a_completion_is_nudged_unless_told_otherwise() -> None:
    document = ask(PATH, {"prompt": "Look: ", "max_tokens": 8}).json()
    assert document["choices"][0]["text"] == "The sky is blue by day and\nblack later."
    assert document["nudge"]["handoffs"] > 3


def test_a_stream_of_one_prompt() -> None:
    *pieces, end, usage, done = events(ask(PATH, body(stream=True, stream_options={"include_usage": True})).text)
    assert done == "[DONE]"
    assert [chunk["choices"][0]["text"] for chunk in pieces] == [" sky", " is"]
    assert pieces[0]["object"] == "text_completion"
    assert pieces[0]["nudge"]["author"] == "base"
    assert end["choices"] == [{"text": "", "index": 0, "logprobs": None, "finish_reason": "length"}]
    assert end["nudge"]["finish_detail"] == "max_tokens"
    assert usage["choices"] == []
    assert usage["usage"]["total_tokens"] == 4


def test_a_prompt_of_ids_is_taken_as_it_is() -> None:
    for prompt in (ids_of(PROMPT), [ids_of(PROMPT)]):
        document = ask(PATH, body(prompt=prompt)).json()
        assert document["choices"][0]["text"] == " sky is"
        assert document["usage"]["prompt_tokens"] == 1  # no BOS


def test_several_prompts_are_answered_in_their_order() -> None:
    prompts = ["The", "The sky", "The sky is"]
    for given in (prompts, [ids_of(prompt) for prompt in prompts]):
        document = ask(PATH, body(prompt=given, max_tokens=1)).json()
        assert [(choice["index"], choice["text"]) for choice in document["choices"]] == [
            (0, " sky"), (1, " is"), (2, " the"),
        ]  # fmt: skip
        n_prompt = sum(len(ids_of(prompt)) + (given is prompts) for prompt in prompts)
        assert document["usage"]["prompt_tokens"] == n_prompt
        assert document["usage"]["completion_tokens"] == 3
        assert all("nudge" in choice for choice in document["choices"])


def test_a_stream_of_several_prompts_says_which_is_which() -> None:
    text = ask(PATH, body(prompt=["The", "The sky"], max_tokens=1, stream=True)).text
    *chunks, done = events(text)
    assert done == "[DONE]"
    found = [(c["choices"][0]["index"], c["choices"][0]["text"], c["choices"][0]["finish_reason"]) for c in chunks]
    assert found == [(0, " sky", None), (0, "", "length"), (1, " is", None), (1, "", "length")]


def test_echo_gives_the_prompt_back() -> None:
    assert ask(PATH, body(echo=True)).json()["choices"][0]["text"] == "The sky is"
    assert ask(PATH, body(echo=True, max_tokens=0)).json()["choices"][0]["text"] == "The"
    chunks = events(ask(PATH, body(echo=True, stream=True)).text)[:-1]
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["The", " sky", " is", ""]


def test_without_a_limit_it_is_openais() -> None:
    document = ask(PATH, {"prompt": "x", "rule": "base-only", "loop_guard": False}).json()
    assert document["usage"]["completion_tokens"] == 16
    assert document["choices"][0]["finish_reason"] == "length"


def test_a_stop_string_and_the_same_seed() -> None:
    assert ask(PATH, body(stop=["is"], max_tokens=9)).json()["choices"][0]["text"] == " sky "
    drawn = [ask(PATH, body(temperature=1.5, seed=3, max_tokens=6, gamma=0)).json()["choices"] for _ in range(2)]
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [2**40]}, "prompt"),
        ({"prompt": [1.5]}, "prompt"),
        ({"prompt": [[[1]]]}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": "\ud83d"}, "prompt"),
        ({"prompt": ["a"] * 65}, "prompt"),
        ({"prompt": [100_000]}, "prompt"),  # outside the vocabulary
        ({"prompt": [[1], [100_000]]}, "prompt"),
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": -1}, "logprobs"),
        ({"echo": "yes"}, "echo"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"max_tokens": -1}, "max_tokens"),
    ],
)
@pytest.mark.parametrize("is_stream", [False, True])
def test_a_bad_field_is_named(fields: dict[str, Any], param: str, is_stream: bool) -> None:
    error = fault(ask(PATH, body(**fields, **({"stream": True} if is_stream else {}))))
    assert error["param"] == param
    assert param in error["message"]


def test_a_misspelt_prompt_is_missed() -> None:  # B70
    error = fault(ask(PATH, {"pormpt": "x"}))
    assert (error["param"], error["message"]) == ("prompt", "prompt: Field required")


@pytest.mark.parametrize("is_stream", [False, True])
def test_of_several_prompts_each_must_fit_before_the_first_is_answered(is_stream: bool) -> None:
    response = ask(PATH, body(prompt=["The", "x" * 50], stream=is_stream), n_ctx=40)
    error = fault(response)
    assert error["code"] == "context_length_exceeded"
    assert (error["n_prompt_tokens"], error["param"]) == (51, "prompt")
