"""Generated worlds for the loop: two fake models with different vocabularies, a prompt each, a request.

A world is made from one integer, so that a failing one can be named and replayed.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from edge_nudge.core.blending import TextTable
from edge_nudge.core.costs import BatchCost, CostCurve
from edge_nudge.core.decoder import Decoder
from edge_nudge.core.events import Event, Finished, Piece, Role, TokenScore
from edge_nudge.core.foresight import Foresight
from edge_nudge.core.prompt import Prompt
from edge_nudge.core.reference import Model, Reference
from edge_nudge.core.request import GenerateRequest, build_request
from edge_nudge.core.schedule import Schedule
from edge_nudge.core.session import Session
from edge_nudge.core.transcript import Unit
from edge_nudge.core.writer import Writer
from edge_nudge.testing import FakeBackend, Scorer, ToyVocabulary, hashed_scores

BASE_WORDS = (
    " the", " a", " cat", " dog", " sat", " on", "ing", "ed", " un", "believ", "able", "th", "he", "ca", "at",
    ". ", ".\n", "\n\n", "  ", " x", " = ", "é", "日本", "本語", "語", "👩", "\u200d🔬", "\u0301", " Q:", "Q:",
    "ab", "abc", " of the",
)  # fmt: skip
NUDGING_WORDS = (
    " th", "e ", "the", " cat", "cat ", " s", "at", " o", "n", "ing ", " und", "er", "bel", "iev", " able", ".",
    "\n\n", " \n", " a b", "日", "本", "語。", "é", "e\u0301", " and", " so", "a", "bc", "A:", " dog and", "🇩🇪",
)  # fmt: skip


def _words(words: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(word for word in words if len(word.encode()) > 1)


BASE_VOCABULARY = ToyVocabulary(_words(BASE_WORDS))
NUDGING_VOCABULARY = ToyVocabulary(
    _words(NUDGING_WORDS), markers=("<eos>", "<|im_start|>", "<|im_end|>"), eog=("<|im_end|>", "<eos>")
)
SPM_VOCABULARY = ToyVocabulary(_words(NUDGING_WORDS), space_prefix=True)


def straight_curve(
    per_token: float, per_row: float, exact: int = 1, sizes: tuple[int, ...] = (1, 2, 4, 8, 16)
) -> CostCurve:
    """Return a straight curve: a step is one second, each further token and row costs so much."""
    costs = [BatchCost(n, 1 + (n - 1) * per_token, 1 + (n - 1) * (per_token + per_row)) for n in sizes]
    return CostCurve(300, 64, 3, "rewind", tuple(costs), exact, 256)


GUESSING = straight_curve(0.0, 0.0)  # a larger batch costs nothing: whatever can be guessed is evaluated


@dataclass
class World:
    """Everything one answer needs; fresh backends each time they are asked for."""

    request: GenerateRequest
    base: Callable[..., FakeBackend]
    nudging: Callable[..., FakeBackend]
    base_prompt: Prompt
    nudging_prompt: Prompt
    seed: int = 1
    curve: CostCurve | None = None  # None: nothing is evaluated ahead
    scout_step: float = 1.0  # what a step of the other model costs a model, in its own steps

    def sessions(self, **options: Any) -> tuple[Session, Session]:
        """Fresh sessions on fresh backends; options go to both backends."""
        return Session(self.base(**options)), Session(self.nudging(**options))

    def decoder(
        self, sessions: tuple[Session, Session] | None = None, is_cancelled: Callable[[], bool] = lambda: False
    ) -> Decoder:
        prompts = (self.base_prompt, self.nudging_prompt)
        writers = [
            Writer(
                role,
                session._backend,
                session,
                prompt,
                self.request.sampling,
                self.seed,
                self.foresight(),
                self.request.logprobs,
            )
            for role, session, prompt in zip(Role, sessions or self.sessions(), prompts, strict=True)
        ]
        return Decoder(
            *writers,
            self.request,
            seed=self.seed,
            clock=lambda: 0.0,
            is_cancelled=is_cancelled,
            texts=TextTable(*(writer._backend for writer in writers)),
        )

    def foresight(self) -> Foresight | None:
        return None if self.curve is None else Foresight(Schedule(self.curve), scout_step=self.scout_step)

    def answer(self, **options: Any) -> Answer:
        """The decoder's answer on fresh backends."""
        return decoded(list(self.decoder(self.sessions(**options)).run()))

    def reference(self) -> Reference:
        return Reference(
            Model(Role.BASE, self.base(), self.base_prompt, self.request, self.seed),
            Model(Role.NUDGING, self.nudging(), self.nudging_prompt, self.request, self.seed),
            self.request,
        )


