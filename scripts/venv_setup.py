"""The repository's own `.venv`: made, filled, repaired, and left alone when it is ready.

Owns the folder `.venv` and the stamp in it. Needs the standard library only and changes nothing outside.

1. The stamp says what was installed: from which pyproject.toml, by which Python, for which checkout, with which extras.
2. A stamp that covers what is wanted means ready: no process is started and no network is needed.
3. The stamp is written unfinished before pip starts and finished after it: a half-made environment is filled again.
4. An environment of another Python is made anew if it is ours, and refused if it is not.
5. Every failure is one Stop with a sentence that says what to do.
6. This file is read by older Pythons as well, to tell them so: no newer syntax than 3.6 above the check.
"""

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TextIO

OLDEST_PYTHON = (3, 10)
if tuple(sys.version_info) < OLDEST_PYTHON:
    sys.exit(
        "This needs Python 3.10 or newer, and {} is {}.{}: "
        "name a newer one, as in 'python3.12 scripts/demo.py'.".format(sys.executable, *sys.version_info[:2])
    )

ROOT = Path(__file__).resolve().parent.parent
OLDEST_PIP = (21, 3)  # the first that installs a pyproject.toml in editable form; Python 3.10.0 brings an older one
STAMP, LOG = "edge-nudge-stamp.json", "edge-nudge-install.log"
# llama-cpp-python's own index of ready-made wheels, and its tags, as its README documents them.
WHEEL_INDEX = "https://abetlen.github.io/llama-cpp-python/whl"
CUDA_TAGS = ("cu118", "cu121", "cu122", "cu123", "cu124", "cu125", "cu130", "cu132")
PREBUILT_TAGS = ("cpu", *CUDA_TAGS, "metal", "vulkan", "rocm72", "hip-radeon")
COMPILERS = ("c++", "g++", "clang++", "cl")
COMPILER_HELP = {
    "linux": "Debian, Ubuntu: 'sudo apt install build-essential'; Fedora: 'sudo dnf install gcc-c++'",
    "darwin": "run 'xcode-select --install'",
    "win32": "install Visual Studio Build Tools with 'Desktop development with C++'",
}
_BUILD_FAILED = re.compile(
    r"(Failed building wheel for|Failed to build|Building wheel for) llama.cpp.python.*|CMake Error"
)
_SHOWN = re.compile(r"\s*(Building wheel for .*|Downloading \S+ \(\d\d+.* MB\)|Installing collected packages)")


class Stop(Exception):
    """The one message that ends a script."""


class Stamp(NamedTuple):
    """What an environment was filled from."""

    python: str
    root: str
    pyproject: str  # sha256
    extras: tuple[str, ...] = ()
    prebuilt: str | None = None
    is_complete: bool = False

    def covers(self, wanted: "Stamp") -> bool:
        """Tell whether an environment with this stamp already is what is wanted."""
        return self == self.joined_with(wanted)._replace(is_complete=True)

    def joined_with(self, wanted: "Stamp") -> "Stamp":
        """Return what to install: all that is wanted, with the extras and the ready-made engine that are there.

        A ready-made engine whose installation failed is not there: the next run may compile instead.
        """
        extras = tuple(sorted({*self.extras, *wanted.extras}))
        return wanted._replace(extras=extras, prebuilt=wanted.prebuilt or (self.prebuilt if self.is_complete else None))


def wanted_stamp(root: Path, extras: tuple[str, ...], prebuilt: str | None) -> Stamp:
    python = "{}.{}".format(*sys.version_info[:2])
    pyproject = hashlib.sha256((root / "pyproject.toml").read_bytes()).hexdigest()
    return Stamp(python, str(root), pyproject, extras, prebuilt)


