# SPDX-License-Identifier: Apache-2.0
"""Base weights in 4 or 8 bits: what they compute, what is kept, and what is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM

from oumi.core.configs import TrainingConfig
from oumi.core.errors import ConfigError
from oumi.core.inspect import gather_facts
from oumi.core.models.build import build_model
from oumi.core.models.quantization import QuantizedLinear, is_quantized, num_numbers, weight_of
from oumi.core.plan.facts import ModelFacts
from oumi.core.plan.plan import make_plan
from oumi.core.results.chat_model import load_chat_model
from oumi.core.train import train
from tests.runs import losses, tiny_config
from tests.tiny import save_tiny_model

narrow = pytest.mark.narrow
IDS = torch.arange(4, 40)[None]
FORMATS: dict[str, dict[str, Any]] = {
    "nf4": {"bnb_4bit_quant_type": "nf4"},
    "fp4": {"bnb_4bit_quant_type": "fp4"},
    "nested": {"bnb_4bit_quant_type": "nf4", "use_bnb_nested_quant": True},
    "stored as bfloat16": {"bnb_4bit_quant_type": "nf4", "bnb_4bit_quant_storage": "bfloat16"},
    "stored as float32": {"bnb_4bit_quant_storage": "float32"},
    "int8": {"q_lora_bits": 8},
}


def quantized_config(folder: Path, form: str = "nf4", **training: Any) -> TrainingConfig:
    settings = {"use_peft": True, "max_steps": 4, "learning_rate": 1e-2, **training}
    config = tiny_config(folder, **settings)
    for key, value in {"q_lora": True, "lora_target_modules": ["all-linear"], **FORMATS[form]}.items():
        setattr(config.peft, key, value)
    return config


def built(config: TrainingConfig) -> Any:
    return build_model(make_plan(config, gather_facts(config)), torch.device("cpu"))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model.eval()(IDS).logits
    return result


@narrow
@pytest.mark.parametrize("form", FORMATS)
def test_a_product_is_that_of_the_weight_in_full_and_keeps_nothing(tmp_path: Path, form: str) -> None:
    layers = [module for module in built(quantized_config(tmp_path, form)).modules() if is_quantized(module)]
    assert len(layers) == 2 * 7
    original = AutoModelForCausalLM.from_pretrained(tmp_path / "model").model.layers[0].self_attn.q_proj.weight
    assert num_numbers(layers[0].weight) == original.numel()
    rounded = weight_of(layers[0], torch.float32)
    assert (rounded - original).norm() / original.norm() < (0.02 if form == "int8" else 0.15)
    x = torch.randn(2, 3, 64)
    results = []
    for product in (
        lambda x: QuantizedLinear.apply(x, layers[0], None),
        lambda x: layers[0](x),
        lambda x: F.linear(x, rounded),
    ):
        inputs = x.clone().requires_grad_()
        kept: list[torch.Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            output = product(inputs)
        output.square().sum().backward()
        results.append((output.detach(), inputs.grad))
        if len(results) == 1:
            assert not kept
    own, library, expected = results
    for output, gradient in (own,) if form == "int8" else (own, library):  # which rounds inputs, too, to 8 bits
        torch.testing.assert_close(output, expected[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gradient, expected[1], rtol=1e-5, atol=1e-6)


@narrow
@pytest.mark.parametrize("form", ["nf4", "int8"])
def test_an_evaluation_leaves_the_gradients_as_they_are(tmp_path: Path, form: str) -> None:
    model = built(quantized_config(tmp_path, form))

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        model.train()(IDS, labels=IDS).loss.backward()
        return [p.grad.clone() for name, p in model.named_parameters() if "lora_B" in name]

    before = gradients()
    logits(model)
    assert all(map(torch.equal, gradients(), before))
    assert any(gradient.abs().max() > 0 for gradient in before)


@narrow
@pytest.mark.parametrize("form", FORMATS)
def test_every_trainer_learns_the_same(tmp_path: Path, form: str) -> None:
    curves = {}
    for trainer in ("OUMI", "TRL_SFT", "HF") if form in ("nf4", "int8") else ("OUMI", "HF"):
        config = quantized_config(tmp_path, form, trainer_type=trainer, output_dir=str(tmp_path / trainer))
        config.data.train.train_target = "ALL_ASSISTANT_TURNS"
        train(config)
        curves[trainer] = losses(tmp_path / trainer)
    for curve in curves.values():
        assert curve == pytest.approx(curves["OUMI"], rel=2e-3 if form == "int8" else 1e-5)
    assert curves["OUMI"][-1] < curves["OUMI"][0] - 0.05


@narrow
@pytest.mark.parametrize("trainer", ["OUMI", "TRL_SFT"])
@pytest.mark.parametrize("mode", ["ADAPTER_ONLY", "ADAPTER_AND_BASE_MODEL", "MERGED"])
@pytest.mark.parametrize("is_random", [False, True])
def test_an_adapter_is_merged_into_the_weights_in_full(
    tmp_path: Path, trainer: str, mode: str, is_random: bool
) -> None:
    config = quantized_config(tmp_path, trainer_type=trainer)
    config.peft.peft_save_mode = mode
    config.model.load_pretrained_weights = not is_random
    if is_random and mode == "ADAPTER_ONLY":
        with pytest.raises(ConfigError, match="would lose the random base weights"):
            train(config)
        return
    train(config)
    out = tmp_path / "out"
    adapter = out / "adapter" if mode == "MERGED" else out
    if is_random and mode == "MERGED":  # no base is saved
        assert logits(AutoModelForCausalLM.from_pretrained(out)).isfinite().all()
        return
    base = AutoModelForCausalLM.from_pretrained(out / "base" if is_random else tmp_path / "model")
    assert not any(p.dtype == torch.uint8 for p in base.parameters())
    untrained = logits(base)
    expected = logits(PeftModel.from_pretrained(base, adapter))
    assert (expected - untrained).abs().max() > 1e-3
    if mode == "MERGED":
        torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(out)), expected, rtol=1e-4, atol=1e-5)
    if mode == "ADAPTER_AND_BASE_MODEL":
        saved = AutoModelForCausalLM.from_pretrained(out / "base")
        torch.testing.assert_close(logits(saved), untrained)
    if not is_random:
        assert "quantization" not in (adapter / "adapter_config.json").read_text()
        torch.testing.assert_close(logits(AutoPeftModelForCausalLM.from_pretrained(adapter)), expected)


@narrow
def test_modules_that_are_skipped_and_the_head_stay_in_full(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model", tie_word_embeddings=False)
    config = quantized_config(tmp_path)
    config.peft.llm_int8_skip_modules = ["o_proj"]
    names = {name for name, module in built(config).named_modules() if is_quantized(module)}
    assert names
    assert not any("o_proj" in name or "lm_head" in name for name in names)
    config.peft.llm_int8_skip_modules = ["o_prj"]
    with pytest.raises(ConfigError, match="llm_int8_skip_modules: the model has no module 'o_prj', did you mean 'o_p"):
        built(config)


@pytest.mark.skipif("__import__('importlib.util').util.find_spec('bitsandbytes') is not None")
def test_a_missing_package_is_told_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"peft.q_lora: .* pip install 'oumi\[narrow\]'"):
        train(quantized_config(tmp_path))


@pytest.mark.parametrize(
    ("method", "use_peft", "message"),
    [
        ("gptq", True, "quantized by gptq, which cannot be trained"),
        ("mxfp4", True, "peft.q_lora: the experts of .* MXFP4"),
        ("bitsandbytes", False, "only an adapter can be trained"),
    ],
)
def test_quantized_files_that_cannot_be_trained_are_refused_by_name(
    tmp_path: Path, method: str, use_peft: bool, message: str
) -> None:
    config = quantized_config(tmp_path, use_peft=use_peft)
    facts = replace(gather_facts(config), missing=frozenset(), model=ModelFacts(quantization=method))
    with pytest.raises(ConfigError, match=message):
        make_plan(config, facts)


@narrow
def test_a_quantized_module_that_is_to_be_trained_is_told(tmp_path: Path) -> None:
    config = quantized_config(tmp_path)
    config.peft.lora_modules_to_save = ["mlp"]
    with pytest.raises(ConfigError, match=r"peft.lora_modules_to_save: the weights of mlp are quantized.*skip_modules"):
        build_model(make_plan(config, gather_facts(config)), torch.device("cpu"))


@narrow
def test_that_answers_come_from_the_base_in_full_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(quantized_config(tmp_path, save_steps=4))
    for folder in (tmp_path / "out", tmp_path / "out" / "checkpoint-4"):
        caplog.clear()
        load_chat_model(folder)
        assert f"{folder} was trained on weights quantized to nf4; its base is in full precision" in caplog.text
