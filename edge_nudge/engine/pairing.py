"""Do two model files work together: sentences about each model and about both, each with a level.

Owns the questions and how an answer is judged. Never loads weights: a tokenizer and a header are enough.

1. "fault": it cannot work. "warning": it works, and not as well as one may think. "note": good to know. "ok": right.
2. What is said of a template has been tried: a conversation is rendered and turned into ids, as for a request.
3. One question that fails does not keep the others from being asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Literal

from edge_nudge.core.events import Role
from edge_nudge.core.prompt import encode_prompt
from edge_nudge.core.request import Message
from edge_nudge.core.template import ChatTemplate, Span, base_format, render_base, render_chat
from edge_nudge.engine.footprint import footprint_of
from edge_nudge.engine.gguf import GgufHeader
from edge_nudge.errors import EdgeNudgeError, TemplateError

if TYPE_CHECKING:
    from edge_nudge.engine.llama import LlamaBackend

Level = Literal["ok", "note", "warning", "fault"]
MOST_NUDGED = 0.20  # of the tokens of an answer; above it the base model is hardly heard
_NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
_CONVERSATION = (
    Message(role="system", content="Be brief."),
    Message(role="user", content="What is a fjord?"),
    Message(role="assistant", content="An inlet between cliffs."),
    Message(role="user", content="And a delta?"),
)
_BYTE_NAME = re.compile(rb"<0x[0-9A-Fa-f]{2}>")
_THOUGHT = ("<think>", "<|think|>", "<thought>", "<|channel>thought", "<seed:think>")


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence; `model` None where it is about both."""

    level: Level
    topic: str
    model: Role | None
    text: str


def check_pair(
    headers: Mapping[Role, GgufHeader],
    models: Mapping[Role, LlamaBackend],
    *,
    base_prompt_format: str,
    chat_template: str | None,
    has_adapter: bool = False,
) -> list[Finding]:
    """Return what there is to say of two files, or of one and an adapter (then both headers are the base model's).

    `models` may be opened for their vocabularies only.
    """
    findings: list[Finding] = []
    for role, header in headers.items():
        findings += [about for about in _about_file(role, header) if not (has_adapter and about.topic == "kind")]
    if has_adapter:
        findings.append(Finding("ok", "vocabularies", None, "one: the nudging model is the base model with an adapter"))
    else:
        findings.append(_vocabularies(headers, models))
    findings += _base_prompt(models[Role.BASE], base_prompt_format)
    findings += _template(models[Role.NUDGING], chat_template)
    for role, model in models.items():
        findings += _tokens(role, model, headers[role])
    return findings


def _about_file(role: Role, header: GgufHeader) -> Iterator[Finding]:
    shape = footprint_of(header)
    size = f"{shape.n_layers} layers, {header.quantization or 'unknown quantisation'}"
    text = f"{header.architecture}, {size}, trained on contexts of {header.n_ctx_train} tokens"
    yield Finding("ok", "architecture", role, text)
    if shape.can_rewind:
        yield Finding("ok", "rewinding", role, "words can be taken back from its cache")
    else:
        yield Finding(
            "warning", "rewinding", role,
            "recurrent layers cannot forget a few tokens: at a handoff it goes back to a checkpoint or reads the text "
            "again, which is right and slow",
        )  # fmt: skip
    if role is Role.BASE and header.has_chat_template:
        yield Finding(
            "note", "kind", role,
            "the file has a chat template: it may be an instruction-tuned model, which has little to gain",
        )  # fmt: skip


def _vocabularies(headers: Mapping[Role, GgufHeader], models: Mapping[Role, LlamaBackend]) -> Finding:
    base, nudging = (models[role].info.n_vocab for role in Role)
    if headers[Role.BASE].path.resolve() == headers[Role.NUDGING].path.resolve():
        return Finding("warning", "vocabularies", None, "both models are one file: nudging changes nothing")
    if base == nudging and len({model.token_table_hash() for model in models.values()}) == 1:
        text = f"the same, {base} tokens with one hash; only text crosses all the same"
    else:
        text = f"different, {base} and {nudging} tokens; only text crosses, so any two can be a pair"
    return Finding("ok", "vocabularies", None, text)


def _base_prompt(model: LlamaBackend, name: str) -> Iterator[Finding]:
    try:
        style = base_format(name)
        prompt = encode_prompt(model, render_base(style, _CONVERSATION, _NOW), style.end_strings)
    except EdgeNudgeError as error:
        yield Finding("fault", "prompt format", Role.BASE, str(error))
        return
    n_ids = len(prompt.head) + len(model.tokenize(prompt.tail))
    yield Finding("ok", "prompt format", Role.BASE, f'a conversation in the form "{style.name}" is {n_ids} tokens')


def _template(model: LlamaBackend, override: str | None) -> Iterator[Finding]:
    info, role = model.info, Role.NUDGING
    bos, eos = (model.spelling(token) if token is not None else "" for token in (info.bos, info.eos))
    try:
        template = ChatTemplate(override or info.chat_template)
        spans = render_chat(template, _CONVERSATION, bos=bos, eos=eos, now=_NOW)
        prompt = encode_prompt(model, spans)
    except EdgeNudgeError as error:
        yield Finding("fault", "template", role, str(error))
        return
    n_markers = sum(model.is_control(token) or model.is_user_defined(token) for token in prompt.head)
    whose = "the pair's template" if override else "its own template"
    n_ids = len(prompt.head) + len(model.tokenize(prompt.tail))
    yield Finding("ok", "template", role, f"{whose} renders a conversation of four messages as {n_ids} tokens")
    if not n_markers:
        yield Finding(
            "warning", "template", role,
            "not one of its markers is a token of this vocabulary: the template belongs to another model",
        )  # fmt: skip
    if not _takes(template, "system", bos, eos):
        yield Finding("note", "template", role, "it has no place for a system message: that heads the first user text")
    yield from _end_of_turn(model, spans)
    yield from _thinking(model, template, bos, eos)


