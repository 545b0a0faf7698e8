"""What every page is made of: text that cannot be markup, and a policy that lets only the page's own parts run.

Owns escaping and how a policy names a style or a script. Never knows what a page shows.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files

from markupsafe import Markup, escape

from edge_nudge.core.visible import visible_parts


def shown(text: str) -> Markup:
    """Escape a text, with a mark at what would not be seen; newlines and blanks stay."""
    return Markup("").join(
        Markup('<span class="esc">{}</span>').format(part) if is_escape else escape(part)
        for part, is_escape in visible_parts(text)
    )


def flat(text: str) -> Markup:
    """Escape a text for a line of a table: newlines and tabs are marked, blanks stay."""
    return shown(text).replace("\n", sign("⏎")).replace("\t", sign("⇥"))


def sign(character: str) -> Markup:
    """Mark a character that stands for another one."""
    return Markup('<span class="ws">{}</span>').format(character)


@cache
def page_file(package: str, name: str) -> str:
    """Return a file of a package's folder `page`."""
    return files(package).joinpath("page").joinpath(name).read_text(encoding="utf-8").replace("\r\n", "\n")


def policy(style: str, script: str | None) -> str:
    """Return a content security policy under which only this style and this script run, and nothing is loaded."""
    scripts = "" if script is None else f"script-src '{_hash(script)}'; "
    return f"default-src 'none'; style-src '{_hash(style)}'; {scripts}base-uri 'none'; form-action 'none'"


def _hash(text: str) -> str:
    """Return how a content security policy names an inline text."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
