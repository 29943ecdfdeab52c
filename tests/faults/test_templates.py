# SPDX-License-Identifier: Apache-2.0
"""Chat templates that fail, mean harm or hide what is trained: a run is refused, never wrong in silence."""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path

import pytest

from oumi.core.data.tokenize import template_sandbox as sandbox
from oumi.core.data.tokenize.chat_template import Template, TemplateError
from oumi.core.errors import ConfigError, DataError
from oumi.core.train import train
from oumi.core.types.conversation import Message, Role
from tests.runs import tiny_config
from tests.tiny import CHATML, byte_tokenizer

USER_TURN = [Message(role=Role.USER, content="Hi?")]
HARMFUL = {
    "no end": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "no end within": "{% macro f() %}{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}"
    "{% endmacro %}{{ f() }}",
    "too much": "{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
    "too much at once": "{{ 'x' * 100000000 }}",
    "too much of a list": "{{ [0] * 100000000 }}",
    "a power": "{{ 9 ** 999999 }}",
    "doubled": "{% set n = namespace(x='x') %}{% for a in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "added to itself": "{% set n = namespace(x='x') %}{% for a in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}x",
    "a list added to itself": "{% set n = namespace(x=[1]) %}{% for a in range(60) %}{% set n.x = n.x + n.x %}"
    "{% endfor %}",
    "out of the sandbox": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "a module": "{{ cycler.__init__.__globals__.os }}",
    "changes the chat": "{{ messages.append(1) }}",
    "a gigabyte of one text": "{% set x = 'x' * 9999999 %}{% for a in range(107) %}{{ x }}{% endfor %}",
    "a gigabyte of one value": "{% set x = 'x' * 9999999 %}{{ ([x] * 107) | join }}",
    "a gigabyte within a macro": "{% macro f() %}{% for a in range(107) %}{{ 'x' * 9999999 }}{% endfor %}{% endmacro %}"
    "{{ f() | length }}",
    "a wide column": "{{ '%999999999d' | format(1) }}",
    "a wide line": "{{ 'x'.ljust(9999999 * 100) }}",
    "replaced by itself": "{% set x = 'x' * 999999 %}{{ x | replace('x', x) | length }}",
    "replaced by itself, as a call": "{% set x = 'x' * 999999 %}{{ x.replace('x', x) | length }}",
    "a wide column, as a call": "{{ '{:999999999}'.format(1) }}",
    "a wide column, as a remainder": "{{ '%999999999d' % 1 }}",
    "a column as wide as is told": "{{ '%*d' % (9999999 * 107, 1) }}",
    "a column as wide as a value": "{{ '{:{}}'.format(1, 9999999 * 107) }}",
    "a wide row": "{{ [1] | batch(9999999 * 107, 0) | list | length }}",
    "deep in JSON": "{{ [[1]] | tojson(indent=9999999) | length }}",
    "a wide middle": "{{ 'x' | center(9999999 * 107) }}",
    "far to the right": "{{ ('x' * 9999 ~ '\\n') | indent(9999999 * 107) }}",
    "joined by much": "{% set x = 'x' * 9999999 %}{{ range(107) | list | join(x) }}",
    "calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
}


