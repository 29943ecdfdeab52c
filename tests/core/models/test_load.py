# SPDX-License-Identifier: Apache-2.0
"""Models, tokenizers and adapters are what the config says, or the reason why not is reported."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM

from oumi.core.configs import PeftParams
from oumi.core.data.tokenize.tokenizer import load_tokenizer
from oumi.core.errors import ConfigError, RefusedError
from oumi.core.inspect import gather_facts
from oumi.core.models.adapters import add_lora
from oumi.core.models.build import build_model
from oumi.core.models.load import load_model
from oumi.core.models.saving import ModelWriter
from oumi.core.plan.plan import make_plan
from oumi.core.train import train
from tests.runs import tiny_config
from tests.tiny import byte_tokenizer, save_tiny_model, tiny_llama

CPU = torch.device("cpu")


def load(folder: Path, **settings: Any) -> Any:
    return load_model(plan(folder, **settings).model, CPU)


def plan(folder: Path, peft: dict[str, Any] | None = None, **settings: Any) -> Any:
    config = tiny_config(folder, use_peft=peft is not None)
    for name, value in settings.items():
        setattr(config.model, name, value)
    config.peft = PeftParams(**(peft or {}))
    return make_plan(config, gather_facts(config))


def test_a_model_is_loaded_as_it_was_saved(tmp_path: Path) -> None:
    model, expected = load(tmp_path), tiny_llama().state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in model.state_dict().items())
    assert not model.training


def test_trained_weights_begin_at_cache_lines_and_frozen_ones_where_they_stand_in_their_file(tmp_path: Path) -> None:
    settings = {"freeze_layers": ["model.layers.0"]}
    mapped = dict(load(tmp_path, **settings).named_parameters())
    for is_trained in (True, False):
        assert any(weight.data_ptr() % 64 for weight in mapped.values() if weight.requires_grad is is_trained), (
            "says nothing"
        )
    for name, weight in build_model(plan(tmp_path, **settings), CPU).named_parameters():
        assert torch.equal(weight, mapped[name])
        assert weight.data_ptr() % 64 == (0 if weight.requires_grad else mapped[name].data_ptr() % 64), name


@pytest.mark.parametrize(("name", "dtype"), [("float32", torch.float32), ("float64", torch.float64)])
def test_the_dtype_is_that_of_the_plan(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    assert load(tmp_path, torch_dtype_str=name).dtype == dtype


def test_random_weights_follow_the_seed_not_the_files(tmp_path: Path) -> None:
    tiny_config(tmp_path)
    torch.manual_seed(5)
    first = load(tmp_path, load_pretrained_weights=False)
    torch.manual_seed(5)
    again = load(tmp_path, load_pretrained_weights=False)
    weights = [model.model.embed_tokens.weight for model in (first, again, load(tmp_path))]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_settings_of_the_model_can_be_changed_and_a_wrong_name_is_reported(tmp_path: Path) -> None:
    assert load(tmp_path, model_kwargs={"rms_norm_eps": 0.5}).config.rms_norm_eps == 0.5
    with pytest.raises(ConfigError, match=r"model_kwargs\.rms_norm_epsilon: .*did you mean 'rms_norm_eps'"):
        load(tmp_path, model_kwargs={"rms_norm_epsilon": 0.5})


def test_dropout_can_be_switched_off(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model", attention_dropout=0.5)
    assert load(tmp_path).config.attention_dropout == 0.5
    assert load(tmp_path, model_kwargs={"disable_dropout": True}).config.attention_dropout == 0.0


def test_named_modules_are_frozen_and_a_wrong_name_is_reported(tmp_path: Path) -> None:
    model = load(tmp_path, freeze_layers=["model.layers.0", "model.embed_tokens"])
    frozen = {name for name, weight in model.named_parameters() if not weight.requires_grad}
    assert "model.embed_tokens.weight" in frozen
    assert all(name.startswith(("model.layers.0.", "model.embed_tokens")) for name in frozen)
    with pytest.raises(ConfigError, match=r"no module 'model\.layer\.0', did you mean 'model\.layers\.0'"):
        load(tmp_path, freeze_layers=["model.layer.0"])


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    tiny_config(tmp_path)
    (tmp_path / "model" / "model.safetensors").unlink()
    torch.save(tiny_llama().state_dict(), tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(RefusedError, match="only pickled weights") as refused:
        load(tmp_path)
    assert refused.value.exit_code == 77


def test_code_of_a_model_is_refused_unless_it_is_trusted(tmp_path: Path) -> None:
    tiny_config(tmp_path)
    path = tmp_path / "model" / "config.json"
    code = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.Model"}}
    path.write_text(json.dumps({**json.loads(path.read_text()), **code}))
    (tmp_path / "model" / "mine.py").write_text("raise SystemExit('foreign code ran')\n")
    with pytest.raises(RefusedError, match=r"model\.trust_remote_code: true"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("named", "reserved", "expected"),
    [
        (None, None, "<|im_end|>"),
        (None, "<|finetune_right_pad_id|>", "<|finetune_right_pad_id|>"),
        ("<|endoftext|>", None, "<|endoftext|>"),
    ],
)
def test_padding_is_a_token_that_is_there(
    tmp_path: Path, named: str | None, reserved: str | None, expected: str
) -> None:
    tiny_config(tmp_path)
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = None
    if reserved:
        tokenizer.add_special_tokens({"additional_special_tokens": [reserved]})
    tokenizer.save_pretrained(tmp_path / "model")
    changed = tmp_path / "model" / "tokenizer_config.json"
    values = json.loads(changed.read_text())
    changed.write_text(json.dumps({key: value for key, value in values.items() if key != "pad_token"}))
    text = tmp_path / "model" / "tokenizer.json"
    if not reserved:
        text.write_text(text.read_text().replace("<|pad|>", "<|other|>"))
    loaded = load_tokenizer(plan(tmp_path, tokenizer_pad_token=named).model)
    assert loaded.pad_token == expected


def test_a_padding_token_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tokenizer_pad_token: .* has no '<mine>'"):
        load_tokenizer(plan(tmp_path, tokenizer_pad_token="<mine>").model)


@pytest.mark.parametrize(
    ("peft", "message"),
    [
        ({"lora_target_modules": ["q_porj"]}, r"lora_target_modules: .*'q_porj', did you mean 'q_proj'"),
        ({"lora_target_modules": ["q_proj", "v_porj"]}, r"lora_target_modules: .*'v_porj', did you mean 'v_proj'"),
        ({"lora_target_modules": r".*\.q_porj"}, r"lora_target_modules: '.*' matches no path .* is model.*\.q_proj"),
        ({"lora_target_modules": "v_proj"}, r"lora_target_modules: 'v_proj' is the end of paths, .*; write \[v_proj\]"),
        ({"lora_target_modules": "all_linear"}, r"'all_linear' matches no path .*, did you mean 'all-linear'"),
        ({"lora_target_modules": ".*self_attn"}, "lora_target_modules: they match a module of class LlamaAttention"),
        ({"lora_target_modules": ["self_attn"]}, "lora_target_modules: they match a module of class LlamaAttention"),
        ({"lora_exclude_modules": "layers.9.*"}, r"lora_exclude_modules: 'layers.9.*' matches no path"),
        ({"lora_modules_to_save": ["lm_haed"]}, r"lora_modules_to_save: .*'lm_haed', did you mean 'lm_head'"),
        ({"lora_target_parameters": ["q_proj.wieght"]}, r"lora_target_parameters: .*'q_proj.wieght'"),
    ],
)
def test_a_name_of_lora_that_the_model_does_not_have_is_reported(
    tmp_path: Path, peft: dict[str, Any], message: str
) -> None:
    planned = plan(tmp_path, peft={"lora_target_modules": ["q_proj"], **peft})
    with pytest.raises(ConfigError, match=message):
        add_lora(load_model(planned.model, CPU), planned.lora, planned.model.name)


@pytest.mark.parametrize("mode", ["merged", "adapter_and_base_model"])
def test_a_model_of_random_weights_below_an_adapter_is_saved_whole(tmp_path: Path, mode: str) -> None:
    config = tiny_config(tmp_path, use_peft=True, max_steps=3)
    config.model.load_pretrained_weights = False
    with pytest.raises(ConfigError, match=r"peft_save_mode: ADAPTER_ONLY would lose the random base weights"):
        train(config)
    config.peft.peft_save_mode = mode
    result = train(config)
    out = tmp_path / "out"
    if mode == "merged":
        trained = AutoModelForCausalLM.from_pretrained(out)
    else:
        trained = AutoPeftModelForCausalLM.from_pretrained(out)
    tokens = torch.arange(4, 40)[None]
    loss = trained(tokens, labels=tokens).loss
    assert torch.isfinite(loss)
    planned = json.loads((out / "plan.json").read_text())["disk"]["final_bytes"]
    saved = sum(path.stat().st_size for path in out.rglob("*.safetensors"))
    assert planned == pytest.approx(saved, rel=0.05), result


def test_an_adapter_that_is_trained_further_keeps_its_own_shape(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, use_peft=True, max_steps=1, output_dir=str(tmp_path / "first"))
    train(config)
    again = tiny_config(tmp_path, use_peft=True, max_steps=1)
    again.model.adapter_model = str(tmp_path / "first")
    again.peft.lora_r = 64
    with pytest.raises(ConfigError, match=r"peft\.lora_r: the adapter of model\.adapter_model has its own"):
        train(again)


@pytest.mark.parametrize(("excluded", "num_adapted"), [(None, 2), (["model.layers.0.*"], 1)])
def test_lora_leaves_out_what_is_excluded(tmp_path: Path, excluded: list[str] | None, num_adapted: int) -> None:
    planned = plan(tmp_path, peft={"lora_target_modules": ["q_proj"], "lora_exclude_modules": excluded})
    model = add_lora(load_model(planned.model, CPU), planned.lora, planned.model.name)
    assert sum("lora_A" in name for name, _ in model.named_parameters()) == num_adapted


def test_an_adapter_says_which_model_it_belongs_to(tmp_path: Path) -> None:
    planned = plan(tmp_path, peft={"lora_target_modules": ["q_proj", "v_proj"], "lora_r": 3})
    adapted = add_lora(load_model(planned.model, CPU), planned.lora, planned.model.name)
    ModelWriter(adapted, planned.model).write(tmp_path / "adapter")
    saved = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == str(tmp_path / "model")
    assert saved["r"] == 3
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors",
    }  # fmt: skip


BROKEN: dict[str, tuple[str, bytes, str]] = {
    "config that is no JSON": ("config.json", b"{", r"config\.json: not valid JSON"),
    "config that is a list": ("config.json", b"[]", r"config\.json: expected a JSON object"),
    "config without a kind": ("config.json", b"{}", r"model .*Unrecognized model"),
    "config of an unknown kind": ("config.json", b'{"model_type": "foo"}', r"model .*does not recognize"),
    "truncated weights": ("model.safetensors", b"\x10", r"model\.safetensors: .* truncated"),
    "weights that are none": ("model.safetensors", b"\xff" * 99, r"model\.safetensors: not a safetensors file"),
    "tokenizer that is no JSON": ("tokenizer.json", b"{", r"tokenizer .*: Expecting property name"),
    "settings of a tokenizer that are no JSON": ("tokenizer_config.json", b"{", r"tokenizer_config\.json: not valid"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_of_a_model_is_reported(tmp_path: Path, name: str) -> None:
    file, content, message = BROKEN[name]
    config = tiny_config(tmp_path)
    (tmp_path / "model" / file).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        train(config)


def test_weights_that_were_cut_are_reported_by_their_size(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    path = tmp_path / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ConfigError, match=r"model\.safetensors: .* truncated"):
        train(config)


def test_a_directory_without_a_model_or_a_tokenizer_is_reported(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    for file in (tmp_path / "model").glob("*token*"):
        file.unlink()
    with pytest.raises(ConfigError, match=r"model\.tokenizer_name: .* contains no tokenizer"):
        train(config)
    (tmp_path / "model" / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"contains no config\.json, so it is not a model"):
        train(config)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model_kwargs", {"hidden_size": "x"}, r"model_kwargs\.hidden_size: .* expected int, got str"),
        ("model_kwargs", {"dtype": "float16"}, r"model_kwargs\.dtype: set model\.torch_dtype_str"),
        (
            "model_kwargs",
            {"vocab_size": 10},
            r"embed_tokens\.weight has shape \(260, 64\), expected \(10, 64",
        ),
        ("model_kwargs", {"num_hidden_layers": 4}, r"model\.layers\.2\.\S+ is missing; .* and 15 more"),
        ("attn_implementation", "flash_attn_2", r"unknown attention 'flash_attn_2', did you mean 'flash_attention_2'"),
        (
            "attn_implementation",
            "flash_attention_2",
            r"flash_attention_2 trains on a GPU only|FlashAttention2 doesn't seem to be installed",
        ),
        ("adapter_model", "/nowhere/x", r"adapter /nowhere/x: no such directory"),
    ],
)
@pytest.mark.parametrize("trainer", ["OUMI", "HF"])
def test_a_model_that_cannot_be_made_is_reported(
    tmp_path: Path, trainer: str, key: str, value: Any, message: str
) -> None:
    config = tiny_config(tmp_path, trainer_type=trainer)
    setattr(config.model, key, value)
    with pytest.raises(ConfigError, match=message):
        train(config)


def test_a_model_that_cannot_compute_is_reported(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    config.model.load_pretrained_weights = False
    config.model.model_kwargs = {"num_attention_heads": 5}
    with pytest.raises(ConfigError, match="the forward pass fails: Number of heads"):
        train(config)


def test_weights_without_a_place_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("oumi").addHandler(caplog.handler)
    try:
        assert load(tmp_path, model_kwargs={"num_hidden_layers": 1}).config.num_hidden_layers == 1
    finally:
        logging.getLogger("oumi").removeHandler(caplog.handler)
    assert "weights that the model does not use: model.layers.1." in caplog.text
