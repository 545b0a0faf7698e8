"""Which answers a page shows, and how much of them: a page has to open on a phone, whatever was evaluated.

Owns the choice and the bound. Never escapes anything, and computes no figure.

1. Where nudging helped and where it hurt, of the nudged system with the highest mean; the largest differences first,
   then the order of the file. So examples are not typical answers, and the page says so.
2. Long texts are cut, and the characters that are left out are counted; all parts of a page together have a bound.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from edge_nudge.evaluate.results import ItemResult, Results
from edge_nudge.evaluate.summary import BASE, NUDGING, REFERENCES, Asked, Summary, by_item
from edge_nudge.evaluate.verdicts import lead_system

N_PER_KIND = 3  # examples of a task
N_OPEN_ITEMS = 8  # open-ended questions of a task
N_OPEN_SYSTEMS = 12  # whose answers stand side by side
MAX_QUESTION = 3_000  # characters
MAX_ANSWER = 6_000
MAX_GOLD = 300
MAX_TURNS = 600  # of an answer
PART_COST = 200  # characters of a page that a turn takes beside its text
MAX_PAGE = 1_500_000  # characters of all shown texts with their turns


@dataclass(frozen=True, slots=True)
class Cut:
    """The beginning of a text, and how many characters are left out."""

    text: str
    n_left_out: int


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of an answer; nobody's where it is not known who wrote what."""

    text: str
    author: str | None
    reason: str
    top_prob: float | None


@dataclass(frozen=True, slots=True)
class Shown:
    """An answer on the page; its `parts` are what is shown of it."""

    system: str
    item: ItemResult
    extracted: Cut | None
    parts: tuple[Part, ...]
    n_left_out: int


@dataclass(frozen=True, slots=True)
class Example:
    """An item with the answers of some systems; the first one is the nudged system's where it is about one."""

    id: str
    question: Cut
    gold: Cut
    answers: tuple[Shown, ...]


@dataclass(slots=True)
class TaskExamples:
    """What the page shows of a task; `n_more` are those of a kind that are not shown."""

    task: str
    helped: list[Example] = field(default_factory=list)
    hurt: list[Example] = field(default_factory=list)
    open_ended: list[Example] = field(default_factory=list)
    n_helped: int = 0
    n_hurt: int = 0
    n_open_ended: int = 0

    @property
    def has_any(self) -> bool:
        return bool(self.n_helped or self.n_hurt or self.n_open_ended)


@dataclass(slots=True)
class Room:
    """How many characters a page may still show."""

    n_left: int = MAX_PAGE

    def take(self, example: Example) -> bool:
        """Take the room that an example needs; False where there is none."""
        parts = [part for shown in example.answers for part in shown.parts]
        n = len(example.question.text) + sum(len(part.text) + PART_COST for part in parts)
        if n > self.n_left:
            return False
        self.n_left -= n
        return True


def find_examples(results: Results, summary: Summary) -> list[TaskExamples]:
    """Choose what the page shows, task by task."""
    asked = by_item(results)
    lead = lead_system(summary)
    found, room = [], Room()
    for task in summary.tasks:
        examples = TaskExamples(task.name)
        if lead is not None:
            ranked = _ranked(asked, task.name, lead.system)
            helped = [key for gain, _, key in sorted(ranked, key=lambda entry: -entry[1]) if gain > 0]
            hurt = [key for _, least, key in sorted(ranked, key=lambda entry: entry[1]) if least < 0]
            hurt = [key for key in hurt if key not in set(helped)]
            names = [lead.system, *REFERENCES]
            examples.n_helped, examples.n_hurt = len(helped), len(hurt)
            examples.helped = list(_examples(asked, task.name, names, helped[:N_PER_KIND], room))
            examples.hurt = list(_examples(asked, task.name, names, hurt[:N_PER_KIND], room))
        if task.is_open_ended:
            names = [about.name for about in summary.systems[:N_OPEN_SYSTEMS]]
            keys = list(dict.fromkeys(key for name in names for key in asked.systems[name].get(task.name, {})))
            examples.n_open_ended = len(keys)
            examples.open_ended = list(_examples(asked, task.name, names, keys[:N_OPEN_ITEMS], room))
        if examples.has_any:
            found.append(examples)
    return found


def _ranked(asked: Asked, task: str, system: str) -> list[tuple[float, float, str]]:
    """Return each scored item with the gain over the nudging model, and the least gain over a model alone.

    Where the nudging model was not asked, the gain is over the base model.
    """
    found = []
    for key, item in asked.systems[system].get(task, {}).items():
        others = {name: asked.systems.get(name, {}).get(task, {}).get(key) for name in REFERENCES}
        scores = {name: other.score for name, other in others.items() if other is not None and other.score is not None}
        if item.score is not None and scores:
            gain = item.score - scores.get(NUDGING, scores.get(BASE, 0.0))
            found.append((gain, item.score - max(scores.values()), key))
    return found


def _examples(asked: Asked, task: str, names: Sequence[str], keys: Sequence[str], room: Room) -> Iterator[Example]:
    for key in keys:
        answers = [(name, asked.systems.get(name, {}).get(task, {}).get(key)) for name in names]
        shown = tuple(_shown(name, item) for name, item in answers if item is not None)
        item = shown[0].item
        example = Example(key, cut(item.question, MAX_QUESTION), cut(item.gold, MAX_GOLD), shown)
        if room.take(example):
            yield example


def _shown(system: str, item: ItemResult) -> Shown:
    extracted = None if item.extracted is None else cut(item.extracted, MAX_GOLD)
    parts: list[Part] = []
    n = 0
    for part in _parts(item):
        text = part.text[: MAX_ANSWER - n]
        if not text or len(parts) == MAX_TURNS:
            break
        parts.append(replace(part, text=text))
        n += len(text)
    return Shown(system, item, extracted, tuple(parts), len(item.answer) - n)


def _parts(item: ItemResult) -> list[Part]:
    """Return the answer by author, or as one part of nobody where the turns are not known."""
    if "".join(turn.text for turn in item.turns) != item.answer:
        return [Part(item.answer, None, "", None)]
    return [Part(turn.text, turn.author, turn.reason, turn.top_prob) for turn in item.turns if turn.text]


def cut(text: str, n_most: int) -> Cut:
    """Return the beginning of a text."""
    return Cut(text[:n_most], max(0, len(text) - n_most))
