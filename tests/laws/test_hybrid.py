# SPDX-License-Identifier: Apache-2.0
"""Law 2 for models with linear attention, state-space layers or convolutions: no document reaches another.

Their numbers and gradients beside those of a plain loop are in `test_families.py`.
"""

from __future__ import annotations

import logging
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForImageTextToText

from oumi.core.batch import collate
from oumi.core.methods.next_token import next_token_loss
from oumi.core.models.acceleration.checkpointing import recompute_layers
from oumi.core.models.acceleration.compile import compile_layers
from oumi.core.models.acceleration.flat import make_flat
from oumi.core.models.attention.rows import Rows
from oumi.core.models.language_model import LanguageModel
from oumi.core.models.shared_prefixes import without_ends
from oumi.core.plan.parts import SpeedPlan
from oumi.core.train import train
from oumi.core.types.example import Example
from tests.laws.test_families import LINEAR, SIZES, build, documents
from tests.laws.test_preference import closed_form, dpo_config
from tests.runs import records

HYBRID = [
    "bailing_hybrid", "bamba", "falcon_h1", "falcon_mamba", "granitemoehybrid", "jamba", "kimi_linear", "lara_mini",
    "lfm2", "lfm2_moe", "lfm3", "mamba", "mamba2", "minimax", "nemotron_h", "olmo_hybrid", "qwen3_5_moe_text",
    "qwen3_5_text", "qwen3_next", "qwen4_exp_text", "recurrent_gemma", "rwkv", "xlstm", "zamba2",
]  # fmt: skip
"""All families of transformers that mix tokens by more than attention, and can be built tiny."""


def flat(inner: Any) -> LanguageModel:
    model = make_flat(inner, "sdpa", SpeedPlan(fused_layers=True))
    assert model.is_flat
    return model


@pytest.mark.sample(5)
@pytest.mark.parametrize("model_type", HYBRID)
def test_no_document_reaches_another(model_type: str) -> None:
    model, rows = flat(build(model_type)), documents()
    num_targets = [collate([row]).num_targets for row in rows]
    before = model(collate(rows)).logits().split(num_targets)
    for i in (0, 3):
        changed = Example(rows[i].tokens[::-1] + 7, rows[i].is_target, rows[i].source)
        with torch.no_grad():
            after = model(collate([*rows[:i], changed, *rows[i + 1 :]])).logits().split(num_targets)
        assert [torch.equal(*pair) for pair in zip(before, after, strict=True)] == [j != i or j == 2 for j in range(5)]

    embedded: list[torch.Tensor] = []
    model.inner.get_input_embeddings().register_forward_hook(lambda *call: embedded.append(call[2]))
    part = model(collate(rows)).logits().split(num_targets)[1]
    (gradient,) = torch.autograd.grad(part.square().sum(), embedded)
    reached = [bool(own.any()) for own in gradient[0].split(without_ends(collate(rows)).lengths)]
    assert reached == [False, True, False, False, False]


@pytest.mark.sample(5)
@pytest.mark.parametrize("model_type", HYBRID)
def test_logits_are_those_of_each_document_alone(model_type: str) -> None:
    inner = build(model_type)
    with torch.no_grad():
        rows = [torch.tensor(row.tokens[None]).long() for row in documents()]
        expected = torch.cat([inner(row, use_cache=False).logits[0, :-1] for row in rows])
        logits = flat(inner)(collate(documents())).logits()
    assert (logits - expected).norm() < 5e-6 * expected.norm()


