"""The local API: an OpenAI-compatible service on a Unix socket."""
