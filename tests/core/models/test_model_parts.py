# SPDX-License-Identifier: Apache-2.0
"""Parts of a model by their role: what is frozen, and the language model alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from oumi.core.errors import ConfigError
from oumi.core.inspect import gather_facts
from oumi.core.models.build import build_model
from oumi.core.models.load import freeze
from oumi.core.models.model_parts import modules_of_part
from oumi.core.plan.plan import make_plan
from oumi.core.plan.refusals import check
from oumi.core.train import train
from tests.runs import tiny_config
from tests.tiny import tiny_llama
from tests.tiny_vision import save_tiny_gemma3, save_tiny_idefics3, save_tiny_llava, save_tiny_qwen2_vl

FAMILIES = {
    "llava": save_tiny_llava, "qwen2_vl": save_tiny_qwen2_vl, "idefics3": save_tiny_idefics3,
    "gemma3": save_tiny_gemma3,
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_the_parts_of_a_family_have_names(tmp_path: Path, family: str) -> None:
    FAMILIES[family](tmp_path)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    names = {id(p): name for name, p in model.named_parameters()}

    def frozen(*parts: str) -> set[str]:
        model.requires_grad_(True)
        freeze(model, parts)
        return {names[id(p)] for p in model.parameters() if not p.requires_grad}

    vision, projector, language = frozen("vision_encoder"), frozen("projector"), frozen("language_model")
    assert vision
    assert projector
    assert not vision & projector | vision & language | projector & language
    head = frozen("head") | frozen("embeddings")
    assert vision | projector | language | head == set(names.values())
    assert frozen("vision_encoder", "projector") == vision | projector


def test_text_models_have_parts_and_patterns() -> None:
    model = tiny_llama()

    def frozen(*parts: str) -> set[str]:
        model.requires_grad_(True)
        freeze(model, parts)
        return {name for name, p in model.named_parameters() if not p.requires_grad}

    assert frozen("model.layers.0.*") == {name for name, _ in model.named_parameters() if ".layers.0." in name}
    assert frozen("language_model") == {name for name, _ in model.named_parameters() if name.startswith("model.")}
    assert frozen("embeddings") == {"model.embed_tokens.weight"}
    for name, hint in (("visoin_encoder", "vision_encoder"), ("model.layer.0", "model.layers.0"), ("*.attn", "")):
        with pytest.raises(ConfigError, match=f"has no module '.*{hint}"):
            freeze(model, (name,))
    assert not modules_of_part(model, "vision_encoder")


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "gemma3"])
def test_the_language_model_alone_is_loaded_and_saved(tmp_path: Path, family: str) -> None:
    save: Callable[[Path], Any] = FAMILIES[family]
    save(tmp_path / "model")
    config = tiny_config(tmp_path, max_steps=2)
    config.model.text_only = True
    plan = make_plan(config, gather_facts(config))
    if family == "qwen2_vl":
        with pytest.raises(ConfigError, match=r"model.text_only: .* no class for the language model of qwen2_vl alone"):
            build_model(plan, torch.device("cpu"))
        return
    model = build_model(plan, torch.device("cpu"))
    whole = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    ids = torch.tensor([[20, 30, 21, 35]])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, whole.eval()(ids).logits)
    train(config)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(saved) is type(model)
    assert not any("vision" in name or "visual" in name for name, _ in saved.named_parameters())
    assert not hasattr(saved.config, "vision_config")


def test_an_adapter_that_is_not_to_be_trained_is_refused_and_one_that_is_continues(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, use_peft=True, max_steps=2)
    train(config)
    further = tiny_config(tmp_path, max_steps=2, output_dir=str(tmp_path / "further"))
    further.model.adapter_model = str(tmp_path / "out")
    assert any("is trained further" in note for note in make_plan(further, gather_facts(further)).notes)
    further.model.adapter_trainable = True
    plan = make_plan(further, gather_facts(further))
    assert not any("adapter" in note for note in plan.notes)
    assert any(p.requires_grad for p in build_model(plan, torch.device("cpu")).parameters())
    further.model.adapter_trainable = False
    with pytest.raises(ConfigError, match=r"model.adapter_trainable: false would leave nothing to train"):
        check(further)


def test_the_share_of_weights_that_are_adapted_is_told(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, use_peft=True)
    config.peft.lora_target_modules = ["q_proj"]
    plan = make_plan(config, gather_facts(config))
    model = build_model(plan, torch.device("cpu"))
    total = sum(p.numel() for name, p in model.named_parameters() if "lora_" not in name)
    adapted = sum(p.numel() for name, p in model.named_parameters() if "q_proj.base_layer" in name)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    (note,) = [note for note in plan.notes if note.startswith("adapter:")]
    assert f"with {adapted / total:.0%} of the weights are adapted, by {trained / total:.2%} as many" in note
