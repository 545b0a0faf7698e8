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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from edge_nudge.core.decoder import Decoder
from edge_nudge.core.events import Event, Finished, Role
from edge_nudge.core.foresight import Foresight
from edge_nudge.core.policy import make_policy
from edge_nudge.core.prompt import Prompt, encode_prompt
from edge_nudge.core.request import GenerateRequest, Message, Rule, build_request
from edge_nudge.core.schedule import Schedule
from edge_nudge.core.session import Session
from edge_nudge.core.template import BaseFormat, ChatTemplate, base_format, render_base, render_chat
from edge_nudge.core.writer import Writer
from edge_nudge.errors import InputError

if TYPE_CHECKING:
    from edge_nudge.core.backend import Backend
    from edge_nudge.core.costs import CostCurve
    from edge_nudge.engine.fitting import Plan
    from edge_nudge.engine.llama import LlamaBackend

DEFAULT_CTX_SIZE = 4096
DEFAULT_BASE_FORMAT = "qa"
DEFAULT_KV_TYPE = "f16"
MAX_SETTING = 1 << 24
PROMPT_BATCH_S = 0.2  # of one batch of a prompt: so long a cancel may have to wait


@dataclass(frozen=True, slots=True)
class PairSpec:
    """Which files make a pair, and how they are spoken to. `gamma` is the pair's own default threshold."""

    base: Path
    nudging: Path
    name: str | None = None
    gamma: float | None = None
    base_prompt_format: str = DEFAULT_BASE_FORMAT
    chat_template: str | None = None  # None: the nudging model's own
    nudging_adapter: Path | None = None  # a LoRA adapter: the nudging model is the base model with it

    def resolve(self, request: GenerateRequest) -> GenerateRequest:
        """Return the request with the pair's own threshold where the paper's rule is used and none was given."""
        if request.nudge.gamma is not None or request.nudge.rule is not Rule.TOP_PROB or self.gamma is None:
            return request
        return request.model_copy(update={"nudge": request.nudge.model_copy(update={"gamma": self.gamma})})


class Answer(Iterator[Event]):
    """The events of one answer. `cancel` ends it with Finished("cancelled"); `close` drops it at once."""

    def __init__(self, events: Iterator[Event], cancel: Callable[[], None]) -> None:
        self._events = events
        self.cancel = cancel

    def __next__(self) -> Event:
        return next(self._events)

    def finish(self) -> Finished:
        """Run the answer to its end and return the last event. Raises EngineError."""
        for event in self:
            if isinstance(event, Finished):
                return event
        raise AssertionError("an answer ends with Finished")

    def close(self) -> None:
        close = getattr(self._events, "close", None)
        if close is not None:
            close()


class Pair:
    """Two loaded models. Close it, or use it in a with statement.

    `notes` are sentences a user should see once: what runs on a GPU and why; `threads` says how many and why;
    `defects` are what a tokenizer loses, by role: rare bytes that reach that model's eyes changed or not at all.
    `curves` are what batches cost; a model without one evaluates nothing ahead.
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
        self._sessions = {
            role: Session(backend, self._prompt_batch(role, backend)) for role, backend in self.backends.items()
        }
        self._answer: Answer | None = None

    def __repr__(self) -> str:
        return f"<Pair {self.spec.name or 'custom'}: {self.base!r}, {self.nudging!r}>"

    def __enter__(self) -> Pair:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free both models; closing twice is allowed."""
        if self._answer is not None:
            self._answer.close()
        self.base.close()
        self.nudging.close()

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
        )
        decoder.check()
        self._answer = Answer(decoder.run(), cancel)
        return self._answer

    def forget(self) -> None:
        """Drop both caches, so that the next request starts cold; ends an answer that is under way."""
        if self._answer is not None:
            self._answer.close()
        for session in self._sessions.values():
            session.forget()

    def base_prompt(self, request: GenerateRequest, now: datetime) -> Prompt:
        """Return the base model's prompt: plain text in the pair's format."""
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
        return Writer(role, self.backends[role], self._sessions[role], prompt, request.sampling, seed, foresight)

    def _prompt_batch(self, role: Role, backend: Backend) -> int | None:
        curve = self.curves.get(role)
        return None if curve is None else curve.prefill_batch(PROMPT_BATCH_S, backend.info.n_batch)

    def _foresight(self, role: Role, request: GenerateRequest) -> Foresight | None:
        schedule = self._schedules.get(role)
        if schedule is None or not request.nudge.verify_ahead:
            return None
        # A nudging word needs the token behind it as well, and what follows is the base model's: more than one
        # guess would only save a token of a catch-up, which is cheap.
        is_shared = role is Role.NUDGING and make_policy(request.nudge).solo is None
        return Foresight(schedule, most=1 if is_shared else None)


