"""Measuring: paired trials of a pair, and what a batch costs on this machine."""
