"""What a chat says in words: the status line, who wrote what, the counts, and what to do when a context is full.

Owns the wording. Never writes anything anywhere.
"""

from __future__ import annotations

from collections.abc import Iterable

from edge_nudge.cli.chatting.conversation import Span
from edge_nudge.cli.chatting.settings import described
from edge_nudge.cli.chatting.state import Chat
from edge_nudge.core.events import Cause, FinishDetail, Finished, ModelUsage, Role
from edge_nudge.core.visible import one_line
from edge_nudge.errors import ContextOverflowError

SEPARATOR = " · "
ROOM = "/undo takes back a turn, /save FILE keeps all of it, /clear begins anew, a larger --ctx-size holds more"
_NORMAL = (FinishDetail.END_OF_GENERATION, FinishDetail.RESTART_GUARD, FinishDetail.CONTROL_TOKEN)


def status(chat: Chat) -> str:
    """Return the line under the prompt."""
    return SEPARATOR.join([one_line(chat.name), _rule(chat), f"context {_context(chat)}", "/help"])


def _rule(chat: Chat) -> str:
    nudge = chat.request("").nudge
    if nudge.rule.value in ("base-only", "nudging-only"):
        return nudge.rule.value
    rule = "" if nudge.rule.value == "top_prob" else f"{nudge.rule.value} "
    return f"{rule}gamma {nudge.threshold:g}"


def _context(chat: Chat) -> str:
    n_context = chat.n_context
    sizes = {role: model.n_ctx for role, model in chat.about.models.items()}
    if n_context is None:
        return SEPARATOR.join(f"{role.value} ? of {n_ctx}" for role, n_ctx in sizes.items()).replace(SEPARATOR, ", ")
    about = "~" if any(n_context.values()) else ""
    return ", ".join(f"{role.value} {about}{n_context[role]} of {n_ctx}" for role, n_ctx in sizes.items())


def authorship(spans: Iterable[Span], finished: Finished, width: int) -> str:
    """Return who wrote how much, and the nudging model's words as far as a line of `width` has room for them."""
    usage = finished.usage
    counts = f"base {usage.base.n_written}, nudging {usage.nudging.n_written} tokens ({usage.ratio_tokens:.0%} nudging)"
    line, shown = counts, 0
    words = [one_line(span.text.strip()) for span in spans if span.author is Role.NUDGING and span.text.strip()]
    for word in words:
        longer = f"{line}{SEPARATOR if shown else ': '}{word}"
        if len(longer) > width - 3:
            return f"{line} …" if shown else line
        line, shown = longer, shown + 1
    return line


def ending(chat: Chat, finished: Finished) -> str | None:
    """Return why an answer ended where that is not its own end."""
    detail = finished.detail
    if detail in _NORMAL:
        return None
    if detail is FinishDetail.CANCELLED:
        return "stopped; what there is of the answer stays in the conversation"
    if detail in (FinishDetail.BASE_CONTEXT, FinishDetail.NUDGING_CONTEXT):
        role = Role.BASE if detail is FinishDetail.BASE_CONTEXT else Role.NUDGING
        return f"the {role.value} model's context of {chat.about.models[role].n_ctx} tokens is full: {ROOM}"
    if detail is FinishDetail.STOP_STRING:
        return f"ended before the stop string {one_line(repr(finished.stop_string))}"
    why = {
        FinishDetail.LOOP: "it could only repeat itself (/set loop-guard off lets it)",
        FinishDetail.MAX_TOKENS: f"max-tokens {chat.settings.get('max_tokens')} are written",
        FinishDetail.MAX_TURNS: "the nudging model had all its turns (/set max-turns N)",
    }
    return f"ended: {why[detail]}"


def overflow(error: ContextOverflowError, *, is_anew: bool = False) -> str:
    """Say that a message has no room any more, and what to do."""
    where = "the answer before stays" if is_anew else "the message is back in the input line"
    return (
        f"the conversation with this message is {error.n_prompt} tokens for the {error.model} model, its context is "
        f"{error.n_ctx}. Nothing is lost, {where}: {ROOM}"
    )


def counts(chat: Chat) -> list[str]:
    """Return the counts of the last answer and of the chat."""
    if chat.last is None:
        return ["no answer yet"]
    written = ", ".join(f"{role.value} {n_tokens}" for role, n_tokens in chat.n_written.items())
    lines = [_reading(role, chat.last.usage.of(role)) for role in Role if chat.last.usage.of(role).n_prompt]
    return [
        *lines,
        f"context: {_context(chat)} tokens",
        f"this chat: {chat.n_answers} answer{'s' * (chat.n_answers != 1)}, written tokens: {written}",
    ]


def _reading(role: Role, usage: ModelUsage) -> str:
    n_read = usage.evaluated[Cause.PROMPT]
    return (
        f"{role.value} model: prompt of {usage.n_prompt} tokens, {usage.n_reused} from the cache and {n_read} read; "
        f"{usage.n_calls} calls, {usage.native_s:.2f} s"
    )


def about(chat: Chat) -> list[str]:
    """Return what the chat is: models, system message, settings."""
    lines = [
        f"{role.value} model: {one_line(model.path)}, context {model.n_ctx}"
        for role, model in chat.about.models.items()
    ]
    system, n_turns = chat.conversation.system, len(chat.conversation.turns)
    made = ", ".join(described(chat.settings))
    return [
        f"pair: {one_line(chat.name)}, {_rule(chat)}, base prompt format {one_line(chat.about.base_prompt_format)}",
        *lines,
        f"system message: {'none' if system is None else one_line(system)}",
        f"settings: {one_line(made) or 'all at their defaults'}",
        f"conversation: {n_turns} turn{'s' * (n_turns != 1)}, context {_context(chat)} tokens",
    ]
