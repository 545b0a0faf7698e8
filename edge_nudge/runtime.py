"""A pair of models, open and ready: the Python API.

Owns both models and their caches from open to close. Never prints; what a user should know is in `Pair.notes`.

1. One answer at a time: starting another one closes the one before.
2. Whatever ends an answer (its end, a cancel, an error, a closed stream), the next request finds both caches true.
3. Nothing is loaded before both files have been checked; if the second model fails to load, the first is freed.
4. Not thread-safe, but for `Answer.cancel`, which any thread or signal handler may call.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_nudge.core.answer import Answer as Answer
from edge_nudge.core.blending import TextTable
from edge_nudge.core.closing import Closing
from edge_nudge.core.decoder import Decoder
from edge_nudge.core.events import ModelUsage, Role, TokenScore
from edge_nudge.core.foresight import Foresight
from edge_nudge.core.policy import make_policy
from edge_nudge.core.prompt import Prompt, encode_prompt, encode_raw
from edge_nudge.core.prompt_scores import PromptScorer
from edge_nudge.core.request import GenerateRequest, Message, build_request
from edge_nudge.core.schedule import Schedule
from edge_nudge.core.session import Cancelled, NativeCall, Session
from edge_nudge.core.shelf import Shelf
from edge_nudge.core.template import BaseFormat, ChatTemplate, base_format, render_base, render_chat
from edge_nudge.core.writer import Writer
from edge_nudge.errors import CancelledError, InputError
from edge_nudge.spec import DEFAULT_BASE_FORMAT, plan_load
from edge_nudge.spec import PairSpec as PairSpec

if TYPE_CHECKING:
    from edge_nudge.core.backend import Backend
    from edge_nudge.core.costs import CostCurve
    from edge_nudge.engine.fitting import Plan
    from edge_nudge.engine.llama import LlamaBackend

DEFAULT_CTX_SIZE = 4096
DEFAULT_KV_TYPE = "f16"
MAX_SETTING = 1 << 24
DEFAULT_CACHE_RAM = 512
PROMPT_BATCH_S = 0.2  # of one batch of a prompt: so long a cancel may have to wait


class Pair(Closing):
    """Two loaded models. Close it, or use it in a with statement.

    `notes` are sentences a user should see once: what runs on a GPU and why; `threads` says how many and why;
    `defects` are what a tokenizer loses, by role: rare bytes that reach that model's eyes changed or not at all.
    `cache_ram` is how much memory, in MiB, the caches of earlier conversations may take, of both models together.
    `curves` are what batches cost; without those of both models nothing is evaluated ahead.
    """

    def __init__(
        self,
        base: Backend,
        nudging: Backend,
        spec: PairSpec,
        *,
        notes: Sequence[str] = (),
        threads: str = "",
        defects: Mapping[Role, str] | None = None,
        curves: Mapping[Role, CostCurve] | None = None,
        cache_ram: int = DEFAULT_CACHE_RAM,
    ) -> None:
        self.spec = spec
        self.notes = tuple(notes)
        self.threads = threads
        self.defects = dict(defects or {})
        self.base, self.nudging = base, nudging
        self.backends = {Role.BASE: base, Role.NUDGING: nudging}
        self._format: BaseFormat = base_format(spec.base_prompt_format)
        self._template = ChatTemplate(spec.chat_template or nudging.info.chat_template)
        self.curves = dict(curves or {})
        self._schedules = {role: Schedule(curve) for role, curve in self.curves.items()}
        self._texts = TextTable(base, nudging)
        self._shelf = Shelf(cache_ram << 20)
        self._sessions = {
            role: Session(backend, self._prompt_batch(role, backend), self._shelf)
            for role, backend in self.backends.items()
        }
        self._prompt_scorer = PromptScorer(Role.BASE, base, self._sessions[Role.BASE])
        self._answer: Answer | None = None

    def __repr__(self) -> str:
        return f"<Pair {self.spec.name or 'custom'}: {self.base!r}, {self.nudging!r}>"

    def close(self) -> None:
        """Free both models; closing twice is allowed."""
        if self._answer is not None:
            self._answer.close()
        self._shelf.clear()
        self.base.close()
        self.nudging.close()

    def use_base_prompt_format(self, name: str) -> None:
        """Write the base model's prompts in this format from now on, a name or a Jinja text. Raises TemplateError."""
        self._format = base_format(name)
        self.spec = replace(self.spec, base_prompt_format=name)

    def stream(self, messages: str | Sequence[Mapping[str, Any] | Message], **settings: Any) -> Answer:
        """Answer a conversation (or one user text); iterate the result for its events.

        Settings are the fields of GenerateRequest, SamplingParams and NudgeParams: gamma=0.4, max_tokens=200,
        temp=0.8, seed=1, stop=["###"], rule="margin", ...
        Raises InputError (a setting), TemplateError (the conversation), ContextOverflowError (its length) at
        once; EngineError while iterating.
        """
        return self.answer(build_request(messages, **settings))

    def answer(self, request: GenerateRequest) -> Answer:
        """Answer a validated request; see `stream`."""
        request = self.spec.resolve(request)
        # 53 bits are a whole number in every JSON reader
        seed = secrets.randbits(53) if request.sampling.seed is None else request.sampling.seed
        now = datetime.now().astimezone()
        if self._answer is not None:
            self._answer.close()
        is_cancelled = False

        def cancel() -> None:
            nonlocal is_cancelled
            is_cancelled = True

        decoder = Decoder(
            self._writer(Role.BASE, self.base_prompt(request, now), request, seed),
            self._writer(Role.NUDGING, self.nudging_prompt(request, now), request, seed),
            request,
            seed=seed,
            clock=time.perf_counter,
            is_cancelled=lambda: is_cancelled,
            texts=self._texts,
        )
        decoder.check()
        self._answer = Answer(decoder.run(), cancel)
        return self._answer

    def check(self, request: GenerateRequest) -> None:
        """Raise what `answer` raises at once; nothing is evaluated. Ends an answer that is under way."""
        self.answer(request).close()

    def watch(self, listener: Callable[[Role, NativeCall], None] | None) -> None:
        """Tell `listener` about each native call of the answers, in the thread that answers; None ends it."""
        for role, session in self._sessions.items():
            session.on_call = None if listener is None else partial(listener, role)

    def score(
        self,
        prompt: str | Sequence[int],
        n_top: int = 0,
        *,
        usage: ModelUsage | None = None,
        is_cancelled: Callable[[], bool] = lambda: False,
        on_progress: Callable[[int, int], None] = lambda n_read, n_prompt: None,
    ) -> list[TokenScore]:
        """Return how probable the base model finds each token of a prompt, with the `n_top` best at its place.

        The first token has no score. A text is read behind BOS where the model adds it, and BOS is not in the list;
        ids are taken as they are. `usage` is filled; `is_cancelled` and `on_progress` (tokens read, tokens in all) are
        called before each batch. An answer under way is closed.
        Raises InputError, ContextOverflowError, EngineError and, where it was cancelled, CancelledError.
        """
        if self._answer is not None:
            self._answer.close()
        try:
            return self._prompt_scorer.score(
                prompt,
                n_top,
                usage or ModelUsage(),
                is_cancelled=is_cancelled,
                on_progress=on_progress,
                clock=time.perf_counter,
            )
        except Cancelled:
            raise CancelledError("scoring the prompt was cancelled") from None

    def forget(self) -> None:
        """Drop all caches, so that the next request starts cold; ends an answer that is under way."""
        if self._answer is not None:
            self._answer.close()
        self._shelf.clear()
        for session in self._sessions.values():
            session.forget()
        self._prompt_scorer.forget()

    def base_prompt(self, request: GenerateRequest, now: datetime) -> Prompt:
        """Return the base model's prompt: plain text in the pair's format, or the request's raw prompt."""
        if request.raw_prompt is not None:
            return encode_raw(self.base, request.raw_prompt)
        spans = render_base(self._format, request.messages, now)
        return encode_prompt(self.base, spans, self._format.end_strings)

    def nudging_prompt(self, request: GenerateRequest, now: datetime) -> Prompt:
        """Return the nudging model's prompt: its chat template around the conversation."""
        info = self.nudging.info
        bos = "" if info.bos is None else self.nudging.spelling(info.bos)
        eos = "" if info.eos is None else self.nudging.spelling(info.eos)
        return encode_prompt(self.nudging, render_chat(self._template, request.messages, bos=bos, eos=eos, now=now))

    def _writer(self, role: Role, prompt: Prompt, request: GenerateRequest, seed: int) -> Writer:
        foresight = self._foresight(role, request)
        return Writer(
            role, self.backends[role], self._sessions[role], prompt, request.sampling, seed, foresight, request.logprobs
        )

    def _prompt_batch(self, role: Role, backend: Backend) -> int | None:
        curve = self.curves.get(role)
        return None if curve is None else curve.prefill_batch(PROMPT_BATCH_S, backend.info.n_batch)

    def _foresight(self, role: Role, request: GenerateRequest) -> Foresight | None:
        schedule = self._schedules.get(role)
        if schedule is None or role.other not in self._schedules or not request.nudge.verify_ahead:
            return None
        # A nudging word needs the token behind it as well, and what follows is the base model's: more than one
        # guess would only save a token of a catch-up, which is cheap.
        is_shared = role is Role.NUDGING and make_policy(request.nudge).solo is None
        scout_step = self.curves[role.other].step_s / self.curves[role].step_s
        return Foresight(schedule, most=1 if is_shared else None, scout_step=scout_step)


