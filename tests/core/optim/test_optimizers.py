# SPDX-License-Identifier: Apache-2.0
"""An optimizer by its name moves weights as the one of torch does, and decays matrices alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import Embedding, Linear
from transformers import AutoConfig, AutoModelForCausalLM

from oumi.core.errors import ConfigError
from oumi.core.optim.optimizers import OPTIMIZERS, build_optimizer, decayed_names
from oumi.core.plan import choices
from oumi.core.plan.disk import state_bytes
from oumi.core.plan.parts import OptimizerPlan

RATE, DECAY, BETAS, EPSILON, MOMENTUM = 0.01, 0.1, (0.8, 0.95), 1e-6, 0.7


def plan(name: str) -> OptimizerPlan:
    return OptimizerPlan(name, RATE, DECAY, BETAS, EPSILON, MOMENTUM, None)


def layer() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Linear(4, 3)


def moved(module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Returns the weights after three steps on the same numbers."""
    torch.manual_seed(1)
    for _ in range(3):
        module(torch.randn(5, 4)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [weight.detach() for weight in module.parameters()]


def groups(module: torch.nn.Module) -> list[dict[str, Any]]:
    matrix, vector = module.parameters()
    return [{"params": [matrix], "weight_decay": DECAY}, {"params": [vector], "weight_decay": 0.0}]


def adafactor(parameters: Any) -> torch.optim.Optimizer:
    from transformers.optimization import Adafactor

    return Adafactor(parameters, lr=RATE, relative_step=False, scale_parameter=False, warmup_init=False)


REFERENCES: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adam": lambda parameters: torch.optim.Adam(parameters, RATE, BETAS, EPSILON),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, RATE, BETAS, EPSILON),
    "adamw_torch": lambda parameters: torch.optim.AdamW(parameters, RATE, BETAS, EPSILON),
    "adamw_torch_fused": lambda parameters: torch.optim.AdamW(parameters, RATE, BETAS, EPSILON),
    "sgd": lambda parameters: torch.optim.SGD(parameters, RATE, MOMENTUM),
    "adafactor": adafactor,
}


@pytest.mark.parametrize("name", REFERENCES)
def test_an_optimizer_moves_weights_as_its_reference(name: str) -> None:
    ours, theirs = layer(), layer()
    actual = moved(ours, build_optimizer(ours, plan(name)))
    expected = moved(theirs, REFERENCES[name](groups(theirs)))
    for value, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(value, other)


@pytest.mark.narrow
@pytest.mark.parametrize(
    ("name", "tolerance"),
    [("adamw_8bit", 0.05), ("paged_adamw_8bit", 0.05), ("paged_adamw", 1e-5), ("paged_adamw_32bit", 1e-5)],
)
def test_8_bit_and_paged_optimizers_move_weights_as_adamw_does(name: str, tolerance: float) -> None:
    torch.manual_seed(0)
    ours = torch.nn.Linear(128, 64)  # below 4,096 weights bitsandbytes keeps 32 bits
    theirs = torch.nn.Linear(128, 64)
    theirs.load_state_dict(ours.state_dict())
    before = ours.weight.detach().clone()
    for module, optimizer in (
        (ours, build_optimizer(ours, plan(name))),
        (theirs, REFERENCES["adamw"](groups(theirs))),
    ):
        torch.manual_seed(1)
        for _ in range(10):
            module(torch.randn(32, 128)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert (ours.weight - theirs.weight).norm() < tolerance * (theirs.weight - before).norm()
    torch.testing.assert_close(ours.bias, theirs.bias, atol=1e-3, rtol=0)


@pytest.mark.narrow
@pytest.mark.parametrize("name", ["adamw_8bit", "paged_adamw_32bit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_of_8_bits_are_as_large_as_the_plan_counts(name: str, dtype: torch.dtype) -> None:
    module = torch.nn.Linear(512, 512, bias=False).to(dtype)
    optimizer = build_optimizer(module, plan(name))
    module(torch.randn(2, 512, dtype=dtype)).sum().backward()
    optimizer.step()
    own = {
        key: value for key, value in optimizer.state[module.weight].items() if "qmap" not in key
    }  # all weights share it
    actual = sum(value.nbytes for value in own.values() if torch.is_tensor(value))
    assert actual == pytest.approx(state_bytes(plan(name), module.weight.nbytes, dtype.itemsize), rel=0.01)


SMALL: dict[str, Any] = {
    "vocab_size": 128, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "num_local_experts": 4, "num_experts_per_tok": 2, "use_qk_norm": True,
    "state_size": 4, "mlp_bias": True,
}  # fmt: skip


@pytest.mark.parametrize(
    ("model_type", "scales"),
    {
        "llama": {"input_layernorm.weight", "mlp.gate_proj.bias"},
        "gpt_oss": {"gate_up_proj_bias", "down_proj_bias", "router.bias", "sinks"},
        "cohere": {"q_norm.weight", "k_norm.weight"},
        "mamba": {"A_log", "mixer.D", "dt_proj.bias", "conv1d.bias"},
        "rwkv": {"time_decay", "time_mix_key", "ln1.weight"},
        "recurrent_gemma": {"input_gate_bias", "recurrent_param"},
    }.items(),
)
def test_decay_is_for_matrices_whatever_the_dimensions_of_the_rest(model_type: str, scales: set[str]) -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **SMALL))
    decayed = decayed_names(model)
    others = {name for name, _ in model.named_parameters()} - decayed
    for scale in scales:
        assert any(name.endswith(scale) for name in others), scale
        assert not any(name.endswith(scale) for name in decayed), scale
    matrices = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, (Linear, Embedding))}
    assert matrices & {name for name, _ in model.named_parameters()} <= decayed
    groups = build_optimizer(model, plan("adamw")).param_groups
    numels = [sum(weight.numel() for weight in group["params"]) for group in groups]
    assert [group["weight_decay"] for group in groups] == [DECAY, 0.0]
    assert sum(numels) == sum(weight.numel() for weight in model.parameters())


def test_every_name_that_a_config_may_choose_is_there() -> None:
    assert set(OPTIMIZERS) == set(choices.OPTIMIZERS)
    assert REFERENCES.keys() | {"adamw_8bit", "paged_adamw_8bit", "paged_adamw", "paged_adamw_32bit"} == set(OPTIMIZERS)


def test_a_model_of_which_nothing_moves_is_reported() -> None:
    frozen = layer().requires_grad_(False)
    with pytest.raises(ConfigError, match="no weight is trained: everything is frozen"):
        build_optimizer(frozen, plan("sgd"))
