# SPDX-License-Identifier: Apache-2.0
"""Losses of texts in bits per byte: the bytes are those of the text, whatever the tokenizer and the trainer."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

from oumi.cli.main import app
from oumi.core.data.tokenize.token_bytes import token_bytes
from oumi.core.data.tokenize.tokenizer_training import TextCounts, TokenizerSpec, train_tokenizer
from oumi.core.train import train
from oumi.core.types.example import Row, Source, Text
from tests.runs import tiny_config

TEXTS = ["One text, and   another.\n\n\tEnd", "Stra\u00dfe, \u732b und \U0001f408", "1 + 1 = 2"]


@pytest.mark.parametrize("byte_fallback", [False, True])
def test_the_bytes_of_the_tokens_are_those_of_the_text(byte_fallback: bool) -> None:
    rows = [Row(Text(text), Source("", "", i)) for i, text in enumerate(TEXTS * 5)]
    tokenizer = train_tokenizer(rows, TokenizerSpec(330, byte_fallback=byte_fallback), TextCounts())
    lengths = token_bytes(tokenizer)
    assert lengths is not None
    for text in [*TEXTS, "\u2603 was never seen"]:
        ids = tokenizer.encode(text + "<|endoftext|>", add_special_tokens=False)
        assert lengths[ids].sum() == len(text.encode())


@pytest.mark.parametrize("trainer", ["OUMI", "TRL_SFT"])
def test_the_validation_loss_of_texts_is_also_told_in_bits_per_byte(tmp_path: Path, trainer: str) -> None:
    config = tiny_config(tmp_path, trainer_type=trainer, max_steps=2, eval_strategy="steps", eval_steps=2)
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    for split in (config.data.train, config.data.validation):
        split.datasets = [
            config.data.train.datasets[0].model_copy(
                update={"dataset_name": "text", "dataset_path": str(tmp_path / "texts.jsonl")}
            )
        ]
    train(config)
    record = json.loads((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[-1])
    num_bytes = sum(len(text.encode()) for text in TEXTS)
    # A token is a byte here; the first one is not predicted, and each text has an end.
    bits = record["eval_loss"] / math.log(2) * num_bytes / (num_bytes - len(TEXTS))
    assert record["eval_bits_per_byte"] == pytest.approx(bits)
    assert record["eval_perplexity"] == pytest.approx(math.exp(record["eval_loss"]))
    if trainer == "OUMI":
        result = CliRunner().invoke(app, ["eval", str(tmp_path / "out"), "--data", str(tmp_path / "texts.jsonl")])
        assert f"{record['eval_bits_per_byte']:.4f}" in result.output, result.output


def test_chats_have_no_bits_per_byte(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, max_steps=1, eval_strategy="steps", eval_steps=1)
    config.data.validation.datasets = [config.data.train.datasets[0].model_copy()]
    train(config)
    assert "eval_loss" in (tmp_path / "out" / "metrics.jsonl").read_text()
    assert "bits_per_byte" not in (tmp_path / "out" / "metrics.jsonl").read_text()
