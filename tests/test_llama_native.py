"""What only llama.cpp can get wrong: its messages, loading, refusals, failures in the middle, and freeing."""

from __future__ import annotations

import ctypes
import gc
import logging
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest
from tiny_gguf import CHATML, write_tiny

from edge_nudge.errors import EngineError, InputError, ModelFileError

if TYPE_CHECKING:
    from edge_nudge.engine.llama import LlamaBackend

pytestmark = pytest.mark.native
DEBUG, INFO, WARN, ERROR, CONT = range(1, 6)  # enum ggml_log_level in ggml.h


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf", n_ctx=2048, chat_template=CHATML)


@pytest.fixture(scope="module")
def recurrent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "mamba.gguf", "mamba", n_ctx=2048)


def load(path: Path, **options: Any) -> LlamaBackend:
    from edge_nudge.engine.llama import LlamaBackend

    return LlamaBackend(path, **{"n_ctx": 256, "n_threads": 1} | options)


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", code, *arguments],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


# Nothing native on the terminal


LOAD = """
import sys
from pathlib import Path
from edge_nudge.engine.llama import LlamaBackend
from edge_nudge.errors import EdgeNudgeError
try:
    backend = LlamaBackend(Path(sys.argv[1]), n_ctx=4096, n_threads=1)
    backend.evaluate(backend.tokenize(b"the answer is"), [0])
except EdgeNudgeError:
    sys.exit(3)
"""


def test_loading_and_leaving_is_silent(model: Path) -> None:
    """The context is smaller than asked for, and nothing is closed: both are worth a native line somewhere."""
    done = run_python(LOAD, str(model))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    "content", [b"", b"<!DOCTYPE html>", b"GGUF" + b"\xff" * 64, None], ids=["empty", "page", "damaged", "cut"]
)
def test_a_failing_load_is_silent(model: Path, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(model.read_bytes()[:-5000] if content is None else content)
    done = run_python(LOAD, str(path))
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "")


def test_messages_go_to_logging(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "edge_nudge"):
        load(model, n_ctx=4096).close()
    records = [record for record in caplog.records if record.name == "edge_nudge.llama"]
    assert {logging.DEBUG, logging.INFO} <= {record.levelno for record in records}
    assert not any("\n" in record.getMessage() for record in records)
    own = [record.getMessage() for record in caplog.records if record.name == "edge_nudge.engine"]
    assert "tiny llama spm: a context of 4096 was asked for, the model has 2048" in own
    assert any("GPU offload" in message for message in own)


def test_a_native_error_is_an_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "page.gguf"
    path.write_bytes(b"<!DOCTYPE html>")
    with caplog.at_level(logging.DEBUG, "edge_nudge"), pytest.raises(ModelFileError):
        load(path)
    assert [record.levelno for record in caplog.records if "invalid magic" in record.getMessage()] == [logging.ERROR]


def relay() -> Any:
    from edge_nudge.engine.native import LogRelay

    return LogRelay(logging.getLogger("edge_nudge.test"))


def test_fragments_become_lines() -> None:
    lines = relay()
    fragments = [(INFO, b"load: one\n"), (INFO, b"dots "), (CONT, b"."), (CONT, b"."), (CONT, b" done\n")]
    for level, text in (*fragments, (DEBUG, b"detail\n"), (WARN, b"a\nb"), (ERROR, b"c\n")):
        lines.feed(level, text)
    assert lines.since(0) == [
        (logging.INFO, "load: one"), (logging.INFO, "dots .. done"), (logging.DEBUG, "detail"), (logging.WARNING, "a"),
        (logging.WARNING, "b"), (logging.ERROR, "c"),
    ]  # fmt: skip


def test_a_continuation_keeps_its_level_and_broken_text_is_shown() -> None:
    lines = relay()
    lines.feed(ERROR, b"bad name ")
    lines.feed(CONT, b"\xff\xfe!")
    lines.feed(DEBUG, b"")
    assert lines.since(0) == [(logging.ERROR, "bad name \ufffd\ufffd!")]


