"""edge-nudge inside lm-evaluation-harness: the model class on pairs without weights, and the command around it."""

from __future__ import annotations

import gc
import inspect
import json
import logging
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_fakes import SHORT, TEMPLATE, Invoke, fake_pair, invoker, loader, text_of
from hypothesis import given
from hypothesis import strategies as st

from edge_nudge import runtime
from edge_nudge.cli import harness as command
from edge_nudge.core.request import GenerateRequest, NudgeParams, Rule
from edge_nudge.errors import ContextOverflowError, EdgeNudgeError, EngineError, InputError
from edge_nudge.evaluate.answering import Answering
from edge_nudge.evaluate.model_args import FORMAT, LOAD, NUDGING, split_model_args
from edge_nudge.evaluate.runner import TASKS_FOLDER
from edge_nudge.evaluate.systems import Kind, parse_system
from edge_nudge.runtime import Pair, PairSpec
from edge_nudge.testing import FakeBackend, ToyVocabulary, hashed_scores

pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install 'edge-nudge[eval]'")

from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM, TemplateLM

from edge_nudge.evaluate.generation import DEFAULT_SEED, request_of, with_seed, write_messages
from edge_nudge.evaluate.harness import EdgeNudgeLM

VOCABULARY = ToyVocabulary((" the", " a", " cat", " sat", "ing", "the", "th", "://", "是的", "是", "  "))
WORDS = ("the", " the", " cat", " sat", "ing", "http", ":", "//", ".", "\n", " ", "  ", "是", "的", "é", "<bos>")
QUESTION = [{"role": "user", "content": "What colour is the sky?"}]
invoke = pytest.fixture(invoker)


def scored_pair(*, adds_bos: bool = True, n_ctx: int = 4096, markers: tuple[str, ...] | None = None) -> Pair:
    """Return a pair whose base model's scores depend on every id before."""
    known = VOCABULARY if markers is None else ToyVocabulary(VOCABULARY.words, markers=markers, eog=markers[:1])
    return Pair(
        FakeBackend(known, hashed_scores(known, 1), name="base", n_ctx=n_ctx, adds_bos=adds_bos),
        FakeBackend(VOCABULARY, hashed_scores(VOCABULARY, 2), name="nudging", n_ctx=n_ctx, chat_template=TEMPLATE),
        PairSpec(Path("base.gguf"), Path("nudging.gguf")),
    )


def ask(kind: str, *arguments: Any, item: int = 0) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0, metadata=("a_task", item, 1))


def written(context: str = write_messages(QUESTION), item: int = 0, **settings: Any) -> Instance:
    return ask("generate_until", context, {"until": [], **settings}, item=item)


def likely(lm: EdgeNudgeLM, context: str, continuation: str) -> tuple[float, bool]:
    (found,) = lm.loglikelihood([ask("loglikelihood", context, continuation)], disable_tqdm=True)
    return found


