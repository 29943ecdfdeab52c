# SPDX-License-Identifier: Apache-2.0
"""Qwen 2 to 3.5, and the models that write ChatML as Qwen does."""

from __future__ import annotations

from tests.core.data.tokenize.families.family import NO_THOUGHTS, TOOL, Family, Refused

TURN = "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n"
SECOND = "<|im_start|>user\nB?<|im_end|>\n<|im_start|>assistant\n"
BE = "<|im_start|>system\nBe.<|im_end|>\n"
HELPFUL = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
ALIBABA = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
TOOLS = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    f"You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n{TOOL}\n</tools>\n\n"
    "For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML "
    'tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n'
)
RAIN = "<|im_start|>user\nRain?<|im_end|>\n<|im_start|>assistant\n"
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bonn"}}\n</tool_call><|im_end|>'
RESULT = "<|im_start|>user\n<tool_response>\nno\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
FIRST_QUESTION = "<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\n"
SECOND_QUESTION = "<|im_start|>user\nTwo?<|im_end|>\n<|im_start|>assistant\n"
XML_TOOLS = (
    "\n\nIf you choose to call a function ONLY reply in the following format with NO suffix:\n\n"
    "<tool_call>\n<function=example_function_name>\n<parameter=example_parameter_1>\nvalue_1\n</parameter>\n"
    "<parameter=example_parameter_2>\nThis is the value for the second parameter\nthat can span\nmultiple lines\n"
    "</parameter>\n</function>\n</tool_call>\n\n<IMPORTANT>\nReminder:\n"
    "- Function calls MUST follow the specified format: an inner <function=...></function> block must be nested within "
    "<tool_call></tool_call> XML tags\n- Required parameters MUST be specified\n"
    "- You may provide optional reasoning for your function call in natural language BEFORE the function call, but NOT "
    "after\n- If there is no function call available, answer the question like normal with your current knowledge and "
    "do not tell the user about function calls\n</IMPORTANT>"
)
WORDS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
IMAGE_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
PLAIN = {
    "single": f"{TURN}⟦Yo.<|im_end|>⟧\n",
    "many": f"{TURN}⟦Yo.<|im_end|>⟧\n{SECOND}⟦C.<|im_end|>⟧\n",
    "system": f"{BE}{TURN}⟦Yo.<|im_end|>⟧\n",
}
CALLS = f"<|im_start|>system\n{TOOLS}{RAIN}⟦{CALL}⟧\n{RESULT}⟦No.<|im_end|>⟧\n"

