"""`edge-nudge estimate`: what a pair needs in memory, and whether that is there.

Owns the order of things in this command and its JSON object. Never loads a model, unless it is to be measured.

1. The exit code is 0 where the pair fits and 6 where it does not, as `run` would end.
2. The table goes to stdout: it is what was asked for.
3. Nothing is fetched: of a pair that is not here the manifest says about how much it needs, and that is said.
4. Ctrl-C leaves at once; a process that was being measured ends with this one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from edge_nudge.cli import needs, options, streams
from edge_nudge.cli.configured import Configured
from edge_nudge.cli.verbosity import show_log
from edge_nudge.core.events import Role
from edge_nudge.core.visible import visible
from edge_nudge.document import to_json
from edge_nudge.errors import FetchError, InputError, NoRoomError

if TYPE_CHECKING:
    from edge_nudge.catalog.fields import PairManifest
    from edge_nudge.catalog.store import Wanted
    from edge_nudge.engine.fitting import Plan
    from edge_nudge.runtime import PairSpec


@click.command(cls=Configured, short_help="Say how much memory a pair needs.")
@options.file_options
@options.size_options
@click.option("--measure", is_flag=True, help="Also load and use the pair in a process of its own; show its peak.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("-v", "--verbose", count=True, help="Show what happens on stderr; -vv: llama.cpp's lines too.")
@click.pass_context
def estimate(context: click.Context, /, **values: Any) -> None:
    """Say how much memory a pair needs, and whether it is there.

    Both models are counted together, for each device: weights, caches at the real context, compute buffers, rows of
    scores, vocabularies. The context is never more than a model was trained for. Where the pair does not fit, settings
    with which it does are proposed. Nothing is loaded or fetched: for a pair that is not here the figures are about
    right, from its manifest, for a CPU.

    \b
    Exit codes:
      0  the pair fits
      6  it does not fit
      4  it is not here, and --measure is given, or its manifest does not say how large it is

    \b
    Example: edge-nudge estimate --pair llama-3-8b -c 8192
    """
    show_log(values["verbose"])
    options.check_text(context)
    try:
        absent = needs.not_here(values)
        if absent is not None:
            _tell_absent(context, *absent, values)
            return
        spec, plan = _plan(values)
    except InputError as error:
        raise options.in_users_terms(error, context) from None
    peak = _measured(spec, values) if values["measure"] else None
    streams.write_out(_json(plan, peak) if values["as_json"] else _text(plan, peak))
    if not plan.estimate.fits:
        context.exit(NoRoomError.exit_code)


def sizes(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of spec.plan_load from the options, with the defaults of loading."""
    from edge_nudge import runtime

    return {
        "ctx_size": runtime.DEFAULT_CTX_SIZE if values["ctx_size"] is None else values["ctx_size"],
        "kv_types": {role: values[f"{name}_kv_type"] or runtime.DEFAULT_KV_TYPE for role, name in _NAMES.items()},
        "gpu_layers": {role: values[f"{name}_gpu_layers"] for role, name in _NAMES.items()},
    }


_NAMES = {Role.BASE: "base", Role.NUDGING: "nudge"}


def _plan(values: Mapping[str, Any]) -> tuple[PairSpec, Plan]:
    from edge_nudge import runtime
    from edge_nudge.spec import plan_load

    runtime.check_load_settings(values["ctx_size"], None, values["base_gpu_layers"], values["nudge_gpu_layers"])
    spec = runtime.find_pair(
        values["pair"], base=values["base"], nudging=values["nudge"], adapter=values["nudge_lora"], say=streams.tell
    )
    return spec, plan_load(spec, **sizes(values))


def _tell_absent(
    context: click.Context, manifest: PairManifest, missing: list[Wanted], values: Mapping[str, Any]
) -> None:
    """Print what the manifest says of a pair that is not here."""
    from edge_nudge.cli import absent

    remedy = needs.how_to_get(manifest, missing)
    if values["measure"]:
        raise FetchError(f"the {manifest.name} pair is not here and cannot be measured: {remedy}")
    asked = sizes(values)
    found = absent.estimate_of(manifest, asked["ctx_size"], asked["kv_types"])
    if found is None:
        raise FetchError(
            f"the {manifest.name} pair is not here, and its manifest does not say how large it is: {remedy}"
        )
    document = found.document([wanted.role for wanted in missing])
    streams.write_out(to_json(document) + "\n" if values["as_json"] else found.text(remedy))
    if not found.fits:
        context.exit(NoRoomError.exit_code)


def _measured(spec: PairSpec, values: Mapping[str, Any]) -> int:
    from edge_nudge.bench.peak import measure_peak

    names = ("ctx_size", "base_gpu_layers", "nudge_gpu_layers", "base_kv_type", "nudge_kv_type")
    return measure_peak(spec, {name: values[name] for name in names if values[name] is not None})


def _text(plan: Plan, peak: int | None) -> str:
    from edge_nudge.engine.memory import RAM, advice, described, mebibytes, table

    found = plan.estimate
    lines = [described(role, load, plan.headers[role].quantization) for role, load in found.loads.items()]
    lines += ["", *table(found), "", *(advice(found, plan.asked) or ["It fits."])]
    if peak is not None:
        needed = next(room.needed_bytes for room in found.rooms if room.device == RAM)
        lines.append(f"Measured peak in RAM: {mebibytes(peak)}; the estimate is {needed / peak - 1:+.1%} of it.")
    return "".join(f"{visible(line)}\n" for line in lines)


def _json(plan: Plan, peak: int | None) -> str:
    return to_json({**estimate_document(plan), "measured_peak_bytes": peak}) + "\n"


def estimate_document(plan: Plan) -> dict[str, Any]:
    """Return a plan as an object; sizes in bytes."""
    from edge_nudge.engine.memory import propose

    found = plan.estimate
    models = {
        role.value: {
            "file": load.footprint.name,
            "quantization": plan.headers[role].quantization,
            "n_ctx": load.n_ctx,
            "n_ctx_train": load.footprint.n_ctx_train,
            "kv_type": load.kv_type,
            "gpu_layers": load.n_offloaded,
            "layers": load.footprint.n_layers + 1,
        }
        for role, load in found.loads.items()
    }
    return {
        "fits": found.fits,
        "source": "files",
        "missing": [],
        "models": models,
        "parts": [
            {"model": part.role and part.role.value, "device": part.device, "what": part.what, "bytes": part.n_bytes}
            for part in found.parts
        ],
        "devices": [
            {"device": room.device, "needed_bytes": room.needed_bytes, "free_bytes": room.free_bytes,
             "limited_by": room.reason, "fits": room.fits}
            for room in found.rooms
        ],
        "proposals": [] if found.fits else [proposal.options for proposal in propose(found, plan.asked)],
    }  # fmt: skip