@dataclass
class Answer:
    """What an answer comes down to."""

    units: list[tuple[Role, str, float | None, str, int, tuple[TokenScore, ...], bytes | None]] = field(
        default_factory=list
    )
    detail: str = ""
    stop_string: str | None = None

    @property
    def text(self) -> str:
        return "".join(unit[1] for unit in self.units)


def decoded(events: list[Event]) -> Answer:
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert not any(isinstance(event, Finished) for event in events[:-1])
    units = [
        (e.author, e.text, e.top_prob, e.reason.value, e.n_tokens, e.tokens, e.instead)
        for e in events
        if isinstance(e, Piece)
    ]
    return Answer(units, finished.detail.value, finished.stop_string)


def referred(reference: Reference) -> Answer:
    detail = reference.run()

    def flat(unit: Unit) -> tuple[Role, str, float | None, str, int, tuple[TokenScore, ...], bytes | None]:
        text, n_tokens = unit.data.decode(), len(unit.token_starts)
        return unit.author, text, unit.top_prob, unit.reason.value, n_tokens, unit.tokens, unit.instead

    return Answer([flat(unit) for unit in reference.units], detail.value, reference.stop_string)


def random_scorer(rng: random.Random, vocabulary: ToyVocabulary) -> Scorer:
    """Hashed scores; some worlds forget most of the past, which makes them repeat themselves."""
    scorer = hashed_scores(vocabulary, rng.getrandbits(32), eog_rate=rng.choice([0.0, 0.02, 0.1]), sure=rng.random())
    memory = rng.choice([None, None, 1, 2, 4])
    return scorer if memory is None else lambda ids: scorer(ids[-memory:])


def random_world(number: int, **fixed: Any) -> World:
    """Return world `number`; `fixed` overrides request settings."""
    rng = random.Random(number)
    settings: dict[str, Any] = {
        "rule": rng.choice(
            [
                "top_prob",
                "top_prob",
                "top_prob",
                "entropy",
                "margin",
                "token",
                "bet",
                "bet",
                "bet",
                "blend",
                "blend",
                "blend",
                "base-only",
                "nudging-only",
            ]
        ),
        "gamma": rng.choice([None, 0.0, 0.3, 0.6, 0.9, 1.5]),
        "lookahead": rng.choice([1, 1, 1, 2, 5, 16]),
        "max_tokens": rng.choice([0, 1, 2, 7, 30, 60]),
        "temp": rng.choice([0.0, 0.0, 0.7, 1.5]),
        "stop": rng.choice([[], [], [], [" the"], ["cat s", "e c"], ["at", "a"], ["\n\n"]]),
        "end_prob": rng.choice([0.001, 0.1, 2.0]),
        "max_turns": rng.choice([1, 3, 1000, 1000]),
        "loop_guard": rng.random() < 0.8,
        "logprobs": (None, 0, 1, 3)[number % 4],
    }
    settings.update(fixed)
    if settings["rule"] == "bet" and settings["gamma"] is not None:
        settings["gamma"] = min(settings["gamma"], 1.0)
    base_vocabulary = BASE_VOCABULARY
    nudging_vocabulary = rng.choice([NUDGING_VOCABULARY, NUDGING_VOCABULARY, SPM_VOCABULARY])
    base_scorer, nudging_scorer = random_scorer(rng, base_vocabulary), random_scorer(rng, nudging_vocabulary)
    contexts = [rng.choice([4096, 4096, 30, 45]) for _ in range(2)]
    batches = [rng.choice([512, 512, 1, 3]) for _ in range(2)]
    base_prompt = Prompt(
        head=(base_vocabulary.marker("<bos>"),) if rng.random() < 0.8 else (),
        tail=rng.choice([b"Q: hi\nA: ", b"the cat", b"x = 1\n", b"a "]),
        end_strings=rng.choice([(), (b"Q:",), (b"\n\n", b" Q:")]),
    )
    head = (1, 40, 2) if nudging_vocabulary is NUDGING_VOCABULARY else (0, 2, 41, 3)
    nudging_prompt = Prompt(head=head, tail=rng.choice([b"", b"a\n", b"[/I] "]), end_strings=())
    return World(
        build_request("hi", **settings),
        lambda **options: FakeBackend(
            base_vocabulary, base_scorer, **{"name": "base", "n_ctx": contexts[0], "n_batch": batches[0], **options}
        ),
        lambda **options: FakeBackend(
            nudging_vocabulary,
            nudging_scorer,
            **{"name": "nudging", "n_ctx": contexts[1], "n_batch": batches[1], **options},
        ),
        base_prompt,
        nudging_prompt,
        seed=number,
    )
