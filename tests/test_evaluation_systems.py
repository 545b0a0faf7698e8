"""Names of systems, what they mean, and what is said of a name that means nothing."""

from __future__ import annotations

import re
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_nudge.core.request import Rule, build_request
from edge_nudge.errors import InputError
from edge_nudge.evaluate.kept import file_name
from edge_nudge.evaluate.plan import DEFAULT_SYSTEMS
from edge_nudge.evaluate.systems import Kind, System, parse_system, parse_systems

NAMES = (
    *("base", "nudging", "nudged", "urial", "aligned", "ensemble", "proxy"),
    *(
        "nudged:gamma=0.4",
        "nudged:gamma=1",
        "nudged:rule=entropy+gamma=2.0",
        "nudged:lookahead=16",
        "nudged:format=plain",
    ),
    *("nudged:loop_guard=off+end_prob=2", "nudged:rule=margin+gamma=0.1+temp=0.8+seed=7+top_k=0", "nudged:max_turns=5"),
    *(
        "base:format=chat",
        "base:temp=1+seed=3",
        "nudging:top_p=0.5+min_p=0",
        "proxy:alpha=0.5",
        "ensemble:format=plain",
    ),
)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_comes_back(name: str) -> None:
    system = parse_system(name)
    assert system.name == name
    assert system.kind is Kind(name.partition(":")[0])
    assert parse_system(system.name) == system
    build_request("hello", **system.request_settings)


def test_settings_reach_the_request() -> None:
    system = parse_system("nudged:rule=entropy+gamma=2+lookahead=16+loop_guard=off+end_prob=2+temp=1+seed=7")
    request = build_request("hello", **system.request_settings)
    assert request.nudge.rule is Rule.ENTROPY
    assert (request.nudge.threshold, request.nudge.lookahead, request.nudge.end_prob) == (2.0, 16, 2.0)
    assert request.nudge.loop_guard is False
    assert (request.sampling.temp, request.sampling.seed) == (1.0, 7)


def test_a_model_alone_has_its_rule() -> None:
    rules = {name: build_request("-", **parse_system(name).request_settings).nudge.rule for name in Kind}
    assert rules == {
        Kind.BASE: Rule.BASE_ONLY,
        Kind.URIAL: Rule.BASE_ONLY,
        Kind.NUDGING: Rule.NUDGING_ONLY,
        Kind.ALIGNED: Rule.NUDGING_ONLY,
        Kind.NUDGED: Rule.TOP_PROB,
        Kind.ENSEMBLE: Rule.TOP_PROB,
        Kind.PROXY: Rule.TOP_PROB,
    }


def test_formats_and_alpha_are_no_settings_of_a_request() -> None:
    assert parse_system("urial").base_prompt_format == "urial"
    plain = parse_system("nudged:format=plain+gamma=0.2")
    assert (plain.base_prompt_format, plain.settings) == ("plain", {"gamma": 0.2})
    assert plain.shown_settings == {"gamma": 0.2, "format": "plain"}
    proxy = parse_system("proxy:alpha=2")
    assert (proxy.alpha, proxy.settings, proxy.shown_settings) == (2.0, {}, {"alpha": 2.0})


