"""Results of evaluations for tests: made up from a seed, with known scores."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from traces import NASTY

from edge_nudge.evaluate.results import ItemResult, Results, SystemResult, TaskAbout, TurnText

OPEN = "letters"
PAIR = {
    "name": "demo",
    "base": {
        "name": "base model",
        "label": "Base-135M",
        "file": "base.gguf",
        "path": "/secret/base.gguf",
        "sha256": "a" * 64,
        "n_ctx": 2048,
        "gpu_layers": None,
        "offload": "CPU",
        "prompt_format": "Q: {question}\nA:",
    },
    "nudging": {
        "name": "nudging model",
        "label": "Nudge-135M",
        "file": "nudge.gguf",
        "sha256": "b" * 64,
        "n_ctx": 2048,
    },
}


def item(task: str, key: str, score: float | None, **more: object) -> ItemResult:
    """An answer of two turns."""
    turns = (
        TurnText(author="nudging", text="The sum", reason="opening"),
        TurnText(author="base", text=f" is {key} apples.", reason="confident", top_prob=0.83),
        TurnText(author="nudging", text=" So", reason="unsure", top_prob=0.21),
        TurnText(author="base", text=" that is it.", reason="agreed", top_prob=0.7),
    )
    known = {
        "question": f"How many apples are {key}?",
        "gold": key,
        "answer": "".join(turn.text for turn in turns),
        "extracted": key if score else None,
        "metrics": {} if score is None else {"exact_match": score, "length": 3.0},
        "n_base_tokens": 8,
        "n_nudging_tokens": 4,
        "n_base_chars": 30,
        "n_nudging_chars": 10,
        "n_handoffs": 3,
        "n_base_evaluated": 24,
        "n_nudging_evaluated": 18,
        "total_s": 0.5,
        "turns": turns,
    }
    return ItemResult.model_validate({**known, **more, "task": task, "id": key, "score": score})


def alone(given: ItemResult, author: str) -> ItemResult:
    """The answer as one model's."""
    answer = f"I think {given.id}."
    is_base = author == "base"
    counts = {
        "n_base_tokens": 12 if is_base else 0,
        "n_nudging_tokens": 0 if is_base else 12,
        "n_base_chars": len(answer) if is_base else 0,
        "n_nudging_chars": 0 if is_base else len(answer),
        "n_handoffs": 0,
    }
    turn = TurnText.model_validate({"author": author, "text": answer, "reason": "policy"})
    return given.model_copy(update={**counts, "answer": answer, "turns": (turn,)})


def system(
    name: str, scores: Mapping[str, Sequence[float | None]], gamma: float | None = 0.4, **more: object
) -> SystemResult:
    """A system with these scores of each task; `base` and `nudging` are each one model alone."""
    is_alone = name in ("base", "nudging")
    items = [item(task, str(i), score) for task, found in scores.items() for i, score in enumerate(found)]
    if is_alone:
        items = [alone(one, name) for one in items]
    rule = None if is_alone else "top_prob"
    given = {"name": name, "rule": rule, "gamma": None if is_alone else gamma, "items": items}
    return SystemResult.model_validate({**given, **more})


def results(*systems: SystemResult, tasks: Sequence[TaskAbout] = (), **more: object) -> Results:
    names = dict.fromkeys(one.task for each in systems for one in each.items)
    about = tasks or [
        TaskAbout(name=name, title=name.upper(), metric="exact_match", n_rows=1319, n_items=0, max_tokens=256)
        for name in names
    ]
    known = {
        "command": "edge-nudge eval demo --limit 50",
        "started": "2025-06-01T12:00:00+00:00",
        "machine": "2 cores, 8 GiB",
        "pair": PAIR,
        "seed": 7,
        "limit": {"gsm8k": 50},
    }
    return Results.model_validate({**known, **more, "tasks": about, "systems": systems})


def drawn(share: float, n: int, seed: int) -> list[float]:
    """Scores of 0 and 1, about `share` of them 1."""
    numbers = random.Random(seed)
    return [float(numbers.random() < share) for _ in range(n)]


