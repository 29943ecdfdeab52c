# SPDX-License-Identifier: Apache-2.0
"""`oumi tokenizer train`: from files of texts to a tokenizer that a run trains with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer
from typer.testing import CliRunner

from oumi.cli.main import app
from oumi.core.errors import ConfigError, DataError, OumiError, OutputError
from oumi.core.train import train
from tests.core.trainers.test_trl import logged
from tests.runs import losses, tiny_config
from tests.tiny import tiny_llama

TEXTS = [
    "The cat sat on the mat.\n\tThen it left. ",
    "Der Hund lief \u00fcber die Stra\u00dfe.",
    "\u732b\U0001f408 1234 <0x41>",
] * 8
ODD = "A text with what was never seen: \u00bfqu\u00e9? \u2603\u0000\r\n  two  spaces <|im_start|>"


def write_texts(folder: Path) -> Path:
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    (folder / "b.txt").write_text("\n\n".join(TEXTS))
    return folder


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["tokenizer", "train", *map(str, arguments)])
    if isinstance(result.exception, OumiError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("flags", [[], ["--byte-fallback"]])
def test_every_text_is_tokenized_and_decoded_without_loss(tmp_path: Path, flags: list[str]) -> None:
    (tmp_path / "texts").mkdir()
    texts, output = write_texts(tmp_path / "texts"), tmp_path / "tokenizer"
    shape = ["--vocab-size", 310, "--special", "<|im_start|>", "--special", "<|im_end|>", *flags]
    assert f"{output}: 310 tokens, from " in run(texts / "a.jsonl", texts / "b.txt", "-o", output, *shape)
    tokenizer = AutoTokenizer.from_pretrained(output)
    assert len(tokenizer) == 310
    assert (tokenizer.eos_token, tokenizer.convert_tokens_to_ids("<|im_end|>")) == ("<|endoftext|>", 2)
    for text in [*TEXTS, ODD]:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == text
        assert None not in ids
    assert tokenizer.encode("<|im_start|>", add_special_tokens=False) == [1]
    assert len(tokenizer.encode("<0x41>", add_special_tokens=False)) > 1, "text, not a byte"
    assert len(tokenizer.encode(TEXTS[0])) < 0.7 * len(TEXTS[0]), "pairs are merged"


def test_a_model_of_its_own_is_trained_from_scratch_with_it(tmp_path: Path) -> None:
    texts = write_texts(tmp_path)
    run(texts / "a.jsonl", "-o", tmp_path / "tokenizer", "--vocab-size", 300, "--max-length", 64)
    tiny_llama(vocab_size=300).save_pretrained(tmp_path / "model")
    config = tiny_config(tmp_path, num_train_epochs=4)
    config.model.tokenizer_name = str(tmp_path / "tokenizer")
    config.model.load_pretrained_weights = False
    config.data.train.datasets[0].dataset_name = "text"
    config.data.train.datasets[0].dataset_path = str(texts / "a.jsonl")
    train(config)
    assert losses(tmp_path / "out")[-1] < losses(tmp_path / "out")[0]
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out")) == 300


def test_what_cannot_be_trained_is_refused_and_nothing_is_overwritten(tmp_path: Path) -> None:
    texts, output = write_texts(tmp_path) / "a.jsonl", tmp_path / "new" / "tokenizer"
    with pytest.raises(ConfigError, match="--vocab-size 200: must be 257 or more"):
        run(texts, "-o", output, "--vocab-size", 200)
    with pytest.raises(ConfigError, match=r"special token '<\|endoftext\|>': given twice"):
        run(texts, "-o", output, "--special", "<|endoftext|>")
    with pytest.raises(DataError, match=r"there are no texts .* the first row: .*a\.jsonl:1: .*'body'"):
        run(texts, "-o", output, "--column", "body")
    assert not output.exists()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    with pytest.raises(OutputError, match="taken is not empty"):
        run(texts, "-o", tmp_path / "taken")
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["file"]


def test_rows_without_text_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    texts = write_texts(tmp_path) / "a.jsonl"
    texts.write_text(texts.read_text() + '{"text": 3}\n')
    with logged(caplog):
        run(texts, "-o", tmp_path / "tokenizer", "--vocab-size", 300)
    (message,) = (message for message in caplog.messages if "cannot be used" in message)
    assert "1 rows cannot be used, the first: " in message
    assert "a.jsonl:25" in message
