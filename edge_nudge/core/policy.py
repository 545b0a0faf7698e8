"""Who writes next: the decision rules behind one protocol.

Owns the rules and their thresholds. Pure: sees a Probe of the base model, never a model.

1. A rule answers one question: is the base model sure enough to write here?
2. `solo` names the only author where there is no choice; then no question is ever asked.
3. Rules compare the plain softmax (Fei, Razeghi, Singh, arXiv 2410.09300); sampling settings do not matter here.
"""

from __future__ import annotations

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


@dataclass(frozen=True, slots=True)
class Solo:
    """One model writes everything and ends the answer itself."""

    solo: Role
    needs_second: ClassVar[bool] = False
    needs_entropy: ClassVar[bool] = False

    def is_sure(self, probe: Probe) -> bool:
        return self.solo is Role.BASE


def make_policy(params: NudgeParams) -> NudgePolicy:
    """Return the policy that the settings name.

    A gamma above 1 is a threshold that no probability reaches: the nudging model alone, the base model unasked.
    """
    gamma = params.threshold
    if params.rule in (Rule.TOP_PROB, Rule.MARGIN) and gamma > 1.0:
        return Solo(Role.NUDGING)
    match params.rule:
        case Rule.TOP_PROB:
            return TopProb(gamma)
        case Rule.ENTROPY:
            return Entropy(gamma)
        case Rule.MARGIN:
            return Margin(gamma)
        case Rule.BASE_ONLY:
            return Solo(Role.BASE)
        case Rule.NUDGING_ONLY:
            return Solo(Role.NUDGING)