@torch.no_grad()
def test_states_with_the_shape_of_rows_are_not_taken_for_them() -> None:
    inner = build("xlstm")  # which returns the states of its four heads
    rows = [Example(row.tokens[:length], row.is_target[:length], row.source)
            for row, length in zip(documents()[1::2], (5, 140), strict=True)]  # fmt: skip
    alone = [inner(torch.tensor(row.tokens[None]).long(), use_cache=False).logits[0, :-1] for row in rows]
    logits = flat(inner)(collate(rows)).logits()
    torch.testing.assert_close(logits, torch.cat(alone), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model_type", ["lfm2", pytest.param("qwen3_next", marks=pytest.mark.slow)])
def test_pairs_equal_a_closed_form_loop(tmp_path: Path, model_type: str) -> None:
    config = dpo_config(tmp_path, max_steps=4)
    build(model_type).save_pretrained(tmp_path / "model")
    train(config)
    expected = closed_form(config, 4)["loss"]
    assert [step["loss"] for step in records(tmp_path / "out")] == pytest.approx(expected, rel=1e-5)


def test_recomputed_layers_have_the_same_gradients() -> None:
    def gradients(recompute: bool) -> list[torch.Tensor]:
        inner = build("qwen3_next").train()
        if recompute:
            recompute_layers(inner, {"use_reentrant": False})
        model = flat(inner)
        # A second batch is computed before, with other documents.
        for batch in (collate(documents()[:2]), collate(documents())):
            inner.zero_grad()
            next_token_loss(model, batch).backward()
        return [weight.grad for weight in inner.parameters() if weight.grad is not None]

    for own, expected in zip(gradients(True), gradients(False), strict=True):
        assert torch.equal(own, expected)


@pytest.mark.slow
def test_compiled_layers_compute_the_same() -> None:
    model = flat(build("qwen3_next"))
    batches = [collate(documents()), collate(documents()[:3])]
    with torch.no_grad():
        expected = [model(batch).logits() for batch in batches]
        compile_layers(model.inner)
        for batch, logits in zip(batches, expected, strict=True):
            assert (model(batch).logits() - logits).norm() < 1e-5 * logits.norm()


def test_an_adapter_and_a_model_that_sees_images_are_flat() -> None:
    adapted = get_peft_model(build("lfm2"), LoraConfig(target_modules=["in_proj", "q_proj"]))
    assert flat(adapted).is_flat
    vision = {"hidden_size": 32, "intermediate_size": 64, "depth": 2, "num_heads": 2, "out_hidden_size": 64}
    text = {**SIZES, **LINEAR}
    config = AutoConfig.for_model("qwen3_5", text_config=text, vision_config=vision, tie_word_embeddings=False)
    assert flat(AutoModelForImageTextToText.from_config(config).eval()).is_flat


def test_which_layers_take_rows_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("oumi").addHandler(caplog.handler)
    caplog.set_level(logging.INFO, "oumi")
    try:
        flat(build("lfm2"))
    finally:
        logging.getLogger("oumi").removeHandler(caplog.handler)
    assert (
        "batches are flat; each document is a row of its own in model.layers.*.conv (Lfm2ShortConv)" in caplog.messages
    )


@pytest.mark.parametrize(
    ("lengths", "shapes"),
    [
        ((9, 9, 9), [(3, 9)]),
        ((400,), [(1, 400)]),
        ((3, 400, 5, 380, 4), [(3, 5), (2, 400)]),
        ((20, 30, 25), [(3, 30)]),  # as much padding as is cheaper than a call
        ((1, 1000, 100, 1), [(2, 1), (1, 100), (1, 1000)]),
    ],
)
def test_a_long_document_pads_no_short_ones(lengths: tuple[int, ...], shapes: list[tuple[int, int]]) -> None:
    offsets = tuple(np.cumsum([0, *lengths]).tolist())
    rows = Rows([(slice(*ends), None) for ends in pairwise(offsets)], torch.device("cpu"))
    assert rows.shapes == shapes
    stream = torch.randn(1, offsets[-1], 3)
    parts = rows.split(stream)
    assert [part.shape[:2] for part in parts] == shapes
    assert torch.equal(rows.join(parts), stream)
    for start, end in pairwise(offsets):
        (row,) = (row for part in parts for row in part if torch.equal(row[: end - start], stream[0, start:end]))
        assert not row[end - start :].any()


def test_a_document_that_continues_another_begins_its_row_with_it() -> None:
    stream = torch.randn(1, 14, 3, requires_grad=True)
    rows = Rows([(slice(0, 6), None), (slice(6, 9), slice(0, 4)), (slice(9, 14), slice(0, 2))], torch.device("cpu"))
    (part,) = rows.split(stream)
    assert torch.equal(part[1], torch.cat([stream[0, :4], stream[0, 6:9]]))
    assert torch.equal(part[2], torch.cat([stream[0, :2], stream[0, 9:]]))
    assert torch.equal(rows.join([part]), stream)
    (gradient,) = torch.autograd.grad(part.sum(), stream)
    assert gradient[0, :, 0].tolist() == [3, 3, 2, 2, 1, 1] + [1] * 8
