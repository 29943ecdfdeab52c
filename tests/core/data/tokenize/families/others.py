# SPDX-License-Identifier: Apache-2.0
"""Gemma, gpt-oss, GLM, Phi, Granite, OLMo, Command and more."""

from __future__ import annotations

from tests.core.data.tokenize.families.family import NO_TURNS_OF_TOOLS, TOOL, Family, Refused

GEMMA = {
    "single": "<bos><start_of_turn>user\nHi?<end_of_turn>\n<start_of_turn>model\n⟦Yo.<end_of_turn>⟧\n",
    "many": "<bos><start_of_turn>user\nHi?<end_of_turn>\n<start_of_turn>model\n⟦Yo.<end_of_turn>⟧\n"
    "<start_of_turn>user\nB?<end_of_turn>\n<start_of_turn>model\n⟦C.<end_of_turn>⟧\n",
}
CHATGPT = (
    "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: 2024-06\n"
    "Current date: 2026-01-02\n\nReasoning: medium\n\n"
    "# Valid channels: analysis, commentary, final. Channel must be included for every message."
)
HI = f"{CHATGPT}<|end|><|start|>user<|message|>Hi?<|end|><|start|>assistant"
GLM_TOOLS = (
    "<|system|>\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    f"You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n{TOOL}\n</tools>\n\n"
    "For each function call, output the function name and arguments within the following XML format:\n"
    "<tool_call>{function-name}\n<arg_key>{arg-key-1}</arg_key>\n<arg_value>{arg-value-1}</arg_value>\n"
    "<arg_key>{arg-key-2}</arg_key>\n<arg_value>{arg-value-2}</arg_value>\n...\n</tool_call>"
)
PHI3 = {
    "single": "<|user|>\nHi?<|end|>\n<|assistant|>\n⟦Yo.<|end|>⟧\n<|endoftext|>",
    "many": "<|user|>\nHi?<|end|>\n<|assistant|>\n⟦Yo.<|end|>⟧\n<|user|>\nB?<|end|>\n<|assistant|>\n⟦C.<|end|>⟧\n"
    "<|endoftext|>",
    "system": "<|system|>\nBe.<|end|>\n<|user|>\nHi?<|end|>\n<|assistant|>\n⟦Yo.<|end|>⟧\n<|endoftext|>",
}
COMMAND = "<BOS_TOKEN><|START_OF_TURN_TOKEN|><|USER_TOKEN|>Hi?<|END_OF_TURN_TOKEN|>"
CHATBOT = "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"
OLMO_FUNCTIONS = (
    "<|im_start|>system\nYou are a helpful function-calling AI assistant. You do not currently have access to any "
    "functions. <functions></functions><|im_end|>\n"
)
VLM = {
    "single": "User: Hi?<end_of_utterance>\nAssistant:⟦ Yo.<end_of_utterance>⟧\n",
    "many": "User: Hi?<end_of_utterance>\nAssistant:⟦ Yo.<end_of_utterance>⟧\n"
    "User: B?<end_of_utterance>\nAssistant:⟦ C.<end_of_utterance>⟧\n",
    "system": "System: Be.<end_of_utterance>\nUser: Hi?<end_of_utterance>\nAssistant:⟦ Yo.<end_of_utterance>⟧\n",
}

