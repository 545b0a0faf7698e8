"""edge-nudge as a model of lm-evaluation-harness: registered as `edge_nudge`, and used by our own runner.

Owns the way from the harness's requests to ours and back. Never scores an answer. Needs the `eval` extra.

1. Under a chat template (`--apply_chat_template`) messages reach both models in their own forms; without one the text
   of the harness is the base model's whole prompt, and the user's message to the nudging model.
2. Log-likelihoods are those of the base model: an answer that two models share by turns has none.
3. `until` strings are stop strings; greedy unless `do_sample` is true.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from edge_nudge.core.events import TokenScore
from edge_nudge.core.request import GenerateRequest, build_request
from edge_nudge.errors import InputError
from edge_nudge.evaluate.answering import Answered, Answerer, read_answer
from edge_nudge.evaluate.systems import Kind, System, parse_system
from edge_nudge.runtime import Pair, open_pair

DEFAULT_MAX_TOKENS = 256  # the harness's own default
_CHAT = "edge-nudge messages: "  # marks a text as rendered by apply_chat_template
_SAMPLING = {"temperature": "temp", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p", "seed": "seed"}
_IGNORED = ("do_sample", "until", "max_gen_toks", "max_tokens", "max_new_tokens", "max_length")

Ask = Callable[[Instance, GenerateRequest], str]


@register_model("edge_nudge", "edge-nudge")
class EdgeNudgeLM(LM):  # type: ignore[misc]
    """A pair as a model of the harness.

    Arguments, as in `--model_args pair=demo,system=nudged`: what `open_pair` takes (pair, base, nudging, ctx_size,
    threads, base_gpu_layers, ...), and `system`, a name of systems.py. The runner gives `answerer` instead, and `ask`,
    which may look for an answer before it asks.
    """

    def __init__(
        self,
        system: str | System = "nudged",
        answerer: Answerer | None = None,
        ask: Ask | None = None,
        batch_size: Any = None,
        max_batch_size: Any = None,
        device: str | None = None,
        **pair: Any,
    ) -> None:
        super().__init__()
        self._system = parse_system(system) if isinstance(system, str) else system
        if answerer is None:
            if self._system.kind not in (Kind.BASE, Kind.NUDGING, Kind.NUDGED, Kind.URIAL):
                raise InputError(f"system {self._system.name!r} needs other models: use edge-nudge eval for it")
            if self._system.base_prompt_format is not None:
                pair.setdefault("base_prompt_format", self._system.base_prompt_format)
            answerer = open_pair(pair.pop("pair", None), **pair)
        self._answerer = answerer
        self._ask = ask or self._answer

    @property
    def tokenizer_name(self) -> str:
        """Return what tells cached requests of one chat template from those of another."""
        return "edge-nudge"

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Return what stands for a template: each model's own is applied later."""
        return _CHAT if chat_template else ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return messages as a text that `generate_until` takes apart again."""
        if not add_generation_prompt:
            raise InputError("a message cannot be continued: leave gen_prefix out of the task")
        return _CHAT + json.dumps(chat_history, ensure_ascii=False)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answer each request, in order. Raises what answering raises."""
        answers = []
        for instance in requests:
            context, settings = instance.args
            answers.append(self._ask(instance, request_of(self._system, context, settings)))
        return answers

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return how probable the base model finds each continuation, and whether it is its greedy one."""
        pair = self._pair()
        found = []
        for instance in requests:
            context, continuation = instance.args
            n_blanks = len(context) - len(context.rstrip())
            if n_blanks:  # a token never ends in the blank before a word: it goes with the word
                context, continuation = context[:-n_blanks], context[-n_blanks:] + continuation
            whole = self._ids(context + continuation)
            n_context = (
                len(self._ids(context)) if context else len(whole) - len(pair.base.tokenize(_bytes(continuation)))
            )
            found.append(_sum(pair.score(whole, 1)[n_context:]))
        return found

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return how probable the base model finds each text, behind BOS where it has one."""
        pair = self._pair()
        bos = pair.base.info.bos
        first = [] if bos is None else [bos]
        texts = (pair.base.tokenize(_bytes(instance.args[0])) for instance in requests)
        return [_sum(pair.score([*first, *ids], 1)[1:])[0] for ids in texts]

    def _ids(self, text: str) -> list[int]:
        info = self._pair().base.info
        ids = self._pair().base.tokenize(_bytes(text))
        return [info.bos, *ids] if info.bos is not None and (info.adds_bos or not text) else ids

    def _pair(self) -> Pair:
        if self._system.kind is not Kind.BASE and self._system.kind is not Kind.NUDGED:
            raise InputError(
                f"system {self._system.name!r} gives no log-likelihoods: they are the base model's; "
                "use system=base, or tasks that generate"
            )
        assert isinstance(self._answerer, Pair), "a base or nudged system is a pair"
        return self._answerer

    def _answer(self, instance: Instance, request: GenerateRequest) -> str:
        return self.read(request).text

    def read(self, request: GenerateRequest) -> Answered:
        """Answer one request."""
        return read_answer(self._answerer.answer(request))


def request_of(system: System, context: str, settings: Mapping[str, Any]) -> GenerateRequest:
    """Turn a context and the harness's generation settings into a request. Raises InputError naming a setting."""
    given: dict[str, Any] = {"temp": 0.0}
    for name, value in settings.items():
        if name in _SAMPLING and settings.get("do_sample"):
            given[_SAMPLING[name]] = value
        elif name not in _IGNORED and name not in _SAMPLING:
            raise InputError(f"generation setting {name!r} is unknown: there are {', '.join((*_IGNORED, *_SAMPLING))}")
    limits = (settings.get(name) for name in ("max_gen_toks", "max_tokens", "max_new_tokens"))
    given["max_tokens"] = next((int(limit) for limit in limits if limit is not None), DEFAULT_MAX_TOKENS)
    given["stop"] = [stop for stop in _listed(settings.get("until")) if stop]
    if context.startswith(_CHAT):
        messages: Any = json.loads(context.removeprefix(_CHAT))
    else:
        messages, given["raw_prompt"] = context, context
    return build_request(messages, **{**given, **system.request_settings})


def _listed(value: Any) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8")


def _sum(scores: list[TokenScore]) -> tuple[float, bool]:
    """Return the log probability of some tokens together, and whether each was the best one at its place."""
    total = sum(score.logprob or 0.0 for score in scores)
    return total, all(score.top[0][1] == score.logprob for score in scores)
