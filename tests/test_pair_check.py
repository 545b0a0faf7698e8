"""`edge-nudge pair check`: what is said of two files, and the exit code."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from cli_fakes import B, Invoke, N, Script, invoker, loader
from gguf import TokenType
from tiny_gguf import CHATML, write_tiny

from edge_nudge.cli import pair as command
from edge_nudge.engine import fitting, pairing
from edge_nudge.engine.devices import Machine
from edge_nudge.engine.pairing import Finding

pytestmark = pytest.mark.native

THINKS = CHATML.replace("assistant\n", "assistant\n{% if not enable_thinking %}<think></think>{% endif %}")
ALWAYS_THINKS = CHATML.replace("assistant\n", "assistant\n<think>\n")
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
GEMMA_LIKE = CHATML.replace("<|im_start|>", "<start_of_turn>").replace("<|im_end|>", "<end_of_turn>")


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Invoke]:
    yield from invoker(monkeypatch, tmp_path)


Check = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def check(invoke: Invoke, tmp_path: Path) -> Check:
    """Check two tiny models; the fields of each are those of write_tiny."""

    def run(
        base: dict[str, Any] | None = None, nudging: dict[str, Any] | None = None, *arguments: str, **more: Any
    ) -> tuple[int, dict[str, Any]]:
        files = []
        for name, fields in (
            ("base", base or {}),
            ("nudging", {"vocab": "bpe", "chat_template": CHATML} | (nudging or {})),
        ):
            fields = dict(fields)
            files.append(str(write_tiny(tmp_path / f"{name}.gguf", fields.pop("arch", "llama"), **fields)))
        ended = invoke("pair", "check", "-m", files[0], "--nudge", files[1], "--json", *arguments, **more)
        assert ended.err == ""
        return ended.code, json.loads(ended.out)

    return run


def said(document: dict[str, Any], topic: str, *, model: str | None = "nudging") -> list[tuple[str, str]]:
    return [(f["level"], f["text"]) for f in document["findings"] if (f["topic"], f["model"]) == (topic, model)]


def test_a_pair_that_works(check: Check) -> None:
    code, document = check()
    assert (code, document["verdict"], document["works"]) == (0, "works", True)
    assert {finding["level"] for finding in document["findings"]} <= {"ok", "note"}
    assert said(document, "end of an answer") == [("ok", "it ends an answer with <|im_end|>")]
    assert said(document, "thinking") == [("ok", "it has no thinking mode")]
    assert "different" in said(document, "vocabularies", model=None)[0][1]
    assert "llama, 2 layers, F32" in said(document, "architecture", model="base")[0][1]
    assert "at contexts of 256 and 256 tokens" in said(document, "memory", model=None)[0][1]


def test_vocabularies_are_compared_by_hash(check: Check) -> None:
    _, document = check({"vocab": "bpe", "seed": 3})
    (found,) = said(document, "vocabularies", model=None)
    assert found[0] == "ok"
    assert found[1].startswith("the same, ")
    _, document = check({"vocab": "bpe", "changes": {"tokenizer.ggml.pre": "llama-bpe"}})
    assert said(document, "vocabularies", model=None)[0][1].startswith("different")


def test_one_file_twice(invoke: Invoke, tmp_path: Path) -> None:
    path = str(write_tiny(tmp_path / "m.gguf", vocab="bpe", chat_template=CHATML))
    ended = invoke("pair", "check", "-m", path, "--nudge", path)
    assert ended.code == 5
    assert "warning vocabularies: both models are one file: nudging changes nothing\n" in ended.out
    assert ended.out.endswith("The pair works, with warnings.\n")


@pytest.mark.parametrize(
    ("fields", "topic", "level", "part", "code"),
    [
        ({"chat_template": None}, "template", "fault", "has no chat template", 1),
        ({"chat_template": "{% for %}"}, "template", "fault", "line 1", 1),
        ({"chat_template": "hello"}, "template", "fault", "drops the text of message", 1),
        ({"chat_template": NO_SYSTEM}, "template", "note", "no place for a system message", 0),
        ({"chat_template": "{{ messages | map(attribute='content') | join('#') }}"}, "template", "warning",
         "not one of its markers", 5),
        ({"chat_template": GEMMA_LIKE, "vocab": "spm"}, "end of an answer", "ok", "<end_of_turn>", 0),
        ({"chat_template": THINKS}, "thinking", "ok", "switches thinking off", 0),
        ({"chat_template": ALWAYS_THINKS}, "thinking", "warning", "cannot switch thinking off", 5),
        ({"arch": "mamba"}, "rewinding", "warning", "cannot forget", 5),
    ],
)  # fmt: skip
def test_nudging_models_that_are_odd(
    check: Check, fields: dict[str, Any], topic: str, level: str, part: str, code: int
) -> None:
    found, document = check({}, fields)
    assert any(one[0] == level and part in one[1] for one in said(document, topic)), document["findings"]
    assert found == code


def test_an_end_of_turn_that_ends_nothing(check: Check) -> None:
    """The marker is a control token, but the file names another one as its end."""
    template = CHATML.replace("<|im_end|>", "<|im_start|>")
    code, document = check({}, {"chat_template": template})
    (found,) = said(document, "end of an answer")
    assert found[0] == "warning"
    assert "--stop <|im_start|>" in found[1]
    assert code == 5


def test_byte_tokens_of_the_wrong_type(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    import tiny_gguf

    spm = tiny_gguf._spm

    def mistyped() -> dict[str, TokenType]:
        tokens = spm()
        return tokens | {"<0x0A>": TokenType.NORMAL}

    monkeypatch.setattr(tiny_gguf, "_spm", mistyped)
    code, document = check({"vocab": "spm"})
    assert "warning" in {level for level, text in said(document, "text", model="base") if "1 byte tokens" in text}
    assert code == 5


def test_a_base_file_with_a_template_is_noted(check: Check) -> None:
    code, document = check({"chat_template": CHATML, "vocab": "bpe", "seed": 1})
    assert said(document, "kind", model="base")[0][0] == "note"
    assert code == 0


def test_a_file_that_cannot_be_used_is_a_finding(invoke: Invoke, tmp_path: Path) -> None:
    nudging = str(write_tiny(tmp_path / "n.gguf", "bert", vocab="bpe"))
    ended = invoke("pair", "check", "-m", str(tmp_path / "none.gguf"), "--nudge", nudging, "--json")
    assert (ended.code, ended.err) == (1, "")
    document = json.loads(ended.out)
    assert document["verdict"] == "does not work"
    assert "does not exist" in said(document, "file", model="base")[0][1]
    assert "is an embedding" in said(document, "file")[0][1]


def test_a_pair_that_does_not_fit(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "read_machine", lambda: Machine(1 << 30, 1 << 20, 0))
    code, document = check()
    assert said(document, "memory", model=None)[0][0] == "fault"
    assert code == 1
    code, document = check({}, {}, "--no-fit-check")
    assert said(document, "memory", model=None)[0][0] == "warning"
    assert code == 5


def test_a_wrong_option_is_named(invoke: Invoke) -> None:
    ended = invoke("pair", "check", "-m", "a", "--nudge", "b", "-c", "-5")
    assert ended.code == 2
    assert ended.error.startswith("error: -c is -5")


# --- trying


def script(n_base: int, n_nudging: int) -> Script:
    return [(f" b{i}", B) for i in range(n_base)] + [(f" n{i}", N) for i in range(n_nudging)]


@pytest.mark.parametrize(("n_base", "n_nudging", "level"), [(60, 2, "ok"), (10, 20, "warning")])
def test_the_nudging_ratio_is_measured(check: Check, n_base: int, n_nudging: int, level: str) -> None:
    words: Sequence[tuple[str, Any]] = [("The", N), *script(n_base, n_nudging)]
    code, document = check({}, {}, "--try", load=loader(words))
    ((found, text),) = said(document, "nudging ratio", model=None)
    assert found == level, text
    assert len(document["tried"]["answers"]) == len(command.TRIED)
    assert (document["tried"]["ratio_tokens"] > pairing.MOST_NUDGED) is (level == "warning")
    assert code == (5 if level == "warning" else 0)


def test_nothing_is_loaded_where_it_cannot_work(check: Check) -> None:
    def load(*_: Any, **__: Any) -> Any:
        raise AssertionError("nothing may be loaded")

    code, document = check({}, {"chat_template": None}, "--try", load=load)
    assert (code, document["tried"]) == (1, None)


def test_the_verdict() -> None:
    def of(*levels: Any) -> int:
        return command.verdict([Finding(level, "x", None, "y") for level in levels])

    assert (of("ok", "note"), of("ok", "warning"), of("warning", "fault")) == (0, 5, 1)