@pytest.fixture(autouse=True)
def is_hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stops templates early: the time that they may take is a setting of the module."""
    monkeypatch.setattr(sandbox, "MAX_SECONDS", 0.5)


@pytest.mark.parametrize("kind", HARMFUL)
def test_a_template_that_means_harm_is_stopped(kind: str) -> None:
    started = time.monotonic()
    with pytest.raises((TemplateError, ConfigError)):
        Template(byte_tokenizer(), HARMFUL[kind]).render(USER_TURN)
    assert time.monotonic() - started < sandbox.MAX_SECONDS + 60, "on a machine that does other things, too"


def test_a_template_that_was_stopped_does_not_stop_the_next() -> None:
    tokenizer = byte_tokenizer()
    for _ in range(2):
        with pytest.raises(TemplateError, match=r"takes more than 0\.5 s"):
            Template(tokenizer, HARMFUL["no end"]).render(USER_TURN)
        assert Template(tokenizer, CHATML).render(USER_TURN) == "<|im_start|>user\nHi?<|im_end|>\n"
    time.sleep(0.2)


HARMLESS = {
    "a number in a text": ("{{ 'Call 0123456789012, %s' | format('Ann') }}", "Call 0123456789012, Ann"),
    "a column": ("{{ '%5d|' | format(7) }}{{ '{:>4}'.format(7) }}", "    7|   7"),
    "a share": ("{{ 17 % 5 }} {{ '100%' }}", "2 100%"),
    "joined": ("{{ ['a', 'b', 3] | join(', ') }}{{ '-'.join(['c', 'd']) }}", "a, b, 3c-d"),
    "joined by what they have": ("{{ messages | join(',', attribute='role') }}", "user"),
    "indented": ("{{ 'a\\nb' | indent(2) }}{{ 'a\\nb' | indent(width='> ') }}", "a\n  ba\n> b"),
    "replaced": ("{{ 'aXa' | replace('X', 'yy') }}{{ 'aXa'.replace('a', '') }}", "ayyaX"),
    "in JSON": ("{{ {'a': 1} | tojson(indent=4) }}", '{\n    "a": 1\n}'),
    "much of nothing": ("{% for a in range(999) %}{{ '' }}{% endfor %}x", "x"),
    "in rows": ("{{ [1, 2, 3] | batch(2) | list }}", "[[1, 2], [3]]"),
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_a_template_that_means_no_harm_is_left_alone(kind: str) -> None:
    text, expected = HARMLESS[kind]
    assert Template(byte_tokenizer(), text).render(USER_TURN) == expected


# A template, and why no run begins with it.
REFUSED = {
    "no template": ("{% for m in messages %}", r"model\.chat_template: line 1: "),
    "an error": ("{{ raise_exception('not today') }}", "the chat template refuses it: not today"),
    "an error within": ("{{ messages[0].content + 1 }}", "the chat template refuses it: TypeError"),
    "no end": (
        HARMFUL["no end"],
        r"model\.chat_template: it takes more than 0\.5 s, or too much memory, as for 2 chats before",
    ),
    "too much": (HARMFUL["a gigabyte of one text"], "the chat template refuses it: it writes more than 10,000,000"),
    "nothing": ("", "the chat template changes or drops the text of the user"),
    "no answers": (
        "{% for m in messages if m.role == 'user' %}{{ m.content }}<|im_end|>{% endfor %}",
        "the chat template changes or drops",
    ),
    "no questions": (
        "{% for m in messages if m.role == 'assistant' %}{{ m.content }}<|im_end|>{% endfor %}",
        "the chat template changes or drops the text of the user",
    ),
    "other answers": (
        CHATML.replace("message['content']", "message['content'] | reverse"),
        "the chat template changes or drops",
    ),
    "no end of an answer": (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
        "an answer ends without a special token",
    ),
    "a prompt of its own": (
        CHATML.replace("{% if add_generation_prompt %}", "{% if add_generation_prompt %}<|endoftext|>").replace(
            "{% for", "{% if add_generation_prompt %}!{% endif %}{% for", 1
        ),
        "the chat template gives no prompt that the finished chat begins with",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_run_with_a_template_that_cannot_be_trusted_does_not_start(tmp_path: Path, kind: str) -> None:
    text, reason = REFUSED[kind]
    config = tiny_config(tmp_path, num_rows=4)
    path = tmp_path / "mine.jinja"
    path.write_text(text)
    config.model.chat_template = str(path)
    started = time.monotonic()
    with pytest.raises((ConfigError, DataError), match=reason):
        train(config)
    assert time.monotonic() - started < sandbox.MAX_SECONDS + 60
    assert not (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("markers", [False, True])
def test_answers_are_found_with_and_without_markers_of_generation(tmp_path: Path, markers: bool) -> None:
    answer = "{{ message['content'] }}<|im_end|>"
    begin, end = ("{% generation %}", "{% endgeneration %}") if markers else ("", "")
    config = tiny_config(tmp_path, num_rows=4, num_train_epochs=1)
    path = tmp_path / "mine.jinja"
    path.write_text(CHATML.replace(answer, f"{begin}{answer}{end}"))
    config.model.chat_template = str(path)
    train(config)
    (report,) = json.loads((tmp_path / "out" / "data_report.json").read_text())["train"]
    # Two rows of two turns and two of one, each with its end mark; see `write_chats`.
    answers = ["It is 0.", "Quite sure.", "It is 3. Yes!", "It is 6. Yes! Yes!", "It is 4.", "Quite sure."]
    assert report["tokens"]["trained"] == sum(len(one) + 1 for one in answers)


def test_what_a_template_may_take_of_memory_is_limited() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for kind in ("a gigabyte of one text", "a gigabyte of one value", "too much"):
        with pytest.raises(TemplateError):
            Template(byte_tokenizer(), HARMFUL[kind]).render(USER_TURN)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000  # kilobytes
