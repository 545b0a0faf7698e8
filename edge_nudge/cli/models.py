"""`edge-nudge list`, `show` and `rm`: which models there are, what one is, and taking one away again.

Owns the order in each command. Never loads a model: of files only headers are read. What is shown is put together in
inventory.py.

1. Names and metadata come from others: control characters in them are written out, and escaped in JSON.
2. A broken or hostile file is shown as such and never ends a list.
3. Only what this program fetched is removed, after a yes.
"""

from __future__ import annotations

import sys
from typing import Any

import click

from edge_nudge.cli import streams
from edge_nudge.cli.columns import facts, table
from edge_nudge.cli.interrupts import Interrupts
from edge_nudge.cli.names import complete_fetched, complete_pairs_or_files
from edge_nudge.cli.render import is_terminal
from edge_nudge.cli.verbosity import show_log
from edge_nudge.core.visible import one_line
from edge_nudge.document import to_json
from edge_nudge.errors import InputError

_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
_VERBOSE = click.option("-v", "--verbose", count=True, help="Show what happens on stderr; -vv: more of it.")
_NONE = "-"


@click.command("list", short_help="Pairs and model files: what is here, what is not.")
@click.option("-a", "--all", "is_all", is_flag=True, help="Also the model files that other programs hold.")
@_JSON
@_VERBOSE
def list_models(is_all: bool, as_json: bool, verbose: int) -> None:
    """List the pairs, and the model files that edge-nudge fetched.

    MEMORY is about what both models of a pair take with a context of 4096 tokens each. TO FETCH is what is not on
    this machine yet; 'edge-nudge pull PAIR' gets it.

    With --all also the GGUF files in the stores of Ollama, LM Studio, llama.cpp and the Hugging Face cache, which are
    used where they lie: -m and --nudge take the name in the first column. KIND is a guess from names and chat
    template, with its reason; only headers are read.

    Your own pairs are files NAME.toml in the folder models of the configuration folder.

    Reads headers and remembered hashes; writes nothing.

    \b
    Example: edge-nudge list --all
    """
    show_log(verbose)
    from edge_nudge.cli import inventory

    with Interrupts():
        document: dict[str, Any] = {"pairs": inventory.pairs(), "files": inventory.own_files()}
        if is_all:
            document["found"] = inventory.found_files()
        if as_json:
            streams.write_out(to_json(document) + "\n")
        else:
            streams.write_out(_list_text(document))


@click.command(short_help="What a pair or a model file is.")
@click.argument("name", metavar="NAME|FILE", shell_complete=complete_pairs_or_files)
@_JSON
@_VERBOSE
def show(name: str, as_json: bool, verbose: int) -> None:
    """Show what a pair or one model file is: where it comes from, licence, figures, memory; or what its header says.

    FILE is a path, user/repo:QUANT from the Hugging Face cache, ollama:name:tag, or a name that 'edge-nudge list'
    shows. Only the header of a file is read.

    \b
    Examples:
      edge-nudge show demo
      edge-nudge show ollama:smollm2:135m
    """
    show_log(verbose)
    from edge_nudge.cli import inventory

    with Interrupts():
        document = inventory.one(name)
        if as_json:
            streams.write_out(to_json(document) + "\n")
        else:
            streams.write_out(facts(inventory.facts_of(document)))


@click.command("rm", short_help="Remove models that edge-nudge fetched.")
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete_fetched)
@click.option("-y", "--yes", is_flag=True, help="Remove without asking.")
@_JSON
@_VERBOSE
def remove(names: tuple[str, ...], yes: bool, as_json: bool, verbose: int) -> None:
    """Remove the files of each NAME: a pair, user/repo:QUANT, or a file that 'edge-nudge list' shows.

    Only what edge-nudge fetched is removed, and no file that another complete pair needs.

    Asks first; where nobody can be asked, --yes is needed, and the exit code without it is 2.

    \b
    Example: edge-nudge rm --yes demo
    """
    show_log(verbose)
    from edge_nudge.catalog import removing
    from edge_nudge.catalog.files import megabytes

    with Interrupts():
        plans = [removing.plan_removal(name) for name in dict.fromkeys(names)]
        for plan in plans:
            for path, why in plan.kept:
                streams.tell(one_line(f"{path} stays: {why}"))
        files = dict.fromkeys(path for plan in plans for path in plan.files)
        if not files:
            streams.tell("there is nothing to remove")
        else:
            _ask([f"{path}  {megabytes(path.stat().st_size)}" for path in files], is_sure=yes)
        freed = sum(removing.remove(path) for path in files)
        if as_json:
            removed = [str(path) for path in files]
            kept = [{"path": str(path), "why": why} for plan in plans for path, why in plan.kept]
            streams.write_out(to_json({"removed": removed, "kept": kept, "freed_bytes": freed}) + "\n")
        elif files:
            streams.tell(f"removed {len(files)} file{'s' if len(files) > 1 else ''}, {megabytes(freed)} are free again")


def _ask(lines: list[str], *, is_sure: bool) -> None:
    if is_sure:
        return
    for line in lines:
        streams.tell(one_line(f"  {line}"))
    what = "this file" if len(lines) == 1 else f"these {len(lines)} files"
    if not (is_terminal(sys.stdin) and is_terminal(sys.stderr)):
        raise InputError(f"{what} would be removed, and nobody can be asked here: give --yes")
    if not click.confirm(f"Remove {what}?", default=False, err=True):
        raise InputError("nothing was removed: the answer was no")


def _list_text(document: dict[str, Any]) -> str:
    from edge_nudge.cli.inventory import size_text

    rows = [
        (
            pair["name"],
            "broken" if pair["fault"] else "yes" if pair["is_complete"] else "in part" if pair["n_here"] else "no",
            size_text(pair["fetch_bytes"], is_rounded=True) if not pair["is_complete"] else _NONE,
            size_text(pair["memory_bytes"], is_rounded=True),
            pair["fault"] or pair["title"],
        )
        for pair in document["pairs"]
    ]
    text = table(("PAIR", "HERE", "TO FETCH", "MEMORY", "WHAT"), rows, right=("TO FETCH", "MEMORY"))
    if document["files"]:
        own = [(file["name"], size_text(file["size_bytes"]), ", ".join(file["pairs"])) for file in document["files"]]
        text += "\n" + table(("FETCHED FILE", "SIZE", "PAIRS"), own, right=("SIZE",))
    if "found" in document:
        found = [
            (
                file["name"],
                file["store"],
                file["architecture"] or _NONE,
                file["quantization"] or _NONE,
                size_text(file["size_bytes"]),
                _kind_text(file),
            )
            for file in document["found"]
        ]
        titles = ("FOUND FILE", "OF", "ARCH", "QUANT", "SIZE", "KIND")
        text += "\n" + (table(titles, found, right=("SIZE",)) if found else "no model files of other programs found\n")
    return text


def _kind_text(file: dict[str, Any]) -> str:
    if file["fault"]:
        return f"broken: it {file['fault']}"
    if file["unusable"]:
        return f"cannot be used: it {file['unusable']}"
    return f"{file['kind']}: {file['why']}"
