"""Text from a model made harmless to look at: what would move a cursor, reorder or hide text becomes an escape.

Owns which characters those are. Never changes what is stored or sent.

1. Joiners, marks and variation selectors stay: scripts and emoji need them. Newlines and tabs stay in `visible`.
2. An escape is ASCII: `\\x1b`, `\\u202e`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

# C0 but tab and newline, DEL, C1; line and paragraph separators; bidi embeddings, overrides and isolates (the
# "Trojan source" set); zero-width and invisible operators that no script needs; interlinear annotation.
_HIDDEN = re.compile("([\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff])")


def visible(text: str) -> str:
    """Write what a terminal would act on, reorder or hide as escapes; newlines and tabs stay."""
    return _HIDDEN.sub(lambda match: _escape(match.group()), text)


def one_line(text: str) -> str:
    """Write a text as `visible` does, newlines and tabs as well: for names and messages."""
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def visible_parts(text: str) -> Iterator[tuple[str, bool]]:
    """Yield the text in parts, each with whether it is an escape, so that escapes can be set apart from text."""
    for i, part in enumerate(_HIDDEN.split(text)):
        if part:
            yield (_escape(part), True) if i % 2 else (part, False)


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
