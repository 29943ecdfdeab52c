# SPDX-License-Identifier: Apache-2.0
"""Whatever part of a chat a template drops, doubles or moves: the row is refused, or trained as it is at inference."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import pytest

from oumi.core.data.tokenize.chat_template import Template, TemplateError, bundled_template
from oumi.core.data.tokenize.encoder import RowTokenizer
from oumi.core.data.tokenize.loss_mask import Rendered, TokenizeSpec
from oumi.core.types.conversation import Conversation, FunctionCall, Message, Role, ToolCall, ToolDefinition
from oumi.core.types.example import RejectedRow, Row, Source
from tests.core.data.tokenize.families.family import NOW
from tests.tiny import byte_tokenizer

SOURCE = Source("set", "x.jsonl", 1)
_BUNDLED = ("chat_ml", "zephyr", "phi3-instruct", "llama3-instruct", "gemma2-it")
TEMPLATES = {
    name: f"trl:{name}"
    for name in (
        "qwen3", "qwen2_5", "gptoss", "gemma4_v5", "glm4moe", "cohere2", "llama3_1", "qwen3_5_think", "nemotron_3_nano",
        "lfm2_v2", "deepseekv3", "qwen3_8", "llama3", "phi3_5", "gemma3",
    )
} | {name: f"bundled:{name}" for name in _BUNDLED}  # fmt: skip

# Each is written before a template, and changes the messages that it reads.
_REBUILD = (
    "{{%- set ns = namespace(m=[]) -%}}{{%- for m in messages -%}}{body}{{%- endfor -%}}{{%- set messages = ns.m -%}}"
)
_KEEP = "{%- set ns.m = ns.m + [m] -%}"
_CHANGE = (
    "{{%- if {test} -%}}{{%- set ns.m = ns.m + [dict(m, {change})] -%}}{{%- else -%}}"
    + _KEEP.replace("{", "{{").replace("}", "}}")
    + "{{%- endif -%}}"
)


def _changed(test: str, change: str) -> str:
    return _REBUILD.format(body=_CHANGE.format(test=test, change=change))


_TURN_K, _SAYS = "loop.index0 == K and m.content is string", "m.reasoning_content and m.content is string"
MUTATIONS = {
    "nothing": "",
    "a turn is dropped": _REBUILD.format(body="{%- if loop.index0 != K -%}" + _KEEP + "{%- endif -%}"),
    "a turn is doubled": _REBUILD.format(body=_KEEP + "{%- if loop.index0 == K -%}" + _KEEP + "{%- endif -%}"),
    "the first turn comes last": "{%- set messages = messages[1:] + messages[:1] -%}",
    "two turns change places": (
        "{%- set m = messages -%}{%- set messages = m[:K] + m[K + 1:K + 2] + m[K:K + 1] + m[K + 2:] -%}"
    ),
    "the text of a turn is dropped": _changed(_TURN_K, "content=''"),
    "the text of a turn is doubled": _changed(_TURN_K, "content=m.content ~ ' ' ~ m.content"),
    "the text of a turn is cut": _changed(_TURN_K, "content=m.content[:3]"),
    "the text of a turn is cut on the left": _changed(_TURN_K, "content=m.content[3:]"),
    "thoughts are dropped": _changed("m.reasoning_content", "reasoning_content='', thinking=''"),
    "the thought is said": _changed(_SAYS, "content=m.reasoning_content ~ m.content"),
    "the second call is dropped": _changed("m.tool_calls", "tool_calls=m.tool_calls[:1]"),
    "the first call is dropped": _changed("m.tool_calls", "tool_calls=m.tool_calls[1:]"),
    "calls are doubled": _changed("m.tool_calls", "tool_calls=m.tool_calls + m.tool_calls"),
    "the second tool is dropped": "{%- if tools -%}{%- set tools = tools[:1] -%}{%- endif -%}",
}  # fmt: skip


# Numbers as JSON and Python write them, and otherwise.
OTHER_ARGUMENTS = (
    "", ', "n": 20.0', ', "n": 20.00', ', "n": 1e5', ', "n": 48.858370123456', ', "n": 0', ', "n": -0.5', ', "n": true',
    ', "n": null, "m": []',
)  # fmt: skip


@dataclass(frozen=True)
class Twins:
    """A chat, and one of the same shape in which no two parts have a word in common."""

    chat: Conversation
    unique: Conversation


def twins(seed: int) -> Twins:
    """Returns a random chat that says the same few words everywhere, and its twin; both end with an answer."""
    numbers = random.Random(seed)
    count = 0

    def say() -> tuple[str, str]:
        nonlocal count
        count += 1
        words = numbers.choice(("weather Oslo", "Oslo", "the weather", "weather weather Oslo, please", "assi"))
        return words, f"part{count:03d}x word{count:03d}x"

    messages: tuple[list[Message], list[Message]] = ([], [])
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    functions = [{"name": name, "description": "d", "parameters": schema} for name in ("weather", "Oslo")]
    tools = [ToolDefinition(function=function) for function in functions] if numbers.random() < 0.6 else None

    def add(role: Role, **others: Any) -> None:
        for twin, text in enumerate(say()):
            extra = {key: value[twin] for key, value in others.items()}
            content = extra.pop("content", text)
            messages[twin].append(Message(role=role, content=content, **extra))

    if numbers.random() < 0.5:
        add(Role.SYSTEM)
    if numbers.random() < 0.2:
        add(Role.ASSISTANT)
    for _ in range(numbers.choice((1, 2))):
        add(Role.USER)
        thought = {"reasoning_content": say()} if numbers.random() < 0.4 else {}
        if tools and numbers.random() < 0.8:
            calls: tuple[list[ToolCall], list[ToolCall]] = ([], [])
            for i in range(numbers.choice((1, 2))):
                other = numbers.choice(OTHER_ARGUMENTS)
                for twin, city in enumerate(say()):
                    function = FunctionCall(name="weather", arguments=f'{{"city": "{city}"{other}}}')
                    calls[twin].append(ToolCall(id=f"abcdef12{i}", function=function))
            add(Role.ASSISTANT, content=("", ""), tool_calls=calls, **thought)
            for i in range(len(calls[0])):
                add(Role.TOOL, name=("weather", "weather"), tool_call_id=(f"abcdef12{i}",) * 2)
            thought = {}
        add(Role.ASSISTANT, **thought)
    return Twins(*(Conversation(messages=list(turns), tools=tools) for turns in messages))


@cache
def source_of(name: str) -> str:
    kind, _, template = TEMPLATES[name].partition(":")
    if kind == "bundled":
        return bundled_template(template)
    file = files("trl") / "chat_templates" / f"{template}.jinja"
    if not file.is_file():
        pytest.skip(f"the installed TRL has no template {template}")
    return file.read_text()


def parts_of(message: Message) -> Iterator[str]:
    """Yields the parts of a turn of the twin, each by its first word."""
    if message.text:
        yield message.text.split()[0]
        yield message.text.split()[1]
    for call in message.tool_calls or ():
        yield from call.function.values()["city"].split()


OF_ANSWER = "of the answer"


def faults_of(template: Template, chat: Conversation) -> list[str]:
    """Returns what is wrong with the last answer of a chat without repeated words, by what the template writes."""
    *before, answer = chat.messages
    try:
        prompt = template.render(before, add_generation_prompt=True, tools=chat.tools)
        finished = template.render(chat.messages, tools=chat.tools)
    except TemplateError:
        return []  # refused, as the row is
    faults = []
    for message in before:
        faults += [f"{part} of {message.role}" for part in parts_of(message) if prompt.count(part) != 1]
    for part in [*parts_of(answer), *(answer.reasoning_content or "").split()]:
        if finished.count(part) != 1 or part in prompt:
            faults.append(f"{part} {OF_ANSWER}")
    for tool in chat.tools or ():
        if tool.function["name"] not in prompt:
            faults.append(f"tool {tool.function['name']}")
    return faults


def check(name: str, mutation: str, seeds: range) -> tuple[int, int]:
    """Verifies that no faulty row is trained; returns how many rows were trained and refused."""
    tokenizer, trained, refused = byte_tokenizer(), 0, 0
    tokenizer.add_special_tokens({"bos_token": "<s>"})  # templates write it
    templates = [
        Template(tokenizer, MUTATIONS[mutation].replace("K", str(k)) + source_of(name), NOW)
        for k in range(4 if "K" in MUTATIONS[mutation] else 1)
    ]
    for seed in seeds:
        template = templates[seed % len(templates)]
        pair = twins(seed)
        row_tokenizer = RowTokenizer(tokenizer, template, TokenizeSpec("final_assistant_turn"))
        result = row_tokenizer.renderer.render(Row(pair.chat, SOURCE))
        faults = faults_of(template, pair.unique)
        if isinstance(result, RejectedRow):
            refused += 1
            # Nor is one refused for its words.
            twin = row_tokenizer.renderer.render(Row(pair.unique, SOURCE))
            assert isinstance(twin, RejectedRow), f"{name}, {mutation}, seed {seed}: {result.reason}"
            continue
        assert isinstance(result, Rendered)
        # What is trained is what follows the prompt of inference, with all that the answer holds.
        (document,) = result.documents
        answer = pair.chat.messages[-1]
        first, last = document.spans[0][0], document.spans[-1][1]
        # An answer whose thought only the finished chat lacks is trained as it is, behind the prompt that opens it.
        as_said = f"{answer.reasoning_content}\n</think>\n\n{answer.text}<"
        if answer.reasoning_content and document.text[first:].startswith(as_said):
            faults = [fault for fault in faults if OF_ANSWER not in fault]
        assert not faults, f"{name}, {mutation}, seed {seed}: trained in silence with {faults}"
        assert answer.text in document.text[max(first - 20, 0) : last]
        prompt = template.render(pair.chat.messages[:-1], add_generation_prompt=True, tools=pair.chat.tools)
        assert prompt == document.text[:first] or document.remarks or prompt.startswith(document.text[:first])
        trained += 1
    return trained, refused


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_no_part_of_a_chat_is_lost_in_silence(mutation: str) -> None:
    for i, name in enumerate(("qwen3", "gptoss")):
        trained, refused = check(name, mutation, range(12 * i, 12 * i + 12))
        assert trained + refused == 12
        if mutation == "nothing" and name == "qwen3":
            assert trained == 12


CODE = "def f(x):\n    if x:\n        return 1\n\n    return 2"


@pytest.mark.parametrize("name", ["qwen3", "glm4moe", "chat_ml"])
@pytest.mark.parametrize(
    "change", ["m.content.replace('\n', ' ')", "m.content.replace('    ', '')", "m.content.split() | join(' ')"]
)
def test_white_space_within_an_answer_is_kept(name: str, change: str) -> None:
    tokenizer = byte_tokenizer()
    chat = Conversation(messages=[Message(role=Role.USER, content="?"), Message(role=Role.ASSISTANT, content=CODE)])
    plain = source_of(name)
    for source, is_kept in ((plain, True), (_changed("m.role == 'assistant'", f"content={change}") + plain, False)):
        row_tokenizer = RowTokenizer(tokenizer, Template(tokenizer, source, NOW), TokenizeSpec("final_assistant_turn"))
        result = row_tokenizer.renderer.render(Row(chat, SOURCE))
        assert isinstance(result, Rendered) == is_kept
        assert not is_kept or CODE in result.documents[0].text


def test_a_part_is_missed_though_the_chat_has_numbers_like_the_sentinels() -> None:
    tokenizer = byte_tokenizer()
    template = Template(tokenizer, MUTATIONS["a turn is dropped"].replace("K", "0") + source_of("qwen3"), NOW)
    row_tokenizer = RowTokenizer(tokenizer, template, TokenizeSpec("final_assistant_turn"))
    for numbers in ("904112345", " ".join(f"904{digit}12345" for digit in range(10))):
        chat = [(Role.SYSTEM, "Be brief"), (Role.USER, f"Be brief and ring {numbers}"), (Role.ASSISTANT, "Sure.")]
        messages = [Message(role=role, content=text) for role, text in chat]
        result = row_tokenizer.renderer.render(Row(Conversation(messages=messages), SOURCE))
        assert isinstance(result, RejectedRow)
        assert result.reason == "turn 0: the chat template changes or drops the text of the system"


@pytest.mark.slow
@pytest.mark.parametrize("name", TEMPLATES)
def test_no_part_of_200_chats_is_lost_in_silence(name: str) -> None:
    counts = {mutation: check(name, mutation, range(200)) for mutation in MUTATIONS}
    print(f"{name}: trained, refused: {counts}")
    assert counts["nothing"][0] > 0
