# SPDX-License-Identifier: Apache-2.0
"""EVA: an adapter begins with the principal components of the inputs of its layers, and with the model as it was."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM

from oumi.core.batch import Batch, collate
from oumi.core.configs import TrainingConfig
from oumi.core.data.pipeline.mixture import Mixture
from oumi.core.data.pipeline.packing import Packed
from oumi.core.data.training_data import load_training_data
from oumi.core.errors import ConfigError
from oumi.core.inspect import gather_facts
from oumi.core.models.build import build_model
from oumi.core.models.saving import ModelWriter
from oumi.core.plan.plan import make_plan
from oumi.core.train import train
from tests.runs import assert_resumed_bitwise, losses, tiny_config, tiny_rows

CPU = torch.device("cpu")
IDS = torch.arange(4, 40)[None]


def eva_config(folder: Path, **training: Any) -> TrainingConfig:
    config = tiny_config(folder, use_peft=True, **training)
    config.peft.lora_target_modules = ["all-linear"]
    config.peft.lora_init_weights = "EVA"  # type: ignore[assignment]
    return config


def documents(folder: Path, num_rows: int = 8) -> list[Batch]:
    return [collate([row]) for row in tiny_rows(folder, num_rows)]


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


@contextmanager
def inputs_of(model: torch.nn.Module) -> Iterator[dict[str, list[torch.Tensor]]]:
    """Records the inputs [T, d] of the linear layers of a plain model."""
    seen: dict[str, list[torch.Tensor]] = {}
    hooks = [
        module.register_forward_pre_hook(
            lambda _, args, name=name: seen.setdefault(name, []).append(args[0].flatten(0, -2).clone())
        )
        for name, module in model.named_modules()
        if type(module).__name__ in ("Linear", "Conv1D")
    ]
    yield seen
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_layer_begins_with_the_leading_singular_vectors_of_its_centered_inputs(tmp_path: Path, family: str) -> None:
    config = eva_config(tmp_path)
    if family == "gpt2":  # whose weights are stored transposed
        shape = AutoConfig.for_model("gpt2", vocab_size=260, n_embd=64, n_layer=2, n_head=4)
        AutoModelForCausalLM.from_config(shape).save_pretrained(tmp_path / "model")
    batches = documents(tmp_path)
    model = build_model(make_plan(config, gather_facts(config)), CPU, documents=batches)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    with inputs_of(base) as seen, torch.no_grad():
        for batch in batches:
            base(batch.tokens[None])
    assert torch.equal(logits(model), logits(base))
    adapted = {path: layer for path, layer in model.get_base_model().named_modules() if hasattr(layer, "lora_A")}
    ranks = {path: layer.r["default"] for path, layer in adapted.items()}
    assert len(set(ranks.values())) > 1
    assert max(ranks.values()) <= 16
    shares = {}
    for path, values in seen.items():
        vectors_Td = torch.cat(values).double()
        _, sizes, directions_Nd = torch.linalg.svd(vectors_Td - vectors_Td.mean(0), full_matrices=False)
        shares[path] = (sizes**2 / (sizes**2).sum())[:16]
        if path not in adapted:
            continue
        a_rd = adapted[path].lora_A["default"].weight.detach().double()
        leading_rd = directions_Nd[: ranks[path]]
        torch.testing.assert_close(a_rd @ a_rd.T, torch.eye(len(a_rd)).double(), rtol=0, atol=1e-4)
        # Most of each row lies in the space of the leading vectors, which is found in parts.
        assert ((a_rd @ leading_rd.T).norm(dim=1) > 0.99).all(), path
    # The ranks are those of the components that explain most of all.
    shares.pop("lm_head")
    least = torch.cat(list(shares.values())).sort(descending=True).values[8 * len(shares) - 1]
    expected = {path: int((share >= least).sum()) for path, share in shares.items()}
    assert sum(ranks.values()) == 8 * len(shares)
    assert all(abs(expected[path] - ranks.get(path, 0)) <= 1 for path in shares)


@pytest.mark.parametrize(
    "settings", [{}, {"lora_use_dora": True}, {"lora_bias": "lora_only"}, {"lora_use_rslora": True}]
)
def test_the_saved_adapter_is_one_as_any_other_on_the_unchanged_base(tmp_path: Path, settings: dict[str, Any]) -> None:
    config = eva_config(tmp_path)
    config.peft = config.peft.model_copy(update=settings)
    if "lora_bias" in settings:
        shape = AutoConfig.for_model("gpt2", vocab_size=260, n_embd=64, n_layer=2, n_head=4)
        AutoModelForCausalLM.from_config(shape).save_pretrained(tmp_path / "model")
    plan = make_plan(config, gather_facts(config))
    model = build_model(plan, CPU, documents=documents(tmp_path))
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data += torch.randn_like(weight) * 0.05
    ModelWriter(model, plan.model).write(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())
    assert (saved["r"], saved["init_lora_weights"], saved["eva_config"]) == (8, True, None)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(logits(PeftModel.from_pretrained(base, tmp_path / "saved")), logits(model))
    again = build_model(plan, CPU, checkpoint=tmp_path / "saved", documents=iter(()))
    assert torch.equal(logits(again), logits(model))


def test_adapters_of_narrow_weights_are_wide(tmp_path: Path) -> None:
    config = eva_config(tmp_path)
    config.model.torch_dtype_str = "bfloat16"
    model = build_model(make_plan(config, gather_facts(config)), CPU, documents=documents(tmp_path))
    weights = {name: weight.detach() for name, weight in model.named_parameters() if ".lora_" in name}
    assert len({weight.shape for name, weight in weights.items() if ".lora_A." in name}) > 1
    for name, weight in weights.items():
        assert weight.dtype == torch.float32, name
        if ".lora_A." in name:
            torch.testing.assert_close(weight @ weight.T, torch.eye(len(weight)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("trainer", ["OUMI", "TRL_SFT"])
def test_a_run_is_resumed_bitwise(tmp_path: Path, trainer: str) -> None:
    def configured(output: str, **training: Any) -> TrainingConfig:
        return eva_config(
            tmp_path, max_steps=4, save_steps=2, trainer_type=trainer, lr_scheduler_type="constant",
            output_dir=str(tmp_path / output), **training,
        )  # fmt: skip

    train(configured("whole"))
    train(configured("again", resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2")))
    name = "adapter_model.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert losses(tmp_path / "again") == losses(tmp_path / "whole")[2:]


@pytest.mark.parametrize("pack", [False, True])
def test_each_document_of_the_first_rows_is_seen_once_and_alone(tmp_path: Path, pack: bool) -> None:
    config = eva_config(tmp_path)
    config.data.train.pack, config.model.model_max_length = pack, 300
    plan = make_plan(config, gather_facts(config))
    plan.output_dir.mkdir()
    data = load_training_data(plan, datetime(2026, 1, 1))
    assert isinstance(data.train, Packed if pack else Mixture)
    batches = list(data.first_documents(plan))
    assert {len(batch.lengths) for batch in batches} == {1}
    expected = [row.tokens.tolist() for row in tiny_rows(tmp_path, 24)]
    assert sorted(batch.tokens.tolist() for batch in batches) == sorted(expected)


@pytest.mark.narrow
@pytest.mark.parametrize("bits", [4, 8])
def test_an_adapter_on_quantized_weights_begins_so_and_is_resumed(tmp_path: Path, bits: int) -> None:
    config = eva_config(tmp_path, max_steps=4, save_steps=2, lr_scheduler_type="constant")
    config.peft.q_lora, config.peft.q_lora_bits = True, bits  # type: ignore[assignment]
    model = build_model(make_plan(config, gather_facts(config)), CPU, documents=documents(tmp_path))
    ranks = set()
    for name, weight in model.named_parameters():
        if ".lora_A." in name:
            ranks.add(len(weight))
            torch.testing.assert_close(weight @ weight.T, torch.eye(len(weight)), rtol=0, atol=1e-4)
    assert len(ranks) > 1
    assert_resumed_bitwise(config, "checkpoint-2", "adapter_model.safetensors")


def test_too_few_tokens_are_told(tmp_path: Path) -> None:
    config = eva_config(tmp_path)
    config.peft.lora_r = 32
    (row,) = tiny_rows(tmp_path, 1)
    short = collate([replace(row, tokens=row.tokens[:40], is_target=row.is_target[:40])])
    with pytest.raises(ConfigError, match=r"peft.lora_init_weights: EVA needs 64 tokens .* only 40; lower peft.lora_r"):
        build_model(make_plan(config, gather_facts(config)), CPU, documents=[short])
