# SPDX-License-Identifier: Apache-2.0
"""`oumi export`: plain models and GGUF files that are the model."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from transformers import AutoModelForCausalLM, AutoProcessor, AutoTokenizer
from typer.testing import CliRunner

from oumi.cli.export import export
from oumi.core.errors import ConfigError, OutputError, StorageError
from oumi.core.results.chat_model import answer, load_chat_model
from oumi.core.train import train
from tests.runs import tiny_config
from tests.tiny import CHATML, save_tiny_model, tiny_llama
from tests.tiny_vision import save_tiny_llava

app = typer.Typer()
app.command()(export)
NEEDS_GGUF = pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="needs oumi[export]")
CHATS = [[{"role": "user", "content": question}] for question in ("Hi", "Why?")]


def run(*arguments: Any) -> None:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("mode", ["ADAPTER_ONLY", "ADAPTER_AND_BASE_MODEL"])
def test_an_adapter_becomes_a_plain_model(tmp_path: Path, mode: str) -> None:
    config = tiny_config(tmp_path, max_steps=3, use_peft=True, learning_rate=0.05)
    config.peft.peft_save_mode = mode  # type: ignore[assignment]
    train(config)
    run(tmp_path / "out", "--output", tmp_path / "new" / "plain")
    plain = tmp_path / "new" / "plain"
    assert not (plain / "adapter").exists()
    assert not (plain / "adapter_config.json").exists()
    adapted, merged = load_chat_model(tmp_path / "out"), load_chat_model(plain)
    tokens = torch.arange(40)[None]
    with torch.no_grad():
        logits = [model.model(tokens).logits for model in (adapted, merged)]
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-4)
    assert answer(merged, CHATS, 16) == answer(adapted, CHATS, 16)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["plain"]


def test_a_model_that_sees_images_keeps_its_processor(tmp_path: Path) -> None:
    model = save_tiny_llava(tmp_path / "model")
    run(model, "--output", tmp_path / "plain")
    processors = [AutoProcessor.from_pretrained(str(folder)) for folder in (model, tmp_path / "plain")]
    sizes = [processor.image_processor.crop_size for processor in processors]
    assert sizes[0] == sizes[1]
    with pytest.raises(ConfigError, match=r"plain is not a model of text alone, which `chat` and `infer` need"):
        load_chat_model(tmp_path / "plain")


def test_a_dtype_can_be_chosen_and_that_of_the_files_is_kept(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model")
    run(model, "--output", tmp_path / "half", "--dtype", "bfloat16")
    assert AutoModelForCausalLM.from_pretrained(str(tmp_path / "half"), dtype="auto").dtype == torch.bfloat16
    run(tmp_path / "half", "--output", tmp_path / "again")
    files = [tmp_path / name / "model.safetensors" for name in ("half", "again")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["{model}", "--output", "{model}"], OutputError, "exists already; name a new directory"),
        (["{model}", "--output", "{new}", "--format", "guf"], ConfigError, "did you mean 'gguf'"),
        (["{model}", "--output", "{new}", "--dtype", "f16"], ConfigError, "must be one of float32, bfloat16, float16"),
        (["{new}", "--output", "{model}/x"], ConfigError, "no such directory"),
        (["{model}", "--output", "{new}", "--format", "gguf"], ConfigError, r"must end with \.gguf"),
    ],
)
def test_what_cannot_be_exported_is_reported(
    tmp_path: Path, arguments: list[str], error: type[Exception], message: str
) -> None:
    model = save_tiny_model(tmp_path / "model")
    with pytest.raises(error, match=message):
        run(*(text.format(model=model, new=tmp_path / "new") for text in arguments))


@pytest.mark.skipif(importlib.util.find_spec("gguf") is not None, reason="gguf is installed")
def test_a_missing_package_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"package gguf is not installed: pip install 'oumi\[export\]'"):
        run(save_tiny_model(tmp_path / "model"), "--output", tmp_path / "x.gguf", "--format", "gguf")


def bpe_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=290, special_tokens=specials, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["what is the sum of two numbers", "it is what it is"] * 9, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = CHATML
    return fast


def saved(folder: Path, kind: str, **settings: Any) -> Path:
    from transformers import AutoConfig

    tokenizer = bpe_tokenizer()
    shape = {"vocab_size": 296, "initializer_range": 0.2, **settings}  # more than the tokenizer has
    if kind == "llama":
        model = tiny_llama(**shape)
    else:
        config = AutoConfig.for_model(
            kind, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=512, **shape,
        )  # fmt: skip
        model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@NEEDS_GGUF
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": False, "attention_bias": True}),
        ("qwen2", {}),
        ("qwen3", {"head_dim": 128, "tie_word_embeddings": True}),
    ],
)
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "q8_0"])
def test_a_gguf_file_is_the_model(tmp_path: Path, kind: str, settings: dict[str, Any], dtype: str) -> None:
    source, target = saved(tmp_path / "model", kind, **settings), tmp_path / "files" / "model.gguf"
    run(source, "--output", target, "--format", "gguf", "--dtype", dtype)
    assert [path.name for path in target.parent.iterdir()] == ["model.gguf"]
    if dtype != "f32":
        return
    tokens, folder = torch.arange(60)[None], str(target.parent)
    read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=target.name)
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(str(source))(tokens).logits
        torch.testing.assert_close(read(tokens).logits, expected, rtol=1e-4, atol=1e-4)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=target.name)
    assert tokenizer.chat_template == CHATML
    assert tokenizer.apply_chat_template(CHATS[0]) == bpe_tokenizer().apply_chat_template(CHATS[0])


@NEEDS_GGUF
@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("gpt_neox", {}, "models of type gpt_neox are not supported"),
        ("qwen3", {"head_dim": 32}, "heads of 32 numbers"),
        ("llama", {"mlp_bias": True}, "biases of the MLP"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            "rotary embeddings of type linear",
        ),
    ],
)
def test_a_model_that_is_not_proven_is_refused(
    tmp_path: Path, kind: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(saved(tmp_path / "model", kind, **settings), "--output", tmp_path / "x.gguf", "--format", "gguf")
    assert not list(tmp_path.glob("*.gguf"))


@NEEDS_GGUF
def test_a_file_that_reads_back_otherwise_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gguf

    source = saved(tmp_path / "model", "llama")
    write = gguf.GGUFWriter.add_rope_freq_base
    monkeypatch.setattr(gguf.GGUFWriter, "add_rope_freq_base", lambda self, value: write(self, value * 3))
    with pytest.raises(StorageError, match="logits differ"):
        run(source, "--output", tmp_path / "x.gguf", "--format", "gguf")
    assert not (tmp_path / "x.gguf").exists()
