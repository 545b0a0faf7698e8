"""The tokenizer routes: text to ids and back, under llama-server's field names and lm-eval's.

Owns both pairs of names. Works on a borrowed pair: never waits for a running job.

1. Text never becomes a control token by itself: `parse_special` has to ask for it.
2. One exception, for clients that look up the ids of `eos_token` and `bos_token` (lm-eval does): a `prompt` that is
   such a spelling and nothing else is that token.
3. BOS is put in front only where `add_special` (or `add_special_tokens`) asks for it and the model wants one.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from edge_nudge.core.backend import Backend
from edge_nudge.core.events import Role
from edge_nudge.core.request import whole_text
from edge_nudge.runtime import Pair
from edge_nudge.server.faults import RequestError

_Body = ConfigDict(frozen=True, strict=True, extra="ignore")
_Text = Annotated[str, AfterValidator(whole_text)]
_TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]


class TokenizeBody(BaseModel):
    """POST /tokenize."""

    model_config = _Body
    content: _Text | None = Field(None, description="the text, as llama-server's clients name it")
    prompt: _Text | None = Field(None, description="the text, as lm-eval names it")
    add_special: bool | None = Field(None, description="put BOS in front where the model wants it; default false")
    add_special_tokens: bool | None = None
    parse_special: bool | None = Field(None, description="read spellings of control tokens as such; default false")
    with_pieces: bool | None = Field(None, description="give each token's text too")
    role: Annotated[Role, Field(strict=False)] | None = Field(None, description="whose tokenizer; default base")


class DetokenizeBody(BaseModel):
    """POST /detokenize."""

    model_config = _Body
    tokens: list[_TokenId]
    parse_special: bool | None = Field(None, description="spell control tokens too; default false: they are no text")
    role: Annotated[Role, Field(strict=False)] | None = None


def tokenize(pair: Pair, body: TokenizeBody) -> dict[str, Any]:
    """Return the ids of a text. Raises RequestError."""
    backend = pair.backends[body.role or Role.BASE]
    if body.content is not None and body.prompt is not None:
        raise RequestError("prompt: give either content or prompt, not both", "prompt")
    text = body.prompt if body.content is None else body.content
    if text is None:
        raise RequestError("content: Field required", "content")
    info = backend.info
    named = {backend.spelling(token): token for token in (info.bos, info.eos) if token is not None}
    if body.prompt is not None and text in named:
        ids = [named[text]]
    else:
        ids = backend.tokenize(text.encode(), special=bool(body.parse_special))
    if (body.add_special or body.add_special_tokens) and info.adds_bos and info.bos is not None:
        ids = [info.bos, *ids]
    tokens = [{"id": token, "piece": _piece(backend, token)} for token in ids] if body.with_pieces else ids
    return {"tokens": tokens, "count": len(ids), "max_model_len": info.n_ctx}


def detokenize(pair: Pair, body: DetokenizeBody) -> dict[str, Any]:
    """Return the text of ids; bytes that are no text become U+FFFD. Raises RequestError."""
    backend = pair.backends[body.role or Role.BASE]
    n_vocab = backend.info.n_vocab
    wrong = next((token for token in body.tokens if token >= n_vocab), None)
    if wrong is not None:
        raise RequestError(f"tokens: token {wrong} is outside the vocabulary of {n_vocab}", "tokens")
    if body.parse_special:
        data = b"".join(_spelled(backend, token) for token in body.tokens)
    else:
        data = b"".join(map(backend.piece, body.tokens))
    if backend.info.adds_space_prefix:
        data = data.removeprefix(b" ")  # the blank that tokenizing put there
    text = data.decode("utf-8", "replace")
    return {"content": text, "prompt": text}


def tokenizer_info(pair: Pair) -> dict[str, Any]:
    """Return what a client needs to know of the base model's tokenizer, and the nudging model's chat template."""
    info = pair.base.info
    return {
        "tokenizer_class": info.architecture,
        "bos_token": None if info.bos is None else pair.base.spelling(info.bos),
        "bos_token_id": info.bos,
        "eos_token": None if info.eos is None else pair.base.spelling(info.eos),
        "eos_token_id": info.eos,
        "pad_token": None,
        "add_bos_token": info.adds_bos,
        "vocab_size": info.n_vocab,
        "model_max_length": info.n_ctx,
        "chat_template": pair.spec.chat_template or pair.nudging.info.chat_template,
    }


def _piece(backend: Backend, token: int) -> str | list[int]:
    """Return a token's text, or its bytes where they are none, as llama-server does."""
    data = backend.piece(token)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return list(data)


def _spelled(backend: Backend, token: int) -> bytes:
    return backend.spelling(token).encode() if backend.is_control(token) else backend.piece(token)
