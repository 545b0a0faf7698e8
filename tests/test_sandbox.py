"""The sandbox: hostile templates fail with a TemplateError, in bounded time, and change nothing."""

from __future__ import annotations

import sys
import threading
import time
import tracemalloc
from pathlib import Path

import pytest

from edge_nudge.core.sandbox import LimitError, Limits, Program, clean
from edge_nudge.errors import TemplateError


class Ticks:
    """A clock that moves on by a millisecond each time it is read."""

    def __init__(self) -> None:
        self.n_read = 0

    def __call__(self) -> float:
        self.n_read += 1
        return self.n_read / 1000


def run(source: str, **variables: object) -> str:
    return Program(source, Limits(seconds=5.0), Ticks()).run(variables)


ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__'] }}",
    "{{ '' | attr('__class__') }}",
    "{{ '{0.__class__}'.format(1) }}",
    "{{ ('{0.__class__}' | attr('format'))(1) }}",
    "{{ '{x.__class__}'.format_map({'x': 1}) }}",
    "{{ ['a'] | map(attribute='__class__') | list }}",
    "{{ helper.__globals__ }}",
    "{{ helper.__code__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ joiner.__init__.__globals__.os }}",
    "{{ self.__init__ }}",
    "{{ self._TemplateReference__context }}",
    "{% for x in [1] %}{{ loop._iterator }}{% endfor %}",
    "{% macro m() %}{% endmacro %}{{ m._func }}",
    "{{ items.append(1) }}",
    "{{ items.__class__ }}",
    "{{ (1).to_bytes(9, 'big') }}",
    "{{ 'a'.encode() }}",
]


def helper() -> str:
    return "helper"


@pytest.mark.parametrize("source", ESCAPES)
def test_nothing_outside_is_reached(source: str) -> None:
    items = ["a"]
    with pytest.raises(TemplateError, match="outside its sandbox"):
        run(source, helper=helper, items=items)
    assert items == ["a"]


@pytest.mark.parametrize("name", ["cycler", "joiner", "namespace", "raise_exception"])
def test_no_builtin_leads_to_the_host(name: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    source = f"{{{{ {name}.__init__.__globals__['os'].system('touch {marker}') }}}}"
    with pytest.raises(TemplateError):
        run(source, raise_exception=helper)
    assert not marker.exists()


@pytest.mark.parametrize("source", ["{% include '/etc/hostname' %}", "{% import 'os' as os %}", "{% extends 'x' %}"])
def test_there_are_no_other_templates(source: str) -> None:
    with pytest.raises(TemplateError, match="loader"):
        run(source)


ENDLESS = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) if i < 0 %}{% endfor %}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(50) }}",
    "{% for x in [1, 2] recursive %}{% if loop.depth < 60 %}{{ loop([1, 2]) }}{% endif %}{% endfor %}",
    "{% set x %}{% for i in range(99999) %}{% endfor %}{% endset %}{{ x }}",
]


@pytest.mark.parametrize("source", ENDLESS)
def test_a_loop_ends_by_the_clock(source: str) -> None:
    clock = Ticks()
    with pytest.raises(LimitError, match="longer than 2 s"):
        Program(source, clock=clock).run({})
    assert clock.n_read < 2100  # it was read often, and no more after the deadline


