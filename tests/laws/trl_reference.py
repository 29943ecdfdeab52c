# SPDX-License-Identifier: Apache-2.0
"""One step of TRL's preference trainers on a batch of ours, for the reference law of preferences."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from oumi.core.batch import Batch
from tests.tiny import byte_tokenizer

Measured = tuple[float, dict[str, torch.Tensor], dict[str, float]]
"""Loss, gradients by name of the weight, and metrics."""
_ROW = {"prompt": "a", "chosen": "b", "rejected": "c", "completion": "b", "label": True}
_KEYS = {"kto": ("prompt", "completion", "label")}


def move(model: torch.nn.Module, seed: int = 1) -> None:
    """Moves the trained weights of a model, in the order of their names, away from where they were."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, weight in sorted(model.named_parameters()):
            if weight.requires_grad:
                weight.add_(0.05 * torch.randn(weight.shape, generator=generator, dtype=torch.float32).to(weight))


def trl_step(kind: str, directory: Path, batch: Batch, peft: Mapping[str, Any] | None, **settings: Any) -> Measured:
    """Returns loss, gradients and metrics of TRL for a batch, of a model that was moved from its reference.

    Args:
        kind: `dpo`, `kto`, `orpo` or `cpo`.
        directory: The model.
        batch: The rows.
        peft: Arguments of a LoRA adapter, None to train all weights.
        settings: Arguments of TRL's config.
    """
    trainer = _trainer(kind, directory, peft, settings)
    move(trainer.model)
    trainer.model.train()
    if kind in ("dpo", "kto"):
        inputs = trainer.data_collator(_judged(batch) if kind == "kto" else _pairs(batch))
        loss = trainer._compute_loss(trainer.model, inputs, False)
        metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    else:
        loss, metrics = trainer.get_batch_loss_metrics(trainer.model, _padded(batch), "train")
    loss.backward()
    gradients = {name: weight.grad for name, weight in trainer.model.named_parameters() if weight.grad is not None}
    return loss.item(), gradients, metrics


def _trainer(kind: str, directory: Path, peft: Mapping[str, Any] | None, settings: Mapping[str, Any]) -> Any:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM

    config, trainer = _classes(kind)
    reference = {} if peft or kind in ("orpo", "cpo") else {"ref_model": _load(AutoModelForCausalLM, directory)}
    size = {"per_device_train_batch_size": 2} if kind == "kto" else {}
    return trainer(
        model=_load(AutoModelForCausalLM, directory),
        args=config(
            output_dir=str(directory / "trl"),
            report_to=[],
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            max_length=None if kind in ("dpo", "kto") else 512,
            **size,
            **settings,
        ),
        train_dataset=Dataset.from_list(
            [{key: _ROW[key] for key in _KEYS.get(kind, ("prompt", "chosen", "rejected"))}] * 2
        ),
        processing_class=byte_tokenizer(),
        peft_config=LoraConfig(task_type="CAUSAL_LM", **peft) if peft else None,
        **reference,
    )


@cache
def _classes(kind: str) -> tuple[Any, Any]:
    before = {name: os.environ.get(name) for name in ("TRL_EXPERIMENTAL_SILENCE", "HF_HUB_DISABLE_TELEMETRY")}
    os.environ |= dict.fromkeys(before, "1")
    try:
        if kind == "dpo":
            from trl import DPOConfig as Config
            from trl import DPOTrainer as Trainer
        elif kind == "kto":
            from trl import KTOConfig as Config
            from trl import KTOTrainer as Trainer
        elif kind == "orpo":
            from trl.experimental.orpo import ORPOConfig as Config
            from trl.experimental.orpo import ORPOTrainer as Trainer
        else:
            from trl.experimental.cpo import CPOConfig as Config
            from trl.experimental.cpo import CPOTrainer as Trainer
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    return Config, Trainer


def _load(loader: Any, directory: Path) -> Any:
    return loader.from_pretrained(directory, dtype=torch.float32)


def _halves(document: Batch) -> tuple[list[int], list[int]]:
    """Returns the prompt and the answer of a document, without what follows the last trained token."""
    first, last = int(document.trained[0]) + 1, int(document.trained[-1]) + 2
    tokens = document.tokens.tolist()
    return tokens[:first], tokens[first:last]


def _pairs(batch: Batch) -> list[dict[str, Any]]:
    halves = [_halves(document) for document in batch.documents()]
    return [
        {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
        for (prompt, chosen), (_, rejected) in zip(halves[::2], halves[1::2], strict=True)
    ]


def _judged(batch: Batch) -> list[dict[str, Any]]:
    halves = [_halves(document) for document in batch.documents()]
    return [
        {
            "prompt_ids": prompt,
            "completion_ids": answer,
            "KL_completion_ids": halves[i - 1][1],
            "label": columns["label"],
        }
        for i, ((prompt, answer), columns) in enumerate(zip(halves, batch.columns, strict=True))
    ]


def _padded(batch: Batch) -> dict[str, torch.Tensor]:
    documents = list(batch.documents())
    padded: dict[str, torch.Tensor] = {}
    for kind, rows in (("chosen", documents[::2]), ("rejected", documents[1::2])):
        prompts = [len(_halves(document)[0]) for document in rows]
        ends = [int(document.trained[-1]) + 2 for document in rows]
        labels = [
            [-100] * prompt + document.tokens[prompt:end].tolist() + [-100] * (len(document.tokens) - end)
            for document, prompt, end in zip(rows, prompts, ends, strict=True)
        ]
        padded[f"{kind}_input_ids"] = _rectangle([document.tokens.tolist() for document in rows], 3)
        padded[f"{kind}_attention_mask"] = _rectangle([[1] * len(document.tokens) for document in rows], 0)
        padded[f"{kind}_labels"] = _rectangle(labels, -100)
    return padded


def _rectangle(rows: Sequence[list[int]], value: int) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [value] * (width - len(row)) for row in rows])