def find_pair(
    pair: str | None = None,
    *,
    base: str | Path | None = None,
    nudging: str | Path | None = None,
    adapter: str | Path | None = None,
    base_prompt_format: str | None = None,
    say: Callable[[str], None] | None = None,
) -> PairSpec:
    """Return the files of a named pair (default: the demo pair), of two models, or of a base model and its adapter.

    A model is a path, `user/repo:QUANT` from the Hugging Face cache, or `ollama:name:tag`.

    A named pair that is not there yet is fetched, after telling `say`. Raises InputError, FetchError.
    """
    if adapter is not None:
        if base is None or nudging is not None or pair is not None:
            raise InputError("an adapter (--nudge-lora) goes with --base FILE, without --nudge and --pair")
        from edge_nudge.catalog.names import locate_model

        text_format = base_prompt_format or DEFAULT_BASE_FORMAT
        file = locate_model(base, role="base")
        return PairSpec(file, file, base_prompt_format=text_format, nudging_adapter=Path(adapter).expanduser())
    if (base is None) != (nudging is None):
        missing = "--base FILE" if base is None else "--nudge FILE"
        raise InputError(f"two models make a pair: {missing} is missing")
    if base is not None and nudging is not None:
        if pair is not None:
            raise InputError(f"give either a pair name ({pair}) or two files, not both")
        from edge_nudge.catalog.names import locate_model

        files = locate_model(base, role="base"), locate_model(nudging, role="nudging")
        return PairSpec(*files, base_prompt_format=base_prompt_format or DEFAULT_BASE_FORMAT)
    from edge_nudge.catalog.manifest import load_manifest
    from edge_nudge.catalog.store import ensure_pair

    manifest = load_manifest(pair or "demo")
    both = ensure_pair(manifest, say=say or (lambda line: None))
    return PairSpec(
        both.base,
        both.nudging,
        manifest.name,
        manifest.gamma,
        base_prompt_format or manifest.base.prompt_format,
        manifest.nudging.chat_template,
        manifest.rule,
    )


