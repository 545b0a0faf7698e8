"""Results of evaluations made up for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edge_nudge.evaluate.results import ItemResult, Results, SystemResult, TaskAbout

OPEN = "letters"


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
