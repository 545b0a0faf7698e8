"""What a page says in words: reasons, endings, causes and settings, each for a reader who has not seen the code.

Owns the sentences. Never decides where one stands.
"""

from __future__ import annotations

from edge_nudge.core.events import Cause, FinishDetail, HandoffReason, Role

AUTHORS = {Role.BASE: "base model", Role.NUDGING: "nudging model"}

REASONS = {
    HandoffReason.OPENING: "it opens the answer",
    HandoffReason.UNSURE: "base model unsure",
    HandoffReason.BASE_END: "the base model ended its text here",
    HandoffReason.LOOP: "the base model repeated itself; the repetition was dropped",
    HandoffReason.UNUSABLE: "the base model's token was no text",
    HandoffReason.CONFIDENT: "base model sure",
    HandoffReason.AGREED: "both models agree on the next word",
    HandoffReason.BLENDED: "base model unsure; drawn from the mix of both models",
    HandoffReason.POLICY: "the rule lets only this model write",
}

ENDINGS = {
    FinishDetail.END_OF_GENERATION: "the answer was finished",
    FinishDetail.CONTROL_TOKEN: "the model wrote a control token",
    FinishDetail.RESTART_GUARD: "the base model ended, and so would the nudging model",
    FinishDetail.STOP_STRING: "a stop string came",
    FinishDetail.LOOP: "the answer could only have gone on by repeating itself",
    FinishDetail.MAX_TOKENS: "the limit of tokens was reached",
    FinishDetail.BASE_CONTEXT: "the base model's context was full",
    FinishDetail.NUDGING_CONTEXT: "the nudging model's context was full",
    FinishDetail.MAX_TURNS: "the limit of nudging turns was reached",
    FinishDetail.CANCELLED: "somebody cancelled it",
}

CAUSES = {
    Cause.PROMPT: ("prompt", "reading the prompt"),
    Cause.OWN: ("own", "written by this model"),
    Cause.CATCH_UP: ("catch-up", "written by the other model, read here"),
    Cause.REEVALUATED: ("again", "known before, dropped at a seam, read once more"),
    Cause.VERIFIED: ("guessed right", "evaluated ahead on a guess that came true: each saved work"),
    Cause.WASTED: ("guessed wrong", "evaluated ahead on a guess that did not come true"),
}

OPEN_END = "the recording ends here: the program was stopped before it could say why"


def percent(prob: float | None) -> str:
    """Write a probability; small and nearly certain ones keep a digit."""
    if prob is None:
        return "not known"
    share = min(100.0, max(0.0, prob * 100))
    if 0.95 <= share < 99.5 or share in (0.0, 100.0):
        return f"{share:.0f} %"
    if share < 0.1:
        return "< 0.1 %"
    return f"{share:.1f} %" if share < 99.95 else "> 99.9 %"


def count(number: int, one: str, many: str | None = None) -> str:
    """Write a number with its noun."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def spoken(data: dict[Cause, int]) -> str:
    """Say how many tokens of which cause."""
    n_tokens = sum(data.values())
    parts = [f"{n} {CAUSES[cause][0]}" for cause, n in data.items() if n]
    return f"{count(n_tokens, 'token')}: {', '.join(parts)}" if parts else "no tokens"
