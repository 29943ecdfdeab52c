# SPDX-License-Identifier: Apache-2.0
"""Faster forms are tried on a shrunken twin: it is built, is small, and decides as the model itself does."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from oumi.core.errors import ConfigError
from oumi.core.models.acceleration.cpu_layers import fuse_layers
from oumi.core.models.acceleration.flat import Reference, make_flat, try_flat
from oumi.core.models.attention.interface import FLAT_EAGER, FLAT_SDPA
from oumi.core.models.lm_head import find_head, makes_logits
from oumi.core.models.tied_embedding import may_tie
from oumi.core.models.twin import NoTrialError, build_twin, trial_models
from tests.tiny import tiny_llama

TINY: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
TINY_GPT2 = {"vocab_size": 320, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14, "projection_dim": 32,
}  # fmt: skip
TINY_SETTINGS: dict[str, dict[str, Any]] = {
    "llama": TINY,
    "qwen3": TINY,
    "gemma2": {**TINY, "sliding_window": 8},
    "gemma3_text": {**TINY, "num_hidden_layers": 7, "sliding_window": 8},
    "mistral": {**TINY, "sliding_window": 8},
    "phi3": TINY,
    "mixtral": {**TINY, "num_local_experts": 4},
    "gpt_oss": {**TINY, "num_local_experts": 4},
    "gpt2": {**TINY_GPT2, "bos_token_id": 1, "eos_token_id": 2},
    "bloom": {"vocab_size": 320, "hidden_size": 64, "n_layer": 2, "n_head": 4},
    "falcon": {"vocab_size": 320, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    "cohere": TINY,
    "llava": {
        "text_config": {**TINY, "model_type": "llama"},
        "vision_config": {**VISION, "model_type": "clip_vision_model"},
    },
}  # fmt: skip
LAYERS = {"gemma2": 2, "gemma3_text": 6, "qwen3_next": 4, "deepseek_v3": 2, "qwen3_moe": 2}
"""How many layers it takes to have one of each kind."""


def build(model_type: str, settings: dict[str, Any], device: str = "cpu") -> Any:
    config = AutoConfig.for_model(model_type, **deepcopy(settings))
    kind = AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM
    with torch.device(device), torch.random.fork_rng(devices=[]):
        return kind.from_config(config)


@pytest.mark.parametrize("model_type", TINY_SETTINGS)
def test_the_twin_has_the_classes_of_the_model_and_is_small(model_type: str) -> None:
    model = build(model_type, {}, "meta")  # of the size that the family has by default
    twin = build_twin(model)
    assert {type(module) for module in twin.modules()} == {type(module) for module in model.modules()}
    assert sum(weight.numel() for weight in twin.parameters()) < 3_000_000
    assert {weight.device.type for weight in twin.parameters()} == {"cpu"}
    text = twin.config.get_text_config()
    assert text.num_hidden_layers <= LAYERS.get(model_type, 2)
    heads = text.num_attention_heads
    if (getattr(model.config.get_text_config(), "num_key_value_heads", None) or 1) > 1:
        assert heads >= text.num_key_value_heads >= 2


@pytest.mark.parametrize("model_type", LAYERS)
def test_the_twin_has_a_layer_of_each_kind(model_type: str) -> None:
    model = build(model_type, {}, "meta")
    twin = build_twin(model)
    assert twin.config.num_hidden_layers == LAYERS[model_type]
    assert set(getattr(twin.config, "layer_types", ())) == set(getattr(model.config, "layer_types", ()))


@pytest.mark.sample(6)
@pytest.mark.parametrize("model_type", TINY_SETTINGS)
def test_the_twin_decides_as_the_model_itself(model_type: str) -> None:
    model = build(model_type, TINY_SETTINGS[model_type])
    for attention in (FLAT_SDPA, FLAT_EAGER):
        decisions = []
        for tried in (model, *trial_models(model)):
            head = find_head(tried)
            assert head is not None
            decisions.append((makes_logits(head, tried), bool(try_flat(Reference(tried), attention, head))))
        assert len(set(decisions)) == 1
    # Within a list, modules are of no model of transformers, and are tried themselves.
    assert fuse_layers(torch.nn.ModuleList([deepcopy(model)])) == fuse_layers(model)


@pytest.mark.sample(6)
@pytest.mark.parametrize("model_type", TINY_SETTINGS)
def test_a_model_on_the_meta_device_gets_the_same_decisions(model_type: str) -> None:
    model, on_meta = (build(model_type, TINY_SETTINGS[model_type], device) for device in ("cpu", "meta"))
    assert decisions_of(on_meta) == decisions_of(model)


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[DeviceMesh]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def test_a_sharded_model_gets_the_same_decisions(mesh: DeviceMesh) -> None:
    model, sharded = (build("llama", TINY) for _ in range(2))
    for layer in sharded.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    assert decisions_of(sharded) == decisions_of(model)


def decisions_of(model: Any) -> dict[str, Any]:
    flat = make_flat(model, "sdpa")
    return {
        "is_flat": flat.is_flat,
        "attention": model.config.get_text_config()._attn_implementation,
        "has_full_head": flat.has_full_head,
        "swapped": fuse_layers(model),
        "may_tie": may_tie(model.get_input_embeddings(), model.get_output_embeddings()),
    }


def test_an_adapter_is_left_out_of_the_twin() -> None:
    adapted = get_peft_model(tiny_llama(), LoraConfig(target_modules=["q_proj", "down_proj"]))
    twin = build_twin(adapted)
    assert type(twin) is type(adapted.get_base_model())
    assert not any("lora" in name for name, _ in twin.named_parameters())
    assert make_flat(adapted, "sdpa").is_flat


def test_the_random_numbers_of_the_run_stay_as_they_are() -> None:
    model = tiny_llama()
    before = torch.get_rng_state()
    make_flat(model, "sdpa")
    fuse_layers(model)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_config_and_the_weights_of_the_model_stay_as_they_are() -> None:
    model = tiny_llama()
    config, weights = model.config.to_dict(), deepcopy(model.state_dict())
    build_twin(model)
    assert model.config.to_dict() == config
    assert all(torch.equal(weights[name], weight) for name, weight in model.state_dict().items())


def test_a_cap_a_cut_and_a_mask_show_on_the_twin() -> None:
    gemma = build_twin(build("gemma2", TINY_SETTINGS["gemma2"], "meta"))
    head = find_head(gemma)
    assert head is not None
    assert makes_logits(head, gemma)
    gemma.config.final_logit_softcapping *= 2
    assert not makes_logits(head, gemma)
    assert "mlps" in fuse_layers(build("llama", TINY, "meta"))
    assert "mlps" not in fuse_layers(build("deepseek_v4", {}, "meta")), "it cuts off large inner states"
    assert not make_flat(build("doge", {}, "meta"), "sdpa").is_flat, "its values decide on its mask"


def test_a_model_of_contradicting_sizes_is_tried_itself_if_its_weights_are_there() -> None:
    model = build("llama", {**TINY, "num_attention_heads": 6, "num_key_value_heads": 4, "hidden_size": 96})
    assert list(trial_models(model)) == [model]
    with pytest.raises(ConfigError, match="the forward pass fails"):
        make_flat(model, "sdpa")
    with pytest.raises(NoTrialError, match="6 heads are not a multiple of 4 key heads"):
        next(trial_models(model.to("meta")))


def test_a_model_that_cannot_be_tried_gets_its_plain_way_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    model = build("llama", {**TINY, "num_attention_heads": 6, "num_key_value_heads": 4, "hidden_size": 96}, "meta")
    logger = logging.getLogger("oumi")
    logger.addHandler(caplog.handler)
    try:
        language_model = make_flat(model, "sdpa")
    finally:
        logger.removeHandler(caplog.handler)
    assert not language_model.is_flat
    assert language_model.has_full_head
    (message,) = set(caplog.messages)
    assert message.startswith(
        "batches are padded: flat batches cannot be verified: the twin of llama cannot be built: 6 heads"
    )
