# SPDX-License-Identifier: Apache-2.0
"""Frozen base weights in 4 or 8 bits through bitsandbytes (QLoRA, arXiv 2305.14314).

A layer makes its weight whole again for a product, and frees it: in the forward pass, and once more in backward. So at
most one weight of the model exists in full at a time.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch

from oumi.core.errors import ConfigError, did_you_mean
from oumi.core.plan.lora import QuantizationPlan
from oumi.core.system.matmul import backward_product, forward_product

_LAYERS = {"Linear4bit", "Linear8bitLt"}
"""Classes of bitsandbytes, by name: importing it takes seconds."""


def quantization_config(plan: QuantizationPlan, kept: list[str]) -> Any:
    """Returns the argument of transformers that quantizes a model while it is loaded, one weight at a time.

    Args:
        plan: The number formats.
        kept: Modules that are not quantized.
    """
    from transformers import BitsAndBytesConfig

    if plan.bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=plan.number_format,
        bnb_4bit_use_double_quant=plan.nested,
        bnb_4bit_quant_storage=plan.storage,
        bnb_4bit_compute_dtype=plan.compute_dtype,
        llm_int8_skip_modules=kept,
    )


def kept_modules(plan: QuantizationPlan, skeleton: Any) -> list[str]:
    """Returns the modules that stay in the dtype of the model: the head, and those that the plan skips.

    Args:
        plan: The number formats.
        skeleton: The model, without weights.

    Raises:
        ConfigError: The model has no module of a name that the plan skips, or has quantized weights already.
    """
    from transformers.quantizers.base import get_keys_to_not_convert
    from transformers.quantizers.quantizers_utils import should_convert_module

    paths = [name for name, _ in skeleton.named_modules() if name]
    for name in plan.skipped:
        if all(should_convert_module(path, [name]) for path in paths):
            hint = did_you_mean(name, {path.rpartition(".")[2] for path in paths} | set(paths))
            raise ConfigError(f"peft.llm_int8_skip_modules: the model has no module '{name}'{hint}")
    return [*get_keys_to_not_convert(skeleton), *plan.skipped]


def is_quantized(module: Any) -> bool:
    """Returns True for a linear layer whose weight bitsandbytes has quantized."""
    return type(module).__name__ in _LAYERS and type(module).__module__.startswith("bitsandbytes.")


def num_numbers(weight: torch.Tensor) -> int:
    """Returns how many numbers a weight has, also if several of them are packed into one element."""
    # bitsandbytes stores the original shape in `quant_state`.
    state = getattr(weight, "quant_state", None)
    return prod(weight.shape if state is None else state.shape)


def keep_layout(model: Any) -> None:
    """Keeps bitsandbytes from rearranging 4-bit weights for inference.

    On a CPU with AVX-512 it does so at the first evaluation, after which no gradient passes the layer.
    """
    for module in model.modules():
        if is_quantized(module):
            module.support_avx512bf16_for_cpu = False


def release_files(model: Any) -> None:
    """Copies the weights that are not quantized, so that the files of the model are no longer mapped.

    Otherwise all of their pages, which quantization has read, would count as memory of the process.
    """
    for weight in model.parameters():
        if weight.is_floating_point() and not hasattr(weight, "quant_state"):
            weight.data = weight.data.clone()


def quantized_product(module: Any, x: torch.Tensor) -> torch.Tensor:
    """Returns the output of a quantized layer, by the library that is the fastest for products of float32.

    With 8 bits, the layer of bitsandbytes would also round its input; here only the weight is rounded.
    """
    compute_dtype = getattr(module, "compute_dtype", None)
    if x.dtype != torch.float32 or compute_dtype not in (None, x.dtype) or torch.is_autocast_enabled(x.device.type):
        result: torch.Tensor = type(module).forward(module, x)
        return result
    result = QuantizedLinear.apply(x, module, module.bias)
    return result


class QuantizedLinear(torch.autograd.Function):
    """x W^T + b with a quantized W, of which nothing but its few bits is kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, module: Any, bias_o: torch.Tensor | None) -> torch.Tensor:
        ctx.module = module
        y_To = forward_product(x.reshape(-1, x.shape[-1]), weight_of(module, x.dtype))
        if bias_o is not None:
            y_To.add_(bias_o)
        # See `cpu_ops._as_rows_of`: a view of the result could not be changed in place.
        result: torch.Tensor = torch.ops.aten._unsafe_view(y_To, [*x.shape[:-1], y_To.shape[-1]])
        return result

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        needs_x, _, needs_bias = ctx.needs_input_grad
        weight_oi = weight_of(ctx.module, upstream[0].dtype)
        dy_To = upstream[0].reshape(-1, len(weight_oi))
        dx = backward_product(dy_To, weight_oi).view(*upstream[0].shape[:-1], -1) if needs_x else None
        return dx, None, dy_To.sum(0) if needs_bias else None


@torch.no_grad()
def weight_of(module: Any, dtype: torch.dtype) -> torch.Tensor:
    """Returns the weight [o, i] of a quantized layer in full."""
    from bitsandbytes.functional import dequantize_4bit

    weight = module.weight
    if type(module).__name__ == "Linear8bitLt":
        # The layer of bitsandbytes moves the scales to its state in its first forward pass.
        scales_o = module.state.SCB if weight.SCB is None else weight.SCB
        return weight.data.to(dtype).mul_(scales_o.to(dtype)[:, None] / 127)
    state = getattr(weight, "quant_state", None) or module.quant_state
    return dequantize_4bit(weight.data, state).to(dtype)
