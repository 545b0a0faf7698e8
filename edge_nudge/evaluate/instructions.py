"""IFEval: whether an answer follows the instructions of its prompt, by the checkers of lm-eval.

Owns which checker is asked with what, and what counts where a checker fails. Never fetches anything.

1. Strict asks about the answer as it is; loose accepts it without its first line, its last line, both, and all of
   these without asterisks.
2. A blank answer, and a blank rest of one, follows nothing.
3. No verdict rests on chance: language detection is seeded, and a value that a checker would draw is an error. Two rows
   of the published set ask for a character that is no letter, where the checker draws one: here it is counted.
4. None is a value that is not given; 0, "" and [] are given. (lm-eval drops these as well; no published row has one.)
5. A checker that fails on an answer says that it is not followed. JSON nested too deeply to be read does that. A text
   without any language follows a language instruction: that is the published rule, kept for figures to compare.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeGuard

from edge_nudge.errors import InputError
from edge_nudge.evaluate.sentences import provide_sentences

_LETTERS = "keywords:letter_frequency"
_WORDS = "keywords:frequency"

_log = logging.getLogger("edge_nudge.evaluate")
_lock = threading.Lock()
_registry: dict[str, Any] = {}


class _Checker(Protocol):
    def get_instruction_args(self) -> Mapping[str, Any] | None: ...

    def check_following(self, value: str) -> bool: ...


def score_instructions(row: Mapping[str, Any], answer: str) -> dict[str, float]:
    """Return IFEval's four figures of an answer, and `n_instructions`.

    `row` has `instruction_id_list` and `kwargs`. The prompt-level figures are 0 or 1, those of instructions are shares;
    over many rows the published ones weigh each share by `n_instructions`. Raises InputError for a row that cannot be
    checked, and without lm-eval.
    """
    checkers = _checkers_of(row)
    variants = _variants(answer)
    strict = [_follows(checker, answer) for checker in checkers]
    loose = [
        followed or any(_follows(checker, text) for text in variants)
        for followed, checker in zip(strict, checkers, strict=True)
    ]
    return {
        "prompt_level_strict_acc": float(all(strict)),
        "prompt_level_loose_acc": float(all(loose)),
        "inst_level_strict_acc": sum(strict) / len(strict),
        "inst_level_loose_acc": sum(loose) / len(loose),
        "n_instructions": float(len(checkers)),
    }


def _variants(answer: str) -> list[str]:
    """Return what else loose accepts for an answer."""
    lines = answer.split("\n")
    cut = ["\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])]
    plain = [text.replace("*", "") for text in (answer, *cut)]
    return [text for text in dict.fromkeys([*cut, *plain]) if text != answer]


def _follows(checker: _Checker, text: str) -> bool:
    if not text.strip():
        return False
    try:
        return bool(checker.check_following(text))
    except re.error as error:
        raise InputError(f"a keyword of this row is no regular expression ({error}): mend the row") from error
    except MemoryError:
        raise
    except Exception as error:  # a foreign checker on foreign text: one answer must not end an evaluation
        _log.info("%s failed on an answer, which counts as not following: %r", type(checker).__name__, error)
        return False


def _checkers_of(row: Mapping[str, Any]) -> list[_Checker]:
    """Return a row's checkers, ready. Raises InputError."""
    kinds, all_values = row.get("instruction_id_list"), row.get("kwargs")
    if not _is_list(kinds) or not _is_list(all_values) or not 0 < len(kinds) == len(all_values):
        raise InputError(
            f"row {row.get('key', '?')} of IFEval needs instruction_id_list and kwargs, two lists of the same length"
        )
    with _lock:
        registry = _registry or _prepare()
    try:
        return [_checker(registry, kind, values) for kind, values in zip(kinds, all_values, strict=True)]
    except InputError as error:
        raise InputError(f"row {row.get('key', '?')} of IFEval, {error}") from error.__cause__


def _checker(registry: Mapping[str, Any], kind: Any, values: Any) -> _Checker:
    if not isinstance(kind, str) or kind not in registry:
        raise InputError(f"{kind}: no such instruction is known")
    if not isinstance(values, Mapping):
        raise InputError(f"{kind}: its kwargs are {type(values).__name__}, not an object")
    given = {name: value for name, value in values.items() if value is not None}
    letter = given.get("letter")
    if kind == _LETTERS and isinstance(letter, str) and len(letter) == 1 and not letter.isspace() | _is_latin(letter):
        given = {
            "keyword": re.escape(letter), "frequency": given.get("let_frequency"), "relation": given.get("let_relation")
        }  # fmt: skip
        kind = _WORDS
    checker: _Checker = registry[kind](kind)
    try:
        checker.build_description(**given)  # type: ignore[attr-defined]  # each takes values of its own
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise InputError(f"{kind}: its checker refuses {given}: {error}") from error
    for name, used in (checker.get_instruction_args() or {}).items():
        if not _is_same(given.get(name), used):
            raise InputError(f"{kind}: its checker cannot use {name} = {given.get(name)!r}, and would draw one")
    return checker


def _is_list(value: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _is_latin(letter: str) -> bool:
    return letter.isascii() and letter.isalpha()


def _is_same(given: Any, used: Any) -> bool:
    """Return whether a checker took a value as it was given, but for case, space around it and order."""
    if isinstance(given, str) and isinstance(used, str):
        return given.strip().lower() == used.strip().lower()
    if _is_list(given) and _is_list(used):
        return {str(one) for one in given} == {str(one) for one in used}
    return bool(given == used)


def _prepare() -> Mapping[str, Any]:
    """Import the checkers, once, when all that they need is there. Raises InputError."""
    try:
        import langdetect
        import nltk
    except ImportError as error:
        raise InputError(
            f"IFEval needs the package {error.name}, which is not installed: pip install 'edge-nudge[eval]'"
        ) from error
    provide_sentences()  # before the import below, which fetches where NLTK finds nothing
    try:
        from lm_eval.tasks.ifeval import instructions_registry, instructions_util
    except ImportError as error:
        raise InputError(f"IFEval's checkers cannot be imported ({error}): pip install 'edge-nudge[eval]'") from error
    langdetect.DetectorFactory.seed = 0
    # It logs every answer whose language is not found, in full.
    logging.getLogger("lm_eval.tasks.ifeval.instructions").setLevel(logging.CRITICAL)
    # Everything that is loaded at the first use, so that a fault of the installation is not one of an answer.
    instructions_util.count_sentences("One. Two.")
    nltk.word_tokenize("One. Two.")
    langdetect.detect("One. Two.")
    _registry.update(instructions_registry.INSTRUCTION_DICT)
    return _registry
