"""Whether every prompt fits into its models' contexts, before anything is answered.

Owns this one check. A long prompt would end an evaluation after hours, and a larger context is another load, which does
not go on from the answers that are kept.
"""

from __future__ import annotations

from edge_nudge.core.request import build_request
from edge_nudge.errors import CancelledError, ContextOverflowError
from edge_nudge.evaluate.answering import Answerer, Stop
from edge_nudge.evaluate.plan import Plan
from edge_nudge.evaluate.questions import ask, row_id
from edge_nudge.evaluate.rows import read_rows
from edge_nudge.evaluate.systems import System


def check_prompts(system: System, answerer: Answerer, plan: Plan, stop: Stop) -> None:
    """Tokenize every prompt of a system. Raises ContextOverflowError naming the longest that is too long, or
    CancelledError.
    """
    longest: ContextOverflowError | None = None
    where, n_long, n_all = "", 0, 0
    for task in plan.tasks:
        rows = read_rows(task, plan.data)
        for place in plan.items_of(task, len(rows)):
            if stop.is_asked:
                raise CancelledError("the evaluation was stopped")
            n_all += 1
            request = build_request(ask(task, rows[place]), cache_prompt=False, **system.request_settings)
            try:
                answerer.check(request)
            except ContextOverflowError as error:
                n_long += 1
                if longest is None or error.n_prompt > longest.n_prompt:
                    longest, where = error, f"task {task.name}, item {row_id(task, rows[place])}"
    if longest is not None:
        longest.args = (
            f"system {system.name}: too long are {n_long} of {n_all} prompts, the longest {where}: {longest}",
        )
        raise longest
