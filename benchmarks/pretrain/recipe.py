# SPDX-License-Identifier: Apache-2.0
"""The workload: nanoGPT's setting for a CPU, and the files for Oumi to train the same."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers import Peer

TRAINED_SHARE = 0.9
"""Of the text, from its beginning; the rest is held out."""
_DRIVER = "nano_gpt.py"
ARMS = {
    "oumi": Peer(
        "Oumi (this repository), OUMI",
        None,
        None,
        note="transformers' GPT-2, whose biases nanoGPT leaves out (1 % more weights); rows of the text end to end, "
        "one token longer than a window, as the last one of a row is only a target; its calibration of the machine, "
        "once a machine, is part of its start-up here and sets its peak memory",
    ),
    "nanogpt": Peer(
        "nanoGPT's recipe",
        _DRIVER,
        None,
        note="nanoGPT is no package, so its recipe is reimplemented as a plain PyTorch loop, in benchmarks/peers/"
        f"{_DRIVER}; compile off, as in its setting for a CPU",
    ),
    "nanogpt_fused": Peer(
        "nanoGPT's recipe, fused AdamW",
        _DRIVER,
        None,
        {"fused": True},
        note="nanoGPT uses fused AdamW on a GPU only",
    ),
}


@dataclass(frozen=True)
class Recipe:
    """The model, its optimizer and its schedule."""

    num_layers: int = 4
    num_heads: int = 4
    width: int = 128
    block: int = 64
    """Tokens that a window predicts."""
    batch: int = 12
    num_steps: int = 2000
    warmup_steps: int = 100
    learning_rate: float = 1e-3
    min_learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0

    @property
    def targets_per_step(self) -> int:
        """Returns how many tokens a step predicts."""
        return self.block * self.batch


@dataclass(frozen=True)
class Task:
    """What every run of a comparison shares."""

    recipe: Recipe
    folder: Path
    save_every: int
    letters: str
    """The vocabulary, sorted."""
    num_threads: int

    @property
    def trained(self) -> Path:
        """Returns the file of the text that is trained."""
        return self.folder / "train.txt"

    @property
    def model(self) -> Path:
        """Returns the folder of the model's shape and its tokenizer."""
        return self.folder / "model"

    @property
    def run_folder(self) -> Path:
        """Returns where a run writes; emptied before each."""
        return self.folder / "run"


def make_task(folder: Path, text: str, recipe: Recipe, save_every: int, num_threads: int) -> Task:
    """Writes the files of a comparison, and returns it."""
    task = Task(recipe, folder, save_every, "".join(sorted(set(text))), num_threads)
    folder.mkdir(parents=True, exist_ok=True)
    task.trained.write_text(split(text)[0], encoding="utf-8")
    write_model(task.model, task.letters, recipe)
    return task


def split(text: str) -> tuple[str, str]:
    """Returns the training text and the held-out text."""
    end = int(TRAINED_SHARE * len(text))
    return text[:end], text[end:]


def write_model(folder: Path, letters: str, recipe: Recipe) -> None:
    """Writes a tokenizer of single characters and the shape of a GPT-2."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    inner.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=recipe.block + 1).save_pretrained(folder)
    gpt2_config(len(letters), recipe).save_pretrained(folder)


def gpt2_config(num_tokens: int, recipe: Recipe) -> Any:
    """Returns the recipe's shape as a config of transformers."""
    from transformers import GPT2Config

    return GPT2Config(
        architectures=["GPT2LMHeadModel"],
        vocab_size=num_tokens,
        n_positions=recipe.block + 1,
        n_embd=recipe.width,
        n_layer=recipe.num_layers,
        n_head=recipe.num_heads,
        activation_function="gelu",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,  # its default, 50256, is outside the vocabulary of characters
        eos_token_id=None,
    )


def oumi_config(task: Task, seed: int) -> dict[str, Any]:
    """Returns the config of a run of this repository."""
    recipe = task.recipe
    # One token more than nanoGPT's window, as the last token of a row is only a target.
    rows = {"seq_length": recipe.block + 1, "append_concat_token": False, "add_special_tokens": False}
    data = {"dataset_name": "text", "dataset_path": str(task.trained), "dataset_kwargs": rows}
    model = {"model_name": str(task.model), "load_pretrained_weights": False, "torch_dtype_str": "float32"}
    return {
        "model": {**model, "model_max_length": recipe.block + 1},
        "data": {"train": {"datasets": [data]}},
        "training": {
            "trainer_type": "OUMI",
            "output_dir": str(task.run_folder / "out"),
            "per_device_train_batch_size": recipe.batch,
            "max_steps": recipe.num_steps,
            "learning_rate": recipe.learning_rate,
            "lr_scheduler_type": "cosine_with_min_lr",
            "lr_scheduler_kwargs": {"min_lr": recipe.min_learning_rate},
            "warmup_steps": recipe.warmup_steps,
            "adam_beta1": recipe.betas[0],
            "adam_beta2": recipe.betas[1],
            "weight_decay": recipe.weight_decay,
            "max_grad_norm": recipe.max_grad_norm,
            "seed": seed,
            "data_seed": seed,
            "save_steps": task.save_every,
            "save_final_model": False,
            "enable_tensorboard": False,
        },
    }


def write_job(task: Task, arm: Peer, seed: int) -> Path:
    """Writes the job of a driver, or the config of a run of this repository, and returns the path."""
    path = task.run_folder / "job.json"
    if arm.driver is None:
        path.write_text(json.dumps(oumi_config(task, seed)))
        return path
    job = {
        "text": str(task.trained),
        "letters": task.letters,
        "recipe": asdict(task.recipe),
        "seed": seed,
        "save_every": task.save_every,
        "options": dict(arm.options),
        "out": str(task.run_folder / "out"),
        "result": str(task.run_folder / "result.json"),
    }
    path.write_text(json.dumps(job))
    return path