FAMILIES = {
    "qwen2": Family(
        "own:qwen2",
        single=f"{HELPFUL}{TURN}⟦Yo.<|im_end|>⟧\n",
        many=f"{HELPFUL}{TURN}⟦Yo.<|im_end|>⟧\n{SECOND}⟦C.<|im_end|>⟧\n",
        system=f"{BE}{TURN}⟦Yo.<|im_end|>⟧\n",
    ),
    "qwen2.5": Family(
        "trl:qwen2_5",
        words=WORDS[2:],
        single=f"<|im_start|>system\n{ALIBABA}<|im_end|>\n{TURN}⟦Yo.<|im_end|>⟧\n",
        many=f"<|im_start|>system\n{ALIBABA}<|im_end|>\n{TURN}⟦Yo.<|im_end|>⟧\n{SECOND}⟦C.<|im_end|>⟧\n",
        system=f"{BE}{TURN}⟦Yo.<|im_end|>⟧\n",
        tools=f"<|im_start|>system\n{ALIBABA}\n\n{TOOLS}{RAIN}⟦{CALL}⟧\n{RESULT}⟦No.<|im_end|>⟧\n",
    ),
    "qwen2.5-vl": Family(
        "trl:qwen2_5_vl",
        control=IMAGE_TOKENS,
        single=f"{HELPFUL}{TURN}⟦Yo.<|im_end|>⟧\n",
        many=f"{HELPFUL}{TURN}⟦Yo.<|im_end|>⟧\n{SECOND}⟦C.<|im_end|>⟧\n",
        system=f"{BE}{TURN}⟦Yo.<|im_end|>⟧\n",
    ),
    # Thoughts of the last question only, and a thought, if an empty one, before its last answer.
    "qwen3": Family(
        "trl:qwen3",
        words=WORDS,
        single=f"{TURN}⟦<think>\n\n</think>\n\nYo.<|im_end|>⟧\n",
        many=(
            f"{TURN}⟦<think>\n\n</think>\n\nYo.<|im_end|>⟧\n",
            f"{TURN}Yo.<|im_end|>\n{SECOND}⟦<think>\n\n</think>\n\nC.<|im_end|>⟧\n",
        ),
        system=f"{BE}{TURN}⟦<think>\n\n</think>\n\nYo.<|im_end|>⟧\n",
        tools=(
            f"<|im_start|>system\n{TOOLS}{RAIN}⟦<think>\n\n</think>\n\n{CALL}⟧\n",
            f"<|im_start|>system\n{TOOLS}{RAIN}{CALL}\n{RESULT}⟦<think>\n\n</think>\n\nNo.<|im_end|>⟧\n",
        ),
        reasoning=(
            f"{FIRST_QUESTION}⟦<think>\nhm\n</think>\n\n1.<|im_end|>⟧\n",
            f"{FIRST_QUESTION}1.<|im_end|>\n{SECOND_QUESTION}⟦<think>\nso\n</think>\n\n2.<|im_end|>⟧\n",
        ),
    ),
    "qwen3-2507": Family("trl:qwen3_instruct_2507", words=WORDS, **PLAIN, tools=CALLS, reasoning=NO_THOUGHTS),
    "qwen3-vl": Family("trl:qwen3_vl", control=IMAGE_TOKENS, words=WORDS, **PLAIN, tools=CALLS),
    # Opens the thought in the prompt of inference.
    "qwen3.5": Family(
        "trl:qwen3_5_think",
        control=IMAGE_TOKENS,
        words=WORDS,
        single=f"{TURN}<think>\n⟦\n</think>\n\nYo.<|im_end|>⟧\n",
        many=(
            f"{TURN}<think>\n⟦\n</think>\n\nYo.<|im_end|>⟧\n",
            f"{TURN}Yo.<|im_end|>\n{SECOND}<think>\n⟦\n</think>\n\nC.<|im_end|>⟧\n",
        ),
        system=f"{BE}{TURN}<think>\n⟦\n</think>\n\nYo.<|im_end|>⟧\n",
        tools="<|im_start|>system\n# Tools\n\nYou have access to the following functions:\n\n"
        f"<tools>\n{TOOL}\n</tools>{XML_TOOLS}<|im_end|>\n{RAIN}<think>\n"
        "⟦\n</think>\n\n<tool_call>\n<function=weather>\n<parameter=city>\nBonn\n</parameter>\n</function>\n</tool_call>"
        f"<|im_end|>⟧\n{RESULT}<think>\n⟦\n</think>\n\nNo.<|im_end|>⟧\n",
        reasoning=(
            f"{FIRST_QUESTION}<think>\n⟦hm\n</think>\n\n1.<|im_end|>⟧\n",
            f"{FIRST_QUESTION}1.<|im_end|>\n{SECOND_QUESTION}<think>\n⟦so\n</think>\n\n2.<|im_end|>⟧\n",
        ),
    ),
    "nemotron3": Family(
        "trl:nemotron_3_nano",
        words=WORDS,
        opens_thought=True,
        single=f"<|im_start|>system\n<|im_end|>\n{TURN}<think>⟦</think>Yo.<|im_end|>⟧\n",
        many=f"<|im_start|>system\n<|im_end|>\n{TURN}<think>⟦</think>Yo.<|im_end|>⟧\n"
        f"{SECOND}<think>⟦</think>C.<|im_end|>⟧\n",
        system=f"{BE}{TURN}<think>⟦</think>Yo.<|im_end|>⟧\n",
        tools="<|im_start|>system\n# Tools\n\nYou have access to the following functions:\n\n<tools>\n<function>\n"
        "<name>weather</name>\n<description>Tells the weather.</description>\n<parameters>\n<parameter>\n"
        '<name>city</name>\n<type>string</type>\n</parameter>\n<required>["city"]</required>\n</parameters>\n'
        f"</function>\n</tools>{XML_TOOLS}<|im_end|>\n{RAIN}<think>"
        "⟦</think>\n<tool_call>\n<function=weather>\n<parameter=city>\nBonn\n</parameter>\n</function>\n</tool_call>\n"
        "<|im_end|>⟧\n<|im_start|>user\n<tool_response>\nno\n</tool_response>\n<|im_end|>\n<|im_start|>assistant\n"
        "<think>⟦</think>No.<|im_end|>⟧\n",
        reasoning=(
            f"<|im_start|>system\n<|im_end|>\n{FIRST_QUESTION}<think>\n⟦hm\n</think>\n1.<|im_end|>⟧\n",
            f"<|im_start|>system\n<|im_end|>\n{FIRST_QUESTION}<think></think>\n1.<|im_end|>\n"
            f"{SECOND_QUESTION}<think>\n⟦so\n</think>\n2.<|im_end|>⟧\n",
        ),
    ),
    # Writes tools and their results, but no calls.
    "lfm2": Family(
        "trl:lfm2",
        bos="<|startoftext|>",
        control=("<|tool_list_start|>", "<|tool_list_end|>", "<|tool_response_start|>", "<|tool_response_end|>"),
        single=f"<|startoftext|>{TURN}⟦Yo.<|im_end|>⟧\n",
        many=f"<|startoftext|>{TURN}⟦Yo.<|im_end|>⟧\n{SECOND}⟦C.<|im_end|>⟧\n",
        system=f"<|startoftext|>{BE}{TURN}⟦Yo.<|im_end|>⟧\n",
        tools=Refused("turn 1: the chat template does not write its tool call"),
    ),
    "lfm2.5": Family(
        "trl:lfm2_2_5",
        bos="<|startoftext|>",
        control=("<|tool_call_start|>", "<|tool_call_end|>"),
        single=f"<|startoftext|>{TURN}⟦Yo.<|im_end|>⟧\n",
        many=f"<|startoftext|>{TURN}⟦Yo.<|im_end|>⟧\n{SECOND}⟦C.<|im_end|>⟧\n",
        system=f"<|startoftext|>{BE}{TURN}⟦Yo.<|im_end|>⟧\n",
        tools=f"<|startoftext|><|im_start|>system\nList of tools: [{TOOL}]<|im_end|>\n{RAIN}"
        "⟦<|tool_call_start|>[weather(city='Bonn')]<|tool_call_end|><|im_end|>⟧\n"
        "<|im_start|>tool\nno<|im_end|>\n<|im_start|>assistant\n⟦No.<|im_end|>⟧\n",
        reasoning=(
            f"<|startoftext|>{FIRST_QUESTION}⟦<think>hm</think>1.<|im_end|>⟧\n",
            f"<|startoftext|>{FIRST_QUESTION}1.<|im_end|>\n{SECOND_QUESTION}⟦<think>so</think>2.<|im_end|>⟧\n",
        ),
    ),
    "smollm2": Family(
        "own:smollm2",
        bos="<|im_start|>",
        single="<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        f"{TURN}⟦Yo.<|im_end|>⟧\n",
        many="<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        f"{TURN}⟦Yo.<|im_end|>⟧\n{SECOND}⟦C.<|im_end|>⟧\n",
        system=f"{BE}{TURN}⟦Yo.<|im_end|>⟧\n",
    ),
}
