# SPDX-License-Identifier: Apache-2.0
"""Runs chat templates, which are untrusted code, in a sandbox with limits of time and memory.

Jinja's own sandbox keeps templates away from attributes and files, but does not limit what they compute. So there are
three limits here: a thread stops a rendering that takes too much time or memory; the size of the output is limited; and
a single call, which a thread cannot interrupt, is checked before it is made.
"""

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
"""Size of a rendered chat, in addition to `_MAX_REPEATS` times the input."""
_MAX_REPEATS = 4
_MAX_GROWTH_BYTES = 512_000_000
"""Growth of the process's memory during a rendering."""
_MAX_NUMBER = 10_000_000
"""Largest constant in a template, and largest size of a sequence that is repeated with `*`."""
_MAX_CALL_CHARACTERS = 100_000_000
"""Characters, or items, that a single call may return."""
_MAX_INDENT = 100
_MAX_DIGITS = 12
"""Digits of a column's width that are read; a number with more is too large in any case."""
_PIECES_AT_ONCE = 512
"""Pieces of the output after which its size is checked."""
_POLL_SECONDS = 0.05
_PADDING = ("batch", "center", "expandtabs", "indent", "ljust", "rjust", "slice", "zfill")
_FORMATTING = ("format", "format_map", "%")
_SIZED = (*_PADDING, *_FORMATTING, "join", "replace")
"""Filters and methods of texts whose result may be much longer than their arguments."""


class Overrun(TemplateError):  # noqa: N818  not an error of the template's author
    """A rendering exceeded the limit of time or memory."""

    # Without arguments, since `PyThreadState_SetAsyncExc` raises a class, which Python then calls.
    def __init__(self) -> None:
        super().__init__(f"it takes more than {MAX_SECONDS:g} s, or too much memory")


def compile_template(text: str, now: Callable[[], datetime]) -> Template:
    """Compiles a chat template.

    Args:
        text: The template.
        now: Returns the time for `strftime_now`.

    Raises:
        TemplateSyntaxError: `text` is not a template.
        TemplateError: It contains a number larger than `_MAX_NUMBER`.
    """
    # The options, extensions and globals with which transformers renders chat templates.
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _to_json
    for name in _SIZED:
        if name in environment.filters:
            environment.filters[name] = _limited(name, environment.filters[name])
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda format: now().strftime(format)
    # Checked before compilation, which computes expressions of constants.
    for constant in environment.parse(text).find_all(nodes.Const):
        if isinstance(constant.value, int) and abs(constant.value) > _MAX_NUMBER:
            raise TemplateError(f"holds the number {constant.value}; at most {_MAX_NUMBER} is allowed")
    return environment.from_string(text)


def render(template: Template, variables: Mapping[str, Any]) -> str:
    """Returns the text of a rendered template.

    Args:
        template: Made by `compile_template`.
        variables: Its variables, with its globals: `Template.render` would merge those again for each chat.

    Raises:
        TemplateError: The template raises an exception, or exceeds a limit.
    """
    text = ""
    try:
        with _WATCHDOG.limited():
            context = template.environment.context_class(
                template.environment, dict(variables), template.name, template.blocks
            )
            pieces = template.root_render_func(context)
            while parts := list(islice(pieces, _PIECES_AT_ONCE)):
                size = len(text) + sum(map(len, parts))
                # The size of the input is only worked out for a text that is very long.
                if size > MAX_CHARACTERS and size > MAX_CHARACTERS + _MAX_REPEATS * len(str(variables)):
                    raise TemplateError(f"it writes more than {MAX_CHARACTERS:,} characters")
                text += "".join(parts)
    except MemoryError:
        raise Overrun from None
    return text


