"""The confidence bet inside the base model's turn: where the nudging model is asked, and what it thinks there.

Owns what such a place is. Never decides: the rule does (policy.Bet; arXiv 2604.16146).

1. Where the bet is won whatever the nudging model thinks, it is not asked: no probability is above 1. Nothing is
   written ahead: the nudging model reads all that came since the last question in one batch, and only where its
   answer can change something. Writing on behind an open bet wastes steps of the larger model: runs of 8 tokens on the
   demo pair (3 prompts, 60 tokens each) wasted 92 of its tokens for 97 written.
2. A place is where the answer is whole characters and the base model's next token leaves the nudging model's ids of
   the answer as they are. Elsewhere, inside one of its tokens or of a character, the nudging model has no opinion.
"""

from __future__ import annotations

from dataclasses import replace

from edge_nudge.core.draft import Draft
from edge_nudge.core.policy import NudgePolicy
from edge_nudge.core.sampling import Probe
from edge_nudge.core.writer import Writer


def with_opinion(
    probe: Probe, policy: NudgePolicy, base: Writer, nudging: Writer, answer: bytes, draft: Draft
) -> Probe | None:
    """Add to a probe of the base model what the nudging model thinks at the same place, as far as the rule needs it.

    `draft` is what the base model has written behind `answer`. None where the nudging model has no room.
    Raises EngineError, Cancelled, NonFiniteScoresError.
    """
    if draft.has_rest or policy.is_sure(replace(probe, other_prob=1.0)):
        return probe
    behind, piece = draft.fork(), base.piece(probe.drawn)
    if piece and behind.can_take(piece):
        behind.push(piece)
    ids = nudging.ids(answer)
    if nudging.ids(answer + behind.word(behind.whole_size()))[: len(ids)] != ids:
        return probe
    return None if nudging.sync(answer) is None else replace(probe, other_prob=nudging.top_prob())
