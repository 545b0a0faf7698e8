"""IFEval's verdicts: each kind of instruction, odd rows, hostile answers, and nothing fetched."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ifeval_answers import IN_LANGUAGE, PROSE, VALUES, right_answer, wrong_answer

from edge_nudge.errors import InputError
from edge_nudge.evaluate import sentences
from edge_nudge.evaluate.instructions import score_instructions

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("lm_eval", "nltk", "langdetect", "punkt")),
        reason="IFEval's checkers are not installed: pip install 'edge-nudge[eval]'",
    ),
]

FIGURES = ("prompt_level_strict_acc", "prompt_level_loose_acc", "inst_level_strict_acc", "inst_level_loose_acc")
# sha256 of the sorted lines of the files in NLTK's published package punkt_tab, English.
PUBLISHED = {
    "abbrev_types.txt": "0ab7d6b126eed733d9bc5733d3a51ea575e90ece1b908e77c9d5b74e2a54213a",
    "collocations.tab": "73d7f183e9cf31ee6edf41df100a6f57c72404db66f599fe86b3fb2e6148f35f",
    "ortho_context.tab": "d762d271cb556bab69960781a49eb034588801983af80d39ac936362c812084f",
    "sent_starters.txt": "8a66e19f1bf6a03061dbcda945e46839d09612f8235dbcb1b994f59184ecc989",
}


def row(*kinds: str, **values: Any) -> dict[str, Any]:
    """A row with our own values; `values` are the only kind's."""
    kwargs = [dict(VALUES[kind]) | values for kind in kinds]
    return {"key": 7, "prompt": "Say something.", "instruction_id_list": list(kinds), "kwargs": kwargs}


def figures(of: dict[str, Any], answer: str) -> tuple[float, ...]:
    scores = score_instructions(of, answer)
    assert set(scores) == {*FIGURES, "n_instructions"}
    return tuple(scores[name] for name in FIGURES)


@pytest.mark.parametrize("kind", sorted(VALUES))
def test_each_kind_has_answers_that_follow_it_and_that_do_not(kind: str) -> None:
    assert figures(row(kind), right_answer(kind, VALUES[kind])) == (1, 1, 1, 1)
    assert figures(row(kind), wrong_answer(kind, VALUES[kind])) == (0, 0, 0, 0)


def test_every_registered_kind_is_tried_here() -> None:
    score_instructions(row("punctuation:no_comma"), "Yes.")
    from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT

    assert set(INSTRUCTION_DICT) == set(VALUES)
    assert len(VALUES) == 25


@pytest.mark.parametrize("language", sorted(IN_LANGUAGE))
def test_each_language_is_told_from_others_the_same_way_each_time(language: str) -> None:
    other = IN_LANGUAGE["fi" if language != "fi" else "ko"]
    for _ in range(3):
        assert figures(row("language:response_language", language=language), IN_LANGUAGE[language])[0] == 1
        assert figures(row("language:response_language", language=language), other)[0] == 0


def test_a_text_that_could_be_in_many_languages_has_one_verdict() -> None:
    verdicts = {figures(row("language:response_language", language="de"), "Hotel Taxi Bus") for _ in range(60)}
    assert len(verdicts) == 1


def test_shares_and_prompts_of_several_instructions() -> None:
    two = row("punctuation:no_comma", "startend:quotation")
    assert score_instructions(two, PROSE) == {
        "prompt_level_strict_acc": 0, "prompt_level_loose_acc": 0,
        "inst_level_strict_acc": 0.5, "inst_level_loose_acc": 0.5, "n_instructions": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    "answer",
    ["Sure, here it is:\nNo more of it", "No more of it\nGood, is it not", "Well,\nNo more of it\nGood, yes"],
    ids=["first line", "last line", "both"],
)
def test_loose_leaves_out_the_first_and_the_last_line(answer: str) -> None:
    assert figures(row("punctuation:no_comma"), answer) == (0, 1, 0, 1)


def test_loose_leaves_out_asterisks() -> None:
    assert figures(row("startend:quotation"), f'**"{PROSE}"**') == (0, 1, 0, 1)


@pytest.mark.parametrize("answer", ["", " ", "\n\n", "\t \n"])
def test_a_blank_answer_follows_nothing(answer: str) -> None:
    every = row(*VALUES)
    assert figures(every, answer) == (0, 0, 0, 0)
    assert figures(row("punctuation:no_comma"), answer) == (0, 0, 0, 0)


