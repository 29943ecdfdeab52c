# SPDX-License-Identifier: Apache-2.0
"""Chat templates come from strangers: they run in a sandbox, for a limited time and to a limited size."""

from __future__ import annotations

import ctypes
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import wraps
from itertools import islice
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import EvalContext
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_SECONDS = 2.0
MAX_CHARACTERS = 10_000_000
"""Of one rendered chat, beyond what is in the chat itself."""
_MOST_OF_INPUT = 4
"""How often a template may repeat a chat."""
_MAX_GROWTH_BYTES = 512_000_000
_MAX_NUMBER = 10_000_000
_MAX_AT_ONCE = 100_000_000
"""Characters that one call may make: it is not stopped midway."""
_PIECES_AT_ONCE = 512
_MOST_INDENT = 100
_POLL_SECONDS = 0.05


def compile_template(text: str, now: Callable[[], datetime]) -> Template:
    """Returns a chat template, ready to be rendered.

    Args:
        text: The template.
        now: The clock that the template reads with `strftime_now`.

    Raises:
        TemplateSyntaxError: It is no template.
        TemplateError: It holds a number so large that only harm can be meant.
    """
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _to_json
    for name in ("batch", "center", "format", "indent", "join", "replace", "slice"):
        environment.filters[name] = _limited(name, environment.filters[name])
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda format: now().strftime(format)
    for constant in environment.parse(text).find_all(nodes.Const):
        if isinstance(constant.value, int) and abs(constant.value) > _MAX_NUMBER:
            raise TemplateError(f"holds the number {constant.value}; at most {_MAX_NUMBER} is allowed")
    return environment.from_string(text)


def render(template: Template, variables: Mapping[str, Any]) -> str:
    """Returns what a template writes.

    Args:
        template: Made by `compile_template`.
        variables: What it may read; its own globals are to be among them, which saves most of the time.

    Raises:
        TemplateError: It refuses, fails, or takes more time or room than any chat needs.
    """
    text = ""
    try:
        with _WATCH.limited():
            context = template.environment.context_class(
                template.environment, dict(variables), template.name, template.blocks
            )
            pieces = template.root_render_func(context)
            while parts := list(islice(pieces, _PIECES_AT_ONCE)):
                size = len(text) + sum(map(len, parts))
                if size > MAX_CHARACTERS and size > MAX_CHARACTERS + _MOST_OF_INPUT * len(str(variables)):
                    raise TemplateError(f"it writes more than {MAX_CHARACTERS:,} characters")
                text += "".join(parts)
    except (_Overrun, MemoryError):
        raise Overrun(f"it takes more than {MAX_SECONDS:g} s, or too much memory") from None
    return text


