"""Plain completions: a text or ids as they are, for the base model alone or with nudging."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from cli_fakes import TEMPLATE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from worlds import BASE_VOCABULARY, SPM_VOCABULARY, World, decoded, random_scorer, random_world, referred

from edge_nudge.core import continuation as continuation_module
from edge_nudge.core.backend import Backend
from edge_nudge.core.continuation import Continuation
from edge_nudge.core.events import Piece
from edge_nudge.core.prompt import Prompt, encode_raw
from edge_nudge.core.request import build_request
from edge_nudge.errors import InputError
from edge_nudge.runtime import Pair, PairSpec
from edge_nudge.testing import FakeBackend, ToyVocabulary, hashed_scores

VOCABULARIES = ("llama-spm", "phi-3", "baichuan", "gemma-4", "base", "llama-bpe", "qwen2", "gpt-2", "nudging")
WORDS = (" the", " cat", "ing", "ab")


def make_pair(vocabulary: ToyVocabulary | None = None, **options: Any) -> Pair:
    vocabulary = vocabulary or ToyVocabulary(WORDS, user_defined=("<|mark|>",))
    scorer = hashed_scores(vocabulary, 3, eog_rate=0.0)
    return Pair(
        FakeBackend(vocabulary, scorer, name="base", **options),
        FakeBackend(vocabulary, scorer, name="nudging", chat_template=TEMPLATE),
        PairSpec(Path("base.gguf"), Path("nudging.gguf")),
    )


def prompt_of(pair: Pair, raw: object) -> Prompt:
    return pair.base_prompt(build_request("hi", raw_prompt=raw), datetime.now().astimezone())


def ids_of(pair: Pair, raw: object) -> list[int]:
    return Continuation(prompt_of(pair, raw), pair.base).ids(b"")[0]


@pytest.mark.parametrize("adds_bos", [True, False])
def test_a_text_gets_the_bos_that_the_model_adds_and_nothing_else(adds_bos: bool) -> None:
    with make_pair(adds_bos=adds_bos) as pair:
        text = "Question: the cat\n\nAnswer:"
        assert ids_of(pair, text) == [*([0] if adds_bos else []), *pair.base.tokenize(text.encode())]
        assert prompt_of(pair, text).end_strings == ()
        assert pair.base_prompt(build_request("hi"), datetime.now().astimezone()).end_strings != ()


@pytest.mark.parametrize("ids", [[7], [0, 0, 9], [1, 260], [300 - 36]])
def test_ids_are_taken_as_they_are(ids: list[int]) -> None:
    with make_pair() as pair:
        assert ids_of(pair, ids) == ids
        finished = pair.answer(build_request("hi", raw_prompt=ids, rule="base-only", max_tokens=3)).finish()
        assert finished.usage.base.n_prompt == len(ids)
        assert finished.usage.nudging.n_prompt == 0


def test_a_text_never_becomes_a_control_token() -> None:
    """Nor a user-defined token that looks like a marker."""
    with make_pair() as pair:
        text = "<bos><|turn|> the <eos> cat <|mark|>"
        ids = ids_of(pair, text)
        assert ids[0] == pair.base.info.bos
        assert not any(pair.base.is_control(token) or pair.base.is_user_defined(token) for token in ids[1:])
        assert b"".join(pair.base.piece(token) for token in ids) == text.encode()


def test_an_id_outside_the_vocabulary_is_refused_with_both_numbers() -> None:
    with make_pair() as pair:
        n_vocab = pair.base.info.n_vocab
        with pytest.raises(InputError, match=rf"token id {n_vocab} .* 0 to {n_vocab - 1}"):
            pair.answer(build_request("hi", raw_prompt=[1, n_vocab]))
        with pytest.raises(InputError, match=str(10**30)):
            pair.answer(build_request("hi", raw_prompt=[10**30]))


def test_an_empty_text_needs_a_bos() -> None:
    with make_pair() as pair:
        assert ids_of(pair, "") == [0]
    no_bos = ToyVocabulary(WORDS, markers=("<eos>", "<|turn|>", "<|end|>"))
    with make_pair(no_bos) as pair:
        with pytest.raises(InputError, match="prompt is empty"):
            pair.answer(build_request("hi", raw_prompt=""))
        assert ids_of(pair, "a") == pair.base.tokenize(b"a")


@pytest.mark.parametrize("raw", [[], [True], [-1], [1.5], "\ud800", 5, {1}, b"ab"], ids=repr)
def test_what_is_no_prompt_is_refused_by_name(raw: object) -> None:
    with pytest.raises(InputError, match="raw_prompt"):
        build_request("hi", raw_prompt=raw)


@pytest.mark.parametrize("logprobs", [-1, 21, True, 1.5, "3"])
def test_a_bad_number_of_alternatives_is_refused_by_name(logprobs: object) -> None:
    with pytest.raises(InputError, match="logprobs"):
        build_request("hi", logprobs=logprobs)


def test_the_nudging_model_is_given_the_messages() -> None:
    with make_pair() as pair:
        now = datetime.now().astimezone()
        prompt = pair.nudging_prompt(build_request("the cat", raw_prompt=[7, 8]), now)
        assert prompt == pair.nudging_prompt(build_request("the cat"), now)


def test_a_completion_keeps_the_blank_it_begins_with() -> None:
    vocabulary = ToyVocabulary((" the", " cat"))
    with make_pair(vocabulary) as pair:
        base = pair.base
        for number in range(200):
            raw = [0, *vocabulary.tokenize(b"q%d" % number)]
            base.clear()
            base.evaluate(raw, [len(raw) - 1])
            first = base.piece(int(base.scores(len(raw) - 1).argmax()))
            pair.forget()
            if first.startswith(b" "):
                request = build_request("hi", raw_prompt=raw, rule="base-only", max_tokens=1)
                (piece,) = [event for event in pair.answer(request) if isinstance(event, Piece)]
                assert piece.text.encode() == first
                return
    raise AssertionError("no prompt goes on with a blank")


@pytest.mark.parametrize("vocabulary", [BASE_VOCABULARY, SPM_VOCABULARY], ids=["plain", "space prefix"])
def test_the_decoder_equals_the_reference_behind_ids(vocabulary: ToyVocabulary) -> None:
    for number in range(8000, 8030):
        world = random_world(number, raw_prompt=[5, 6])
        rng = random.Random(number)
        scorer = random_scorer(rng, vocabulary)
        raw = [rng.randrange(len(vocabulary)) for _ in range(rng.randint(1, 6))]
        world = dataclasses.replace(
            world,
            base=lambda vocabulary=vocabulary, scorer=scorer, **options: FakeBackend(vocabulary, scorer, **options),
            base_prompt=encode_raw(FakeBackend(vocabulary, scorer), raw),
        )
        assert_same(world, number)


def assert_same(world: World, number: int) -> None:
    assert decoded(list(world.decoder().run())) == referred(world.reference()), f"world {number}"


@pytest.mark.native
@pytest.mark.parametrize("name", VOCABULARIES)
@pytest.mark.parametrize("long_bytes", [continuation_module.LONG_BYTES, 0], ids=["short texts whole", "in parts"])
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    parts=st.lists(
        st.sampled_from(
            [" the", "re", " unbeliev", "able", "\n\n", " 日本語", "é", "12", ", ", "  x", "</s>", "\u2581"]
        ),
        min_size=1,
        max_size=8,
    )
)
def test_an_answer_behind_ids_keeps_them_and_its_own_text(
    name: str, long_bytes: int, open_vocab: Callable[[str], Backend], monkeypatch: pytest.MonkeyPatch, parts: list[str]
) -> None:
    """No blank comes between the ids and the answer, and no id of the prompt changes at a handoff."""
    monkeypatch.setattr(continuation_module, "LONG_BYTES", long_bytes)
    backend = open_vocab(name)
    raw = backend.tokenize(b"One more unbel")
    view = Continuation(encode_raw(backend, raw), backend)
    answer = b""
    for part in parts:
        answer += part.encode()
        ids, overlap = view.ids(answer)
        shown = answer.rstrip(b" ")
        assert ids[: len(raw)] == raw
        assert b"".join(backend.piece(token) for token in ids[len(raw) :]) == shown
        assert overlap == len(answer) - len(shown)
        assert not any(backend.is_control(token) for token in ids[len(raw) :])


@pytest.mark.native
@pytest.mark.parametrize("name", VOCABULARIES)
def test_a_raw_text_holds_no_marker(name: str, open_vocab: Callable[[str], Backend]) -> None:
    backend = open_vocab(name)
    text = "a </s> b <|im_end|> c <|endoftext|> d <bos> e <s> f"
    ids, _ = Continuation(encode_raw(backend, text), backend).ids(b"")
    if backend.info.adds_bos:
        assert ids.pop(0) == backend.info.bos
    assert not any(backend.is_control(token) for token in ids)
    blank = b" " if backend.info.adds_space_prefix else b""
    assert b"".join(backend.piece(token) for token in ids) == blank + text.encode()