FAMILIES = {
    "gemma": Family(
        "trl:gemma",
        bos="<bos>",
        eos="<eos>",
        control=("<start_of_turn>", "<end_of_turn>"),
        **GEMMA,
        system=Refused("System role not supported"),
        tools=NO_TURNS_OF_TOOLS,
    ),
    "gemma3": Family(
        "trl:gemma3",
        bos="<bos>",
        eos="<eos>",
        control=("<start_of_turn>", "<end_of_turn>", "<start_of_image>"),
        **GEMMA,
        system="<bos><start_of_turn>user\nBe.\n\nHi?<end_of_turn>\n<start_of_turn>model\n⟦Yo.<end_of_turn>⟧\n",
        tools=NO_TURNS_OF_TOOLS,
    ),
    # A result of a tool stands within the turn of the model, which asks for it with <|tool_response>.
    "gemma4": Family(
        "trl:gemma4_v5",
        bos="<bos>",
        eos="<eos>",
        control=(
            "<|turn>",
            "<turn|>",
            "<|tool>",
            "<tool|>",
            "<|tool_call>",
            "<tool_call|>",
            "<|tool_response>",
            "<tool_response|>",
            "<|channel>",
            "<channel|>",
            '<|"|>',
            "<|think|>",
        ),
        single="<bos><|turn>user\nHi?<turn|>\n<|turn>model\n⟦Yo.<turn|>⟧\n",
        many="<bos><|turn>user\nHi?<turn|>\n<|turn>model\n⟦Yo.<turn|>⟧\n"
        "<|turn>user\nB?<turn|>\n<|turn>model\n⟦C.<turn|>⟧\n",
        system="<bos><|turn>system\nBe.<turn|>\n<|turn>user\nHi?<turn|>\n<|turn>model\n⟦Yo.<turn|>⟧\n",
        tools='<bos><|turn>system\n<|tool>declaration:weather{description:<|"|>Tells the weather.<|"|>,parameters:{'
        'properties:{city:{type:<|"|>STRING<|"|>}},required:[<|"|>city<|"|>],type:<|"|>OBJECT<|"|>}}<tool|><turn|>\n'
        '<|turn>user\nRain?<turn|>\n<|turn>model\n⟦<|tool_call>call:weather{city:<|"|>Bonn<|"|>}<tool_call|>'
        '<|tool_response>⟧response:weather{value:<|"|>no<|"|>}<tool_response|>⟦No.<turn|>⟧\n',
        reasoning=(
            "<bos><|turn>user\nOne?<turn|>\n<|turn>model\n⟦<|channel>thought\nhm\n<channel|>1.<turn|>⟧\n",
            "<bos><|turn>user\nOne?<turn|>\n<|turn>model\n1.<turn|>\n"
            "<|turn>user\nTwo?<turn|>\n<|turn>model\n⟦<|channel>thought\nso\n<channel|>2.<turn|>⟧\n",
        ),
    ),
    # The last message of all ends with <|return|>; the same message is history with <|end|>.
    "gpt-oss": Family(
        "trl:gptoss",
        bos="<|startoftext|>",
        eos="<|return|>",
        control=("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|call|>"),
        single=f"{HI}⟦<|channel|>final<|message|>Yo.<|return|>⟧",
        many=(
            f"{HI}⟦<|channel|>final<|message|>Yo.<|return|>⟧",
            f"{HI}<|channel|>final<|message|>Yo.<|end|><|start|>user<|message|>B?<|end|><|start|>assistant"
            "⟦<|channel|>final<|message|>C.<|return|>⟧",
        ),
        system=f"{CHATGPT}<|end|><|start|>developer<|message|># Instructions\n\nBe.\n\n<|end|>"
        "<|start|>user<|message|>Hi?<|end|><|start|>assistant⟦<|channel|>final<|message|>Yo.<|return|>⟧",
        tools=f"{CHATGPT}\nCalls to these tools must go to the commentary channel: 'functions'.<|end|>"
        "<|start|>developer<|message|># Tools\n\n## functions\n\nnamespace functions {\n\n// Tells the weather.\n"
        "type weather = (_: {\ncity: string,\n}) => any;\n\n} // namespace functions<|end|>"
        "<|start|>user<|message|>Rain?<|end|><|start|>assistant"
        '⟦ to=functions.weather<|channel|>commentary json<|message|>{"city": "Bonn"}<|call|>⟧'
        '<|start|>functions.weather to=assistant<|channel|>commentary<|message|>"no"<|end|><|start|>assistant'
        "⟦<|channel|>final<|message|>No.<|return|>⟧",
        reasoning=(
            f"{CHATGPT}<|end|><|start|>user<|message|>One?<|end|><|start|>assistant"
            "⟦<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>1.<|return|>⟧",
            f"{CHATGPT}<|end|><|start|>user<|message|>One?<|end|><|start|>assistant<|channel|>final<|message|>1.<|end|>"
            "<|start|>user<|message|>Two?<|end|><|start|>assistant"
            "⟦<|channel|>analysis<|message|>so<|end|><|start|>assistant<|channel|>final<|message|>2.<|return|>⟧",
        ),
    ),
    # A model ends its answer by giving the word to the user, or to the tool.
    "glm4.5": Family(
        "trl:glm4moe",
        eos="<|endoftext|>",
        control=("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
        words=("<think>", "</think>", "<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>"),
        single="[gMASK]<sop><|user|>\nHi?<|assistant|>⟦\n<think></think>\nYo.<|user|>⟧",
        many="[gMASK]<sop><|user|>\nHi?<|assistant|>⟦\n<think></think>\nYo.<|user|>⟧\nB?<|assistant|>"
        "⟦\n<think></think>\nC.<|user|>⟧",
        system="[gMASK]<sop><|system|>\nBe.<|user|>\nHi?<|assistant|>⟦\n<think></think>\nYo.<|user|>⟧",
        tools=f"[gMASK]<sop>{GLM_TOOLS}<|user|>\nRain?<|assistant|>⟦\n<think></think>\n<tool_call>weather\n"
        "<arg_key>city</arg_key>\n<arg_value>Bonn</arg_value>\n</tool_call><|observation|>⟧\n"
        "<tool_response>\nno\n</tool_response><|assistant|>⟦\n<think></think>\nNo.<|user|>⟧",
        reasoning=(
            "[gMASK]<sop><|user|>\nOne?<|assistant|>⟦\n<think>hm</think>\n1.<|user|>⟧",
            "[gMASK]<sop><|user|>\nOne?<|assistant|>\n<think></think>\n1.<|user|>\nTwo?<|assistant|>"
            "⟦\n<think>so</think>\n2.<|user|>⟧",
        ),
    ),
    # The end of the whole text stands behind the end of the last answer.
    "phi3": Family(
        "trl:phi3",
        bos="<s>",
        eos="<|endoftext|>",
        control=("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
        **PHI3,
    ),
    "phi3.5": Family(
        "trl:phi3_5",
        bos="<s>",
        eos="<|endoftext|>",
        control=("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
        **PHI3,
    ),
    "phi4": Family(
        "own:phi4",
        eos="<|im_end|>",
        control=("<|im_sep|>",),
        single="<|im_start|>user<|im_sep|>Hi?<|im_end|><|im_start|>assistant<|im_sep|>⟦Yo.<|im_end|>⟧",
        many="<|im_start|>user<|im_sep|>Hi?<|im_end|><|im_start|>assistant<|im_sep|>⟦Yo.<|im_end|>⟧"
        "<|im_start|>user<|im_sep|>B?<|im_end|><|im_start|>assistant<|im_sep|>⟦C.<|im_end|>⟧",
        system="<|im_start|>system<|im_sep|>Be.<|im_end|>"
        "<|im_start|>user<|im_sep|>Hi?<|im_end|><|im_start|>assistant<|im_sep|>⟦Yo.<|im_end|>⟧",
    ),
    "phi4-mini": Family(
        "own:phi4-mini",
        eos="<|endoftext|>",
        control=("<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|tool|>", "<|/tool|>", "<|tool_response|>"),
        single="<|user|>Hi?<|end|><|assistant|>⟦Yo.<|end|>⟧<|endoftext|>",
        many="<|user|>Hi?<|end|><|assistant|>⟦Yo.<|end|>⟧<|user|>B?<|end|><|assistant|>⟦C.<|end|>⟧<|endoftext|>",
        system="<|system|>Be.<|end|><|user|>Hi?<|end|><|assistant|>⟦Yo.<|end|>⟧<|endoftext|>",
    ),
    "olmo2": Family(
        "own:olmo2",
        bos="<|endoftext|>",
        eos="<|endoftext|>",
        single="<|endoftext|><|user|>\nHi?\n<|assistant|>\n⟦Yo.<|endoftext|>⟧",
        many="<|endoftext|><|user|>\nHi?\n<|assistant|>\n⟦Yo.<|endoftext|>⟧\n"
        "<|user|>\nB?\n<|assistant|>\n⟦C.<|endoftext|>⟧",
        system="<|endoftext|><|system|>\nBe.\n<|user|>\nHi?\n<|assistant|>\n⟦Yo.<|endoftext|>⟧",
    ),
    # Within a chat answers end with <|im_end|>, the last one with the end of the text.
    "olmo3": Family(
        "own:olmo3",
        bos="<|endoftext|>",
        eos="<|endoftext|>",
        control=("<|im_end|>",),
        single=f"{OLMO_FUNCTIONS}<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n⟦Yo.<|endoftext|>⟧",
        many=(
            f"{OLMO_FUNCTIONS}<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n⟦Yo.<|endoftext|>⟧",
            f"{OLMO_FUNCTIONS}<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\nYo.<|im_end|>\n"
            "<|im_start|>user\nB?<|im_end|>\n<|im_start|>assistant\n⟦C.<|endoftext|>⟧",
        ),
        system="<|im_start|>system\nBe.<|im_end|>\n<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n"
        "⟦Yo.<|endoftext|>⟧",
    ),
    "granite3": Family(
        "own:granite3",
        eos="<|end_of_text|>",
        control=("<|start_of_role|>", "<|end_of_role|>", "<|tool_call|>"),
        single="<|start_of_role|>user<|end_of_role|>Hi?<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>⟦Yo.<|end_of_text|>⟧\n",
        many="<|start_of_role|>user<|end_of_role|>Hi?<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>⟦Yo.<|end_of_text|>⟧\n"
        "<|start_of_role|>user<|end_of_role|>B?<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>⟦C.<|end_of_text|>⟧\n",
        system="<|start_of_role|>system<|end_of_role|>Be.<|end_of_text|>\n"
        "<|start_of_role|>user<|end_of_role|>Hi?<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>⟦Yo.<|end_of_text|>⟧\n",
        tools=f"<|start_of_role|>tools<|end_of_role|>[{TOOL}]<|end_of_text|>\n"
        "<|start_of_role|>user<|end_of_role|>Rain?<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>"
        '⟦<|tool_call|>[{"name": "weather", "arguments": {"city": "Bonn"}}]<|end_of_text|>⟧\n'
        "<|start_of_role|>tool<|end_of_role|>no<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>⟦No.<|end_of_text|>⟧\n",
    ),
    "command": Family(
        "trl:cohere",
        bos="<BOS_TOKEN>",
        eos="<|END_OF_TURN_TOKEN|>",
        control=("<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>"),
        single=f"{COMMAND}{CHATBOT}⟦Yo.<|END_OF_TURN_TOKEN|>⟧",
        many=f"{COMMAND}{CHATBOT}⟦Yo.<|END_OF_TURN_TOKEN|>⟧"
        f"<|START_OF_TURN_TOKEN|><|USER_TOKEN|>B?<|END_OF_TURN_TOKEN|>{CHATBOT}⟦C.<|END_OF_TURN_TOKEN|>⟧",
        system="<BOS_TOKEN><|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>Be.<|END_OF_TURN_TOKEN|>"
        f"<|START_OF_TURN_TOKEN|><|USER_TOKEN|>Hi?<|END_OF_TURN_TOKEN|>{CHATBOT}⟦Yo.<|END_OF_TURN_TOKEN|>⟧",
        tools=NO_TURNS_OF_TOOLS,
    ),
    # Reads every message as a list of parts.
    "smolvlm": Family(
        "trl:smolvlm",
        bos="<|im_start|>",
        control=("<image>", "<end_of_utterance>"),
        **{case: f"<|im_start|>{text}" for case, text in VLM.items()},
    ),
    "idefics3": Family(
        "trl:idefics3",
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        control=("<image>", "<end_of_utterance>"),
        **{case: f"<|begin_of_text|>{text}" for case, text in VLM.items()},
    ),
}
