# SPDX-License-Identifier: Apache-2.0
"""Adapters that begin with a part of the base weights: PiSSA (arXiv 2404.02948), OLoRA (2406.01775), LoftQ (2310.08659)

What the adapter A0, B0 begins with is taken out of the base weight W, so the model is W - s B0 A0 + s B A. It is saved
as an adapter of twice the rank on the unchanged base, [B, -B0] [A; A0], whose halves are the trained and the first one.
LoftQ begins with what quantization has rounded off, so there the base below is not changed, and the saved adapter is
one on the weights in full.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from oumi.core.errors import ConfigError
from oumi.core.models.quantization import is_quantized, weight_of

_FIRST = "first_weights"
"""Attribute of an adapted layer: the weights A0 and B0."""


def begins_with_base(model: Any) -> bool:
    """Returns True for a model whose adapter began with a part of the base weights."""
    return any(hasattr(module, _FIRST) for module in model.modules())


@torch.no_grad()
def take_from_base(adapted: Any, kind: str, full_weight: Callable[[str], torch.Tensor]) -> None:
    """Sets a new adapter to a part of the base weights, and takes it out of them.

    Args:
        adapted: A model with an adapter.
        kind: `pissa`, `pissa_niter_N`, `olora` or `loftq`, as PEFT names them.
        full_weight: Returns the weight of a module before it was quantized, by the path of the module.

    Raises:
        ConfigError: A layer is not linear, or smaller than the rank.
    """
    for path, layer in adapted_layers(adapted):
        base = layer.get_base_layer()
        check_rank(path, layer)
        if kind == "loftq":
            _set_to_low_rank(layer, full_weight(path) - weight_of(base, torch.float32))
            setattr(layer, _FIRST, _weights_of(layer))
            continue
        original = base.weight.data.clone()
        # Not by PEFT, which takes every weight for [o, i] in OLoRA, and none in float64 in PiSSA.
        weight_oi = original.T if layer.fan_in_fan_out else original
        if kind == "olora":
            _set_to_first_directions(layer, weight_oi)
        else:
            _, _, num_iterations = kind.partition("_niter_")
            _set_to_low_rank(layer, weight_oi, int(num_iterations) if num_iterations else None)
        setattr(layer, _FIRST, _weights_of(layer))
        base.weight.data = original - layer.get_delta_weight("default").to(original.dtype)


@torch.no_grad()
def restore_from(adapted: Any, checkpoint: Path) -> None:
    """Sets a new adapter to that of a checkpoint, and takes what it began with out of the base weights."""
    from peft import load_peft_weights

    saved = load_peft_weights(str(checkpoint), device="cpu")
    for path, layer in adapted_layers(adapted):
        base = layer.get_base_layer()
        halves = _halves(saved, path)
        _set(layer, halves[1])
        setattr(layer, _FIRST, _weights_of(layer))
        if not is_quantized(base):
            base.weight.data = base.weight.data - layer.get_delta_weight("default").to(base.weight.dtype)
    load_trained(adapted, checkpoint)


@torch.no_grad()
def load_trained(adapted: Any, checkpoint: Path) -> None:
    """Copies the trained weights of a checkpoint into the adapter of a model, in place."""
    from peft import load_peft_weights, set_peft_model_state_dict

    saved = load_peft_weights(str(checkpoint), device="cpu")
    layers = dict(adapted_layers(adapted)) if begins_with_base(adapted) else {}
    for path, layer in layers.items():
        _set(layer, _halves(saved, path)[0])
    others = {name: weight for name, weight in saved.items() if not layers or ".lora_" not in name}
    set_peft_model_state_dict(adapted, others)


def with_first_weights(adapted: Any) -> dict[str, torch.Tensor]:
    """Returns the weights of a model by name, with an adapter of twice the rank that fits the unchanged base."""
    weights = dict(adapted.state_dict())
    for path, layer in adapted_layers(adapted):
        prefix = f"base_model.model.{path}"
        a, b = _weights_of(layer)
        first_a, first_b = getattr(layer, _FIRST)
        weights[f"{prefix}.lora_A.default.weight"] = torch.cat([a, first_a.to(a)], dim=0)
        weights[f"{prefix}.lora_B.default.weight"] = torch.cat([b, -first_b.to(b)], dim=1)
    return weights


def doubled(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the content of `adapter_config.json` for an adapter of twice the rank with the same scale."""
    times = 2**0.5 if config.get("use_rslora") else 2
    return {
        **config,
        "r": 2 * config["r"],
        "lora_alpha": times * config["lora_alpha"],
        "init_lora_weights": True,
    }


