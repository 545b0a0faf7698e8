"""The llama.cpp library as a process-wide thing: started once, its messages, its devices.

Owns the one log callback and the choice of how many layers go to a GPU. Never holds a model or a context.

1. Nothing native reaches the terminal: every line goes to the logger `edge_nudge.llama`, at its own level.
2. The last lines are kept, so that a failed load can say why in one message.
3. The callback lives as long as the process and never raises into native code.
"""

from __future__ import annotations

import ctypes
import logging
import re
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from edge_nudge.errors import EngineError, InputError

try:
    import llama_cpp
except ImportError as error:
    raise EngineError(
        f"llama-cpp-python cannot be imported ({error}): install it with pip install llama-cpp-python; "
        f"prebuilt wheels are listed in its README"
    ) from error
except (OSError, RuntimeError) as error:  # the binding's own exceptions when its shared library does not load
    raise EngineError(
        f"the llama.cpp library cannot be loaded ({error}): install llama-cpp-python again for this machine"
    ) from error

# A library must not print through logging's last resort when the application has configured nothing.
logging.getLogger("edge_nudge").addHandler(logging.NullHandler())

_DEBUG, _INFO, _WARN, _ERROR, _CONT = 1, 2, 3, 4, 5  # ggml_log_level in ggml.h; the binding's copy is out of date
_LEVELS = {_DEBUG: logging.DEBUG, _INFO: logging.INFO, _WARN: logging.WARNING, _ERROR: logging.ERROR}
_N_KEPT = 50
_N_TOLD = 3  # lines of a failure worth telling; the first says what is wrong
_FUNCTION_PREFIX = re.compile(r"^[A-Za-z_][\w:~]*: +")
_ECHOES = ("failed to load model", "exiting due to model loading error")  # follow the line that says why