def find_pair(
    pair: str | None = None,
    *,
    base: str | Path | None = None,
    nudging: str | Path | None = None,
    adapter: str | Path | None = None,
    base_prompt_format: str | None = None,
    say: Callable[[str], None] | None = None,
) -> PairSpec:
    """Return the files of a named pair (default: the demo pair), of two paths, or of a base model and its adapter.

    A named pair that is not there yet is fetched, after telling `say`. Raises InputError, FetchError.
    """
    if adapter is not None:
        if base is None or nudging is not None or pair is not None:
            raise InputError("an adapter (--nudge-lora) goes with --base FILE, without --nudge and --pair")
        text_format = base_prompt_format or DEFAULT_BASE_FORMAT
        return PairSpec(
            Path(base), Path(base), base_prompt_format=text_format, nudging_adapter=Path(adapter).expanduser()
        )
    if (base is None) != (nudging is None):
        missing = "--base FILE" if base is None else "--nudge FILE"
        raise InputError(f"two models make a pair: {missing} is missing")
    if base is not None and nudging is not None:
        if pair is not None:
            raise InputError(f"give either a pair name ({pair}) or two files, not both")
        return PairSpec(Path(base), Path(nudging), base_prompt_format=base_prompt_format or DEFAULT_BASE_FORMAT)
    from edge_nudge.catalog.manifest import load_manifest
    from edge_nudge.catalog.store import ensure_pair

    manifest = load_manifest(pair or "demo")
    files = ensure_pair(manifest, say=say or (lambda line: None))
    return PairSpec(
        files.base,
        files.nudging,
        manifest.name,
        manifest.gamma,
        base_prompt_format or manifest.base.prompt_format,
        manifest.nudging.chat_template,
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
    say: Callable[[str], None] | None = None,
) -> Pair:
    """Load a named pair (default: the demo pair, fetched on first use), two GGUF files, or one and a LoRA `adapter`.

    `ctx_size` in tokens, for each model, at most what it was trained for; `threads` None: physical cores within
    the affinity mask and cgroup quota; `*_gpu_layers` None: as many layers as fit if there is a GPU; `*_kv_type`:
    how the caches are kept, "f16", "q8_0" or "q4_0". `fit_check` False loads what will not fit into memory.
    Raises InputError, FetchError, ModelFileError, EngineError, NoRoomError.
    """
    check_load_settings(ctx_size, threads, base_gpu_layers, nudge_gpu_layers, base_kv_type, nudge_kv_type)
    spec = find_pair(pair, base=base, nudging=nudging, adapter=adapter, base_prompt_format=base_prompt_format, say=say)
    return load_pair(
        spec,
        ctx_size=ctx_size,
        threads=threads,
        base_gpu_layers=base_gpu_layers,
        nudge_gpu_layers=nudge_gpu_layers,
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
    say: Callable[[str], None] | None = None,
) -> Pair:
    """Check and load the two files of a pair; see open_pair. `say` is told what takes a moment."""
    check_load_settings(ctx_size, threads, base_gpu_layers, nudge_gpu_layers, base_kv_type, nudge_kv_type)
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
            return _join(base, nudging, spec, plan, n_threads=n_threads, threads=reason, say=say)
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
    say: Callable[[str], None] | None,
) -> Pair:
    """Make a pair of two loaded models: what batches cost each, and what a user should know of them."""
    from edge_nudge.catalog.curves import costs_dir, curve_of

    backends, tell = {Role.BASE: base, Role.NUDGING: nudging}, say or (lambda line: None)
    if base.offload == nudging.offload:
        notes = [f"both models: {base.offload}"]
    else:
        notes = [f"base model: {base.offload}", f"nudging model: {nudging.offload}"]
    curves = {
        role: curve_of(backend, plan.headers[role].path, n_threads=n_threads, directory=costs_dir(), say=tell)
        for role, backend in backends.items()
    }
    defects = {role: backend.defect for role, backend in backends.items() if backend.defect is not None}
    return Pair(base, nudging, spec, notes=notes, threads=threads, defects=defects, curves=curves)


def plan_load(
    spec: PairSpec, *, ctx_size: int, kv_types: Mapping[Role, str], gpu_layers: Mapping[Role, int | None]
) -> Plan:
    """Check the files of a pair and return how they would be loaded, and whether that fits.

    Raises ModelFileError, InputError.
    """
    from edge_nudge.engine.adapters import check_adapter
    from edge_nudge.engine.fitting import plan_pair
    from edge_nudge.engine.gguf import check_model_file

    base = check_model_file(spec.base, role="base")
    adapter = check_adapter(spec.nudging_adapter, base) if spec.nudging_adapter else None
    headers = {Role.BASE: base, Role.NUDGING: base if adapter else check_model_file(spec.nudging, role="nudging")}
    return plan_pair(headers, ctx_size=ctx_size, kv_types=kv_types, gpu_layers=gpu_layers, adapter=adapter)
