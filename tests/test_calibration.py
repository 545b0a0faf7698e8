"""Which setting is recommended, and when none is: on made-up answers, and the way into a user's manifest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from edge_nudge.catalog.manifest import load_manifest, user_pairs_dir
from edge_nudge.core.request import Rule, build_request
from edge_nudge.errors import InputError
from edge_nudge.evaluate.calibration import (
    GRIDS,
    Setting,
    calibrate,
    default_setting,
    settings_to_try,
    systems_of,
)
from edge_nudge.evaluate.choices import save_choice
from edge_nudge.evaluate.own import read_own
from edge_nudge.evaluate.results import ItemResult, Results, SystemResult
from edge_nudge.evaluate.rows import read_rows
from edge_nudge.runtime import find_pair
from edge_nudge.spec import PairSpec

pytest.importorskip("scipy")
pytest.importorskip("tomlkit")
PRESENT = Setting(rule="top_prob", gamma=0.4)


def items(scores: Sequence[float | None], n_nudging: int = 10, n_base: int = 90) -> tuple[ItemResult, ...]:
    return tuple(
        ItemResult(
            task="questions", id=str(i), question="?", gold="", answer="x" * 100, score=score, n_base_tokens=n_base,
            n_nudging_tokens=n_nudging, n_base_chars=n_base, n_nudging_chars=n_nudging, n_handoffs=4, total_s=2.0,
        )
        for i, score in enumerate(scores)
    )  # fmt: skip


def nudged(gamma: float, scores: Sequence[float | None], n_nudging: int = 10) -> SystemResult:
    name = Setting(rule="top_prob", gamma=gamma).system
    shared = items(scores, n_nudging, 100 - n_nudging)
    return SystemResult(name=name, rule="top_prob", gamma=gamma, items=shared)


def alone(base: Sequence[float], nudging: Sequence[float]) -> list[SystemResult]:
    return [SystemResult(name="base", items=items(base)), SystemResult(name="nudging", items=items(nudging))]


def right(n_right: int, n: int = 60) -> list[float]:
    return [1.0] * n_right + [0.0] * (n - n_right)


def found(*systems: SystemResult) -> Results:
    return Results(systems=tuple(systems))


# --- with known answers


def test_a_setting_that_is_better_beyond_noise_is_recommended() -> None:
    results = found(*alone(right(5), right(10)), nudged(0.4, right(12)), nudged(0.2, right(40)), nudged(0.3, right(20)))
    finding = calibrate(results, PRESENT)
    assert finding.recommended == Setting(rule="top_prob", gamma=0.2)
    assert finding.is_change
    assert finding.by == "accuracy"
    assert "better beyond noise" in finding.reason
    assert finding.warnings == ()
    assert [model.name for model in finding.alone] == ["base", "nudging"]
    assert finding.alone[1].gain == pytest.approx(30 / 60)
    best = next(point for point in finding.points if point.setting.gamma == 0.2)
    assert best.score == pytest.approx(40 / 60)
    assert best.change == pytest.approx(28 / 60)
    assert best.p is not None
    assert best.p < 0.001
    assert best.tokens_per_s == pytest.approx(50.0)


def test_a_difference_within_noise_changes_nothing() -> None:
    results = found(*alone(right(2), right(5)), nudged(0.4, right(20)), nudged(0.2, right(23)))
    finding = calibrate(results, PRESENT)
    assert finding.recommended == PRESENT
    assert not finding.is_change
    assert "beyond noise" in finding.reason
    assert "ask more questions" in finding.reason


def test_many_settings_are_tried_at_a_price() -> None:
    """Six items more: enough for one comparison, not for five."""
    one = calibrate(found(*alone(right(0), right(0)), nudged(0.4, right(20)), nudged(0.2, right(26))), PRESENT)
    others = [nudged(gamma, right(20)) for gamma in (0.1, 0.3, 0.5, 0.6)]
    five = calibrate(
        found(*alone(right(0), right(0)), nudged(0.4, right(20)), nudged(0.2, right(26)), *others), PRESENT
    )
    assert one.is_change
    assert not five.is_change


def test_no_setting_helps_is_said() -> None:
    results = found(*alone(right(30), right(30)), nudged(0.4, right(30)), nudged(0.2, right(29)))
    (warning,) = calibrate(results, PRESENT).warnings
    assert "not shown to help" in warning
    assert "base model alone (50.0 %) and the nudging model alone (50.0 %)" in warning


def test_much_nudging_is_said() -> None:
    results = found(*alone(right(0), right(0)), nudged(0.4, right(40), n_nudging=35))
    assert any("35.0 % of the tokens" in warning for warning in calibrate(results, PRESENT).warnings)


def test_the_best_is_kept_where_it_is_the_present_one() -> None:
    finding = calibrate(found(*alone(right(0), right(0)), nudged(0.4, right(40)), nudged(0.2, right(40))), PRESENT)
    assert not finding.is_change
    assert "scores best" in finding.reason


# --- without


def test_without_answers_the_usual_ratio_decides() -> None:
    blank: list[float | None] = [None] * 10
    results = found(nudged(0.2, blank, 5), nudged(0.3, blank, 14), nudged(0.4, blank, 30))
    finding = calibrate(results, PRESENT)
    assert (finding.recommended.gamma, finding.by, finding.is_change) == (0.3, "ratio", True)
    assert finding.points[0].score is None
    assert "alone" in finding.warnings[0]


def test_a_few_prompts_change_nothing() -> None:
    blank: list[float | None] = [None] * 9
    finding = calibrate(found(nudged(0.3, blank, 14), nudged(0.4, blank, 30)), PRESENT)
    assert not finding.is_change
    assert "9 prompts are too few" in finding.reason
    assert "30.0 % of the tokens" in finding.warnings[0]


def test_a_pair_that_is_always_nudged_too_much_is_warned_of() -> None:
    blank: list[float | None] = [None] * 10
    finding = calibrate(found(nudged(0.2, blank, 25), nudged(0.4, blank, 40)), PRESENT)
    assert not finding.is_change
    assert "tend to fail" in finding.warnings[0]


# --- what is tried


def test_the_present_setting_is_always_tried() -> None:
    own = Setting(rule="margin", gamma=0.123)
    tried = settings_to_try(["top_prob"], [0.2, 0.3], own)
    assert tried[0] == own
    assert [setting.gamma for setting in tried[1:]] == [0.2, 0.3]
    assert len(settings_to_try(["top_prob"], [0.4], PRESENT)) == 1
    names = [system.name for system in systems_of(tried, is_scored=True)]
    assert names == ["base", "nudging", *(setting.system for setting in tried)]


@pytest.mark.parametrize("rule", GRIDS)
def test_each_setting_is_a_request(rule: str) -> None:
    for gamma in GRIDS[rule]:
        (system,) = systems_of([Setting(rule=rule, gamma=gamma)], is_scored=False)
        nudge = build_request("?", **system.request_settings).nudge
        assert (nudge.rule.value, nudge.threshold) == (rule, gamma)


def test_what_cannot_be_tried_is_refused() -> None:
    with pytest.raises(InputError, match="'base-only' is nothing to calibrate"):
        settings_to_try(["base-only"], [], PRESENT)
    with pytest.raises(InputError, match="2 rules cannot be given as one list"):
        settings_to_try(["top_prob", "margin"], [0.2], PRESENT)
    with pytest.raises(InputError, match=r"top_prob at 0\.4, was not asked"):
        calibrate(found(nudged(0.2, right(3))), PRESENT)


# --- a user's own questions


def test_own_questions_become_rows(tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text(
        '{"question": "2 + 2?", "answer": 4}\n\n{"question": "Which?", "choices": ["red", "blue"], "answer": "B"}\n'
        '{"id": "x", "question": "Capital of France?", "answer": "Paris"}\n'
    )
    task = read_own(file, tmp_path / "rows")
    rows = read_rows(task, tmp_path / "rows")
    assert task.name == "questions"
    assert [row["id"] for row in rows] == ["1", "3", "x"]
    assert [getattr(task.kind_of(row), "value", None) for row in rows] == ["number", "choice", "text"]


def test_plain_lines_are_prompts(tmp_path: Path) -> None:
    file = tmp_path / "q.txt"
    file.write_bytes("\ufeffWhy is the sky blue?\r\n\r\n{not json}\n".encode())
    task = read_own(file, tmp_path / "rows")
    assert task.name == "prompts"
    assert [row["question"] for row in read_rows(task, tmp_path / "rows")] == ["Why is the sky blue?", "{not json}"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("q.txt", b"", "has no questions"),
        ("q.txt", b"\xff\xfe", "not UTF-8, at byte 0"),
        ("q.jsonl", b"{", "line 1: no JSON"),
        ("q.jsonl", b'{"question": "?"}\n[1]', 'line 2: it needs a "question"'),
        ("q.jsonl", b'{"question": "a", "answer": "1"}\n{"question": "b"}', "line 1 has an answer and line 2 has none"),
        ("none", None, "cannot be read"),
    ],
)
def test_a_faulty_file_is_named(tmp_path: Path, name: str, data: bytes | None, message: str) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message):
        read_own(tmp_path / name, tmp_path / "rows")


# --- into the manifest


@pytest.fixture(autouse=True)
def own_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_NUDGE_CONFIG_DIR", str(tmp_path / "config"))


def test_a_shipped_pair_is_extended_and_its_new_setting_used() -> None:
    manifest = load_manifest("demo")
    spec = PairSpec(Path("b.gguf"), Path("n.gguf"), "demo", manifest.gamma)
    path = save_choice(spec, "demo", Rule.MARGIN, 0.25)
    assert path == user_pairs_dir() / "demo.toml"
    new = load_manifest("demo")
    assert (new.rule, new.gamma) == (Rule.MARGIN, 0.25)
    assert new.base == manifest.base
    save_choice(spec, "demo", Rule.TOP_PROB, 0.3)
    assert (load_manifest("demo").rule, load_manifest("demo").gamma) == (Rule.TOP_PROB, 0.3)


def test_comments_and_other_fields_of_a_users_manifest_stay() -> None:
    path = user_pairs_dir() / "demo.toml"
    path.parent.mkdir(parents=True)
    head = '# mine\nextends = "demo"\ntitle = "My demo"  # a title\n'
    path.write_text(f'{head}gamma = 0.5 # old\n\n[nudging]\nthinking = "off"\n')
    save_choice(PairSpec(Path("b"), Path("n"), "demo"), "demo", Rule.TOP_PROB, 0.2)
    assert path.read_text().startswith(f"{head}gamma = 0.2 # old\n")
    assert load_manifest("demo").nudging.thinking == "off"


def test_two_files_become_a_pair(tmp_path: Path) -> None:
    for name in ("base.gguf", "nudge.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    spec = PairSpec(tmp_path / "base.gguf", tmp_path / "nudge.gguf", base_prompt_format="chat")
    save_choice(spec, "mine", Rule.ENTROPY, 1.5)
    manifest = load_manifest("mine")
    assert (manifest.rule, manifest.gamma, manifest.base.prompt_format) == (Rule.ENTROPY, 1.5, "chat")
    again = find_pair("mine")
    assert (again.base, again.nudging, again.rule, again.gamma) == (spec.base, spec.nudging, Rule.ENTROPY, 1.5)
    save_choice(spec, "mine", Rule.TOP_PROB, 0.2)  # the same two files
    with pytest.raises(InputError, match="there is a pair 'mine' of other models"):
        save_choice(PairSpec(tmp_path / "base.gguf", tmp_path / "base.gguf"), "mine", Rule.TOP_PROB, 0.2)
    with pytest.raises(InputError, match="there is a pair 'demo' of other models"):
        save_choice(spec, "demo", Rule.TOP_PROB, 0.2)
    with pytest.raises(InputError, match="no name of a pair"):
        save_choice(spec, "../x", Rule.TOP_PROB, 0.2)


def test_a_broken_manifest_is_left_alone() -> None:
    path = user_pairs_dir() / "demo.toml"
    path.parent.mkdir(parents=True)
    path.write_text("extends = \n")
    with pytest.raises(InputError, match="cannot be read"):
        save_choice(PairSpec(Path("b"), Path("n"), "demo"), "demo", Rule.TOP_PROB, 0.2)
    assert path.read_text() == "extends = \n"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("margin", 0.25)),
        ({"gamma": 0.1}, ("margin", 0.1)),
        ({"rule": "margin"}, ("margin", 0.25)),
        ({"rule": "top_prob"}, ("top_prob", 0.4)),
        ({"rule": "base-only"}, ("base-only", 0.0)),
    ],
)
def test_a_pairs_rule_holds_where_none_is_given(given: dict[str, object], expected: tuple[str, float]) -> None:
    spec = PairSpec(Path("b"), Path("n"), gamma=0.25, rule=Rule.MARGIN)
    nudge = spec.resolve(build_request("?", **given)).nudge
    assert (nudge.rule.value, nudge.threshold) == expected
    assert default_setting(spec.rule, spec.gamma) == Setting(rule="margin", gamma=0.25)
    assert default_setting(Rule.TOP_PROB, None) == PRESENT
