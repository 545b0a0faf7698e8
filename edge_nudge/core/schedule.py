"""Schedule: how many guessed tokens to evaluate along with the known ones.

Owns the arithmetic: a guess pays where the calls it probably saves cost more than a larger batch. Pure; decides by
the measured curve (core/costs.py) and by what became of earlier guesses of the same request, by nothing else, so
the same request gets the same schedule.

1. A guess counts only if all before it are right: chances multiply, and each right one saves a step.
2. Batches stay within the sizes measured to have the bits of single steps: those a guess cannot change. Behind
   the tokens for which that holds (CostCurve.exact_within), and where no batch has them (a GPU), a guess can change the
   last digits of a score, as every batch of a prompt or a catch-up does there.
3. Chances begin with a rough guess, the same in each request, and follow what the answer shows.
"""

from __future__ import annotations

from collections.abc import Sequence

from edge_nudge.core.costs import CostCurve
from edge_nudge.core.lookup import MAX_MATCH

LEAST_GAIN = 0.02  # steps; less is lost in the noise of the curve
PRIOR_WEIGHT = 4.0  # guesses that the prior is worth

DRAFTED = 0  # source of a guess: the other model had drafted it; 1 to MAX_MATCH: looked up, by length of the match
RUN = MAX_MATCH + 1  # the other model was let write it
PRIORS = (0.5, 0.15, 0.3, 0.45, 0.55, 0.65, 0.7, 0.75, 0.8, 0.6)
assert len(PRIORS) == RUN + 1


class Odds:
    """Chances of guesses by their source, learned within one request."""

    def __init__(self) -> None:
        self._n_right = [prior * PRIOR_WEIGHT for prior in PRIORS]
        self._n_tried = [PRIOR_WEIGHT] * len(PRIORS)

    def __repr__(self) -> str:
        return f"<Odds {', '.join(f'{self.of(source):.2f}' for source in range(len(PRIORS)))}>"

    def of(self, source: int) -> float:
        """Return the chance that a guess of this source is right if all before it are."""
        return self._n_right[source] / self._n_tried[source]

    def note(self, source: int, is_right: bool) -> None:
        """Take in what became of a guess all of whose predecessors were right."""
        self._n_right[source] += is_right
        self._n_tried[source] += 1


class Schedule:
    """The curve of one model as a table of what a guess costs."""

    def __init__(self, curve: CostCurve) -> None:
        largest = curve.exact if curve.exact > 1 else curve.costs[-1].n_tokens
        sizes = range(1, largest + 1)
        self.largest = largest
        self._tokens = [0.0, *(curve.batch_s(n) / curve.step_s for n in sizes)]
        self._rows = [0.0, *((curve.batch_s(n, n) - curve.batch_s(n)) / curve.step_s for n in sizes)]

    def n_ahead(
        self, n_text: int, chances: Sequence[float], guess_cost: float = 0.0, least_gain: float = LEAST_GAIN
    ) -> tuple[int, float]:
        """Return how many guesses pay in a batch behind the last `n_text` tokens of the text, and their gain in steps.

        `chances` are those of each guess if all before it are right; `guess_cost` is what making each one takes, in
        steps of this model.
        """
        best, best_gain = 0, least_gain
        n_saved, chance = 0.0, 1.0
        for n_guesses in range(1, min(len(chances), self.largest - n_text) + 1):
            chance *= chances[n_guesses - 1]
            n_saved += chance
            cost = self._tokens[n_text + n_guesses] - self._tokens[n_text] + self._rows[n_guesses + 1]
            gain = n_saved - cost - n_guesses * guess_cost
            if gain > best_gain:
                best, best_gain = n_guesses, gain
        return best, best_gain if best else 0.0