def adapted_layers(adapted: Any) -> Iterator[tuple[str, Any]]:
    """Yields the path within the base model, and the module, of each layer with an adapter.

    Raises:
        ConfigError: A layer is not linear.
    """
    from peft.tuners.lora import LoraLayer

    for path, module in adapted.get_base_model().named_modules():
        if isinstance(module, LoraLayer):
            # PEFT puts the adapters of embeddings elsewhere, and a layer around the parameters of experts.
            is_linear = "default" in module.lora_A and not hasattr(module, "parameter_name")
            if not is_linear or getattr(module.lora_A["default"], "weight", None) is None:
                raise ConfigError(
                    f"peft.lora_init_weights: {path} is no linear layer, so it has no such initialization"
                )
            yield path, module


def check_rank(path: str, layer: Any) -> None:
    """Raises ConfigError if the adapter of a layer has a higher rank than the weight can have."""
    rank, least = layer.r["default"], min(layer.in_features, layer.out_features)
    if rank > least:
        raise ConfigError(
            f"peft.lora_r: got {rank}, but {path} has only {least} singular values; set it to that at most"
        )


def _set_to_low_rank(layer: Any, matrix_oi: torch.Tensor, num_iterations: int | None = None) -> None:
    """Sets an adapter to the nearest matrix of its rank; in a number of iterations to about it, which is faster."""
    rank, matrix_oi = layer.r["default"], _decomposable(matrix_oi)
    if num_iterations is None:
        u_oN, s_N, v_Ni = torch.linalg.svd(matrix_oi, full_matrices=False)
    else:
        u_oN, s_N, v_iN = torch.svd_lowrank(matrix_oi, rank, niter=num_iterations)
        v_Ni = v_iN.T
    roots_r = (s_N[:rank] / layer.scaling["default"]).sqrt()
    _set(layer, (roots_r[:, None] * v_Ni[:rank], u_oN[:, :rank] * roots_r))


def _set_to_first_directions(layer: Any, weight_oi: torch.Tensor) -> None:
    q_oN, r_Ni = torch.linalg.qr(_decomposable(weight_oi))
    rank = layer.r["default"]
    _set(layer, (r_Ni[:rank], q_oN[:, :rank]))


def _decomposable(matrix: torch.Tensor) -> torch.Tensor:
    """Returns a matrix in a dtype that torch decomposes."""
    return matrix if matrix.dtype == torch.float64 else matrix.float()


def _halves(saved: Mapping[str, torch.Tensor], path: str) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
    """Returns the trained weights A and B of a layer, and those that it began with."""
    a, b = (saved[f"base_model.model.{path}.lora_{name}.weight"] for name in "AB")
    rank = len(a) // 2
    return (a[:rank], b[:, :rank]), (a[rank:], -b[:, rank:])


def _weights_of(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return layer.lora_A["default"].weight.data.clone(), layer.lora_B["default"].weight.data.clone()


def _set(layer: Any, weights: tuple[torch.Tensor, torch.Tensor]) -> None:
    for module, weight in zip((layer.lora_A["default"], layer.lora_B["default"]), weights, strict=True):
        module.weight.data.copy_(weight)
