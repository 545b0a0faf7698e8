"""The report of `edge-nudge bench` as text: what was measured on what, then tables.

Owns the look. Never computes a figure: all of them are in the document that --json prints.

1. Plain text everywhere, no colours: a report is pasted into other texts.
2. A figure that is not there is a dash.
"""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from edge_nudge.cli.render import is_terminal
from edge_nudge.core.visible import one_line

Document: TypeAlias = Mapping[str, Any]

_ENDLESS = 1000  # columns: where no one reads, no line is broken
_NONE = "-"
_LABELS = {"base": "base alone", "nudging": "nudging alone"}
_LEFT = ("prompt", "mode", "model")
_COUNTS = {
    "own": "own", "catch_up": "catch-up", "reevaluated": "again", "verified": "verified", "wasted": "wasted",
    "calls": "calls",
}  # fmt: skip


def report_text(document: Document) -> str:
    """Return the whole report, ending with a newline."""
    lines = list(_head(document))
    match document["kind"]:
        case "costs":
            for role, curve in document["costs"].items():
                lines += ["", _costs_title(role, curve), _exact_line(curve), *_costs_table(curve)]
        case "fake":
            lines += ["", _fake_title(document["fake"]), *_fake_table(document["fake"])]
        case _:
            lines += _trials(document)
    peak = document.get("peak_memory")
    if peak and peak["bytes"] is not None:
        lines += ["", f"peak memory {peak['bytes'] / 1e6:.0f} MB: {peak['includes']}"]
    return "\n".join(lines) + "\n"


def _trials(document: Document) -> list[str]:
    lines = []
    if document["prompts"]:
        lines += ["", "Speed: median (quartiles), reading the prompt included; over: how much longer the writing took "]
        lines[-1] += "than the same calls could take by the measured batch costs, with no guesses and with all tokens "
        lines[-1] += "foreseen"
        lines += _speed_table(document)
        lines += ["", "Ratios within one trial: tokens/s, time to the first piece", *_ratio_table(document)]
        lines += ["", "For each token of an answer: tokens evaluated by cause (prompt apart; causes that never came "]
        lines[-1] += "are left out), native calls"
        lines += [*_count_table(document), *_early_ends(document)]
    if document["follow_up"]:
        lines += ["", *_follow_up(document["follow_up"])]
    return lines