class LogRelay:
    """Turns native message fragments into whole lines for `logging`, and keeps the last of them."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._pending = ""
        self._level = logging.INFO
        self._lines: deque[tuple[int, str]] = deque(maxlen=_N_KEPT)
        self._n_lines = 0

    def feed(self, level: int, text: bytes) -> None:
        """Take one fragment; a continuation (level CONT) belongs to the line before it."""
        if level != _CONT:
            self._emit()
            self._level = _LEVELS.get(level, logging.INFO)
        self._pending += text.decode("utf-8", "replace")
        if "\n" in self._pending:
            *whole, self._pending = self._pending.split("\n")
            for line in whole:
                self._keep(line)

    def mark(self) -> int:
        """Return a mark for `since`."""
        self._emit()
        return self._n_lines

    def since(self, mark: int) -> list[tuple[int, str]]:
        """Return (level, line) of what came after the mark, as far as it is kept."""
        self._emit()
        n_new = self._n_lines - mark
        return list(self._lines)[-n_new:] if n_new > 0 else []

    def reason(self, mark: int) -> str:
        """Return the telling lines of a failure that began at the mark, as one readable text."""
        lines = self.since(mark)
        for least in (logging.ERROR, logging.WARNING):
            texts = [_FUNCTION_PREFIX.sub("", line).strip() for level, line in lines if level >= least]
            telling = [text for text in dict.fromkeys(texts) if text and not text.startswith(_ECHOES)]
            if telling:
                return "; ".join(telling[:_N_TOLD])
        return "llama.cpp gave no reason"

    def _emit(self) -> None:
        line, self._pending = self._pending, ""
        if line:
            self._keep(line)

    def _keep(self, line: str) -> None:
        line = line.rstrip()
        if not line:
            return
        self._lines.append((self._level, line))
        self._n_lines += 1
        if self._logger.isEnabledFor(self._level):
            self._logger.log(self._level, "%s", line)


log = logging.getLogger("edge_nudge.engine")
relay = LogRelay(logging.getLogger("edge_nudge.llama"))


def _on_message(level: int, text: bytes | None, _user_data: object) -> None:
    # ctypes prints what a callback raises to stderr, and at interpreter exit modules are half gone.
    if sys.is_finalizing() or text is None:
        return
    try:
        relay.feed(level, text)
    except KeyboardInterrupt:  # a signal came while native code was calling us: it belongs to that call
        _held_interrupts.append(level)
    except Exception:
        return


_held_interrupts: list[int] = []


def raise_held_interrupt() -> None:
    """Raise KeyboardInterrupt if one came inside the log callback since the last time."""
    if _held_interrupts:
        _held_interrupts.clear()
        raise KeyboardInterrupt


_callback = llama_cpp.llama_log_callback(_on_message)  # must outlive every native call: a module global


def log_callback() -> Any:
    """Return the callback object that native code calls; for tests."""
    return _callback


@cache
def start() -> None:
    """Start the library, once in a process."""
    # Importing the binding installed its own callback, which prints errors to stderr.
    llama_cpp.llama_log_set(_callback, None)
    llama_cpp.llama_backend_init()


@cache
def can_repack() -> bool:
    """Tell whether weights may be repacked for this processor; False where that would use AMX.

    GCC before 13 drops most of the stores to the AMX tile configuration (its `_tile_loadconfig` declares 8 of 64
    bytes as read), so a library compiled with it on such a machine crashes at the first prompt. Nothing tells a
    sound build from that one without crashing. Without repacking batches are also closer to single steps.
    """
    start()
    has_amx = b"AMX_INT8 = 1" in llama_cpp.llama_print_system_info()
    if has_amx:
        log.info("weights are not repacked: this build of llama.cpp uses AMX, which some compilers break")
    return not has_amx


@cache
def build() -> str:
    """Say which llama.cpp computes, for what kind of processor it was compiled, and on which GPUs it can."""
    start()
    system = llama_cpp.llama_print_system_info().decode("utf-8", "replace").strip(" |")
    gpus = ", ".join(f"{device.name} ({device.description})" for device in gpu_devices())
    return f"{llama_cpp.llama_version().decode('utf-8', 'replace')}; {system}; {gpus or 'no GPU'}"


@dataclass(frozen=True, slots=True)
class Abilities:
    """What the library was built for; `features` are the processor's, as the library names them."""

    version: str
    features: tuple[str, ...]
    can_offload: bool
    can_rpc: bool
    can_map: bool
    can_lock: bool


def abilities() -> Abilities:
    """Ask the library what it can do."""
    start()
    system = llama_cpp.llama_print_system_info().decode("utf-8", "replace")
    return Abilities(
        llama_cpp.llama_version().decode("utf-8", "replace"),
        tuple(re.findall(r"(\w+) = 1", system)),
        bool(llama_cpp.llama_supports_gpu_offload()),
        bool(llama_cpp.llama_supports_rpc()),
        bool(llama_cpp.llama_supports_mmap()),
        bool(llama_cpp.llama_supports_mlock()),
    )


