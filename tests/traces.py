"""Traces for tests: made of anything a trace may hold, by hypothesis, and one small one written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from edge_nudge.core.events import Cause, FinishDetail, FinishReason, HandoffReason, Role
from edge_nudge.report.records import (
    FORMAT,
    FORMAT_VERSION,
    Alternative,
    CallRecord,
    FailedRecord,
    FinishedRecord,
    HandoffRecord,
    Header,
    Model,
    ModelTotals,
    PairRecord,
    PieceRecord,
    Spelled,
    Token,
    Totals,
    Trace,
    Turn,
    read_trace,
)

NASTY = (
    "<script>alert(1)</script>", "</style><b>", '" onmouseover="x', "'", "&amp;", "{{ 7 * 7 }}", "{% raw %}", "]]>",
    "\x1b[31m", "\u202egnp.exe", "\u2066", "\x00", "\r\n", "\u2028", "]", "日本語", "👩\u200d🔬", "e\u0301", "\n\n",
    "   ", "\t", "שלום", "",
)  # fmt: skip

texts = st.one_of(st.sampled_from(NASTY), st.text(st.characters(exclude_categories=["Cs"]), max_size=12))
probs = st.one_of(st.none(), st.sampled_from([0.0, 1e-9, 0.4, 0.999999, 1.0, 1.0005]), st.floats(0, 1))
logprobs = st.one_of(st.none(), st.sampled_from([0.0, 0.0005, -1e6]), st.floats(-30, 0))
times = st.one_of(st.sampled_from([0.0, 1e-9, 1e8]), st.floats(0, 30))
counts = st.integers(0, 5)
spelled = st.one_of(
    st.builds(Spelled, text=texts), st.builds(Spelled, text=texts, bytes=st.binary(max_size=4).map(bytes.hex))
)
alternatives = st.builds(Alternative, text=texts, logprob=logprobs)
tokens = st.builds(
    Token,
    text=texts,
    id=counts,
    logprob=logprobs,
    is_rest=st.booleans(),
    top=st.lists(alternatives, max_size=3).map(tuple),
)
pieces = st.builds(
    PieceRecord,
    type=st.just("piece"),
    at_s=times,
    text=texts,
    author=st.sampled_from(Role),
    top_prob=probs,
    reason=st.sampled_from(HandoffReason),
    n_tokens=counts,
    instead=st.one_of(st.none(), spelled),
    tokens=st.lists(tokens, max_size=3).map(tuple),
)
handoffs = st.builds(
    HandoffRecord,
    type=st.just("handoff"),
    at_s=times,
    to=st.sampled_from(Role),
    reason=st.sampled_from(HandoffReason),
    top_prob=probs,
)
evaluated = st.dictionaries(st.sampled_from(Cause), st.integers(0, 1000))
calls = st.builds(
    CallRecord, type=st.just("call"), model=st.sampled_from(Role), start_s=times, end_s=times, evaluated=evaluated
)
model_totals = st.builds(
    ModelTotals,
    n_prompt=counts,
    n_written=counts,
    n_chars=counts,
    n_calls=counts,
    n_asked=counts,
    native_s=times,
    prompt_s=times,
    evaluated=evaluated,
    n_reused=counts,
)
totals = st.builds(
    Totals,
    base=model_totals,
    nudging=model_totals,
    n_handoffs=counts,
    first_piece_s=st.one_of(st.none(), times),
    total_s=times,
)
ends = st.one_of(
    st.none(),
    st.builds(FailedRecord, type=st.just("failed"), at_s=times, message=texts),
    st.builds(
        FinishedRecord,
        type=st.just("finished"),
        at_s=times,
        reason=st.sampled_from(FinishReason),
        detail=st.sampled_from(FinishDetail),
        stop_string=st.one_of(st.none(), texts),
        seed=st.integers(0, 2**64 - 1),
        totals=totals,
    ),
)
models = st.builds(
    Model, name=texts, file=st.one_of(st.none(), texts), sha256=st.one_of(st.none(), texts), prompt_format=texts
)
settings = st.dictionaries(
    texts,
    st.one_of(st.none(), st.booleans(), counts, st.floats(0, 2), texts, st.lists(texts, max_size=2).map(tuple)),
    max_size=4,
)
headers = st.builds(
    Header,
    type=st.just("header"),
    format=st.just(FORMAT),
    format_version=st.just(FORMAT_VERSION),
    version=texts,
    created=texts,
    messages=st.lists(st.builds(Turn, role=texts, content=texts), max_size=2).map(tuple),
    settings=settings,
    pair=st.builds(PairRecord, name=st.one_of(st.none(), texts), base=models, nudging=models),
    warnings=st.lists(texts, max_size=2).map(tuple),
)
traces = st.builds(
    Trace,
    header=headers,
    pieces=st.lists(pieces, max_size=6).map(tuple),
    handoffs=st.lists(handoffs, max_size=3).map(tuple),
    calls=st.lists(calls, max_size=6).map(tuple),
    end=ends,
)

_HOME = "/home/somebody"
PAIR = {
    "name": "toy",
    "base": {"name": "Base", "file": "b.gguf", "path": f"{_HOME}/b.gguf", "n_ctx": 64, "prompt_format": "qa"},
    "nudging": {"name": "Nudging", "file": "n.gguf", "path": f"{_HOME}/n.gguf", "n_ctx": 64},
}


def _model_totals(**fields: Any) -> dict[str, Any]:
    known = dict.fromkeys(("n_prompt", "n_written", "n_chars", "n_calls", "n_asked", "n_reused"), 0)
    return {**known, "native_s": 0.5, "prompt_s": 0.25, "evaluated": {}, **fields}


def small_lines() -> list[dict[str, Any]]:
    """Return the records of a small trace, as dictionaries that a test can spoil."""

    return [
        {
            "type": "header",
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "version": "0.1.0",
            "created": "2026-01-02T03:04:05+00:00",
            "messages": [{"role": "user", "content": "Why <b>?"}],
            "settings": {"rule": "top_prob", "gamma": 0.4, "stop": ["###"], "max_tokens": None},
            "pair": PAIR,
            "load_s": 1.5,
            "warnings": [],
        },
        _call("nudging", 0.0, 0.2, prompt=9),
        _piece("Red", "nudging", None, "opening", 0.25),
        _call("base", 0.2, 0.3, prompt=4, verified=1, wasted=2),
        _handoff("base", "confident", 0.8, 0.3),
        _piece(" light", "base", 0.8, "confident", 0.3, {"text": " lig"}),
        _handoff("nudging", "unsure", 0.2, 0.4),
        _piece(" bends", "nudging", 0.2, "unsure", 0.45, {"text": " goes"}),
        _piece(" less", "nudging", 0.3, "unsure", 0.5, {"text": "\ufffd", "bytes": "f09f"}),
        _handoff("base", "confident", 0.9, 0.6),
        _piece("\u202e<i>\n", "base", 0.9, "confident", 0.6),
        _handoff("nudging", "base_end", 0.7, 0.7),
        {
            "type": "finished",
            "at_s": 0.75,
            "reason": "stop",
            "detail": "restart_guard",
            "stop_string": None,
            "seed": 3,
            "totals": {
                "base": _model_totals(n_written=2),
                "nudging": _model_totals(n_written=3),
                "n_handoffs": 4,
                "first_piece_s": 0.25,
                "total_s": 0.75,
            },
        },
    ]


def _piece(text: str, author: str, top_prob: float | None, reason: str, at_s: float, instead: Any = None) -> Any:
    top = [{"text": text, "logprob": -0.5}, {"text": " other", "logprob": -1.5}]
    return {
        "type": "piece",
        "at_s": at_s,
        "text": text,
        "author": author,
        "top_prob": top_prob,
        "reason": reason,
        "n_tokens": 1,
        "instead": instead,
        "tokens": [{"text": text, "id": 7, "logprob": -0.5, "top": top}],
    }


def _handoff(to: str, reason: str, top_prob: float, at_s: float) -> Any:
    return {"type": "handoff", "at_s": at_s, "to": to, "reason": reason, "top_prob": top_prob}


def _call(model: str, start_s: float, end_s: float, **evaluated: int) -> Any:
    return {"type": "call", "model": model, "start_s": start_s, "end_s": end_s, "evaluated": evaluated}


def write_lines(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def small_trace(folder: Path) -> Trace:
    return read_trace(write_lines(folder / "small.jsonl", small_lines()))
