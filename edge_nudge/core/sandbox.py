"""Running a template out of a model file: a Jinja program by a stranger, so hostile until proven otherwise.

Owns compiling, the sandbox and its limits. Never knows what a message or a prompt is.

1. On top of Jinja's immutable sandbox: only text, lists, mappings and loops have attributes at all, and what could
   build much from little in one native step (padding, wrapping, lorem ipsum, ...) does not exist.
2. Every loop round, call, filter, operator and output is metered: the clock and the size of what it built. No
   thread, no signal, no trace function, so it works anywhere and leaves debuggers alone.
3. Repetition, powers, format widths, joins and replacements are measured before they are carried out.
4. STAND_INS take the place of text that the program must not see; JSON would quote them, so it refuses them.
5. Whatever goes wrong is a TemplateError; a LimitError is one that no other rendering can cure.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from string import Formatter
from time import monotonic
from typing import Any

import jinja2
from jinja2 import nodes, pass_context, sandbox
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext
from jinja2.utils import Cycler, Namespace
from jinja2.visitor import NodeTransformer

from edge_nudge.errors import TemplateError

# Private use, plane 16: no case, no blank, kept by every text operation, escaped by repr().
FIRST_STAND_IN, N_STAND_INS = 0x100000, 0xFFFE
STAND_INS = re.compile("([\U00100000-\U0010fffd])")

_MAX_SOURCE = 1 << 18  # characters; the longest template seen has 17,000
_MAX_BITS = 4096  # of a whole number
_MAX_WIDTH = 999  # of a padding, a precision, a set of characters to strip
_MAX_FORMAT = 4096  # characters of a format string


class LimitError(TemplateError):
    """A template overran a limit or reached for something outside the sandbox."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one rendering may take; sizes in characters, a list item counts as 8."""

    seconds: float = 2.0
    n_value: int = 1 << 22  # one value, and the output
    n_total: int = 1 << 26  # everything built on the way


class _Meter:
    """What one rendering has left."""

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        self.limits, self._clock = limits, clock
        self._deadline = clock() + limits.seconds
        self._n_left = limits.n_total
        self._known: dict[int, int] = {}

    def remember(self, inputs: Iterable[Any]) -> None:
        """Measure the lists that a template is given, and their items, once: it cannot change them."""
        for value in inputs:
            if isinstance(value, list):
                self._known.update({id(item): self.size(item) for item in value})
                self._known[id(value)] = self.size(value)

    def tick(self) -> None:
        if self._clock() > self._deadline:
            raise LimitError(f"the template took longer than {self.limits.seconds:g} s to render")

    def check(self, *values: Any) -> None:
        """Refuse to work on values that are too large: their parts may have grown since they were built."""
        self.tick()
        for value in values:
            self.size(value)

    def take(self, value: Any) -> Any:
        """Count a value that was built, and return it."""
        self.tick()
        self._n_left -= self.size(value)
        if self._n_left < 0:
            raise LimitError(f"the template built more than {self.limits.n_total} characters on the way")
        return value

    def need(self, size: int) -> None:
        """Refuse to build a value of this size."""
        if size > self.limits.n_value:
            raise LimitError(f"the template builds a value of more than {self.limits.n_value} characters")

    def need_bits(self, n_bits: int) -> None:
        """Refuse to compute a whole number of this length."""
        if n_bits > _MAX_BITS:
            raise LimitError(f"the template computes a number of more than {_MAX_BITS} bits")

    def size(self, value: Any) -> int:
        """Measure a value with all it holds, shared parts as often as they would be written; refuse a large one."""
        total, stack = 0, [value]
        while stack:
            item = stack.pop()
            total += self._known.get(id(item), 8)
            if id(item) in self._known:
                pass
            elif isinstance(item, str | bytes):
                total += len(item)
            elif isinstance(item, Mapping):
                stack += [*item.keys(), *item.values()]
            elif isinstance(item, list | tuple | set | frozenset):
                stack += item
            elif isinstance(item, Namespace):
                stack.append(object.__getattribute__(item, "_Namespace__attrs"))
            elif isinstance(item, int):
                self.need_bits(item.bit_length())
            self.need(total)
        return total


_METER: ContextVar[_Meter] = ContextVar("meter of the rendering that runs now")


