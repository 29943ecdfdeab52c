# SPDX-License-Identifier: Apache-2.0
"""The plan knows by name which modules `model.freeze_layers` freezes, as the loaded model does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from transformers import AutoModelForImageTextToText

from oumi.core.models.load import freeze
from oumi.core.plan.frozen import is_frozen
from tests.tiny import tiny_llama
from tests.tiny_vision import save_tiny_gemma3, save_tiny_llava, save_tiny_qwen2_vl


def assert_known(model: Any, frozen: str) -> None:
    freeze(model, (frozen,))
    for path, module in model.named_modules():
        is_tied = path == "lm_head" and model.config.tie_word_embeddings
        if isinstance(module, nn.Linear) and not is_tied:
            assert is_frozen(path, (frozen,)) != module.weight.requires_grad, path


@pytest.mark.parametrize(
    "frozen", ["model.layers.1", "model.layers.*.mlp", "model.layers.0.mlp.up_proj", "language_model", "head"]
)
def test_modules_of_a_text_model_are_known(frozen: str) -> None:
    assert_known(tiny_llama(tie_word_embeddings=False), frozen)


@pytest.mark.parametrize("save", [save_tiny_gemma3, save_tiny_llava, save_tiny_qwen2_vl])
def test_parts_of_a_model_with_images_are_known(tmp_path: Path, save: Callable[[Path], Any]) -> None:
    save(tmp_path)
    for frozen in ("vision_encoder", "projector", "language_model"):
        assert_known(AutoModelForImageTextToText.from_pretrained(tmp_path), frozen)
