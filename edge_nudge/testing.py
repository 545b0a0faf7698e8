"""FakeBackend: a strict model without weights, with toy vocabularies and scripted or hashed scores.

Owns everything a test or an application needs to run the nudging loop without llama_cpp. It is stricter than a
real engine, so that a mistake fails loudly:

1. Scores are a pure function of the ids in the cache: any slip in positions, rewinds or re-tokenization shows.
2. Only rows that were asked for can be read, and an old view is poisoned with NaN at the next call.
3. Tokenizing is longest match over a vocabulary with overlapping entries, so gluing ids differs from
   tokenizing the whole, as with real tokenizers.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from edge_nudge.core.backend import ModelInfo
from edge_nudge.errors import EngineError

Scorer: TypeAlias = Callable[[tuple[int, ...]], "NDArray[np.float32]"]

_LETTER_AND_BLANK = re.compile(rb"[A-Za-z] ")

MARKERS = ("<bos>", "<eos>", "<|turn|>", "<|end|>")


@dataclass(frozen=True)
class ToyVocabulary:
    """Control tokens, 256 single bytes, then longer entries; tokenizing takes the longest match."""

    words: tuple[str, ...] = ()
    markers: tuple[str, ...] = MARKERS
    eog: tuple[str, ...] = ("<eos>", "<|end|>")
    user_defined: tuple[str, ...] = ()
    space_prefix: bool = False
    pieces: tuple[bytes, ...] = field(init=False)
    _by_length: tuple[dict[bytes, int], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        texts = [*self.words, *self.user_defined]
        if len({*texts}) != len(texts) or any(len(text.encode()) < 2 for text in texts):
            raise ValueError("toy words must be distinct and longer than one byte")
        first = len(self.markers)
        pieces = [b""] * first + [bytes([i]) for i in range(256)] + [text.encode() for text in texts]
        by_length: list[dict[bytes, int]] = [{} for _ in range(max((len(p) for p in pieces), default=1) + 1)]
        for token, piece in enumerate(pieces):
            if piece:
                by_length[len(piece)][piece] = token
        object.__setattr__(self, "pieces", tuple(pieces))
        object.__setattr__(self, "_by_length", tuple(by_length))

    def __len__(self) -> int:
        return len(self.pieces)

    def marker(self, spelling: str) -> int:
        return self.markers.index(spelling)

    def byte(self, value: int) -> int:
        return len(self.markers) + value

    def word(self, text: str) -> int:
        return self.pieces.index(text.encode())

    def tokenize(self, text: bytes, special: bool = False) -> list[int]:
        text.decode("utf-8")  # a broken text never reaches a tokenizer
        if self.space_prefix and text:
            text = b" " + text
        ids: list[int] = []
        at = 0
        while at < len(text):
            token, size = self._longest(text, at, special)
            ids.append(token)
            at += size
        return ids

    def _longest(self, text: bytes, at: int, special: bool) -> tuple[int, int]:
        if special:
            for token, spelling in enumerate(self.markers):
                if text.startswith(spelling.encode(), at):
                    return token, len(spelling.encode())
        for size in range(min(len(self._by_length) - 1, len(text) - at), 0, -1):
            token = self._by_length[size].get(text[at : at + size], -1)
            if token >= 0:
                return token, size
        raise AssertionError("every single byte is in the vocabulary")


def hashed_scores(vocabulary: ToyVocabulary, seed: int = 0, *, eog_rate: float = 0.03, sure: float = 0.6) -> Scorer:
    """Return scores drawn from a hash of the ids: sure (one token far ahead) with probability `sure`.

    Control tokens that end nothing are never likely; an end token leads with probability `eog_rate`.
    """
    eog = [vocabulary.marker(spelling) for spelling in vocabulary.eog]
    first_text = len(vocabulary.markers)
    ascii_bytes = np.array([vocabulary.byte(b) for b in b" abcdefgh.,\n"])
    words = np.arange(first_text + 256, len(vocabulary))
    choices = np.concatenate([ascii_bytes, words, words]) if len(words) else ascii_bytes

    def score(ids: tuple[int, ...]) -> NDArray[np.float32]:
        digest = hashlib.blake2b(
            np.asarray(ids, dtype=np.int32).tobytes(), digest_size=8, key=seed.to_bytes(8, "little")
        )
        rng = np.random.default_rng(int.from_bytes(digest.digest(), "little"))
        row = rng.normal(0.0, 1.0, len(vocabulary)).astype(np.float32)
        row[:first_text] -= 8.0
        leader = eog[0] if rng.random() < eog_rate else int(rng.choice(choices))
        row[leader] = row.max() + (rng.uniform(6.0, 12.0) if rng.random() < sure else rng.uniform(0.1, 4.0))
        return row

    return score


def scripted_scores(
    vocabulary: ToyVocabulary, rule: Callable[[bytes], tuple[str | int, float]], *, runner_up: str = " the"
) -> Scorer:
    """Return scores from a rule on the text so far: `rule(text)` gives the top token and its probability.

    The token is a marker, a piece or an id. What is left of the probability goes to `runner_up` if there is such
    a piece (and it is not the top token), else it is spread over all tokens.
    """

    def token_of(what: str | int) -> int:
        if isinstance(what, int):
            return what
        return vocabulary.marker(what) if what in vocabulary.markers else vocabulary.pieces.index(what.encode())

    def score(ids: tuple[int, ...]) -> NDArray[np.float32]:
        what, prob = rule(b"".join(vocabulary.pieces[i] for i in ids))
        top = token_of(what)
        second = vocabulary.pieces.index(runner_up.encode()) if runner_up.encode() in vocabulary.pieces else top
        row = np.full(len(vocabulary), (1.0 - prob) * 1e-3 / len(vocabulary) + 1e-12)
        if second != top:
            row[second] += (1.0 - prob) * 0.999
        else:
            row += (1.0 - prob) * 0.999 / len(vocabulary)
        row[top] = prob
        logs: NDArray[np.float32] = np.log(row).astype(np.float32)
        return logs

    return score


class FakeBackend:
    """A Backend over a toy vocabulary; see the module's rules.

    `can_rewind=False` refuses every rewind; `refuse` is asked for each rewind and may refuse some of them;
    `fail` is asked before each evaluate with the call's number and may answer how many of its tokens go in
    before EngineError is raised (None: no failure).
    """

    def __init__(
        self,
        vocabulary: ToyVocabulary,
        scorer: Scorer,
        *,
        name: str = "fake",
        n_ctx: int = 4096,
        n_batch: int = 512,
        adds_bos: bool = True,
        can_rewind: bool = True,
        chat_template: str | None = None,
        refuse: Callable[[int], bool] | None = None,
        fail: Callable[[int], int | None] | None = None,
    ) -> None:
        if n_ctx < 1 or n_batch < 1:
            raise ValueError(f"n_ctx {n_ctx} and n_batch {n_batch} must be positive")
        self.vocabulary = vocabulary
        self._scorer = scorer
        self._refuse = refuse
        self._fail = fail
        self._ids: list[int] = []
        self._rows: dict[int, NDArray[np.float32]] = {}
        self._open = True
        self.n_calls = 0
        self.n_evaluated = 0
        self.n_rows = 0
        bos = vocabulary.markers.index("<bos>") if "<bos>" in vocabulary.markers else None
        self._info = ModelInfo(
            name=name, architecture="fake", n_vocab=len(vocabulary), n_ctx=n_ctx, n_ctx_train=n_ctx,
            n_batch=n_batch, bos=bos, eos=vocabulary.marker(vocabulary.eog[0]) if vocabulary.eog else None,
            adds_bos=adds_bos and bos is not None, adds_space_prefix=vocabulary.space_prefix,
            can_rewind=can_rewind, chat_template=chat_template,
        )  # fmt: skip

    def __repr__(self) -> str:
        counts = f"{len(self._ids)} cached, {self.n_evaluated} evaluated, {self.n_calls} calls"
        return f"<FakeBackend {self._info.name}: {counts}>"

    @property
    def info(self) -> ModelInfo:
        return self._info

    @property
    def n_cached(self) -> int:
        return len(self._ids)

    @property
    def cached_ids(self) -> tuple[int, ...]:
        """The ids in the cache, for assertions; a real engine cannot tell them."""
        return tuple(self._ids)

    def tokenize(self, text: bytes, *, special: bool = False) -> list[int]:
        return self.vocabulary.tokenize(text, special)

    @property
    def words_are_separate(self) -> bool:
        return not any(_LETTER_AND_BLANK.search(piece) for piece in self.vocabulary.pieces)

    def piece(self, token: int) -> bytes:
        return self.vocabulary.pieces[self._checked(token)]

    def spelling(self, token: int) -> str:
        if self.is_control(token):
            return self.vocabulary.markers[token]
        return self.piece(token).decode("utf-8", "backslashreplace")

    def is_eog(self, token: int) -> bool:
        return self.is_control(token) and self.vocabulary.markers[token] in self.vocabulary.eog

    @property
    def eog_tokens(self) -> tuple[int, ...]:
        return tuple(token for token in range(len(self.vocabulary.markers)) if self.is_eog(token))

    def is_control(self, token: int) -> bool:
        return self._checked(token) < len(self.vocabulary.markers)

    def is_user_defined(self, token: int) -> bool:
        return not self.is_control(token) and self.spelling(token) in self.vocabulary.user_defined

    def evaluate(self, tokens: Sequence[int], rows: Sequence[int] = ()) -> None:
        self._need_open()
        if not tokens:
            raise EngineError("nothing to evaluate")
        if len(tokens) > self._info.n_batch:
            raise EngineError(f"{len(tokens)} tokens in one call, the batch size is {self._info.n_batch}")
        if len(self._ids) + len(tokens) > self._info.n_ctx:
            raise EngineError(
                f"{len(self._ids)} + {len(tokens)} tokens do not fit into a context of {self._info.n_ctx}"
            )
        if list(rows) != sorted(set(rows)) or any(not 0 <= row < len(tokens) for row in rows):
            raise EngineError(f"rows {list(rows)} must be ascending indices of {len(tokens)} tokens")
        for token in tokens:
            self._checked(token)
        self._poison()
        call, self.n_calls = self.n_calls, self.n_calls + 1
        n_done = self._fail(call) if self._fail else None
        if n_done is not None:
            self._ids.extend(tokens[:n_done])
            raise EngineError(f"decode failed after {n_done} of {len(tokens)} tokens")
        before = len(self._ids)
        self._ids.extend(tokens)
        self.n_evaluated += len(tokens)
        self.n_rows += len(rows)
        for row in rows:
            self._rows[row] = np.array(self._scorer(tuple(self._ids[: before + row + 1])), dtype=np.float32)

    def scores(self, row: int) -> NDArray[np.float32]:
        self._need_open()
        if row not in self._rows:
            raise EngineError(f"no scores kept for row {row}; kept: {sorted(self._rows)}")
        return self._rows[row]

    def rewind(self, n_keep: int) -> bool:
        self._need_open()
        if not 0 <= n_keep < len(self._ids):
            raise EngineError(f"rewind to {n_keep} of {len(self._ids)} tokens removes nothing or is out of range")
        if not self._info.can_rewind or (self._refuse is not None and self._refuse(n_keep)):
            return False
        self._poison()
        del self._ids[n_keep:]
        return True

    def clear(self) -> None:
        self._need_open()
        self._poison()
        self._ids.clear()

    def save(self) -> bytes:
        self._need_open()
        return np.asarray(self._ids, dtype=np.int32).tobytes()

    def restore(self, state: bytes, n_cached: int) -> bool:
        self._need_open()
        ids = np.frombuffer(state, dtype=np.int32).tolist()
        if len(ids) != n_cached or self._ids[:n_cached] != ids:
            return False
        self._poison()
        del self._ids[n_cached:]
        return True

    def store(self, most_bytes: int) -> bytearray | None:
        self._need_open()
        state = bytearray(np.asarray(self._ids, dtype=np.int32).tobytes())
        return state if len(state) <= most_bytes else None

    def load(self, state: bytearray, ids: Sequence[int]) -> bool:
        self.clear()
        if np.frombuffer(state, dtype=np.int32).tolist() != list(ids) or len(ids) > self._info.n_ctx:
            return False
        self._ids.extend(ids)
        return True

    def close(self) -> None:
        self._poison()
        self._open = False

    def _poison(self) -> None:
        for row in self._rows.values():
            row.fill(np.nan)
        self._rows.clear()

    def _need_open(self) -> None:
        if not self._open:
            raise EngineError(f"model {self._info.name} is closed")

    def _checked(self, token: int) -> int:
        if not 0 <= token < len(self.vocabulary):
            raise EngineError(f"token {token} is outside the vocabulary of {len(self.vocabulary)}")
        return token
