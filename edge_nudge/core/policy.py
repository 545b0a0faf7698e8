"""Who writes next: the decision rules behind one protocol.

Owns the rules and their thresholds. Pure: sees a Probe of the base model, never a model. What a rule needs beside
that is said by flags; the loop provides it (betting.py, blending.py).

1. A rule answers one question: is the base model sure enough to write here?
2. `solo` names the only author where there is no choice; then no question is ever asked.
3. Rules compare the plain softmax (Fei, Razeghi, Singh, arXiv 2410.09300); sampling settings choose the token drawn,
   never its probability.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

from edge_nudge.core.events import Role
from edge_nudge.core.request import NudgeParams, Rule
from edge_nudge.core.sampling import Probe


class NudgePolicy(Protocol):
    """A decision rule."""

    @property
    def solo(self) -> Role | None:
        """The only author, or None where the rule decides."""
        ...

    @property
    def needs_second(self) -> bool:
        """Whether the rule reads Probe.second_prob."""
        ...

    @property
    def needs_entropy(self) -> bool:
        """Whether the rule reads Probe.entropy."""
        ...

    @property
    def needs_drawn(self) -> bool:
        """Whether the rule reads Probe.drawn_prob."""
        ...

    @property
    def needs_other(self) -> bool:
        """Whether the rule reads Probe.other_prob: the nudging model is asked, too."""
        ...

    @property
    def is_mixed(self) -> bool:
        """Whether both models draw together where the base model is unsure."""
        ...

    def is_sure(self, probe: Probe) -> bool:
        """Tell whether the base model may write at the place of the probe."""
        ...


@dataclass(frozen=True)
class _Threshold:
    """A rule with one number; what it reads of a probe is a matter of its class."""

    gamma: float

    solo: ClassVar[Role | None] = None
    needs_second: ClassVar[bool] = False
    needs_entropy: ClassVar[bool] = False
    needs_drawn: ClassVar[bool] = False
    needs_other: ClassVar[bool] = False
    is_mixed: ClassVar[bool] = False


class TopProb(_Threshold):
    """Sure where the top-1 probability is at least gamma: the rule of the paper."""

    def is_sure(self, probe: Probe) -> bool:
        return probe.top_prob >= self.gamma


class Entropy(_Threshold):
    """Sure where the entropy of the distribution is at most gamma nats."""

    needs_entropy = True

    def is_sure(self, probe: Probe) -> bool:
        return probe.entropy <= self.gamma


class Margin(_Threshold):
    """Sure where the top-1 probability leads the second one by at least gamma."""

    needs_second = True

    def is_sure(self, probe: Probe) -> bool:
        return probe.top_prob - probe.second_prob >= self.gamma


class TokenProb(_Threshold):
    """Sure where the token drawn has at least probability gamma: the token-wise deferral of KAD.

    Source: Hammal, Zweigenbaum, Corro (arXiv 2510.27017). There a token is drawn from the base model and, where its
    probability is below the threshold, one token of the aligned model takes its place. Ours: the same threshold on the
    plain softmax (the source's is tempered as the draw is), and what takes its place is a nudging word. Where nothing
    is sampled the token drawn is the top one: then this is TopProb.
    """

    needs_drawn = True

    def is_sure(self, probe: Probe) -> bool:
        return probe.drawn_prob >= self.gamma


class Bet(_Threshold):
    """Sure where the token drawn is at most gamma less probable than the nudging model's best one: a confidence bet.

    Source: Hammal, Zweigenbaum, Corro (arXiv 2604.16146): the token is rejected where its probability is below the
    aligned model's highest one minus a margin. The source is silent where tokenizers differ; ours: inside a token of
    its own the nudging model has no opinion, and the base model goes on. See betting.py for what is such a place.
    A margin of 1 is the base model alone behind the opening word.
    """

    needs_drawn = True
    needs_other = True

    def is_sure(self, probe: Probe) -> bool:
        return math.isnan(probe.other_prob) or probe.drawn_prob >= probe.other_prob - self.gamma


class Blend(TopProb):
    """Sure as TopProb; elsewhere both models draw together (blending.py), so no gamma leaves one of them out.

    Source: Gan, Li, Luo, BlendIn (arXiv 2606.11201), and its published code.
    """

    is_mixed = True


@dataclass(frozen=True, slots=True)
class Solo:
    """One model writes everything and ends the answer itself."""

    solo: Role
    needs_second: ClassVar[bool] = False
    needs_entropy: ClassVar[bool] = False
    needs_drawn: ClassVar[bool] = False
    needs_other: ClassVar[bool] = False
    is_mixed: ClassVar[bool] = False

    def is_sure(self, probe: Probe) -> bool:
        return self.solo is Role.BASE


def make_policy(params: NudgeParams) -> NudgePolicy:
    """Return the policy that the settings name.

    A gamma above 1 is a threshold that no probability reaches: the nudging model alone, the base model unasked. Where
    the rule is blend it is a mix at every place.
    """
    gamma = params.threshold
    if params.rule in (Rule.TOP_PROB, Rule.MARGIN, Rule.TOKEN) and gamma > 1.0:
        return Solo(Role.NUDGING)
    match params.rule:
        case Rule.TOP_PROB:
            return TopProb(gamma)
        case Rule.ENTROPY:
            return Entropy(gamma)
        case Rule.MARGIN:
            return Margin(gamma)
        case Rule.TOKEN:
            return TokenProb(gamma)
        case Rule.BET:
            return Bet(gamma)
        case Rule.BLEND:
            return Blend(gamma)
        case Rule.BASE_ONLY:
            return Solo(Role.BASE)
        case Rule.NUDGING_ONLY:
            return Solo(Role.NUDGING)