def open_pair(
    pair: str | None = None,
    *,
    base: str | Path | None = None,
    nudging: str | Path | None = None,
    adapter: str | Path | None = None,
    ctx_size: int = DEFAULT_CTX_SIZE,
    threads: int | None = None,
    base_gpu_layers: int | None = None,
    nudge_gpu_layers: int | None = None,
    base_kv_type: str = DEFAULT_KV_TYPE,
    nudge_kv_type: str = DEFAULT_KV_TYPE,
    fit_check: bool = True,
    base_prompt_format: str | None = None,
    cache_ram: int = DEFAULT_CACHE_RAM,
    say: Callable[[str], None] | None = None,
) -> Pair:
    """Load a named pair (default: the demo pair, fetched on first use), two GGUF files, or one and a LoRA `adapter`.

    `ctx_size` in tokens, for each model, at most what it was trained for; `threads` None: physical cores within
    the affinity mask and cgroup quota; `*_gpu_layers` None: as many layers as fit if there is a GPU; `*_kv_type`:
    how the caches are kept, "f16", "q8_0" or "q4_0". `fit_check` False loads what will not fit into memory.
    `cache_ram` in MiB for the caches of earlier conversations, at most what both models leave free; 0 keeps none.
    Raises InputError, FetchError, ModelFileError, EngineError, NoRoomError.
    """
    check_load_settings(
        ctx_size, threads, base_gpu_layers, nudge_gpu_layers, base_kv_type, nudge_kv_type, cache_ram=cache_ram
    )
    spec = find_pair(pair, base=base, nudging=nudging, adapter=adapter, base_prompt_format=base_prompt_format, say=say)
    return load_pair(
        spec,
        ctx_size=ctx_size,
        threads=threads,
        base_gpu_layers=base_gpu_layers,
        nudge_gpu_layers=nudge_gpu_layers,
        cache_ram=cache_ram,
        base_kv_type=base_kv_type,
        nudge_kv_type=nudge_kv_type,
        fit_check=fit_check,
        say=say,
    )