def _limited(name: str, of_jinja: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a filter that refuses to make a text that is too long."""

    @wraps(of_jinja)  # with the marks by which Jinja passes it the context
    def limited(*given: Any, **named: Any) -> Any:
        _check_size(name, [one for one in [*given, *named.values()] if not isinstance(one, (Context, EvalContext))])
        return of_jinja(*given, **named)

    return limited


def _check_size(name: str, given: Sequence[Any]) -> None:
    """Raises TemplateError if a function would make a text, or a list, that is too long."""
    size, text = 0, given[0] if given and isinstance(given[0], str) else ""
    numbers = [one for one in given[1:] if isinstance(one, int)]
    if name in _PADDING:
        size = max(numbers, default=0) * (text.count("\n") + text.count("\t") + 1)
    elif name in _FORMATTING:
        size = _widest(text, numbers)
    elif name == "replace" and len(given) > 2:
        size = text.count(str(given[1])) * len(str(given[2]))
    elif name == "join":
        parts = next((one for one in given if isinstance(one, (list, tuple))), ())
        between = max((len(one) for one in given if isinstance(one, str)), default=0)
        size = sum(len(one) if isinstance(one, str) else 1 for one in parts) + between * len(parts)
    if size > _MAX_AT_ONCE:
        raise TemplateError(f"{name} makes something that is too long")


def _widest(text: str, numbers: Sequence[int]) -> int:
    """Returns about how wide the widest column of a format is."""
    columns = re.findall(r"\{[^{}]*|%[^a-zA-Z%]*", text)
    widths = [int(one[:_MOST_DIGITS]) for column in columns for one in re.findall(r"[0-9]+", column)]
    told = numbers if "{" in text or "*" in text else []  # a width may be one of the values
    return max([*widths, *told], default=0)


_PADDING = ("batch", "center", "expandtabs", "indent", "ljust", "rjust", "slice", "zfill")
_FORMATTING = ("format", "format_map", "%")
_MOST_DIGITS = 12
_SIZED = {*_PADDING, *_FORMATTING, "join", "replace"}
"""Functions of texts whose result may be much longer than what they are given."""


class Overrun(TemplateError):  # noqa: N818  it says what happened
    """A rendering took more time, or more memory, than any chat needs."""


def _joined(pieces: Iterable[str]) -> str:
    """Returns the pieces of a macro or a block as one text, unless that is too long."""
    parts = list(pieces)
    if sum(map(len, parts)) > _MAX_AT_ONCE:
        raise TemplateError("it joins parts to something that is too long")
    return "".join(parts)


class _Generator(CodeGenerator):
    """Lets `~` go through the sandbox, as operators that it intercepts do."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802  as Jinja has it
        """Writes the call that joins the parts of `~`."""
        self.write("environment.tied((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _Sandbox(ImmutableSandboxedEnvironment):
    code_generator_class = _Generator
    concat = staticmethod(_joined)
    intercepted_binops = frozenset(["*", "**", "%", "+"])

    def tied(self, parts: Sequence[Any]) -> str:
        """Returns parts as one text, unless that is too long."""
        return _joined(map(str, parts))

    def call(__self, __context: Context, __obj: Any, *given: Any, **named: Any) -> Any:  # noqa: N805  as Jinja has it
        """Returns what a function makes, unless that is too long."""
        name = getattr(__obj, "__name__", "")
        if name in _SIZED and isinstance(text := getattr(__obj, "__self__", None), str):
            _check_size(name, [text, *given, *named.values()])
        return super().call(__context, __obj, *given, **named)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Returns a product or a power, unless it is too large."""
        if operator == "%":
            if isinstance(left, str):
                _check_size("%", [left, *(right if isinstance(right, (list, tuple)) else [right])])
        elif operator == "+":
            are_parts = isinstance(left, (str, list, tuple)) and isinstance(right, type(left))
            if are_parts and len(left) + len(right) > _MAX_AT_ONCE:
                raise TemplateError("adds up to something that is too long")
        elif operator == "**":
            if not (isinstance(left, (int, float)) and isinstance(right, (int, float)) and abs(right) < 64):
                raise TemplateError("a power that is too large")
        else:
            for one, times in ((left, right), (right, left)):
                if isinstance(one, (str, list, tuple)) and isinstance(times, int) and len(one) * times > _MAX_NUMBER:
                    raise TemplateError("repeats something too often")
        return super().call_binop(context, operator, left, right)


class _Generation(Extension):
    """`{% generation %}` marks what the model says; the mask is found without it, so its content is just written."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        """Returns what stands inside the block."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    if isinstance(indent, int) and indent > _MOST_INDENT:
        raise TemplateError(f"tojson indents by {indent}; at most {_MOST_INDENT} is allowed")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise TemplateError(message)


class _Overrun(Exception):  # noqa: N818  raised in the thread that renders
    pass


class _Watch:
    """A thread that stops a rendering which takes too long, or too much memory."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._running: dict[int, tuple[float, int]] = {}

    @contextmanager
    def limited(self) -> Iterator[None]:
        """Raises _Overrun inside the block when its time is up."""
        me = threading.get_ident()
        if self._thread is None:
            self._thread = threading.Thread(target=self._look, name="template-watch", daemon=True)
            self._thread.start()
        self._running[me] = (time.monotonic() + MAX_SECONDS, 0)
        try:
            yield
        finally:
            with self._lock:
                self._running.pop(me, None)

    def forget(self) -> None:
        """Begins anew in a forked process, which has no thread but its own."""
        self.__init__()  # type: ignore[misc]  # the same object is known by name

    def _look(self) -> None:
        while True:
            time.sleep(_POLL_SECONDS)
            with self._lock:
                for ident, (deadline, size) in list(self._running.items()):
                    now = _resident_bytes()
                    if time.monotonic() > deadline or (size and now - size > _MAX_GROWTH_BYTES):
                        del self._running[ident]
                        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(_Overrun))
                    elif not size:
                        self._running[ident] = (deadline, now)


def _resident_bytes() -> int:
    with suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


_WATCH = _Watch()
os.register_at_fork(after_in_child=_WATCH.forget)
