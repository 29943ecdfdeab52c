# SPDX-License-Identifier: Apache-2.0
"""Llama 2 to 3.2, Mistral, DeepSeek, and those who write as they do."""

from __future__ import annotations

from tests.core.data.tokenize.families.family import TOOL, Family, Refused

BOS = "<|begin_of_text|>"
ASSISTANT = "<|start_header_id|>assistant<|end_header_id|>\n\n"
HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|python_tag|>", "<|eom_id|>", "<|finetune_right_pad_id|>")

R1_THOUGHTS = (
    "<｜begin▁of▁sentence｜><｜User｜>One?<｜Assistant｜><think>\n⟦hm\n</think>\n\n1.<｜end▁of▁sentence｜>⟧",
    "<｜begin▁of▁sentence｜><｜User｜>One?<｜Assistant｜>1.<｜end▁of▁sentence｜><｜User｜>Two?<｜Assistant｜><think>\n"
    "⟦so\n</think>\n\n2.<｜end▁of▁sentence｜>⟧",
)
"""What the model says behind its prompt, though the template drops thoughts."""


def user(text: str) -> str:
    return f"<|start_header_id|>user<|end_header_id|>\n\n{text}<|eot_id|>"


def system(date: str, text: str = "", first: str = "") -> str:
    rendered = f"{first}Cutting Knowledge Date: December 2023\nToday Date: {date}\n\n{text}"
    return f"{BOS}<|start_header_id|>system<|end_header_id|>\n\n{rendered}<|eot_id|>"


IPYTHON = "Environment: ipython\n"
INDENTED = """{
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {
                    "type": "string"
                }
            },
            "required": [
                "city"
            ]
        }
    }
}"""
ASKED_WITH_TOOLS = (
    "Given the following functions, please respond with a JSON for a function call with its proper arguments that best "
    'answers the given prompt.\n\nRespond in the format {"name": function name, "parameters": dictionary of argument '
    f"name and its value}}.Do not use variables.\n\n{INDENTED}\n\nRain?"
)


def llama3(date: str) -> dict[str, str]:
    return {
        "single": f"{system(date)}{user('Hi?')}{ASSISTANT}⟦Yo.<|eot_id|>⟧",
        "many": f"{system(date)}{user('Hi?')}{ASSISTANT}⟦Yo.<|eot_id|>⟧{user('B?')}{ASSISTANT}⟦C.<|eot_id|>⟧",
        "system": f"{system(date, 'Be.')}{user('Hi?')}{ASSISTANT}⟦Yo.<|eot_id|>⟧",
        "tools": f"{system(date, first=IPYTHON)}{user(ASKED_WITH_TOOLS)}"
        f'{ASSISTANT}⟦{{"name": "weather", "parameters": {{"city": "Bonn"}}}}<|eot_id|>⟧'
        f'<|start_header_id|>ipython<|end_header_id|>\n\n"no"<|eot_id|>{ASSISTANT}⟦No.<|eot_id|>⟧',
    }


SENTENCE = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>")
DEEPSEEK = (
    "<｜User｜>", "<｜Assistant｜>", "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>", "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>", "<｜tool▁output▁begin｜>",
    "<｜tool▁output▁end｜>", "<｜tool▁sep｜>",
)  # fmt: skip
DEEP = {
    "single": "<｜begin▁of▁sentence｜><｜User｜>Hi?<｜Assistant｜>⟦Yo.<｜end▁of▁sentence｜>⟧",
    "many": "<｜begin▁of▁sentence｜><｜User｜>Hi?<｜Assistant｜>⟦Yo.<｜end▁of▁sentence｜>⟧"
    "<｜User｜>B?<｜Assistant｜>⟦C.<｜end▁of▁sentence｜>⟧",
    "system": "<｜begin▁of▁sentence｜>Be.<｜User｜>Hi?<｜Assistant｜>⟦Yo.<｜end▁of▁sentence｜>⟧",
}

