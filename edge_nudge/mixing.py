"""A mixture of models, open and ready: the average ensemble and proxy tuning, for comparison with nudging.

Owns the models from open to close: those of a pair, and the untuned one of proxy tuning. Never prints.

1. Before any weights are loaded: the files are checked, their vocabularies compared, and the memory of all counted.
2. Whatever fails while opening or closing, every model that was loaded is freed.
3. The pair is here for its models and prompts only; nobody else may answer with it meanwhile.
4. One answer at a time, as with a pair; not thread-safe, but for `Answer.cancel`.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edge_nudge.core.closing import Closing
from edge_nudge.core.events import ModelUsage, Role
from edge_nudge.core.mixture import Ensemble, Member, Mix, MixtureDecoder, ProxyTuning, check_vocabularies
from edge_nudge.core.prompt import Prompt, encode_prompt, encode_raw
from edge_nudge.core.request import GenerateRequest
from edge_nudge.core.session import Session
from edge_nudge.core.template import base_format, render_base
from edge_nudge.errors import InputError, NoRoomError
from edge_nudge.runtime import (
    DEFAULT_CTX_SIZE,
    DEFAULT_KV_TYPE,
    PROMPT_BATCH_S,
    Answer,
    Pair,
    PairSpec,
    check_load_settings,
    load_pair,
)
from edge_nudge.spec import plan_load

if TYPE_CHECKING:
    from edge_nudge.core.backend import Backend
    from edge_nudge.engine.fitting import Plan
    from edge_nudge.engine.gguf import GgufHeader
    from edge_nudge.engine.memory import Estimate

Kind = Literal["ensemble", "proxy"]
NAMES = {"ensemble": "the average ensemble", "proxy": "proxy tuning"}
UNTUNED = "untuned"
MOST_ALPHA = 100.0  # of proxy tuning; papers use 0.2 to 2


class Mixture(Closing):
    """Two or three loaded models that write together. Close it, or use it in a with statement.

    `backends` are the models by name: "base", "nudging" and, for proxy tuning, "untuned"; they share a vocabulary.
    `notes`, `threads` and `defects` are the pair's; a note says where the untuned model runs.
    `untuned_usage` counts what the untuned model did for the answer that was begun last; None without such a model.
    """

    def __init__(self, pair: Pair, mix: Mix, untuned: Backend | None = None, *, notes: tuple[str, ...] = ()) -> None:
        self.spec = pair.spec
        self.mix = mix
        self.backends: dict[str, Backend] = {role.value: backend for role, backend in pair.backends.items()}
        self.notes = (*pair.notes, *notes)
        self.threads, self.defects = pair.threads, pair.defects
        self.untuned_usage: ModelUsage | None = None
        self._pair = pair
        self._format = base_format(pair.spec.base_prompt_format)
        batches = {role.value: _prompt_batch(pair, role) for role in Role}
        if untuned is not None:
            self.backends[UNTUNED] = untuned
            batches[UNTUNED] = batches[Role.NUDGING.value]  # a model of the same size
        self._sessions = {name: Session(backend, batches[name]) for name, backend in self.backends.items()}
        self._answer: Answer | None = None

    def __repr__(self) -> str:
        return f"<Mixture {self.mix!r}: {', '.join(map(repr, self.backends.values()))}>"

    def close(self) -> None:
        """Free all models; closing twice is allowed."""
        with ExitStack() as stack:
            for backend in self.backends.values():
                stack.callback(backend.close)
            stack.callback(self._pair.close)
            if self._answer is not None:
                stack.callback(self._answer.close)

    def answer(self, request: GenerateRequest) -> Answer:
        """Answer a validated request. Its sampling, limits, stop strings and loop guard count; there is no rule.

        Raises TemplateError (the conversation), ContextOverflowError (its length) at once; EngineError while iterating.
        """
        seed = secrets.randbits(53) if request.sampling.seed is None else request.sampling.seed
        if self._answer is not None:
            self._answer.close()
        is_cancelled = False

        def cancel() -> None:
            nonlocal is_cancelled
            is_cancelled = True

        prompts = self._prompts(request, datetime.now().astimezone())
        decoder = MixtureDecoder(
            [Member(name, self.backends[name], self._sessions[name], prompt) for name, prompt in prompts.items()],
            self.mix,
            request,
            seed=seed,
            clock=time.perf_counter,
            is_cancelled=lambda: is_cancelled,
        )
        decoder.check()
        self.untuned_usage = decoder.untuned_usage if UNTUNED in self.backends else None
        self._answer = Answer(decoder.run(), cancel)
        return self._answer

    def check(self, request: GenerateRequest) -> None:
        """Raise what `answer` raises at once; nothing is evaluated. Ends an answer that is under way."""
        self.answer(request).close()

    def forget(self) -> None:
        """Drop all caches, so that the next request starts cold; ends an answer that is under way."""
        if self._answer is not None:
            self._answer.close()
        for session in self._sessions.values():
            session.forget()

    def _prompts(self, request: GenerateRequest, now: datetime) -> dict[str, Prompt]:
        prompts = {
            Role.BASE.value: self._pair.base_prompt(request, now),
            Role.NUDGING.value: self._pair.nudging_prompt(request, now),
        }
        if UNTUNED in self.backends:
            prompts[UNTUNED] = self._untuned_prompt(self.backends[UNTUNED], request, now)
        return prompts

    def _untuned_prompt(self, untuned: Backend, request: GenerateRequest, now: datetime) -> Prompt:
        """Return what the base model is given, in this model's ids: a base model as well."""
        if request.raw_prompt is not None:
            return encode_raw(untuned, request.raw_prompt)
        return encode_prompt(untuned, render_base(self._format, request.messages, now), self._format.end_strings)