def read_stamp(venv: Path) -> Stamp | None:
    try:
        data = json.loads((venv / STAMP).read_text(encoding="utf-8"))
        return Stamp(**{**data, "extras": tuple(data["extras"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def write_stamp(venv: Path, stamp: Stamp) -> None:
    (venv / STAMP).write_text(json.dumps(stamp._asdict()), encoding="utf-8")


def python_of(venv: Path) -> Path:
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def decide(venv: Path, known: Stamp | None, wanted: Stamp) -> str:
    """Return what to do: "use" the environment, "fill" it with pip, or "make" it anew.

    Raises Stop for a folder that is not ours to replace.
    """
    python = python_of(venv)
    if known is not None and known.covers(wanted) and python.exists():
        return "use"
    if not venv.exists() or (venv.is_dir() and not any(venv.iterdir())):
        return "make"
    config = venv / "pyvenv.cfg"
    if known is None and not config.is_file():
        raise Stop(f"{venv} is there and is no Python environment: move it away and start again.")
    if not python.exists() or (known is not None and known.python != wanted.python):
        return "make"
    if known is None:
        found = re.search(r"^version(?:_info)?\s*=\s*(\d+\.\d+)", config.read_text(encoding="utf-8"), re.MULTILINE)
        if found is not None and found[1] != wanted.python:
            raise Stop(
                f"{venv} was made by something else with Python {found[1]}, this is {wanted.python}: "
                f"start this with Python {found[1]}, or move the folder away."
            )
    return "fill"


def ensure_venv(
    extras: tuple[str, ...] = (),
    prebuilt: str | None = None,
    *,
    root: Path = ROOT,
    say: Callable[[str], None] = print,
) -> Path:
    """Return the Python of a `.venv` that has the package installed, making or repairing it where needed."""
    venv, wanted = root / ".venv", wanted_stamp(root, extras, prebuilt)
    known = read_stamp(venv)
    todo = decide(venv, known, wanted)
    if todo == "make":
        make(venv, wanted, say)
    if todo != "use":
        fill(venv, wanted if known is None else known.joined_with(wanted), say)
    return python_of(venv)


def make(venv: Path, wanted: Stamp, say: Callable[[str], None]) -> None:
    """Make an empty environment with pip in it."""
    if any(importlib.util.find_spec(name) is None for name in ("venv", "ensurepip")):
        raise Stop(
            f"This Python cannot make environments (no venv or ensurepip): install its package for that "
            f"(Debian, Ubuntu: 'sudo apt install python{wanted.python}-venv') and start again."
        )
    say(f"Making {venv} with Python {wanted.python}.")
    command = [sys.executable, "-m", "venv", "--clear", str(venv)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        raise Stop(f"{venv} could not be made:\n{done.stdout.strip()}")
    write_stamp(venv, wanted)


def fill(venv: Path, target: Stamp, say: Callable[[str], None]) -> None:
    """Install the package, editable so that edits show at once, and what it needs."""
    write_stamp(venv, target)
    compiler = find_compiler()
    say(f"Installing edge-nudge and what it needs into {venv}.")
    site_packages = ("lib/python*/site-packages", "Lib/site-packages")
    if not any(found for where in site_packages for found in venv.glob(f"{where}/llama_cpp_python-*.dist-info")):
        announce_engine(target.prebuilt, compiler, say)
    with (venv / LOG).open("w", encoding="utf-8") as log:
        is_installed = all(run_logged(step, log, target.root, say) == 0 for step in pip_steps(venv, target))
    if not is_installed:
        text = (venv / LOG).read_text(encoding="utf-8")
        raise Stop(f"{explain_failure(text, compiler, target.prebuilt)}\nThe whole log: {venv / LOG}")
    write_stamp(venv, target._replace(is_complete=True))


def pip_steps(venv: Path, target: Stamp) -> list[list[str]]:
    """Return the commands that fill an environment, in order."""
    python = str(python_of(venv))
    pip, steps = [python, "-m", "pip"], []
    version = pip_version(pip)
    if version is None:
        steps.append([python, "-m", "ensurepip", "--upgrade"])
    elif version < OLDEST_PIP:
        steps.append([*pip, "install", "--upgrade", "pip"])
    if target.prebuilt is not None:
        pyproject = Path(target.root, "pyproject.toml").read_text(encoding="utf-8")
        engine = re.search(r'"(llama-cpp-python[^"]*)"', pyproject)
        only = ["--force-reinstall", "--no-deps", *prebuilt_flags(target.prebuilt)]
        steps.append([*pip, "install", *only, engine[1] if engine else "llama-cpp-python"])
    steps.append([*pip, "install", "-e", f".[{','.join(target.extras)}]" if target.extras else "."])
    return steps


def prebuilt_flags(tag: str) -> list[str]:
    """Return the pip options that take a ready-made engine or nothing."""
    return ["--only-binary", "llama-cpp-python", "--extra-index-url", f"{WHEEL_INDEX}/{tag}"]


def announce_engine(prebuilt: str | None, compiler: str | None, say: Callable[[str], None]) -> None:
    """Say what getting llama.cpp will cost and how to get it without compiling."""
    if prebuilt is not None:
        say(f"The engine, llama-cpp-python, comes ready-made: pip install {' '.join(prebuilt_flags(prebuilt))}")
        return
    say("Unless pip has built it before, the engine (llama.cpp) is compiled now: some minutes, once.")
    say(f"  C++ compiler: {compiler or 'none found, so compiling will fail'}")
    say("  Ready-made instead of compiled: python3 scripts/demo.py --prebuilt TAG")
    say(f"  The same by hand: pip install llama-cpp-python --extra-index-url {WHEEL_INDEX}/TAG")
    say(f"  TAG: cpu; {', '.join(CUDA_TAGS)} (CUDA);")
    say("       metal (macOS); vulkan (Linux, Windows); rocm72 (Linux); hip-radeon (Windows)")


def find_compiler(which: Callable[[str], str | None] = shutil.which) -> str | None:
    """Return a C++ compiler, None where none is seen; Visual Studio's is found by CMake and is not on the path."""
    for name in (os.environ.get("CXX", ""), *COMPILERS):
        if name and which(name):
            return which(name)
    vswhere = Path(os.environ.get("PROGRAMFILES(X86)", ""), "Microsoft Visual Studio/Installer/vswhere.exe")
    return "Visual Studio" if sys.platform == "win32" and vswhere.is_file() else None


def pip_version(pip: list[str]) -> tuple[int, ...] | None:
    done = subprocess.run([*pip, "--version"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    found = re.match(r"pip (\d+)\.(\d+)", done.stdout)
    return (int(found[1]), int(found[2])) if done.returncode == 0 and found else None


def run_logged(command: list[str], log: TextIO, root: str, say: Callable[[str], None]) -> int:
    """Run a step of the installation; its whole output goes to the log, the slow parts are said."""
    more = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_USER": "0", "PYTHONIOENCODING": "utf-8", "NO_COLOR": "1"}
    with subprocess.Popen(
        command,
        cwd=root,
        env={**os.environ, **more},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    ) as child:
        try:
            for line in child.stdout or ():
                log.write(line)
                shown = _SHOWN.match(line)
                if shown:
                    say(f"  {shown[1]}")
        except KeyboardInterrupt:
            child.terminate()
            raise
    return child.returncode


def explain_failure(log: str, compiler: str | None, prebuilt: str | None, platform: str = sys.platform) -> str:
    """Turn pip's output into the one message that says what to do."""
    errors = [line.strip() for line in log.splitlines() if line.lstrip().lower().startswith("error:")]
    shown = "".join(f"\n  {line}" for line in dict.fromkeys(errors[-4:]))
    if prebuilt is not None and "No matching distribution found for llama-cpp-python" in log:
        return (
            f"No ready-made llama-cpp-python '{prebuilt}' for this Python and system was found at "
            f"{WHEEL_INDEX}/{prebuilt}: check the network, try another tag, or compile (without --prebuilt).{shown}"
        )
    if _BUILD_FAILED.search(log) is None:
        return f"pip could not install edge-nudge: check the network and pip's configuration.{shown}"
    instead = "Or take a ready-made build: python3 scripts/demo.py --prebuilt cpu (or metal, vulkan, cu124, ...)."
    if compiler is None:
        how = COMPILER_HELP.get(platform, COMPILER_HELP["linux"])
        looked = ", ".join(COMPILERS)
        return f"llama.cpp could not be compiled: no C++ compiler was found ({looked}). {how}.\n{instead}"
    return f"llama.cpp could not be compiled with {compiler}; the reason is near the end of the log.\n{instead}{shown}"


def run_in_terminal(command: list[str], cwd: Path | None = None) -> int:
    """Run a command on this terminal and return its exit status; 130 after Ctrl-C."""
    sys.stdout.flush()
    child = subprocess.Popen(command, cwd=cwd)
    try:
        code = child.wait()
    except KeyboardInterrupt:
        try:
            child.wait(timeout=5)  # it got the same Ctrl-C and ends by itself
        except (KeyboardInterrupt, subprocess.TimeoutExpired):
            child.kill()
            child.wait()
        return 130
    return code if code >= 0 else 128 - code


def exit_status(main: Callable[[list[str]], int], argv: list[str]) -> int:
    """Run a script's main; a Stop becomes one message on stderr, Ctrl-C is 130, neither shows a traceback."""
    try:
        return main(argv)
    except Stop as stop:
        sys.stdout.flush()
        print(stop, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
