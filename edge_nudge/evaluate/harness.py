"""edge-nudge as a model of lm-evaluation-harness: registered as `edge_nudge`, and used by our own runner.

Owns the way from the harness's requests to ours and back. Never scores an answer. Needs the `eval` extra.

1. Under a chat template (`--apply_chat_template`) messages reach both models in their own forms; without one the text
   of the harness is the base model's whole prompt, and the user's message to the nudging model.
2. Log-likelihoods are those of the base model alone (likelihood.py): an answer that two models share by turns has none,
   because which of them writes next depends on what was written.
3. An answer depends on its question alone, unless `cache_prompt` is true.
4. What is too long is found before the first answer.
5. A pair that was opened here is closed when the model goes, at the latest when the interpreter does.
"""

from __future__ import annotations

import logging
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import lm_eval.models  # noqa: F401  # the harness adds its own models only while there are none
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM, CacheHook
from lm_eval.api.registry import register_model
from tqdm import tqdm

from edge_nudge.core.request import GenerateRequest
from edge_nudge.document import about_pair, pair_document
from edge_nudge.errors import EdgeNudgeError, InputError
from edge_nudge.evaluate.answering import Answerer, read_answer
from edge_nudge.evaluate.generation import is_messages, request_of, with_seed, write_messages
from edge_nudge.evaluate.likelihood import Likelihoods
from edge_nudge.evaluate.model_args import checked_flag, split_model_args
from edge_nudge.evaluate.systems import Kind, System, parse_system
from edge_nudge.runtime import Pair, open_pair
from edge_nudge.version import __version__

Ask = Callable[[Instance, GenerateRequest], str]
_T = TypeVar("_T")
_CACHE_KEY = "edge-nudge: who answered"
_log = logging.getLogger("lm_eval.edge_nudge")  # below the harness's logger: shown where its own lines are


