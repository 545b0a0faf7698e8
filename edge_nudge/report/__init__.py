"""Pages made from traces: what was written by whom, and why."""
