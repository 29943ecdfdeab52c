# SPDX-License-Identifier: Apache-2.0
"""Fused parts give the numbers and gradients of the parts that they stand for."""

from __future__ import annotations

from collections import Counter
from copy import deepcopy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, xLSTMConfig, xLSTMForCausalLM
from transformers.activations import ClippedGELUActivation, NewGELUActivation
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextRMSNormGated

from oumi.core.models.acceleration.cpu_layers import fuse_layers
from oumi.core.models.acceleration.cpu_ops import GELU, GELU_TANH, SILU, GatedMlp, Linear, RmsNorm, Rotate
from oumi.core.system.host import multiplies_twice_as_fast_by_onednn
from tests.tiny import tiny_llama

SMALL: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}
ALL = {"norms", "mlps", "rotations"}
PARTS = {
    "llama": ALL, "mistral": ALL, "qwen2": ALL, "qwen3": ALL, "gemma": ALL, "gemma2": ALL, "gemma3_text": ALL,
    "olmo2": ALL, "granite": ALL, "smollm3": ALL, "olmo": {"mlps", "rotations"}, "phi3": {"norms"},
    "cohere": {"mlps"}, "gpt_neox": set(), "gpt2": {"GELUs"},
}  # fmt: skip


@pytest.mark.parametrize(("model_type", "parts"), PARTS.items())
def test_a_model_with_fused_parts_has_the_same_loss_and_gradients(model_type: str, parts: set[str]) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **SMALL)).eval()
    for parameter in model.parameters():  # norms of ones would hide a wrong gradient
        parameter.data += 0.05 * torch.randn_like(parameter)
    fused = deepcopy(model)
    assert set(fuse_layers(fused)) >= parts
    actual, expected = _gradients(fused), _gradients(model)
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        error = (actual[name] - gradient).norm() / gradient.norm().clamp_min(1e-6)
        assert error < 2e-5, name


def _gradients(model: Any) -> dict[str, torch.Tensor]:
    tokens = torch.arange(3, 43)[None] * 3 % 128
    loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    return {"loss": loss.detach(), **{n: p.grad for n, p in model.named_parameters() if p.grad is not None}}


def test_parts_with_an_adapter_keep_their_numbers() -> None:
    adapted = get_peft_model(tiny_llama(), LoraConfig(target_modules=["gate_proj", "q_proj"]))
    fused = deepcopy(adapted)
    swapped = fuse_layers(fused)
    counts = {kind: count for kind, count in swapped.items() if kind != "products"}
    assert counts == {"norms": 5, "rotations": 2, "adapters": 4}
    actual, expected = _gradients(fused), _gradients(adapted)
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, rtol=1e-4, atol=1e-6)


def test_products_are_exchanged_where_the_other_library_is_much_faster_and_in_their_own_dtype_alone() -> None:
    layers = [torch.nn.Linear(size, 256) for size in (64, 256, 512)]
    large = torch.nn.ModuleList(layers)
    assert fuse_layers(large)["products"] == (2 if multiplies_twice_as_fast_by_onednn() else 0)
    assert fuse_layers(torch.nn.ModuleList([torch.nn.Linear(256, 256).bfloat16()]))["products"] == 0
    x = torch.randn(1, 3, 256)
    torch.testing.assert_close(layers[1](x), torch.nn.functional.linear(x, layers[1].weight, layers[1].bias))
    with torch.autocast("cpu", torch.bfloat16):
        assert layers[1](x).dtype == torch.bfloat16


def test_names_and_weights_stay_as_they_are() -> None:
    model = tiny_llama()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fuse_layers(model)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_the_modules_of_transformers_are_left_alone() -> None:
    fuse_layers(tiny_llama())
    plain = tiny_llama()
    assert "forward" not in vars(plain.model.layers[0].self_attn)
    assert plain.model.layers[0].self_attn.forward.__module__ == "transformers.models.llama.modeling_llama"


def test_parts_that_do_more_than_their_form_are_left_alone() -> None:
    assert fuse_layers(torch.nn.ModuleList([Qwen3NextRMSNormGated(16)])) == Counter(), "it takes a gate, too"
    others = [torch.nn.BatchNorm2d(16), torch.nn.LayerNorm(16), torch.nn.GELU(), ClippedGELUActivation(-10, 10)]
    assert fuse_layers(torch.nn.ModuleList(others)) == Counter()
    assert fuse_layers(torch.nn.ModuleList([NewGELUActivation(), torch.nn.RMSNorm(16, eps=1e-6)])).total() == 2


