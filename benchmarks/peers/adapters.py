# SPDX-License-Identifier: Apache-2.0
"""Adapters of TRL's trainers, which begin with the numbers that Oumi draws. Imported by path."""

from __future__ import annotations

from typing import Any

import torch

_SEED = 42


def adapter_arguments(job: dict[str, Any], trainer_module: Any) -> dict[str, Any]:
    """Takes the adapter out of the job's options, and returns it as arguments of a trainer; none without an adapter.

    Args:
        job: The job, which may name `adapter`, arguments of LoraConfig, and `adapter_bits` of the base's weights.
        trainer_module: The module that calls `get_peft_model`.
    """
    settings, bits = job["options"].pop("adapter", None), job["options"].pop("adapter_bits", None)
    if bits is not None:
        from transformers import BitsAndBytesConfig

        quantized = BitsAndBytesConfig(
            load_in_4bit=bits == 4,
            load_in_8bit=bits == 8,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.float32,
        )
        job["options"]["model_init_kwargs"] = {"quantization_config": quantized, "dtype": "float32"}
    if settings is None:
        return {}
    from peft import LoraConfig

    wrap = trainer_module.get_peft_model

    def seeded(*arguments: Any, **named: Any) -> Any:
        torch.manual_seed(_SEED)
        return wrap(*arguments, **named)

    trainer_module.get_peft_model = seeded
    return {"peft_config": LoraConfig(**settings)}


def keep_wide(model: torch.nn.Module) -> None:
    """Makes adapters float32 again, which TRL casts to bfloat16 if the base is quantized."""
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
