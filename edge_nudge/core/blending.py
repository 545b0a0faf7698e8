"""The mix of both models: one distribution over texts, drawn from where the base model is unsure.

Owns which tokens of two vocabularies are the same text, and the draw. Never decides when to draw.

Source: Gan, Li, Luo, "To Intervene or Not" (BlendIn, arXiv 2606.11201); its published code sets the weight. What the
source leaves open, or does otherwise:
1. A text is what a token would add to the answer: blanks that stand there already are not in it. Tokens of both models
   that add the same text are one, and their probabilities add. The source mixes the best 100 tokens of each model;
   ours are all.
2. The nudging model's weight is that of the published code's adaptive setting: the share of its best text in the sum
   of both best ones, and a tenth of what the base model gives to that text, at most 1.
3. The author of what is drawn is the model that gives it more of the mix (the base model, if both give the same); the
   token is the author's most probable one for the text.
4. All end tokens of both models are one text, the end. Where its author is the nudging model, the answer ends; where it
   is the base model, that is a base model's end as ever (the source ends the answer there).
5. Control tokens that end nothing, and bytes that are no text here, cannot be drawn.
6. Sampling settings apply to the draw, which has random numbers of its own; the source always takes the best text.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from edge_nudge.core.backend import Backend
from edge_nudge.core.events import Role
from edge_nudge.core.request import SamplingParams
from edge_nudge.core.sampling import Sampler
from edge_nudge.core.words import whole_characters
from edge_nudge.core.writer import Writer

AGREEMENT = 0.1  # how much of what the base model gives to the nudging model's best text is added to the weight
END, NO_TEXT = 0, 1  # numbers of what is no text

Numbers: TypeAlias = NDArray[np.intp]
Probs: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Texts:
    """The texts of two vocabularies at one kind of place, numbered; `base` and `nudging` have a number per token."""

    data: tuple[bytes, ...]
    base: Numbers
    nudging: Numbers

    def of(self, role: Role) -> Numbers:
        return self.base if role is Role.BASE else self.nudging


class TextTable:
    """Which tokens of a pair are the same text; made when it is first asked, once per number of blanks."""

    def __init__(self, base: Backend, nudging: Backend) -> None:
        self._backends = (base, nudging)
        self._pieces: list[list[bytes | None]] = []  # of each model; None for an end token
        self._texts: dict[tuple[int, int], Texts] = {}

    def __repr__(self) -> str:
        return f"<TextTable for {sorted(self._texts)} blanks>"

    def texts(self, n_base_blanks: int, n_nudging_blanks: int) -> Texts:
        """Return the texts where so many blanks in front of a token of each model stand in the answer already."""
        key = n_base_blanks, n_nudging_blanks
        if key not in self._texts:
            if not self._pieces:
                self._pieces = [
                    [None if backend.is_eog(i) else backend.piece(i) for i in range(backend.info.n_vocab)]
                    for backend in self._backends
                ]
            numbers: dict[bytes, int] = {}
            base, nudging = (
                _numbered(pieces, n_blanks, numbers) for pieces, n_blanks in zip(self._pieces, key, strict=True)
            )
            self._texts[key] = Texts((b"", b"", *numbers), base, nudging)
        return self._texts[key]


def _numbered(pieces: Iterable[bytes | None], n_blanks: int, numbers: dict[bytes, int]) -> Numbers:
    found = []
    for piece in pieces:
        if not piece:
            found.append(END if piece is None else NO_TEXT)
        else:
            n_present = min(len(piece) - len(piece.lstrip(b" ")), n_blanks) if n_blanks else 0
            found.append(numbers.setdefault(piece[n_present:], NO_TEXT + 1 + len(numbers)))
    return np.array(found, dtype=np.intp)


def shares(base: Probs, nudging: Probs) -> tuple[Probs, Probs]:
    """Return what each model gives to each text of the mix, from the probabilities both give to the texts."""
    best = int(nudging.argmax())
    both = float(base.max() + nudging[best])
    weight = min(float(nudging[best]) / both + AGREEMENT * float(base[best]), 1.0) if both else 0.0
    return (1.0 - weight) * base, weight * nudging


@dataclass(frozen=True, slots=True)
class Mixed:
    """What was drawn: a token of its author, or the end; `instead` is the other model's top token."""

    author: Role
    is_end: bool
    token: int
    instead: bytes


class Blender:
    """Draws for two writers of one request."""

    def __init__(self, base: Writer, nudging: Writer, table: TextTable, sampling: SamplingParams, seed: int) -> None:
        self._base = base
        self._nudging = nudging
        self._table = table
        self._sampler = Sampler(sampling, None, seed)

    def draw(self, answer: bytes, n_blanks: int) -> Mixed | Role | None:
        """Draw what comes behind `answer`, whose scores the base model has at hand.

        `n_blanks` is how many blanks in front of the base model's token stand in the answer already. Returns the model
        whose context is full, None where nothing can be drawn. Raises EngineError, Cancelled, NonFiniteScoresError.
        """
        overlap = self._nudging.sync(answer)
        if overlap is None:
            return Role.NUDGING
        texts = self._table.texts(n_blanks, overlap)
        weights = {writer.role: writer.weights() for writer in (self._base, self._nudging)}
        base, nudging = (
            np.bincount(texts.of(role), row, len(texts.data)) / total for role, (row, total) in weights.items()
        )
        base[NO_TEXT] = nudging[NO_TEXT] = 0.0
        of_base, of_nudging = shares(base, nudging)
        number = self._pick(of_base + of_nudging, texts)
        if number is None:
            return None
        author = Role.NUDGING if of_nudging[number] > of_base[number] else Role.BASE
        tokens = np.flatnonzero(texts.of(author) == number)
        token = int(tokens[weights[author][0][tokens].argmax()])
        other = self._base if author is Role.NUDGING else self._nudging
        return Mixed(author, number == END, token, other.piece(int(weights[other.role][0].argmax())))

    def _pick(self, mix: Probs, texts: Texts) -> int | None:
        """Draw a text; where no text can come of its bytes, the next best one."""
        while (best := int(mix.argmax())) >= 0 and mix[best] > 0.0:
            with np.errstate(divide="ignore"):
                number = self._sampler.pick(np.log(mix), best, self._base.n_ids)
            if whole_characters(texts.data[number]) is not None:
                return number
            mix[number] = 0.0
        return None
