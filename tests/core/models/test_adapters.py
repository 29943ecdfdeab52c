# SPDX-License-Identifier: Apache-2.0
"""Which modules of a model get an adapter, and what is said of those that get none."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from oumi.core.errors import ConfigError
from oumi.core.inspect import gather_facts
from oumi.core.models.adapters import add_lora, saved_size
from oumi.core.models.build import build_model
from oumi.core.plan.division import adapted_modules
from oumi.core.plan.lora import LoraPlan
from oumi.core.plan.plan import make_plan
from tests.runs import tiny_config

SMALL: dict[str, Any] = {
    "vocab_size": 128, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "num_local_experts": 4, "num_experts": 4,
    "num_experts_per_tok": 1, "moe_intermediate_size": 16, "intermediate_size_mlp": 48, "n_routed_experts": 4,
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    logger = logging.getLogger("oumi")
    logger.addHandler(caplog.handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    yield caplog
    logger.setLevel(level)
    logger.removeHandler(caplog.handler)


def adapted(model_type: str, targets: str | list[str] | None, **settings: Any) -> Any:
    without = {"head_dim"} if model_type == "falcon" else set()  # which computes it
    config = AutoConfig.for_model(model_type, **{key: SMALL[key] for key in SMALL.keys() - without})
    model = AutoModelForCausalLM.from_config(config)
    others: dict[str, Any] = {"modules_to_save": None, "target_parameters": None, "exclude_modules": None, **settings}
    return add_lora(model, LoraPlan({"target_modules": targets, "r": 2, **others}, "ADAPTER_ONLY"), "base")


def places(model: Any) -> set[str]:
    names = (name for name, weight in model.named_parameters() if weight.requires_grad)
    return {name.partition(".lora_")[0].removeprefix("base_model.model.") for name in names}


@pytest.mark.parametrize(
    ("model_type", "targets", "expected"),
    [
        ("lfm2", None, r"^peft\.lora_target_modules: PEFT has no default for lfm2; .*\[all-linear\]$"),
        ("mamba", "all-linear", r"'out_proj' is incompatible.*name it in peft\.lora_exclude_modules"),
    ],
)
def test_what_peft_refuses_is_told_in_the_keys_of_the_config(model_type: str, targets: Any, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        adapted(model_type, targets)


@pytest.mark.parametrize("excluded", [None, r".*\.o_proj"])
def test_a_router_that_is_linear_by_name_only_gets_no_adapter(excluded: str | None) -> None:
    model = adapted("llama4_text", "all-linear", exclude_modules=excluded)
    tokens = torch.arange(3, 20)[None]
    model(input_ids=tokens, labels=tokens).loss.backward()
    assert not any("router" in place for place in places(model))
    assert any("q_proj" in place for place in places(model))
    assert any("o_proj" in place for place in places(model)) is (excluded is None)


def test_a_linear_layer_with_a_forward_of_its_own_keeps_its_adapter() -> None:
    assert any("query_key_value" in place for place in places(adapted("falcon", "all-linear")))


@pytest.mark.parametrize(
    ("model_type", "names"), [("mixtral", ["w1", "w2", "w3"]), ("qwen3_moe", ["gate_proj", "up_proj", "down_proj"])]
)
def test_the_former_names_of_experts_mean_their_stacked_weights(
    model_type: str, names: list[str], log: pytest.LogCaptureFixture
) -> None:
    assert all(".experts" in place for place in places(adapted(model_type, names)))
    assert not [message for message in log.messages if "experts are frozen" in message]
    with pytest.raises(ConfigError, match="has no 'w9'"):
        adapted(model_type, [*names, "w9"])
    with pytest.raises(ConfigError, match="without also targeting"):
        adapted(model_type, names[:1])


def test_layers_that_share_the_name_of_experts_are_told(log: pytest.LogCaptureFixture) -> None:
    adapted("deepseek_v3", ["gate_proj", "up_proj", "down_proj"])
    assert [message for message in log.messages if "not model.layers.0.mlp.gate_proj" in message]


@pytest.mark.parametrize("model_type", ["qwen3_moe", "gpt_oss"])
@pytest.mark.parametrize(
    ("settings", "frozen"),
    [
        ({}, ["gate_up_proj", "down_proj"]),
        ({"target_parameters": ["experts.gate_up_proj"]}, ["down_proj"]),
        ({"target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}, []),
        ({"modules_to_save": ["experts"]}, []),
    ],
)
def test_the_share_of_frozen_experts_is_told(
    model_type: str, settings: dict[str, Any], frozen: list[str], log: pytest.LogCaptureFixture
) -> None:
    model = adapted(model_type, ["q_proj"], **settings)
    sizes = {name: weight.numel() for name, weight in model.named_parameters() if "original_module" not in name}
    experts = sum(size for name, size in sizes.items() if ".experts." in name and name.endswith(tuple(frozen)))
    messages = {message for message in log.messages if "experts are frozen" in message}
    assert len(messages) == bool(frozen)
    assert all(f": {100 * experts / sum(sizes.values()):.0f} % of the weights" in message for message in messages)


def test_frozen_experts_of_an_adapter_that_is_trained_further_are_told(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    config = tiny_config(tmp_path, use_peft=True, max_steps=1)
    config.peft.lora_target_modules = ["q_proj"]
    routed = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3_moe", **{**SMALL, "vocab_size": 260}))
    routed.save_pretrained(tmp_path / "model")
    plan = make_plan(config, gather_facts(config))
    build_model(plan, torch.device("cpu")).save_pretrained(tmp_path / "adapter")
    log.clear()
    build_model(plan, torch.device("cpu"), checkpoint=tmp_path / "adapter")
    assert [message for message in log.messages if "experts are frozen" in message]


@pytest.mark.parametrize("resumed", [False, True])
def test_what_is_frozen_stays_so_with_an_adapter(tmp_path: Path, resumed: bool) -> None:
    config = tiny_config(tmp_path, use_peft=True)
    config.model.freeze_layers = ["model.layers.0"]
    plan = make_plan(config, gather_facts(config))
    model = build_model(plan, torch.device("cpu"))
    if resumed:
        model.save_pretrained(tmp_path / "adapter")
        model = build_model(plan, torch.device("cpu"), checkpoint=tmp_path / "adapter")
    assert places(model)
    assert all("layers.1." in place for place in places(model))


@pytest.mark.parametrize(
    ("targets", "excluded"),
    [
        (["all-linear"], [".*mlp.*"]),
        ("All-Linear", ".*mlp.*"),
        (["embed_tokens"], None),
        (r"model\.layers\.1\..*\.(q|v)_proj", None),
        ("model.layers.*_proj", [r".*\.0\..*", "(?i).*GATE_proj"]),
    ],
)
@pytest.mark.parametrize("frozen", [[], ["model.layers.0", "model.*.v_proj"]])
def test_the_plan_counts_the_weights_that_are_adapted(
    tmp_path: Path, targets: Any, excluded: Any, frozen: list[str]
) -> None:
    config = tiny_config(tmp_path, use_peft=True)
    config.model.freeze_layers = frozen
    config.peft.lora_target_modules, config.peft.lora_exclude_modules = targets, excluded
    plan = make_plan(config, gather_facts(config))
    model = build_model(plan, torch.device("cpu"))
    weights = dict(model.named_parameters())
    adapter = {name: weight.numel() for name, weight in weights.items() if ".lora_" in name}
    trained = sum(size for name, size in adapter.items() if weights[name].requires_grad)
    adapted = sum(
        weight.numel()
        for name, weight in weights.items()
        if ".base_layer." in name
        and name.removeprefix("base_model.model.").partition(".base_layer.")[0] in places(model)
    )
    total = sum(weight.numel() for weight in weights.values()) - sum(adapter.values())
    (note,) = [note for note in plan.notes if note.startswith("adapter:")]
    assert note == (
        f"adapter: layers with {adapted / total:.0%} of the weights are adapted, "
        f"by {trained / total:.2%} as many trained weights"
    )
    assert plan.disk.final_bytes == 4 * sum(adapter.values())
    size = saved_size(model)
    assert (size.num_bytes, size.trained_bytes) == (plan.disk.final_bytes, 4 * trained)


def test_a_pattern_adapts_the_modules_whose_paths_it_matches(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, use_peft=True)
    config.peft.lora_target_modules = r"model\.layers\.1\..*\.(q|v)_proj"
    plan = make_plan(config, gather_facts(config))
    model = build_model(plan, torch.device("cpu"))
    assert places(model) == {"model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj"}
    assert plan.shape is not None
    assert plan.lora is not None
    assert adapted_modules(plan.shape, plan.lora) == ("q_proj", "v_proj")
