"""Whether a pair fits: parts on devices, layers chosen for a GPU, proposals, and what a user reads."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from edge_nudge.core.events import Role
from edge_nudge.engine.devices import Gpu, GroupLimit, Machine
from edge_nudge.engine.footprint import Footprint
from edge_nudge.engine.memory import (
    CACHE,
    DRIVER,
    RAM,
    WEIGHTS,
    Estimate,
    Load,
    Loads,
    advice,
    check_fit,
    choose_layers,
    described,
    estimate,
    mebibytes,
    propose,
    table,
)
from edge_nudge.errors import NoRoomError

MIB, GIB = 1 << 20, 1 << 30
B, N = Role.BASE, Role.NUDGING
AUTO: dict[Role, int | None] = {B: None, N: None}


def model(name: str, layer_mib: int, n_layers: int = 4, *, is_tied: bool = False) -> Footprint:
    return Footprint(
        name=f"{name}.gguf", n_ctx_train=16384, n_vocab=32000, n_merges=0, input_bytes=100 * MIB,
        output_bytes=0 if is_tied else 100 * MIB, layer_bytes=(layer_mib * MIB,) * n_layers,
        kv_values=((1024, 1024),) * n_layers, head_sizes=frozenset({64}), state_bytes=(0,) * n_layers,
        is_tied=is_tied, n_embd=1024, n_widest=8192, n_masks=1,
    )  # fmt: skip


def pair(base_mib: int = 500, nudging_mib: int = 50, ctx_size: int = 4096, **base: object) -> Loads:
    loads = {
        B: Load(model("base", base_mib), "base.gguf", ctx_size),
        N: Load(model("small", nudging_mib), "small.gguf", ctx_size),
    }
    return {**loads, B: replace(loads[B], **base)}  # type: ignore[arg-type]


def ram(free: int, **more: object) -> Machine:
    return Machine(64 * GIB, free, 0, **more)  # type: ignore[arg-type]


def gpu(free: int, name: str = "CUDA0", *, is_shared: bool = False) -> Gpu:
    return Gpu(name, f"card {name}", free, 2 * free, is_shared)


def needed(found: Estimate) -> dict[str, int]:
    return {room.device: room.needed_bytes for room in found.rooms}


# --- parts


def test_both_models_count_together() -> None:
    both = estimate(pair(), ram(64 * GIB))
    alone = [estimate({role: load}, ram(64 * GIB)) for role, load in pair().items()]
    program = both.bytes_of(RAM, "program", None)
    assert needed(both)[RAM] == sum(needed(one)[RAM] for one in alone) - program
    room = needed(both)[RAM] - 1
    assert all(estimate({role: load}, ram(room)).fits for role, load in pair().items())
    assert not estimate(pair(), ram(room)).fits
    assert estimate(pair(), ram(room + 1)).fits


def test_what_is_left_beside_the_pair() -> None:
    room = needed(estimate(pair(), ram(64 * GIB)))[RAM]
    assert [estimate(pair(), ram(free)).spare_bytes for free in (room - 1, room, room + 7)] == [0, 0, 7]
    assert estimate(pair(), Machine(None, None, None)).spare_bytes is None


def test_two_models_of_one_file_hold_its_weights_once() -> None:
    one = {role: Load(model("twin", 500), "twin.gguf", 4096) for role in Role}
    found = estimate(one, ram(64 * GIB))
    assert sum(found.bytes_of(RAM, WEIGHTS, role) for role in Role) == (100 + 100 + 4 * 500) * MIB
    assert found.bytes_of(RAM, CACHE, B) == found.bytes_of(RAM, CACHE, N) > 0


def test_a_gpu_gets_the_last_layers_and_the_output_first_of_all() -> None:
    machine = ram(64 * GIB, gpus=(gpu(24 * GIB),))
    for n_layers, on_gpu in ((0, 0), (1, 100), (2, 600), (5, 2100), (99, 2100)):
        found = estimate(pair(n_gpu_layers=n_layers), machine)
        assert found.bytes_of("CUDA0", WEIGHTS, B) == on_gpu * MIB, n_layers
        assert found.bytes_of(RAM, WEIGHTS, B) == (2200 - on_gpu) * MIB, n_layers
        assert found.bytes_of("CUDA0", CACHE, B) == max(0, min(n_layers, 5) - 1) * 4096 * 2048 * 2
    assert found.bytes_of("CUDA0", DRIVER, None) > 0


def test_tied_embeddings_are_held_twice() -> None:
    load = Load(model("tied", 50, is_tied=True), "tied.gguf", 4096, n_gpu_layers=5)
    found = estimate({B: load}, ram(64 * GIB, gpus=(gpu(24 * GIB),)))
    assert found.bytes_of("CUDA0", WEIGHTS, B) == (100 + 200) * MIB
    assert found.bytes_of(RAM, WEIGHTS, B) == 100 * MIB


def test_several_gpus_share_layers_by_free_memory() -> None:
    machine = ram(64 * GIB, gpus=(gpu(30 * GIB), gpu(10 * GIB, "CUDA1")))
    load = Load(model("big", 100, 7), "big.gguf", 4096, n_gpu_layers=8)
    found = estimate({B: load}, machine)
    assert found.bytes_of("CUDA0", WEIGHTS, B) == 600 * MIB
    assert found.bytes_of("CUDA1", WEIGHTS, B) == 200 * MIB  # a layer and the output


def test_memory_that_is_ram_counts_there_as_well() -> None:
    machine = ram(64 * GIB, gpus=(gpu(24 * GIB, "Metal", is_shared=True),))
    split = estimate(pair(n_gpu_layers=99), machine)
    assert needed(split)[RAM] > needed(split)["Metal"] > 2000 * MIB
    assert split.bytes_of("Metal", DRIVER, None) == 0


def test_unknown_memory_limits_nothing() -> None:
    assert estimate(pair(), Machine(None, None, None)).fits
    assert estimate(pair(n_gpu_layers=9), ram(64 * GIB, gpus=(gpu(0),))).fits


# --- layers for a GPU


def test_the_nudging_model_comes_first_and_the_base_model_takes_the_rest() -> None:
    seen = set()
    for free in range(100 * MIB, 4 * GIB, 100 * MIB):
        machine = ram(64 * GIB, gpus=(gpu(free),))
        loads = choose_layers(pair(), machine, AUTO)
        base, small = loads[B].n_gpu_layers, loads[N].n_gpu_layers
        seen.add((base, small))
        assert estimate(loads, machine).fits
        assert not base or small == 5, mebibytes(free)
        for role, n_layers in ((N, small), (B, base)):
            more = {**loads, role: replace(loads[role], n_gpu_layers=n_layers + 1)}
            assert n_layers == 5 or (role is B and small < 5) or not estimate(more, machine).fits
    assert seen >= {(0, 0), (0, 5), (1, 5), (3, 5), (5, 5)}


def test_layers_asked_for_are_not_changed() -> None:
    loads = choose_layers(pair(), ram(64 * GIB, gpus=(gpu(1 * GIB),)), {B: 7, N: 0})
    assert (loads[B].n_gpu_layers, loads[N].n_gpu_layers) == (7, 0)


def test_nothing_goes_to_a_gpu_that_is_not_there() -> None:
    loads = choose_layers(pair(), ram(64 * GIB), AUTO)
    assert {load.n_gpu_layers for load in loads.values()} == {0}


# --- proposals


def test_a_pair_that_fits_needs_no_advice() -> None:
    found = estimate(pair(), ram(64 * GIB))
    assert advice(found, AUTO) == []
    check_fit(found, AUTO)


def test_every_proposal_fits_and_changes_something() -> None:
    machines = [
        ram(free * MIB, gpus=gpus)
        for free, gpus in itertools.product(
            (2500, 3000, 3500, 4000), ((), (gpu(1 * GIB),), (gpu(3 * GIB), gpu(1 * GIB, "CUDA1")))
        )
    ]
    seen = set()
    for machine, layers in itertools.product(machines, (None, 3, 99)):
        asked = {B: layers, N: None}
        loads = choose_layers(pair(ctx_size=16384), machine, asked)
        found = estimate(loads, machine)
        for proposal in propose(found, asked) if not found.fits else []:
            assert estimate(proposal.loads, machine).fits
            assert proposal.options
            seen |= {word for word in proposal.options.split() if word.startswith("--")}
    assert seen >= {"--ctx-size", "--base-kv-type", "--nudge-kv-type", "--base-gpu-layers"}


def test_a_smaller_cache_comes_before_a_smaller_context() -> None:
    loads = pair(ctx_size=16384)
    full, small = (needed(estimate({r: replace(load, kv_type=kind) for r, load in loads.items()}, ram(1)))[RAM]
                   for kind in ("f16", "q8_0"))  # fmt: skip
    first, second = propose(estimate(loads, ram((full + small) // 2)), AUTO)
    assert first.options == "--base-kv-type q8_0 --nudge-kv-type q8_0"
    assert second.options == "--ctx-size 8192"


def test_heads_that_cannot_have_it_keep_their_cache() -> None:
    odd = replace(model("odd", 100), head_sizes=frozenset({80}))
    loads = {B: Load(odd, "a", 16384), N: Load(odd, "b", 16384)}
    free = needed(estimate(loads, ram(1)))[RAM] - 1
    assert [proposal.options for proposal in propose(estimate(loads, ram(free)), AUTO)] == ["--ctx-size 8192"]


def test_weights_that_are_too_large_are_said_to_be() -> None:
    found = estimate(pair(), replace(ram(1 * GIB), swap_free_bytes=8 * GIB))
    assert propose(found, AUTO) == []
    first, swap, last = advice(found, AUTO)
    assert "smaller models or a smaller quantisation" in first
    assert "Swap (8.0 GiB free) is not counted" in swap
    assert last == "To load it anyway: --no-fit-check"


def test_the_refusal_has_numbers_a_table_and_a_way_out() -> None:
    machine = ram(64 * GIB, limits=(GroupLimit("memory.max", 4 * GIB, 1 * GIB),))
    with pytest.raises(NoRoomError) as caught:
        check_fit(estimate(pair(ctx_size=16384), machine), AUTO)
    first, *lines = str(caught.value).split("\n")
    assert first == (
        "the pair does not fit: RAM: 3.2 GiB needed, 3.0 GiB free (limited by the control group's memory.max)"
    )
    assert any(line.startswith("RAM  needed") for line in lines)
    assert sum(line.startswith("It fits with: --") for line in lines) == 2
    assert caught.value.exit_code == 6


# --- what is shown


def test_the_table_adds_up_and_is_aligned() -> None:
    found = estimate(pair(n_gpu_layers=3), ram(64 * GIB, gpus=(gpu(24 * GIB),)))
    lines = table(found)
    assert lines[0].split() == ["base", "nudging", "both"]
    ends = {line.partition("  (")[0].rindex("B") for line in lines[1:]}
    assert len(ends) == 1
    for device in (RAM, "CUDA0"):
        parts = [part.n_bytes for part in found.parts if part.device == device]
        assert sum(parts) == needed(found)[device]


def test_a_model_is_described_with_what_it_really_gets() -> None:
    load = Load(model("base", 500), "base.gguf", 100_000, "q8_0", 99)
    assert described(B, load, "Q4_K_M") == (
        "base model: base.gguf (Q4_K_M), context 16384 of 16384, q8_0 cache, 5 of 5 layers on a GPU"
    )


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(0, "0 MiB"), (1, "1 MiB"), (1023 * MIB, "1023 MiB"), (1536 * MIB, "1.5 GiB"), (200 * GIB, "200 GiB")],
)
def test_sizes(n_bytes: int, text: str) -> None:
    assert mebibytes(n_bytes) == text
