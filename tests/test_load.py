"""scripts/load_test.py on a pair without weights: what it finds, and that it can fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from serving import Start, starter

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(os.name != "posix", reason="signals and sockets of POSIX"),
]
SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "load_test.py"
start = pytest.fixture(starter)


def load(socket: Path, pid: int, *arguments: str) -> tuple[int, dict[str, Any], str]:
    command = [sys.executable, str(SCRIPT), "--socket", str(socket), "--pid", str(pid), "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, json.loads(done.stdout), done.stderr


def test_clients_that_leave_harm_nobody(start: Start) -> None:
    server = start(script="long", delay_s=0.001).ready()
    code, found, err = load(server.socket, server.process.pid, "--requests", "40", "--seed", "3")
    assert (code, err, found["failures"]) == (0, "", [])
    assert found["completed"] + found["dropped"] == 40
    assert found["dropped"] >= 5
    assert found["queue_at_end"] == 0
    assert found["server_counts"]["cancelled"] >= 1


def test_refused_requests_are_failures(start: Start) -> None:
    server = start("--queue", "1", script="long", delay_s=0.001).ready()
    code, found, err = load(server.socket, server.process.pid, "--requests", "20", "--drop", "0")
    assert code == 1
    assert "requests wait already" in err
    assert found["completed"] + len(found["failures"]) == 20