@register_model("edge_nudge", "edge-nudge")
class EdgeNudgeLM(LM):  # type: ignore[misc]
    """A pair as a model of the harness.

    Arguments, as in `--model_args pair=demo,system=nudged`: `system`, a name of systems.py; what `open_pair` takes
    (pair, base, nudging, ctx_size, threads, base_gpu_layers, ...); nudging settings (gamma, rule, ...); `cache_prompt`,
    which is faster with many examples in a prompt. `batch_size` and `device` are the harness's own and change nothing:
    one question is answered at a time, where base_gpu_layers and nudge_gpu_layers say.

    The runner gives `answerer` instead, and `ask`, which may look for an answer before it asks.
    """

    def __init__(
        self,
        system: str | System = "nudged",
        answerer: Answerer | None = None,
        ask: Ask | None = None,
        batch_size: Any = None,
        max_batch_size: Any = None,
        device: str | None = None,
        cache_prompt: bool = False,
        **arguments: Any,
    ) -> None:
        super().__init__()
        self._cache_prompt = checked_flag("cache_prompt", cache_prompt)
        self._load: dict[str, Any] = {}
        self._close: Callable[[], Any] | None = None
        if answerer is None:
            name = system.name if isinstance(system, System) else str(system)
            self._system, self._load = split_model_args(name, arguments)
            answerer = _opened(self._load)
            self._close = weakref.finalize(self, answerer.close)
        else:
            self._system = parse_system(system) if isinstance(system, str) else system
            if arguments:
                raise InputError(f"{', '.join(arguments)}: an open pair is given, and cannot be opened otherwise")
        self._answerer = answerer
        self._given_ask = ask
        self._likelihoods: Likelihoods | None = None
        self._rules: set[tuple[str, float]] = set()  # of the answers; settings of a task may choose others

    def close(self) -> None:
        """Close the pair where it was opened here; closing twice is allowed."""
        if self._close is not None:
            self._close()

    # --- what the harness asks about the model

    @property
    def tokenizer_name(self) -> str:
        """Return what tells cached requests under our chat template from those of another model."""
        return "edge-nudge-messages"

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Return what stands for a template: each model's own is applied later. Raises InputError for a name."""
        if isinstance(chat_template, str):
            raise InputError(
                f"there is no chat template {chat_template!r} to choose: both models have their own form of the "
                "messages, so give --apply_chat_template alone"
            )
        return "each model's own" if chat_template else ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return messages as a text that `generate_until` takes apart again."""
        if not add_generation_prompt:
            raise InputError(
                "the task begins the answer itself (gen_prefix), and no model goes on within a message here: "
                "leave out --apply_chat_template"
            )
        return write_messages(chat_history)

    def get_model_info(self) -> dict[str, Any]:
        """Return what the harness writes beside its results."""
        info: dict[str, Any] = {"edge_nudge_version": __version__, "system": self._system.name}
        if isinstance(self._answerer, Pair):
            info["pair"] = pair_document(about_pair(self._answerer))
        info["rules"] = [{"rule": rule, "gamma": gamma} for rule, gamma in sorted(self._rules)]
        if self._likelihoods is not None:
            info["n_contexts_cut"] = self._likelihoods.n_cut
        return info

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Take the file of --use_cache. Raises InputError where it holds answers of another system, pair or setting.

        The harness looks answers up by their question alone.
        """
        super().set_cache_hook(cache_hook)
        if (kept := cache_hook.dbdict) is None:
            return
        known, own = kept.get(_CACHE_KEY), self._identity()
        if known is None and not len(kept):
            kept[_CACHE_KEY] = own
        elif known != own:
            names = sorted(name for name in own if (known or {}).get(name) != own[name])
            raise InputError(
                f"the file of --use_cache holds answers of another model ({', '.join(names)} differ): name another file"
            )

    # --- answers

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answer each request, in order. Raises InputError before the first answer, and what answering raises."""
        asked = self._requests(requests)
        if self._given_ask is None:
            for instance, request in zip(requests, asked, strict=True):
                with _named(instance):
                    self._answerer.check(request)
        answers = []
        is_quiet = disable_tqdm or self._given_ask is not None
        for instance, request in _shown(list(zip(requests, asked, strict=True)), "answers", is_quiet):
            answer = self._given_ask(instance, request) if self._given_ask else self._read(request)
            self.cache_hook.add_partial("generate_until", instance.args, answer)
            answers.append(answer)
        return answers

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return how probable the base model finds each continuation, and whether it is its greedy one.

        Raises InputError for another system than the base model.
        """
        likelihoods = self._of_base()
        found = []
        for instance in _shown(requests, "log-likelihoods", disable_tqdm):
            context, continuation = instance.args
            with _named(instance):
                if is_messages(context):
                    raise InputError(
                        "log-likelihoods are the base model's, and it has no chat template: leave out "
                        "--apply_chat_template"
                    )
                found.append(likelihoods.continuation(context, continuation))
            self.cache_hook.add_partial("loglikelihood", instance.args, found[-1])
        return found

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return how probable the base model finds each whole text. Raises InputError for another system."""
        likelihoods = self._of_base()
        found = []
        for instance in _shown(requests, "log-likelihoods", disable_tqdm):
            with _named(instance):
                found.append(likelihoods.rolling(instance.args[0]))
            self.cache_hook.add_partial("loglikelihood_rolling", instance.args, found[-1])
        return found

    def _requests(self, instances: list[Instance]) -> list[GenerateRequest]:
        n_seen: Counter[int] = Counter()
        requests = []
        for instance in instances:
            context, settings = instance.args
            with _named(instance):
                request = request_of(self._system, context, settings, cache_prompt=self._cache_prompt)
                requests.append(with_seed(request, n_seen[id(instance)]))
            if isinstance(self._answerer, Pair):
                nudge = self._answerer.spec.resolve(request).nudge
                self._rules.add((nudge.rule.value, nudge.threshold))
            n_seen[id(instance)] += 1  # a task may want a question answered several times: it stands there as often
        return requests

    def _read(self, request: GenerateRequest) -> str:
        return read_answer(self._answerer.answer(request)).text

    def _of_base(self) -> Likelihoods:
        if self._system.kind is not Kind.BASE:
            raise InputError(
                f"an answer of system {self._system.name!r} has no likelihood that could be asked for, and this task "
                "compares likelihoods: use system=base for it, or a task that generates"
            )
        assert isinstance(self._answerer, Pair), "the base model is one of a pair"
        if self._likelihoods is None:
            self._likelihoods = Likelihoods(self._answerer, _log.warning)
        return self._likelihoods

    def _identity(self) -> dict[str, Any]:
        """Return what makes an answer beside the question."""
        own: dict[str, Any] = {
            "edge_nudge": __version__, "system": self._system.name, "cache_prompt": self._cache_prompt,
            **{name: value for name, value in self._load.items() if name.endswith("kv_type")},
        }  # fmt: skip
        if isinstance(self._answerer, Pair):
            spec, document = self._answerer.spec, pair_document(about_pair(self._answerer))
            for role in ("base", "nudging"):
                own |= {f"{role} {name}": document[role].get(name) for name in ("sha256", "n_ctx")}
            own |= {"rule": spec.rule.value, "gamma": spec.gamma, "base_prompt_format": spec.base_prompt_format}
        return own


def _opened(load: Mapping[str, Any]) -> Pair:
    pair = open_pair(**load, say=_log.info)
    for line in (*pair.notes, pair.threads):
        _log.info("%s", line)
    for role, defect in pair.defects.items():
        _log.warning("%s model: %s", role.value, defect)
    return pair


@contextmanager
def _named(instance: Instance) -> Iterator[None]:
    """Name the question where something is wrong with it."""
    try:
        yield
    except EdgeNudgeError as error:
        # the same error, with its exit code and its numbers; options are model arguments here
        text = str(error).replace("--ctx-size", "ctx_size in --model_args")
        error.args = (f"task {instance.task_name}, item {instance.doc_id}: {text}", *error.args[1:])
        raise


def _shown(items: list[_T], what: str, is_quiet: bool) -> Iterable[_T]:
    shown: Iterable[_T] = tqdm(items, desc=what, disable=is_quiet)
    return shown
