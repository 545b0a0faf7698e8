"""Base or instruct: what a model file seems to be, and the reason for thinking so.

Owns the signs and their order. Never opens a file; it is given what engine/gguf.py read of the header.

1. What people wrote into names comes first: base models of some makers carry a chat template too.
2. A guess is called a guess by its reason; without a sign the answer is "unknown".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from edge_nudge.engine.gguf import GgufHeader

_WORD = re.compile(r"[A-Za-z]+|[0-9]+")
_INSTRUCT = frozenset({"instruct", "it", "chat", "sft", "dpo", "rlhf", "assistant", "thinking", "instruction"})
_BASE = frozenset({"base", "pt", "pretrained", "text"})


@dataclass(frozen=True, slots=True)
class ModelKind:
    """What a model seems to be, and why."""

    kind: Literal["base", "instruct", "unknown"]
    why: str


def kind_of(header: GgufHeader, names: Sequence[str] = ()) -> ModelKind:
    """Guess from the header and from the names the file goes by elsewhere (file, repository, Ollama tag)."""
    of = header.metadata.get
    stated = [(f"general.{key}", str(of(f"general.{key}", ""))) for key in ("finetune", "name", "basename")]
    for where, text in (*stated, *(("its name", name) for name in names)):
        # "text" alone is a word of many names; as a sign it is Ollama's
        words = [word.lower() for word in _WORD.findall(text)]
        signs_base = _BASE if where == "its name" else _BASE - {"text"}
        instruct = next((word for word in words if word in _INSTRUCT), None)
        base = next((word for word in words if word in signs_base), None)
        if instruct and base:
            continue
        if base:
            more = "; its chat template is no sign against that, some base models carry one"
            return ModelKind("base", f'{where} says "{base}"{more if header.has_chat_template else ""}')
        if instruct:
            more = "" if header.has_chat_template else "; but it has no chat template of its own"
            return ModelKind("instruct", f'{where} says "{instruct}"{more}')
    if header.has_chat_template:
        return ModelKind("instruct", "it has a chat template, and no name says base")
    return ModelKind("base", "it has no chat template, and no name says instruct")
