# SPDX-License-Identifier: Apache-2.0
"""LitGPT's `litgpt finetune_full`, on a checkpoint that is converted here, as its converter knows no such model.

Its JSON data joins a prompt, an answer and the end of text. Cut after `<|im_start|>assistant`, with a line break for
the end of text, they come to the very tokens of the chat template.
"""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from clock import Clock, keep_order, load_job


def main() -> None:
    """Trains the job's steps."""
    job = load_job()
    clock = Clock(job)
    folder = Path(job["out"])
    write_rows(job, folder / "rows")
    write_checkpoint(Path(job["model"]), folder / "model")
    clock.watch_optimizers()
    keep_order()
    from litgpt import prompts
    from litgpt.__main__ import main as litgpt

    prompts.prompt_styles["as_it_is"] = prompts.Default  # the only style that its table does not name
    sys.argv = ["litgpt", "finetune_full", str(folder / "model"), *arguments(job, folder)]
    litgpt()
    logged = next((folder / "out").rglob("metrics.csv"))
    with logged.open() as file:
        clock.losses = [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]]
    clock.write_result()


def arguments(job: dict[str, Any], folder: Path) -> list[str]:
    """Returns the options of the command."""
    options = {
        "out_dir": folder / "out",
        "precision": "32-true",
        "data": "JSON",
        "data.json_path": folder / "rows",
        "data.prompt_style": "as_it_is",
        "data.num_workers": 0,
        "train.micro_batch_size": job["batch"],
        "train.global_batch_size": job["batch"],
        "train.max_steps": job["steps"],
        "train.epochs": 2,  # more than the steps need, so that max_steps ends the run
        "train.lr_warmup_steps": 1,
        "train.max_seq_length": job["max_length"],
        "train.log_interval": 1,
        "eval.final_validation": "false",
        "optimizer": json.dumps(
            {"class_path": "torch.optim.AdamW", "init_args": {"lr": job["learning_rate"], "weight_decay": 0.0}}
        ),
    }
    return [text for key, value in options.items() for text in (f"--{key}", str(value))]


def write_rows(job: dict[str, Any], folder: Path) -> None:
    """Writes the rows as prompts and answers; the first one is the validation set, which LitGPT asks for."""
    folder.mkdir(parents=True)
    rows = []
    for line in Path(job["rows"]).read_text().splitlines():
        user, assistant = (message["content"] for message in json.loads(line)["messages"])
        prompt = f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant"
        rows.append({"instruction": prompt, "output": f"\n{assistant}<|im_end|>"})
    (folder / "train.json").write_text(json.dumps(rows))
    (folder / "val.json").write_text(json.dumps(rows[:1]))


def write_checkpoint(source: Path, folder: Path) -> None:
    """Writes a checkpoint of transformers as one of LitGPT: the head has weights of its own, here a copy."""
    import torch
    import yaml
    from safetensors.torch import load_file

    folder.mkdir(parents=True)
    shape = json.loads((source / "config.json").read_text())
    (folder / "model_config.yaml").write_text(yaml.safe_dump(model_config(shape)))
    shutil.copy(source / "tokenizer.json", folder)
    # The end of text that LitGPT appends to each answer: a line break, as in the chat template.
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "\n"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    theirs = load_file(source / "model.safetensors")
    ours = {"lm_head.weight": theirs["model.embed_tokens.weight"].clone()}
    ours["transformer.wte.weight"] = theirs["model.embed_tokens.weight"]
    ours["transformer.ln_f.weight"] = theirs["model.norm.weight"]
    parts = {
        "norm_1": "input_layernorm",
        "norm_2": "post_attention_layernorm",
        "attn.proj": "self_attn.o_proj",
        "mlp.fc_1": "mlp.gate_proj",
        "mlp.fc_2": "mlp.up_proj",
        "mlp.proj": "mlp.down_proj",
    }
    for i in range(shape["num_hidden_layers"]):
        old, new = f"model.layers.{i}", f"transformer.h.{i}"
        ours |= {f"{new}.{part}.weight": theirs[f"{old}.{name}.weight"] for part, name in parts.items()}
        ours[f"{new}.attn.qkv.weight"] = torch.cat([theirs[f"{old}.self_attn.{part}_proj.weight"] for part in "qkv"])
    torch.save(ours, folder / "lit_model.pth")


def model_config(shape: dict[str, Any]) -> dict[str, Any]:
    """Returns a Llama's shape in LitGPT's words."""
    return {
        "name": "random-llama",
        "block_size": shape["max_position_embeddings"],
        "vocab_size": shape["vocab_size"],
        "padded_vocab_size": shape["vocab_size"],
        "n_layer": shape["num_hidden_layers"],
        "n_head": shape["num_attention_heads"],
        "n_embd": shape["hidden_size"],
        "n_query_groups": shape["num_key_value_heads"],
        "rotary_percentage": 1.0,
        "parallel_residual": False,
        "bias": False,
        "norm_class_name": "RMSNorm",
        "norm_eps": shape["rms_norm_eps"],
        "mlp_class_name": "LLaMAMLP",
        "intermediate_size": shape["intermediate_size"],
    }


if __name__ == "__main__":
    main()
