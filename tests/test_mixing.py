"""Opening a mixture: what is refused before anything is loaded, what is freed, and the laws on real models."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from cli_fakes import fake_pair
from test_adapters import changes, write_adapter
from tiny_gguf import CHATML, write_tiny

from edge_nudge import mixing
from edge_nudge.core.events import Finished, Piece, Role
from edge_nudge.core.mixture import Ensemble, ProxyTuning
from edge_nudge.core.request import build_request
from edge_nudge.engine import fitting
from edge_nudge.engine.devices import Gpu, Machine
from edge_nudge.engine.gguf import check_model_file
from edge_nudge.engine.llama import LlamaBackend
from edge_nudge.engine.memory import RAM, WEIGHTS
from edge_nudge.errors import ContextOverflowError, EngineError, InputError, ModelFileError, NoRoomError
from edge_nudge.mixing import Mixture, check_room, open_mixture, plan_untuned
from edge_nudge.runtime import Pair, PairSpec, load_pair
from edge_nudge.spec import plan_load
from edge_nudge.testing import FakeBackend, hashed_scores

native = pytest.mark.native
SETTINGS: dict[str, Any] = {"max_tokens": 20, "loop_guard": False}
QUESTION = "what is the way to the water"
KV = dict.fromkeys(Role, "f16")


def text_of(owner: Mixture | Pair, question: str = QUESTION, **settings: Any) -> str:
    """Answer to the end and return the text."""
    answer = owner.answer(build_request(question, **{**SETTINGS, **settings}))
    events = list(answer)
    assert isinstance(events[-1], Finished)
    return "".join(event.text for event in events if isinstance(event, Piece))


@pytest.fixture
def three(tmp_path: Path) -> tuple[PairSpec, Path]:
    """A pair and an untuned model: one vocabulary, other weights."""
    base, nudging, untuned = (
        write_tiny(tmp_path / f"{name} modèle.gguf", vocab="bpe", seed=seed, chat_template=CHATML)
        for seed, name in enumerate(("base", "nudging", "untuned"), start=3)
    )
    return PairSpec(base, nudging), untuned


# --- fakes: settings, closing, counting


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"kind": "mean"}, "unknown mixture 'mean': choose one of ensemble, proxy"),
        ({"kind": "proxy"}, "proxy tuning needs three models and has two: give the nudging model's own base version"),
        ({"kind": "ensemble", "untuned": "c.gguf"}, "an untuned model .c.gguf. is for proxy tuning"),
        ({"kind": "ensemble", "alpha": 0.5}, "alpha .0.5. is for proxy tuning"),
        ({"kind": "proxy", "untuned": "c.gguf", "alpha": -1.0}, "alpha is -1.0: it must be from 0 to 100"),
        ({"kind": "proxy", "untuned": "c.gguf", "alpha": float("nan")}, "alpha is nan: it must be from 0 to 100"),
        ({"kind": "ensemble", "ctx_size": 0}, "ctx_size is 0"),
        ({"kind": "ensemble", "threads": 0}, "threads is 0"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_any_file_is_read(settings: dict[str, Any], wanted: str) -> None:
    with pytest.raises(InputError, match=wanted):
        open_mixture(spec=PairSpec(Path("missing.gguf"), Path("missing too.gguf")), **settings)


def fake_untuned(pair: Pair) -> FakeBackend:
    base = pair.base
    assert isinstance(base, FakeBackend)
    return FakeBackend(base.vocabulary, hashed_scores(base.vocabulary, 1), name="fake untuned")


def test_an_answer_counts_what_the_untuned_model_did() -> None:
    pair = fake_pair()
    untuned = fake_untuned(pair)
    with Mixture(pair, ProxyTuning(), untuned, notes=("a note",)) as mixture:
        assert mixture.notes == ("a note",)
        assert list(mixture.backends) == ["base", "nudging", "untuned"]
        assert mixture.untuned_usage is None
        finished = mixture.answer(build_request("hi", max_tokens=3)).finish()
        usage = mixture.untuned_usage
        assert usage is not None
        assert usage.n_prompt == finished.usage.base.n_prompt  # the same format
        assert usage.n_evaluated == untuned.n_evaluated == usage.n_prompt + finished.usage.n_completion - 1
    with Mixture(fake_pair(), Ensemble()) as mixture:
        mixture.answer(build_request("hi", max_tokens=3)).finish()
        assert mixture.untuned_usage is None


def test_cancelling_closing_and_starting_anew() -> None:
    with Mixture(fake_pair(), Ensemble()) as mixture:
        request = build_request("hi", max_tokens=8, seed=5)
        whole = list(mixture.answer(request))
        first = mixture.answer(request)
        next(first)
        second = mixture.answer(request)
        assert next(first, None) is None  # another one has begun
        next(second)
        second.cancel()
        assert second.finish().detail.value == "cancelled"
        assert [e for e in mixture.answer(request) if isinstance(e, Piece)] == [
            e for e in whole if isinstance(e, Piece)
        ]
        mixture.forget()
        finished = mixture.answer(request).finish()
        assert finished.usage.base.n_reused == 0
        assert finished.seed == 5


def test_a_raw_prompt_goes_to_base_and_untuned_model() -> None:
    pair = fake_pair()
    with Mixture(pair, ProxyTuning(), fake_untuned(pair)) as mixture:
        finished = mixture.answer(build_request("hi", max_tokens=1, raw_prompt=[7, 8, 9])).finish()
        assert mixture.untuned_usage is not None
        assert finished.usage.base.n_prompt == mixture.untuned_usage.n_prompt == 3
        assert finished.usage.nudging.n_prompt > 3


def test_a_long_prompt_is_refused_at_once() -> None:
    with (
        Mixture(fake_pair(n_ctx=20), Ensemble()) as mixture,
        pytest.raises(ContextOverflowError, match="for the base model, its context is 20"),
    ):
        mixture.answer(build_request("hi " * 20))


def test_one_model_that_cannot_be_closed_does_not_keep_the_others() -> None:
    pair = fake_pair()
    untuned = fake_untuned(pair)
    mixture = Mixture(pair, ProxyTuning(), untuned)
    list(mixture.answer(build_request("hi", max_tokens=1)))

    def fails() -> None:
        raise EngineError("stuck")

    pair.close = fails  # type: ignore[method-assign]
    with pytest.raises(EngineError, match="stuck"):
        mixture.close()
    for backend in mixture.backends.values():
        with pytest.raises(EngineError, match="is closed"):
            backend.clear()


# --- tiny models: files, vocabularies, memory


@native
def test_models_of_other_vocabularies_are_refused_before_weights_are_loaded(
    tmp_path: Path, three: tuple[PairSpec, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, _ = three
    other = write_tiny(tmp_path / "other.gguf", vocab="spm", chat_template=CHATML)
    n_tokens = {path: vocabulary_size(path) for path in (spec.base, other)}
    sizes = f"{n_tokens[spec.base]} tokens and the {{}} model {n_tokens[other]}"
    monkeypatch.setattr(mixing, "load_pair", lambda *_, **__: pytest.fail("weights were loaded"))
    with pytest.raises(InputError, match=f"the average ensemble needs .* {sizes.format('nudging')}, .* token 0, "):
        open_mixture("ensemble", PairSpec(spec.base, other), ctx_size=256, threads=1)
    with pytest.raises(InputError, match=f"proxy tuning needs .* {sizes.format('untuned')}, .* token 0, "):
        open_mixture("proxy", spec, other, ctx_size=256, threads=1)
    with pytest.raises(ModelFileError, match=r"untuned model file .*missing\.gguf"):
        open_mixture("proxy", spec, tmp_path / "missing.gguf", ctx_size=256, threads=1)


def vocabulary_size(path: Path) -> int:
    with LlamaBackend(path, n_ctx=64, n_threads=1, vocab_only=True) as model:
        return model.info.n_vocab


@native
def test_a_used_mixture_answers_like_a_fresh_one(three: tuple[PairSpec, Path]) -> None:
    spec, untuned = three
    questions = [QUESTION, "who was first", "what is the way to the oil"]
    openers: list[Callable[[], Mixture]] = [
        lambda: open_mixture("ensemble", spec, ctx_size=256, threads=1),
        lambda: open_mixture("proxy", spec, untuned, 1.5, ctx_size=256, threads=1),
    ]
    texts = []
    for opener in openers:
        wanted = []
        for question in questions:
            with opener() as fresh:
                wanted.append(text_of(fresh, question))
        with opener() as used:
            for _ in range(2):
                assert [text_of(used, question) for question in questions] == wanted
        texts.append(wanted)
    with load_pair(spec, ctx_size=256, threads=1) as pair:
        alone = [text_of(pair, question, rule="base-only") for question in questions]
    assert texts[0] != texts[1] != alone != texts[0]


@native
def test_what_is_not_tuned_changes_nothing(three: tuple[PairSpec, Path]) -> None:
    """With equal prompts, or with no weight on the difference."""
    spec, untuned = three
    with load_pair(PairSpec(spec.base, untuned), ctx_size=256, threads=1) as pair:
        raw = template_ids(pair, QUESTION)
        alone, behind_raw = text_of(pair, rule="base-only"), text_of(pair, rule="base-only", raw_prompt=raw)
    with open_mixture("proxy", spec, untuned, 0.0, ctx_size=256, threads=1) as mixture:
        assert text_of(mixture) == alone
    with open_mixture("proxy", PairSpec(spec.base, untuned), untuned, ctx_size=256, threads=1) as mixture:
        assert text_of(mixture) != alone  # the same model behind two prompts
        assert text_of(mixture, raw_prompt=raw) == behind_raw
        assert any(note.startswith("untuned model: ") for note in mixture.notes)
    with open_mixture("ensemble", PairSpec(spec.base, spec.base), ctx_size=256, threads=1) as mixture:
        assert text_of(mixture, raw_prompt=raw) == behind_raw


def template_ids(pair: Pair, question: str) -> list[int]:
    """Return what the nudging model is given, as a raw prompt."""
    prompt = pair.nudging_prompt(build_request(question), datetime.now().astimezone())
    return [*prompt.head, *prompt.tokenize(pair.nudging, prompt.tail)]


@native
def test_a_model_and_its_adapter_are_an_ensemble(tmp_path: Path) -> None:
    base = write_tiny(tmp_path / "base.gguf", vocab="bpe", seed=3, chat_template=CHATML)
    spec = PairSpec(base, base, nudging_adapter=write_adapter(tmp_path / "small.gguf", changes(base)))
    with open_mixture("ensemble", spec, ctx_size=256, threads=1) as mixture:
        assert text_of(mixture)
    with open_mixture("proxy", spec, base, ctx_size=256, threads=1) as mixture:
        assert list(mixture.backends) == ["base", "nudging", "untuned"]
        assert text_of(mixture)


@native
def test_all_is_freed_where_opening_fails(three: tuple[PairSpec, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    spec, untuned = three
    closed: list[str] = []
    close = LlamaBackend.close

    def counting(self: LlamaBackend) -> None:
        closed.append(f"{self.info.name} {self.info.n_ctx}")
        close(self)

    def fails(*_: Any, **__: Any) -> Mixture:
        raise EngineError("no")

    monkeypatch.setattr(LlamaBackend, "close", counting)
    monkeypatch.setattr(mixing, "Mixture", fails)
    with pytest.raises(EngineError, match="no"):
        open_mixture("proxy", spec, untuned, ctx_size=256, threads=1)
    assert len([name for name in closed if name.endswith(" 256")]) >= 3


def room_for(spec: PairSpec, untuned: Path, ctx_size: int) -> tuple[int, int]:
    """Return what the pair needs and what all three need."""
    plan = plan_load(spec, ctx_size=ctx_size, kv_types=KV, gpu_layers=dict.fromkeys(Role))
    whole, n_layers = plan_untuned(plan, check_model_file(untuned, role="untuned"), ctx_size=ctx_size)
    assert n_layers is None
    return plan.estimate.rooms[0].needed_bytes, whole.rooms[0].needed_bytes


@native
def test_the_memory_of_all_three_is_counted(three: tuple[PairSpec, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    spec, untuned = three
    of_pair, of_all = room_for(spec, untuned, 256)
    assert of_pair + untuned.stat().st_size // 2 < of_all
    free = [of_all - 1]
    monkeypatch.setattr(fitting, "read_machine", lambda: Machine(1 << 40, free[0], 0))
    with pytest.raises(NoRoomError, match=r"the three models do not fit: RAM: .* needed, .* free") as caught:
        open_mixture("proxy", spec, untuned, ctx_size=256, threads=1)
    assert any(line.startswith("The untuned model needs ") for line in caught.value.lines)
    assert any("fit_check=False" in line for line in caught.value.lines)
    with open_mixture("ensemble", spec, ctx_size=256, threads=1) as mixture:
        assert text_of(mixture)
    with open_mixture("proxy", spec, untuned, ctx_size=256, threads=1, fit_check=False) as mixture:
        assert text_of(mixture)
    free[0] = of_all
    open_mixture("proxy", spec, untuned, ctx_size=256, threads=1).close()
    free[0] = of_pair - 1
    with pytest.raises(NoRoomError, match="the pair does not fit"):
        open_mixture("proxy", spec, untuned, ctx_size=256, threads=1)


@native
def test_a_file_that_is_open_already_costs_no_second_time(three: tuple[PairSpec, Path]) -> None:
    spec, untuned = three
    _, with_other = room_for(spec, untuned, 256)
    for twin in (spec.base, spec.nudging):
        _, with_twin = room_for(spec, twin, 256)
        assert with_twin < with_other


@native
def test_on_a_gpu_the_untuned_model_takes_what_the_pair_leaves(three: tuple[PairSpec, Path]) -> None:
    spec, untuned = three
    header, found = check_model_file(untuned, role="untuned"), []
    for free in (1 << 40, 0, 1 << 20):
        machine = Machine(1 << 40, 1 << 40, 0, gpus=(Gpu("CUDA0", "card", free, 1 << 40),))
        plan = plan_load(spec, ctx_size=256, kv_types=KV, gpu_layers=dict.fromkeys(Role), machine=machine)
        whole, n_layers = plan_untuned(plan, header, ctx_size=256)
        check_room(plan.estimate, whole)
        on_gpu = sum(p.n_bytes for p in whole.parts if p.device == "CUDA0" and p.what == WEIGHTS)
        in_ram = sum(p.n_bytes for p in whole.parts if p.device == RAM and p.what == WEIGHTS)
        found.append((n_layers, on_gpu > 0, in_ram > 0))
    assert found == [(3, True, True), (3, True, True), (0, False, True)]  # embeddings stay in RAM


# --- SmolLM2 with itself, and the demo pair

REAL = "Name three colours of a rainbow."
# One thread: with more, tests that share the cores with others wait at each step.
OPENED: dict[str, Any] = {"ctx_size": 256, "threads": 1}


@pytest.fixture(scope="module")
def itself(demo_paths: tuple[Path, Path]) -> PairSpec:
    return PairSpec(demo_paths[1], demo_paths[1], base_prompt_format="chat")


@pytest.fixture(scope="module")
def own_text(itself: PairSpec) -> dict[str, Any]:
    """What SmolLM2 writes alone: behind the ids of its template, by both roles, and behind the base format."""
    with load_pair(itself, **OPENED) as pair:
        ids = template_ids(pair, REAL)
        return {
            "ids": ids,
            "as base": text_of(pair, REAL, rule="base-only", raw_prompt=ids),
            "as nudging": text_of(pair, REAL, rule="nudging-only", raw_prompt=ids),
            "plain": text_of(pair, REAL, rule="base-only"),
        }


@native
@pytest.mark.demo
def test_the_ensemble_of_equal_prompts_writes_the_models_own_text(itself: PairSpec, own_text: dict[str, Any]) -> None:
    with open_mixture("ensemble", itself, **OPENED) as mixture:
        for _ in range(2):
            got = text_of(mixture, REAL, raw_prompt=own_text["ids"])
            assert got == own_text["as base"] == own_text["as nudging"] != ""


@native
@pytest.mark.demo
def test_an_ensemble_of_different_prompts_runs(itself: PairSpec, own_text: dict[str, Any]) -> None:
    with open_mixture("ensemble", itself, **OPENED) as mixture:
        events = list(mixture.answer(build_request(REAL, **SETTINGS)))
    pieces, finished = [event for event in events if isinstance(event, Piece)], events[-1]
    assert isinstance(finished, Finished)
    assert "".join(piece.text for piece in pieces) not in ("", own_text["plain"], own_text["as nudging"])
    assert {piece.author for piece in pieces} == set(Role)
    assert finished.usage.n_completion == sum(piece.n_tokens for piece in pieces) <= 20
    assert finished.usage.base.n_prompt != finished.usage.nudging.n_prompt


@native
@pytest.mark.demo
def test_proxy_tuning_without_a_difference_is_the_base_model(itself: PairSpec, own_text: dict[str, Any]) -> None:
    with open_mixture("proxy", itself, itself.base, 0.0, **OPENED) as mixture:
        assert text_of(mixture, REAL) == own_text["plain"]
    with open_mixture("proxy", itself, itself.base, **OPENED) as mixture:
        assert text_of(mixture, REAL, raw_prompt=own_text["ids"]) == own_text["as base"]


@native
@pytest.mark.demo
def test_the_demo_pair_is_refused(demo_paths: tuple[Path, Path]) -> None:
    wanted = (
        "the average ensemble needs models of one vocabulary: the base model has 262144 tokens and the nudging "
        "model 49152, and the first difference is token 0, '<pad>' and '<|endoftext|>'; take models of one family, "
        "or nudging, which works with any two"
    )
    with pytest.raises(InputError) as caught:
        open_mixture("ensemble", PairSpec(*demo_paths), **OPENED)
    assert str(caught.value) == wanted
