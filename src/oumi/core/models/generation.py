# SPDX-License-Identifier: Apache-2.0
"""Answers of a model to several prompts at once, each as if it were alone.

Shape letters: B prompts, S tokens so far, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation import LogitsProcessor, LogitsProcessorList
from transformers.generation.logits_process import MinPLogitsWarper, TemperatureLogitsWarper, TopPLogitsWarper

from oumi.core.errors import ConfigError


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
    seeds: Sequence[int] | None = None,
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
    answers: dict[int, Generated] = {}
    for rows in _batches([len(prompt) for prompt in prompts], decoding, batch_size):
        chosen = [seeds[i] for i in rows] if seeds is not None else None
        generated = generate(model, tokenizer, [prompts[i] for i in rows], decoding, chosen)
        answers |= dict(zip(rows, generated, strict=True))
    return [answers[i] for i in range(len(prompts))]


@torch.inference_mode()
def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    seeds: Sequence[int] | None = None,
    streamer: Any = None,
) -> list[Generated]:
    """Returns the answers to the prompts of one batch; arguments and errors as `generate_all`."""
    longest = max(len(prompt) for prompt in prompts)
    max_answer = decoding.max_length - longest
    if max_answer < 1:
        raise ConfigError(
            f"the question has {longest} tokens; the model can process {decoding.max_length} with the answer"
        )
    # Any token will do, since the attention mask hides it.
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else next(iter(decoding.stop_tokens), 0)
    # Padded on the left: an answer is generated where the question ends.
    tokens_BS = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in prompts], device=model.device)
    is_token_BS = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    settings = GenerationConfig(
        do_sample=False,  # `_processors` adds the noise of sampling, of its own for each prompt
        max_new_tokens=min(decoding.max_new_tokens, max_answer),
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
            logits_processor=_processors(decoding, longest, seeds),
            streamer=streamer,
            tokenizer=tokenizer if decoding.stop_strings else None,
        )
    return [_answer(tokens, tokenizer, decoding, pad) for tokens in output_BS[:, longest:].tolist()]


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


def _processors(decoding: Decoding, prompt_length: int, seeds: Sequence[int] | None) -> LogitsProcessorList:
    """Returns what changes the logits, in the order of the OpenAI API: bias and penalties, then what samples."""
    processors = LogitsProcessorList()
    if decoding.logit_bias:
        processors.append(_Bias(decoding.logit_bias))
    if decoding.frequency_penalty or decoding.presence_penalty:
        processors.append(_Penalties(prompt_length, decoding.frequency_penalty, decoding.presence_penalty))
    if decoding.temperature > 0:
        processors.append(TemperatureLogitsWarper(decoding.temperature))
        if decoding.min_p > 0:
            processors.append(MinPLogitsWarper(decoding.min_p))
        if decoding.top_p < 1:
            processors.append(TopPLogitsWarper(max(decoding.top_p, 1e-9)))  # 0 leaves the most likely token
        assert seeds is not None, "sampling takes a seed for each prompt"
        processors.append(_Noise(seeds))
    return processors


class _Bias(LogitsProcessor):
    def __init__(self, bias: Mapping[int, float]) -> None:
        self._tokens, self._values = list(bias), list(bias.values())

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        values = torch.tensor(self._values, dtype=scores.dtype, device=scores.device)
        return scores.index_add(1, torch.tensor(self._tokens, device=scores.device), values.expand(len(scores), -1))


class _Penalties(LogitsProcessor):
    """Lowers the logits of tokens that the answer has already."""

    def __init__(self, prompt_length: int, frequency: float, presence: float) -> None:
        self._prompt_length, self._frequency, self._presence = prompt_length, frequency, presence

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        answers_BS = input_ids[:, self._prompt_length :]
        counts_BV = torch.zeros_like(scores).scatter_add_(
            1, answers_BS, torch.ones_like(answers_BS, dtype=scores.dtype)
        )
        return scores - self._frequency * counts_BV - self._presence * (counts_BV > 0)


class _Noise(LogitsProcessor):
    """Turns the largest logit into a sample: the Gumbel-max trick.

    The most likely token after adding noise -log(-log u) to each logit, with u uniform, is distributed as the softmax
    of the logits. Each prompt has a generator of its own, so its sample does not depend on the other prompts.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        # Of a CPU, so that the same seed gives the same noise on every device.
        noise_BV = torch.stack([torch.empty(scores.shape[1]).exponential_(generator=g) for g in self._generators])
        return scores.float() - noise_BV.log().to(scores.device)


def _answer(tokens: list[int], tokenizer: Any, decoding: Decoding, pad: int) -> Generated:
    """Returns an answer from its tokens, which go on until the last answer of the batch ends."""
    end = next((i for i, token in enumerate(tokens) if token in decoding.stop_tokens), None)
    is_finished, tokens = end is not None, tokens[:end]
    if decoding.stop_strings:  # after one of these, the rest is padding
        while tokens and tokens[-1] == pad:
            tokens.pop()
    text = str(tokenizer.decode(tokens, skip_special_tokens=not decoding.keeps_special_tokens))
    ends = [at for string in decoding.stop_strings if (at := text.find(string)) >= 0]
    return Generated(text[: min(ends, default=None)], len(tokens), is_finished or bool(ends))