def prototype(function: Any, restype: Any, *argtypes: Any) -> Callable[..., Any]:
    """Return a binding function under another signature, e.g. an address where it declares a typed pointer.

    A pointer object costs a microsecond to make and to read; its address as an int costs a tenth.
    """
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None
    found: Callable[..., Any] = ctypes.CFUNCTYPE(restype, *argtypes)(address)
    return found


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU as the library names it; `free_bytes` is 0 where the driver does not say.

    `is_shared`: its memory is the RAM (integrated graphics, Apple silicon).
    """

    name: str
    description: str
    free_bytes: int
    total_bytes: int
    is_shared: bool = False


@dataclass(frozen=True, slots=True)
class Offload:
    """How many layers go to a GPU (-1: all) and the sentence that says why."""

    n_gpu_layers: int
    sentence: str


_DEVICE_IS_GPU = (1, 2)  # GGML_BACKEND_DEVICE_TYPE_GPU, _IGPU
_INTEGRATED = 2
_MOST_LAYERS = 10_000
_ROOM = 1.15  # weights plus cache and compute buffers, roughly: for a model alone; a pair is planned (memory.py)


def gpu_devices() -> list[Device]:
    """Return the GPUs the library has found; empty where it has none or cannot be asked."""
    start()
    if not llama_cpp.llama_supports_gpu_offload():
        return []
    try:
        # The binding wraps nothing of ggml; its handle of the library is all there is.
        from llama_cpp._ggml import libggml as lib

        lib.ggml_backend_dev_count.restype = ctypes.c_size_t
        lib.ggml_backend_dev_get.restype = ctypes.c_void_p
        lib.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
        return [
            _describe(lib, device)
            for device in map(lib.ggml_backend_dev_get, range(lib.ggml_backend_dev_count()))
            if lib.ggml_backend_dev_type(ctypes.c_void_p(device)) in _DEVICE_IS_GPU
        ]
    except (ImportError, AttributeError, OSError) as error:
        log.info("the GPUs cannot be listed: %s", error)
        return []


def _describe(lib: Any, device: int) -> Device:
    handle = ctypes.c_void_p(device)
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    lib.ggml_backend_dev_name.restype = lib.ggml_backend_dev_description.restype = ctypes.c_char_p
    lib.ggml_backend_dev_memory(handle, ctypes.byref(free), ctypes.byref(total))
    name = lib.ggml_backend_dev_name(handle).decode("utf-8", "replace")
    return Device(
        name,
        lib.ggml_backend_dev_description(handle).decode("utf-8", "replace"),
        free.value,
        total.value,
        # Metal calls every device a GPU; on the machines that have it the memory is one.
        lib.ggml_backend_dev_type(handle) == _INTEGRATED or name.startswith(("Metal", "MTL")),
    )


def choose_offload(n_gpu_layers: int | None, file_bytes: int, *, is_chosen: bool = False) -> Offload:
    """Decide how many layers go to a GPU; None asks for the automatic choice of all or none.

    `is_chosen`: the number is what fits (engine/memory.py), not what somebody asked for.
    Raises InputError for an impossible number, EngineError where layers are asked for and cannot be moved.
    """
    start()
    if n_gpu_layers is not None and not 0 <= n_gpu_layers <= _MOST_LAYERS:
        raise InputError(f"{n_gpu_layers} GPU layers is not a number from 0 to {_MOST_LAYERS}: use 99 for all layers")
    can_offload = bool(llama_cpp.llama_supports_gpu_offload())
    if n_gpu_layers == 0:
        why = "not one layer fits beside the other model" if is_chosen else "0 layers were asked for"
        return Offload(0, f"no GPU offload: {why}")
    if not can_offload:
        if n_gpu_layers is None:
            return Offload(0, "no GPU offload: this build of llama-cpp-python has none, or finds no GPU")
        raise EngineError(
            f"{n_gpu_layers} GPU layers were asked for, but this build of llama-cpp-python cannot offload, or finds "
            f"no GPU: install a CUDA, Metal or Vulkan wheel of llama-cpp-python, or ask for 0 layers"
        )
    devices = gpu_devices()
    names = ", ".join(f"{device.name} ({device.description})" for device in devices) or "the device llama.cpp finds"
    if n_gpu_layers is not None:
        why = "layers fit" if is_chosen else "layers were asked for"
        return Offload(n_gpu_layers, f"GPU offload: {n_gpu_layers} {why}, on {names}")
    free = sum(device.free_bytes for device in devices)
    if not devices:
        return Offload(0, "no GPU offload: the build can, but no GPU was found")
    if free and file_bytes * _ROOM > free:
        return Offload(
            0,
            f"no GPU offload: the weights are {file_bytes / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free on "
            f"{names}: give a number of layers to move a part",
        )
    return Offload(-1, f"GPU offload: all layers, on {names}")
