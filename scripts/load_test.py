"""Load on a served pair: several clients at once, a part of them leaving at random moments; or what the socket costs.

    python scripts/load_test.py                  # 8 clients, 300 short requests, a third of them dropped
    python scripts/load_test.py --overhead       # tokens/s through the socket against a pair in this process

Serves the demo pair in a process of its own, unless --socket names a server that runs. Each answer that is not dropped
must be the one that the same request got alone, before. The exit status is 1 where anything is not as it should be.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from edge_nudge.client import AsyncClient, Client
from edge_nudge.core.events import Event, Finished, Piece
from edge_nudge.errors import EdgeNudgeError

# Each begins with another word. What a prompt shares with the one before is read in other pieces than when it stands
# alone, and that can turn a decision that was nearly a tie (README, Limits): with "What is a fjord?" before it,
# "What is two and two?" is answered otherwise, in this process as well. Here all share the same: the template's head.
PROMPTS = (
    "What is a fjord?", "Name three colours.", "Why is the sky blue?", "Write a line about rain.", "Who wrote Faust?",
    "Explain a lever.", "Do bees make honey?", "Say good morning in French.", "Is nine a prime?", "Two plus two is?",
)  # fmt: skip
LONG_PROMPT = "The quick brown fox jumps over the lazy dog. " * 12 + "What does the fox do?"
LENGTHS = (4, 8, 16)
READY_S = 300.0
IDLE_S = 30.0  # for a server to have nothing to do any more
GROWTH_BYTES = 32 << 20  # more than the first requests of each kind left behind is a leak
OVERHEAD_PROMPT = "Describe how a lighthouse works, in detail."


@dataclass(frozen=True)
class Plan:
    """One request; it is dropped `drop_s` seconds after it was sent, or behind `drop_pieces` pieces."""

    prompt: str
    max_tokens: int
    drop_s: float | None = None
    drop_pieces: int | None = None

    @property
    def is_dropped(self) -> bool:
        return self.drop_s is not None or self.drop_pieces is not None


@dataclass
class Tally:
    """What became of the requests."""

    latencies: list[float] = field(default_factory=list)
    n_dropped: int = 0
    failures: list[str] = field(default_factory=list)


@dataclass
class Memory:
    """The server's resident bytes."""

    start: int
    peak: int = 0
    end: int = 0


def plans_of(n_requests: int, share: float, rng: random.Random) -> list[Plan]:
    """Return the requests; a share of them is dropped while waiting, while the prompt is read, or in the stream."""
    plans = []
    for _ in range(n_requests):
        prompt = LONG_PROMPT if rng.random() < 0.1 else rng.choice(PROMPTS)
        plan = Plan(prompt, rng.choice(LENGTHS))
        if rng.random() < share:
            is_late = rng.random() < 0.5
            plan = Plan(
                prompt,
                plan.max_tokens,
                None if is_late else rng.expovariate(2.0),
                rng.randint(1, 3) if is_late else None,
            )
        plans.append(plan)
    return plans


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Piece))


def solo_answers(socket: str, plans: list[Plan]) -> dict[tuple[str, int], str]:
    """Return what each kind of request is answered while nobody else asks."""
    kinds = sorted({(plan.prompt, plan.max_tokens) for plan in plans})
    with Client(socket=socket) as client:
        return {kind: text_of(list(client.chat(kind[0], max_tokens=kind[1]))) for kind in kinds}


