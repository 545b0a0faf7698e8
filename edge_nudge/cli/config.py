"""`edge-nudge config`: where settings lie, and what they are.

Owns the table of settings and their sources. Never changes one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from edge_nudge.cli import streams
from edge_nudge.cli.columns import table
from edge_nudge.core.visible import one_line
from edge_nudge.document import to_json

if TYPE_CHECKING:
    from edge_nudge.cli.configured import Setting

_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
_NONE = "-"


@click.group(short_help="Show the settings, and where each comes from.", invoke_without_command=True)
@click.pass_context
def config(context: click.Context) -> None:
    """Show the settings, and where each comes from.

    Defaults for the options of run, chat, serve, bench, estimate and pair check are read from the file config.toml in
    the configuration folder, a line each, named as the option:

    \b
        pair = "gemma-3-4b"
        ctx-size = 8192
        stop = ["END"]

    A variable EDGE_NUDGE_<OPTION>, such as EDGE_NUDGE_CTX_SIZE, goes before the file, and the command line before
    both. A benchmark takes the options of its models from there, and none of its answers.

    \b
    Example: edge-nudge config show
    """
    if context.invoked_subcommand is None:
        raise click.UsageError("which command? There is: path, show")


@config.command("path", short_help="Print the path of the settings file.")
@_JSON
def path(as_json: bool) -> None:
    """Print the path of the settings file, whether it is there or not. Nothing is read or written.

    \b
    Example: $EDITOR "$(edge-nudge config path)"
    """
    from edge_nudge.cli.configured import config_path

    file = config_path()
    document = {"path": str(file), "exists": file.is_file()}
    streams.write_out(to_json(document) + "\n" if as_json else f"{one_line(str(file))}\n")


@config.command("show", short_help="Show every setting, and where it comes from.")
@_JSON
def show(as_json: bool) -> None:
    """Show every setting that can be a default, its value, and where it comes from; folders and variables too.

    Reads config.toml and the environment, writes nothing. The exit code is 2 where a value in them cannot be used.

    \b
    Example: EDGE_NUDGE_TEMP=0.7 edge-nudge config show
    """
    document = _document()
    streams.write_out(to_json(document) + "\n" if as_json else _text(document))


def _document() -> dict[str, Any]:
    from edge_nudge.cli import configured, places

    file = configured.config_path()
    settings = configured.read_settings()
    defaults = _defaults()
    return {
        "file": {"path": str(file), "exists": file.is_file()},
        "options": {key: _option(settings.get(name), defaults.get(name)) for key, name in configured.KEYS.items()},
        "folders": {
            folder.name: {
                "path": str(folder.path), "source": folder.source, "variable": folder.variable, "what": folder.what
            }
            for folder in places.folders()
        },
        "variables": places.variables(),
    }  # fmt: skip


def _option(setting: Setting | None, default: Any) -> dict[str, Any]:
    if setting is None:
        return {"value": default, "source": "default", "place": None}
    return {"value": setting.value, "source": setting.source, "place": setting.place}


def _defaults() -> dict[str, Any]:
    """Return what an option is worth that nobody sets; None where the pair, the model or the machine says."""
    from edge_nudge import runtime
    from edge_nudge.cli import options
    from edge_nudge.core.request import build_request

    request = build_request("")
    data = request.model_dump(mode="json")
    flat = {**data, **data["sampling"], **data["nudge"]}
    return {
        **{name: flat[name] for name in options.REQUEST_FIELDS},
        **dict.fromkeys(("base_kv_type", "nudge_kv_type"), runtime.DEFAULT_KV_TYPE),
        **dict.fromkeys(("base_gpu_layers", "nudge_gpu_layers"), "auto"),
        **dict.fromkeys(("no_loop_guard", "no_verify_ahead", "no_fit_check"), False),
        "ctx_size": runtime.DEFAULT_CTX_SIZE,
        "pair": "demo",
    }


def _text(document: dict[str, Any]) -> str:
    file = document["file"]
    options = [
        (key, _shown(option["value"]), option["place"] or option["source"])
        for key, option in document["options"].items()
    ]
    folders = [(name, folder["path"], folder["source"], folder["what"]) for name, folder in document["folders"].items()]
    parts = [
        f"settings file: {one_line(file['path'])}{'' if file['exists'] else ' (not there)'}\n",
        table(("OPTION", "VALUE", "FROM"), options),
        table(("FOLDER", "PATH", "FROM", "WHAT"), folders),
    ]
    if document["variables"]:
        parts.append(table(("VARIABLE", "VALUE"), list(document["variables"].items())))
    return "\n".join(parts)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return ", ".join(map(repr, value)) or _NONE
    return _NONE if value is None else str(value)