def check_load_settings(
    ctx_size: int | None = None,
    threads: int | None = None,
    base_gpu_layers: int | None = None,
    nudge_gpu_layers: int | None = None,
    base_kv_type: str = DEFAULT_KV_TYPE,
    nudge_kv_type: str = DEFAULT_KV_TYPE,
    fit_check: bool = True,
    cache_ram: int | None = None,
) -> None:
    """Raise InputError for a setting that no machine can use: before anything is fetched for it."""
    from edge_nudge.engine.fitting import check_kv_type

    for kv_type in (base_kv_type, nudge_kv_type):
        check_kv_type(kv_type)
    for name, value, least in (
        ("ctx_size", ctx_size, 1),
        ("threads", threads, 1),
        ("base_gpu_layers", base_gpu_layers, 0),
        ("nudge_gpu_layers", nudge_gpu_layers, 0),
        ("cache_ram", cache_ram, 0),
    ):
        if value is not None and value < least:
            raise InputError(f"{name} is {value}: it must be at least {least}")
        if value is not None and value > MAX_SETTING:
            raise InputError(f"{name} is {value}: it must be at most {MAX_SETTING}")


def load_pair(
    spec: PairSpec,
    *,
    ctx_size: int = DEFAULT_CTX_SIZE,
    threads: int | None = None,
    base_gpu_layers: int | None = None,
    nudge_gpu_layers: int | None = None,
    base_kv_type: str = DEFAULT_KV_TYPE,
    nudge_kv_type: str = DEFAULT_KV_TYPE,
    fit_check: bool = True,
    cache_ram: int = DEFAULT_CACHE_RAM,
    say: Callable[[str], None] | None = None,
) -> Pair:
    """Check and load the two files of a pair; see open_pair. `say` is told what takes a moment."""
    check_load_settings(
        ctx_size, threads, base_gpu_layers, nudge_gpu_layers, base_kv_type, nudge_kv_type, cache_ram=cache_ram
    )
    base_format(spec.base_prompt_format)
    from edge_nudge.engine.machine import default_threads

    kv_types = {Role.BASE: base_kv_type, Role.NUDGING: nudge_kv_type}
    gpu_layers = {Role.BASE: base_gpu_layers, Role.NUDGING: nudge_gpu_layers}
    plan = plan_load(spec, ctx_size=ctx_size, kv_types=kv_types, gpu_layers=gpu_layers)
    if fit_check:
        plan.check()
    from edge_nudge.engine.llama import LlamaBackend

    choice = default_threads()
    n_threads = threads or choice.n_threads

    def load(role: Role, shares: LlamaBackend | None = None) -> LlamaBackend:
        chosen = plan.chosen_layers[role]
        return LlamaBackend(
            plan.headers[role].path,
            n_ctx=ctx_size,
            n_threads=n_threads,
            n_gpu_layers=gpu_layers[role] if chosen is None else chosen,
            is_chosen=chosen is not None,
            kv_type=kv_types[role],
            shares=shares,
            adapter=spec.nudging_adapter if shares else None,
        )

    reason = f"threads: {n_threads} ({'as asked for' if threads else choice.reason})"
    base = load(Role.BASE)
    try:
        nudging = load(Role.NUDGING, base if spec.nudging_adapter else None)
        try:
            return _join(base, nudging, spec, plan, n_threads=n_threads, threads=reason, cache_ram=cache_ram, say=say)
        except BaseException:
            nudging.close()
            raise
    except BaseException:
        base.close()
        raise


def _join(
    base: LlamaBackend,
    nudging: LlamaBackend,
    spec: PairSpec,
    plan: Plan,
    *,
    n_threads: int,
    threads: str,
    cache_ram: int,
    say: Callable[[str], None] | None,
) -> Pair:
    """Make a pair of two loaded models: what batches cost each, and what a user should know of them."""
    from edge_nudge.catalog.curves import costs_dir, curve_of

    backends, tell = {Role.BASE: base, Role.NUDGING: nudging}, say or (lambda line: None)
    if base.offload == nudging.offload:
        notes = [f"both models: {base.offload}"]
    else:
        notes = [f"base model: {base.offload}", f"nudging model: {nudging.offload}"]
    cache_ram, told = plan.cache_ram(cache_ram)
    curves = {
        role: curve_of(backend, plan.headers[role].path, n_threads=n_threads, directory=costs_dir(), say=tell)
        for role, backend in backends.items()
    }
    defects = {role: backend.defect for role, backend in backends.items() if backend.defect is not None}
    notes += told
    return Pair(base, nudging, spec, notes=notes, threads=threads, defects=defects, curves=curves, cache_ram=cache_ram)