class Recorder:
    """An answerer that keeps what it is asked."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.requests: list[GenerateRequest] = []
        self.n_checked = 0

    def answer(self, request: GenerateRequest) -> Answering:
        self.requests.append(request)
        return self.pair.answer(request)

    def check(self, request: GenerateRequest) -> None:
        self.n_checked += 1
        self.pair.check(request)


# --- what a request is


def test_messages_reach_both_models_in_their_own_forms() -> None:
    history = [{"role": "system", "content": "Be brief."}, *QUESTION]
    lm = EdgeNudgeLM("nudged", fake_pair())
    request = request_of(parse_system("nudged"), lm.apply_chat_template(history), {})
    assert [message.model_dump() for message in request.messages] == history
    assert request.raw_prompt is None
    assert request.max_tokens == 256


def test_without_a_template_the_text_is_the_base_models_whole_prompt() -> None:
    request = request_of(parse_system("nudged"), "Q: why?\nA:", {})
    assert request.raw_prompt == "Q: why?\nA:"
    assert [message.content for message in request.messages] == ["Q: why?\nA:"]


@pytest.mark.parametrize("name", ["urial", "nudged:format=plain"])
def test_a_prompt_format_needs_messages(name: str) -> None:
    request_of(parse_system(name), write_messages(QUESTION), {})
    with pytest.raises(InputError, match="add --apply_chat_template"):
        request_of(parse_system(name), "Q: why?", {})


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"temp": 0.0}),
        ({"do_sample": False, "temperature": 0.7, "top_p": 0.5}, {"temp": 0.0, "top_p": 0.95}),
        ({"do_sample": True, "temperature": 1, "top_p": 0.5, "seed": 7}, {"temp": 1.0, "top_p": 0.5, "seed": 7}),
        ({"temperature": 0.7}, {"temp": 0.7, "seed": None}),
        ({"until": "\n"}, {"stop": ("\n",)}),
        ({"until": ["\n", "", None]}, {"stop": ("\n",)}),
        ({"until": None}, {"stop": ()}),
        ({"max_new_tokens": 9}, {"max_tokens": 9}),
        ({"max_completion_tokens": 9, "max_gen_toks": 8}, {"max_tokens": 8}),
        ({"num_beams": 1}, {}),
        ({"gamma": 0.25, "rule": "margin"}, {"gamma": 0.25, "rule": Rule.MARGIN}),
        ({"cache_prompt": True}, {"cache_prompt": True}),
    ],
)
def test_generation_settings(settings: dict[str, Any], expected: dict[str, Any]) -> None:
    request = request_of(parse_system("nudged"), "hi", settings, cache_prompt=False)
    flat = {**request.model_dump(), **request.sampling.model_dump(), **request.nudge.model_dump()}
    assert {name: flat[name] for name in expected} == expected
    assert "cache_prompt" in settings or not request.cache_prompt


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_beams": 4}, "one beam"),
        ({"max_length": 100}, "max_gen_toks"),
        ({"repetition_penalty": 1.1}, "'repetition_penalty' is unknown"),
        ({"temperature": "warm"}, "cannot be used"),
        ({"max_gen_toks": -1}, "max_tokens"),
        ({"until": ["x"] * 17}, "stop"),
    ],
)
def test_settings_that_cannot_be_used(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        request_of(parse_system("nudged"), "hi", settings)


def test_what_the_system_sets_comes_first() -> None:
    request = request_of(parse_system("nudged:gamma=0.3"), "hi", {"gamma": 0.2, "lookahead": 4})
    assert (request.nudge.gamma, request.nudge.lookahead) == (0.3, 4)
    assert request_of(parse_system("base"), "hi", {"rule": "margin"}).nudge.rule is Rule.BASE_ONLY


def test_repeats_of_a_question_are_drawn_with_other_seeds() -> None:
    recorder = Recorder(fake_pair())
    lm = EdgeNudgeLM("nudged", recorder)
    drawn, greedy = written(do_sample=True, temperature=0.5), written(seed=7)
    lm.generate_until([drawn, drawn, greedy, greedy, drawn], disable_tqdm=True)
    seeds = [request.sampling.seed for request in recorder.requests]
    assert recorder.n_checked == 5  # before the first answer
    assert seeds == [DEFAULT_SEED, DEFAULT_SEED + 1, None, None, DEFAULT_SEED + 2]
    assert with_seed(request_of(parse_system("nudged:temp=1+seed=5"), "hi", {}), 2).sampling.seed == 7


# --- model arguments


def test_the_arguments_are_those_of_open_pair() -> None:
    parameters = inspect.signature(runtime.open_pair).parameters
    assert {*LOAD, FORMAT} == {*parameters} - {"say"}
    for name, kind in LOAD.items():
        assert kind.__name__ in str(parameters[name].annotation), name
    assert {*NUDGING} == {*NudgeParams.model_fields} - {"verify_ahead"}


def test_arguments_are_split() -> None:
    typed = {"pair": "demo", "threads": 1, "fit_check": False, "adapter": None, "trust_remote_code": True}
    system, load = split_model_args("nudged:lookahead=4", {**typed, "gamma": 1, "loop_guard": False, "rule": "entropy"})
    assert load == {"pair": "demo", "threads": 1, "fit_check": False}
    assert system.settings == {"lookahead": 4, "rule": "entropy", "gamma": 1.0, "loop_guard": False}
    system, load = split_model_args("nudged", {"base_prompt_format": "plain"})
    assert system.base_prompt_format == load["base_prompt_format"] == "plain"
    assert split_model_args("urial", {})[1] == {"base_prompt_format": "urial"}


@pytest.mark.parametrize(
    ("system", "arguments", "words"),
    [
        ("nudged", {"thread": 1}, "'thread' is unknown: there are system, pair, base, nudging"),
        ("nudged", {"threads": "two"}, "threads is 'two', not a whole number"),
        ("nudged", {"threads": True}, "threads is True, not a whole number"),
        ("nudged", {"threads": 2.0}, "threads is 2.0, not a whole number"),
        ("nudged", {"base": 7}, "base is 7, not a text: write it in quotes"),
        ("nudged", {"fit_check": 0}, "fit_check is 0, not true or false"),
        ("nudged", {"cache_prompt": "yes"}, "cache_prompt is 'yes', not true or false"),
        ("nudged", {"gamma": "high"}, "gamma"),
        ("base", {"gamma": 0.3}, "has no setting 'gamma'"),
        ("nudged:gamma=0.3", {"gamma": 0.4}, "gamma is given twice"),
        ("nudged:format=qa", {"base_prompt_format": "plain"}, "given twice"),
        ("proxy", {}, "needs other models: 'edge-nudge eval' has it"),
        ("both", {}, "there is no system 'both'"),
        ("nudged", {"pair": "demo", "base": "b.gguf", "nudging": "n.gguf"}, "not both"),
    ],
)
def test_arguments_that_cannot_be_used(
    system: str, arguments: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "load_pair", loader())
    with pytest.raises(InputError, match=words):
        EdgeNudgeLM(system, **arguments)


@pytest.fixture
def opened(files: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[dict[str, Any], list[Pair]]]:
    """The arguments that name two files, and the pairs opened for them."""
    pairs: list[Pair] = []

    def load(spec: PairSpec, **settings: Any) -> Pair:
        pairs.append(fake_pair(spec=spec, n_ctx=settings.get("ctx_size", 4096)))
        return pairs[-1]

    monkeypatch.setattr(runtime, "load_pair", load)
    yield {"base": files[1], "nudging": files[3]}, pairs
    for pair in pairs:
        pair.close()


def is_closed(pair: Pair) -> bool:
    try:
        pair.base.clear()
    except EngineError:
        return True
    return False


def test_a_pair_is_closed_with_its_model(opened: tuple[dict[str, Any], list[Pair]]) -> None:
    arguments, pairs = opened
    lm = EdgeNudgeLM(**arguments)
    (pair,) = pairs
    assert lm.generate_until([written()], disable_tqdm=True) == [text_of(SHORT)]
    gc.disable()  # no cycle keeps it alive
    try:
        assert not is_closed(pair)
        del lm
        assert is_closed(pair)
    finally:
        gc.enable()


def test_a_pair_is_closed_on_request_and_another_ones_is_not(opened: tuple[dict[str, Any], list[Pair]]) -> None:
    arguments, pairs = opened
    lm = EdgeNudgeLM(**arguments)
    lm.close()
    lm.close()
    assert is_closed(pairs[0])
    given_pair = fake_pair()
    EdgeNudgeLM("nudged", given_pair).close()
    assert not is_closed(given_pair)
    with pytest.raises(InputError, match="threads: an open pair is given"):
        EdgeNudgeLM("nudged", given_pair, threads=1)


def test_what_is_written_beside_the_results(opened: tuple[dict[str, Any], list[Pair]]) -> None:
    arguments, _ = opened
    lm = EdgeNudgeLM(**arguments, lookahead=2)
    lm.generate_until([written(gamma=0.3), written(), written(gamma=0.3)], disable_tqdm=True)
    info = lm.get_model_info()
    assert info["system"] == "nudged:lookahead=2"
    assert info["rules"] == [{"rule": "top_prob", "gamma": gamma} for gamma in (0.3, 0.4)]
    assert info["pair"]["base"]["file"] == "base.gguf"
    assert json.loads(json.dumps(info)) == info


# --- answers


def test_answers_come_in_order_and_reuse_nothing() -> None:
    recorder = Recorder(fake_pair())
    lm = EdgeNudgeLM("nudged", recorder)
    answers = lm.generate_until([written(), written(max_gen_toks=2), written(until=[" blue"])], disable_tqdm=True)
    assert answers[0] == text_of(SHORT)
    assert text_of(SHORT).startswith(answers[1])
    assert answers[2] == text_of(SHORT).split(" blue")[0]
    assert not any(request.cache_prompt for request in recorder.requests)


def test_a_long_prompt_is_found_before_the_first_answer() -> None:
    pair = fake_pair(n_ctx=64)
    lm = EdgeNudgeLM("nudged", pair)
    line = r"task a_task, item 5: prompt is .* raise ctx_size in --model_args"
    with pytest.raises(ContextOverflowError, match=line) as raised:
        lm.generate_until([written("short"), written("long " * 50, item=5)], disable_tqdm=True)
    assert (raised.value.exit_code, raised.value.n_ctx) == (3, 64)
    assert isinstance(pair.base, FakeBackend)
    assert pair.base.n_calls == 0


def test_a_message_is_never_continued() -> None:
    lm = EdgeNudgeLM("nudged", fake_pair())
    with pytest.raises(InputError, match="gen_prefix"):
        lm.apply_chat_template(QUESTION, add_generation_prompt=False)
    with pytest.raises(InputError, match="no chat template 'chatml'"):
        lm.chat_template("chatml")
    assert lm.chat_template(False) == ""
    assert lm.chat_template(True)
    assert lm.tokenizer_name


# --- log-likelihoods


class Reference(TemplateLM):
    """The harness's own cutting of texts, over the scores of the pair."""

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        self._pair = pair

    @property
    def eot_token_id(self) -> int:
        assert self._pair.base.info.bos is not None
        return self._pair.base.info.bos

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        info = self._pair.base.info
        lead = [info.bos] if info.adds_bos and add_special_tokens is not False else []
        return [*lead, *self._pair.base.tokenize(string.encode())]

    def _loglikelihood_tokens(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
        return [self.sum(context, continuation) for _, context, continuation in requests]

    def sum(self, context: list[int], continuation: list[int]) -> tuple[float, bool]:
        scores = self._pair.score([*context, *continuation], 1)[len(context) :]
        return (
            sum(score.logprob or 0.0 for score in scores),
            all(score.top[0][1] == score.logprob for score in scores),
        )

    def generate_until(self, requests: list[Any]) -> list[str]:
        raise AssertionError

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        raise AssertionError


TEXTS = st.lists(st.sampled_from(WORDS), max_size=8).map("".join)


@given(TEXTS, TEXTS, st.booleans())
def test_log_likelihoods_are_the_harnesss_own(context: str, continuation: str, adds_bos: bool) -> None:
    pair = scored_pair(adds_bos=adds_bos)
    reference, lm = Reference(pair), EdgeNudgeLM("base", pair)
    if context and not context.rstrip() and not adds_bos:
        return  # the harness has nothing to start from there; see below
    if context:
        before, rest = reference._encode_pair(context, continuation)
        if not rest or reference.tok_encode(context + continuation) != [*before, *rest]:
            return  # a token reaches over the seam; see below
    elif not continuation:
        return
    (expected,) = reference.loglikelihood([ask("loglikelihood", context, continuation)], disable_tqdm=True)
    assert likely(lm, context, continuation) == expected


@pytest.mark.parametrize(
    ("context", "continuation", "moved"),
    [("the cat ", "sat", ("the cat", " sat")), ("Q: ? A: ", "4", ("Q: ? A:", " 4")), (" \n", "the", ("", " \nthe"))],
)
def test_blanks_at_the_end_go_with_the_continuation(context: str, continuation: str, moved: tuple[str, str]) -> None:
    for adds_bos in (True, False):
        lm = EdgeNudgeLM("base", scored_pair(adds_bos=adds_bos))
        assert likely(lm, context, continuation) == likely(lm, *moved)


@pytest.mark.parametrize("adds_bos", [True, False])
def test_a_text_without_a_context_stands_behind_bos(adds_bos: bool) -> None:
    pair = scored_pair(adds_bos=adds_bos)
    ids = [VOCABULARY.marker("<bos>"), *VOCABULARY.tokenize(b"the cat")]
    assert likely(EdgeNudgeLM("base", pair), "", "the cat") == Reference(pair).sum(ids[:1], ids[1:])


def test_a_text_without_a_context_stands_behind_the_end_token_where_there_is_no_bos() -> None:
    pair = scored_pair(markers=("<eos>",))
    ids = pair.base.tokenize(b"the cat")
    assert likely(EdgeNudgeLM("base", pair), "", "the cat") == Reference(pair).sum([0], ids)


def test_a_token_that_reaches_over_the_seam_belongs_to_the_context() -> None:
    pair = scored_pair()
    scores = pair.score("http://the cat", 1)
    n_context = len(VOCABULARY.tokenize(b"http:"))
    assert [score.data for score in scores[n_context:]] != [b"//", b"the", b" cat"]
    expected = sum(score.logprob or 0.0 for score in scores[n_context:])
    assert likely(EdgeNudgeLM("base", pair), "http:", "//the cat")[0] == expected


def test_a_continuation_that_melts_into_the_context_is_the_last_token() -> None:
    pair = scored_pair()
    whole = VOCABULARY.tokenize("the是的".encode())
    bos = VOCABULARY.marker("<bos>")
    assert len(whole) == len(VOCABULARY.tokenize("the是".encode()))
    assert likely(EdgeNudgeLM("base", pair), "the是", "的") == Reference(pair).sum([bos, *whole[:-1]], whole[-1:])


def test_a_long_context_loses_its_beginning_but_never_bos(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("lm_eval"), "propagate", True)  # the harness switches it off
    pair = scored_pair(n_ctx=32)
    lm = EdgeNudgeLM("base", pair)
    context, continuation = "the cat sat" * 12, " a cat"
    n_context = len(VOCABULARY.tokenize(context.encode()))
    whole = VOCABULARY.tokenize((context + continuation).encode())
    rest = whole[n_context:]
    kept = whole[:n_context][-(32 - 1 - 1 - len(rest)) :]
    expected = Reference(pair).sum([VOCABULARY.marker("<bos>"), *kept], rest)
    with caplog.at_level(logging.WARNING, "lm_eval"):
        assert likely(lm, context, continuation) == expected
        assert likely(lm, context, continuation) == expected
    assert len([record for record in caplog.records if "beginning of this context is left out" in record.message]) == 1
    assert lm._likelihoods is not None
    assert lm._likelihoods.n_cut == 2
    with pytest.raises(InputError, match=r"a continuation of \d+ tokens does not fit .* of 32: raise ctx_size"):
        likely(lm, "the", "the cat sat" * 12)


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("n_words", [0, 1, 9, 10, 11, 40])
def test_a_long_text_is_read_in_windows(n_words: int, adds_bos: bool) -> None:
    pair = scored_pair(adds_bos=adds_bos, n_ctx=12)
    text = " cat" * n_words
    ids = VOCABULARY.tokenize(text.encode())
    bos = VOCABULARY.marker("<bos>")
    n_window = 10
    total = Reference(pair).sum([bos], ids[:n_window])[0] if ids else 0.0
    for start in range(n_window, len(ids), n_window):
        part = ids[start : start + n_window]
        before = ids[start + len(part) - n_window - 1 : start]
        total += Reference(pair).sum(before, part)[0]
    (found,) = EdgeNudgeLM("base", pair).loglikelihood_rolling([ask("loglikelihood_rolling", text)], disable_tqdm=True)
    assert found == total


@pytest.mark.parametrize("system", ["nudged", "nudging", "urial"])
def test_only_the_base_model_has_likelihoods(system: str) -> None:
    lm = EdgeNudgeLM(system, scored_pair())
    for answer in (lm.loglikelihood, lm.loglikelihood_rolling):
        with pytest.raises(InputError, match=f"'{system}' has no likelihood .* use system=base"):
            answer([ask("loglikelihood", "the", " cat")])


def test_bad_items_are_named() -> None:
    lm = EdgeNudgeLM("base", scored_pair())
    with pytest.raises(InputError, match="task a_task, item 0: the continuation is empty"):
        likely(lm, "the", "")
    with pytest.raises(InputError, match="leave out --apply_chat_template"):
        likely(lm, write_messages(QUESTION), "the")
    with pytest.raises(InputError, match="neither a BOS nor an end token"):
        likely(EdgeNudgeLM("base", scored_pair(markers=())), "", "the")


# --- the harness's files of answers


def test_kept_answers_are_used_again_and_never_another_models(
    opened: tuple[dict[str, Any], list[Pair]], tmp_path: Path
) -> None:
    arguments, pairs = opened
    file = str(tmp_path / "kept.db")

    def run(**more: Any) -> list[str]:
        cached = CachingLM(EdgeNudgeLM(**arguments, **more), file)
        try:
            found: list[str] = cached.generate_until([written()])
            return found
        finally:
            cached.dbdict.close()

    assert run() == run() == [text_of(SHORT)]
    assert isinstance(pairs[0].base, FakeBackend)
    assert isinstance(pairs[1].base, FakeBackend)
    assert pairs[0].base.n_calls > 0
    assert pairs[1].base.n_calls == 0
    for more, words in (
        ({"gamma": 0.3}, "system"),
        ({"cache_prompt": True}, "cache_prompt"),
        ({"ctx_size": 99}, "n_ctx"),
    ):
        lm = EdgeNudgeLM(**arguments, **more)
        with pytest.raises(InputError, match=f"answers of another model .*{words}"):
            CachingLM(lm, file)
    Path(arguments["base"]).write_bytes(b"another model")
    with pytest.raises(InputError, match="base sha256"):
        CachingLM(EdgeNudgeLM(**arguments), file)


# --- the command


def add_ours(**said: Any) -> Namespace:
    namespace = Namespace(**{"model": None, "include_path": None, "config": None, **said})
    command._add_ours(namespace)
    return namespace


def test_our_model_and_tasks_are_added(tmp_path: Path) -> None:
    ours = str(TASKS_FOLDER)
    assert add_ours() == Namespace(model="edge_nudge", include_path=[ours], config=None)
    assert add_ours(model="hf", include_path="mine") == Namespace(model="hf", include_path=[ours, "mine"], config=None)
    file = tmp_path / "settings.yaml"
    file.write_text("model: dummy\ninclude_path: theirs\n")
    found = add_ours(config=str(file))
    assert (found.model, found.include_path) == (None, [ours, "theirs"])
    assert add_ours(config=str(file), include_path="mine").include_path == [ours, "mine"]
    bare = Namespace()
    command._add_ours(bare)
    assert bare == Namespace()


def test_the_extra_is_named_where_it_is_missing(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    ended = invoke("lm-eval", "run", "--tasks", "x")
    assert ended.error == "error: lm-evaluation-harness is not installed: pip install 'edge-nudge[eval]'"
    assert ended.code == 2
    assert invoke("lm-eval", "--help").code == 0


class Program:
    """Stands in for the harness's command line."""

    ends: BaseException | None = None

    def parse_args(self) -> Namespace:
        self.arguments = sys.argv[1:]
        return Namespace(arguments=self.arguments)

    def execute(self, namespace: Namespace) -> None:
        sys.stdout.write(" ".join(namespace.arguments) + "\n")
        if self.ends is not None:
            raise self.ends


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> type[Program]:
    class Own(Program):
        pass

    monkeypatch.setattr("lm_eval._cli.HarnessCLI", Own)
    monkeypatch.setattr("lm_eval.utils.setup_logging", lambda: None)
    return Own


def test_arguments_pass_unchanged(invoke: Invoke, program: type[Program]) -> None:
    former = sys.argv
    ended = invoke("lm-eval", "--tasks", "a,b", "-h", "--model_args", "system=base", "--", "-x", "--version")
    assert (ended.code, ended.out) == (0, "--tasks a,b -h --model_args system=base -- -x --version\n")
    assert sys.argv is former


def raised_by_us() -> ValueError:
    try:
        split_model_args("nudged", None)  # type: ignore[arg-type]
    except AttributeError as error:
        return ValueError("no matter").with_traceback(error.__traceback__)
    raise AssertionError


@pytest.mark.parametrize(
    ("ends", "code", "line"),
    [
        (SystemExit(None), 0, ""),
        (SystemExit(2), 2, ""),
        (SystemExit("no"), 1, ""),
        (InputError("no such\nthing"), 2, "error: no such\\nthing\n"),
        (ContextOverflowError("base", 9, 8), 3, "error: prompt is 9 tokens"),
        (
            ValueError("Tasks not found: x"),
            1,
            "error: lm-evaluation-harness failed: ValueError: Tasks not found: x (LM",
        ),
        (FileNotFoundError(2, "not there", "c.yaml"), 1, "error: [Errno 2] not there: 'c.yaml'"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (raised_by_us(), 1, "internal error: ValueError: no matter (please report"),
    ],
)
def test_how_it_ends(
    ends: BaseException, code: int, line: str, invoke: Invoke, program: type[Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "ends", ends)
    ended = invoke("lm-eval", "run")
    assert ended.code == code
    assert ended.err.startswith(line)
    assert ended.err.count("\n") == bool(line)


def test_the_error_classes_keep_their_remedy() -> None:
    assert issubclass(command.HarnessError, EdgeNudgeError)
    assert command.HarnessError.exit_code == 1
    assert parse_system("base").kind is Kind.BASE
