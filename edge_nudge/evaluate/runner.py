"""The evaluation: every system asked every question, through lm-evaluation-harness, in this process.

Owns the order of things and the folder of a run. What is asked is in questions.py, who answers in systems.py, what an
answer is worth in tasks/functions.py. Needs the `eval` extra.

1. An answer is kept as soon as it is there; a run that was broken off goes on where it was.
2. An answer depends on its question alone: nothing of earlier prompts is reused, so a run in two parts gives what a
   run in one gives.
3. One folder holds answers of one pair under one load; another one is refused, saying what differs.
4. One process at a time works in a folder.
5. Nothing is fetched: the harness is told to stay offline.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_nudge.catalog.files import hash_file, write_whole
from edge_nudge.core.request import GenerateRequest, build_request
from edge_nudge.document import about_pair, pair_document
from edge_nudge.errors import InputError, ModelFileError
from edge_nudge.evaluate.answering import Answerer, Stop
from edge_nudge.evaluate.answers import find_answer
from edge_nudge.evaluate.fitting import check_prompts
from edge_nudge.evaluate.kept import KeptAnswers, key_of
from edge_nudge.evaluate.plan import Plan, load_changes
from edge_nudge.evaluate.questions import Task, gold_of, row_id
from edge_nudge.evaluate.results import ItemResult, Results, SystemResult, TaskAbout
from edge_nudge.evaluate.systems import Kind, Setting, System
from edge_nudge.evaluate.tasks.functions import row_of
from edge_nudge.runtime import Pair, load_pair
from edge_nudge.spec import PairSpec
from edge_nudge.version import __version__

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

TASKS_FOLDER = Path(__file__).parent / "tasks"
RUN_FILE, RESULTS_FILE = "run.json", "results.json"
_OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}

_LOGGERS = ("lm_eval", "lm-eval", "datasets")


@dataclass(frozen=True, slots=True)
class Step:
    """An answer is there. Counts are of the whole run; `is_kept`: it was there before."""

    system: str
    task: str
    n_done: int
    n_all: int
    is_kept: bool


def evaluate(
    plan: Plan,
    spec: PairSpec,
    *,
    load: Mapping[str, Any],
    command: str = "",
    machine: str = "",
    on_step: Callable[[Step], None] = lambda step: None,
    say: Callable[[str], None] | None = None,
    stop: Stop | None = None,
) -> Results:
    """Ask everything and return all that was found; `results.json` is written on the way, after each system.

    `load` are settings of `load_pair`. Raises InputError, ModelFileError, EngineError, NoRoomError, CancelledError.
    """
    counts = plan.check()
    with ExitStack() as stack:
        stack.enter_context(_locked(plan.folder))
        stack.enter_context(_quiet_and_offline())
        _check_identity(plan, spec, load)
        run = _Run(plan, spec, load, counts, on_step, say, stop or Stop())
        stack.callback(run.close)
        results = Results(
            command=command,
            started=datetime.now().astimezone().isoformat(timespec="seconds"),
            machine=machine,
            seed=plan.seed,
            limit=dict(plan.limit),
            half=plan.half,
            tasks=tuple(_about(task, plan, counts) for task in plan.tasks),
        )
        run.check()
        for system in plan.systems:
            found = run.system(system)
            results = results.model_copy(update={"pair": run.pair, "systems": (*results.systems, found)})
            _write(plan.folder / RESULTS_FILE, results.model_dump_json(indent=1))
        return results


def read_results(folder: Path) -> Results:
    """Return what a run found. Raises InputError."""
    file = folder / RESULTS_FILE if folder.is_dir() else folder
    try:
        return Results.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{file} is not there: run edge-nudge eval first, and let one system finish") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{file} holds no evaluation: {str(error).splitlines()[0]}") from None


class _Run:
    """One evaluation on its way: what is loaded, and how far it is."""

    def __init__(
        self,
        plan: Plan,
        spec: PairSpec,
        load: Mapping[str, Any],
        counts: Mapping[str, tuple[int, int]],
        on_step: Callable[[Step], None],
        say: Callable[[str], None] | None,
        stop: Stop,
    ) -> None:
        self._plan, self._spec, self._load = plan, spec, load
        self._on_step, self._say, self._stop = on_step, say, stop
        self._n_done, self._n_all = 0, len(plan.systems) * sum(n_items for _, n_items in counts.values())
        self._stack = ExitStack()
        self._loaded: tuple[str, dict[str, Any]] | None = None
        self._answerer: Answerer | None = None
        self.pair: dict[str, object] = {}

    def close(self) -> None:
        self._stack.close()

    def check(self) -> None:
        """Raise ContextOverflowError where a prompt for the pair's own models does not fit."""
        checked = set()
        for system in self._plan.systems:
            prompts = (system.kind, system.base_prompt_format)
            if _is_own(system) and prompts not in checked:
                checked.add(prompts)
                check_prompts(system, self._open(system), self._plan, self._stop)

    def system(self, system: System) -> SystemResult:
        """Ask one system everything."""
        from edge_nudge.evaluate import harness

        answerer = self._open(system)
        if not _is_own(system):
            check_prompts(system, answerer, self._plan, self._stop)
        items: dict[tuple[str, str], ItemResult] = {}
        tasks = {task.harness_name: task for task in self._plan.tasks}
        with KeptAnswers(self._plan.folder / "answers", system.name) as kept:

            def ask(instance: Instance, request: GenerateRequest) -> str:
                task = tasks[instance.task_name]
                item, is_kept = self._item(system, answerer, kept, task, row_of(instance.doc), request)
                items[task.name, item.id] = item
                self._n_done += 1
                self._on_step(Step(system.name, task.name, self._n_done, self._n_all, is_kept))
                return item.answer

            samples = self._harness(harness.EdgeNudgeLM(system, answerer, ask))
        scored = [_scored(tasks[name], sample, items) for name, of_task in samples.items() for sample in of_task]
        shown: dict[str, Setting | None] = {**system.shown_settings}
        return SystemResult(name=system.name, settings=shown, items=tuple(scored), **self._rule(system))

    def _harness(self, model: Any) -> dict[str, list[dict[str, Any]]]:
        """Run the harness over all tasks; return what it says of each item, by its name of the task."""
        from lm_eval.evaluator import evaluate as run_harness
        from lm_eval.tasks import TaskManager

        plan = self._plan
        metadata = {"data": str(plan.data), "limit": dict(plan.limit), "seed": plan.seed, "half": plan.half}
        manager = TaskManager(include_path=str(TASKS_FOLDER), include_defaults=False, metadata=metadata)
        loaded = manager.load([task.harness_name for task in plan.tasks])
        for task in plan.tasks:
            limit = {"max_gen_toks": plan.limit_of(task)}
            loaded["tasks"][task.harness_name].set_config(key="generation_kwargs", value=limit, update=True)
        outcome = run_harness(model, loaded, bootstrap_iters=0, log_samples=True, apply_chat_template=True)
        found: dict[str, list[dict[str, Any]]] = outcome["samples"]
        return found

    def _item(
        self,
        system: System,
        answerer: Answerer,
        kept: KeptAnswers,
        task: Task,
        row: dict[str, Any],
        request: GenerateRequest,
    ) -> tuple[ItemResult, bool]:
        request = request.model_copy(update={"cache_prompt": False})
        resolved = self._spec.resolve(request)
        key = key_of(task.name, row_id(task, row), _marks(resolved, load_changes(system, self._plan)))
        if (item := kept.get(key)) is not None:
            return item, True
        answered = self._stop.read(answerer, request)
        usage = answered.finished.usage
        item = ItemResult(
            task=task.name,
            id=row_id(task, row),
            question=request.messages[-1].content,
            gold=gold_of(task, row),
            answer=answered.text,
            finish_detail=answered.finished.detail.value,
            n_base_tokens=usage.base.n_written,
            n_nudging_tokens=usage.nudging.n_written,
            n_base_chars=usage.base.n_chars,
            n_nudging_chars=usage.nudging.n_chars,
            n_handoffs=usage.n_handoffs,
            n_base_evaluated=usage.base.n_evaluated,
            n_nudging_evaluated=usage.nudging.n_evaluated,
            total_s=usage.total_s,
            turns=answered.turns,
        )
        kept.put(key, item)
        return item, False

    def _rule(self, system: System) -> dict[str, Any]:
        if system.kind is not Kind.NUDGED:
            return {}
        nudge = self._spec.resolve(build_request("-", **system.request_settings)).nudge
        return {"rule": nudge.rule.value, "gamma": nudge.threshold}

    def _open(self, system: System) -> Answerer:
        """Return what answers for this system, loaded if need be."""
        files = load_changes(system, self._plan)
        text_format = files.pop("base_prompt_format", self._spec.base_prompt_format)
        wanted = (f"{system.kind.value} {system.alpha}" if system.kind.is_mixture else "pair", files)
        if self._answerer is None or wanted != self._loaded:
            self._stack.close()
            self._answerer = self._load_one(system, replace(self._spec, **files))
            self._loaded = wanted
        if isinstance(self._answerer, Pair):
            self._answerer.use_base_prompt_format(text_format)
        return self._answerer

    def _load_one(self, system: System, spec: PairSpec) -> Answerer:
        if system.kind.is_mixture:
            from edge_nudge.mixing import open_mixture

            mixture: Answerer = self._stack.enter_context(
                open_mixture(
                    "proxy" if system.kind is Kind.PROXY else "ensemble",
                    spec,
                    untuned=self._plan.untuned if system.kind is Kind.PROXY else None,
                    alpha=system.alpha,
                    say=self._say,
                    **{name: self._load[name] for name in ("ctx_size", "threads", "fit_check") if name in self._load},
                )
            )
            return mixture
        pair: Pair = self._stack.enter_context(load_pair(spec, **{"cache_ram": 0, **self._load}, say=self._say))
        if not self.pair or _is_own(system):
            self.pair = pair_document(about_pair(pair))
        return pair