def test_a_character_that_is_no_letter_is_counted_and_not_drawn() -> None:
    hashes = row("keywords:letter_frequency", letter="#", let_frequency=4, let_relation="at least")
    for _ in range(20):  # the checker itself would take any letter of the alphabet
        assert figures(hashes, "#a #b #c #d")[0] == 1
        assert figures(hashes, "abcdefghijklmnopqrstuvwxyz " * 4 + "#a #b #c")[0] == 0


def test_none_is_not_given_and_nought_is() -> None:
    padded = row("detectable_format:number_bullet_lists", num_bullets=3, keyword=None, relation=None)
    assert figures(padded, "- a\n- b\n- c")[0] == 1
    none_wanted = row("detectable_format:number_bullet_lists", num_bullets=0)
    for _ in range(10):
        assert figures(none_wanted, PROSE)[0] == 1
        assert figures(none_wanted, "* a")[0] == 0


@pytest.mark.parametrize(
    ("faulty", "message"),
    [
        ({"key": 7}, "two lists of the same length"),
        ({"key": 7, "instruction_id_list": [], "kwargs": []}, "two lists of the same length"),
        ({"key": 7, "instruction_id_list": "abc", "kwargs": "abc"}, "two lists of the same length"),
        ({"key": 7, "instruction_id_list": ["punctuation:no_comma"], "kwargs": []}, "two lists of the same length"),
        ({"key": 7, "instruction_id_list": ["a:b"], "kwargs": [{}]}, "a:b: no such instruction"),
        ({"key": 7, "instruction_id_list": [[]], "kwargs": [{}]}, "no such instruction"),
        ({"key": 7, "instruction_id_list": ["punctuation:no_comma"], "kwargs": [3]}, "its kwargs are int"),
        (row("punctuation:no_comma", language="de"), "refuses"),
        (row("length_constraints:number_words", relation="about"), "refuses"),
        (row("length_constraints:number_words", num_words=None), "would draw one"),
        (row("length_constraints:number_words", num_words=-1), "would draw one"),
        (row("keywords:existence", keywords=[]), "would draw one"),
        (row("keywords:letter_frequency", letter=" "), "would draw one"),
        (row("length_constraints:nth_paragraph_first_word", nth_paragraph=9), "would draw one"),
        (row("keywords:existence", keywords=["c(+"]), "no regular expression"),
    ],
)
def test_a_row_that_cannot_be_checked_is_an_error_and_no_verdict(faulty: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        score_instructions(faulty, PROSE)


def test_a_checker_that_fails_on_an_answer_says_that_it_is_not_followed() -> None:
    assert figures(row("detectable_format:json_format", "punctuation:no_comma"), "[" * 100_000) == (0, 0, 0.5, 0.5)


HOSTILE = st.one_of(
    st.text(max_size=300),
    st.text(st.characters(), max_size=100),  # lone surrogates too
    st.lists(
        st.sampled_from(["\n", "*", "-", "[", "]", "<<", ">>", '"', "p.", " ", "a", "#", "{", "1", ",", "\0"])
    ).map("".join),
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(HOSTILE)
def test_any_text_has_a_verdict_and_always_the_same(text: str) -> None:
    every = row(*VALUES)
    scores = score_instructions(every, text)
    assert scores == score_instructions(every, text)
    assert scores["prompt_level_strict_acc"] in (0, 1)
    assert scores["prompt_level_loose_acc"] in (0, 1)
    assert 0 <= scores["inst_level_strict_acc"] <= scores["inst_level_loose_acc"] <= 1
    for share in ("inst_level_strict_acc", "inst_level_loose_acc"):
        assert scores[share] in [n / len(VALUES) for n in range(len(VALUES) + 1)]


# Sentences as NLTK's published English model counts them: abbreviations, initials, ellipses, quotes, numbers.
COUNTED = [
    ("Dr. Lind met Mrs. Ode at 5 p.m. on Monday. They spoke.", 2),
    ("J. S. Bach wrote it. A. B. Carter sang it.", 3),
    ("The firm moved to the U.S. in May. It grew.", 2),
    ("Wait... what was that? Nobody knew.", 2),
    ("Wait... What was that? Nobody knew.", 2),
    ("He paused . . . and left.", 4),
    ("It cost 3.50 dollars. Really!", 2),
    ('She said "Stop." Then she ran.', 2),
    ("See Fig. 3 for it, e.g. the owl. See also No. 5 there.", 5),
    ("one\ntwo\n\nthree", 1),
    ("Is it? Yes! Good.", 3),
]


@pytest.mark.parametrize(("text", "n_sentences"), COUNTED)
def test_sentences_are_counted_as_nltk_counts_them(text: str, n_sentences: int) -> None:
    at_least = row("length_constraints:number_sentences", num_sentences=n_sentences, relation="at least")
    more = row("length_constraints:number_sentences", num_sentences=n_sentences + 1, relation="at least")
    assert figures(at_least, text)[0] == 1
    assert figures(more, text)[0] == 0


def model_of(cache: Path) -> Path:
    return cache.joinpath("nltk", "tokenizers", "punkt_tab", "english")


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """NLTK with an empty search path, and an empty cache folder."""
    import nltk

    monkeypatch.setattr(nltk.data, "path", [])
    monkeypatch.setenv("EDGE_NUDGE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_model_is_the_published_one(no_model: Path) -> None:
    sentences.provide_sentences()
    for name, digest in PUBLISHED.items():
        lines = (model_of(no_model) / name).read_text(encoding="utf-8").split("\n")
        assert hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest() == digest, name


def test_a_damaged_model_is_written_anew(no_model: Path) -> None:
    sentences.provide_sentences()
    place = model_of(no_model) / "ortho_context.tab"
    whole = place.read_bytes()
    place.write_bytes(whole[: len(whole) // 2])  # ends in the middle of a line
    (model_of(no_model) / "abbrev_types.txt").unlink()
    sentences.provide_sentences()
    assert place.read_bytes() == whole
    assert sorted(path.name for path in model_of(no_model).iterdir()) == sorted(PUBLISHED)
    assert sorted(path.name for path in (no_model / "nltk").iterdir()) == ["tokenizers"]


@pytest.mark.skipif(os.name != "posix", reason="modes of files are those of POSIX")
def test_the_model_is_private_under_any_umask(no_model: Path) -> None:
    before = os.umask(0)
    try:
        sentences.provide_sentences()
    finally:
        os.umask(before)
    for path in (no_model / "nltk").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_several_at_once_write_one_whole_model(no_model: Path) -> None:
    faults: list[BaseException] = []

    def provide() -> None:
        try:
            for _ in range(5):
                sentences._write_model(no_model / "nltk")
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=provide) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    assert sorted(path.name for path in model_of(no_model).iterdir()) == sorted(PUBLISHED)


def test_a_model_that_the_user_has_is_used(no_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import nltk

    theirs = tmp_path / "theirs"
    sentences._write_model(theirs)
    monkeypatch.setattr(nltk.data, "path", [str(theirs)])
    sentences.provide_sentences()
    assert nltk.data.path == [str(theirs)]
    assert not no_model.exists()


def test_a_cache_folder_that_cannot_be_written_is_told(no_model: Path) -> None:
    no_model.write_text("a file where a folder should be")
    with pytest.raises(InputError, match="EDGE_NUDGE_CACHE_DIR"):
        sentences.provide_sentences()


OFFLINE = """
import sys
from pathlib import Path

def guard(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request"):
        Path("asked").write_text(f"{event} {arguments}")
        raise RuntimeError(f"the network was asked: {event} {arguments}")

sys.addaudithook(guard)
import json
from edge_nudge.evaluate.instructions import score_instructions
row = json.loads(sys.stdin.read())
print(json.dumps(score_instructions(row, "One. Two. Three.")))
"""


@pytest.mark.process
def test_nothing_is_fetched(tmp_path: Path) -> None:
    """In a new process, with an empty home and no model anywhere; many workers of a run have a rank as well."""
    kinds = ("length_constraints:number_sentences", "change_case:capital_word_frequency", "language:response_language")
    environment = {name: value for name, value in os.environ.items() if name not in ("NLTK_DATA", "LOCAL_RANK")}
    environment |= {"HOME": str(tmp_path), "EDGE_NUDGE_CACHE_DIR": str(tmp_path / "cache")}
    for _ in range(2):  # the second finds what the first has written
        done = subprocess.run(
            [sys.executable, "-c", OFFLINE], input=json.dumps(row(*kinds, )), env=environment, cwd=tmp_path,
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["n_instructions"] == 3
        assert "nltk_data" not in done.stderr
        assert not (tmp_path / "asked").exists()
    assert sorted(path.name for path in model_of(tmp_path / "cache").iterdir()) == sorted(PUBLISHED)
