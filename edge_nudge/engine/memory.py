"""Does a pair fit: what both models need on each device, beside what is free there, and what would fit instead.

Owns the placing of parts on devices, the choice of layers for a GPU, and the proposals. Never loads a model and never
reads a machine: footprint.py has the formulas, devices.py the figures.

1. The base and the nudging model are counted together: each alone may fit where both do not.
2. Weights come from mapped files: two models of one file hold them once. So do a model and itself with an adapter,
   on a GPU as well; both have the same layers there.
3. llama.cpp gives a GPU the last layers of a model, the output first of all; several GPUs share them by free memory.
4. A proposal has been estimated and fits. Order: fewer layers on a GPU, a smaller type of cache, a smaller context.
5. A GPU gets a nudging model whole if it fits, and then as many layers of the base model as fit.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from edge_nudge.core.events import Role
from edge_nudge.engine.devices import Gpu, Machine
from edge_nudge.engine.footprint import N_ROWS, Footprint
from edge_nudge.errors import NoRoomError

RAM = "RAM"
WEIGHTS, CACHE, COMPUTE, SCORES, VOCABULARY = "weights", "KV cache", "compute buffers", "scores", "vocabulary"
PROGRAM, DRIVER = "program", "driver"
# Python, llama.cpp's code and what a request adds, measured; what a GPU's driver takes in it, a guess on the safe side.
PROGRAM_BYTES, DRIVER_BYTES = 88 << 20, 400 << 20
LEAST_CTX = 512  # of a proposal


@dataclass(frozen=True, slots=True)
class Load:
    """One model and how it is to be loaded; `n_gpu_layers` counts the output as one."""

    footprint: Footprint
    file: str  # two models of one file share its pages
    ctx_size: int
    kv_type: str = "f16"
    n_gpu_layers: int = 0
    adapter_bytes: int = 0  # above 0: the model shares weights and vocabulary with the other one of the same file

    @property
    def n_ctx(self) -> int:
        return self.footprint.n_ctx(self.ctx_size)

    @property
    def n_offloaded(self) -> int:
        """Layers that really go to a GPU, the output among them."""
        return min(self.n_gpu_layers, self.footprint.n_layers + 1)


Loads = Mapping[Role, Load]


@dataclass(frozen=True, slots=True)
class Part:
    """Something that needs memory on a device; `role` None: of the program itself."""

    role: Role | None
    device: str
    what: str
    n_bytes: int


@dataclass(frozen=True, slots=True)
class Room:
    """One device: what is needed there and what is free; None where nobody says."""

    device: str
    needed_bytes: int
    free_bytes: int | None
    reason: str

    @property
    def fits(self) -> bool:
        return self.free_bytes is None or self.needed_bytes <= self.free_bytes


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a pair needs on a machine."""

    loads: Loads
    machine: Machine
    parts: tuple[Part, ...]

    @property
    def rooms(self) -> tuple[Room, ...]:
        """Return each device that something is needed on, RAM first."""
        shared = {gpu.name for gpu in self.machine.gpus if gpu.is_shared}
        needed = {RAM: sum(part.n_bytes for part in self.parts if part.device in {RAM, *shared})}
        rooms = [Room(RAM, needed[RAM], self.machine.room_bytes, self.machine.room_reason)]
        for gpu in self.machine.gpus:
            on_gpu = sum(part.n_bytes for part in self.parts if part.device == gpu.name)
            if on_gpu:
                rooms.append(Room(gpu.name, on_gpu, gpu.free_bytes or None, f"free on {gpu.description}"))
        return tuple(rooms)

    @property
    def fits(self) -> bool:
        return all(room.fits for room in self.rooms)

    @property
    def spare_bytes(self) -> int | None:
        """What is left of RAM beside the pair; None where nobody says what is free."""
        room = self.rooms[0]
        return None if room.free_bytes is None else max(0, room.free_bytes - room.needed_bytes)

    def bytes_of(self, device: str, what: str, role: Role | None) -> int:
        return sum(p.n_bytes for p in self.parts if (p.device, p.what, p.role) == (device, what, role))


def estimate(loads: Loads, machine: Machine) -> Estimate:
    """Return what the pair needs on the machine, part by part."""
    parts: list[Part] = [Part(None, RAM, PROGRAM, PROGRAM_BYTES)]
    files: set[str] = set()
    for role, load in loads.items():
        parts += _parts(role, load, machine.gpus, is_mapped_already=load.file in files)
        files.add(load.file)
    used = {part.device for part in parts}
    parts += [
        Part(None, gpu.name, DRIVER, DRIVER_BYTES) for gpu in machine.gpus if gpu.name in used and not gpu.is_shared
    ]
    return Estimate(dict(loads), machine, tuple(parts))


