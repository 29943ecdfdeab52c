# SPDX-License-Identifier: Apache-2.0
"""Answers of a model to several prompts at once, each as if it were alone.

Shape letters: B prompts, S tokens so far.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation import LogitsProcessor, LogitsProcessorList

from oumi.core.errors import ConfigError
from oumi.core.models.adapters import below_adapter
from oumi.core.models.attention.rope import follows_length, forget_lengths, original_length
from oumi.core.models.continuous import ContinuousBatch
from oumi.core.models.decoding import Decoding, Generated, adjusted, answer_of
from oumi.core.models.joined_cache import has_joinable_cache


def max_positions(model: Any) -> int:
    """Returns the most tokens that a model can process, question and answer together."""
    config = model.config.get_text_config()
    return int(getattr(config, "max_position_embeddings", None) or 1 << 30)  # recurrent models have no limit


def generate_all(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    batch_size: int,
    seeds: Sequence[int] = (),
) -> list[Generated]:
    """Returns the answer to each prompt, which does not depend on the other prompts but for rounding.

    Args:
        model: The model, on its device.
        tokenizer: Its tokenizer.
        prompts: Token ids of each prompt.
        decoding: How tokens are chosen.
        batch_size: Most prompts of a batch.
        seeds: A seed for each prompt, if tokens are sampled.

    Raises:
        ConfigError: A prompt has as many tokens as the model can process.
    """
    for prompt in prompts:
        _check_length(prompt, decoding)
    own = below_adapter(model)
    longest = min(max(map(len, prompts), default=0) + decoding.max_new_tokens, decoding.max_length)
    is_independent = has_joinable_cache(own) and not _follows_longest(own, longest)
    if is_independent and decoding.num_beams == 1 and not _learns_prompt(model):
        batch = ContinuousBatch(own, tokenizer, decoding, batch_size)
        return [answer_of(tokens, tokenizer, decoding) for tokens in batch.answers(prompts, seeds)]
    # A recurrent state takes padding for tokens.
    if not is_independent or own._is_stateful:
        batch_size = 1
    answers: dict[int, Generated] = {}
    for rows in _batches([len(prompt) for prompt in prompts], decoding, batch_size):
        generated = generate(model, tokenizer, [prompts[i] for i in rows], decoding, [seeds[i] for i in rows if seeds])
        answers |= dict(zip(rows, generated, strict=True))
    return [answers[i] for i in range(len(prompts))]


def _follows_longest(model: Any, longest: int) -> bool:
    """Returns True if the numbers of a row depend on the longest one of its batch, which has up to so many tokens."""
    limits = [original_length(module) for module in model.modules() if follows_length(module)]
    # Llama 4 takes the temperature of its attention from the length of the cache, not from positions.
    limits.append(getattr(model.config.get_text_config(), "floor_scale", None) or longest + 1)
    return longest >= min(limits)


def _learns_prompt(model: Any) -> bool:
    """Returns True for an adapter that puts learned tokens before each prompt, which PEFT's own model does."""
    return any(config.is_prompt_learning for config in getattr(model, "peft_config", {}).values())


def _check_length(prompt: Sequence[int], decoding: Decoding) -> None:
    if len(prompt) >= decoding.max_length:
        raise ConfigError(
            f"the question has {len(prompt)} tokens; the model can process {decoding.max_length} with the answer"
        )


@torch.inference_mode()
def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    seeds: Sequence[int] = (),
    streamer: Any = None,
) -> list[Generated]:
    """Returns the answers to the prompts of one batch, by transformers; arguments and errors as `generate_all`."""
    longest_prompt = max(prompts, key=len)
    _check_length(longest_prompt, decoding)
    longest = len(longest_prompt)
    forget_lengths(model)
    # Any token will do, since the attention mask hides it.
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else next(iter(decoding.stop_tokens), 0)
    # Padded on the left: an answer is generated where the question ends.
    tokens_BS = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in prompts], device=model.device)
    is_token_BS = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    settings = GenerationConfig(
        do_sample=False,  # `adjusted` adds the noise of sampling, of its own for each prompt
        max_new_tokens=min(decoding.max_new_tokens, decoding.max_length - longest),
        num_beams=decoding.num_beams,
        eos_token_id=list(decoding.stop_tokens) or None,
        pad_token_id=pad,
        stop_strings=list(decoding.stop_strings) or None,
    )
    with _generation_settings(model, settings):
        output_BS = model.generate(
            input_ids=tokens_BS,
            attention_mask=is_token_BS,
            generation_config=settings,
            logits_processor=LogitsProcessorList([_Adjustment(decoding, longest, seeds)]),
            streamer=streamer,
            tokenizer=tokenizer if decoding.stop_strings else None,
        )
    answers = (_without_padding(tokens, decoding, pad) for tokens in output_BS[:, longest:].tolist())
    return [answer_of(tokens, tokenizer, decoding) for tokens in answers]


def _batches(lengths: list[int], decoding: Decoding, batch_size: int) -> Iterator[list[int]]:
    """Yields the indices of the prompts of each batch, those of similar length together, as little padding costs."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    # Where the model's length cuts an answer, the longest prompt of its batch would decide where.
    has_room = [i for i in order if lengths[i] + decoding.max_new_tokens <= decoding.max_length]
    for first in range(0, len(has_room), batch_size):
        yield has_room[first : first + batch_size]
    yield from ([i] for i in order[len(has_room) :])


@contextmanager
def _generation_settings(model: Any, settings: GenerationConfig) -> Iterator[None]:
    """Gives a model other generation settings for a while.

    generate() takes what the given settings leave open, such as a repetition penalty, from the model's own.
    """
    own, model.generation_config = model.generation_config, settings
    try:
        yield
    finally:
        model.generation_config = own


class _Adjustment(LogitsProcessor):
    """Applies `adjusted` in the loop of transformers."""

    def __init__(self, decoding: Decoding, prompt_length: int, seeds: Sequence[int]) -> None:
        self._decoding, self._prompt_length = decoding, prompt_length
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return adjusted(scores, input_ids[:, self._prompt_length :].tolist(), self._decoding, self._generators)


def _without_padding(tokens: list[int], decoding: Decoding, pad: int) -> list[int]:
    """Returns the tokens of an answer, which padding follows until the last answer of the batch ends."""
    while decoding.stop_strings and tokens and tokens[-1] == pad:
        tokens.pop()
    return tokens
