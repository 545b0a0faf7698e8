"""The scripts: what they decide, ask and say, without making an environment."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "scripts"


def load(name: str) -> ModuleType:
    """Load a script by path: `test` is also a package of the standard library."""
    spec = importlib.util.spec_from_file_location(f"script_{name}", SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.delitem(sys.modules, "venv_setup", raising=False)
    return importlib.import_module("venv_setup")


@pytest.fixture
def demo(setup: ModuleType) -> ModuleType:
    return load("demo")


@pytest.fixture
def checks(setup: ModuleType) -> ModuleType:
    return load("test")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").write_text('dependencies = ["llama-cpp-python>=0.3.36,<0.4", "numpy"]\n')
    return tmp_path


def environment(setup: ModuleType, root: Path, version: str | None = None) -> Path:
    """Make what an environment looks like from outside."""
    venv = root / ".venv"
    python: Path = setup.python_of(venv)
    python.parent.mkdir(parents=True)
    python.touch()
    (venv / "pyvenv.cfg").write_text(f"home = /usr/bin\nversion = {version or sys.version.split()[0]}\n")
    return venv


@pytest.mark.parametrize("script", ["demo.py", "test.py"])
@pytest.mark.parametrize("argument", ["--help", "-h"])
def test_help_needs_no_environment(script: str, argument: str) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / script), argument], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert done.stdout.startswith("usage: ")
    assert done.stderr == ""


@pytest.mark.parametrize("version", [(3, 6), (3, 9)])
@pytest.mark.parametrize("script", ["demo", "test"])
def test_an_old_python_is_told_so_in_one_line(script: str, version: tuple[int, int]) -> None:
    code = f"import runpy, sys; sys.version_info = {(*version, 1)}; sys.path.insert(0, {str(SCRIPTS)!r}); "
    code += f"runpy.run_path({str(SCRIPTS / (script + '.py'))!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "needs Python 3.10 or newer" in done.stderr
    assert f"is {version[0]}.{version[1]}:" in done.stderr


def test_stamp_survives_writing_and_reading(setup: ModuleType, root: Path) -> None:
    venv = environment(setup, root)
    assert setup.read_stamp(venv) is None
    stamp = setup.wanted_stamp(root, ("dev",), "cpu")._replace(is_complete=True)
    setup.write_stamp(venv, stamp)
    assert setup.read_stamp(venv) == stamp
    for garbage in ("", "[]", "{}", '{"python": "3.11"}', "null"):
        (venv / setup.STAMP).write_text(garbage)
        assert setup.read_stamp(venv) is None


def test_a_finished_stamp_is_used_and_any_change_fills_again(setup: ModuleType, root: Path) -> None:
    venv = environment(setup, root)
    wanted = setup.wanted_stamp(root, (), None)
    finished = wanted._replace(extras=("dev",), prebuilt="cpu", is_complete=True)
    assert setup.decide(venv, finished, wanted) == "use"
    assert setup.decide(venv, finished, wanted._replace(extras=("dev",))) == "use"
    assert setup.decide(venv, finished._replace(extras=()), wanted._replace(extras=("dev",))) == "fill"
    assert setup.decide(venv, finished._replace(is_complete=False), wanted) == "fill"
    assert setup.decide(venv, finished, wanted._replace(prebuilt="cu124")) == "fill"
    assert setup.decide(venv, finished._replace(root="/moved/from/here"), wanted) == "fill"
    (root / "pyproject.toml").write_text("changed\n")
    assert setup.decide(venv, finished, setup.wanted_stamp(root, (), None)) == "fill"


def test_filling_again_keeps_what_is_there(setup: ModuleType, root: Path) -> None:
    wanted = setup.wanted_stamp(root, (), None)
    finished = wanted._replace(extras=("dev",), prebuilt="cu124", is_complete=True)
    assert finished.joined_with(wanted) == wanted._replace(extras=("dev",), prebuilt="cu124")
    failed = finished._replace(is_complete=False)
    assert failed.joined_with(wanted).prebuilt is None


def test_broken_environments_are_made_anew(setup: ModuleType, root: Path) -> None:
    wanted = setup.wanted_stamp(root, (), None)
    assert setup.decide(root / ".venv", None, wanted) == "make"
    venv = environment(setup, root)
    assert setup.decide(venv, None, wanted) == "fill"
    assert setup.decide(venv, wanted._replace(python="3.7", is_complete=True), wanted) == "make"
    setup.python_of(venv).unlink()
    assert setup.decide(venv, wanted._replace(is_complete=True), wanted) == "make"
    assert setup.decide(venv, None, wanted) == "make"


def test_what_is_not_ours_is_left_alone(setup: ModuleType, root: Path) -> None:
    wanted = setup.wanted_stamp(root, (), None)
    (root / ".venv").mkdir()
    assert setup.decide(root / ".venv", None, wanted) == "make"
    (root / ".venv" / "thesis.tex").touch()
    with pytest.raises(setup.Stop, match="no Python environment: move it away"):
        setup.decide(root / ".venv", None, wanted)
    (root / ".venv" / "thesis.tex").unlink()
    (root / ".venv").rmdir()
    venv = environment(setup, root, version="3.7.16")
    with pytest.raises(setup.Stop, match=r"made by something else with Python 3\.7"):
        setup.decide(venv, None, wanted)


def test_a_ready_environment_starts_no_process(
    setup: ModuleType, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    venv = environment(setup, root)
    setup.write_stamp(venv, setup.wanted_stamp(root, (), None)._replace(is_complete=True))
    monkeypatch.setattr(setup, "subprocess", None)
    assert setup.ensure_venv(root=root) == setup.python_of(venv)
    assert capsys.readouterr().out == ""


def test_the_stamp_is_finished_only_after_success(
    setup: ModuleType, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    venv, said, seen = environment(setup, root), [], []

    def install(command: list[str], log: Any, where: str, say: Any) -> int:
        seen.append((command[1:], setup.read_stamp(venv).is_complete))
        log.write("ERROR: Could not find a version\n")
        return len(seen) % 2  # fails at the first call

    monkeypatch.setattr(setup, "run_logged", install)
    monkeypatch.setattr(setup, "pip_version", lambda pip: (24, 0))
    with pytest.raises(setup.Stop, match="could not install edge-nudge: check the network"):
        setup.ensure_venv(("dev",), root=root, say=said.append)
    assert not setup.read_stamp(venv).is_complete
    setup.ensure_venv(root=root, say=said.append)
    assert setup.read_stamp(venv).is_complete
    assert seen == [(["-m", "pip", "install", "-e", ".[dev]"], False)] * 2


def test_the_way_around_a_compile_is_said(setup: ModuleType) -> None:
    said: list[str] = []
    setup.announce_engine(None, None, said.append)
    text = "\n".join(said)
    assert "compiled now: some minutes" in text
    assert "none found" in text
    assert "--prebuilt TAG" in text
    assert "--extra-index-url https://abetlen.github.io/llama-cpp-python/whl/TAG" in text
    for tag in setup.PREBUILT_TAGS:
        assert tag in text


def test_a_ready_made_engine_never_compiles(setup: ModuleType, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "pip_version", lambda pip: (24, 0))
    venv = environment(setup, root)
    engine, package = setup.pip_steps(venv, setup.wanted_stamp(root, (), "cu124"))
    assert engine[-1] == "llama-cpp-python>=0.3.36,<0.4"
    assert engine[engine.index("--only-binary") + 1] == "llama-cpp-python"
    assert engine[engine.index("--extra-index-url") + 1] == "https://abetlen.github.io/llama-cpp-python/whl/cu124"
    assert package[-2:] == ["-e", "."]


@pytest.mark.parametrize(
    ("version", "first"),
    [(None, ["-m", "ensurepip", "--upgrade"]), ((21, 2), ["-m", "pip", "install", "--upgrade", "pip"])],
)
def test_a_missing_or_old_pip_is_mended_first(
    setup: ModuleType, root: Path, monkeypatch: pytest.MonkeyPatch, version: tuple[int, int] | None, first: list[str]
) -> None:
    monkeypatch.setattr(setup, "pip_version", lambda pip: version)
    steps = setup.pip_steps(root / ".venv", setup.wanted_stamp(root, (), None))
    assert steps[0][1:] == first
    assert len(steps) == 2


COMPILE_LOG = """\
  Building wheel for llama-cpp-python (pyproject.toml): finished with status 'error'
  error: subprocess-exited-with-error
      CMake Error: CMAKE_CXX_COMPILER not set, after EnableLanguage
  ERROR: Failed building wheel for llama-cpp-python
