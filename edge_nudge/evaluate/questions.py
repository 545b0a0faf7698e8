"""The tasks: which rows, how they are asked, what kind of answer they want.

Owns the list of tasks and the wording of the questions, which is ours; which tasks they are is the paper's choice (Fei,
Razeghi, Singh, arXiv 2410.09300), and IFEval (Zhou et al., arXiv 2311.07911); two hold questions of a user's own. Never
reads a file.

1. Zero-shot: a question and the form of its answer, nothing else, and the same for every system.
2. The form asked for ("The answer is ...") is the one that answers.py looks for first. It has no placeholder: small
   models write "The answer is X" where they are shown one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edge_nudge.errors import InputError
from edge_nudge.evaluate.answers import Kind, kind_of_gold

_FORMS = {
    Kind.NUMBER: 'Think step by step, and finish with "The answer is" and the number.',
    Kind.CHOICE: 'Think step by step, and finish with "The answer is" and the letter of the right choice.',
    Kind.YES_NO: 'Think step by step, and finish with "The answer is" and yes or no.',
    Kind.PLAUSIBLE: 'Think step by step, and finish with "The answer is" and plausible or implausible.',
    Kind.DATE: 'Think step by step, and finish with "The answer is" and the date as MM/DD/YYYY.',
    Kind.LETTERS: 'Think step by step, and finish with "The answer is" and the letters as one word.',
}


@dataclass(frozen=True, slots=True)
class Task:
    """One set of questions. `kind` is None where answers are judged otherwise: by instructions, or by people."""

    name: str
    title: str
    file: str
    kind: Kind | None
    max_tokens: int
    metric: str = "acc"
    is_users: bool = False  # a user's own questions: asked as they are, and of the kind of their answers

    @property
    def is_instructions(self) -> bool:
        return self.metric == "prompt_level_strict_acc"

    @property
    def is_open_ended(self) -> bool:
        return self.metric == ""

    def kind_of(self, row: Mapping[str, Any]) -> Kind | None:
        """Return what kind of answer a row wants."""
        if not self.is_users or self.is_open_ended:
            return self.kind
        return Kind.CHOICE if row.get("choices") else kind_of_gold(str(row["answer"]))

    @property
    def harness_name(self) -> str:
        """The name by which lm-evaluation-harness knows it."""
        return f"nudge_{self.name}"


_ALL = (
    Task("gsm8k", "GSM8K", "gsm8k.jsonl", Kind.NUMBER, 256),
    Task("svamp", "SVAMP", "svamp.jsonl", Kind.NUMBER, 192),
    Task("multiarith", "MultiArith", "multiarith.jsonl", Kind.NUMBER, 192),
    Task("mmlu", "MMLU", "mmlu_paper_order.jsonl", Kind.CHOICE, 192),
    Task("arc_challenge", "ARC-Challenge", "arc_challenge.jsonl", Kind.CHOICE, 192),
    Task("csqa", "CommonsenseQA", "csqa.jsonl", Kind.CHOICE, 192),
    Task("strategyqa", "StrategyQA", "strategyqa.jsonl", Kind.YES_NO, 192),
    Task("date", "Date understanding", "date.jsonl", Kind.DATE, 192),
    Task("sports", "Sports understanding", "sports.jsonl", Kind.PLAUSIBLE, 128),
    Task("coin_flip", "Coin flip", "coin_flip.jsonl", Kind.YES_NO, 192),
    Task("last_letters", "Last letters", "last_letter_concat.jsonl", Kind.LETTERS, 192),
    Task("just_eval", "Just-eval", "justeval.jsonl", None, 512, metric=""),
    Task("just_eval_safe", "Just-eval, safety", "justeval_safe.jsonl", None, 512, metric=""),
    Task("mt_bench", "MT-bench, first turns", "mt_bench.jsonl", None, 512, metric=""),
    Task("questions", "Own questions", "questions.jsonl", None, 256, is_users=True),
    Task("prompts", "Own prompts", "prompts.jsonl", None, 256, metric="", is_users=True),
    Task("ifeval", "IFEval", "ifeval.jsonl", None, 512, metric="prompt_level_strict_acc"),
)
TASKS: Mapping[str, Task] = {task.name: task for task in _ALL}


def find_task(name: str) -> Task:
    """Return a task by its name. Raises InputError naming all."""
    try:
        return TASKS[name]
    except KeyError:
        raise InputError(f"there is no task {name!r}: choose from {', '.join(TASKS)}") from None


def ask(task: Task, row: Mapping[str, Any]) -> str:
    """Return the question of a row as every system is asked it."""
    if task.is_instructions:
        return str(row["prompt"])
    if task.kind is None and not row.get("choices"):
        return str(row["question"])
    parts = [str(row["question"]).strip()]
    if row.get("context"):
        parts.insert(0, str(row["context"]))
    if row.get("choices"):
        parts += [f"{letter(i)}. {choice}" for i, choice in enumerate(row["choices"])]
    return "\n".join([*parts, _FORMS[task.kind or Kind.CHOICE]])


def letter(i: int) -> str:
    """Return the letter of a choice: A is 0."""
    return chr(ord("A") + i)


def row_id(task: Task, row: Mapping[str, Any]) -> str:
    return str(row["key"] if task.is_instructions else row["id"])


def gold_of(task: Task, row: Mapping[str, Any]) -> str:
    """Return the right answer; for instructions their names."""
    return " ".join(row["instruction_id_list"]) if task.is_instructions else str(row.get("answer") or "")