def _is_own(system: System) -> bool:
    """Tell whether a system is made of the pair's two models alone."""
    return not system.kind.is_mixture and system.kind is not Kind.ALIGNED


def _marks(request: GenerateRequest, load: Mapping[str, Any]) -> dict[str, Any]:
    """Return all that makes an answer. What a request has beside these fields counts where it is no default."""
    nudge = request.nudge
    return {
        **request.model_dump(mode="json", exclude_defaults=True, exclude={"nudge", "sampling"}),
        "sampling": request.sampling.model_dump(mode="json"),
        "nudge": {
            **nudge.model_dump(mode="json", exclude_defaults=True),
            **{name: getattr(nudge, name) for name in ("lookahead", "end_prob", "max_turns", "loop_guard")},
            "rule": nudge.rule.value,
            "gamma": nudge.threshold,
        },
        "load": {name: str(value) for name, value in load.items()},
    }


def _about(task: Task, plan: Plan, counts: Mapping[str, tuple[int, int]]) -> TaskAbout:
    n_rows, n_items = counts[task.name]
    return TaskAbout(
        name=task.name,
        title=task.title,
        metric=task.metric,
        n_rows=n_rows,
        n_items=n_items,
        max_tokens=plan.limit_of(task),
        is_open_ended=task.is_open_ended,
    )


