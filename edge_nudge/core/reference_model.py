"""One model of the oracle: each question evaluates its whole text from nothing.

Owns nothing that outlives a question but the blanks a model wrote in front of the answer. reference.py decides.
"""

from __future__ import annotations

from dataclasses import replace

from edge_nudge.core.backend import Backend
from edge_nudge.core.events import FinishDetail, Role, TokenScore
from edge_nudge.core.prompt import Prompt
from edge_nudge.core.request import GenerateRequest
from edge_nudge.core.sampling import Probe, Reader, Sampler, Scores
from edge_nudge.core.token_scores import TokenScorer


class Finish(Exception):
    """The answer is finished."""

    def __init__(self, detail: FinishDetail) -> None:
        super().__init__(detail)
        self.detail = detail


class Model:
    """One model, asked from nothing each time."""

    def __init__(self, role: Role, backend: Backend, prompt: Prompt, request: GenerateRequest, seed: int) -> None:
        self.role, self.backend, self.prompt = role, backend, prompt
        self.seed = seed
        self.reader = Reader(backend.info.n_vocab, role.value)
        self.sampler = Sampler(request.sampling, role, seed)
        self.scorer = None if request.logprobs is None else TokenScorer(backend, self.reader, request.logprobs)
        self.lead = b""  # blanks this model wrote in front of the answer

    def ids(self, answer: bytes) -> list[int]:
        """Ids of prompt and answer, without the blanks at the end. Raises Finish if there is no room to write."""
        ids = self.all_ids(answer)
        self.check_room(ids)
        return ids

    def all_ids(self, answer: bytes) -> list[int]:
        text = self.prompt.tail + self.lead + answer
        return [*self.prompt.head, *self.prompt.tokenize(self.backend, text[: len(text) - self.overlap(answer)])]

    def overlap(self, answer: bytes) -> int:
        """How many blanks at the end of the text the model writes again."""
        text = self.prompt.tail + self.lead + answer
        if not self.prompt.head and not text.strip(b" "):
            return 0
        return len(text) - len(text.rstrip(b" "))

    def check_room(self, ids: list[int]) -> None:
        if len(ids) >= self.backend.info.n_ctx:
            raise Finish(FinishDetail.BASE_CONTEXT if self.role is Role.BASE else FinishDetail.NUDGING_CONTEXT)

    def scores(self, ids: list[int]) -> Scores:
        self.backend.clear()
        n_batch = self.backend.info.n_batch
        for start in range(0, len(ids), n_batch):
            batch = ids[start : start + n_batch]
            self.backend.evaluate(batch, [len(batch) - 1])
        row: Scores = self.backend.scores(len(batch) - 1).copy()
        return row

    def draw(self, ids: list[int], banned: list[int]) -> int:
        return self.sampler.draw(self.scores(ids), self.reader, len(ids), banned)

    def probe(self, ids: list[int]) -> Probe:
        row = self.scores(ids)
        probe = self.reader.probe(row, with_second=True, with_entropy=True)
        drawn = self.sampler.draw(row, self.reader, len(ids))
        return replace(probe, drawn=drawn, drawn_prob=self.reader.prob_of(row, [drawn]))

    def texts(self, ids: list[int], n_blanks: int) -> tuple[dict[bytes | None, float], dict[bytes | None, int]]:
        """How probable each text is that one token adds behind `n_blanks` blanks, None for an end; its best token."""
        weights, total = self.reader.weights(self.scores(ids))
        sums: dict[bytes | None, float] = {None: 0.0}
        best: dict[bytes | None, int] = {}
        for token in range(self.backend.info.n_vocab):
            text: bytes | None = None if self.backend.is_eog(token) else self.backend.piece(token)
            if text == b"":
                continue
            for _ in range(n_blanks):
                text = text and text.removeprefix(b" ")
            sums[text] = sums.get(text, 0.0) + float(weights[token])
            if text not in best or weights[token] > weights[best[text]]:
                best[text] = token
        return {text: weight / total for text, weight in sums.items()}, best

    def score(self, ids: list[int], token: int) -> TokenScore | None:
        return None if self.scorer is None else self.scorer.score(self.scores(ids), token)

    def end_prob(self, ids: list[int]) -> float:
        return self.reader.prob_of(self.scores(ids), self.backend.eog_tokens)