class Program:
    """A compiled template.

    `clock` is seconds on a monotonic clock; tests put their own in. Raises TemplateError with the line for a
    template that cannot be compiled.
    """

    def __init__(self, source: str, limits: Limits | None = None, clock: Callable[[], float] = monotonic) -> None:
        self._limits, self._clock = limits or Limits(), clock
        if len(source) > _MAX_SOURCE:
            raise TemplateError(f"the template has {len(source)} characters, more than {_MAX_SOURCE}")
        try:
            tree = _Metering().visit(_ENVIRONMENT.parse(source))
            code = _ENVIRONMENT.compile(tree)
            self._template = jinja2.Template.from_code(_ENVIRONMENT, code, _ENVIRONMENT.make_globals(None))
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(f"the template is broken in line {error.lineno}: {clean(error.message)}") from None
        except Exception as error:
            raise TemplateError(f"the template cannot be compiled: {clean(error)}") from None

    def run(self, variables: Mapping[str, Any]) -> str:
        """Render with `variables`. Raises TemplateError with the template's own message or the failing line."""
        meter = _Meter(self._limits, self._clock)
        meter.remember(variables.values())
        token = _METER.set(meter)
        chunks, size = [], 0
        try:
            for chunk in self._template.root_render_func(self._template.new_context(dict(variables))):
                size += len(chunk)
                meter.need(size)
                chunks.append(chunk)
            text = "".join(chunks)
            text.encode()
        except TemplateError:
            raise
        except jinja2.exceptions.SecurityError as error:
            raise LimitError(f"the template reaches outside its sandbox{self._line(error)}: {clean(error)}") from None
        except Exception as error:
            raise TemplateError(f"the template failed{self._line(error)}: {clean(error)}") from None
        finally:
            _METER.reset(token)
        return text

    def _line(self, error: Exception) -> str:
        place, trace = "", error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code is not None and trace.tb_frame.f_globals.get("environment") is _ENVIRONMENT:
                place = f" in line {self._template.get_corresponding_lineno(trace.tb_lineno)}"
            trace = trace.tb_next
        return place


