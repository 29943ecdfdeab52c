# SPDX-License-Identifier: Apache-2.0
"""`oumi merge` makes a plain model of an adapter and its base, and proves it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from oumi.core.checkpoint.store import write_new
from oumi.core.errors import ConfigError, ExportError, OutputError
from oumi.core.models.merging import Answer, difference
from oumi.core.results.merge import merge, write_merged
from oumi.core.train import train
from tests.core.models.test_adapters import SMALL
from tests.runs import tiny_config
from tests.tiny import byte_tokenizer, save_tiny_model

IDS = torch.arange(4, 40)[None]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


def save_adapter(folder: Path, base: Any, **settings: Any) -> torch.Tensor:
    """Writes a model in `model` and an adapter with random weights in `adapter`, and returns the logits of both."""
    base.save_pretrained(folder / "model")
    byte_tokenizer().save_pretrained(folder / "model")
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(folder / "model"), LoraConfig(r=2, **settings))
    torch.manual_seed(1)
    for name, weight in adapted.named_parameters():
        if weight.requires_grad and "magnitude" not in name:
            weight.data.normal_(std=0.1)
    adapted.save_pretrained(folder / "adapter")
    return logits(adapted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj", "embed_tokens"], "use_dora": True},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"], "trainable_token_indices": [5, 9]},
    ],
)
def test_the_merged_model_is_the_adapter_on_its_base(
    tmp_path: Path, settings: dict[str, Any], is_tied: bool, dtype: torch.dtype
) -> None:
    save_tiny_model(tmp_path / "original", tie_word_embeddings=is_tied)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "original", dtype=dtype)
    expected = save_adapter(tmp_path, base, **settings)
    merge(str(tmp_path / "adapter"), tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert merged.dtype == dtype
    rough = dtype == torch.bfloat16
    torch.testing.assert_close(logits(merged), expected, rtol=0.1 if rough else 1e-4, atol=0.1 if rough else 1e-5)
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template
    assert not (tmp_path / "merged" / "adapter").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"original", "model", "adapter", "merged"}


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe"])
def test_an_adapter_on_stacked_experts_is_merged(tmp_path: Path, model_type: str) -> None:
    routed = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **{**SMALL, "vocab_size": 260}))
    parameters = ["experts.gate_up_proj", "experts.down_proj"]
    expected = save_adapter(tmp_path, routed, target_modules=["q_proj"], target_parameters=parameters)
    merge(str(tmp_path / "adapter"), tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_merged_is_told(tmp_path: Path) -> None:
    save_adapter(tmp_path, AutoModelForCausalLM.from_pretrained(save_tiny_model(tmp_path / "original")))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(OutputError, match="full exists already, and is not replaced"):
        merge(str(tmp_path / "adapter"), tmp_path / "full")
    with pytest.raises(ConfigError, match="is not an adapter"):
        merge(str(tmp_path / "model"), tmp_path / "merged")
    with pytest.raises(ConfigError, match="modle"):
        merge(str(tmp_path / "adapter"), tmp_path / "merged", base=str(tmp_path / "modle"))
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("layers", "reason"), [(1, "the model has no place for .*layers.1"), (3, "it has no .*layers.2")]
)
def test_an_adapter_of_another_depth_is_refused(tmp_path: Path, layers: int, reason: str) -> None:
    save_adapter(tmp_path, AutoModelForCausalLM.from_pretrained(save_tiny_model(tmp_path / "original")))
    other = save_tiny_model(tmp_path / "other", num_hidden_layers=layers)
    adapter = LoraConfig.from_pretrained(tmp_path / "adapter")
    adapter.target_modules = {"q_proj", "v_proj"}  # PEFT may list the paths of all layers
    adapter.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ConfigError, match=reason):
        merge(str(tmp_path / "adapter"), tmp_path / "merged", base=str(other))


def test_a_merge_that_is_killed_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    save_adapter(tmp_path, AutoModelForCausalLM.from_pretrained(save_tiny_model(tmp_path / "original")))

    def write(directory: Path) -> None:
        write_merged(str(tmp_path / "adapter"), directory)
        shutil.copytree(directory, tmp_path / "kept")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_new(tmp_path / "merged", write)
    assert {path.name for path in tmp_path.iterdir()} == {"original", "model", "adapter", "kept"}
    (tmp_path / "kept").rename(tmp_path / ".tmp-merged")  # as a process leaves it that cannot clean up
    merge(str(tmp_path / "adapter"), tmp_path / "merged")
    assert {path.name for path in tmp_path.iterdir()} == {"original", "model", "adapter", "merged"}


def test_other_kinds_of_adapters_are_told(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    prompts = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(base, prompts).save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "base_model_name_or_path": str(tmp_path / "model")}))
    with pytest.raises(ConfigError, match="PROMPT_TUNING adapter, which changes no weights"):
        merge(str(tmp_path / "adapter"), tmp_path / "merged")
    path.write_text(json.dumps({**config, "peft_type": "NEWER", "base_model_name_or_path": str(tmp_path / "model")}))
    with pytest.raises(ConfigError, match="the installed PEFT knows no kind of adapter 'NEWER'"):
        merge(str(tmp_path / "adapter"), tmp_path / "merged")


def test_a_directory_without_the_files_of_an_adapter_is_told(tmp_path: Path) -> None:
    save_adapter(tmp_path, AutoModelForCausalLM.from_pretrained(save_tiny_model(tmp_path / "original")))
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"adapter: the directory contains no adapter_model.safetensors"):
        merge(str(tmp_path / "adapter"), tmp_path / "merged")


def test_an_adapter_that_is_not_finite_is_not_exported(tmp_path: Path) -> None:
    save_adapter(tmp_path, AutoModelForCausalLM.from_pretrained(save_tiny_model(tmp_path / "original")))
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    weights = load_file(path)
    next(iter(weights.values()))[0] = float("nan")
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(ExportError, match="are not finite, so it is not merged"):
        merge(str(tmp_path / "adapter"), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_difference_is_told_by_its_numbers() -> None:
    logits = torch.randn(32, 50)
    expected = Answer(logits, tuple(int(row.argmax()) for row in logits[23:-1]))
    assert difference(expected, expected, torch.float32) == ""
    assert "differ by" in difference(expected, Answer(logits + 0.01, expected.tokens), torch.float32)
    assert difference(expected, Answer(logits + 0.01, expected.tokens), torch.bfloat16) == ""
    assert "differ by nan" in difference(expected, Answer(logits * float("nan"), expected.tokens), torch.bfloat16)
    assert "forward pass fails" in difference(expected, None, torch.float32)
    other = Answer(logits, (*expected.tokens[:-1], int(logits[30].argmin())))
    assert "has token" in difference(other, expected, torch.float32)


def test_a_run_keeps_its_adapter_if_the_merged_model_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(tmp_path, use_peft=True, max_steps=2, learning_rate=1e-2)
    config.peft.peft_save_mode = "MERGED"  # type: ignore[assignment]
    save_pretrained = type(AutoModelForCausalLM.from_pretrained(tmp_path / "model")).save_pretrained

    def truncated(self: Any, directory: Path, **kwargs: Any) -> None:  # a library that writes other weights
        save_pretrained(self, directory, **kwargs)
        weights = load_file(Path(directory) / "model.safetensors")
        weights["model.norm.weight"] *= 1.5
        save_file(weights, Path(directory) / "model.safetensors", {"format": "pt"})

    monkeypatch.setattr("transformers.LlamaForCausalLM.save_pretrained", truncated)
    with pytest.raises(ExportError, match=r"logits differ by .* The adapter alone is in .*out"):
        train(config)
    assert (tmp_path / "out" / "adapter_config.json").is_file()
    assert not (tmp_path / "out" / "model.safetensors").exists()
