"""A pair without weights for the command line: both models follow one script, word by word.

Run as a program it is `edge-nudge` with that pair: `python cli_fakes.py SCRIPT DELAY_S ARGUMENTS...`. Every native
call takes DELAY_S seconds, and says so on stderr where that is long. SCRIPT is "short", "long", or "stuck", which
does not come back from loading.
"""

from __future__ import annotations

import io
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_nudge import runtime
from edge_nudge.cli.main import exit_status
from edge_nudge.cli.main import main as cli_main
from edge_nudge.cli.verbosity import show_log
from edge_nudge.core.events import Role
from edge_nudge.runtime import Pair, PairSpec
from edge_nudge.testing import FakeBackend, Scorer, ToyVocabulary, scripted_scores

if TYPE_CHECKING:
    import pytest

Script = Sequence[tuple[str, Role]]
B, N = Role.BASE, Role.NUDGING

SHORT: Script = (
    ("The", N), (" sky", B), (" is", B), (" blue", N), (" by day", N), (" and\n", B), ("black", N), (" later.", B),
)  # fmt: skip
LONG: Script = tuple((f" word{i}", N if i % 3 == 0 else B) for i in range(400))
SCRIPTS = {"short": SHORT, "long": LONG}
TEMPLATE = "{% for m in messages %}<|turn|>{{ m.role }}\n{{ m.content }}<|end|>{% endfor %}<|turn|>assistant\n"


def text_of(script: Script) -> str:
    return "".join(word for word, _ in script)


def _next_word(script: Script, text: bytes) -> int:
    """Return how many words of the script the text ends with."""
    beginnings = _beginnings(tuple(script))
    return next((n_words for n_words in range(len(script), 0, -1) if text.endswith(beginnings[n_words])), 0)


@lru_cache
def _beginnings(script: Script) -> list[bytes]:
    return [text_of(script[:n_words]).encode() for n_words in range(len(script) + 1)]


def fake_pair(
    script: Script = SHORT,
    spec: PairSpec | None = None,
    *,
    n_ctx: int = 4096,
    delay_s: float = 0.0,
    fail: Callable[[int], int | None] | None = None,
    **more: Any,
) -> Pair:
    """Return a pair that writes `script`; the base model is sure of its own words only."""
    vocabulary = ToyVocabulary(tuple(sorted({*(word for word, _ in script if len(word.encode()) > 1), " the"})))

    def base(text: bytes) -> tuple[str, float]:
        at = _next_word(script, text)
        return (script[at][0], 0.9) if at < len(script) and script[at][1] is B else (" the", 0.2)

    def nudging(text: bytes) -> tuple[str, float]:
        at = _next_word(script, text)
        return (script[at][0], 0.8) if at < len(script) else ("<|end|>", 0.95)

    def slow(scorer: Scorer) -> Scorer:
        def score(ids: tuple[int, ...]) -> Any:
            if delay_s > 1:
                sys.stderr.write("evaluating\n")
            time.sleep(delay_s)
            return scorer(ids)

        return score if delay_s else scorer

    return Pair(
        FakeBackend(vocabulary, slow(scripted_scores(vocabulary, base)), name="fake base", n_ctx=n_ctx),
        FakeBackend(
            vocabulary, slow(scripted_scores(vocabulary, nudging)), name="fake nudging", n_ctx=n_ctx,
            chat_template=TEMPLATE, fail=fail,
        ),
        spec or PairSpec(Path("base.gguf"), Path("nudging.gguf")),
        **more,
    )  # fmt: skip


def loader(script: Script = SHORT, **settings: Any) -> Callable[..., Pair]:
    """Return what stands in for runtime.load_pair."""

    def load_pair(spec: PairSpec, **load_settings: Any) -> Pair:
        n_ctx = min(load_settings.get("ctx_size", 4096), 4096)
        return fake_pair(script, spec, **{"n_ctx": n_ctx, **settings})

    return load_pair


class Stream(io.TextIOWrapper):
    """A standard stream over memory, a terminal or not."""

    def __init__(self, data: bytes = b"", *, is_terminal: bool = False) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8", newline="\n", write_through=True)
        self.is_terminal = is_terminal

    def isatty(self) -> bool:
        return self.is_terminal

    @property
    def text(self) -> str:
        written = self.buffer
        assert isinstance(written, io.BytesIO)
        return written.getvalue().decode()


@dataclass
class Ended:
    """What a command line left behind."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of a failure; there is nothing else."""
        assert self.out == ""
        assert self.err.endswith("\n")
        assert self.err.count("\n") == 1, self.err
        return self.err.removesuffix("\n")


Invoke = Callable[..., Ended]


def invoker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Invoke]:
    """Make a fixture that runs a command line in this process, with a fake pair.

    `stdin` None is a terminal; `tty` names which of "out" and "err" are terminals, with 256 colours.
    """
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("EDGE_NUDGE_CACHE_DIR", str(tmp_path / "cache"))

    def invoke(
        *arguments: str, stdin: bytes | None = None, tty: str = "", load: Callable[..., Any] | None = None
    ) -> Ended:
        out, err = Stream(is_terminal="out" in tty), Stream(is_terminal="err" in tty)
        monkeypatch.setattr(sys, "stdin", Stream(stdin or b"", is_terminal=stdin is None))
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        monkeypatch.setattr(runtime, "load_pair", load or loader())
        return Ended(exit_status(arguments), out.text, err.text)

    yield invoke
    show_log(0)


def no_load(*_: Any, **__: Any) -> Pair:
    """Stand in for runtime.load_pair where nothing may be loaded."""
    raise AssertionError("nothing may be loaded")


def stuck(spec: PairSpec, **load_settings: Any) -> Pair:
    sys.stderr.write("loading\n")
    time.sleep(60)
    raise AssertionError("nobody waits that long")


def main() -> None:
    _, script, delay_s, *arguments = sys.argv
    # A test run that a shell put into the background ignores SIGINT, and so would this program.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    runtime.load_pair = stuck if script == "stuck" else loader(SCRIPTS[script], delay_s=float(delay_s))
    sys.argv = ["edge-nudge", *arguments]
    cli_main()


if __name__ == "__main__":
    main()