def _parts(role: Role, load: Load, gpus: Sequence[Gpu], *, is_mapped_already: bool) -> Iterator[Part]:
    shape, n_ctx = load.footprint, load.n_ctx
    places = _places(load, gpus)
    weights: dict[str, int] = {RAM: shape.input_bytes}
    cache: dict[str, int] = {}
    for layer, device in enumerate(places[:-1]):
        weights[device] = weights.get(device, 0) + shape.layer_bytes[layer]
        cache[device] = cache.get(device, 0) + shape.cache_bytes(layer, n_ctx, load.kv_type)
    output = places[-1]
    on_output = shape.output_bytes + (shape.input_bytes if shape.is_tied and output != RAM else 0)
    weights[output] = weights.get(output, 0) + on_output
    if is_mapped_already:
        weights[RAM] = 0
    if load.adapter_bytes:  # not mapped: its own, and nothing again of the model's
        weights = {output: load.adapter_bytes}
    yield from (Part(role, device, WEIGHTS, n) for device, n in weights.items() if n)
    yield from (Part(role, device, CACHE, n) for device, n in cache.items() if n)
    if shape.checkpoint_bytes:
        yield Part(role, RAM, CACHE, shape.checkpoint_bytes)
    for device in sorted({*places} - {RAM}):
        yield Part(role, device, COMPUTE, shape.reserved_bytes(n_ctx))
    yield Part(role, RAM, COMPUTE, shape.touched_bytes(n_ctx) if RAM in places else shape.inputs_bytes(n_ctx))
    yield Part(role, RAM, SCORES, N_ROWS * shape.row_bytes)
    if not load.adapter_bytes:
        yield Part(role, RAM, VOCABULARY, shape.vocabulary_bytes)


def _places(load: Load, gpus: Sequence[Gpu]) -> list[str]:
    """Return the device of each layer and, last, of the output."""
    n_all = load.footprint.n_layers + 1
    n_on_gpu = load.n_offloaded if gpus else 0
    if not n_on_gpu:
        return [RAM] * n_all
    shares = list(accumulate(max(gpu.free_bytes, 1) for gpu in gpus))
    ends = [share / shares[-1] for share in shares]
    first = n_all - n_on_gpu
    on_gpus = [gpus[min(bisect_right(ends, i / n_on_gpu), len(gpus) - 1)].name for i in range(n_on_gpu)]
    return [RAM] * first + on_gpus


def choose_layers(loads: Loads, machine: Machine, asked: Mapping[Role, int | None]) -> Loads:
    """Return the loads with a number of GPU layers where none was asked for: as many as fit, nudging model first."""
    chosen = {role: replace(load, n_gpu_layers=asked[role] or 0) for role, load in loads.items()}
    if not machine.gpus:
        return chosen
    if loads[Role.NUDGING].adapter_bytes:
        return _with_most_shared_layers(chosen, machine) if asked[Role.BASE] is None else _shared(chosen)
    for role in (Role.NUDGING, Role.BASE):
        if asked[role] is None:
            chosen = _with_most_layers(chosen, role, machine)
    return chosen


def _shared(loads: Loads, n_layers: int | None = None) -> dict[Role, Load]:
    """Give both models the same layers: those of the base model where no number is given."""
    n_layers = loads[Role.BASE].n_gpu_layers if n_layers is None else n_layers
    return {role: replace(load, n_gpu_layers=n_layers) for role, load in loads.items()}


def _with_most_shared_layers(loads: Loads, machine: Machine) -> dict[Role, Load]:
    for n_layers in range(loads[Role.BASE].footprint.n_layers + 1, 0, -1):
        if all(room.fits for room in estimate(_shared(loads, n_layers), machine).rooms[1:]):
            return _shared(loads, n_layers)
    return _shared(loads, 0)


def _with_most_layers(loads: dict[Role, Load], role: Role, machine: Machine) -> dict[Role, Load]:
    for n_layers in range(loads[role].footprint.n_layers + 1, 0, -1):
        tried = {**loads, role: replace(loads[role], n_gpu_layers=n_layers)}
        if all(room.fits for room in estimate(tried, machine).rooms[1:]):
            return tried
    return {**loads, role: replace(loads[role], n_gpu_layers=0)}


@dataclass(frozen=True, slots=True)
class Proposal:
    """Settings with which the pair fits."""

    loads: Loads
    options: str  # as they are typed


def propose(found: Estimate, asked: Mapping[Role, int | None]) -> list[Proposal]:
    """Return at most two ways to make a pair fit, the one that changes least first; none where nothing helps."""
    machine, proposals = found.machine, list[Loads]()
    free_layers = dict.fromkeys(asked)
    is_gpu_short = not all(room.fits for room in found.rooms[1:])
    if is_gpu_short:
        proposals += _fitting([choose_layers(found.loads, machine, free_layers)], machine)
    base = choose_layers(found.loads, machine, free_layers if is_gpu_short else asked)
    smaller = _with_smaller_cache(base)
    proposals += _fitting([smaller], machine) if smaller != base else []
    for start in (base, smaller):
        if len(proposals) < 2:
            proposals += _fitting(_with_less_context(start), machine)[:1]
    unique = [loads for i, loads in enumerate(proposals) if loads not in proposals[:i]]
    return [Proposal(loads, _options(loads, found.loads)) for loads in unique[:2]]


