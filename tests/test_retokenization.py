"""Handoffs on real vocabularies: the ids after any number of handoffs are those of a cold start."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_nudge.core import continuation as continuation_module
from edge_nudge.core.backend import Backend
from edge_nudge.core.continuation import Continuation, last_settled_place
from edge_nudge.core.prefix import common_prefix
from edge_nudge.core.prompt import encode_prompt
from edge_nudge.core.session import SEAM
from edge_nudge.core.template import Span

pytestmark = pytest.mark.native

SPM = ("llama-spm", "phi-3", "baichuan", "gemma-4", "base")
BPE = (
    "llama-bpe", "qwen2", "qwen35", "gpt-2", "gpt-neox", "falcon", "deepseek-llm", "deepseek-coder", "command-r", "mpt",
    "aquila", "refact", "starcoder", "nudging",
)  # fmt: skip
SCRAPS = st.sampled_from(
    [
        " the", " unbeliev", "able", " http:", "//example.org", "x = 1\n", "\n\n", "    return", "\t", "aaaa", "12345",
        ", ", " naïve", " 日本語", "の", " ภาษา", "ไทย", "한국", "👩", "\u200d🔬", "é", "e", "\u0301", "-" * 40,
        " " * 9, "'s", "<|im_end|>", "</s>", "\r\n", ".", '"', "({[", " Über", "🇩🇪", "\u2581",
    ]
)  # fmt: skip
WORDS = st.sampled_from([" the", " a", " cat", " unbeliev", "able", " of", " I", " x", " naïve", "'ll go", " Don't be"])
ANSWERS = st.lists(st.lists(SCRAPS | WORDS, min_size=1, max_size=6).map("".join), min_size=1, max_size=10)


@pytest.fixture(params=[*SPM, *BPE])
def vocabulary(request: pytest.FixtureRequest, open_vocab: Callable[[str], Backend]) -> Backend:
    return open_vocab(request.param)


@pytest.fixture(params=[continuation_module.LONG_BYTES, 0], ids=["short texts whole", "in parts"], autouse=True)
def long_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(continuation_module, "LONG_BYTES", request.param)
    return int(request.param)


def continuation(backend: Backend) -> Continuation:
    spans = [Span("You are brief.\nQuestion: ", False), Span("What does </s> mean?", True), Span("\nAnswer: ", False)]
    return Continuation(encode_prompt(backend, spans), backend)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=ANSWERS)
def test_the_ids_are_those_of_the_whole_text(vocabulary: Backend, parts: list[str]) -> None:
    """After each handoff: one BOS at most, the ids of one call on the whole text, the text back byte for byte."""
    view = continuation(vocabulary)
    prompt = "You are brief.\nQuestion: What does </s> mean?\nAnswer: "
    answer = b""
    for part in parts:
        answer += part.encode()
        ids, overlap = view.ids(answer)
        whole = (prompt.encode() + answer).rstrip(b" ")
        assert overlap == len(prompt.encode() + answer) - len(whole)
        head = [vocabulary.info.bos] if vocabulary.info.adds_bos else []
        assert ids == [*head, *vocabulary.tokenize(whole)]
        assert not any(vocabulary.is_control(token) for token in ids[len(head) :])
        text = b"".join(vocabulary.piece(token) for token in ids)
        assert text == (b" " if vocabulary.info.adds_space_prefix else b"") + whole


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=ANSWERS)
def test_a_word_changes_a_few_tokens_at_the_seam_at_most(vocabulary: Backend, parts: list[str]) -> None:
    """What is dropped at a handoff at a word start; SEAM is where checkpoints are laid, not a promise."""
    view = continuation(vocabulary)
    n_handoffs = n_within = 0
    answer = b""
    for part in parts:
        before, _ = view.ids(answer)
        answer += b" word" + part.encode()
        after, _ = view.ids(answer)
        n_handoffs += 1
        n_within += len(before) - common_prefix(before, after) <= SEAM
    assert n_within >= n_handoffs - 1


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(SCRAPS | WORDS, min_size=2, max_size=30))
def test_every_settled_place_is_a_place_to_part(vocabulary: Backend, parts: list[str]) -> None:
    """The claim behind tokenizing in parts, at every such place of a text."""
    assert vocabulary.words_are_separate
    text = "".join(parts).encode()
    whole = vocabulary.tokenize(text)
    place = last_settled_place(text, 0)
    while place is not None:
        right = text[place + 1 :] if vocabulary.info.adds_space_prefix else text[place:]
        assert vocabulary.tokenize(text[:place]) + vocabulary.tokenize(right) == whole
        place = last_settled_place(text[: place + 1], 0)
