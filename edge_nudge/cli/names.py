"""What a shell offers where a name is typed: of pairs, models, files.

Owns the choice of names. Never opens a file: the stores of other programs are listed, nothing in them is read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


def complete_pairs(context: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the pairs whose names begin with what is typed."""
    from edge_nudge.catalog.manifest import list_manifests

    return _items(list_manifests(), incomplete)


def complete_files(context: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Leave it to the shell to complete a path."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


def complete_models(context: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the models of Ollama and the Hugging Face cache that are meant, else leave it to the shell."""
    from edge_nudge.catalog.found import hub_files, ollama_files

    # A name that the shell would cut at a line's end or colour is not offered.
    names = {file.name for store in (ollama_files, hub_files) for file in store() if file.name.isprintable()}
    return _items(sorted(names), incomplete) or complete_files(context, param, incomplete)


def complete_pairs_or_files(context: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the pairs that are meant, else leave it to the shell."""
    return complete_pairs(context, param, incomplete) or complete_files(context, param, incomplete)


def complete_fetched(context: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the pairs and files that can be removed."""
    from edge_nudge.catalog import ledger
    from edge_nudge.catalog.found import own_files
    from edge_nudge.catalog.manifest import list_manifests

    names = [file.name for file in own_files()] + [f"{note.repo}:{note.file}" for note in ledger.notes()]
    return _items((*list_manifests(), *sorted(name for name in names if name.isprintable())), incomplete)


def _items(names: tuple[str, ...] | list[str], incomplete: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    return [CompletionItem(name) for name in names if name.startswith(incomplete)]
