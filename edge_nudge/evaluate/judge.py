"""Two systems' answers compared by a judge model behind a URL.

Owns who is asked about what, the file of verdicts, and how they are counted. Never guesses: what a judge's reply does
not say plainly is counted as unclear.

1. Each item is asked twice, with either answer shown first. A system wins an item where it wins both; what changes with
   the order, or is a tie in one, is a tie. Without two clear replies the item is unclear.
2. Each reply is written to the file before the next is asked for. A later call asks only for what is not there: a
   verdict belongs to the model's name and to every word that was asked.
3. Equal answers are a tie, and nobody is asked.
4. Nothing is sent unless a URL is given, and then questions and answers are.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict

from edge_nudge.core.visible import one_line
from edge_nudge.document import to_json
from edge_nudge.errors import BusyError, InputError
from edge_nudge.evaluate.judge_prompt import Verdict, is_about_safety, messages, read_verdict
from edge_nudge.evaluate.judge_server import JudgeServer
from edge_nudge.evaluate.results import Results
from edge_nudge.evaluate.side_by_side import Compared, compared

FILE_NAME = "verdicts.jsonl"

_log = logging.getLogger("edge_nudge.evaluate")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Judged(_Part):
    """One line of the file: a reply and what it says. `shown_as_a` and `shown_as_b` are names of systems."""

    key: str
    task: str
    id: str
    shown_as_a: str
    shown_as_b: str
    model: str
    verdict: Verdict
    reply: str


class Tally(_Part):
    """How many items the first system won, lost and neither; `n_says_a` and `n_says_b` are of single replies.

    A judge without a bias for a position says A as often as B.
    """

    n_items: int = 0
    n_wins: int = 0
    n_ties: int = 0
    n_losses: int = 0
    n_unclear: int = 0
    n_identical: int = 0  # of the ties
    n_contradictory: int = 0  # of the ties: the same place won in both orders
    n_says_a: int = 0
    n_says_b: int = 0


class JudgeSummary(_Part):
    """What a judge found on `first` against `second`; replies were asked for now or kept from before."""

    first: str
    second: str
    model: str
    total: Tally
    by_task: dict[str, Tally]
    n_asked: int
    n_kept: int


def judge(
    results: Results,
    first: str,
    second: str,
    *,
    url: str,
    model: str,
    key: str | None,
    folder: Path,
    on_progress: Callable[[int, int], None] | None = None,
    tasks: Sequence[str] | None = None,
    wait: Callable[[float], None] = time.sleep,
) -> JudgeSummary:
    """Compare the answers of two systems, and return how often the first won.

    `tasks` are the open-ended ones where none are named; items that one of the two did not answer are left out.
    `on_progress` is told how many of how many replies are there. Raises InputError, BusyError, AccessError and
    ServerError; the verdicts so far are kept.
    """
    if first == second:
        raise InputError(f"{one_line(first)} cannot be compared with itself: name two systems")
    if not model.strip():
        raise InputError("the judge's model has no name: give the one that its server knows")
    items = compared(results, tasks=tasks, systems=[first, second])
    items = [item for item in items if len(item.answers) == 2]
    if not items:
        raise InputError(f"no item was answered by both {one_line(first)} and {one_line(second)}")
    counts: dict[str, Counter[str]] = {}
    with JudgeServer(url, key, wait=wait) as server, _verdicts(folder) as file:
        judged = _Judging(server, model, file)
        for n, item in enumerate(items):
            pair = [] if _is_identical(item) else [judged.verdict(item, first, second)]
            if on_progress is not None:
                on_progress(2 * n + 1, 2 * len(items))
            pair += [judged.verdict(item, second, first)] if pair else []
            counts.setdefault(item.task, Counter()).update(_counted(pair))
            if on_progress is not None:
                on_progress(2 * n + 2, 2 * len(items))
        return JudgeSummary(
            first=first,
            second=second,
            model=model,
            total=Tally(**sum(counts.values(), Counter())),
            by_task={task: Tally(**found) for task, found in counts.items()},
            n_asked=judged.n_asked,
            n_kept=judged.n_kept,
        )


def _is_identical(item: Compared) -> bool:
    return len({one.answer.strip() for one in item.answers.values()}) == 1


def _counted(pair: Sequence[Verdict]) -> Counter[str]:
    """Return what one item adds; `pair` has the verdicts with the first and with the second system shown as A."""
    found = Counter({"n_items": 1, "n_says_a": pair.count("A"), "n_says_b": pair.count("B")})
    if not pair:
        return found + Counter({"n_ties": 1, "n_identical": 1})
    if "unclear" in pair:
        return found + Counter({"n_unclear": 1})
    if list(pair) == ["A", "B"]:
        return found + Counter({"n_wins": 1})
    if list(pair) == ["B", "A"]:
        return found + Counter({"n_losses": 1})
    return found + Counter({"n_ties": 1, "n_contradictory": int("tie" not in pair)})


class _Verdicts:
    """The file: what it has, and what is added to it. Raises OSError when opened, InputError later."""

    def __init__(self, path: Path) -> None:
        data = path.read_bytes() if path.exists() else b""
        self.known: dict[str, Judged] = {}
        for n, line in enumerate(data.splitlines(), 1):
            try:
                one = Judged.model_validate(json.loads(line))
            except (ValueError, RecursionError):  # cut off in the middle, or not ours
                _log.info("line %d of %s is no verdict: what it was about is asked anew", n, path)
                continue
            self.known[one.key] = one
        self._path = path
        self._file = path.open("ab", buffering=0)
        if data and not data.endswith(b"\n"):
            self._file.write(b"\n")

    def add(self, one: Judged) -> None:
        line = to_json(one.model_dump()).encode() + b"\n"
        try:
            is_whole = self._file.write(line) == len(line)
        except OSError as error:
            raise InputError(
                f"{self._path} cannot be written ({error.strerror or error}): give another folder"
            ) from error
        if not is_whole:
            raise InputError(f"{self._path} cannot grow by {len(line)} bytes: make room, or give another folder")
        self.known[one.key] = one

    def close(self) -> None:
        self._file.close()


@contextmanager
def _verdicts(folder: Path) -> Iterator[_Verdicts]:
    """Open the file of verdicts, for one process at a time. Raises InputError and BusyError."""
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(folder / f".{FILE_NAME}.lock", timeout=0))
            file = stack.enter_context(closing(_Verdicts(folder / FILE_NAME)))
        except Timeout:
            raise BusyError(f"another process judges into {folder}: wait for it, or give another folder") from None
        except OSError as error:
            raise InputError(f"{folder} cannot be written ({error.strerror or error}): give another folder") from error
        yield file


class _Judging:
    """One judge and its file; counts what was asked for."""

    def __init__(self, server: JudgeServer, model: str, file: _Verdicts) -> None:
        self._server = server
        self._model = model
        self._file = file
        self.n_asked = self.n_kept = 0

    def verdict(self, item: Compared, shown_as_a: str, shown_as_b: str) -> Verdict:
        asked = messages(
            item.question,
            item.answers[shown_as_a].answer,
            item.answers[shown_as_b].answer,
            is_safety=is_about_safety(item.task),
        )
        words = to_json({"model": self._model, "task": item.task, "id": item.id, "messages": asked})
        key = hashlib.sha256(words.encode()).hexdigest()
        if (known := self._file.known.get(key)) is not None:
            self.n_kept += 1
            return read_verdict(known.reply)
        reply = self._server.ask(self._model, asked)
        verdict = read_verdict(reply)
        self._file.add(
            Judged(
                key=key,
                task=item.task,
                id=item.id,
                shown_as_a=shown_as_a,
                shown_as_b=shown_as_b,
                model=self._model,
                verdict=verdict,
                reply=reply,
            )
        )
        self.n_asked += 1
        return verdict