def open_mixture(
    kind: Kind,
    spec: PairSpec,
    untuned: str | Path | None = None,
    alpha: float = 1.0,
    *,
    ctx_size: int = DEFAULT_CTX_SIZE,
    threads: int | None = None,
    fit_check: bool = True,
    say: Callable[[str], None] | None = None,
) -> Mixture:
    """Load the models of a pair as an "ensemble", or with the `untuned` one for "proxy" tuning.

    `untuned` is the nudging model before it was tuned; `alpha` how much of the difference is added. The other settings
    are those of runtime.open_pair.
    Raises InputError (a setting, other vocabularies), ModelFileError, EngineError, NoRoomError.
    """
    mix = _checked_mix(kind, untuned, alpha)
    check_load_settings(ctx_size, threads)
    base_format(spec.base_prompt_format)
    from edge_nudge.engine.gguf import check_model_file

    kv_types, layers = dict.fromkeys(Role, DEFAULT_KV_TYPE), dict[Role, int | None].fromkeys(Role)
    plan = plan_load(spec, ctx_size=ctx_size, kv_types=kv_types, gpu_layers=layers)
    third = None if untuned is None else check_model_file(Path(untuned).expanduser(), role=UNTUNED)
    with _vocabularies(spec, plan, third) as models:
        check_vocabularies(NAMES[kind], models)
    if fit_check:
        plan.check()
    with ExitStack() as stack:
        backend, notes = None, tuple[str, ...]()
        if third is not None:
            whole, n_layers = plan_untuned(plan, third, ctx_size=ctx_size)
            if fit_check:
                check_room(plan.estimate, whole)
        pair = stack.enter_context(
            load_pair(spec, ctx_size=ctx_size, threads=threads, fit_check=fit_check, cache_ram=0, say=say)
        )
        if third is not None:
            from edge_nudge.engine.llama import LlamaBackend
            from edge_nudge.engine.machine import default_threads

            backend = stack.enter_context(
                LlamaBackend(
                    third.path,
                    n_ctx=ctx_size,
                    n_threads=threads or default_threads().n_threads,
                    n_gpu_layers=n_layers,
                    is_chosen=n_layers is not None,
                )
            )
            notes = (f"untuned model: {backend.offload}",)
        mixture = Mixture(pair, mix, backend, notes=notes)
        stack.pop_all()
        return mixture


