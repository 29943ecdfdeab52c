# SPDX-License-Identifier: Apache-2.0
"""Answers of a batch are those of each prompt alone by transformers, whatever the family and the rows beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from oumi.core.errors import ConfigError
from oumi.core.models.decoding import Decoding
from oumi.core.models.generation import generate, generate_all
from oumi.core.models.joined_cache import cache_argument, join, new_cache
from tests.laws.test_families import NOT_TINY, build
from tests.tiny_vision import save_tiny_gemma3, save_tiny_qwen2_vl

PLAIN = ["gpt2", "gemma2", "llama", "llama4_text", "mamba2", "qwen3_next", "lfm2", "bloom", "rwkv", "gemma3n_text"]
"""Families of the plain run: learned positions, windows, frequencies by length, chunks, states, convolutions, ALiBi,
no cache of transformers, and keys that layers share."""
NO_ANSWERS = {
    "bart", "blenderbot-small", "dory", "jetmoe", "marian", "mbart", "mvp", "pegasus", "qwen4_exp_text",
    "recurrent_gemma", "trocr", "xlm", "xlstm",
}  # fmt: skip
"""Families of which transformers fails to continue a prompt when built as here, or answers all alike; a prompt of one
token continues the last answer of RecurrentGemma."""
LENGTHS = (12, 33, 1, 5, 12, 19, 2, 12, 41)
NEW_TOKENS = 16


def prompts(vocabulary: int = 200) -> list[list[int]]:
    return [np.random.default_rng(i).integers(3, vocabulary, length).tolist() for i, length in enumerate(LENGTHS)]


def alone(model: Any, prompt: list[int], stops: list[int] | None, num_tokens: int = NEW_TOKENS) -> list[int]:
    tokens = torch.tensor([prompt])
    with torch.no_grad():
        output = model.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=num_tokens, do_sample=False,
            eos_token_id=stops, pad_token_id=0,
        )  # fmt: skip
    return list(output[0, len(prompt) :].tolist())


class Numbers:
    """A tokenizer that writes tokens as numbers."""

    pad_token_id = 0

    def decode(self, tokens: list[int], skip_special_tokens: bool) -> str:
        return " ".join(map(str, tokens))


def check(model: Any) -> None:
    if not hasattr(type(model.config)(), "sliding_window"):
        model.config.sliding_window = None  # of a family that knows none, only the cache would have it
    # Tokens at which some answers end, and others do not.
    model.generation_config.eos_token_id = None
    free = [alone(model, prompt, None) for prompt in prompts()]
    stops = sorted({answer[4 + i] for i, answer in enumerate(free[:3])})
    expected = [alone(model, prompt, stops) for prompt in prompts()]
    texts = [Numbers().decode([token for token in tokens if token not in stops], True) for tokens in expected]
    assert len({len(text.split()) for text in texts}) > 1
    decoding = Decoding(max_new_tokens=NEW_TOKENS, stop_tokens=tuple(stops))
    for batch_size in (4, 1):
        answers = generate_all(model, Numbers(), prompts(), decoding, batch_size)
        assert [answer.text for answer in answers] == texts
        assert [answer.is_finished for answer in answers] == [tokens[-1] in stops for tokens in expected]


@pytest.mark.parametrize("model_type", PLAIN)
def test_answers_are_those_of_each_prompt_alone(model_type: str) -> None:
    check(build(model_type))


@pytest.mark.slow
@pytest.mark.parametrize("model_type", sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES} - NOT_TINY - NO_ANSWERS - {*PLAIN}))
def test_answers_of_every_family(model_type: str) -> None:
    check(build(model_type))


@pytest.mark.parametrize("save", [save_tiny_qwen2_vl, pytest.param(save_tiny_gemma3, marks=pytest.mark.slow)])
def test_answers_of_a_model_that_sees_images(tmp_path: Path, save: Any) -> None:
    model = AutoModelForImageTextToText.from_pretrained(save(tmp_path)).eval()
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.data *= 3
    check(model)


def test_an_answer_ends_at_the_length_of_the_model_whatever_is_beside_it() -> None:
    model = build("gpt2")
    answers = generate_all(model, Numbers(), prompts(), Decoding(max_new_tokens=64, max_length=44), 4)
    assert [answer.num_tokens for answer in answers] == [44 - length for length in LENGTHS]
    with pytest.raises(ConfigError, match="the question has 41 tokens; the model can process 41 with the answer"):
        generate_all(model, Numbers(), prompts(), Decoding(max_length=41), 4)


def test_a_text_that_ends_an_answer_ends_it_alone() -> None:
    model = build("gpt2")
    free = generate_all(model, Numbers(), prompts(), Decoding(max_new_tokens=NEW_TOKENS), 4)
    string = " ".join(free[0].text.split()[5:7]) + " "
    answers = generate_all(model, Numbers(), prompts(), Decoding(NEW_TOKENS, stop_strings=(string,)), 4)
    assert answers[0].text == free[0].text[: free[0].text.index(string)]
    assert answers[0].is_finished
    assert answers[0].num_tokens < NEW_TOKENS
    for answer, whole in zip(answers, free, strict=True):
        assert answer.text == whole.text.partition(string)[0]


@pytest.mark.parametrize("settings", [{"temperature": 1.5, "top_p": 0.9, "min_p": 0.01}, {"frequency_penalty": 1.0}])
def test_samples_and_penalties_do_not_depend_on_the_batch(settings: dict[str, float]) -> None:
    model, decoding = build("gpt2"), Decoding(max_new_tokens=NEW_TOKENS, **settings)
    seeds = list(range(len(LENGTHS)))
    answers = [generate_all(model, Numbers(), prompts(), decoding, size, seeds) for size in (1, 4)]
    assert answers[0] == answers[1] != generate_all(model, Numbers(), prompts(), Decoding(NEW_TOKENS), 4)
    alone = [generate(model, Numbers(), [row], decoding, [seed])[0] for row, seed in zip(prompts(), seeds, strict=True)]
    assert answers[0] == alone


def test_frequencies_of_longer_rows_before_do_not_stay() -> None:
    model, decoding = build("llama"), Decoding(max_new_tokens=40)  # dynamic NTK beyond 32 tokens
    fresh = [generate_all(build("llama"), Numbers(), [prompt], decoding, 1)[0] for prompt in prompts()]
    for _ in range(2):
        assert generate_all(model, Numbers(), prompts(), decoding, 4) == fresh
        assert [generate(model, Numbers(), [prompt], decoding)[0] for prompt in prompts()] == fresh


def test_keys_of_rows_that_left_take_no_memory() -> None:
    model, caches = build("gpt2"), []
    model.config.sliding_window = None
    with torch.inference_mode():
        for _ in range(2):
            caches.append(new_cache(model))
            for _ in range(2):
                tokens = torch.zeros(4, 3, dtype=torch.long)
                model(input_ids=tokens, use_cache=True, **{str(cache_argument(model)): caches[-1]})
    layer = caches[0].layers[0]
    before = StorageWeakRef(layer.keys.untyped_storage())
    caches[0].reorder_cache(torch.tensor([1]))
    assert before.expired()
    before = StorageWeakRef(layer.keys.untyped_storage())
    join(caches, 6)
    assert before.expired()
    assert len(layer.keys) == 5
