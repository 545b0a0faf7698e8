"""The whole way on tiny generated models: files, load, templates, loop, rewinds; every kind of memory.

What a model says here is noise; what is tested is that its cache never changes it.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_gguf import CHATML, write_tiny

from edge_nudge.core.events import Cause, Finished, Piece, Role
from edge_nudge.engine import fitting
from edge_nudge.engine.devices import Machine
from edge_nudge.runtime import Pair, PairSpec, load_pair
from edge_nudge.spec import plan_load

pytestmark = pytest.mark.native

SETTINGS = {"max_tokens": 40, "gamma": 0.35, "loop_guard": False, "end_prob": 2.0}


def make(folder: Path, base: str, nudging: str) -> PairSpec:
    """Write two models of the given kinds ("mamba spm", ...) with different vocabularies."""
    files = []
    for name, kind in (("base", base), ("nudging", nudging)):
        arch, vocab = kind.split()
        path = folder / f"{name} modèle.gguf"
        files.append(write_tiny(path, arch, vocab=vocab, seed=len(files) + 3, chat_template=CHATML if files else None))
    return PairSpec(*files)


def answer(pair: Pair, question: str = "what is the way to the water", **settings: object) -> tuple[str, Finished]:
    events = list(pair.stream(question, **{**SETTINGS, **settings}))
    assert isinstance(events[-1], Finished)
    return "".join(event.text for event in events if isinstance(event, Piece)), events[-1]


KINDS = [
    ("llama spm", "llama bpe"),
    ("llama bpe", "llama spm"),
    ("mamba spm", "llama bpe"),  # cannot rewind: case B25
    ("llama spm", "mamba bpe"),
    ("mamba bpe", "mamba spm"),
    ("gemma3 spm", "llama bpe"),  # sliding window, smaller than the text: case B26
]


@pytest.mark.parametrize(("base", "nudging"), KINDS)
def test_a_used_pair_answers_like_a_fresh_one(tmp_path: Path, base: str, nudging: str) -> None:
    spec = make(tmp_path, base, nudging)
    questions = ["what is the way to the water", "who was first", "what is the way to the oil"]
    wanted = []
    for question in questions:
        with load_pair(spec, ctx_size=256, threads=1) as fresh:
            wanted.append(answer(fresh, question)[0])
    with load_pair(spec, ctx_size=256, threads=1) as used:
        for _ in range(2):
            for question, want in zip(questions, wanted, strict=True):
                assert answer(used, question)[0] == want
        stream = used.stream(questions[0], **SETTINGS)
        for _ in range(5):
            next(stream, None)
        stream.close()
        assert answer(used, questions[1])[0] == wanted[1]


@pytest.mark.parametrize(("spare_mib", "kept_mib"), [(1024, 512), (100, 100), (0, 0)])
def test_earlier_conversations_get_what_the_pair_leaves_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spare_mib: int, kept_mib: int
) -> None:
    spec = make(tmp_path, "llama spm", "llama bpe")
    plan = plan_load(spec, ctx_size=256, kv_types=dict.fromkeys(Role, "f16"), gpu_layers=dict.fromkeys(Role, 0))
    free = plan.estimate.rooms[0].needed_bytes + (spare_mib << 20)
    monkeypatch.setattr(fitting, "read_machine", lambda: Machine(free, free, 0))
    questions = ["what is the way to the water " * 6, "who was first " * 8]
    with load_pair(spec, ctx_size=256, threads=1) as pair:
        assert [note for note in pair.notes if "earlier" in note] == (
            [] if kept_mib == 512
            else [f"caches of earlier conversations: {kept_mib} MiB instead of 512, more is not left of RAM"]
        )  # fmt: skip
        for question in questions:
            answer(pair, question)
        usage = answer(pair, questions[0])[1].usage
        assert (usage.nudging.n_reused > usage.nudging.n_prompt // 2) == bool(kept_mib)


def test_a_model_that_cannot_rewind_is_asked_again_and_again(tmp_path: Path) -> None:
    """Both models write, control passes many times, and what is read again is counted."""
    spec = make(tmp_path, "mamba spm", "mamba bpe")
    with load_pair(spec, ctx_size=256, threads=1) as pair:
        assert not pair.base.info.can_rewind
        text, finished = answer(pair)
        usage = finished.usage
        assert usage.base.n_written > 0 < usage.nudging.n_written
        assert usage.n_handoffs >= 4
        assert usage.base.evaluated[Cause.REEVALUATED] + usage.nudging.evaluated[Cause.REEVALUATED] > 0
        assert text


@pytest.mark.parametrize(("base", "nudging"), KINDS[:2])
def test_the_extremes_are_one_model_alone(tmp_path: Path, base: str, nudging: str) -> None:
    """Case B35."""
    with load_pair(make(tmp_path, base, nudging), ctx_size=256, threads=1) as pair:
        assert answer(pair, gamma=1.01)[0] == answer(pair, rule="nudging-only")[0]
        events = list(pair.stream("who", **{**SETTINGS, "gamma": 0.0}))
        authors = [event.author for event in events if isinstance(event, Piece)]
        assert authors[0] is Role.NUDGING
        assert set(authors[1:]) == {Role.BASE}


def test_any_part_of_a_split_model_will_do(tmp_path: Path) -> None:
    """Case B41."""
    nudging = write_tiny(tmp_path / "nudging.gguf", vocab="bpe", seed=4, chat_template=CHATML)
    first = write_tiny(tmp_path / "base.gguf", seed=3, n_parts=2)
    whole = write_tiny(tmp_path / "whole.gguf", seed=3)
    second = first.with_name(first.name.replace("00001-of", "00002-of"))
    assert second.exists()
    texts = []
    for base in (first, second, whole):
        with load_pair(PairSpec(base, nudging), ctx_size=256, threads=1) as pair:
            texts.append(answer(pair)[0])
    assert texts[0] == texts[1] == texts[2]