def _head(document: Document) -> Iterator[str]:
    machine = document["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    cores = f"{machine['physical_cores'] or 'unknown'} physical, {machine['logical_cores'] or 'unknown'} logical cores"
    yield f"machine   {one_line(machine['platform'])}; {one_line(machine['processor'] or 'unknown processor')}; {cores}"
    if machine["threads"]:
        yield f"          {one_line(machine['threads'])}"
    yield f"versions  {versions}"
    if "pair" in document:
        yield from _head_of_pair(document)


def _head_of_pair(document: Document) -> Iterator[str]:
    for role in ("base", "nudging"):
        model = document["pair"][role]
        # A blob of another program is called by its model's name.
        name = model["file"] if model["file"].endswith(".gguf") else model["label"]
        yield f"{role:<9} {one_line(name)}, context {model['n_ctx']}, sha256 {model['sha256']}"
        if model.get("adapter"):
            yield f"          with adapter {one_line(model['adapter']['file'])}, sha256 {model['adapter']['sha256']}"
        if model["offload"]:
            yield f"          {one_line(model['offload'])}"
    if "settings" in document:
        asked = document["settings"]
        # the follow-up has its own caches, and its first answer warms up
        cold = (", one warm-up", ", cold caches before each answer") if document["prompts"] else ("", "")
        yield (
            f"settings  {_counted(asked['max_tokens'], 'token')}, {_counted(asked['trials'], 'trial')}{cold[0]}, "
            f"gamma {asked['gamma']:g}, greedy, no loop guard, no restart guard{cold[1]}"
        )
    for warning in document["warnings"]:
        yield f"warning   {one_line(warning)}"
    for note in document.get("notes", ()):
        yield f"note      {one_line(note)}"


def _sections(document: Document) -> list[tuple[str, Document]]:
    """Return the prompts and, where there are several, all of them together."""
    prompts = list(document["prompts"].items())
    return [*prompts, ("all", document["all"])] if len(prompts) > 1 else prompts


def _speed_table(document: Document) -> list[str]:
    rows = []
    for name, section in _sections(document):
        for mode, figures in section["modes"].items():
            tokens = sorted(set(figures["n_tokens"]))
            shown = f"{tokens[0]}-{tokens[-1]}" if len(tokens) > 1 else str(tokens[0])
            rows.append((
                name, _label(mode), _prompt_tokens(section, mode), shown, _spread(figures["tokens_per_s"], ".1f"),
                _spread(figures["first_piece_s"], ".3f"), _spread(figures["outside_native"], ".1%"),
                _spread(figures["over_best"], "+.0%"), _spread(figures["over_foreseen"], "+.0%"),
            ))  # fmt: skip
    titles = (
        *("prompt", "mode", "prompt tokens", "tokens", "tokens/s", "first piece s", "outside native calls"),
        *("over no guesses", "over foreseen"),
    )
    return _table(titles, rows)


def _prompt_tokens(section: Document, mode: str) -> str:
    if "prompt_tokens" not in section:
        return ""
    counts = section["prompt_tokens"]
    return str(counts[mode]) if mode in counts else f"{counts['base']} + {counts['nudging']}"


def _ratio_table(document: Document) -> list[str]:
    ratios = document["all"]["ratios"]
    speeds, firsts = tuple(ratios["tokens_per_s"]), tuple(ratios["first_piece_s"])
    rows = []
    for name, section in _sections(document):
        of = section["ratios"]
        cells = [_spread(of["tokens_per_s"][pair], ".2f") for pair in speeds]
        rows.append((name, *cells, *(_spread(of["first_piece_s"][pair], ".2f") for pair in firsts)))
    return _table(("prompt", *speeds, *(f"first piece: {pair}" for pair in firsts)), rows)


def _count_table(document: Document) -> list[str]:
    modes = [(name, mode, of) for name, section in _sections(document) for mode, of in section["modes"].items()]
    # calls are always told; a cause that is zero in every row says nothing
    shown = [
        (role, key)
        for role in ("base", "nudging")
        for key in _COUNTS
        if key == "calls" or any(of["per_token"][role][key] for _, _, of in modes)
    ]
    rows = []
    for name, mode, of in modes:
        cells = [_number(of["per_token"][role][key], ".2f") for role, key in shown]
        handoffs, ratio = of["handoffs_per_token"], of["nudging_ratio"]
        rows.append((name, _label(mode), *cells, _number(handoffs, ".2f"), _number(ratio, ".1%")))
    columns = [f"{role}: {_COUNTS[key]}" for role, key in shown]
    return _table(("prompt", "mode", *columns, "handoffs", "nudging ratio"), rows)


def _early_ends(document: Document) -> list[str]:
    ends = document["early_ends"]
    found: dict[tuple[str, str, int, str], int] = {}
    for end in ends:
        key = (end["prompt"], end["mode"], end["n_tokens"], end["detail"])
        found[key] = found.get(key, 0) + 1
    lines = [
        f"  {prompt}, {_label(mode)}: {_counted(n_tokens, 'token')} ({detail.replace('_', ' ')}), "
        f"{n_times} of {document['settings']['trials']} trials"
        for (prompt, mode, n_tokens, detail), n_times in found.items()
    ]
    return ["", "Answers that ended early:", *lines] if lines else []


def _follow_up(case: Document) -> list[str]:
    """Return the part on the second question of a conversation."""
    names = ("prompt", "known", "reused", "again", "new")
    rows = [(role, *(_spread(counts[name], ".0f") for name in names)) for role, counts in case["models"].items()]
    seconds = case["first_piece_s"]
    return [
        f"Second question of a conversation, behind an answer of {_counted(case['first_answer_tokens'], 'token')}: "
        "tokens of its prompt",
        *_table(("model", "prompt", "known text", "reused", "evaluated again", "evaluated new"), rows),
        f"time to its first piece: {_spread(seconds['warm'], '.3f')} s with warm caches, "
        f"{_spread(seconds['cold'], '.3f')} s with cold ones, warm/cold {_spread(seconds['warm/cold'], '.2f')}",
    ]


def _fake_title(fake: Document) -> str:
    return (
        f"The decoder without models: microseconds for each token of an answer of {_counted(fake['tokens'], 'token')}, "
        f"time inside the models taken off, median (quartiles) of {_counted(fake['rounds'], 'round')}"
    )


def _fake_table(fake: Document) -> list[str]:
    rows = [
        (
            str(part["n_vocab"]), _label(mode), _spread(of["us_per_token"], ".1f"),
            _number(of["calls_per_token"]["base"], ".2f"), _number(of["calls_per_token"]["nudging"], ".2f"),
            _number(of["handoffs_per_token"], ".2f"), _number(of["nudging_ratio"], ".1%"),
        )
        for part in fake["vocabularies"]
        for mode, of in part["modes"].items()
    ]  # fmt: skip
    titles = ("vocabulary", "mode", "us/token", "base: calls", "nudging: calls", "handoffs", "nudging ratio")
    return _table(titles, rows)


def _label(mode: str) -> str:
    return _LABELS.get(mode, mode)


def _costs_title(role: str, curve: Document) -> str:
    return (
        f"{role} model, {curve['n_vocab']} scores in a row, behind {curve['context_tokens']} tokens, "
        f"median of {_counted(curve['rounds'], 'round')}, taken back by {curve['reset_by']}"
    )


def _exact_line(curve: Document) -> str:
    if curve["reset_by"] != "rewind":
        return "whether batches have the bits of single steps was not measured: the model cannot rewind"
    if curve["exact"] == 1:
        return "no batch has the bits of single steps"
    return (
        f"batches of up to {_counted(curve['exact'], 'token')} have the bits of single steps, while there are no more "
        f"than {_counted(curve['exact_within'], 'token')} in the cache"
    )


def _costs_table(curve: Document) -> list[str]:
    rows = [
        (
            str(batch["n_tokens"]), _number(batch["last_ms"], ".2f"), _number(batch["last_steps"], ".2f"),
            _number(batch["every_ms"], ".2f"), _number(batch["every_steps"], ".2f"),
        )
        for batch in curve["batches"]
    ]  # fmt: skip
    return _table(("tokens", "last score: ms", "steps", "every score: ms", "steps"), rows)


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lay out a table; a first cell equal to the one above is left out."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for title in titles:
        table.add_column(Text(title), justify="left" if title in _LEFT else "right", overflow="fold")
    above = None
    for first, *rest in rows:
        table.add_row(*(Text(cell) for cell in ("" if first == above else first, *rest)))
        above = first
    out = io.StringIO()
    width = shutil.get_terminal_size().columns if is_terminal(sys.stdout) else _ENDLESS
    Console(file=out, width=width, color_system=None, force_terminal=False).print(table)
    return [line.rstrip() for line in out.getvalue().splitlines()]


def _spread(figure: Mapping[str, float] | None, form: str) -> str:
    if figure is None:
        return _NONE
    median, q1, q3 = (f"{figure[name]:{form}}" for name in ("median", "q1", "q3"))
    return median if figure["q1"] == figure["q3"] else f"{median} ({q1}-{q3})"


def _number(value: float | None, form: str) -> str:
    return _NONE if value is None else f"{value:{form}}"


def _counted(n: int, noun: str) -> str:
    return f"1 {noun}" if n == 1 else f"{n} {noun}s"
