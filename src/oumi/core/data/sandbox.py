# SPDX-License-Identifier: Apache-2.0
"""Chat templates come from strangers: they run in a sandbox, for a limited time and to a limited size."""

from __future__ import annotations

import ctypes
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_SECONDS = 2.0
MAX_CHARACTERS = 10_000_000
"""Of one rendered chat, beyond what is in the chat itself."""
_MOST_OF_INPUT = 4
"""How often a template may repeat a chat."""
_MAX_GROWTH_BYTES = 512_000_000
_MAX_NUMBER = 10_000_000
_PIECES_AT_ONCE = 512
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
            while part := "".join(islice(pieces, _PIECES_AT_ONCE)):
                text += part
                if len(text) > MAX_CHARACTERS and len(text) > MAX_CHARACTERS + _MOST_OF_INPUT * len(str(variables)):
                    raise TemplateError(f"it writes more than {MAX_CHARACTERS:,} characters")
    except _Overrun:
        raise TemplateError(f"it takes more than {MAX_SECONDS:g} s, or too much memory") from None
    return text


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["*", "**"])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Returns a product or a power, unless it is too large."""
        if operator == "**":
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
