"""What a shell offers where a pair's name is typed."""

from __future__ import annotations

import click


def complete_pairs(context: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the pairs whose names begin with what is typed."""
    from edge_nudge.catalog.manifest import list_manifests

    return [name for name in list_manifests() if name.startswith(incomplete)]