async def ask(client: AsyncClient, plan: Plan, expected: str, tally: Tally) -> None:
    """Send one request; drop it when its time has come, else compare its answer."""
    events: list[Event] = []

    async def read() -> None:
        async with client.chat(plan.prompt, max_tokens=plan.max_tokens) as answer:
            async for event in answer:
                events.append(event)
                if plan.drop_pieces is not None and sum(isinstance(e, Piece) for e in events) >= plan.drop_pieces:
                    return

    started = time.perf_counter()
    try:
        await asyncio.wait_for(read(), plan.drop_s)
    except asyncio.TimeoutError:
        tally.n_dropped += 1
    except EdgeNudgeError as error:
        tally.failures.append(f"{plan}: {error}")
    else:
        if events and isinstance(events[-1], Finished):
            tally.latencies.append(time.perf_counter() - started)
            if text_of(events) != expected:
                tally.failures.append(f"{plan}: {text_of(events)!r} is not {expected!r}")
        elif plan.is_dropped:
            tally.n_dropped += 1
        else:
            tally.failures.append(f"{plan}: no end")
    if not expected.startswith(text_of(events)):
        tally.failures.append(f"{plan}: {text_of(events)!r} does not begin {expected!r}")


async def load(socket: str, plans: list[Plan], n_clients: int, solo: dict[tuple[str, int], str]) -> Tally:
    """Have the clients take the requests in turn, each one after the other."""
    tally = Tally()
    waiting = iter(plans)

    async def client_loop() -> None:
        async with AsyncClient(socket=socket) as client:
            for plan in waiting:
                await ask(client, plan, solo[plan.prompt, plan.max_tokens], tally)

    await asyncio.gather(*(client_loop() for _ in range(n_clients)))
    return tally


async def sampled(work: Any, process: psutil.Process, memory: Memory) -> Tally:
    """Run `work` and watch the server's memory meanwhile."""
    task = asyncio.ensure_future(work)
    while not task.done():
        memory.peak = max(memory.peak, process.memory_info().rss)
        await asyncio.wait({task}, timeout=0.1)
    return task.result()


def wait_idle(socket: str) -> dict[str, Any]:
    """Return the state of the server when it has nothing to do, or after IDLE_S seconds."""
    deadline = time.monotonic() + IDLE_S
    with Client(socket=socket) as client:
        while True:
            slot = client.slots()[0]
            if (not slot["n_queued"] and slot["job"] is None) or time.monotonic() > deadline:
                return slot
            time.sleep(0.05)


