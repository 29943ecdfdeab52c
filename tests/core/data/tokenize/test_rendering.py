# SPDX-License-Identifier: Apache-2.0
"""Tools, thoughts, a flag for each turn, and rows that are too long."""

from __future__ import annotations

from typing import Any

import pytest

from oumi.core.data.checks.supervision import draw
from oumi.core.data.tokenize.chat_template import Template
from oumi.core.data.tokenize.encoder import RowTokenizer
from oumi.core.data.tokenize.loss_mask import TokenizeSpec
from oumi.core.errors import ConfigError
from oumi.core.types.conversation import ContentItem, Conversation, FunctionCall, Message, Role, ToolCall, Type
from oumi.core.types.example import Completion, Encoded, Judged, Preference, Prompt, RejectedRow, Row, Source, Text
from tests.tiny import CHATML, byte_tokenizer

SOURCE = Source("set", "x.jsonl", 1)
# Writes tools and calls; thoughts of the last answer only, as templates of thinking models do.
THINKING = """{%- if tools %}<|im_start|>system
{%- for tool in tools %}{{ '\\n' }}{{ tool.function | tojson }}{%- endfor %}<|im_end|>
{% endif %}
{%- for m in messages %}<|im_start|>{{ m.role }}
{% if m.reasoning_content and loop.last %}<think>{{ m.reasoning_content }}</think>{% endif %}
{{- m.content or '' }}
{%- for call in m.tool_calls or [] %}<call>{{ call.function.name }} {{ ARGUMENTS }}</call>{%- endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
AS_VALUES = THINKING.replace("ARGUMENTS", "call.function.arguments | tojson")
AS_TEXT = THINKING.replace("ARGUMENTS", "call.function.arguments")
CALL = ToolCall(id="1", function=FunctionCall(name="weather", arguments={"city": "Bonn"}))
TOOLS = [{"function": {"name": "weather"}}]


def message(role: str, content: Any = None, **others: Any) -> Message:
    return Message(role=Role(role), content=content, **others)


def encode(
    value: Any, template: str | dict[str, str] = CHATML, train_on: str = "all_assistant_turns", **kwargs: Any
) -> Encoded | RejectedRow:
    tokenizer = byte_tokenizer()
    return next(
        RowTokenizer(tokenizer, Template(tokenizer, template), TokenizeSpec(train_on, **kwargs)).make(
            [Row(value, SOURCE)]
        )
    )


def drawn(value: Any, *arguments: Any, **kwargs: Any) -> list[str]:
    """Returns each document of a row with the tokens that are trained in brackets."""
    result = encode(value, *arguments, **kwargs)
    assert isinstance(result, Encoded), result
    return [draw(document, byte_tokenizer()) for example in result.examples for document in example.documents()]


def chat(*messages: Message, **kwargs: Any) -> Conversation:
    return Conversation(messages=list(messages), **kwargs)


@pytest.mark.parametrize("template", [AS_VALUES, AS_TEXT])
def test_calls_are_trained_and_results_are_not_however_a_template_wants_them(template: str) -> None:
    question = chat(
        message("user", "Rain?"), message("assistant", tool_calls=[CALL]), message("tool", "no"),
        message("assistant", "No."), tools=TOOLS,
    )  # fmt: skip
    assert drawn(question, template) == [
        '<|im_start|>system\n{"name": "weather"}<|im_end|>\n<|im_start|>user\nRain?<|im_end|>\n'
        '<|im_start|>assistant\n[<call>weather {"city": "Bonn"}</call><|im_end|>]\n'
        "<|im_start|>tool\nno<|im_end|>\n<|im_start|>assistant\n[No.<|im_end|>]\n"
    ]


def test_a_template_that_writes_no_calls_is_refused() -> None:
    result = encode(chat(message("user", "Rain?"), message("assistant", tool_calls=[CALL])))
    assert isinstance(result, RejectedRow)
    assert result.reason == "turn 1: the chat template does not write its tool call: weather"


def test_each_thought_is_trained_as_it_is_thought() -> None:
    thinking = chat(
        message("user", "A?"), message("assistant", "a", reasoning_content="hm"),
        message("user", "B?"), message("assistant", "b", reasoning_content="so"),
    )  # fmt: skip
    first = "<|im_start|>user\nA?<|im_end|>\n<|im_start|>assistant\n"
    assert drawn(thinking, AS_TEXT) == [
        f"{first}[<think>hm</think>a<|im_end|>]\n",
        f"{first}a<|im_end|>\n<|im_start|>user\nB?<|im_end|>\n<|im_start|>assistant\n[<think>so</think>b<|im_end|>]\n",
    ]
    result = encode(thinking)
    assert isinstance(result, RejectedRow)
    assert result.reason == "turn 1: the chat template does not write its reasoning_content"


# Writes the thoughts of an answer that comes last, or that calls a tool of which no answer tells yet, as gpt-oss does.
AGENT = (
    "{% set ns = namespace(answered=false) %}{% for m in messages %}{% if m.role == 'assistant' and not m.tool_calls %}"
    "{% set ns.answered = true %}{% endif %}{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content and (loop.last or not ns.answered) %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }} {{ c.function.arguments | tojson }}</call>"
    "{% endfor %}{{ m.content or '' }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Writes the system turn with a question that comes last, as Mistral's templates do.
SYSTEM_LAST = (
    "{% for m in messages if m.role != 'system' %}"
    "<|im_start|>{{ m.role }}\n{% if loop.last and messages[0].role == 'system' %}{{ messages[0].content }} {% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_an_answer_follows_the_prompt_of_inference_though_the_finished_chat_is_written_otherwise() -> None:
    agent = chat(
        message("user", "Rain?"), message("assistant", reasoning_content="ask", tool_calls=[CALL]),
        message("tool", "no"), message("assistant", "No.", reasoning_content="dry"),
    )  # fmt: skip
    call = '<think>ask</think><call>weather {"city": "Bonn"}</call>'
    question = "<|im_start|>user\nRain?<|im_end|>\n<|im_start|>assistant\n"
    assert drawn(agent, AGENT) == [
        f"{question}[{call}<|im_end|>]\n<|im_start|>tool\nno<|im_end|>\n<|im_start|>assistant\n"
        "[<think>dry</think>No.<|im_end|>]\n"
    ]
    told = chat(message("system", "Be."), message("user", "A?"), message("assistant", "a"))
    assert drawn(told, SYSTEM_LAST) == ["<|im_start|>user\nBe. A?<|im_end|>\n<|im_start|>assistant\n[a<|im_end|>]\n"]


# Opens a thought, writes none, and drops the last answer.
SPEECHLESS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'user' or not loop.last %}{{ m.content }}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


def test_an_answer_that_an_earlier_turn_says_too_is_not_taken_from_there() -> None:
    same = chat(
        message("user", "A?"), message("assistant", "same"), message("user", "B?"),
        message("assistant", "same", reasoning_content="so"),
    )  # fmt: skip
    result = encode(same, SPEECHLESS, "final_assistant_turn")
    assert isinstance(result, RejectedRow)
    assert result.reason == "turn 3: the chat template changes or drops its text"


# Opens a thought, and writes finished answers without theirs, as DeepSeek-R1's template does.
THOUGHTLESS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ (m.content or '').split('</think>')[-1] | trim }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


@pytest.mark.parametrize(
    ("thought", "is_said"), [(thought, True) for thought in ("so", "a", "is 5", "")] + [("so", False), ("is 5", False)]
)
def test_a_thought_that_the_template_drops_is_trained_whatever_words_it_has(thought: str, is_said: bool) -> None:
    said = f"<think>\n{thought}\n</think>\n\n" if is_said else ""
    answer = message("assistant", f"{said}It is 5.", reasoning_content=None if is_said else thought)
    question = "<|im_start|>user\nA?<|im_end|>\n<|im_start|>assistant\n<think>\n"
    expected = f"{question}[{thought}\n</think>\n\nIt is 5.<|im_end|>]\n"
    assert drawn(chat(message("user", "A?"), answer), THOUGHTLESS) == [expected]


@pytest.mark.parametrize(
    ("template", "header"),
    [
        (CHATML, "<|im_start|>assistant\n"),
        ("Be.<|im_end|>\n" + CHATML, "Be.<|im_end|>\n<|im_start|>assistant\n"),
        # The end of a chat begins like the header, and the prompt opens a thought.
        (f"{CHATML}{{% if not add_generation_prompt %}}<|im_end|>{{% endif %}}", "<|im_start|>assistant\n"),
        (THOUGHTLESS, "<|im_start|>assistant\n"),
        (THOUGHTLESS.replace("{{ (m", "{% if m.role != 'user' %}<think>{% endif %}{{ (m"),
         "<|im_start|>assistant\n<think>"),
    ],
)  # fmt: skip
def test_of_an_answer_that_opens_the_chat_the_header_is_not_trained(template: str, header: str) -> None:
    greeting = chat(message("assistant", "Hi."), message("user", "A?"), message("assistant", "a"))
    (text,) = drawn(greeting, template)
    assert text.startswith(f"{header}[Hi.<|im_end|>]\n<|im_start|>user\n")


def test_an_answer_that_opens_the_chat_without_a_header_is_refused() -> None:
    greeting = chat(message("assistant", "Hi."), message("user", "A?"), message("assistant", "a"))
    result = encode(greeting, THOUGHTLESS.replace("{{ m.role }}", "{{ 'first' if loop.first else m.role }}"))
    assert isinstance(result, RejectedRow)
    assert result.reason == "turn 0: the chat template writes no header of the assistant before it"
    # Nor does a line break tell where a call begins.
    bare = (
        "Be.\n{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}"
        "{{ m.content or '' }}{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '\n' }}{% endif %}"
    )
    call = chat(message("assistant", tool_calls=[CALL]), message("user", "A?"), message("assistant", "a"))
    assert encode(call, bare).reason == result.reason


def test_what_a_template_drops_from_a_chat_that_is_trained_whole_is_told() -> None:
    thinking = chat(
        message("user", "A?"), message("assistant", "a", reasoning_content="hm"),
        message("user", "B?"), message("assistant", "b", reasoning_content="so"),
    )  # fmt: skip
    result = encode(thinking, AS_TEXT, "all")
    assert isinstance(result, Encoded)
    assert [remark.partition(",")[0] for remark in result.remarks] == [
        "the chat template drops thoughts of earlier turns"
    ]
    # Nothing is said of a turn that no prompt of inference holds.
    assert isinstance(encode(thinking, CHATML, "all"), RejectedRow)


def test_several_templates_are_chosen_by_the_tools_of_a_chat() -> None:
    templates = {"default": CHATML, "tool_use": "tools: {{ tools | length }}\n" + CHATML}
    turns = (message("user", "A?"), message("assistant", "a"))
    plain = "<|im_start|>user\nA?<|im_end|>\n<|im_start|>assistant\n[a<|im_end|>]\n"
    assert drawn(chat(*turns), templates) == [plain]
    named = {**templates, "tool_use": AS_TEXT}
    assert drawn(chat(*turns, tools=TOOLS), named)[0].endswith(plain)
    # The names of the tools are not written.
    assert isinstance(encode(chat(*turns, tools=TOOLS), templates), RejectedRow)
    with pytest.raises(ConfigError, match=r"several \(rag, tool_use\), but none is named 'default'"):
        Template(byte_tokenizer(), {"rag": CHATML, "tool_use": CHATML})


def test_a_call_may_begin_like_the_thought_that_is_opened() -> None:
    opens = AS_VALUES.replace("<call>", "<tool_call>").replace(
        "assistant\n{% endif %}", "assistant\n<think>{% endif %}"
    )
    question = chat(message("user", "Rain?"), message("assistant", tool_calls=[CALL]))
    (text,) = drawn(question, opens)
    assert text.endswith('assistant\n[<tool_call>weather {"city": "Bonn"}</call><|im_end|>]\n')


FLAGGED = {
    "one is not": ((None, False), "[a<|im_end|>]", "b<|im_end|>"),
    "one is": ((False, True), "a<|im_end|>", "[b<|im_end|>]"),
    "both are": ((True, True), "[a<|im_end|>]", "[b<|im_end|>]"),
    "one is named": ((True, None), "[a<|im_end|>]", "[b<|im_end|>]"),
}


@pytest.mark.parametrize("kind", FLAGGED)
def test_a_flag_says_whether_a_turn_is_trained(kind: str) -> None:
    flags, first, second = FLAGGED[kind]
    (text,) = drawn(chat(
        message("user", "A?"), message("assistant", "a", train=flags[0]),
        message("user", "B?"), message("assistant", "b", train=flags[1]),
    ))  # fmt: skip
    assert f"A?<|im_end|>\n<|im_start|>assistant\n{first}\n" in text
    assert f"B?<|im_end|>\n<|im_start|>assistant\n{second}\n" in text


def test_a_chat_of_which_no_turn_is_to_be_trained_is_refused() -> None:
    result = encode(chat(message("user", "A?"), message("assistant", "a", train=False)))
    assert isinstance(result, RejectedRow)
    assert result.reason == "has no turn to train"


def test_a_image_is_never_dropped_unseen() -> None:
    content = [ContentItem(type=Type.IMAGE_PATH, content="a.png"), ContentItem(type=Type.TEXT, content="What?")]
    result = encode(chat(message("user", content), message("assistant", "A cat.")))
    assert isinstance(result, RejectedRow)
    assert result.reason.startswith("turn 0: holds an image")


def test_both_answers_of_a_preference_follow_the_same_prompt() -> None:
    before = [message("user", "A?"), message("assistant", "a"), message("user", "B?")]
    pair = Preference(chat(*before, message("assistant", "good")), chat(*before, message("assistant", "bad")))
    start = "<|im_start|>user\nA?<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n<|im_start|>user\nB?<|im_end|>\n"
    assert drawn(pair) == [f"{start}<|im_start|>assistant\n[{answer}<|im_end|>]\n" for answer in ("good", "bad")]
    assert drawn(Preference(Completion("Q", "good"), Completion("Q", "bad"))) == [
        "Q[good<|im_end|>]", "Q[bad<|im_end|>]",
    ]  # fmt: skip
    assert drawn(Judged(Completion("Q", "good"), True)) == ["Q[good<|im_end|>]"]
    assert isinstance(encode(Prompt((message("user", "Q"),), {})), RejectedRow)


def test_answers_to_different_prompts_are_no_pair() -> None:
    chosen = chat(message("user", "A?"), message("assistant", "a"), message("user", "B?"), message("assistant", "good"))
    rejected = chat(message("user", "A?"), message("assistant", "bad"))
    result = encode(Preference(chosen, rejected))
    assert isinstance(result, RejectedRow)
    assert result.reason == "'chosen' and 'rejected' differ before their last turn: they answer different prompts"


def test_both_answers_of_a_pair_lose_the_same_part_of_the_prompt() -> None:
    pair = Preference(Completion("abcdef", "xy"), Completion("abcdef", "z"))  # nine and eight tokens with their ends
    assert drawn(pair, max_length=6, truncation="left") == ["def[xy<|im_end|>]", "def[z<|im_end|>]"]
    result = encode(pair, max_length=3, truncation="left")
    assert isinstance(result, RejectedRow)
    assert result.reason == "no prompt is left before an answer within model_max_length 3"


LONG = Text("abcdefghij")  # eleven tokens with its end
CUT = {
    None: (["[abcd]", "[efgh]", "[ij<|im_end|>]"], 0),
    "split": (["[abcd]", "[efgh]", "[ij<|im_end|>]"], 0),
    "right": (["[abcd]"], 7),
    "left": (["[hij<|im_end|>]"], 7),
}


@pytest.mark.parametrize("policy", CUT)
def test_a_row_that_is_too_long_is_cut_as_asked(policy: str | None) -> None:
    texts, cut = CUT[policy]
    result = encode(LONG, max_length=4, truncation=policy)
    assert isinstance(result, Encoded)
    assert [draw(part, byte_tokenizer()) for part in result.examples] == texts
    assert (result.cut_tokens, result.cut_targets) == (cut, cut)


def test_a_row_that_is_too_long_may_be_refused() -> None:
    result = encode(LONG, max_length=4, truncation="reject")
    assert isinstance(result, RejectedRow)
    assert result.reason == "longer than model_max_length 4: 11 tokens"


@pytest.mark.parametrize("policy", ["right", "left", "split"])
@pytest.mark.parametrize("length", [20, 24, 27, 40])
def test_what_was_cut_off_and_what_is_left_is_all_there_was(policy: str, length: int) -> None:
    value = chat(message("user", "Hi? " * 3), message("assistant", "Yo. " * 5))
    uncut = encode(value)
    assert isinstance(uncut, Encoded)
    (example,) = uncut.examples
    result = encode(value, max_length=length, truncation=policy)
    if isinstance(result, RejectedRow):
        assert policy == "right"
        return
    assert sum(len(part.tokens) for part in result.examples) + result.cut_tokens == len(example.tokens)
    assert sum(int(part.is_target.sum()) for part in result.examples) + result.cut_targets == example.is_target.sum()
    assert all(len(part.tokens) <= length for part in result.examples)


@pytest.mark.parametrize(
    "text",
    [
        "{% generation %}x{% endgeneration %}",
        "{% for a in [1, 2, 3] %}{% if a == 2 %}{% break %}{% endif %}{% endfor %}x",
        "{{ {'a': 'é<'} | tojson }}",
        "{{- 'x' -}}  \n  {%- if tools is none %}y{% endif %}",
        "  {% if true %}\n  x\n  {% endif %}\n",
        "{{ bos_token is defined }} {{ eos_token }}",
        "{% set ns = namespace(a=1) %}{% set ns.a = 2 %}{{ ns.a }}",
        "{{ messages[0]['content'].split('i')[0] }} {{ messages | length }} {{ messages[::-1][0].role }}",
    ],
)
def test_a_template_writes_what_it_writes_in_transformers(text: str) -> None:
    tokenizer = byte_tokenizer()
    chat = [{"role": "user", "content": "Hi?"}]
    expected = tokenizer.apply_chat_template(chat, chat_template=text, tokenize=False)
    assert Template(tokenizer, text).render([message("user", "Hi?")]) == expected