WRONG = [
    ("", "''"),
    ("nudge", "'nudge'"),
    ("Base", "'Base'"),
    ("nudged:", "''"),
    ("nudged:gamma", "gamma=VALUE"),
    ("nudged:gamma=", "gamma=VALUE"),
    ("nudged:=2", "'=2'"),
    ("nudged:gamma=1++temp=1", "''"),
    ("nudged:gamma=1+gamma=2", "gamma"),
    ("nudged:colour=red", "'colour'"),
    ("nudged:gamma=high", "gamma"),
    ("nudged:gamma=on", "gamma"),
    ("nudged:gamma=-1", "gamma"),
    ("nudged:gamma=nan", "gamma"),
    ("nudged:gamma=inf", "gamma"),
    ("nudged:gamma=1e999", "gamma"),
    ("nudged:gamma=" + "9" * 400, "gamma"),
    ("nudged:gamma=" + "9" * 5000, "gamma"),
    ("nudged:temp=1e999", "temp"),
    ("nudged:temp=101", "temp"),
    ("nudged:top_p=0", "top_p"),
    ("nudged:top_k=" + "9" * 5000, "top_k"),
    ("nudged:top_k=1.5", "top_k"),
    ("nudged:seed=-1", "seed"),
    ("nudged:seed=18446744073709551616", "seed"),
    ("nudged:lookahead=0", "lookahead"),
    ("nudged:lookahead=257", "lookahead"),
    ("nudged:lookahead=off", "lookahead"),
    ("nudged:loop_guard=1", "loop_guard"),
    ("nudged:loop_guard=no", "loop_guard"),
    ("nudged:rule=best", "rule"),
    ("nudged:rule=on", "rule"),
    ("nudged:format=on", "format"),
    ("nudged:format=none", "format"),
    ("nudged:format={{ x", "format"),
    ("nudged:format={% for %}", "template"),
    ("nudged:max_tokens=5", "'max_tokens'"),
    ("base:gamma=0.4", "'gamma'"),
    ("urial:format=plain", "'format'"),
    ("nudging:format=plain", "'format'"),
    ("aligned:format=plain", "'format'"),
    ("nudged:alpha=1", "'alpha'"),
    ("proxy:alpha=nan", "alpha"),
    ("proxy:alpha=1e999", "alpha"),
    ("proxy:alpha=-0.1", "alpha"),
    ("proxy:alpha=101", "alpha"),
    ("proxy:alpha=on", "alpha"),
    ("proxy:alpha=much", "alpha"),
]


@pytest.mark.parametrize(("name", "setting"), WRONG)
def test_a_wrong_name_is_told_with_its_setting(name: str, setting: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_system(name)
    message = str(caught.value)
    assert "\n" not in message
    assert setting in message
    assert repr(name) in message or "choose from base, nudging, nudged" in message


JUNK = st.text(alphabet="abegmnudsrtiplx:+=0123456789.-_,' \n{}%é", max_size=40)
PARTS = st.sampled_from(
    (
        "gamma",
        "rule",
        "temp",
        "seed",
        "top_k",
        "format",
        "alpha",
        "lookahead",
        "=",
        "+",
        ":",
        "1",
        "1e999",
        "nan",
        "on",
        "-",
        "x",
    )
)


@given(JUNK | st.builds(lambda kind, parts: kind + ":" + "".join(parts), st.sampled_from(list(Kind)), st.lists(PARTS)))
def test_any_name_gives_a_system_or_a_clear_error(name: str) -> None:
    system = None
    with suppress(InputError):
        system = parse_system(name)
    if system is None:
        with pytest.raises(InputError, match=r"^(system |there is no system )"):
            parse_system(name)
    else:
        assert parse_system(system.name) == system
        assert re.fullmatch(r"[A-Za-z0-9._=+-]{1,100}\.jsonl", file_name(system.name))


def test_a_list_of_systems() -> None:
    assert [system.name for system in parse_systems(" base, nudged:gamma=2 ,,urial")] == [
        "base",
        "nudged:gamma=2",
        "urial",
    ]
    assert len(parse_systems(DEFAULT_SYSTEMS)) == 4
    with pytest.raises(InputError, match="no system is named"):
        parse_systems(" , ")
    with pytest.raises(InputError, match="'base' is named twice"):
        parse_systems("base,nudged,base")


@pytest.mark.parametrize("name", ["base", "nudging", "nudged", "urial"])
def test_plain_names_are_file_names(name: str) -> None:
    assert file_name(name) == f"{name}.jsonl"


@given(st.lists(st.sampled_from(NAMES) | st.text(max_size=100), min_size=2, max_size=2, unique=True))
def test_different_systems_have_different_files_whatever_the_case(names: list[str]) -> None:
    files = [file_name(name) for name in names]
    assert files[0].casefold() != files[1].casefold()
    for file in files:
        assert re.fullmatch(r"[A-Za-z0-9._=+-]{1,100}\.jsonl", file)
        assert len(file) <= 120


def test_names_that_differ_in_case_or_in_what_no_file_may_hold() -> None:
    names = [
        "nudged:gamma=1e1",
        "nudged:gamma=1E1",
        "nudged:format=a/b",
        "nudged:format=a\\b",
        "x" * 81,
        "x" * 82,
        "Base",
        "base",
    ]
    files = [file_name(name).casefold() for name in names]
    assert len(set(files)) == len(names)


def test_a_system_is_a_value() -> None:
    assert System("base", Kind.BASE) == parse_system("base")