# A namespace that holds the one before twice, 99 times over: small to hold, endless to write out.
NESTED = (
    "{% set ns = namespace(a=0) %}{% for i in range(99) %}{% set n = namespace() %}{% set n.a = ns.a %}"
    "{% set n.b = ns.a %}{% set ns.a = n %}{% endfor %}{% set n = ns.a %}"
)
TOO_LARGE = [
    "{% for i in range(10**10) %}{% endfor %}",
    "{{ 'x' * 10**9 }}",
    "{{ 10**9 * 'x' }}",
    "{{ [1] * 10**9 }}",
    "{{ 10**9999999 }}",
    "{% set ns = namespace(n=3) %}{% for i in range(99) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "{{ ('1' * 9999) | int(base=16) }}",
    "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s }}",
    "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = {'a': ns.s, 'b': ns.s} %}{% endfor %}",
    *(NESTED + f"{{{{ {use} }}}}" for use in ("n", "n ~ ''", "'%s' % n", "'{}'.format(n)", "n | string", "[n] | join")),
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (1000000000, 1) }}",
    "{{ '%(k)1000000000d' % {'k': 1} }}",
    "{{ '%.1000000000f' | format(1.5) }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ '{:{w}}'.format(1, w=1000000000) }}",
    "{{ 'x'.ljust(1000000000) }}",
    "{{ 'x'.zfill(1000000000) }}",
    "{{ 'x' | indent(1000000000) }}",
    "{{ ('a' * 9999).replace('a', 'b' * 9999) }}",
    "{{ ('a' * 9999) | replace('a', 'b' * 9999) }}",
    "{{ ['a' * 9999] * 99 }}",
    "{{ [texts] * 2000 }}",
    "{{ range(3000) | map('string') | list | join('b' * 9999) }}",
    "{{ ('b' * 9999).join(range(3000) | map('string')) }}",
    "{{ 2.5 | round(1000000000, 'ceil') }}",
    "{{ ('a' * 9999).strip('b' * 9999) }}",
    "{{ {} | tojson(indent=1000000000) }}",
    "{% for i in range(999) %}" + "y" * 9999 + "{% endfor %}",
    "{% macro m() %}" + "y" * 9999 + "{% endmacro %}{% for i in range(999) %}{{ m() }}{% endfor %}",
    "{% set x %}{% for i in range(999) %}" + "y" * 9999 + "{% endfor %}{% endset %}",
    "{{ range(999) | map('replace', '', 'b' * 9999) | list }}",
]


@pytest.mark.parametrize("source", TOO_LARGE)
def test_nothing_grows_without_bound(source: str) -> None:
    given = {"texts": ["t" * 1000] * 40}
    limits = Limits(seconds=60.0, n_value=50_000, n_total=1_000_000)
    assert Program("{{ texts[0] }}", limits, Ticks()).run(given) == "t" * 1000
    program = Program(source, limits, Ticks())
    tracemalloc.start()
    try:
        with pytest.raises(TemplateError, match=r"more than|Range too big|too large"):
            program.run(given)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000  # refused before it was built, not after
    finally:
        tracemalloc.stop()


def test_the_output_has_a_limit_of_its_own() -> None:
    limits = Limits(n_value=1000, n_total=1_000_000)
    assert len(Program("{% for i in range(99) %}0123456789{% endfor %}", limits).run({})) == 990
    with pytest.raises(LimitError, match="more than 1000 characters"):
        Program("{% for i in range(101) %}0123456789{% endfor %}", limits).run({})


@pytest.mark.parametrize(
    "name", ["lipsum(n=99999999)", "'x' | center(99999999)", "'x' | wordwrap(1)", "[1] | batch(9)"]
)
def test_what_builds_much_from_little_does_not_exist(name: str) -> None:
    with pytest.raises(TemplateError, match=r"undefined|No filter"):
        run("{{ " + name + " }}")


def test_limits_hold_in_any_thread_and_leave_tracing_alone() -> None:
    errors: list[BaseException] = []

    def work() -> None:
        try:
            Program(ENDLESS[0], Limits(seconds=0.05)).run({})
        except BaseException as error:
            errors.append(error)

    before = sys.gettrace()
    worker = threading.Thread(target=work)
    started = time.perf_counter()
    worker.start()
    worker.join(timeout=30)
    assert [type(error) for error in errors] == [LimitError]
    assert time.perf_counter() - started < 5
    assert sys.gettrace() is before


def test_a_limit_is_per_rendering() -> None:
    program = Program("{% for i in range(50) %}{{ i }}{% endfor %}", Limits(seconds=1.0, n_total=9000), Ticks())
    assert [program.run({}) for _ in range(20)] == ["".join(map(str, range(50)))] * 20


def test_a_long_conversation_stays_within_the_limits() -> None:
    source = "{% for m in messages %}{% if loop.index == messages | length %}{{ m.content }}{% endif %}{% endfor %}"
    messages = [{"role": "user", "content": "x"} for _ in range(4000)]
    assert Program(source).run({"messages": messages}) == "x"


