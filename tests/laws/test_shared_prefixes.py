# SPDX-License-Identifier: Apache-2.0
"""The law of shared prefixes: computed once, every number is what each document gives alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from oumi.core.batch import Batch, collate
from oumi.core.methods.log_probs import document_log_probs
from oumi.core.models.acceleration.cpu_layers import fuse_layers
from oumi.core.models.acceleration.flat import make_flat
from oumi.core.models.language_model import LanguageModel
from oumi.core.models.shared_prefixes import share_prefixes, without_ends
from oumi.core.train import train
from oumi.core.types.example import Example, Source
from tests.laws.test_pack import _SMALL, _settings
from tests.laws.test_preference import dpo_config
from tests.runs import records
from tests.tiny import tiny_llama

ROWS = ((20, (6, 9)), (3, (5, 4)), (31, (1, 2, 12)), (12, (7,)))
"""Tokens of the prefix of each row, and of the rest of each of its documents."""


def pairs(first_of_answer: int = 0, trains_prompts: bool = False) -> Batch:
    """Returns rows whose documents begin with the same tokens; another number changes the first answer alone."""
    rows = []
    for row, (num_prompt, nums_answer) in enumerate(ROWS):
        prompt = (np.arange(num_prompt) * 5 + row) % 120 + 3
        answers = [(np.arange(count) * 3 + 11 * i + row + 40) % 120 + 3 for i, count in enumerate(nums_answer)]
        if row == 0:
            answers[0] = (answers[0] + first_of_answer) % 120 + 3
        documents = [np.concatenate([prompt, answer]) for answer in answers]
        is_target = [np.arange(len(document)) >= (0 if trains_prompts else num_prompt) for document in documents]
        starts = np.cumsum([0, *map(len, documents[:-1])]).tolist()
        tokens = np.concatenate(documents).astype(np.int32)
        rows.append(Example(tokens, np.concatenate(is_target), Source("", "", row), tuple(starts)))
    return collate(rows)


def sharing(inner: Any) -> LanguageModel:
    """Returns a model on flat batches that computes prefixes once, if its numbers are the same."""
    return make_flat(inner, "sdpa", has_prefixes=True)


@pytest.mark.parametrize("trains_prompts", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_log_probs_and_gradients_are_the_same(dtype: torch.dtype, tolerance: float, trains_prompts: bool) -> None:
    inner, batch = tiny_llama().to(dtype), pairs(trains_prompts=trains_prompts)
    fuse_layers(inner)
    shared = sharing(inner)
    assert shared.shares_prefixes
    assert len(share_prefixes(batch)[0].tokens) == batch.num_tokens - 20 - 2 * 31, "a prefix of 3 tokens is computed"
    alone = LanguageModel(inner, is_flat=True)
    results = []
    for model in (alone, shared):
        inner.zero_grad()
        log_probs_D = document_log_probs(model(batch), batch)
        (log_probs_D * torch.linspace(-1, 2, len(log_probs_D))).sum().backward()
        results.append((log_probs_D.detach(), torch.cat([weight.grad.flatten() for weight in inner.parameters()])))
    for result, expected in zip(results[1], results[0], strict=True):
        assert (result - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("model_type", ["mistral", "gpt2", "qwen3", "mixtral", "granite", "falcon_h1"])
@torch.no_grad()
def test_families_share_prefixes_exactly(model_type: str) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**_settings(model_type), "sliding_window": 9})
    inner, batch = AutoModelForCausalLM.from_config(config).eval(), pairs()
    expected = alone(inner, batch)
    model = sharing(inner)
    assert model.shares_prefixes
    # Where only rests have another kernel, with a window that ends within the prefix of most of their tokens.
    assert torch.allclose(document_log_probs(model(batch), batch), expected, rtol=1e-5)


def alone(inner: Any, batch: Batch) -> torch.Tensor:
    """Returns the log-probability of the trained tokens of each document, computed alone [D]."""
    model = LanguageModel(inner, is_flat=False)
    return torch.cat([document_log_probs(model(document), document) for document in batch.documents()])


@pytest.mark.parametrize("model_type", ["gemma2", "gpt_oss"])
def test_models_that_would_give_other_numbers_do_not_share(model_type: str) -> None:
    inner = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **{**_SMALL, **_settings(model_type)}))
    assert not sharing(inner).shares_prefixes


@torch.no_grad()
def test_another_chosen_answer_leaves_the_rejected_one_bitwise_unchanged() -> None:
    inner = tiny_llama().eval()
    fuse_layers(inner)
    model = sharing(inner)
    before, after = (document_log_probs(model(batch), batch) for batch in (pairs(), pairs(first_of_answer=7)))
    assert before[0] != after[0]
    assert torch.equal(before[1:], after[1:])


def test_with_dropout_prefixes_are_shared_in_evaluation_only() -> None:
    inner, batch, lengths = tiny_llama(attention_dropout=0.1), pairs(), []
    model = sharing(inner)
    inner.get_input_embeddings().register_forward_hook(lambda _, inputs, out: lengths.append(inputs[0].shape[1]))
    for mode in (True, False):
        model.train(mode)(batch)
    ended = without_ends(batch)
    assert lengths == [ended.num_tokens, share_prefixes(ended)[0].num_tokens]
    assert lengths[1] < lengths[0] < batch.num_tokens


def test_nothing_is_shared_by_rows_of_one_document() -> None:
    batch = pairs()
    documents = collate([Example(part.tokens.numpy(), np.ones(part.num_tokens, np.bool_), part.sources[0])
                         for part in batch.documents()])  # fmt: skip
    assert share_prefixes(documents) == (documents, ())
    assert share_prefixes(collate_equal())[0].lengths == (9, 1), "two equal documents: the last token stays"


def collate_equal() -> Batch:
    """Returns a row of two equal documents."""
    tokens = np.tile(np.arange(3, 12, dtype=np.int32), 2)
    return collate([Example(tokens, np.ones(len(tokens), np.bool_), Source("", "", 0), (0, 9))])


def test_a_run_gives_the_same_losses_with_and_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, without in (("shared", ""), ("apart", "shared_prefixes")):
        monkeypatch.setenv("OUMI_WITHOUT", without)
        train(dpo_config(tmp_path, max_steps=6, output_dir=str(tmp_path / name)))
    shared, apart = (records(tmp_path / name) for name in ("shared", "apart"))
    for ours, theirs in zip(shared, apart, strict=True):
        for key in ("loss", "grad_norm", "logps/chosen", "logps/rejected"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-4), key


def test_tokens_that_no_loss_depends_on_are_not_computed() -> None:
    inner = tiny_llama().double()
    targets = [[0, 1, 1, 0, 0], [0, 0], [1, 1, 1], [0, 0, 1, 0]]
    examples = [
        Example((np.arange(len(marks)) * 7 + i + 3).astype(np.int32), np.array(marks, bool), Source("", "", i))
        for i, marks in enumerate(targets)
    ]
    batch = collate(examples)
    shorter = without_ends(batch)
    assert shorter.lengths == (2, 1, 2, 2)
    assert shorter.targets[shorter.trained].tolist() == batch.targets[batch.trained].tolist()
    assert without_ends(shorter) is shorter
    alone = [inner(torch.tensor(row.tokens[None]).long()).logits[0, :-1] for row in examples]
    model = make_flat(inner, "sdpa")
    logits = model(batch).logits()
    marks = torch.tensor([mark for row in targets for mark in row[1:]]).bool()
    torch.testing.assert_close(logits, torch.cat(alone)[marks], rtol=1e-9, atol=1e-9)
    # Where all that is left is trained, and where nothing is.
    assert model(collate(examples[2:3])).logits().shape == (2, len(inner.lm_head.weight))
    assert model(collate(examples[1:2])).logits().shape == (0, len(inner.lm_head.weight))


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0},
        {
            "rope_type": "longrope", "rope_theta": 10_000.0, "original_max_position_embeddings": 16, "factor": 4.0,
            "short_factor": [1.0] * 8, "long_factor": [4.0] * 8,
        },
    ],
    ids=lambda rope: str(rope["rope_type"]),
)  # fmt: skip
def test_embeddings_that_depend_on_the_length_see_the_whole_document(rope: dict[str, Any]) -> None:
    inner = tiny_llama(rope_parameters=rope, max_position_embeddings=16).eval()
    tokens = np.arange(18, dtype=np.int32) * 7 + 5
    is_target = (np.arange(18) >= 6) & (np.arange(18) < 15)  # behind the trained tokens, the text becomes a long one
    batch = collate([Example(tokens, is_target, Source("", "", 0))])
    with torch.no_grad():
        expected = inner(batch.tokens[None], use_cache=False).logits[0][batch.trained]
        logits = make_flat(inner, "sdpa")(batch).logits()
    assert (logits - expected).norm() < 1e-5 * expected.norm()
