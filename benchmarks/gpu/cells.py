# SPDX-License-Identifier: Apache-2.0
"""The workload on a GPU: Llamas with random weights, and texts that fill their rows completely.

A text has as many tokens as a row, so that whichever way rows are packed, all arms train the same tokens.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

LENGTH = 4096
LEARNING_RATE = 1e-5
LORA = {"r": 16, "alpha": 32}
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
VOCABULARY = 128_256
FSDP_KEYS = ("sharding_strategy", "forward_prefetch", "cpu_offload")
"""Options of an arm that are keys of the section `fsdp`."""
_SEED = 20
DATA_SEED = 1


@dataclass(frozen=True)
class Shape:
    """The shape of a Llama whose heads have `head_size`."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    is_tied: bool

    @property
    def layer_products(self) -> int:
        """Returns the weights of all layers that are multiplied with."""
        heads = (2 * self.heads + 2 * self.kv_heads) * self.head_size
        return self.layers * self.hidden * (heads + 3 * self.intermediate)


SHAPES = {
    "llama-3.2-1b": Shape(2048, 16, 32, 8, 64, 8192, is_tied=True),
    "llama-3.1-8b": Shape(4096, 32, 32, 8, 128, 14336, is_tied=False),
}


@dataclass(frozen=True)
class Cell:
    """A comparison of all arms."""

    title: str
    shape: str
    rows: int
    """Per step."""
    has_lora: bool = False
    recomputes: bool = False
    """Activations are computed again in backward."""
    needs_gib: int = 0
    """Memory of the GPU, by estimate."""


CELLS = {
    "1b": Cell("1B, all weights", "llama-3.2-1b", rows=4, needs_gib=60),
    "8b_lora": Cell("8B, LoRA", "llama-3.1-8b", rows=2, has_lora=True, recomputes=True, needs_gib=40),
    "8b": Cell("8B, all weights", "llama-3.1-8b", rows=2, recomputes=True, needs_gib=100),
}


def flops_per_token(cell: Cell) -> float:
    """Returns the operations that a token needs, forward and backward; it sees half of its row on average.

    A frozen matrix needs no gradient of its own, so it counts for two products instead of three.
    """
    shape = SHAPES[cell.shape]
    products = 2 if cell.has_lora else 3
    weights = 2 * (shape.layer_products + shape.hidden * VOCABULARY)
    attention = 2 * shape.layers * shape.heads * shape.head_size * LENGTH
    return products * weights + 3 * attention


def write_model(folder: Path, shape: Shape) -> Path:
    """Writes a Llama with random weights in bfloat16, drawn on the GPU, unless it is there, and returns its folder."""
    done = folder / "done"
    if done.exists() and done.read_text() == repr(shape):
        return folder
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(_SEED)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_size,
        max_position_embeddings=131_072,
        tie_word_embeddings=shape.is_tied,
        rms_norm_eps=1e-5,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=1,
    )
    # On the GPU: the CPU would take minutes for 8 billion random numbers.
    with torch.device("cuda"):
        LlamaForCausalLM._from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    torch.cuda.empty_cache()
    write_tokenizer(folder)
    done.write_text(repr(shape))
    return folder


def write_tokenizer(folder: Path) -> None:
    """Writes a tokenizer that takes each word between spaces for a token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<end>", "<pad>", *(f"w{i}" for i in range(2, VOCABULARY))]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", pad_token="<pad>")
    tokenizer.model_max_length = LENGTH
    tokenizer.save_pretrained(folder)


def write_rows(path: Path, num_rows: int) -> Path:
    """Writes texts of random tokens, each of which fills a row with the end that is set behind it."""
    generator = random.Random(_SEED)
    with path.open("w") as file:
        for _ in range(num_rows):
            words = (f"w{generator.randrange(2, VOCABULARY)}" for _ in range(LENGTH - 1))
            file.write(json.dumps({"text": " ".join(words)}) + "\n")
    return path


def oumi_config(
    cell: Cell, model: Path, rows: Path, out: Path, num_steps: int, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the config of a run of this repository, with the optimizations in the options."""
    again, fsdp = options.get("recompute"), {key: options[key] for key in FSDP_KEYS if key in options}
    recomputes = cell.recomputes or options.get("recomputes", False)
    peft = {"lora_r": LORA["r"], "lora_alpha": LORA["alpha"], "lora_target_modules": TARGETS}
    return {
        "model": {
            "model_name": str(model),
            "model_max_length": LENGTH,
            "torch_dtype_str": "bfloat16",
            "enable_liger_kernel": options.get("liger", False),
        },
        "data": {"train": {"pack": True, "datasets": [{"dataset_name": "text", "dataset_path": str(rows)}]}},
        "training": {
            "trainer_type": "OUMI",
            "output_dir": str(out),
            "per_device_train_batch_size": cell.rows,
            "max_steps": num_steps,
            "learning_rate": LEARNING_RATE,
            "lr_scheduler_type": "constant",
            "optimizer": "adamw_torch_fused",
            "use_peft": cell.has_lora,
            "enable_gradient_checkpointing": recomputes,
            "gradient_checkpointing_kwargs": {"recompute_num_layers": again} if recomputes and again else {},
            "compile": options.get("compile", False),
            "fp8_recipe": options.get("fp8_recipe"),
            "data_seed": DATA_SEED,
            "save_steps": 0,
            "save_final_model": False,
            "enable_tensorboard": False,
        },
        **({"peft": peft} if cell.has_lora else {}),
        **({"fsdp": {"enable_fsdp": True, **fsdp}} if fsdp else {}),
    }


def trl_job(
    cell: Cell, model: Path, rows: Path, folder: Path, num_steps: int, options: dict[str, Any]
) -> dict[str, Any]:
    """Returns the job for the driver of TRL."""
    return {
        "model": str(model),
        "rows": str(rows),
        "out": str(folder / "out"),
        "result": str(folder / "result.json"),
        "steps": num_steps,
        "learning_rate": LEARNING_RATE,
        "length": LENGTH,
        "cell": asdict(cell),
        "lora": {**LORA, "targets": TARGETS} if cell.has_lora else None,
        "packages": ["torch", "transformers", "trl", "liger-kernel"],
        "options": options,
    }