def large(n: int = 60) -> Results:
    """Several tasks and gammas, open-ended questions, and fractional scores."""
    shares = {"base": 0.15, "nudging": 0.35, "nudged 0.2": 0.3, "nudged 0.4": 0.62, "nudged 0.6": 0.45}
    gammas = {"nudged 0.2": 0.2, "nudged 0.4": 0.4, "nudged 0.6": 0.6}
    systems = []
    for i, (name, share) in enumerate(shares.items()):
        scores: dict[str, list[float | None]] = {
            "gsm8k": [*drawn(share, n, i)],
            "arc": [*drawn(min(1, share + 0.2), n, 50 + i)],
            "ifeval": [round(random.Random(90 + i + k).random() * share * 4) / 4 for k in range(n)],
            "open": [None] * 3,
        }
        given = system(name, scores, gammas.get(name), settings={"gamma": gammas[name]} if name in gammas else {})
        n_nudging = {"nudged 0.2": 1, "nudged 0.6": 6}.get(name)
        if n_nudging is not None:
            counts = {"n_nudging_tokens": n_nudging, "n_base_tokens": 12 - n_nudging}
            given = given.model_copy(update={"items": tuple(one.model_copy(update=counts) for one in given.items)})
        systems.append(given)
    titles = {"gsm8k": "GSM8K", "arc": "ARC challenge", "ifeval": "IFEval", "open": "Open questions"}
    tasks = [
        TaskAbout(
            name=name,
            title=title,
            metric="exact_match",
            n_rows=1000,
            n_items=3 if name == "open" else n,
            max_tokens=256,
            is_open_ended=name == "open",
        )
        for name, title in titles.items()
    ]
    return results(*systems, tasks=tasks)


def hostile() -> Results:
    """Every text tries to be markup, a formula, or to hide something."""
    systems = []
    for n_system, name in enumerate(("base", "nudging", "<img src=x onerror=alert(1)>|`$\\frac$")):
        items = []
        for i, text in enumerate((*NASTY, "$x^2$", "_hidden", "| a | b |", "\ud7ff\u25a1")):
            turns = (
                TurnText(author="base", text=text, reason=text),
                TurnText(author="nudging", text="<b>", reason="unsure", top_prob=0.1),
            )
            items.append(
                item(
                    "</script><script>alert(1)</script>",
                    f"{i} {text}",
                    float(i // (n_system + 1) % 2),
                    question=text,
                    gold=text,
                ).model_copy(update={"extracted": text, "turns": turns, "answer": f"{text}<b>", "finish_detail": text})
            )
            items.append(items[-1].model_copy(update={"task": "$\\open{", "score": None}))
        rule = "<i>" if name.startswith("<") else None
        systems.append(SystemResult(name=name, rule=rule, gamma=0.5 if rule else None, items=tuple(items)))
    nasty_pair = {"name": ["<b>"], "base": "<script>", "nudging": {"label": "</title>", "sha256": 5, "file": None}}
    tasks = [
        TaskAbout(name=name, title=name, metric="<u>", n_rows=9, n_items=0, max_tokens=9, is_open_ended="open" in name)
        for name in ("</script><script>alert(1)</script>", "$\\open{")
    ]
    return results(
        *systems, tasks=tasks, pair=nasty_pair, command="</pre><script>alert(1)</script>", machine="\x1b[31m\u202e"
    )


def results_of(
    answers: Mapping[str, Sequence[str | None]], *, question: str = "What is it?", task: str = OPEN
) -> Results:
    """Return results of an open-ended task: each system's answers to item-0, item-1 ...; None: not answered."""
    n_items = max(map(len, answers.values()), default=0)
    about = TaskAbout(
        name=task, title=task, metric="", n_rows=n_items, n_items=n_items, max_tokens=64, is_open_ended=True
    )
    systems = tuple(
        SystemResult(
            name=name,
            items=tuple(
                ItemResult(task=task, id=f"item-{n}", question=question, gold="", answer=answer)
                for n, answer in enumerate(given)
                if answer is not None
            ),
        )
        for name, given in answers.items()
    )
    return Results(tasks=(about,), systems=systems)