def _checked_mix(kind: str, untuned: str | Path | None, alpha: float) -> Mix:
    if kind not in NAMES:
        raise InputError(f"unknown mixture {kind!r}: choose one of {', '.join(NAMES)}")
    if kind == "ensemble":
        if untuned is not None:
            raise InputError(f"an untuned model ({untuned}) is for proxy tuning: the ensemble has two models")
        if alpha != 1.0:
            raise InputError(f"alpha ({alpha}) is for proxy tuning: the ensemble is a plain mean")
        return Ensemble()
    if untuned is None:
        raise InputError(
            "proxy tuning needs three models and has two: give the nudging model's own base version as the untuned one"
        )
    if not math.isfinite(alpha) or not 0.0 <= alpha <= MOST_ALPHA:
        raise InputError(f"alpha is {alpha}: it must be from 0 to {MOST_ALPHA:g}")
    return ProxyTuning(alpha)


@contextmanager
def _vocabularies(spec: PairSpec, plan: Plan, third: GgufHeader | None) -> Iterator[dict[str, Backend]]:
    """Open the models for their vocabularies only, each once; a model with an adapter has its own again."""
    from edge_nudge.engine.llama import LlamaBackend

    headers = {role.value: header for role, header in plan.headers.items()}
    if spec.nudging_adapter:
        del headers[Role.NUDGING.value]
    if third is not None:
        headers[UNTUNED] = third
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(LlamaBackend(header.path, n_ctx=64, n_threads=1, vocab_only=True))
            for name, header in headers.items()
        }


def plan_untuned(plan: Plan, header: GgufHeader, *, ctx_size: int) -> tuple[Estimate, int | None]:
    """Return what the pair and the untuned model need, and the latter's GPU layers; None where there is no GPU.

    The pair is served first: the untuned model gets layers as far as there is room left.
    """
    from edge_nudge.engine.fitting import plan_pair
    from edge_nudge.engine.memory import Estimate

    found = plan.estimate
    taken = {room.device: room.needed_bytes for room in found.rooms}
    gpus = tuple(
        # 0 would mean that nobody says what is free
        replace(gpu, free_bytes=max(1, gpu.free_bytes - taken.get(gpu.name, 0))) if gpu.free_bytes else gpu
        for gpu in found.machine.gpus
    )
    same = [other for other in plan.headers.values() if other.path.resolve() == header.path.resolve()]
    beside = [*same, plan.headers[Role.BASE]][0]  # a file that is mapped already costs no second time
    alone = plan_pair(
        {Role.BASE: beside, Role.NUDGING: header},
        ctx_size=ctx_size,
        kv_types=dict.fromkeys(Role, DEFAULT_KV_TYPE),
        gpu_layers={Role.BASE: 0, Role.NUDGING: None},
        machine=replace(found.machine, gpus=gpus),
    )
    parts = [part for part in alone.estimate.parts if part.role is Role.NUDGING]
    return Estimate(found.loads, found.machine, (*found.parts, *parts)), alone.chosen_layers[Role.NUDGING]


def check_room(pair: Estimate, whole: Estimate) -> None:
    """Raise NoRoomError where the three models do not fit, with a table of the pair and what the third adds."""
    if whole.fits:
        return
    from edge_nudge.engine.memory import mebibytes, table

    short = "; ".join(
        f"{room.device}: {mebibytes(room.needed_bytes)} needed, {mebibytes(room.free_bytes or 0)} free ({room.reason})"
        for room in whole.rooms
        if not room.fits
    )
    of_pair = {room.device: room.needed_bytes for room in pair.rooms}
    more = [(room.device, room.needed_bytes - of_pair.get(room.device, 0)) for room in whole.rooms]
    raise NoRoomError(
        f"the three models do not fit: {short}",
        [
            *table(pair),
            *(f"The untuned model needs {mebibytes(n_bytes)} more of {device}." for device, n_bytes in more if n_bytes),
            "A smaller ctx_size, a smaller quantisation or smaller models need less.",
            "To load them anyway: fit_check=False",
        ],
    )


def _prompt_batch(pair: Pair, role: Role) -> int | None:
    """Return how many tokens of a prompt the model reads at once: as for the pair, so that the same text is the same.

    A batch is not bit-equal to other batches.
    """
    curve, n_batch = pair.curves.get(role), pair.backends[role].info.n_batch
    return None if curve is None else curve.prefill_batch(PROMPT_BATCH_S, n_batch)