def clean(error: object) -> str:
    """Make a stranger's message fit for a terminal: one line, printable, not long."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = "".join(char for char in text if char.isprintable())
    return text if len(text) <= 300 else text[:300] + "…"


class _Generation(Extension):
    """Accept `{% generation %}`, which marks the assistant's text for training; it changes nothing here."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Metering(NodeTransformer):
    """Put the meter where a template has no other hook: loop rounds, `~`, and values written out.

    Filter names with a blank cannot be written in a template.
    """

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_filtered(nodes.Const(True), "a round"), lineno=node.lineno))
        if node.test is not None:
            node.test = nodes.And(_filtered(nodes.Const(True), "a round"), node.test, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), "a concat")

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:
        return nodes.Const(node.data, lineno=node.lineno)  # a constant passes `finalize`, template data does not

    def _literal(self, node: nodes.List | nodes.Tuple | nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return node if getattr(node, "ctx", "load") != "load" else _filtered(node, "a value")

    visit_List = visit_Tuple = visit_Dict = _literal


def _filtered(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class _Environment(sandbox.ImmutableSandboxedEnvironment):
    """Jinja with a meter."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return isinstance(obj, _OPEN_TYPES) and attr not in _CLOSED and super().is_safe_attribute(obj, attr, value)

    def unsafe_undefined(self, obj: Any, attribute: str) -> jinja2.Undefined:
        raise jinja2.exceptions.SecurityError(f"{attribute!r} of a {type(obj).__name__}")

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def limited(*args: Any, **kwargs: Any) -> str:
            _check_format(value.__self__)
            return wrapped(*args, **kwargs)

        return limited

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        meter = _METER.get()
        meter.check(*args, *kwargs.values())
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, str):
            if obj.__name__ == "join":
                args = (_checked_parts(owner, *args),)
            _check_method(owner, obj.__name__, args)
        return meter.take(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        meter = _METER.get()
        meter.check(left, right)
        if operator == "%" and isinstance(left, str | bytes):
            _check_percent(left)
        elif operator == "*" and not isinstance(left, float) and not isinstance(right, float):
            many, few = (right, left) if isinstance(left, int) else (left, right)
            meter.need(few * len(many) if hasattr(many, "__len__") and isinstance(few, int) else 0)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            meter.need_bits(left.bit_length() * abs(right))
        return meter.take(super().call_binop(context, operator, left, right))


_OPEN_TYPES = (str, list, tuple, dict, Namespace, LoopContext, Cycler)
_CLOSED = {"encode", "expandtabs", "maketrans", "striptags", "translate", "unescape"}
_REMOVED_FILTERS = (
    "batch", "center", "filesizeformat", "pprint", "random", "slice", "striptags", "urlize", "wordwrap", "xmlattr",
)  # fmt: skip


def _check_width(value: Any) -> None:
    width = abs(value) if isinstance(value, int) else len(value) if isinstance(value, str) else 0
    if width > _MAX_WIDTH:
        raise LimitError(f"the template pads, rounds or strips by more than {_MAX_WIDTH}")


def _check_method(text: str, name: str, args: tuple[Any, ...]) -> None:
    if name in ("center", "ljust", "rjust", "zfill", "strip", "lstrip", "rstrip"):
        for arg in args:
            _check_width(arg)
    elif name == "replace" and len(args) > 1:
        _check_replace(text, args[0], args[1])


def _check_replace(text: str, old: Any, new: Any) -> None:
    grows = len(str(new)) - len(str(old))
    _METER.get().need(len(text) + max(0, grows) * text.count(str(old)))


def _check_percent(text: str | bytes) -> None:
    """Refuse widths and precisions that are long or come from a value, and keys, which make them hard to find."""
    if isinstance(text, bytes) or len(text) > _MAX_FORMAT or re.search(r"%(\(|[-+ #.\d]*(\*|\d{4}))", text):
        raise LimitError("the template formats text in a way that could make it too large")


def _check_format(text: str) -> None:
    if len(text) > _MAX_FORMAT:
        raise LimitError("the template formats text in a way that could make it too large")
    for _, _, spec, _ in Formatter().parse(text):
        if spec and re.search(r"\{|\d{4}", spec):
            raise LimitError("the template formats text in a way that could make it too large")


def _checked_parts(separator: str, values: Iterable[Any]) -> list[Any]:
    """Return what is to be joined, as soon as its size is known to be bearable."""
    meter, parts, size = _METER.get(), [], 0
    for value in values:
        parts.append(value)
        size += len(separator) + (len(value) if isinstance(value, str) else meter.size(value))
        meter.need(size)
    return parts


@pass_context
def _finalize(context: Context, value: Any) -> str:
    """Turn an output into text. Asks for the context so that Jinja cannot run it when compiling."""
    meter = _METER.get()
    meter.check(value)
    text: str = meter.take(value if isinstance(value, str) else str(value))
    return text


def _metered(function: Callable[..., Any]) -> Callable[..., Any]:
    """Meter what a filter builds."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        meter = _METER.get()
        meter.check(*args, *kwargs.values())
        return meter.take(function(*args, **kwargs))

    return run


@pass_context
def _join(context: Context, values: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
    if attribute is not None:
        values = context.environment.call_filter("map", values, None, {"attribute": attribute}, context)
    parts = _checked_parts(str(d), values)
    return str(d).join(map(str, parts))


def _concat(values: list[Any]) -> str:
    return "".join(map(str, _checked_parts("", values)))


def _replace(text: Any, old: Any, new: Any, count: int | None = None) -> str:
    _check_replace(str(text), old, new)
    return str(text).replace(str(old), str(new), -1 if count is None else count)


def _indent(text: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    lines = str(text).count("\n") + 1
    _METER.get().need(len(str(text)) + lines * (width if isinstance(width, int) else len(width)))
    done: str = jinja2.filters.do_indent(str(text), width, first, blank)
    return done


def _trim(text: Any, chars: str | None = None) -> str:
    _check_width(chars)
    return str(text).strip(chars)


def _round(value: float, precision: int = 0, method: Any = "common") -> float:
    _check_width(precision)
    done: float = jinja2.filters.do_round(value, precision, method)
    return done


def _sum(values: Iterable[Any], attribute: str | int | None = None, start: float = 0) -> Any:
    if not isinstance(start, int | float):
        raise TypeError("sum adds numbers only")
    return jinja2.filters.sync_do_sum(_ENVIRONMENT, values, attribute, start)


def _format(text: Any, *args: Any, **kwargs: Any) -> str:
    if args and kwargs:
        raise TypeError("format takes positional or keyword arguments, not both")
    _check_percent(str(text))
    return str(text) % (kwargs or args)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON as Hugging Face's renderer does: nothing escaped for HTML."""
    for part in (indent, *(separators or ())):
        _check_width(part)
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    if STAND_INS.search(text):
        raise TemplateError("the template writes the text of a message as JSON, which is not supported")
    return text


def _build_environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        optimized=False,  # or constants would be computed when compiling, outside the meter
        finalize=_finalize,
        extensions=["jinja2.ext.loopcontrols", _Generation],
    )
    own = {
        "concat": _concat, "format": _format, "indent": _indent, "join": _join, "replace": _replace,
        "round": _round, "sum": _sum, "tojson": _tojson, "trim": _trim,
    }  # fmt: skip
    for name in _REMOVED_FILTERS:
        del environment.filters[name]
    environment.filters = {name: _metered(f) for name, f in {**environment.filters, **own}.items()}
    environment.filters["a concat"] = environment.filters.pop("concat")
    environment.filters["a value"] = environment.filters["a round"] = _metered(lambda value: value)
    del environment.globals["lipsum"]
    return environment


_ENVIRONMENT = _build_environment()