"""
MISSING_LOG = "ERROR: No matching distribution found for llama-cpp-python<0.4,>=0.3.36\n"


@pytest.mark.parametrize(
    ("platform", "remedy"), [("linux", "build-essential"), ("darwin", "xcode-select"), ("win32", "Visual Studio")]
)
def test_no_compiler_is_one_clear_message(setup: ModuleType, platform: str, remedy: str) -> None:
    message = setup.explain_failure(COMPILE_LOG, None, None, platform)
    assert "no C++ compiler was found" in message
    assert remedy in message
    assert "--prebuilt cpu" in message
    assert "CMake" not in message


def test_other_failures_name_their_own_cause(setup: ModuleType) -> None:
    assert "compiled with /usr/bin/c++" in setup.explain_failure(COMPILE_LOG, "/usr/bin/c++", None)
    offline = setup.explain_failure(MISSING_LOG, None, None)
    assert "check the network" in offline
    assert "compiler" not in offline
    assert MISSING_LOG.strip() in offline
    assert "try another tag" in setup.explain_failure(MISSING_LOG, None, "cu124")


def test_compilers_are_looked_for_by_name(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    assert setup.find_compiler(lambda name: None) is None
    assert setup.find_compiler({"clang++": "/opt/clang++"}.get) == "/opt/clang++"
    monkeypatch.setenv("CXX", "my-c++")
    assert setup.find_compiler({"my-c++": "/my", "c++": "/usr/bin/c++"}.get) == "/my"


def test_a_python_without_ensurepip_is_told_which_package_to_install(
    setup: ModuleType, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(setup.Stop, match=r"sudo apt install python3\.\d+-venv"):
        setup.ensure_venv(root=root, say=lambda line: None)
    assert not (root / ".venv").exists()


@pytest.mark.parametrize(
    ("argv", "prebuilt", "question", "rest"),
    [
        ([], None, "What is photosynthesis?", []),
        (["How?"], None, "How?", []),
        (["How?", "-n", "50", "--gamma", "0.3"], None, "How?", ["-n", "50", "--gamma", "0.3"]),
        (["--prebuilt", "cu124", "How?", "--json"], "cu124", "How?", ["--json"]),
        (["--", "-5 or 5?"], None, "-5 or 5?", []),
    ],
)
def test_demo_arguments(
    demo: ModuleType, argv: list[str], prebuilt: str | None, question: str, rest: list[str]
) -> None:
    options = demo.parse(argv)
    assert (options.prebuilt, options.question, options.run_options) == (prebuilt, question, rest)
    command = demo.run_command("python", question, rest)
    assert command == ["python", *demo.RUN, *rest, "--", question]


@pytest.mark.parametrize("argv", [["--prebuilt", "cu999"], ["-n", "5"], ["--prebuilt"]])
def test_demo_refuses_what_it_does_not_know(demo: ModuleType, argv: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        demo.parse(argv)
    assert stopped.value.code == 2


def test_demo_passes_the_exit_status_on(demo: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "ensure_venv", lambda **options: Path(sys.executable))
    monkeypatch.setattr(demo, "RUN", ("-c", "import sys; sys.exit(7 + (sys.argv[-1] != 'How?'))"))
    assert demo.main(["How?"]) == 7


def test_ctrl_c_is_130_without_a_traceback(setup: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(argv: list[str]) -> int:
        raise KeyboardInterrupt

    assert setup.exit_status(interrupted, []) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_child_that_outlives_ctrl_c_is_ended(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    class Child:
        killed = False

        def __init__(self, command: list[str], cwd: Path | None = None) -> None:
            self.waits = iter([KeyboardInterrupt(), subprocess.TimeoutExpired("x", 5), None])

        def wait(self, timeout: float | None = None) -> int:
            error = next(self.waits)
            if error is not None:
                raise error
            return -9

        def kill(self) -> None:
            Child.killed = True

    stand_in = SimpleNamespace(Popen=Child, TimeoutExpired=subprocess.TimeoutExpired)
    monkeypatch.setattr(setup, "subprocess", stand_in)
    assert setup.run_in_terminal(["x"]) == 130
    assert Child.killed


def test_a_stop_is_one_message(setup: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    def stopped(argv: list[str]) -> int:
        raise setup.Stop("no room")

    assert setup.exit_status(stopped, []) == 1
    assert capsys.readouterr().err == "no room\n"


def test_check_steps(checks: ModuleType) -> None:
    assert checks.parse(["--pure", "-k", "session", "-x"]) == (True, ["-k", "session", "-x"])
    names = [name for name, _ in checks.steps(False, [])]
    assert names == ["ruff check", "ruff format", "mypy", "pytest"]
    assert checks.steps(True, ["-x"])[-1][1] == [
        "-m",
        "pytest",
        "-m",
        "not native and not demo and not process and not thorough and not hypothesis",
        "-x",
    ]
    assert checks.steps(False, [])[-1][1] == ["-m", "pytest"]


def test_checks_stop_at_the_first_failure(
    checks: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []

    def run(command: list[str], cwd: Path) -> int:
        ran.append(command[2])
        return 3 if command[2] == "mypy" else 0

    monkeypatch.setattr(checks, "ensure_venv", lambda extras: Path("python"))
    monkeypatch.setattr(checks, "run_in_terminal", run)
    assert checks.main([]) == 3
    assert ran == ["ruff", "ruff", "mypy"]
    assert "mypy failed (exit 3)" in capsys.readouterr().err


def test_the_summary_of_pytest_comes_last(
    checks: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(command: list[str], cwd: Path) -> int:
        sys.stdout.write(f"output of {command[2]}\n")
        return 0

    monkeypatch.setattr(checks, "ensure_venv", lambda extras: Path("python"))
    monkeypatch.setattr(checks, "run_in_terminal", run)
    assert checks.main([]) == 0
    assert capsys.readouterr().out.rstrip().endswith("output of pytest")


def test_ci_runs_the_same_script() -> None:
    script = ROOT / ".ci" / "run"
    text = script.read_text(encoding="utf-8")
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "set -euo pipefail" in text
    assert 'exec python3 scripts/test.py "$@"' in text
    assert os.name != "posix" or os.access(script, os.X_OK)
