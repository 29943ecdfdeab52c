# SPDX-License-Identifier: Apache-2.0
"""Real things, made tiny: a byte tokenizer, a two-layer Llama, a few chats."""

from __future__ import annotations

import atexit
import json
import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer() -> Any:
    """Returns a byte-level tokenizer of 260 tokens with the ChatML template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
    vocabulary = {token: i for i, token in enumerate(specials + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|im_start|>", "<|endoftext|>"],
        model_max_length=512,
    )
    fast.chat_template = CHATML
    return fast


def tiny_llama(seed: int = 0, **overrides: Any) -> Any:
    """Returns a two-layer random Llama over the byte tokenizer's 260 tokens."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    settings: dict[str, Any] = {
        "vocab_size": 260,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 3,
    }
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**{**settings, **overrides}))


def save_tiny_model(directory: Path, **overrides: Any) -> Path:
    """Writes a tiny model with its tokenizer and returns the directory."""
    shutil.copytree(_saved(tuple(sorted(overrides.items()))), directory, dirs_exist_ok=True)
    return directory


@cache
def _saved(overrides: tuple[tuple[str, Any], ...]) -> Path:
    """Returns a directory that lives as long as this process, with a model and its tokenizer."""
    directory = Path(mkdtemp(prefix="oumi-test-model-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    tiny_llama(**dict(overrides)).save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    return directory


def write_chats(path: Path, num_rows: int = 24) -> Path:
    """Writes short chats of uneven length, one or two turns each, and returns the path."""
    rows = []
    for i in range(num_rows):
        messages = [
            {"role": "user", "content": f"What is {i} plus {i * 7 % 5}?" + " Please." * (i % 4)},
            {"role": "assistant", "content": f"It is {i + i * 7 % 5}." + " Yes!" * (i % 3)},
        ]
        if i % 3 == 0:
            messages += [
                {"role": "user", "content": "Sure?"},
                {"role": "assistant", "content": "Quite sure."},
            ]
        rows.append(json.dumps({"messages": messages}))
    path.write_text("\n".join(rows) + "\n")
    return path


def write_pairs(path: Path, num_rows: int = 24) -> Path:
    """Writes preferences of uneven length, of which the right sum is chosen, and returns the path."""
    rows = []
    for i in range(num_rows):
        prompt = [{"role": "user", "content": f"What is {i} plus {i * 7 % 5}?" + " Please." * (i % 4)}]
        answers = {"chosen": f"It is {i + i * 7 % 5}." + " Yes!" * (i % 3), "rejected": f"No idea. {i}" + "?" * (i % 5)}
        turns = {key: [*prompt, {"role": "assistant", "content": text}] for key, text in answers.items()}
        rows.append(json.dumps(turns))
    path.write_text("\n".join(rows) + "\n")
    return path


def write_judged(path: Path, num_rows: int = 24) -> Path:
    """Writes answers of uneven length, of which right sums are judged good, and returns the path."""
    pairs = [json.loads(line) for line in write_pairs(path, num_rows).read_text().splitlines()]
    rows = []
    for i, pair in enumerate(pairs):
        *prompt, answer = pair["chosen" if i % 3 else "rejected"]
        rows.append(json.dumps({"prompt": prompt, "completion": [answer], "label": bool(i % 3)}))
    path.write_text("\n".join(rows) + "\n")
    return path
