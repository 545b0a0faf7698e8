"""LoRA adapters: whether one belongs to a base model, before the native loader sees it.

Owns the check of the header. Never loads an adapter; loading.py does.

1. With an adapter a pair is one file of weights: the base model as it is, and the nudging model as the same weights
   with the adapter added while they are multiplied.
2. An adapter is made for one model. Its architecture must be that model's, and every tensor it changes must be there.
"""

from __future__ import annotations

from pathlib import Path

from edge_nudge.engine.gguf import GgufHeader, quoted, read_model_file
from edge_nudge.errors import ModelFileError

_PAIR = (".lora_a", ".lora_b")


def check_adapter(path: Path, base: GgufHeader) -> GgufHeader:
    """Return the header of a LoRA adapter for `base`. Raises ModelFileError."""
    header = read_model_file(path, role="adapter")
    reason = _why_unusable(header, base)
    if reason:
        raise ModelFileError(f"adapter file {quoted(header.path)} {reason}")
    return header


def _why_unusable(header: GgufHeader, base: GgufHeader) -> str | None:
    of = header.metadata.get
    if of("general.type") != "adapter" or of("adapter.type") != "lora":
        return "is not a LoRA adapter; convert one with llama.cpp's convert_lora_to_gguf.py"
    if header.architecture != base.architecture:
        return f'is for the architecture "{header.architecture}", the base model has "{base.architecture}"'
    if "adapter.alora.invocation_tokens" in header.per_layer:
        return "is switched on by certain tokens (aLoRA), which is not supported; get a plain LoRA adapter"
    changed = {name.removesuffix(end) for name in header.tensors for end in _PAIR if name.endswith(end)}
    if not changed:
        return "changes nothing: it has no pair of tensors .lora_a and .lora_b"
    strange = sorted(changed - base.tensors.keys())
    if strange:
        return f"changes {strange[0]}, which the base model {quoted(base.path)} does not have: it is for another model"
    return None