def _limited(name: str, jinja_filter: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a filter that raises TemplateError instead of returning a text that is too long."""

    @wraps(jinja_filter)  # keeps the attributes by which Jinja passes it the context
    def limited(*args: Any, **kwargs: Any) -> Any:
        values = [*args, *kwargs.values()]
        _check_size(name, [value for value in values if not isinstance(value, (Context, EvalContext))])
        return jinja_filter(*args, **kwargs)

    return limited


def _check_size(name: str, args: Sequence[Any]) -> None:
    """Raises TemplateError if a function of these arguments would return a text, or a list, that is too long."""
    size, text = 0, args[0] if args and isinstance(args[0], str) else ""
    numbers = [arg for arg in args[1:] if isinstance(arg, int)]
    if name in _PADDING:
        size = max(numbers, default=0) * (text.count("\n") + text.count("\t") + 1)
    elif name in _FORMATTING:
        columns = re.findall(r"\{[^{}]*|%[^a-zA-Z%]*", text)
        widths = [int(digits[:_MAX_DIGITS]) for column in columns for digits in re.findall(r"[0-9]+", column)]
        # `%*d` and `{:{}}` take a width from the arguments.
        size = max([*widths, *(numbers if "{" in text or "*" in text else [])], default=0)
    elif name == "replace" and len(args) > 2:
        size = text.count(str(args[1])) * len(str(args[2]))
    elif name == "join":
        parts = next((arg for arg in args if isinstance(arg, (list, tuple))), ())
        separator = max((len(arg) for arg in args if isinstance(arg, str)), default=0)
        size = sum(len(part) if isinstance(part, str) else 1 for part in parts) + separator * len(parts)
    if size > _MAX_CALL_CHARACTERS:
        raise TemplateError(f"{name} would return more than {_MAX_CALL_CHARACTERS:,} characters or items")


def _concat(parts: Iterable[Any]) -> str:
    """Returns parts as one text; raises TemplateError if it is too long."""
    texts = [str(part) for part in parts]
    if sum(map(len, texts)) > _MAX_CALL_CHARACTERS:
        raise TemplateError(f"it joins parts to more than {_MAX_CALL_CHARACTERS:,} characters")
    return "".join(texts)


class _Generator(CodeGenerator):
    """Compiles `~` to a call of the sandbox: Jinja intercepts other operators, but not this one."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802  name of Jinja
        """Writes a call of `_Sandbox.concat`."""
        self.write("environment.concat((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _Sandbox(ImmutableSandboxedEnvironment):
    code_generator_class = _Generator
    concat = staticmethod(_concat)  # also joins the pieces of macros and blocks
    intercepted_binops = frozenset(["*", "**", "%", "+"])

    # Python mangles these names, so that no keyword argument of a template can have the same one.
    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805  names of Jinja
        """Calls a function, unless its result would be too long."""
        name = getattr(__obj, "__name__", "")
        if name in _SIZED and isinstance(text := getattr(__obj, "__self__", None), str):
            _check_size(name, [text, *args, *kwargs.values()])
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Applies an operator, unless its result would be too large."""
        if operator == "%":
            if isinstance(left, str):
                _check_size("%", [left, *(right if isinstance(right, (list, tuple)) else [right])])
        elif operator == "+":
            are_parts = isinstance(left, (str, list, tuple)) and isinstance(right, type(left))
            if are_parts and len(left) + len(right) > _MAX_CALL_CHARACTERS:
                raise TemplateError(f"a sum of more than {_MAX_CALL_CHARACTERS:,} characters or items")
        elif operator == "**":
            if not (isinstance(left, (int, float)) and isinstance(right, (int, float)) and abs(right) < 64):
                raise TemplateError("a power that is too large")
        else:  # `*`, in either order
            for value, times in ((left, right), (right, left)):
                is_sequence = isinstance(value, (str, list, tuple)) and isinstance(times, int)
                if is_sequence and len(value) * times > _MAX_NUMBER:
                    raise TemplateError(f"repeats a text or list to more than {_MAX_NUMBER:,} characters or items")
        return super().call_binop(context, operator, left, right)


class _Generation(Extension):
    """Accepts `{% generation %}`, which transformers uses to locate answers; `turns.py` locates them without it."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        """Returns the content of the block, as if the tags around it were absent."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Returns JSON as transformers writes it: Jinja's own filter escapes HTML and sorts keys."""
    # A large indent would be written on each line.
    if isinstance(indent, int) and indent > _MAX_INDENT:
        raise TemplateError(f"tojson indents by {indent}; at most {_MAX_INDENT} is allowed")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


class _Watchdog:
    """A thread that stops renderings which take too much time or memory."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._running: dict[int, tuple[float, int]] = {}
        """Deadline, and memory of the process at the start (0 until it is measured), by thread."""

    @contextmanager
    def limited(self) -> Iterator[None]:
        """Raises Overrun inside the block when a limit is exceeded."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="template-watch", daemon=True)
            self._thread.start()
        thread_id = threading.get_ident()
        self._running[thread_id] = (time.monotonic() + MAX_SECONDS, 0)
        try:
            yield
        finally:
            # With the lock, so that no rendering is stopped after its end.
            with self._lock:
                self._running.pop(thread_id, None)

    def _watch(self) -> None:
        while True:
            time.sleep(_POLL_SECONDS)
            with self._lock:
                for thread_id, (deadline, begin_bytes) in list(self._running.items()):
                    num_bytes = 0
                    with suppress(OSError):  # other systems have no /proc, and are left with the limit of time
                        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
                        num_bytes = pages * os.sysconf("SC_PAGE_SIZE")
                    has_grown = begin_bytes and num_bytes - begin_bytes > _MAX_GROWTH_BYTES
                    # The exception is raised in the thread that renders, at its next bytecode.
                    if time.monotonic() > deadline or has_grown:
                        del self._running[thread_id]
                        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread_id), ctypes.py_object(Overrun))
                    elif not begin_bytes:
                        # Measured here, since most chats are rendered before the first poll.
                        self._running[thread_id] = (deadline, num_bytes)


_WATCHDOG = _Watchdog()
# In a forked process, the thread does not run, and the lock may be held forever. So both are created anew.
os.register_at_fork(after_in_child=_WATCHDOG.__init__)  # type: ignore[misc]  # of the same object
