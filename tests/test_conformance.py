"""One suite for every Backend, so that the fake cannot lie: what holds on FakeBackend holds on llama.cpp.

Bit equality is asked for where the same ids went in by the same calls. One batch against single steps computes the
same sums in another order: there the fake is exact and a real model has a tolerance (`Case.tolerance`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_nudge.core.backend import Backend
from edge_nudge.errors import EngineError
from edge_nudge.testing import FakeBackend, ToyVocabulary, hashed_scores

TEXT = (
    "the answer to this question is that water can be found by people in many more words than one, and you can use "
    "it when they make their number of parts up. Was the first or the second of these there?\n\n日本語 é — \t x  y"
)
N_CTX = 256


@dataclass(frozen=True)
class Case:
    """How to open a backend; `tolerance` is on probabilities, one batch against single steps.

    Measured, at most: tiny float models 0.011, SmolLM2 Q4_1 0.11, Gemma-3 Q4_K_M 0.10 (other kernels from 8 and from
    64 tokens on; batches of 2 to 7 were exact on the demo pair). A wrong position or a lost token moves them to 1.
    """

    open: Callable[..., Backend]
    tolerance: float = 0.0


def fake(**options: Any) -> Backend:
    words = (" the", " answer", " th", " wat", "water", " can", " be", "er ", "in", "ing", " of", "\n\n", "日本", "é —")
    vocabulary = ToyVocabulary(words=words, user_defined=("<tool>",), space_prefix=options.pop("space_prefix", False))
    options = {"n_ctx": N_CTX, "n_batch": 256} | options
    return FakeBackend(vocabulary, hashed_scores(vocabulary, seed=3), **options)


def tiny(folder: Path, arch: str, vocab: str, **options: Any) -> Backend:
    from tiny_gguf import write_tiny

    from edge_nudge.engine.llama import LlamaBackend

    path = folder / f"{arch}-{vocab}.gguf"
    if not path.exists():
        write = write_hybrid if arch == "jamba" else write_tiny
        write(path, arch, vocab=vocab, n_ctx=N_CTX, user_defined=("<tool>",))
    return LlamaBackend(path, **{"n_ctx": N_CTX, "n_batch": 256, "n_threads": 1} | options)


def write_hybrid(path: Path, arch: str, **options: Any) -> Path:
    """Write a model whose first layer is recurrent and whose second is attention."""
    import tiny_gguf

    attention, layers = tiny_gguf._attention_block, iter(("recurrent", "attention"))

    def block(_arch: str, matrix: Any, ones: Any) -> Iterator[tuple[str, Any]]:
        if next(layers) == "attention":
            yield from attention("llama", matrix, ones)
            return
        yield from tiny_gguf._mamba_block("mamba", matrix, ones)
        yield from ((f"ssm_{name}_norm.weight", ones(size)) for name, size in (("dt", 4), ("b", 8), ("c", 8)))
        yield from ((name, tensor) for name, tensor in attention("llama", matrix, ones) if name.startswith("ffn"))

    sizes = {"conv_kernel": 4, "inner_size": 64, "state_size": 8, "time_step_rank": 4}
    changes = {f"jamba.ssm.{key}": size for key, size in sizes.items()} | {"jamba.attention.head_count_kv": [0, 2]}
    with mock.patch.object(tiny_gguf, "_attention_block", block):
        return tiny_gguf.write_tiny(path, arch, changes=changes, **options)


def demo(path: Path, **options: Any) -> Backend:
    from edge_nudge.engine.llama import LlamaBackend

    return LlamaBackend(path, **{"n_ctx": N_CTX, "n_batch": 256, "n_threads": 1} | options)


FAKES = {
    "fake": Case(fake),
    "fake with blank": Case(partial(fake, space_prefix=True)),
    "fake without rewind": Case(partial(fake, can_rewind=False)),
    "fake without bos": Case(partial(fake, adds_bos=False)),
}
TINY = ("llama spm", "llama bpe", "gemma3 spm", "mamba bpe", "mamba spm", "jamba spm")
DEMO = ("demo base", "demo nudging")


@pytest.fixture(scope="session")
def find_case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    folder: list[Path] = []

    def find(name: str) -> Case:
        if name in FAKES:
            return FAKES[name]
        first, second = name.split()
        if first == "demo":
            return Case(partial(demo, request.getfixturevalue("demo_paths")[second == "nudging"]), 0.3)
        if not folder:
            folder.append(tmp_path_factory.mktemp("tiny"))
        return Case(partial(tiny, folder[0], first, second), 0.05)

    return find


@pytest.fixture(scope="session")
def opened(find_case: Callable[[str], Case]) -> Iterator[Callable[[str], Backend]]:
    backends: dict[str, Backend] = {}

    def get(name: str) -> Backend:
        if name not in backends:
            backends[name] = find_case(name).open()
        return backends[name]

    yield get
    for backend in backends.values():
        backend.close()


@pytest.fixture(
    params=[
        *FAKES,
        *(pytest.param(name, marks=pytest.mark.native) for name in TINY),
        *(pytest.param(name, marks=[pytest.mark.native, pytest.mark.demo]) for name in DEMO),
    ]
)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def case(name: str, find_case: Callable[[str], Case]) -> Case:
    return find_case(name)


@pytest.fixture
def backend(name: str, opened: Callable[[str], Backend]) -> Backend:
    backend = opened(name)
    backend.clear()
    return backend


def some_ids(backend: Backend, n: int) -> list[int]:
    """Return `n` ids of a text, behind BOS where the model wants it: without it a real model is chaotic."""
    bos = [backend.info.bos] if backend.info.adds_bos and backend.info.bos is not None else []
    ids = backend.tokenize(TEXT.encode())
    return (bos + ids * (1 + n // len(ids)))[:n]


def steps(backend: Backend, ids: Sequence[int]) -> list[bytes]:
    """Evaluate the ids one by one and return the bits of each row."""
    rows = []
    for token in ids:
        backend.evaluate([token], [0])
        rows.append(backend.scores(0).tobytes())
    return rows


def softmax(scores: NDArray[np.float32]) -> NDArray[np.float64]:
    exp = np.exp(scores.astype(np.float64) - scores.max())
    return np.asarray(exp / exp.sum())


def test_info_is_plausible(backend: Backend) -> None:
    info = backend.info
    assert info.name
    assert info.architecture
    assert info.n_ctx == N_CTX
    assert info.n_ctx_train >= 1
    assert 1 <= info.n_batch <= info.n_ctx
    assert all(token is None or 0 <= token < info.n_vocab for token in (info.bos, info.eos))
    assert not (info.adds_bos and info.bos is None)
    assert backend.eog_tokens == tuple(t for t in range(info.n_vocab) if backend.is_eog(t))
    assert repr(backend)


def test_cache_grows_by_what_was_evaluated(backend: Backend) -> None:
    ids = some_ids(backend, 40)
    assert backend.n_cached == 0
    at = 0
    for size in (1, 2, 7, 16, 1, 13):
        backend.evaluate(ids[at : at + size])
        at += size
        assert backend.n_cached == at


def test_only_rows_asked_for_can_be_read(backend: Backend) -> None:
    ids = some_ids(backend, 9)
    backend.evaluate(ids, [2, 5, 8])
    for row in range(-2, 11):
        if row in (2, 5, 8):
            assert np.isfinite(backend.scores(row)).all()
        else:
            with pytest.raises(EngineError, match=f"no scores kept for row {row}"):
                backend.scores(row)
    backend.evaluate(ids[:2], [1])
    assert backend.scores(1).shape == (backend.info.n_vocab,)
    for row in (0, 2, 5, 8):
        with pytest.raises(EngineError, match="no scores kept"):
            backend.scores(row)
    backend.evaluate(ids[:1])
    with pytest.raises(EngineError, match="no scores kept"):
        backend.scores(0)


def test_scores_are_a_view(backend: Backend) -> None:
    backend.evaluate(some_ids(backend, 3), [1, 2])
    row = backend.scores(2)
    assert row.dtype == np.float32
    assert row.shape == (backend.info.n_vocab,)
    assert np.shares_memory(row, backend.scores(2))
    assert not np.shares_memory(row, backend.scores(1))
    assert (row != backend.scores(1)).any()


def test_scores_go_with_clear_rewind_and_restore(backend: Backend) -> None:
    ids = some_ids(backend, 4)
    for forget in (
        backend.clear,
        lambda: backend.rewind(2) or backend.clear(),
        lambda: backend.restore(backend.save(), backend.n_cached),
    ):
        backend.clear()
        backend.evaluate(ids, [3])
        forget()
        with pytest.raises(EngineError, match="no scores kept"):
            backend.scores(3)


def test_the_same_calls_give_the_same_bits(backend: Backend) -> None:
    ids = some_ids(backend, 48)
    runs = []
    for _ in range(2):
        backend.clear()
        rows = []
        for start in (0, 16, 32):
            backend.evaluate(ids[start : start + 16], [3, 15])
            rows += [backend.scores(3).tobytes(), backend.scores(15).tobytes()]
        runs.append(rows)
    assert runs[0] == runs[1]
    assert len(set(runs[0])) == 6


def test_positions_matter(backend: Backend) -> None:
    """The bits of the last row tell what stood before it: the tests here can fail."""
    ids = some_ids(backend, 12)
    whole = steps(backend, ids)[-1]
    backend.clear()
    assert steps(backend, [*ids[:5], *ids[6:]])[-1] != whole
    backend.clear()
    assert steps(backend, [*ids[:4], ids[5], ids[4], *ids[6:]])[-1] != whole


def test_rewinding_and_evaluating_again_is_exact(backend: Backend) -> None:
    ids = some_ids(backend, 60)
    rows = steps(backend, ids)
    for n_keep in (59, 40, 41, 17, 0):
        if backend.n_cached <= n_keep:
            steps(backend, ids[backend.n_cached : n_keep + 1])
        n_before = backend.n_cached
        if not backend.rewind(n_keep):
            assert not backend.info.can_rewind
            assert backend.n_cached == n_before
            backend.clear()
            steps(backend, ids[:n_keep])
        assert backend.n_cached == n_keep
        assert steps(backend, ids[n_keep : n_keep + 5]) == rows[n_keep : n_keep + 5]


def test_a_refused_rewind_changes_nothing(backend: Backend) -> None:
    ids = some_ids(backend, 30)
    rows = steps(backend, ids)
    backend.clear()
    steps(backend, ids[:20])
    for n_keep in (19, 10, 0):
        assert backend.rewind(n_keep) is backend.info.can_rewind
        assert backend.n_cached == (n_keep if backend.info.can_rewind else 20)
    if not backend.info.can_rewind:
        assert backend.scores(0).tobytes() == rows[19]
    n_cached = backend.n_cached
    assert steps(backend, ids[n_cached:]) == rows[n_cached:]


@pytest.mark.parametrize("n_keep", [-1, 5, 6, 1000])
def test_a_rewind_that_removes_nothing_is_an_error(backend: Backend, n_keep: int) -> None:
    backend.evaluate(some_ids(backend, 5))
    with pytest.raises(EngineError, match=rf"rewind to {n_keep} of 5 tokens"):
        backend.rewind(n_keep)
    assert backend.n_cached == 5


def test_clearing_makes_a_fresh_start(backend: Backend) -> None:
    ids = some_ids(backend, 20)
    rows = steps(backend, ids)
    backend.clear()
    backend.clear()
    assert backend.n_cached == 0
    steps(backend, ids[::-1])
    backend.clear()
    assert steps(backend, ids) == rows


def test_a_saved_moment_comes_back_exactly(backend: Backend) -> None:
    ids = some_ids(backend, 60)
    rows, states = [], {}
    for n, token in enumerate(ids, 1):
        rows += steps(backend, [token])
        if n % 10 == 0:
            states[n] = backend.save()
    for n in (60, 50, 30, 20):
        assert backend.restore(states[n], n)
        assert backend.n_cached == n
        assert steps(backend, ids[n : n + 3]) == rows[n : n + 3]
    assert steps(backend, ids[23:31]) == rows[23:31]
    assert backend.restore(states[10], 10)
    assert steps(backend, ids[10:14]) == rows[10:14]


def test_a_moment_can_be_restored_twice(backend: Backend) -> None:
    ids = some_ids(backend, 20)
    rows = steps(backend, ids[:12])
    backend.clear()
    steps(backend, ids[:8])
    state = backend.save()
    for other in (ids[13], ids[14]):
        backend.evaluate([other, other, other])
        assert backend.restore(state, 8)
        assert steps(backend, ids[8:12]) == rows[8:12]
        assert backend.restore(state, 8)


def test_a_foreign_state_is_refused_and_changes_nothing(backend: Backend) -> None:
    ids = some_ids(backend, 24)
    rows = steps(backend, ids)
    backend.clear()
    steps(backend, ids[:6])
    state = backend.save()
    backend.clear()
    assert backend.restore(state, 6) is False
    steps(backend, [ids[1], *ids[1:10]])
    assert backend.restore(state, 6) is False, "the cache begins with other tokens"
    backend.clear()
    steps(backend, ids[:10])
    assert backend.restore(state, 5) is False
    assert backend.restore(state, 7) is False
    assert backend.restore(b"\1\0\0\0" * 40, 6) is False
    assert backend.restore(b"", 6) is False
    assert backend.n_cached == 10
    assert backend.scores(0).tobytes() == rows[9]
    assert steps(backend, ids[10:]) == rows[10:]


def test_the_empty_moment_can_be_saved(backend: Backend) -> None:
    state = backend.save()
    ids = some_ids(backend, 5)
    rows = steps(backend, ids)
    assert backend.restore(state, 0)
    assert backend.n_cached == 0
    assert steps(backend, ids) == rows


def test_a_stored_cache_comes_back_whole_after_another_text(backend: Backend) -> None:
    ids = some_ids(backend, 60)
    rows = steps(backend, ids)
    n_kept = 12 if backend.info.name.startswith("tiny gemma3") else 40  # its window is 16 tokens
    backend.clear()
    steps(backend, ids[:n_kept])
    state = backend.store(1 << 30)
    assert state is not None
    for _ in range(2):
        backend.clear()
        steps(backend, ids[50:])
        assert backend.load(state, ids[:n_kept])
        assert backend.n_cached == n_kept
        with pytest.raises(EngineError, match="no scores"):
            backend.scores(0)
        assert steps(backend, ids[n_kept:50]) == rows[n_kept:50]
        if backend.info.can_rewind:
            assert backend.rewind(25)
            assert steps(backend, ids[25:45]) == rows[25:45]


@pytest.mark.native
def test_a_text_longer_than_a_sliding_window_is_not_kept(opened: Callable[[str], Backend]) -> None:
    backend = opened("gemma3 spm")
    backend.clear()
    steps(backend, some_ids(backend, 15))
    assert backend.store(1 << 30)
    steps(backend, [5])
    assert backend.store(1 << 30) is None


def test_a_cache_that_cannot_be_kept_is_not(backend: Backend) -> None:
    assert not backend.store(1 << 30)
    ids = some_ids(backend, 12)
    rows = steps(backend, ids)
    state = backend.store(1 << 30)
    assert state is not None
    assert backend.store(len(state) - 1) is None
    assert not backend.load(state, ids[:5]), "a state of other tokens"
    assert backend.n_cached == 0
    assert not backend.load(state[: len(state) // 2], ids), "half a state"
    assert backend.n_cached == 0
    assert steps(backend, ids) == rows


def test_any_order_of_calls_gives_the_scores_of_the_ids(backend: Backend) -> None:
    """Single steps, rewinds, clears, saves and restores in random order: the bits depend on the ids alone."""
    choices = random.Random(7)
    alphabet = sorted(set(some_ids(backend, 60)))[:6]
    seen: dict[tuple[int, ...], bytes] = {}
    states: list[tuple[tuple[int, ...], bytes]] = []
    ids: tuple[int, ...] = ()
    for _ in range(200):
        action = choices.choice(("step", "step", "step", "step", "rewind", "save", "restore", "clear"))
        if action == "step" and len(ids) < 10:
            ids = (*ids, choices.choice(alphabet[:2]))
            bits = steps(backend, ids[-1:])[0]
            assert seen.setdefault(ids, bits) == bits
        elif action == "rewind" and ids:
            n_keep = choices.randrange(len(ids))
            ids = ids[:n_keep] if backend.rewind(n_keep) else ids
        elif action == "save":
            states.append((ids, backend.save()))
        elif action == "restore" and states:
            saved, state = choices.choice(states)
            fits = ids[: len(saved)] == saved
            assert backend.restore(state, len(saved)) is fits
            ids = saved if fits else ids
        elif action == "clear" and choices.random() < 0.3:
            backend.clear()
            ids = ()
        assert backend.n_cached == len(ids)
    assert len(seen) > 15


@pytest.mark.parametrize(
    ("tokens", "rows", "message"),
    [
        ((), (), "nothing to evaluate"),
        ((0,) * 257, (), "257 tokens in one call, the batch size is 256"),
        ((0, 0), (1, 0), "ascending"),
        ((0, 0), (1, 1), "ascending"),
        ((0, 0), (2,), "ascending"),
        ((0, 0), (-1,), "ascending"),
        ((0, -1), (), "token -1 is outside"),
        ((0, 10**6), (), "token 1000000 is outside"),
    ],
)
def test_impossible_calls_are_refused_before_anything_happens(
    backend: Backend, tokens: tuple[int, ...], rows: tuple[int, ...], message: str
) -> None:
    ids = some_ids(backend, 6)
    expected = steps(backend, ids)
    backend.clear()
    steps(backend, ids[:3])
    with pytest.raises(EngineError, match=message):
        backend.evaluate(tokens, rows)
    assert backend.n_cached == 3
    assert backend.scores(0).tobytes() == expected[2]
    assert steps(backend, ids[3:]) == expected[3:]


def test_the_context_can_be_filled_and_not_more(backend: Backend) -> None:
    """B29: the real context counts, to the last token."""
    n_ctx = backend.info.n_ctx
    ids = some_ids(backend, n_ctx + 1)
    backend.evaluate(ids[: n_ctx - 1])
    with pytest.raises(EngineError, match=rf"{n_ctx - 1} \+ 2 tokens do not fit into a context of {n_ctx}"):
        backend.evaluate(ids[n_ctx - 1 :])
    backend.evaluate(ids[n_ctx - 1 : n_ctx], [0])
    assert backend.n_cached == n_ctx
    assert np.isfinite(backend.scores(0)).all()
    with pytest.raises(EngineError, match="do not fit"):
        backend.evaluate(ids[n_ctx:])
    assert backend.n_cached == n_ctx


def test_one_batch_fills_the_context(backend: Backend) -> None:
    ids = some_ids(backend, backend.info.n_batch)
    backend.evaluate(ids, range(len(ids)))
    assert backend.n_cached == backend.info.n_batch
    assert all(np.isfinite(backend.scores(row)).all() for row in range(len(ids)))


def test_batches_agree_with_single_steps(backend: Backend, case: Case) -> None:
    """Within `Case.tolerance`: a batch adds the same numbers in another order, and quantised models feel it."""
    ids = some_ids(backend, 72)
    single = [softmax(np.frombuffer(row, dtype=np.float32)) for row in steps(backend, ids)]
    for size in (2, 3, 4, 8, 16, 72):
        backend.clear()
        for start in range(0, len(ids), size):
            part = ids[start : start + size]
            backend.evaluate(part, range(len(part)))
            for row in range(len(part)):
                one, many = single[start + row], softmax(backend.scores(row))
                assert np.abs(one - many).max() <= case.tolerance, (size, start + row)
                second, first = np.partition(one, -2)[-2:]
                if first - second > 2 * case.tolerance:
                    assert one.argmax() == many.argmax()


def test_rows_do_not_change_what_is_computed(backend: Backend, case: Case) -> None:
    ids = some_ids(backend, 12)
    backend.evaluate(ids, range(12))
    all_rows = softmax(backend.scores(11))
    backend.clear()
    backend.evaluate(ids, [11])
    assert np.abs(softmax(backend.scores(11)) - all_rows).max() <= case.tolerance
    backend.clear()
    backend.evaluate(ids)
    backend.evaluate(ids[:1], [0])
    assert np.isfinite(backend.scores(0)).all()


@pytest.mark.parametrize("n_batch", [1, 3, 64])
def test_the_batch_size_bounds_one_call(case: Case, n_batch: int) -> None:
    backend = case.open(n_batch=n_batch)
    assert backend.info.n_batch == n_batch
    ids = some_ids(backend, n_batch + 1)
    with pytest.raises(EngineError, match=f"the batch size is {n_batch}"):
        backend.evaluate(ids)
    backend.evaluate(ids[:n_batch], [n_batch - 1])
    backend.evaluate(ids[n_batch:], [0])
    assert backend.n_cached == n_batch + 1
    backend.close()


def test_a_closed_backend_refuses_everything(case: Case) -> None:
    backend = case.open()
    ids = some_ids(backend, 3)
    backend.evaluate(ids, [2])
    state = backend.save()
    backend.close()
    backend.close()
    for call in (
        lambda: backend.evaluate(ids, [2]), lambda: backend.scores(2), lambda: backend.rewind(1), backend.clear,
        backend.save, lambda: backend.restore(state, 3),
    ):  # fmt: skip
        with pytest.raises(EngineError, match="is closed"):
            call()
    assert backend.info.n_ctx == N_CTX
    assert repr(backend)


TEXTS = (
    "", " ", "  x", "\nx", "x", TEXT, "a\0b\0", "-" * 80, "the <tool> is <tool><tool>x", "👩\u200d👩\u200d👧",
    "e\u0301", "\r\n\t\n", "<s></s><|im_start|><bos><|turn|><|end|>", "日本語 ภาษาไทย", "x\u2581y", "'s </s>",
)  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_join_to_the_text(backend: Backend, text: str) -> None:
    ids = backend.tokenize(text.encode())
    blank = b" " if backend.info.adds_space_prefix and text else b""
    assert b"".join(backend.piece(token) for token in ids) == blank + text.encode()
    assert all(0 <= token < backend.info.n_vocab for token in ids)
    assert not any(backend.is_control(token) for token in ids)
    assert backend.tokenize(text.encode()) == ids


def test_control_tokens_have_a_spelling_and_no_text(backend: Backend) -> None:
    control = [token for token in range(backend.info.n_vocab) if backend.is_control(token)]
    assert set(backend.eog_tokens) <= set(control)
    assert backend.info.bos is None or backend.info.bos in control
    for token in control[:200]:
        assert backend.piece(token) == b""
        assert not backend.is_user_defined(token)
        spelling = backend.spelling(token)
        assert spelling
        assert token not in backend.tokenize(f"x{spelling}y".encode())
    assert all(
        token in backend.tokenize(backend.spelling(token).encode(), special=True) for token in backend.eog_tokens
    )


def test_user_defined_tokens_are_ordinary_text(backend: Backend, name: str) -> None:
    user_defined = [token for token in range(backend.info.n_vocab) if backend.is_user_defined(token)]
    assert user_defined or name == "demo nudging"
    for token in user_defined[:50]:
        assert backend.piece(token)
        assert not backend.is_control(token)
        assert token in backend.tokenize(backend.piece(token))


@pytest.mark.parametrize("raw", [b"\xff", b"x\xe6\x97", b"\xed\xa0\x80"])
def test_broken_utf8_is_refused(backend: Backend, raw: bytes) -> None:
    with pytest.raises(ValueError, match="utf-8"):
        backend.tokenize(raw)


@pytest.mark.parametrize("token", [-1, 10**6])
def test_unknown_tokens_are_refused(backend: Backend, token: int) -> None:
    calls: tuple[Callable[[int], object], ...] = (
        backend.piece, backend.spelling, backend.is_eog, backend.is_control, backend.is_user_defined,
    )  # fmt: skip
    for call in calls:
        with pytest.raises(EngineError, match=f"token {token} is outside the vocabulary"):
            call(token)
