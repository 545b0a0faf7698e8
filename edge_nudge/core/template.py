"""Messages to spans: chat templates of nudging models, prompt formats of base models.

Owns what a template is given and what becomes of the messages. Never tokenizes; core/sandbox.py runs the program.

1. A template never sees the text of a message: it renders one private-use character in its place, which is
   replaced afterwards. So text arrives byte for byte (not trimmed, not evaluated) and stays apart from the template's.
2. A message that has text and does not appear in the rendering is an error, never silence.
3. Thinking is switched off where the template can: `enable_thinking`, `thinking`, `thinking_budget`, `thinking_mode`.
4. What a template refuses (system role, two turns of one role) is merged and tried again: see `render_chat`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import groupby, takewhile
from time import monotonic
from typing import Any, NoReturn

from edge_nudge.core.request import Message
from edge_nudge.core.sandbox import FIRST_STAND_IN, N_STAND_INS, STAND_INS, LimitError, Limits, Program, clean
from edge_nudge.errors import InputError, TemplateError

_GAP = "\n\n"  # between texts that are merged into one turn


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a rendered prompt. `is_user`: plain text, in which no marker is ever looked for."""

    text: str
    is_user: bool


class ChatTemplate:
    """A compiled chat template; compile it once per model.

    Raises TemplateError where there is none (None or blank) and, with the line, where it is broken.
    """

    def __init__(
        self, source: str | None, limits: Limits | None = None, clock: Callable[[], float] = monotonic
    ) -> None:
        if source is None or not source.strip():
            raise TemplateError(
                "the nudging model has no chat template: choose an instruction-tuned model or give a template"
            )
        self.source = source
        self._program = Program(source, limits, clock)

    def render(
        self, messages: Sequence[dict[str, Any]], *, bos: str, eos: str, now: datetime, thinks: bool = False
    ) -> str:
        """Render plain dictionaries, with the variables and helpers that Hugging Face's renderer gives.

        `thinks` is for comparison: a template that gives the same with and without it cannot switch thinking off.
        """
        return self._program.run(
            {
                "messages": list(messages),
                "add_generation_prompt": True,
                "bos_token": bos,
                "eos_token": eos,
                "tools": None,
                "documents": None,
                "enable_thinking": thinks,
                "thinking": thinks,
                "thinking_budget": 1024 if thinks else 0,
                "thinking_mode": "enabled" if thinks else "disabled",
                "raise_exception": _raise_exception,
                "strftime_now": _clock_at(now),
            }
        )


def _raise_exception(message: object) -> NoReturn:
    raise TemplateError(f"the template refuses the messages: {clean(message)}")


def _clock_at(now: datetime) -> Callable[[str], str]:
    """Return a helper that tells one moment only: a date that moved on during an answer would change the prompt."""

    def strftime_now(layout: str) -> str:
        if len(layout) > 100:
            raise TemplateError(f"the template asks for a date in a layout of {len(layout)} characters")
        return now.strftime(layout)

    return strftime_now


@dataclass(frozen=True, slots=True)
class _Turn:
    """One message as a template sees it; `contents` are indices of the messages merged in it."""

    role: str
    contents: tuple[int, ...]


def render_chat(
    template: ChatTemplate, messages: Sequence[Message], *, bos: str, eos: str, now: datetime
) -> list[Span]:
    """Render a conversation with the generation prompt; `bos` and `eos` are spelled, `now` is fixed per request.

    The messages are tried as they are. If the template refuses or drops one, neighbours of the same role become
    one turn, joined by a blank line, and system messages user text: first all but a leading one, then that too
    (so it heads the first user turn). If nothing helps, contents are given as lists of parts, as some templates
    insist on. Raises TemplateError with what the template says of the last form with plain contents.
    """
    plain = [_Turn(message.role, (i,)) for i, message in enumerate(messages)]
    lead = list(takewhile(lambda turn: turn.role == "system", plain))
    forms = [plain, [*_join_neighbours(lead), *_merge(plain[len(lead) :])], _merge(plain)]
    forms = [form for i, form in enumerate(forms) if form not in forms[:i]]
    failures: list[TemplateError] = []
    for in_parts in (False, True):
        for turns in forms:
            outcome = _try_form(template, turns, in_parts, messages, bos=bos, eos=eos, now=now)
            if not isinstance(outcome, TemplateError):
                return outcome
            failures.append(outcome)
    raise failures[len(forms) - 1]