def test_only_the_last_lines_are_kept() -> None:
    lines = relay()
    for number in range(200):
        lines.feed(INFO, b"line %d\n" % number)
    assert lines.since(0) == lines.since(150)
    assert len(lines.since(0)) == 50
    assert lines.since(199) == [(logging.INFO, "line 199")]
    assert lines.since(lines.mark()) == []


def test_a_reason_is_the_telling_lines_of_this_failure() -> None:
    lines = relay()
    lines.feed(ERROR, b"old: an earlier failure\n")
    mark = lines.mark()
    assert lines.reason(mark) == "llama.cpp gave no reason"
    lines.feed(WARN, b"load: a warning\n")
    assert lines.reason(mark) == "a warning"
    for text in (b"llama_model_load: error loading model: tensor 'x' is short\n", b"f: failed to load model\n"):
        lines.feed(ERROR, text)
        lines.feed(ERROR, text)
    assert lines.reason(mark) == "error loading model: tensor 'x' is short"


def test_the_callback_never_raises(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    from edge_nudge.engine import native

    def fail(*_: object) -> None:
        raise RuntimeError("a handler is broken")

    monkeypatch.setattr(native.relay, "feed", fail)
    native.log_callback()(ERROR, b"text\n", None)
    native.log_callback()(ERROR, None, None)
    assert capfd.readouterr() == ("", "")


def test_an_interrupt_inside_the_callback_comes_out_of_the_native_call(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from edge_nudge.engine import native

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(native.relay, "feed", interrupt)
    native.log_callback()(ERROR, b"text\n", None)
    with pytest.raises(KeyboardInterrupt):
        native.raise_held_interrupt()
    native.raise_held_interrupt()
    assert capfd.readouterr() == ("", "")


# Files and numbers that cannot be


def test_load_failures_are_one_readable_line(model: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(model.read_bytes()[:-5000])
    html = tmp_path / "page.gguf"
    html.write_bytes(b"<!DOCTYPE html>")
    missing = tmp_path / "nothing here.gguf"
    vocabulary = write_tiny(tmp_path / "vocabulary.gguf", only_vocabulary=True)
    for path, telling in (
        (cut, "not within the file bounds"), (html, "invalid magic characters"), (missing, "No such file"),
        (tmp_path, "no such"), (vocabulary, "'token_embd.weight' not found"),
    ):  # fmt: skip
        with pytest.raises(ModelFileError) as caught:
            load(path)
        message = str(caught.value)
        assert message.startswith(str(path))
        assert telling in message
        assert "\n" not in message
        assert len(message) < 500


@pytest.mark.parametrize(
    ("changes", "telling"),
    [
        ({"llama.pooling_type": 1}, "an embedding model"),
        ({"llama.attention.causal": False}, "not a causal language model"),
    ],
)
def test_models_that_do_not_write_text_are_refused(tmp_path: Path, changes: dict[str, object], telling: str) -> None:
    with pytest.raises(ModelFileError, match=telling):
        load(write_tiny(tmp_path / "other.gguf", changes=changes))


def test_an_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError):
        load(write_tiny(tmp_path / "bert.gguf", "bert"))


@pytest.mark.parametrize(
    ("question", "answer", "telling"),
    [
        ("llama_model_has_encoder", True, "an encoder-decoder model"),
        ("llama_model_has_decoder", False, "an encoder"),
        ("llama_model_is_diffusion", True, "a diffusion model"),
    ],
)
def test_other_kinds_are_named(
    model: Path, monkeypatch: pytest.MonkeyPatch, question: str, answer: bool, telling: str
) -> None:
    import llama_cpp

    monkeypatch.setattr(llama_cpp, question, lambda _model: answer)
    with pytest.raises(ModelFileError, match=f"tiny llama spm is {telling}: only decoders"):
        load(model)


@pytest.mark.parametrize(
    "options",
    [
        {"n_ctx": 0}, {"n_ctx": -1}, {"n_ctx": 1 << 40}, {"n_batch": 0}, {"n_batch": -5}, {"n_threads": 0},
        {"n_threads": -1}, {"n_threads": 513}, {"n_gpu_layers": -1}, {"n_gpu_layers": 1 << 31},
    ],
)  # fmt: skip
def test_impossible_numbers_are_refused(model: Path, options: dict[str, int]) -> None:
    (number,) = options.values()
    with pytest.raises(InputError, match=str(number)):
        load(model, **options)


def test_what_was_made_is_freed_when_opening_fails(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import llama_cpp

    from edge_nudge.engine import loading

    freed: list[int] = []
    real = llama_cpp.llama_model_free
    monkeypatch.setattr(llama_cpp, "llama_model_free", lambda handle: (freed.append(handle), real(handle)))

    def fail(*_: object, **__: object) -> None:
        raise EngineError("no memory")

    monkeypatch.setattr(loading, "make_context", fail)
    with pytest.raises(EngineError, match="no memory") as caught:
        load(model)
    # At once, not when the traceback that holds the half-made backend goes.
    assert len(freed) == 1
    assert caught.tb


def test_a_context_that_cannot_be_made_says_why(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import llama_cpp

    from edge_nudge.engine import native

    def refuse(_model: object, _params: object) -> None:
        native.log_callback()(ERROR, b"llama_init_from_model: failed to allocate buffer for kv cache\n", None)

    monkeypatch.setattr(llama_cpp, "llama_init_from_model", refuse)
    with pytest.raises(
        EngineError, match=r"256 tokens could be made \(failed to allocate buffer for kv cache\): a smaller"
    ):
        load(model)


# What was asked for, and what it became


def test_the_real_context_is_read_back(model: Path) -> None:
    """B29: 64 asked for are 256; more than the model was trained on is cut."""
    for asked, real in ((64, 256), (256, 256), (257, 512), (100_000, 2048)):
        with load(model, n_ctx=asked) as backend:
            assert backend.info.n_ctx == real
            assert backend.info.n_ctx_train == 2048


def test_threads_and_context_parameters_arrive(model: Path) -> None:
    import llama_cpp

    with load(model, n_threads=2, n_batch=32) as backend:
        context = backend._context
        assert llama_cpp.llama_n_threads(context) == llama_cpp.llama_n_threads_batch(context) == 2
        assert llama_cpp.llama_n_batch(context) == llama_cpp.llama_n_ubatch(context) == backend.info.n_batch == 32
        assert llama_cpp.llama_n_seq_max(context) == 1
        assert backend.flash_attention


def test_a_model_says_what_it_is(model: Path, tmp_path: Path) -> None:
    with load(model) as backend:
        info = backend.info
        assert (info.name, info.architecture, info.bos, info.eos) == ("tiny llama spm", "llama", 1, 2)
        assert info.adds_bos
        assert info.adds_space_prefix
        assert info.can_rewind
        assert info.chat_template == CHATML
    with load(model, name="base") as backend:
        assert backend.info.name == "base"
    nameless = write_tiny(tmp_path / "nameless.gguf", vocab="bpe", changes={"general.name": None})
    with load(nameless) as backend:
        assert backend.info.name == "nameless"
        assert not backend.info.adds_bos
        assert backend.info.chat_template is None


@pytest.mark.parametrize("n_gpu_layers", [None, 0])
def test_offload_is_explained(model: Path, n_gpu_layers: int | None) -> None:
    with load(model, n_gpu_layers=n_gpu_layers) as backend:
        if n_gpu_layers == 0:
            assert backend.offload == "no GPU offload: 0 layers were asked for"
        assert backend.n_gpu_layers == 0 or backend.offload.startswith("GPU offload: all layers")


def test_layers_on_a_build_that_cannot_offload_are_refused(model: Path) -> None:
    import llama_cpp

    if llama_cpp.llama_supports_gpu_offload():
        pytest.skip("this build can offload")
    with pytest.raises(
        EngineError, match=r"99 GPU layers were asked for, but this build .* install a CUDA, Metal or Vulkan"
    ):
        load(model, n_gpu_layers=99)


@pytest.mark.parametrize(
    ("n_gpu_layers", "free_gib", "chosen", "telling"),
    [
        (None, 8, -1, "GPU offload: all layers, on CUDA0 (a card)"),
        (None, 0, -1, "GPU offload: all layers"),
        (None, 1, 0, "no GPU offload: the weights are 2.0 GiB and 1.0 GiB are free on CUDA0"),
        (None, None, 0, "no GPU was found"),
        (7, 1, 7, "GPU offload: 7 layers were asked for, on CUDA0"),
        (0, 8, 0, "0 layers were asked for"),
    ],
)
def test_offload_is_chosen_by_what_fits(
    monkeypatch: pytest.MonkeyPatch, n_gpu_layers: int | None, free_gib: int | None, chosen: int, telling: str
) -> None:
    import llama_cpp

    from edge_nudge.engine import native

    card = [] if free_gib is None else [native.Device("CUDA0", "a card", free_gib << 30, 8 << 30)]
    monkeypatch.setattr(llama_cpp, "llama_supports_gpu_offload", lambda: True)
    monkeypatch.setattr(native, "gpu_devices", lambda: card)
    offload = native.choose_offload(n_gpu_layers, 2 << 30)
    assert offload.n_gpu_layers == chosen
    assert telling in offload.sentence


def test_devices_are_listed_through_the_binding(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a build without a GPU the list is empty; taking the processor for one shows that the calls are right."""
    import llama_cpp

    from edge_nudge.engine import native

    monkeypatch.setattr(llama_cpp, "llama_supports_gpu_offload", lambda: True)
    monkeypatch.setattr(native, "_DEVICE_IS_GPU", (0, 1, 2))
    devices = native.gpu_devices()
    assert any(device.name == "CPU" and device.total_bytes > 1 << 28 for device in devices)


def test_weights_are_not_repacked_where_that_means_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    import llama_cpp

    from edge_nudge.engine import native

    for text, expected in ((b"CPU : AVX2 = 1 | AMX_INT8 = 1 | ", False), (b"CPU : AVX2 = 1 | REPACK = 1 | ", True)):
        monkeypatch.setattr(llama_cpp, "llama_print_system_info", lambda text=text: text)
        assert native.can_repack.__wrapped__() is expected


# Failures in the middle


@pytest.fixture
def abort(request: pytest.FixtureRequest) -> Callable[[LlamaBackend], list[int]]:
    """Install an abort callback; the list holds how many more polls to let pass, or nothing to let all pass."""
    import llama_cpp

    def install(backend: LlamaBackend) -> list[int]:
        left: list[int] = []

        def poll(_data: object) -> bool:
            if left:
                left[0] -= 1
            return bool(left) and left[0] < 0

        callback = llama_cpp.ggml_abort_callback(poll)
        llama_cpp.llama_set_abort_callback(backend._context, callback, None)
        request.addfinalizer(lambda: callback)
        return left

    return install


def bits(backend: LlamaBackend, ids: list[int]) -> list[bytes]:
    rows = []
    for token in ids:
        backend.evaluate([token], [0])
        rows.append(backend.scores(0).tobytes())
    return rows


def test_an_aborted_call_leaves_what_was_there(model: Path, abort: Callable[[LlamaBackend], list[int]]) -> None:
    with load(model) as backend:
        ids = backend.tokenize(b"the answer to this is that water can be found by people")
        expected = bits(backend, ids)
        backend.clear()
        bits(backend, ids[:5])
        left = abort(backend)
        left.append(0)
        with pytest.raises(
            EngineError, match=r"tiny llama spm: 3 tokens after 5 were not evaluated: .*aborted \(code 2\)"
        ):
            backend.evaluate(ids[5:8], [2])
        assert backend.n_cached == 5
        with pytest.raises(EngineError, match="no scores kept"):
            backend.scores(2)
        left.clear()
        assert bits(backend, ids[5:]) == expected[5:]


def test_whole_parts_of_an_aborted_call_stay(model: Path, abort: Callable[[LlamaBackend], list[int]]) -> None:
    """A call of 1,000 tokens is computed in parts of 512; the first is in the cache when the second fails."""
    with load(model, n_ctx=2048, n_batch=1024) as backend:
        ids = (backend.tokenize(b"the answer to this is that water can be found ") * 200)[:1000]
        left = abort(backend)
        left.append(10**9)
        backend.evaluate(ids[:512])
        polls = 10**9 - left[0]
        backend.clear()
        left[:] = [polls + polls // 2]
        with pytest.raises(EngineError, match="aborted"):
            backend.evaluate(ids)
        assert backend.n_cached == 512
        left.clear()
        backend.evaluate(ids[512:520], [7])
        after = backend.scores(7).copy()
        backend.clear()
        backend.evaluate(ids[:512])
        backend.evaluate(ids[512:520], [7])
        assert np.array_equal(after, backend.scores(7))


def test_a_failed_call_empties_a_recurrent_model(recurrent: Path, abort: Callable[[LlamaBackend], list[int]]) -> None:
    """llama.cpp notes the position of the failed tokens as reached, though their state was never computed."""
    import llama_cpp

    with load(recurrent) as backend:
        ids = backend.tokenize(b"the answer to this is that water can be found by people")
        expected = bits(backend, ids)
        backend.clear()
        bits(backend, ids[:5])
        left = abort(backend)
        left.append(0)
        with pytest.raises(EngineError, match="aborted"):
            backend.evaluate(ids[5:8])
        left.clear()
        assert backend.n_cached == 0
        assert llama_cpp.llama_memory_seq_pos_max(backend._memory, 0) == -1
        assert bits(backend, ids) == expected


@pytest.mark.parametrize("is_done", [True, False])
def test_an_interrupt_around_the_call_is_survived(model: Path, monkeypatch: pytest.MonkeyPatch, is_done: bool) -> None:
    from edge_nudge.engine import llama

    real = llama._decode

    def interrupted(context: object, batch: object) -> int:
        if is_done:
            real(context, batch)
        raise KeyboardInterrupt

    with load(model) as backend:
        ids = backend.tokenize(b"the answer to this is that water")
        expected = bits(backend, ids)
        backend.clear()
        bits(backend, ids[:3])
        monkeypatch.setattr(llama, "_decode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            backend.evaluate(ids[3:4], [0])
        monkeypatch.undo()
        assert backend.n_cached == (4 if is_done else 3)
        with pytest.raises(EngineError, match="no scores kept"):
            backend.scores(0)
        assert bits(backend, ids[backend.n_cached :]) == expected[4 if is_done else 3 :]


def test_the_library_itself_refuses_to_cut_a_recurrent_state(recurrent: Path) -> None:
    """B25: why `rewind` need not even ask; the refusal changes nothing."""
    import llama_cpp

    with load(recurrent) as backend:
        ids = backend.tokenize(b"the answer to this is that water can be found by people")
        expected = bits(backend, ids)
        backend.clear()
        bits(backend, ids[:8])
        assert not llama_cpp.llama_memory_seq_rm(backend._memory, 0, 4, -1)
        assert llama_cpp.llama_memory_seq_pos_max(backend._memory, 0) == 7
        assert bits(backend, ids[8:]) == expected[8:]


def test_a_state_that_the_library_refuses_empties_the_cache(recurrent: Path) -> None:
    with load(recurrent) as backend:
        ids = backend.tokenize(b"the answer to this is that water")
        expected = bits(backend, ids)
        backend.clear()
        bits(backend, ids[:4])
        state = backend.save()
        bits(backend, ids[4:6])
        with pytest.raises(EngineError, match="refused a saved state of 4 tokens"):
            backend.restore(state[: len(state) // 2], 4)
        assert backend.n_cached == 0
        assert bits(backend, ids) == expected


def test_a_state_of_an_attention_model_is_small(model: Path, recurrent: Path) -> None:
    for path, is_small in ((model, True), (recurrent, False)):
        with load(path) as backend:
            backend.evaluate(backend.tokenize(b"the answer to this is"))
            assert (len(backend.save()) < 64) is is_small


def test_a_sliding_window_is_kept_whole(tmp_path: Path) -> None:
    """B26: a rewind far past the window of 16 tokens; without the full cache its start would be gone."""
    with load(write_tiny(tmp_path / "window.gguf", "gemma3", n_ctx=1024), n_ctx=1024, n_batch=16) as backend:
        ids = (backend.tokenize(b"the answer to this is that water can be found by people ") * 80)[:800]
        expected = bits(backend, ids[:200])
        for n_keep in (180, 100, 20):
            for start in range(backend.n_cached, 800, 16):
                backend.evaluate(ids[start : min(start + 16, 800)])
            assert backend.rewind(n_keep)
            assert bits(backend, ids[n_keep : n_keep + 10]) == expected[n_keep : n_keep + 10]


# Scores, and freeing


def test_scores_are_read_in_place_and_cannot_be_written(model: Path) -> None:
    import llama_cpp

    with load(model) as backend:
        backend.evaluate(backend.tokenize(b"the answer"), [0, 1])
        row = backend.scores(1)
        address = llama_cpp.llama_get_logits_ith(backend._context, 1)
        assert row.ctypes.data == ctypes.cast(address, ctypes.c_void_p).value
        assert not row.flags.writeable
        assert not row.flags.owndata
        with pytest.raises(ValueError, match="read-only"):
            row[0] = 1.0


def test_rows_not_asked_for_are_not_computed(model: Path) -> None:
    """A row of scores costs more than a token where the vocabulary is large."""
    import llama_cpp

    with load(model) as backend:
        ids = backend.tokenize(b"the answer to this")
        backend.evaluate(ids[:3], [0, 2])
        backend.evaluate(ids[:3], [1])
        computed = [bool(llama_cpp.llama_get_logits_ith(backend._context, row)) for row in range(3)]
        assert computed == [False, True, False]


def test_a_closed_tokenizer_refuses_too(model: Path) -> None:
    backend = load(model)
    token = backend.tokenize(b"the")[0]
    assert backend.piece(token) == b" the"
    backend.close()
    calls: tuple[Callable[[], object], ...] = (
        lambda: backend.tokenize(b"x"), lambda: backend.tokenize(b""), lambda: backend.piece(token),
        lambda: backend.spelling(token), lambda: backend.is_eog(token), lambda: backend.is_control(token),
        lambda: backend.eog_tokens, backend.token_table_hash, lambda: backend.defect,
    )  # fmt: skip
    for call in calls:
        with pytest.raises(EngineError, match="closed"):
            call()


def test_a_forgotten_backend_is_freed_without_a_word(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import llama_cpp

    freed: list[str] = []
    for what in ("llama_free", "llama_model_free"):
        real = getattr(llama_cpp, what)
        monkeypatch.setattr(llama_cpp, what, lambda handle, what=what, real=real: (freed.append(what), real(handle)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        backend = load(model)
        backend.evaluate(backend.tokenize(b"the answer"), [1])
        del backend
        gc.collect()
    assert freed == ["llama_free", "llama_model_free"]
    with load(model):
        pass
    assert freed == ["llama_free", "llama_model_free"] * 2


def test_opening_and_closing_gives_the_memory_back(model: Path) -> None:
    def cycle(n: int) -> None:
        for _ in range(n):
            with load(model, n_ctx=2048) as backend:
                backend.evaluate(backend.tokenize(b"the answer to this is"), [0])
                backend.scores(0)

    cycle(3)
    process = psutil.Process()
    before = process.memory_info().rss
    cycle(20)
    # One context holds 2 MB of cache and some of compute buffers: a leak of either would show 20 times.
    assert process.memory_info().rss - before < 20 << 20