FAMILIES = {
    "llama2": Family(
        "own:llama2",
        bos="<s>",
        eos="</s>",
        single="<s>[INST] Hi? [/INST]⟦ Yo. </s>⟧",
        many="<s>[INST] Hi? [/INST]⟦ Yo. </s>⟧<s>[INST] B? [/INST]⟦ C. </s>⟧",
        system="<s>[INST] <<SYS>>\nBe.\n<</SYS>>\n\nHi? [/INST]⟦ Yo. </s>⟧",
        tools=Refused("Conversation roles must alternate"),
    ),
    "llama3": Family(
        "trl:llama3",
        bos=BOS,
        eos="<|eot_id|>",
        control=HEADERS[:2],
        single=f"{BOS}{user('Hi?')}{ASSISTANT}⟦Yo.<|eot_id|>⟧",
        many=f"{BOS}{user('Hi?')}{ASSISTANT}⟦Yo.<|eot_id|>⟧{user('B?')}{ASSISTANT}⟦C.<|eot_id|>⟧",
        system=f"{BOS}<|start_header_id|>system<|end_header_id|>\n\nBe.<|eot_id|>"
        f"{user('Hi?')}{ASSISTANT}⟦Yo.<|eot_id|>⟧",
    ),
    "llama3.1": Family("trl:llama3_1", bos=BOS, eos="<|eot_id|>", control=HEADERS, **llama3("26 Jul 2024")),
    "llama3.2": Family("trl:llama3_2", bos=BOS, eos="<|eot_id|>", control=HEADERS, **llama3("02 Jan 2026")),
    "llava-next": Family(
        "trl:llava_next",
        bos="<s>",
        eos="</s>",
        control=("<image>",),
        single="[INST] Hi? [/INST]⟦ Yo.</s>⟧ ",
        many="[INST] Hi? [/INST]⟦ Yo.</s>⟧ [INST] B? [/INST]⟦ C.</s>⟧ ",
        system="<<SYS>>\nBe.\n<</SYS>>\n\n[INST] Hi? [/INST]⟦ Yo.</s>⟧ ",
        tools=Refused("Only user and assistant roles are supported!"),
    ),
    "mistral-v1": Family(
        "own:mistral-v1",
        bos="<s>",
        eos="</s>",
        single="<s> [INST] Hi? [/INST]⟦ Yo.</s>⟧",
        many="<s> [INST] Hi? [/INST]⟦ Yo.</s>⟧ [INST] B? [/INST]⟦ C.</s>⟧",
        system="<s> [INST] Be.\n\nHi? [/INST]⟦ Yo.</s>⟧",
        tools=Refused("only user and assistant speak here"),
    ),
    # Tools stand before the last question, so that an earlier answer is said without them.
    "mistral-v3": Family(
        "own:mistral-v3",
        bos="<s>",
        eos="</s>",
        control=(
            "[INST]",
            "[/INST]",
            "[AVAILABLE_TOOLS]",
            "[/AVAILABLE_TOOLS]",
            "[TOOL_CALLS]",
            "[TOOL_RESULTS]",
            "[/TOOL_RESULTS]",
        ),
        single="<s>[INST] Hi?[/INST]⟦ Yo.</s>⟧",
        many="<s>[INST] Hi?[/INST]⟦ Yo.</s>⟧[INST] B?[/INST]⟦ C.</s>⟧",
        # The system speaks in the last question.
        system="<s>[INST] Be.\n\nHi?[/INST]⟦ Yo.</s>⟧",
        tools=f"<s>[AVAILABLE_TOOLS] [{TOOL}][/AVAILABLE_TOOLS][INST] Rain?[/INST]"
        '⟦[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Bonn"}, "id": "abcdef123"}]</s>⟧'
        '[TOOL_RESULTS] {"content": "no", "call_id": "abcdef123"}[/TOOL_RESULTS]⟦ No.</s>⟧',
    ),
    "mistral-v7": Family(
        "own:mistral-v7",
        bos="<s>",
        eos="</s>",
        control=(
            "[INST]",
            "[/INST]",
            "[SYSTEM_PROMPT]",
            "[/SYSTEM_PROMPT]",
            "[AVAILABLE_TOOLS]",
            "[/AVAILABLE_TOOLS]",
            "[TOOL_CALLS]",
            "[TOOL_CONTENT]",
            "[TOOL_RESULTS]",
            "[/TOOL_RESULTS]",
        ),
        single="<s>[INST]Hi?[/INST]⟦Yo.</s>⟧",
        many="<s>[INST]Hi?[/INST]⟦Yo.</s>⟧[INST]B?[/INST]⟦C.</s>⟧",
        system="<s>[SYSTEM_PROMPT]Be.[/SYSTEM_PROMPT][INST]Hi?[/INST]⟦Yo.</s>⟧",
        tools=f"<s>[AVAILABLE_TOOLS][{TOOL}][/AVAILABLE_TOOLS][INST]Rain?[/INST]"
        '⟦[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Bonn"}, "id": "abcdef123"}]</s>⟧'
        "[TOOL_RESULTS]abcdef123[TOOL_CONTENT]no[/TOOL_RESULTS]⟦No.</s>⟧",
    ),
    "deepseek-v3": Family(
        "trl:deepseekv3",
        bos=SENTENCE[0],
        eos=SENTENCE[1],
        control=DEEPSEEK,
        **DEEP,
        reasoning=R1_THOUGHTS,
        opens_thought=True,
    ),
    "deepseek-r1-distill": Family(
        "trl:deepseek_r1_distill",
        bos=SENTENCE[0],
        eos=SENTENCE[1],
        control=DEEPSEEK,
        **DEEP,
        reasoning=R1_THOUGHTS,
        opens_thought=True,
    ),
}