def _fitting(tried: Sequence[Loads], machine: Machine) -> list[Loads]:
    return [loads for loads in tried if estimate(loads, machine).fits]


def _with_smaller_cache(loads: Loads) -> Loads:
    def smaller(load: Load) -> Load:
        is_possible = load.kv_type == "f16" and load.footprint.refuses("q8_0") is None and load.footprint.can_rewind
        return replace(load, kv_type="q8_0") if is_possible else load

    return {role: smaller(load) for role, load in loads.items()}


def _with_less_context(loads: Loads) -> list[Loads]:
    """Return the same models with a half, a quarter, ... of the larger context."""
    size, smaller = max(load.n_ctx for load in loads.values()) // 2, list[Loads]()
    while size >= LEAST_CTX:
        smaller.append({role: replace(load, ctx_size=min(load.ctx_size, size)) for role, load in loads.items()})
        size //= 2
    return smaller


def _options(loads: Loads, before: Loads) -> str:
    words = []
    ctx_size = max(load.ctx_size for load in loads.values())
    if ctx_size != max(load.ctx_size for load in before.values()):
        words.append(f"--ctx-size {ctx_size}")
    for role, option in ((Role.BASE, "base"), (Role.NUDGING, "nudge")):
        if loads[role].kv_type != before[role].kv_type:
            words.append(f"--{option}-kv-type {loads[role].kv_type}")
        if loads[role].n_gpu_layers != before[role].n_gpu_layers:
            words.append(f"--{option}-gpu-layers {loads[role].n_gpu_layers}")
    return " ".join(words)


def check_fit(found: Estimate, asked: Mapping[Role, int | None]) -> None:
    """Raise NoRoomError, with a table and proposals, where the pair does not fit."""
    if found.fits:
        return
    short = [room for room in found.rooms if not room.fits]
    what = "; ".join(
        f"{room.device}: {mebibytes(room.needed_bytes)} needed, {mebibytes(room.free_bytes or 0)} free ({room.reason})"
        for room in short
    )
    raise NoRoomError(f"the pair does not fit: {what}", [*table(found), *advice(found, asked)])


def advice(found: Estimate, asked: Mapping[Role, int | None]) -> list[str]:
    """Return what to do where a pair does not fit, a line each; none where it does."""
    if found.fits:
        return []
    lines = [f"It fits with: {proposal.options}" for proposal in propose(found, asked)]
    swap = found.machine.swap_free_bytes or 0
    lines = lines or ["No context and no type of cache makes it fit: take smaller models or a smaller quantisation."]
    if swap:
        lines.append(f"Swap ({mebibytes(swap)} free) is not counted: a model that is swapped out writes very slowly.")
    return [*lines, "To load it anyway: --no-fit-check"]


def table(found: Estimate) -> list[str]:
    """Return the estimate as lines of text: for each device its parts, what is needed and what is free."""
    rows = [("", "", *(f"{role.value}" for role in found.loads), "both")]
    for room in found.rooms:
        kinds = dict.fromkeys(part.what for part in found.parts if part.device == room.device)
        for what in kinds:
            cells = [found.bytes_of(room.device, what, role) for role in found.loads]
            own = found.bytes_of(room.device, what, None)
            texts = (mebibytes(n) if n else "" for n in cells)
            rows.append((room.device, what, *texts, mebibytes(sum(cells) + own)))
        rows.append((room.device, "needed", *("" for _ in found.loads), mebibytes(room.needed_bytes)))
        free = "unknown" if room.free_bytes is None else mebibytes(room.free_bytes)
        rows.append((room.device, "free", *("" for _ in found.loads), f"{free}  {room.reason}"))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    last = max(len(row[-1].partition("  ")[0]) for row in rows)
    return [_line(row, widths, last) for row in rows]


def _line(row: Sequence[str], widths: Sequence[int], last: int) -> str:
    n_text = 2
    cells = [
        cell.ljust(width) if i < n_text else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(row[:-1], widths, strict=True))
    ]
    number, _, note = row[-1].partition("  ")
    return "  ".join([*cells, number.rjust(last), *([f"({note})"] if note else [])]).rstrip()


def described(role: Role, load: Load, quantization: str | None) -> str:
    """Return one model and how it is loaded, in one line."""
    shape = load.footprint
    layers = f", {load.n_offloaded} of {shape.n_layers + 1} layers on a GPU" if load.n_offloaded else ""
    return (
        f"{role.value} model: {shape.name} ({quantization or 'unknown quantisation'}), context {load.n_ctx} "
        f"of {shape.n_ctx_train}, {load.kv_type} cache{layers}"
    )


def mebibytes(n_bytes: int) -> str:
    """Write a size: 12 MiB, 1.2 GiB."""
    if n_bytes < 1 << 30:
        return f"{max(1, round(n_bytes / 2**20)) if n_bytes else 0} MiB"
    return f"{n_bytes / 2**30:.1f} GiB" if n_bytes < 100 << 30 else f"{n_bytes / 2**30:.0f} GiB"