def _scored(task: Task, sample: dict[str, Any], items: Mapping[tuple[str, str], ItemResult]) -> ItemResult:
    """Return an answer with what the harness says of it."""
    row = row_of(sample["doc"])
    item = items[task.name, row_id(task, row)]
    metrics = {name: float(sample[name]) for name in sample["metrics"]}
    kind = task.kind_of(row)
    found = None if kind is None else find_answer(kind, item.answer, row.get("choices") or ())
    return item.model_copy(update={"metrics": metrics, "score": metrics.get(task.metric), "extracted": found})


def _check_identity(plan: Plan, spec: PairSpec, load: Mapping[str, Any]) -> None:
    """Note whose answers the folder holds. Raises InputError where it holds another pair's.

    A large aligned or an untuned model is noted when one is first named; runs without it may come before and after.
    """
    settings = {name: load[name] for name in ("ctx_size", "base_kv_type", "nudge_kv_type") if name in load}
    identity: dict[str, Any] = {
        "edge_nudge": __version__,
        "base": _about_file(spec.base),
        "nudging": {**_about_file(spec.nudging_adapter or spec.nudging), "file": spec.nudging.name},
        "base_prompt_format": spec.base_prompt_format,
        **({} if spec.chat_template is None else {"chat_template": spec.chat_template}),
        **settings,
    }
    others = {"aligned": plan.aligned, "untuned": plan.untuned}
    named = {name: _about_file(file) for name, file in others.items() if file is not None}
    file = plan.folder / RUN_FILE
    try:
        known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {**identity, **named}
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} cannot be read: {error}") from None
    if not isinstance(known, dict) or "edge_nudge" not in known:
        raise InputError(f"{file} is no file of an evaluation: choose another folder")
    wanted = {**{name: known[name] for name in others if name in known}, **identity, **named}
    differing = [name for name in {**known, **wanted} if known.get(name) != wanted.get(name)]
    differing = [name for name in differing if name not in named or name in known]
    if differing:
        shown = ", ".join(f"{name}: {_short(known.get(name))}, now {_short(wanted.get(name))}" for name in differing)
        raise InputError(
            f"{plan.folder} holds answers of another pair or other settings ({shown}): choose another folder"
        )
    if wanted != known or not file.exists():
        _write(file, json.dumps(wanted, indent=1))


def _about_file(file: Path) -> dict[str, str]:
    try:
        return {"file": file.name, "sha256": hash_file(file)}
    except OSError as error:
        raise ModelFileError(f"{file} cannot be read ({error.strerror or error}): check the path") from None


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value.get('file')} {str(value.get('sha256'))[:8]}"
    text = "none" if value is None else str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _write(file: Path, text: str) -> None:
    try:
        write_whole(file, text + "\n")
    except OSError as error:
        raise InputError(f"{file} cannot be written: {error.strerror or error}") from None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep the folder to this process. Raises InputError."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise InputError(f"another evaluation works in {folder}: wait for it, or choose another folder") from None
    except OSError as error:
        raise InputError(f"{folder} cannot be used: {error.strerror or error}") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _quiet_and_offline() -> Iterator[None]:
    """Keep the harness quiet and offline; afterwards environment and loggers are as they were."""
    former = {name: os.environ.get(name) for name in _OFFLINE}
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    os.environ.update(_OFFLINE)
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        for name, value in former.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