def run_load(socket: str, pid: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure; `failures` in what is returned is empty where all is well."""
    plans = plans_of(arguments.requests, arguments.drop, random.Random(arguments.seed))
    process = psutil.Process(pid)
    solo = solo_answers(socket, plans)
    memory = Memory(process.memory_info().rss)
    started = time.perf_counter()
    tally = asyncio.run(sampled(load(socket, plans, arguments.clients, solo), process, memory))
    wall_s = time.perf_counter() - started
    slot = wait_idle(socket)
    memory.end = process.memory_info().rss
    again = solo_answers(socket, plans[:5])
    failures = [*tally.failures, *(f"{kind}: another answer at the end" for kind in again if again[kind] != solo[kind])]
    if slot["n_queued"] or slot["job"] is not None:
        failures.append(f"the server is not idle at the end: {slot}")
    if memory.end > memory.start + GROWTH_BYTES:
        failures.append(f"memory grew from {memory.start} to {memory.end} bytes")
    latencies = sorted(tally.latencies)
    return {
        "kind": "load",
        "clients": arguments.clients,
        "requests": len(plans),
        "completed": len(latencies),
        "dropped": tally.n_dropped,
        "wall_s": wall_s,
        "memory_bytes": {"start": memory.start, "peak": memory.peak, "end": memory.end},
        "latency_s": {
            "median": statistics.median(latencies),
            "p95": latencies[int(0.95 * (len(latencies) - 1))],
            "max": latencies[-1],
        },
        "queue_at_end": slot["n_queued"],
        "server_counts": slot["counts"],
        "failures": failures,
    }


def run_overhead(socket: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure the same answer through the socket and in this process, in turn; the order changes each time."""
    from edge_nudge.runtime import open_pair

    def rate(source: Any) -> tuple[float, str]:
        started = time.perf_counter()
        events = list(source(OVERHEAD_PROMPT, max_tokens=arguments.tokens, loop_guard=False))
        return events[-1].usage.n_completion / (time.perf_counter() - started), text_of(events)

    failures, pairs = [], []
    with open_pair("demo") as pair, Client(socket=socket) as client:
        ways = {"socket": client.chat, "in_process": pair.stream}
        for way in ways.values():
            rate(way)
        for trial in range(arguments.trials):
            names = sorted(ways, reverse=trial % 2 == 1)
            found = {name: rate(ways[name]) for name in names}
            if found["socket"][1] != found["in_process"][1]:
                failures.append(f"trial {trial}: the answers differ")
            pairs.append({name: found[name][0] for name in ways})
    ratio = statistics.median(one["socket"] / one["in_process"] for one in pairs)
    if ratio < arguments.least:
        failures.append(f"through the socket {ratio:.1%} of the tokens/s in process: at least {arguments.least:.0%}")
    medians = {name: statistics.median(one[name] for one in pairs) for name in ways}
    return {"kind": "overhead", "tokens_per_s": medians, "ratio": ratio, "trials": pairs, "failures": failures}


@contextmanager
def served() -> Iterator[tuple[str, int]]:
    """Serve the demo pair in another process; yield its socket and process id."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "edge_nudge.cli.main", "serve", "--keep-alive", "never"]
        environment = {**os.environ, "EDGE_NUDGE_RUNTIME_DIR": folder}
        with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as server:
            try:
                socket = str(Path(folder, "edge-nudge.sock"))
                wait_ready(socket, server)
                yield socket, server.pid
            finally:
                server.send_signal(signal.SIGTERM)


def wait_ready(socket: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise SystemExit(f"the server ended with {server.returncode}: try edge-nudge serve")
        try:
            with Client(socket=socket) as client:
                if client.health() == "ready":
                    return
        except EdgeNudgeError:
            pass
        time.sleep(0.1)
    raise SystemExit(f"the server was not ready within {READY_S:.0f} s")


def report(found: dict[str, Any]) -> str:
    """Return the figures as lines."""
    if found["kind"] == "overhead":
        rates = found["tokens_per_s"]
        return (
            f"socket {rates['socket']:.2f} tokens/s, in process {rates['in_process']:.2f} tokens/s, medians of "
            f"{len(found['trials'])}; ratio of pairs {found['ratio']:.2%}"
        )
    memory = {name: f"{size / 2**20:.1f} MiB" for name, size in found["memory_bytes"].items()}
    latency = {name: f"{seconds:.2f} s" for name, seconds in found["latency_s"].items()}
    return "\n".join(
        (
            f"{found['requests']} requests of {found['clients']} clients in {found['wall_s']:.1f} s: "
            f"{found['completed']} completed, {found['dropped']} dropped, {len(found['failures'])} failures",
            f"memory of the server: start {memory['start']}, peak {memory['peak']}, end {memory['end']}",
            f"latency: median {latency['median']}, 95 % {latency['p95']}, longest {latency['max']}",
            f"queue at the end: {found['queue_at_end']}; the server counted {found['server_counts']}",
        )
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--socket", help="socket of a server that runs; needs --pid")
    parser.add_argument("--pid", type=int, help="its process, for its memory")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--drop", type=float, default=1 / 3, help="share of the requests that are dropped")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--overhead", action="store_true", help="measure what the socket costs instead")
    parser.add_argument("--tokens", type=int, default=100, help="of each answer, with --overhead")
    parser.add_argument("--trials", type=int, default=9, help="pairs of answers, with --overhead")
    parser.add_argument("--least", type=float, default=0.97, help="ratio that is enough, with --overhead")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    if arguments.socket is not None:
        found = run_load(arguments.socket, arguments.pid or os.getpid(), arguments)
    else:
        with served() as (socket, pid):
            found = run_overhead(socket, arguments) if arguments.overhead else run_load(socket, pid, arguments)
    print(json.dumps(found) if arguments.json else report(found))
    for failure in found["failures"]:
        print(failure, file=sys.stderr)
    return 1 if found["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