@pytest.mark.parametrize(
    ("source", "line"),
    [("a\n{% if %}", 2), ("\n\n{{ 1 | nofilter }}", 3), ("{% for x in y %}\n", 1), ("{{ 'a' }\n", 1)],
)
def test_broken_syntax_is_reported_with_its_line(source: str, line: int) -> None:
    with pytest.raises(TemplateError, match=rf"broken in line {line}: "):
        Program(source)


@pytest.mark.parametrize("source", ["{{ " + "(" * 5000, "{% if 1 %}" * 3000, "{{ " + "9" * 5000 + " }}", "x" * 300_000])
def test_monstrous_sources_are_refused(source: str) -> None:
    with pytest.raises(TemplateError):
        Program(source)


def test_a_failure_is_reported_with_its_line() -> None:
    with pytest.raises(TemplateError, match="failed in line 3: 'nothing' is undefined"):
        run("a\n\n{{ nothing.text }}")
    with pytest.raises(TemplateError, match="failed in line 2"):
        run("{% macro m() %}\n{{ 1 + 'a' }}{% endmacro %}\n{{ m() }}")


def test_output_that_is_no_text_is_refused() -> None:
    with pytest.raises(TemplateError, match="surrogates"):
        run(r"{{ '\ud800' }}")


def test_messages_of_strangers_are_fit_for_a_terminal() -> None:
    assert clean("a\x1b[31m\nb\u202e" + "c" * 999) == "a[31m b" + "c" * 293 + "…"


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{% generation %}a{{ x }}{% endgeneration %}b", "a1b"),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{% for i in [1, 2, 3] if i != 2 %}{{ i }}{{ ', ' if not loop.last }}{% endfor %}", "1, 3"),
        ("{% for i in [[1, [2]], 3] recursive %}{{ i if i is number else loop(i) }}{% endfor %}", "123"),
        ("{{ {'ü': [1, '<b>']} | tojson }}", '{"ü": [1, "<b>"]}'),
        ("{{ [1] | tojson(indent=1) }}", "[\n 1\n]"),
        ("{{ {'b': 1, 'a': 2} | tojson(sort_keys=true, separators=(',', ':')) }}", '{"a":2,"b":1}'),
        ("{% set ns = namespace(n=0) %}{% for i in [1, 2] %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}", "3"),
        ("{{ 'a' ~ 1 ~ none ~ missing ~ 'b' }}", "a1Noneb"),
        ("{{ missing }}{{ missing | default('d') }}{{ none }}{{ true }}", "dNoneTrue"),
        ("{% set a, b = (1, 2) %}{{ a }}{{ b }}{{ [a, b][-1] }}{{ 'abc'[1:] }}{{ 7 // 2 }}{{ 2 ** 3 }}", "122bc38"),
        ("{% for k, v in {'x': 1}.items() %}{{ k }}={{ v }}{% endfor %}", "x=1"),
        ("{{ ['a', 'b'] | join(', ') }}{{ ', '.join(['c', 'd']) }}{{ 'a-b'.replace('-', '+') }}", "a, bc, da+b"),
        ("{{ '%s is %d' % ('a', 1) }} {{ '{} {:>3}'.format('x', 'y') }} {{ '%02d' | format(3) }}", "a is 1 x   y 03"),
        ("{{ [{'n': 1}, {'n': 2}] | map(attribute='n') | sum }}{{ 2.345 | round(1) }}", "32.3"),
        ("{{ [{'n': 'a'}, {'n': 'b'}] | join('+', attribute='n') }}{{ 'a\nb' | indent(1) }}", "a+ba\n b"),
        ("{{ '  a ' | trim }}{{ 'xax'.strip('x') }}{{ 'a,b'.split(',') | last }}{{ 'b'.upper() | lower }}", "aabb"),
        ("{% macro m(x, y=2) %}{{ x }}{{ y }}{% endmacro %}{{ m(1) }}{% set z %}-{{ m(3) }}{% endset %}{{z}}", "12-32"),
        ("  {% if x %}\n  line\n  {% endif %}\n", "  line\n"),
        ("{{ [3, 1, 2] | sort | first }}{{ [1, 1] | unique | list | length }}{{ 'é' | urlencode }}", "11%C3%A9"),
    ],
)  # fmt: skip
def test_what_templates_use_works(source: str, text: str) -> None:
    assert run(source, x=1) == text
