"""Requests: what is taken, what is refused, and how it is said."""

from __future__ import annotations

import pytest

from edge_nudge.core.request import Rule, build_request
from edge_nudge.errors import InputError


@pytest.mark.parametrize(("stop", "want"), [("###", ("###",)), (["###"], ("###",)), (None, ()), ([], ())])
def test_stop(stop: object, want: tuple[str, ...]) -> None:
    assert build_request("hi", stop=stop).stop == want


@pytest.mark.parametrize("stop", ["", ["", "###"], ["x"] * 40, 7, [7]])
def test_a_bad_stop_is_refused_by_name(stop: object) -> None:
    """Case B17."""
    with pytest.raises(InputError, match="stop"):
        build_request("hi", stop=stop)


@pytest.mark.parametrize("max_tokens", [0, 1, None, 10**9])
def test_max_tokens(max_tokens: int | None) -> None:
    assert build_request("hi", max_tokens=max_tokens).max_tokens == max_tokens


@pytest.mark.parametrize("max_tokens", [-1, 1.5, "5", True])
def test_a_bad_limit_is_refused_by_name(max_tokens: object) -> None:
    """Case B38."""
    with pytest.raises(InputError, match="max_tokens"):
        build_request("hi", max_tokens=max_tokens)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gamma", -0.1), ("gamma", float("nan")), ("gamma", "0.4"), ("gamma", True), ("lookahead", 0), ("temp", -1.0),
        ("top_p", 0.0), ("top_p", 1.1), ("top_k", -1), ("min_p", 2.0), ("seed", -1), ("seed", 2**64),
        ("rule", "banana"), ("max_turns", 0), ("end_prob", 0.0), ("colour", "blue"),
    ],
)  # fmt: skip
def test_a_bad_setting_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(InputError, match=name):
        build_request("hi", **{name: value})


def test_settings_find_their_places() -> None:
    request = build_request("hi", gamma=0.3, rule="margin", temp=0.5, seed=3, max_tokens=4)
    assert (request.nudge.gamma, request.nudge.rule, request.sampling.temp, request.sampling.seed) == (
        0.3,
        Rule.MARGIN,
        0.5,
        3,
    )
    assert request.messages[0].content == "hi"


def test_each_rule_has_its_own_threshold() -> None:
    assert build_request("hi").nudge.threshold == 0.4
    assert build_request("hi", rule="entropy").nudge.threshold == 2.0
    assert build_request("hi", rule="entropy", gamma=1.0).nudge.threshold == 1.0


def test_developer_is_system() -> None:
    """Case B65."""
    request = build_request([{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "hi"}])
    assert request.messages[0].role == "system"


@pytest.mark.parametrize(
    "messages",
    [[], [{"role": "banana", "content": "hi"}], [{"role": "user"}], [{"role": "user", "content": "\ud83d"}], [7]],
)
def test_bad_messages_are_refused(messages: list[object]) -> None:
    with pytest.raises(InputError, match="messages"):
        build_request(messages)  # type: ignore[arg-type]
