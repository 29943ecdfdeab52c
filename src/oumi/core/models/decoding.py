# SPDX-License-Identifier: Apache-2.0
"""How the next token of an answer is chosen, and where an answer ends.

Shape letters: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.generation.logits_process import MinPLogitsWarper, TemperatureLogitsWarper, TopPLogitsWarper


@dataclass(frozen=True)
class Decoding:
    """How the next token is chosen, and where an answer ends."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    """0 takes the most likely token each time; above 0, tokens are sampled."""
    top_p: float = 1.0
    """Samples among the most likely tokens that have this share of the probability together."""
    min_p: float = 0.0
    """Samples among tokens that are at least this share as likely as the most likely one."""
    frequency_penalty: float = 0.0
    """Subtracted from the logit of a token for each time that the answer has it."""
    presence_penalty: float = 0.0
    """Subtracted from the logit of each token that the answer has."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of tokens, by id."""
    num_beams: int = 1
    max_length: int = 1 << 30
    """Most tokens of question and answer together."""
    stop_tokens: tuple[int, ...] = ()
    """Tokens that end an answer, and are no part of it."""
    stop_strings: tuple[str, ...] = ()
    """Texts that end an answer, and are no part of it."""
    keeps_special_tokens: bool = False
    """Special tokens are a part of the text of an answer."""


@dataclass(frozen=True)
class Generated:
    """An answer."""

    text: str
    num_tokens: int
    is_finished: bool
    """False if it was cut at the largest number of tokens."""


def adjusted(
    logits_BV: torch.Tensor,
    answers: Sequence[Sequence[int]],
    decoding: Decoding,
    generators: Sequence[torch.Generator] = (),
) -> torch.Tensor:
    """Returns scores [B, V], the largest of which is the next token of a row, in the order of the OpenAI API.

    Args:
        logits_BV: The logits of the model.
        answers: Tokens of each answer so far.
        decoding: Bias and penalties, then what samples.
        generators: Of each row, if tokens are sampled, so that a sample does not depend on the other rows.
    """
    scores_BV = logits_BV.float()
    if decoding.logit_bias:
        tokens = torch.tensor(list(decoding.logit_bias), device=scores_BV.device)
        values = torch.tensor(list(decoding.logit_bias.values()), device=scores_BV.device)
        scores_BV = scores_BV.index_add(1, tokens, values.expand(len(scores_BV), -1))
    if decoding.frequency_penalty or decoding.presence_penalty:
        vocabulary = scores_BV.shape[1]
        counts_BV = torch.stack([torch.bincount(_tokens(answer), minlength=vocabulary) for answer in answers])
        counts_BV = counts_BV.to(scores_BV.device)
        scores_BV = scores_BV - decoding.frequency_penalty * counts_BV - decoding.presence_penalty * (counts_BV > 0)
    return _with_noise(scores_BV, decoding, generators) if decoding.temperature > 0 else scores_BV


def _tokens(answer: Sequence[int]) -> torch.Tensor:
    return torch.tensor(answer, dtype=torch.long)


def _with_noise(scores_BV: torch.Tensor, decoding: Decoding, generators: Sequence[torch.Generator]) -> torch.Tensor:
    """Returns scores of which the largest is a sample: the Gumbel-max trick.

    The most likely token after adding noise -log(-log u) to each logit, with u uniform, is distributed as the softmax
    of the logits.
    """
    warpers: list[Any] = [TemperatureLogitsWarper(decoding.temperature)]
    if decoding.min_p > 0:
        warpers.append(MinPLogitsWarper(decoding.min_p))
    if decoding.top_p < 1:
        warpers.append(TopPLogitsWarper(max(decoding.top_p, 1e-9)))  # 0 leaves the most likely token
    for warper in warpers:
        scores_BV = warper(None, scores_BV)
    assert len(generators) == len(scores_BV), "sampling takes a generator for each row"
    # Of a CPU, so that the same seed gives the same noise on every device.
    noise_BV = torch.stack([torch.empty(scores_BV.shape[1]).exponential_(generator=g) for g in generators])
    return scores_BV - noise_BV.log().to(scores_BV.device)


def answer_of(tokens: Sequence[int], tokenizer: Any, decoding: Decoding) -> Generated:
    """Returns an answer from its tokens, up to the first that ends it."""
    end = next((i for i, token in enumerate(tokens) if token in decoding.stop_tokens), None)
    kept = list(tokens[:end])
    text = str(tokenizer.decode(kept, skip_special_tokens=not decoding.keeps_special_tokens))
    ends = [at for string in decoding.stop_strings if (at := text.find(string)) >= 0]
    is_finished = end is not None or has_stop_string(kept, tokenizer, decoding)
    return Generated(text[: min(ends, default=None)], len(kept), is_finished)


def has_stop_string(tokens: Sequence[int], tokenizer: Any, decoding: Decoding) -> bool:
    """Returns True if the text of an answer, with its special tokens, has a text that ends it."""
    if not decoding.stop_strings:
        return False
    text = tokenizer.decode(list(tokens), skip_special_tokens=False)
    return any(string in text for string in decoding.stop_strings)


def is_last(tokens: Sequence[int], tokenizer: Any, decoding: Decoding) -> bool:
    """Returns True if the last of the tokens of an answer ends it."""
    if tokens[-1] in decoding.stop_tokens:
        return True
    # A token has at least one byte; a few more, since the first ones may be a part of a character.
    longest = max((len(string.encode()) for string in decoding.stop_strings), default=0)
    return has_stop_string(tokens[-longest - 4 :], tokenizer, decoding)
