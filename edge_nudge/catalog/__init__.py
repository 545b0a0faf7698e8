"""Pairs: manifests, where their files come from, where they are kept."""