class ClampedMlp(LlamaMLP):
    """A gated MLP that differs from others only for inputs that no sample has."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x).clamp(max=1e9)) * self.up_proj(x))


class BranchingMlp(LlamaMLP):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if x.abs().max() < 1e9 else x


class ThresholdNorm(LlamaRMSNorm):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().forward(torch.where(hidden_states.abs() > 1e-12, hidden_states, 0.0))


def test_a_part_with_a_kink_outside_of_all_samples_is_left_alone() -> None:
    config = LlamaConfig(**{key: value for key, value in SMALL.items() if key != "head_dim"})
    assert fuse_layers(torch.nn.ModuleList([LlamaMLP(config), LlamaRMSNorm(16)])).total() == 2
    kinked = [ClampedMlp(config), BranchingMlp(config), ThresholdNorm(16)]
    assert fuse_layers(torch.nn.ModuleList(kinked)) == Counter()


class OuterEpsNorm(LlamaRMSNorm):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        root = hidden_states.pow(2).mean(-1, keepdim=True).sqrt()
        return self.weight * (hidden_states / (root + self.variance_epsilon))


class CappedNorm(LlamaRMSNorm):
    """Normalized values reach the root of the number of channels only where one channel is far above the others."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return 2e3 * torch.tanh(super().forward(hidden_states) / 2e3)


class CappedMlp(LlamaMLP):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = 1e5 * torch.tanh(self.gate_proj(x) / 1e5)
        return self.down_proj(self.act_fn(gate) * self.up_proj(x))


def test_a_smooth_part_that_differs_at_the_ends_of_the_range_is_left_alone() -> None:
    config = LlamaConfig(**{key: value for key, value in SMALL.items() if key != "head_dim"})
    for smooth in (OuterEpsNorm(256), OuterEpsNorm(256, eps=1e-12), CappedNorm(256), CappedMlp(config)):
        assert fuse_layers(torch.nn.ModuleList([smooth])) == Counter()


def test_a_norm_that_takes_another_shape_is_left_alone() -> None:
    config = xLSTMConfig(hidden_size=32, num_heads=2, num_hidden_layers=1, vocab_size=64)
    assert "norms" in fuse_layers(xLSTMForCausalLM(config))


@pytest.mark.parametrize("function", [RmsNorm, Linear, GatedMlp])
def test_a_model_may_change_the_result_of_a_form_in_place(function: Any) -> None:
    def gradients(in_place: bool) -> tuple[torch.Tensor, ...]:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(2, 3, 8, generator=generator, requires_grad=True)
        weights = [torch.randn(8, 8, generator=generator, requires_grad=True) for _ in range(3)]
        inputs: dict[Any, tuple[Any, ...]] = {
            RmsNorm: (weights[0][0], 1e-6, 0.0), Linear: (weights[0], None), GatedMlp: (*weights, SILU)
        }  # fmt: skip
        y = function.apply(x, *inputs[function])
        y = y.clamp_(-0.5, 0.5) if in_place else y.clamp(-0.5, 0.5)
        return torch.autograd.grad(y.square().sum(), [x, weights[0]])

    for actual, expected in zip(gradients(True), gradients(False), strict=True):
        assert torch.equal(actual, expected)


def test_an_mlp_with_dropout_keeps_it() -> None:
    config = AutoConfig.for_model("seed_oss", **SMALL, residual_dropout=0.5)
    model = AutoModelForCausalLM.from_config(config)
    random = torch.get_rng_state()
    assert "mlps" not in fuse_layers(model)
    assert torch.equal(torch.get_rng_state(), random)


def test_gradients_are_those_of_the_formula() -> None:
    torch.manual_seed(0)

    def real(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    for offset in (0.0, 1.0):
        assert torch.autograd.gradcheck(lambda x, w, o=offset: RmsNorm.apply(x, w, 1e-6, o), (real(2, 3, 8), real(8)))
    assert torch.autograd.gradcheck(Linear.apply, (real(2, 3, 4), real(6, 4), real(6)))
    assert torch.autograd.gradcheck(lambda x, w: Linear.apply(x, w, None), (real(3, 4), real(2, 4)))
    for activation in (SILU, GELU, GELU_TANH):
        weights = (real(6, 4), real(6, 4), real(4, 6))
        assert torch.autograd.gradcheck(lambda *a, f=activation: GatedMlp.apply(*a, f), (real(2, 3, 4), *weights))
    angles = torch.randn(1, 1, 3, 4, dtype=torch.float64).repeat(1, 1, 1, 2)
    assert torch.autograd.gradcheck(lambda x: Rotate.apply(x, angles.cos(), angles.sin()), (real(1, 2, 3, 8),))
