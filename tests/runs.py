# SPDX-License-Identifier: Apache-2.0
"""Runs made tiny, for the laws."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch

from oumi.core.batch import Batch, collate
from oumi.core.configs import TrainingConfig
from oumi.core.data.ledger import Counts, Ledger
from oumi.core.data.pipeline.mixture import Mixture, Part
from oumi.core.data.sources.tabular import read_rows
from oumi.core.data.store.token_table import TokenTable, tokenize_rows
from oumi.core.data.tokenize.chat_template import Template
from oumi.core.data.tokenize.encoder import RowTokenizer
from oumi.core.data.tokenize.loss_mask import TokenizeSpec
from oumi.core.data.training_data import load_training_data
from oumi.core.distributed.world import World
from oumi.core.inspect import gather_facts
from oumi.core.plan.plan import make_plan
from oumi.core.system.host import describe_host
from oumi.core.train import train
from oumi.core.trainers.native import NativeTrainer
from oumi.core.trainers.resume import find_resume_point
from oumi.core.trainers.trl import TrlTrainer
from oumi.core.types.example import Example
from tests.shown import to_values
from tests.tiny import byte_tokenizer, save_tiny_model, write_chats

Built = TypeVar("Built", NativeTrainer, TrlTrainer)


def tiny_config(folder: Path, num_rows: int = 24, **training: Any) -> TrainingConfig:
    """Returns a run of a tiny model on a few chats, both written below `folder`."""
    model, chats = folder / "model", folder / "chats.jsonl"
    if not model.exists():
        save_tiny_model(model)
    if not chats.exists():
        write_chats(chats, num_rows)
    return TrainingConfig.model_validate(
        {
            "model": {"model_name": str(model)},
            "data": {"train": {"datasets": [{"dataset_name": "text_sft", "dataset_path": str(chats)}]}},
            "training": {
                "trainer_type": "OUMI",
                "output_dir": str(folder / "out"),
                "per_device_train_batch_size": 2,
                "gradient_accumulation_steps": 2,
                "num_train_epochs": 2,
                "learning_rate": 1e-3,
                "save_steps": 0,
                "logging_steps": 100,
                "enable_tensorboard": False,
                "use_deterministic": describe_host().device == "cuda",  # laws hold bit for bit with it
                **training,
            },
        }
    )


def assert_resumed_bitwise(config: TrainingConfig, checkpoint: str, name: str) -> None:
    """Trains, and again from a checkpoint beside it; asserts that a file of the model has the same bytes."""
    train(config)
    out = Path(config.training.output_dir)
    again = config.model_copy(deep=True)
    again.training.output_dir = str(out.with_name("again"))
    again.training.resume_from_checkpoint = str(out / checkpoint)
    train(again)
    assert (out.with_name("again") / name).read_bytes() == (out / name).read_bytes()


def build(config: TrainingConfig, kind: type[Built]) -> Built:
    """Returns a trainer that is ready to take its first step."""
    Path(config.training.output_dir).mkdir()
    with World.start() as world:
        plan = make_plan(config, gather_facts(config), world.size)
        start = find_resume_point(plan)
        rows = load_training_data(plan, start.began)
        return kind.build(plan.with_num_rows(rows.num_rows), world, rows, start)


def tiny_rows(folder: Path, num_rows: int = 8) -> list[Example]:
    """Returns a few chats as examples."""
    table = tiny_table(folder, num_rows)
    return [table[i] for i in range(len(table))]


def tiny_table(folder: Path, num_rows: int = 8) -> TokenTable:
    """Returns a few chats as a table of tokens."""
    tokenizer = byte_tokenizer()
    path = write_chats(folder / "rows.jsonl", num_rows)
    row_tokenizer = RowTokenizer(
        tokenizer, Template(tokenizer, tokenizer.chat_template), TokenizeSpec("all_assistant_turns")
    )
    return tokenize_rows(to_values(read_rows(path, "chats")), row_tokenizer, Ledger("chats"))


def table_of(examples: list[Example]) -> TokenTable:
    """Returns examples as a table."""
    from oumi.core.data.store.token_table import Chunk, TableWriter

    with TemporaryDirectory() as folder:
        writer = TableWriter(Path(folder))
        writer.add(Chunk.of(examples, Counts()))
        writer.finish(Ledger("set"), {})
        return TokenTable(Path(folder))


def tiny_mixture(folder: Path, num_rows: int = 8) -> Mixture:
    """Returns a few chats as a mixture of one."""
    return Mixture([Part(tiny_table(folder, num_rows), None)])


def batches(examples: list[Example], size: int) -> list[Batch]:
    """Returns examples cut into micro-batches of `size` rows."""
    return [collate(examples[i : i + size]) for i in range(0, len(examples), size)]


def records(output_dir: Path) -> list[dict[str, Any]]:
    """Returns what a run wrote of each step."""
    lines = (output_dir / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if "loss" in record]


def losses(output_dir: Path) -> list[float]:
    """Returns the loss of each step as the run wrote it."""
    return [record["loss"] for record in records(output_dir)]


def weights(output_dir: Path) -> dict[str, torch.Tensor]:
    """Returns the weights that a run saved."""
    from safetensors.torch import load_file

    return load_file(output_dir / "model.safetensors")