def _takes(template: ChatTemplate, first: str, bos: str, eos: str) -> bool:
    messages = [{"role": first, "content": "one"}, {"role": "user", "content": "two"}]
    try:
        return "one" in template.render(messages, bos=bos, eos=eos, now=_NOW)
    except TemplateError:
        return False


def _end_of_turn(model: LlamaBackend, spans: list[Span]) -> Iterator[Finding]:
    """Look at what the template writes behind an answer: the model was trained to end with that."""
    role = Role.NUDGING
    if not model.eog_tokens:
        yield Finding("fault", "end of an answer", role, "it has no token that ends an answer")
        return
    answer = next((i for i, span in enumerate(spans) if span.text == _CONVERSATION[2].content), None)
    behind = spans[answer + 1].text if answer is not None and answer + 1 < len(spans) else ""
    markers = [token for token in model.tokenize(behind.encode(), special=True) if model.is_control(token)]
    if markers and not model.is_eog(markers[0]):
        yield Finding(
            "warning", "end of an answer", role,
            f"its template ends an answer with {model.spelling(markers[0])}, which does not end one in this file: "
            f"answers may run on; give --stop {model.spelling(markers[0])}",
        )  # fmt: skip
    elif markers:
        yield Finding("ok", "end of an answer", role, f"it ends an answer with {model.spelling(markers[0])}")
    else:
        yield Finding("note", "end of an answer", role, "its template writes no token behind an answer")


def _thinking(model: LlamaBackend, template: ChatTemplate, bos: str, eos: str) -> Iterator[Finding]:
    role, question = Role.NUDGING, [{"role": "user", "content": "one"}]
    try:
        off, on = (template.render(question, bos=bos, eos=eos, now=_NOW, thinks=thinks) for thinks in (False, True))
    except TemplateError:  # a template that insists on another form; render_chat has found that out
        off = on = ""
    names = [name for name in _THOUGHT if name in template.source or _is_marker(model, name)]
    if on != off:
        yield Finding("ok", "thinking", role, "its template switches thinking off")
    elif not names:
        yield Finding("ok", "thinking", role, "it has no thinking mode")
    else:
        where = "its template knows" if names[0] in template.source else "its vocabulary has"
        yield Finding(
            "warning", "thinking", role,
            f"{where} {names[0]} and the template cannot switch thinking off: thoughts may stand in the answer",
        )  # fmt: skip


def _is_marker(model: LlamaBackend, text: str) -> bool:
    ids = model.tokenize(text.encode(), special=True)
    return len(ids) == 1 and (model.is_control(ids[0]) or model.is_user_defined(ids[0]))


def _tokens(role: Role, model: LlamaBackend, header: GgufHeader) -> Iterator[Finding]:
    """Look for what is odd in the tokens themselves."""
    info, n_before = model.info, 0
    if header.metadata.get("tokenizer.ggml.add_bos_token") is True and info.bos is None:
        n_before += 1
        yield Finding("warning", "special tokens", role, "the file wants a BOS token in front, and names none")
    for name, token in (("BOS", info.bos), ("EOS", info.eos)):
        if token is not None and not model.is_control(token):
            n_before += 1
            spelled = model.spelling(token)
            yield Finding(
                "warning", "special tokens", role, f"its {name} token {spelled} has the type of ordinary text"
            )
    if info.bos is not None and info.bos == info.eos:
        n_before += 1
        yield Finding("note", "special tokens", role, f"BOS and EOS are one token, {model.spelling(info.bos)}")
    if not n_before:
        bos = "no BOS" if info.bos is None else f"BOS {model.spelling(info.bos)}"
        adds = "put in front of a prompt" if info.adds_bos else "put in front only where a template writes it"
        eos = "no EOS" if info.eos is None else f"EOS {model.spelling(info.eos)}"
        yield Finding("ok", "special tokens", role, f"{bos}, {adds}; {eos}")
    yield from _bytes(role, model, header)


def _bytes(role: Role, model: LlamaBackend, header: GgufHeader) -> Iterator[Finding]:
    n_mistyped = 0
    if header.metadata.get("tokenizer.ggml.model") == "llama":
        n_mistyped = sum(bool(_BYTE_NAME.fullmatch(model.piece(token))) for token in range(model.info.n_vocab))
    if n_mistyped:
        yield Finding(
            "warning", "text", role,
            f"{n_mistyped} byte tokens have the type of ordinary text: they are written out, like <0x0A> for a line "
            "end; get another conversion of the model",
        )  # fmt: skip
    defect = model.defect
    if defect is None and not n_mistyped:
        yield Finding("ok", "text", role, "any text survives its tokenizer")
    elif defect is not None:
        level: Level = "warning" if "ordinary text" in defect else "note"
        yield Finding(level, "text", role, f"its tokenizer loses something: {defect}")