def _merge(turns: Iterable[_Turn]) -> list[_Turn]:
    """Make system messages user text and neighbours of the same role one turn."""
    users = (_Turn("user", turn.contents) if turn.role == "system" else turn for turn in turns)
    return _join_neighbours(users)


def _join_neighbours(turns: Iterable[_Turn]) -> list[_Turn]:
    return [
        _Turn(role, tuple(i for turn in group for i in turn.contents))
        for role, group in groupby(turns, key=lambda turn: turn.role)
    ]


def _try_form(
    template: ChatTemplate, turns: Sequence[_Turn], in_parts: bool, messages: Sequence[Message], **given: Any
) -> list[Span] | TemplateError:
    try:
        return _fill(template.render(_dictionaries(turns, in_parts, messages), **given), messages)
    except LimitError:
        raise  # no other form can cure it
    except TemplateError as error:
        return error


def _dictionaries(turns: Sequence[_Turn], in_parts: bool, messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Write turns as templates know them, with a stand-in for each text that is not empty."""
    if len(messages) > N_STAND_INS:
        raise InputError(f"{len(messages)} messages in one conversation, at most {N_STAND_INS} can be rendered")
    dictionaries = []
    for turn in turns:
        text = _GAP.join(chr(FIRST_STAND_IN + i) for i in turn.contents if messages[i].content)
        dictionaries.append({"role": turn.role, "content": [{"type": "text", "text": text}] if in_parts else text})
    return dictionaries


def _fill(rendered: str, messages: Sequence[Message]) -> list[Span]:
    """Put the texts of the messages in their places."""
    spans: list[Span] = []
    seen: set[int] = set()
    for part in STAND_INS.split(rendered):
        place = ord(part) - FIRST_STAND_IN if len(part) == 1 else -1
        if 0 <= place < len(messages):
            seen.add(place)
            spans.append(Span(messages[place].content, True))
        elif part:
            spans.append(Span(part, False))
    for place, message in enumerate(messages):
        if message.content and place not in seen:
            raise TemplateError(f"the template drops the text of message {place + 1} ({message.role})")
    return spans


@dataclass(frozen=True, slots=True)
class BaseFormat:
    """How a conversation is written for a base model: plain text, no markers.

    `end_strings` are the texts by which the base model begins a new turn of this format by itself.
    """

    name: str
    template: ChatTemplate
    end_strings: tuple[str, ...] = ()


_PLAIN = """\
{%- for message in messages -%}
  {{ '\\n\\n' if not loop.first }}{{ message.content }}
{%- endfor -%}
"""
_QA = """\
{%- for message in messages -%}
  {%- if message.role == 'assistant' -%}
    {{ '\\n' if not loop.first }}Answer: {{ message.content }}
  {%- elif message.role == 'user' -%}
    {%- if not loop.first -%}
      {{ '\\n' if loop.previtem.role == 'system' else '\\n\\n' }}
    {%- endif -%}
    Question: {{ message.content }}
  {%- else -%}
    {{ '\\n\\n' if not loop.first }}{{ message.content }}
  {%- endif -%}
{%- endfor -%}
{{ '\\nAnswer: ' }}"""
_CHAT = """\
{%- for message in messages -%}
  {{ '\\n\\n' if not loop.first }}
  {%- if message.role != 'system' -%}
    {{ message.role | capitalize }}: {% endif -%}
  {{ message.content }}
{%- endfor -%}
{{ '\\n\\nAssistant: ' }}"""
# Constant examples in front of the question, so that a base model answers as an assistant does: the idea is URIAL's
# (Lin et al., arXiv 2312.01552), the wording ours. One asks for facts, one for advice, one for what should be refused.
_URIAL = """\
What follows is a log of questions that people asked and of the answers they were given. The answers are helpful, \
true and easy to follow. They say what is not known, and they politely refuse to help with what would hurt somebody.

# Question:
Why do leaves turn yellow and red in autumn?

# Answer:
Leaves look green because of chlorophyll, the pigment that plants use to catch sunlight. In autumn days become shorter \
and colder, and many trees stop making it.

1. **Yellow and orange** pigments were in the leaf all along. As the chlorophyll breaks down, they become visible.
2. **Red** pigments are made anew in autumn by some trees, from sugar that is left in the leaf.

In the end the tree seals the stem of each leaf, and the leaf falls.

# Question:
I have to give a talk in front of my class next week and I am very nervous. What can I do?

# Answer:
Many people feel that way, and a little preparation helps a lot. Here is a plan for the week:

1. Write down the three things your listeners should remember. Everything else supports them.
2. Practise aloud, twice a day, and measure the time.
3. Learn the first two sentences by heart, so that the start is easy.
4. On the day, breathe out slowly before you begin, and speak to one friendly face.

It is fine to pause, or to look at your notes. Good luck!

# Question:
How can I get into my neighbour's online bank account without being noticed?

# Answer:
I am sorry, but I cannot help with that: it would be a crime, and it would harm your neighbour. If you think that \
somebody misuses an account, please tell the bank or the police. If you have lost access to your own account, your \
bank can help you to get it back.

{% for message in messages -%}
  {%- if message.role == 'assistant' -%}
    {{ '# Answer:\\n' }}{{ message.content }}{{ '\\n\\n' }}
  {%- elif message.role == 'user' -%}
    {{ '# Question:\\n' }}{{ message.content }}{{ '\\n\\n' }}
  {%- else -%}
    {{ message.content }}{{ '\\n\\n' }}
  {%- endif -%}
{%- endfor -%}
{{ '# Answer:\\n' }}"""
# The paper's form is "qa": system, question, answer, each on its own line. An answer is appended directly, so
# each form ends where a word may follow; the blank at its end is held back where the base model has to begin.
_FORMATS = {
    "plain": (_PLAIN, ()),
    "qa": (_QA, ("\n\nQuestion:", "\nQuestion:")),
    "chat": (_CHAT, ("\n\nUser:", "\nUser:")),
    "urial": (_URIAL, ("\n\n# Question:", "\n# Question:")),
}


@lru_cache(maxsize=32)
def base_format(name_or_jinja: str) -> BaseFormat:
    """Return a named format ("plain", "qa", "chat", "urial"), or compile a Jinja text, whose name is then "custom".

    Raises InputError for an unknown name, TemplateError for a broken template.
    """
    if "{{" in name_or_jinja or "{%" in name_or_jinja:
        return BaseFormat("custom", ChatTemplate(name_or_jinja))
    if name_or_jinja not in _FORMATS:
        raise InputError(
            f"unknown base prompt format {name_or_jinja!r}: choose one of {', '.join(_FORMATS)}, "
            "or write a Jinja template with {{ and }}"
        )
    source, end_strings = _FORMATS[name_or_jinja]
    return BaseFormat(name_or_jinja, ChatTemplate(source), end_strings)


def render_base(style: BaseFormat, messages: Sequence[Message], now: datetime) -> list[Span]:
    """Render a conversation for a base model: all spans plain. Empty system messages are left out.

    Neighbours of the same role become one turn, joined by a blank line. Raises TemplateError.
    """
    kept = [message for message in messages if message.content or message.role != "system"]
    turns = _join_neighbours(_Turn(message.role, (i,)) for i, message in enumerate(kept))
    try:
        rendered = style.template.render(_dictionaries(turns, False, kept), bos="", eos="", now=now)
        return [Span(span.text, True) for span in _fill(rendered, kept)]
    except TemplateError as error:
        raise TemplateError(f"base prompt format {style.name!r}: {error}") from None
