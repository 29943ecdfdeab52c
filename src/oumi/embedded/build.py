# SPDX-License-Identifier: Apache-2.0
"""How the files of `tiny` were made: `python -m oumi.embedded.build`. A test holds them in step.

The model is a Llama of 0.2 million weights over single bytes, so that two cores teach it something within a
minute. It ships as config and tokenizer; its weights are drawn at random where it is used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

TINY = Path(__file__).parent / "tiny"

END, PAD, ROLES = "<|end|>", "<|pad|>", ("system", "user", "assistant")

MAX_LENGTH = 128
"""Three turns of the quickstart's data set: a chat forgets what lies further back than training ever saw."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('a role is system, user or assistant') }}"
    "{% endif %}"
    "<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def build_tokenizer() -> Any:
    """Returns a tokenizer of 261 tokens: every byte, three roles, the end of a turn, and padding."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    specials = [END, PAD, *(f"<|{role}|>" for role in ROLES)]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(specials + alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=specials[2:],
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_config() -> Any:
    """Returns a Llama of two layers and 96 dimensions.

    `initializer_range` is wider than usual: at this width the usual 0.02 starts too flat, and learning later.
    """
    from transformers import LlamaConfig

    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=261,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=MAX_LENGTH,
        initializer_range=0.05,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=1,
        dtype="float32",
    )


def build_tiny(directory: Path = TINY) -> Path:
    """Writes config and tokenizer into `directory` and returns it."""
    build_config().save_pretrained(directory)
    build_tokenizer().save_pretrained(directory)
    return directory


if __name__ == "__main__":
    build_tiny()
