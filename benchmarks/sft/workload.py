# SPDX-License-Identifier: Apache-2.0
"""The workload: chats of uneven length, a tokenizer of words, and a Llama with random weights; all from a seed.

A word is a token wherever a text is cut before it is tokenized, so every peer makes the same tokens.
"""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from oumi.core.data.pipeline.mixture import permute

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATML_OF_PAIRS = CHATML.replace("<|im_end|>\n", "<|im_end|>{{ '\\n' if message['role'] == 'user' else '' }}")
"""Without a line break after an answer, which TRL trains and Oumi does not."""
MAX_LENGTH = 512
MEAN_LENGTH = 119
_SPREAD = 0.7
"""Standard deviation of the logarithm of the lengths."""
_SHORTEST = 18
_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>", "<unk>")
_NAMES = ("\n", "user", "assistant", "system")
_TOKENS_AROUND = 5
"""Of a turn: its start, its role, two line breaks and its end."""
_SEED = 20
_FORMAT = 1
"""Version of the files; after a change they are written again."""


@dataclass(frozen=True)
class Shape:
    """The shape of a Llama whose head shares the embedding's weights."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int = 32_000

    def config(self, **settings: Any) -> Any:
        """Returns the config of a Llama of this shape."""
        from transformers import LlamaConfig

        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            intermediate_size=self.intermediate,
            max_position_embeddings=2048,
            **settings,
        )


SHAPES = {
    "14m": Shape(256, 8, 8, 4, 688),
    "31m": Shape(384, 12, 6, 2, 1024),
    "135m": Shape(576, 30, 9, 3, 1536, vocabulary=49_152),
}


@dataclass(frozen=True)
class Workload:
    """The files of one shape."""

    folder: Path
    num_tokens: tuple[int, ...]
    """Of each row, in the order in which they are trained."""
    are_pairs: bool = False
    """Rows are two chats with the same question, one of them preferred."""

    @property
    def model(self) -> Path:
        """Returns the folder of the model and its tokenizer."""
        return self.folder / "model"

    @property
    def rows(self) -> Path:
        """Returns the file of the rows, in the order in which they are trained."""
        return self.folder / "rows.jsonl"


def make_workload(folder: Path, shape: Shape, num_rows: int, are_pairs: bool = False) -> Workload:
    """Writes model, tokenizer and rows unless they exist, and returns them."""
    lengths = row_lengths(num_rows * (1 + are_pairs), random.Random(_SEED))
    # A chat of a pair ends without a line break.
    num_tokens = [sum(lengths[i::num_rows]) - 2 * are_pairs for i in range(num_rows)]
    work = Workload(folder, tuple(num_tokens), are_pairs)
    stamp = json.dumps([_FORMAT, repr(shape), num_rows, are_pairs])
    done = folder / "done"
    if done.exists() and done.read_text() == stamp:
        return work
    shutil.rmtree(folder, ignore_errors=True)  # left by a process that was killed, or of an older format
    folder.mkdir(parents=True)
    words = vocabulary_words(shape.vocabulary - len(_SPECIALS) - len(_NAMES))
    rows = make_rows(lengths, words)
    write_rows(work.rows, pairs_of(rows[:num_rows], rows[num_rows:]) if are_pairs else rows)
    _write_tokenizer(work.model, [*_SPECIALS, *_NAMES, *words], CHATML_OF_PAIRS if are_pairs else CHATML)
    _write_model(work.model, shape)
    done.write_text(stamp)  # last: it says that all files are complete
    return work


def row_lengths(num_rows: int, generator: random.Random) -> list[int]:
    """Returns how many tokens each chat has: log-normal, at most MAX_LENGTH."""
    # The mean of a log-normal distribution is exp(mu + sigma^2 / 2).
    middle = math.log(MEAN_LENGTH) - _SPREAD**2 / 2
    lengths = (round(generator.lognormvariate(middle, _SPREAD)) for _ in range(num_rows))
    return [min(MAX_LENGTH, max(_SHORTEST, length)) for length in lengths]


def vocabulary_words(count: int) -> list[str]:
    """Returns `count` different words of three syllables."""
    syllables = [consonant + vowel for consonant in "bdfghklmnprstvz" for vowel in "aeiou"]
    size = len(syllables)
    chosen = random.Random(_SEED).sample(range(size**3), count)
    return [syllables[i // size**2] + syllables[i // size % size] + syllables[i % size] for i in chosen]


def make_rows(lengths: Sequence[int], words: Sequence[str]) -> list[dict[str, list[dict[str, str]]]]:
    """Returns a chat of a question and an answer for each length; few words are frequent, most are rare."""
    generator = random.Random(_SEED + 1)
    weights = list(accumulate(1 / (rank + 10) for rank in range(len(words))))
    rows = []
    for length in lengths:
        num_words = length - 2 * _TOKENS_AROUND
        num_question_words = max(1, min(num_words - 1, round(num_words * generator.uniform(0.15, 0.45))))
        drawn = generator.choices(words, cum_weights=weights, k=num_words)
        parts = {"user": drawn[:num_question_words], "assistant": drawn[num_question_words:]}
        rows.append({"messages": [{"role": role, "content": " ".join(part)} for role, part in parts.items()]})
    return rows


def pairs_of(
    chosen: Sequence[dict[str, list[dict[str, str]]]], rejected: Sequence[dict[str, list[dict[str, str]]]]
) -> list[dict[str, list[dict[str, str]]]]:
    """Returns pairs of chats that both begin with the shorter question; the rest of the longer one goes to its answer.

    So a pair has as many tokens as its chats, less their last line breaks.
    """
    rows = []
    for pair in zip(chosen, rejected, strict=True):
        words = [[turn["content"].split() for turn in row["messages"]] for row in pair]
        question = min((chat[0] for chat in words), key=len)
        chats = []
        for of_user, of_assistant in words:
            answer = of_user[len(question) :] + of_assistant
            parts = {"user": question, "assistant": answer}
            chats.append([{"role": role, "content": " ".join(part)} for role, part in parts.items()])
        rows.append(dict(zip(("chosen", "rejected"), chats, strict=True)))
    return rows


def write_rows(path: Path, rows: Sequence[object]) -> Path:
    """Writes rows as JSON lines, and returns the path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def place_rows(rows: Path, path: Path, data_seed: int) -> Path:
    """Writes the rows so that a run of this repository, which shuffles, trains them in the order of `rows`."""
    lines = rows.read_text().splitlines(keepends=True)
    places = permute(np.arange(len(lines)), len(lines), data_seed, 0).tolist()
    path.write_text("".join(placed(lines, places)))
    return path


def placed(rows: Sequence[str], places: Sequence[int]) -> list[str]:
    """Returns the rows rearranged so that reading index `places[0]`, `places[1]` and so on yields them in order."""
    assert sorted(places) == list(range(len(rows))), "an order has every row exactly once"
    ordered = [""] * len(rows)
    for row, place in zip(rows, places, strict=True):
        ordered[place] = row
    return ordered


def _write_tokenizer(folder: Path, tokens: Sequence[str], template: str) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Split("\n", "isolated")]
    )
    inner.add_special_tokens(list(_SPECIALS))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        unk_token="<unk>",
        model_max_length=MAX_LENGTH,
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)


def _write_model(folder: Path, shape: Shape) -> None:
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(_SEED)
    config = shape.config(
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
        bos_token_id=None,
        eos_token_id=_SPECIALS.index("<|im_end|>"),
        pad_token_id=_SPECIALS.index("<|pad|>"),
    )
    LlamaForCausalLM(config).float().save_pretrained(folder)
