"""Run all checks and tests in `.venv`, which is made where needed: ruff, mypy, pytest; stop at the first that fails.

Further arguments go to pytest: scripts/test.py -k session -x
"""

import argparse
import sys
import time

from venv_setup import ROOT, ensure_venv, exit_status, run_in_terminal

CHECKS = (
    ("ruff check", ("-m", "ruff", "check", ".")),
    ("ruff format", ("-m", "ruff", "format", "--check", ".")),
    ("mypy", ("-m", "mypy")),
)
PURE = ("-m", "not native and not demo and not process and not thorough and not hypothesis")


def parse(argv: list[str]) -> tuple[bool, list[str]]:
    """Return whether only pure tests are wanted, and the arguments for pytest."""
    parser = argparse.ArgumentParser(
        prog="test.py",
        usage="test.py [--pure] [ARGUMENTS FOR pytest]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--pure", action="store_true", help="only the tests that need neither llama.cpp, models nor processes"
    )
    options, for_pytest = parser.parse_known_args(argv)
    return options.pure, for_pytest


def steps(is_pure: bool, for_pytest: list[str]) -> list[tuple[str, list[str]]]:
    """Return name and Python arguments of every step, pytest last: its summary is to end the output."""
    pytest = ["-m", "pytest", *(PURE if is_pure else ()), *for_pytest]
    return [*((name, list(arguments)) for name, arguments in CHECKS), ("pytest", pytest)]


def main(argv: list[str]) -> int:
    planned = steps(*parse(argv))
    start = time.monotonic()
    python = ensure_venv(("dev",))
    print(f"environment: {time.monotonic() - start:.1f} s")
    for name, arguments in planned:
        print(f"== {name}")
        start = time.monotonic()
        code = run_in_terminal([str(python), *arguments], cwd=ROOT)
        took = f"{time.monotonic() - start:.1f} s"
        if code != 0:
            print(f"{name} failed (exit {code}) after {took}", file=sys.stderr)
            return code
        if name != planned[-1][0]:
            print(f"   {name}: {took}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main, sys.argv[1:]))
