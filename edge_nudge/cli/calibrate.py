"""`edge-nudge calibrate`: which rule and threshold for a pair.

Owns the options, the order of things and the words of the finding. What is recommended, and why, is decided in
evaluate/calibration.py.

1. The same questions are answered under every setting; answers are kept, and a command that was stopped goes on.
2. A recommendation that changes nothing writes nothing. --no-write never writes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_nudge.cli import opening, options, streams
from edge_nudge.cli.configured import Configured
from edge_nudge.cli.evaluate import ask_all, need_extra, stopped
from edge_nudge.cli.interrupts import Interrupts
from edge_nudge.cli.names import complete_files
from edge_nudge.cli.verbosity import show_log
from edge_nudge.core.visible import one_line
from edge_nudge.errors import CancelledError, InputError

if TYPE_CHECKING:
    from edge_nudge.evaluate.calibration import Calibration, Setting
    from edge_nudge.evaluate.plan import Plan
    from edge_nudge.spec import PairSpec

DEFAULT_OUT = "calibration"
DEFAULT_TOKENS = 160  # of an answer: a ratio shows early


@click.command(cls=Configured, short_help="Choose a pair's threshold by your own questions.")
@click.argument("file", metavar="[FILE]", required=False, shell_complete=complete_files)
@options.model_options
@click.option("--task", multiple=True, metavar="TASK", help="Questions of this task of edge-nudge eval; with --data.")
@click.option(
    "--data", metavar="DIR", shell_complete=complete_files, help="Folder with the rows of the tasks, as JSON lines."
)
@click.option("--rules", metavar="LIST", default="top_prob", help="Rules to try, with commas; default top_prob.")
@click.option("--gammas", metavar="LIST", help="Thresholds to try, with commas; default: the rule's own list.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Most questions, of each task; default: all.")
@click.option(
    "-n", "--max-tokens", type=click.IntRange(1), default=DEFAULT_TOKENS, metavar="N",
    help=f"Most tokens of an answer; default {DEFAULT_TOKENS}.",
)  # fmt: skip
@click.option("--half", type=click.Choice(("first", "second")), help="Only this half of each file.")
@click.option("--seed", type=click.IntRange(0), default=0, metavar="N", help="Which questions a limit chooses.")
@click.option(
    "-o", "--out", metavar="DIR", shell_complete=complete_files, help=f"Folder of the answers; default {DEFAULT_OUT}."
)
@click.option("--save-as", metavar="NAME", help="Name of the pair in your manifests; default: the pair's name.")
@click.option("--no-write", is_flag=True, help="Only say what is recommended.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("-v", "--verbose", count=True, help="Show what happens on stderr; -vv: llama.cpp's lines too.")
@click.pass_context
def calibrate(context: click.Context, /, **values: Any) -> None:
    """Answer the questions of FILE under several thresholds, and recommend one.

    FILE has one question on each line; or JSON lines with "question" and, where it is known, "answer" (a number, words,
    or the letter of one of "choices"). With answers the accuracy decides, and a change is recommended only where it is
    no noise; without, the nudging ratio does. It is said when no threshold helps.

    A recommendation that changes something is written into your manifest of the pair, which edge-nudge show names.
    The folder holds all answers, calibration.json, and report.html with plots.

    \b
    Examples:
      edge-nudge calibrate questions.jsonl
      edge-nudge calibrate --task gsm8k --data DIR --half first --limit 50 --rules top_prob,margin
    """
    show_log(values["verbose"])
    options.check_text(context)
    need_extra("edge-nudge calibrate")
    folder = Path(values["out"] or DEFAULT_OUT).expanduser()
    with Interrupts() as interrupts:
        try:
            spec, settings = opening.find(context, values)
            plan, present = _plan(values, spec, folder)
            results = ask_all(context, plan, spec, settings, interrupts)
        except InputError as error:
            raise options.in_users_terms(error, context) from None
        except CancelledError:
            stopped(context, folder, interrupts)
        _finish(values, plan, spec, present, results)


def _plan(values: dict[str, Any], spec: PairSpec, folder: Path) -> tuple[Plan, Setting]:
    """Return what is asked, and the setting that the pair has now."""
    from edge_nudge.evaluate import calibration
    from edge_nudge.evaluate.own import read_own
    from edge_nudge.evaluate.plan import Plan, parse_tasks

    if (values["file"] is None) == (not values["task"]):
        raise InputError("which questions? name a FILE of your own, or tasks with --task and --data")
    if values["task"] and values["data"] is None:
        raise InputError("where are the rows? name their folder with --data DIR (docs/evaluation.md has the format)")
    if values["file"] is not None and values["data"] is not None:
        raise InputError("--data is for --task; FILE is read where it is")
    rules = [rule.strip() for rule in values["rules"].split(",") if rule.strip()]
    present = calibration.default_setting(spec.rule, spec.gamma)
    settings = calibration.settings_to_try(rules, _numbers(values["gammas"]), present)
    if values["task"]:
        tasks, data = parse_tasks(values["task"]), Path(values["data"]).expanduser()
    else:
        data = folder / "rows"
        tasks = (read_own(Path(values["file"]).expanduser(), data),)
    limit = {} if values["limit"] is None else {task.name: values["limit"] for task in tasks}
    plan = Plan(
        tasks,
        calibration.systems_of(settings, is_scored=not any(task.is_open_ended for task in tasks)),
        data,
        folder,
        limit,
        values["seed"],
        values["half"],
        {task.name: values["max_tokens"] for task in tasks},
    )
    plan.check()
    return plan, present


def _numbers(text: str | None) -> list[float]:
    if text is None:
        return []
    try:
        numbers = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise InputError(f"--gammas {text}: thresholds are numbers with commas, as in 0.2,0.3") from None
    if not numbers:
        raise InputError("--gammas: there is no number")
    return numbers


def _finish(values: dict[str, Any], plan: Plan, spec: PairSpec, present: Setting, results: Any) -> None:
    from edge_nudge.catalog.files import write_whole
    from edge_nudge.core.request import Rule
    from edge_nudge.evaluate.calibration import calibrate as find
    from edge_nudge.evaluate.choices import save_choice
    from edge_nudge.evaluate.report import write_report

    found = find(results, present)
    write_whole(plan.folder / "calibration.json", found.model_dump_json(indent=1) + "\n")
    files = write_report(results, plan.folder)
    if values["as_json"]:
        streams.write_out(found.model_dump_json(indent=1) + "\n")
    else:
        streams.write_out(_text(found))
    for file in files:
        streams.tell(one_line(str(file)))
    if not found.is_change or values["no_write"]:
        return
    name = values["save_as"] or spec.name
    if name is None:
        streams.tell("not written: these two files have no name as a pair; give one with --save-as NAME")
        return
    path = save_choice(spec, name, Rule(found.recommended.rule), found.recommended.gamma)
    streams.tell(f"written: {one_line(str(path))}")


def _text(found: Calibration) -> str:
    from edge_nudge.cli.columns import table

    is_scored = found.by == "accuracy"
    titles = ["", "RULE", "GAMMA", "NUDGED", "CHARACTERS", "HANDOFFS/100", "TOKENS/S"]
    titles += ["SCORE", "95 %", "CHANGE", "P"] if is_scored else []
    rows = []
    for point in found.points:
        mark = "*" if point.setting == found.recommended else "=" if point.setting == found.present else ""
        row = [
            mark,
            point.setting.rule,
            f"{point.setting.gamma:g}",
            _share(point.ratio_tokens),
            _share(point.ratio_chars),
        ]
        row += [f"{point.handoffs_per_100:.1f}", "-" if point.tokens_per_s is None else f"{point.tokens_per_s:.1f}"]
        if is_scored:
            row += [_share(point.score), f"{_share(point.low)} to {_share(point.high)}"]
            row += [
                "" if point.change is None else f"{100 * point.change:+.1f}",
                "" if point.p is None else f"{point.p:.2g}",
            ]
        rows.append(row)
    lines = [table(titles, rows, right=titles[2:])]
    lines += [f"{model.name} model alone: {_share(model.score)}\n" for model in found.alone]
    lines.append(f"recommended: {found.recommended}{'' if found.is_change else ', as it is'}: {found.reason}.\n")
    lines += [f"warning: {warning}.\n" for warning in found.warnings]
    return "".join(lines)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"
