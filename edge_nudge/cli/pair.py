"""`edge-nudge pair check`: whether two files work together, and why.

Owns the order of things in this command, the verdict, its exit code and its JSON object. Never judges a model: that is
done in engine/pairing.py.

1. The exit code is 0 where the pair works, 5 where it works with warnings, 1 where it does not, 4 where a model of it
   is not here: nothing is fetched, and a finding says how to get it.
2. A file that cannot be used is a finding like others: the other file is still looked at.
3. Weights are loaded only with --try, and only where nothing speaks against it.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from edge_nudge.cli import needs, opening, options, streams
from edge_nudge.cli.configured import Configured
from edge_nudge.cli.estimate import sizes
from edge_nudge.cli.interrupts import Interrupts
from edge_nudge.cli.render import is_terminal
from edge_nudge.cli.verbosity import show_log
from edge_nudge.core.events import Role
from edge_nudge.core.visible import one_line
from edge_nudge.document import to_json
from edge_nudge.errors import EdgeNudgeError, InputError

if TYPE_CHECKING:
    from edge_nudge.catalog.fields import PairManifest
    from edge_nudge.catalog.store import Wanted
    from edge_nudge.engine.gguf import GgufHeader
    from edge_nudge.engine.pairing import Finding
    from edge_nudge.runtime import PairSpec

WORKS, WARNS, FAILS, ABSENT = 0, 5, 1, 4
_VERDICTS = {WORKS: "works", WARNS: "works, with warnings", FAILS: "does not work", ABSENT: "is not here"}
_MISSING = "missing file"
TRIED = ("What is photosynthesis?", "Write a short poem about the sea.", "How do I boil an egg? Give me the steps.")
N_TRIED = 60  # tokens of each answer


@click.group(short_help="Check whether two models work together.", invoke_without_command=True)
@click.pass_context
def pair(context: click.Context) -> None:
    """Check whether two models work together.

    \b
    Example: edge-nudge pair check --pair demo
    """
    if context.invoked_subcommand is None:
        raise click.UsageError("which command? There is: check")


@pair.command(cls=Configured, short_help="Say whether two models work together, and why.")
@options.model_options
@click.option("--try", "is_tried", is_flag=True, help="Also load the pair and measure the nudging ratio of 3 answers.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("-v", "--verbose", count=True, help="Show what happens on stderr; -vv: llama.cpp's lines too.")
@click.pass_context
def check(context: click.Context, /, **values: Any) -> None:
    """Say whether two models work together, and why.

    Looks at architectures, vocabularies, the chat template (which renders a conversation), the tokens that begin and
    end a text, thinking, whether words can be taken back, and memory. Weights are loaded only with --try.

    \b
    Exit codes:
      0  the pair works
      5  it works, with warnings
      1  it does not work
      4  a model of it is not on this machine; nothing is fetched

    \b
    Example: edge-nudge pair check -m base.gguf --nudge ollama:smollm2:135m --try
    """
    show_log(values["verbose"])
    options.check_text(context)
    with Interrupts() as interrupts:
        try:
            findings, tried = _check(context, {**values, "color": "auto"}, interrupts)
        except InputError as error:
            raise options.in_users_terms(error, context) from None
    code = verdict(findings)
    streams.write_out(_json(findings, tried, code) if values["as_json"] else _text(findings, code))
    context.exit(code)


def verdict(findings: Sequence[Finding]) -> int:
    """Return the exit code."""
    levels = {finding.level for finding in findings}
    if any(finding.topic == _MISSING for finding in findings):
        return ABSENT
    return FAILS if "fault" in levels else WARNS if "warning" in levels else WORKS


def _check(
    context: click.Context, values: Mapping[str, Any], interrupts: Interrupts
) -> tuple[list[Finding], dict[str, Any] | None]:
    from edge_nudge import runtime

    layers = values["base_gpu_layers"], values["nudge_gpu_layers"]
    runtime.check_load_settings(values["ctx_size"], values["threads"], *layers)
    with interrupts.at_once():  # large files are read for their hashes, once
        absent = needs.not_here(values)
    if absent is not None:
        return _missing(*absent, values), None
    spec = runtime.find_pair(
        values["pair"], base=values["base"], nudging=values["nudge"], adapter=values["nudge_lora"],
        base_prompt_format=values["base_prompt_format"], say=streams.tell,
    )  # fmt: skip
    with interrupts.at_once():
        findings = _about(spec, values)
    tried = None
    if values["is_tried"] and verdict(findings) != FAILS:
        tried, more = _try(context, values, interrupts)
        findings.append(more)
    return findings, tried


def _missing(manifest: PairManifest, missing: list[Wanted], values: Mapping[str, Any]) -> list[Finding]:
    """Say what is not here, how it is got, and about how much memory the pair will need."""
    from edge_nudge.cli.absent import estimate_of
    from edge_nudge.engine.memory import mebibytes
    from edge_nudge.engine.pairing import Finding

    remedy = needs.how_to_get(manifest, missing)
    findings = [
        Finding("fault", _MISSING, wanted.role, f"{wanted.model.file} is not on this machine") for wanted in missing
    ]
    findings.append(Finding("note", "remedy", None, f"{remedy}; then check again"))
    asked = sizes(values)
    found = estimate_of(manifest, asked["ctx_size"], asked["kv_types"])
    if found is not None:
        free = "unknown" if found.room_bytes is None else mebibytes(found.room_bytes)
        text = f"about {mebibytes(found.needed_bytes)} needed by the manifest, {free} free"
        findings.append(Finding("ok" if found.fits else "warning", "memory", None, text))
    return findings


def _about(spec: PairSpec, values: Mapping[str, Any]) -> list[Finding]:
    from edge_nudge.engine.gguf import check_model_file
    from edge_nudge.engine.llama import LlamaBackend
    from edge_nudge.engine.pairing import Finding, check_pair

    findings: list[Finding] = []
    headers: dict[Role, GgufHeader] = {}
    models: dict[Role, LlamaBackend] = {}
    with ExitStack() as stack:
        for role, path in ((Role.BASE, spec.base), (Role.NUDGING, spec.nudging)):
            try:
                header = check_model_file(path, role=role.value)
                model = stack.enter_context(LlamaBackend(header.path, n_ctx=64, n_threads=1, vocab_only=True))
            except EdgeNudgeError as error:
                findings.append(Finding("fault", "file", role, str(error)))
                continue
            headers[role], models[role] = header, model
        if len(models) < len(Role):
            return findings
        found = check_pair(
            headers,
            models,
            base_prompt_format=spec.base_prompt_format,
            chat_template=spec.chat_template,
            has_adapter=spec.nudging_adapter is not None,
        )
        return [*found, _memory(spec, values)]


def _memory(spec: PairSpec, values: Mapping[str, Any]) -> Finding:
    from edge_nudge.engine.memory import advice, mebibytes
    from edge_nudge.engine.pairing import Finding
    from edge_nudge.spec import plan_load

    try:
        plan = plan_load(spec, **sizes(values))
    except EdgeNudgeError as error:
        return Finding("fault", "memory", None, str(error))
    rooms = "; ".join(
        f"{mebibytes(room.needed_bytes)} needed in {room.device}, "
        f"{'unknown' if room.free_bytes is None else mebibytes(room.free_bytes)} free"
        for room in plan.estimate.rooms
    )
    contexts = " and ".join(str(load.n_ctx) for load in plan.estimate.loads.values())
    text = f"{rooms}, at contexts of {contexts} tokens"
    if plan.estimate.fits:
        return Finding("ok", "memory", None, text)
    level = "warning" if values["no_fit_check"] else "fault"
    return Finding(level, "memory", None, f"{text}. {' '.join(advice(plan.estimate, plan.asked))}")  # type: ignore[arg-type]


def _try(context: click.Context, values: Mapping[str, Any], interrupts: Interrupts) -> tuple[dict[str, Any], Finding]:
    """Answer a few prompts and return the nudging ratios, and what there is to say of them."""
    from edge_nudge.engine.pairing import MOST_NUDGED, Finding

    loaded, _ = opening.open_pair(context, values, interrupts)
    answers = []
    n_all = n_nudged = 0
    with loaded:
        for prompt in TRIED:
            answer = loaded.stream(prompt, max_tokens=N_TRIED, temp=0.0)
            with interrupts.asking(answer.cancel):
                usage = answer.finish().usage
            if interrupts.signum is not None:
                context.exit(128 + interrupts.signum)
            n_all += usage.n_completion
            n_nudged += usage.nudging.n_written
            answers.append({"prompt": prompt, "tokens": usage.n_completion, "ratio_tokens": usage.ratio_tokens})
    ratio = n_nudged / max(1, n_all)
    text = f"the nudging model writes {ratio:.0%} of {n_all} tokens in {len(TRIED)} answers"
    if ratio > MOST_NUDGED:
        text += f", more than {MOST_NUDGED:.0%}: try a lower --gamma, or another base model"
    tried = {"ratio_tokens": ratio, "answers": answers}
    return tried, Finding("warning" if ratio > MOST_NUDGED else "ok", "nudging ratio", None, text)


def _text(findings: Sequence[Finding], code: int) -> str:
    width = shutil.get_terminal_size().columns if is_terminal(sys.stdout) else 0
    lines = []
    for finding in findings:
        who = "" if finding.model is None else f"{finding.model.value} model: "
        sentence = one_line(f"{finding.topic}: {who}{finding.text}" if who else f"{finding.topic}: {finding.text}")
        head = f"{finding.level:8}"
        if width > 40:
            lines += textwrap.wrap(sentence, width - 1, initial_indent=head, subsequent_indent=" " * len(head))
        else:
            lines.append(head + sentence)
    return "".join(f"{line}\n" for line in [*lines, f"The pair {_VERDICTS[code]}."])


def _json(findings: Sequence[Finding], tried: Mapping[str, Any] | None, code: int) -> str:
    document = {
        "verdict": _VERDICTS[code],
        "works": code in (WORKS, WARNS),
        "findings": [
            {"level": f.level, "topic": f.topic, "model": f.model and f.model.value, "text": f.text} for f in findings
        ],
        "tried": tried,
    }
    return to_json(document) + "\n"
