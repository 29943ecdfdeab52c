# SPDX-License-Identifier: Apache-2.0
"""The templates that ship with us."""

from __future__ import annotations

from tests.core.data.tokenize.families.family import Family, Refused

TAKE_TURNS = Refused("user and assistant must take turns")
VICUNA = (
    "<s>A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions. "
)
QWEN = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
QWEN_VL = {
    "single": f"{QWEN}<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n⟦Yo.<|im_end|>⟧\n",
    "many": f"{QWEN}<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n⟦Yo.<|im_end|>⟧\n"
    "<|im_start|>user\nB?<|im_end|>\n<|im_start|>assistant\n⟦C.<|im_end|>⟧\n",
    "system": "<|im_start|>system\nBe.<|im_end|>\n"
    "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n⟦Yo.<|im_end|>⟧\n",
}
SHOUTED = {
    "single": "<s>USER: Hi?\nASSISTANT:⟦ Yo.</s>⟧\n",
    "many": "<s>USER: Hi?\nASSISTANT:⟦ Yo.</s>⟧\nUSER: B?\nASSISTANT:⟦ C.</s>⟧\n",
    "system": "<s>SYSTEM: Be.\nUSER: Hi?\nASSISTANT:⟦ Yo.</s>⟧\n",
}

FAMILIES = {
    "chat_ml": Family(
        "bundled:chat_ml",
        bos="<|endoftext|>",
        single="<|endoftext|><|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n⟦Yo.<|im_end|>⟧\n",
        many="<|endoftext|><|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n⟦Yo.<|im_end|>⟧\n"
        "<|im_start|>user\nB?<|im_end|>\n<|im_start|>assistant\n⟦C.<|im_end|>⟧\n",
        system="<|endoftext|><|im_start|>system\nBe.<|im_end|>\n"
        "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n⟦Yo.<|im_end|>⟧\n",
    ),
    "default": Family("bundled:default", bos="<s>", eos="</s>", **SHOUTED),
    "default_gen": Family("bundled:default_gen", bos="<s>", eos="</s>", **SHOUTED),
    "gemma2-it": Family(
        "bundled:gemma2-it",
        bos="<bos>",
        eos="<eos>",
        control=("<start_of_turn>", "<end_of_turn>"),
        single="<bos><start_of_turn>user\nHi?<end_of_turn>\n<start_of_turn>model\n⟦Yo.<end_of_turn>⟧\n",
        many="<bos><start_of_turn>user\nHi?<end_of_turn>\n<start_of_turn>model\n⟦Yo.<end_of_turn>⟧\n"
        "<start_of_turn>user\nB?<end_of_turn>\n<start_of_turn>model\n⟦C.<end_of_turn>⟧\n",
        system="<bos><start_of_turn>user\nBe.\n\nHi?<end_of_turn>\n<start_of_turn>model\n⟦Yo.<end_of_turn>⟧\n",
        tools=TAKE_TURNS,
    ),
    "gpt2": Family(
        "bundled:gpt2",
        bos="<|endoftext|>",
        eos="<|endoftext|>",
        single="Hi?<|endoftext|>⟦Yo.<|endoftext|>⟧",
        many="Hi?<|endoftext|>⟦Yo.<|endoftext|>⟧B?<|endoftext|>⟦C.<|endoftext|>⟧",
        system="Be.<|endoftext|>Hi?<|endoftext|>⟦Yo.<|endoftext|>⟧",
    ),
    "llama3-instruct": Family(
        "bundled:llama3-instruct",
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        control=("<|start_header_id|>", "<|end_header_id|>"),
        single="<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n⟦Yo.<|eot_id|>⟧",
        many="<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n⟦Yo.<|eot_id|>⟧"
        "<|start_header_id|>user<|end_header_id|>\n\nB?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n⟦C.<|eot_id|>⟧",
        system="<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n⟦Yo.<|eot_id|>⟧",
    ),
    "phi3-instruct": Family(
        "bundled:phi3-instruct",
        bos="<s>",
        eos="<|endoftext|>",
        control=("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
        single="<|user|>\nHi?<|end|>\n<|assistant|>\n⟦Yo.<|end|>⟧\n",
        many="<|user|>\nHi?<|end|>\n<|assistant|>\n⟦Yo.<|end|>⟧\n<|user|>\nB?<|end|>\n<|assistant|>\n⟦C.<|end|>⟧\n",
        system="<|system|>\nBe.<|end|>\n<|user|>\nHi?<|end|>\n<|assistant|>\n⟦Yo.<|end|>⟧\n",
    ),
    "zephyr": Family(
        "bundled:zephyr",
        bos="<s>",
        eos="</s>",
        single="<|user|>\nHi?</s>\n<|assistant|>\n⟦Yo.</s>⟧\n",
        many="<|user|>\nHi?</s>\n<|assistant|>\n⟦Yo.</s>⟧\n<|user|>\nB?</s>\n<|assistant|>\n⟦C.</s>⟧\n",
        system="<|system|>\nBe.</s>\n<|user|>\nHi?</s>\n<|assistant|>\n⟦Yo.</s>⟧\n",
    ),
    "llava": Family(
        "bundled:llava",
        bos="<s>",
        eos="</s>",
        control=("<image>",),
        single=f"{VICUNA}USER: Hi? ASSISTANT:⟦ Yo.</s>⟧",
        many=f"{VICUNA}USER: Hi? ASSISTANT:⟦ Yo.</s>⟧USER: B? ASSISTANT:⟦ C.</s>⟧",
        system="<s>Be. USER: Hi? ASSISTANT:⟦ Yo.</s>⟧",
        tools=Refused("there is no turn of tool here"),
    ),
    # Within a chat its answers have no end, and only at the end of a chat can one be learned.
    "molmo": Family(
        "bundled:molmo",
        eos="<|endoftext|>",
        single="User: Hi? Assistant:⟦ Yo.<|endoftext|>⟧",
        many=(
            "User: Hi? Assistant:⟦ Yo.<|endoftext|>⟧",
            "User: Hi? Assistant: Yo. User: B? Assistant:⟦ C.<|endoftext|>⟧",
        ),
        system=TAKE_TURNS,
        tools=TAKE_TURNS,
    ),
    "qwen2-vl-instruct": Family(
        "bundled:qwen2-vl-instruct", control=("<|vision_start|>", "<|image_pad|>", "<|vision_end|>"), **QWEN_VL
    ),
    "qwen3-vl-instruct": Family(
        "bundled:qwen3-vl-instruct", control=("<|vision_start|>", "<|image_pad|>", "<|vision_end|>"), **QWEN_VL
    ),
    "internvl3": Family(
        "bundled:internvl3",
        control=("<IMG_CONTEXT>",),
        single="<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n⟦Yo.<|im_end|>⟧\n",
        many="<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n⟦Yo.<|im_end|>⟧\n"
        "<|im_start|>user\nB?<|im_end|>\n<|im_start|>assistant\n⟦C.<|im_end|>⟧\n",
        system="<|im_start|>system\nBe.<|im_end|>\n"
        "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n⟦Yo.<|im_end|>⟧\n",
    ),
}
