"""Pair manifests (TOML), importable as `edge_nudge.models` so that they travel inside the wheel."""
