# SPDX-License-Identifier: Apache-2.0
"""Writes a model as a GGUF file, which llama.cpp and its kin read. The package `gguf` is an extra.

Only families are written of which transformers reads such files back, so that each file is compared with its model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from oumi.core.errors import ConfigError, StorageError, did_you_mean

FORMATS = {"f32": "F32", "f16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}
"""How matrices are stored; vectors are always float32."""
_FAMILIES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""Type of a model in transformers -> in GGUF."""
_PRE_TOKENIZERS = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+": "llama-bpe",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+": "qwen2",
}
"""Pattern that splits texts before BPE -> its name in llama.cpp."""
_TEXTS = ("Hello, world! 12345 it's", "  two  spaces\n\n\ttabs", "Zürich 東京 🙂", "def f(x):\n    return x**2  # ok")
_QWEN3_HEAD = 128
_TOLERANCE = 1e-3
"""Largest difference of logits, relative to their largest."""


def write_gguf(model: Any, tokenizer: Any, path: Path, kind: str) -> None:
    """Writes a model of transformers with its tokenizer, and compares what transformers reads of the file.

    Args:
        model: The model, on the CPU.
        tokenizer: Its tokenizer, a byte-level BPE.
        path: The file, which must not exist.
        kind: One of `FORMATS`.

    Raises:
        ConfigError: The package is missing, or the model or the tokenizer cannot be written.
        StorageError: What is read of the file is not the model; the file is deleted.
    """
    gguf = _package()
    family = _family(model.config)
    writer = gguf.GGUFWriter(path, family)
    writer.add_name(path.stem)
    writer.add_file_type(gguf.LlamaFileType[{"f32": "ALL_F32"}.get(kind, f"MOSTLY_{FORMATS[kind]}")])
    _add_shape(writer, model.config)
    _add_tokenizer(gguf, writer, tokenizer, model.config.vocab_size)
    rounded: dict[str, torch.Tensor] = {}
    for name, gguf_name, tensor in _tensors(gguf, model, family):
        stored, data = _stored(gguf, _permuted(tensor, name, model.config, family), kind)
        writer.add_tensor(gguf_name, data, raw_dtype=stored)
        if kind != "f32" and tensor.ndim > 1:
            rounded[name] = torch.from_numpy(gguf.dequantize(*_stored(gguf, tensor, kind)[::-1]).reshape(tensor.shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    try:
        problem = _difference(model, tokenizer, path, rounded)
    except (RuntimeError, ValueError, LookupError, OSError) as error:  # whatever transformers raises of a file
        problem = str(error).strip().partition("\n")[0] or type(error).__name__
    if problem:
        path.unlink()
        raise StorageError(f"{path}: transformers reads another model of the file ({problem}); it is deleted")


def _package() -> Any:
    try:
        return import_module("gguf")
    except ImportError as error:
        raise ConfigError("--format gguf: package gguf is not installed: pip install 'oumi[export]'") from error


def _family(config: Any) -> str:
    """Returns the name of a model's family in GGUF; raises ConfigError if it, or a setting of it, is not written."""
    kind = config.model_type
    if kind not in _FAMILIES:
        hint = did_you_mean(kind, _FAMILIES) or ""
        raise ConfigError(f"--format gguf: models of type {kind} are not supported{hint}, only {', '.join(_FAMILIES)}")
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") != "default":
        raise ConfigError(f"--format gguf: rotary embeddings of type {rope['rope_type']} are not supported")
    if getattr(config, "mlp_bias", False) or getattr(config, "use_sliding_window", False):
        raise ConfigError("--format gguf: biases of the MLP and sliding windows are not supported")
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if kind == "qwen3" and head_size != _QWEN3_HEAD:  # which transformers takes for any file
        raise ConfigError(
            f"--format gguf: Qwen3 with heads of {head_size} numbers is not supported, only {_QWEN3_HEAD}"
        )
    if kind == "qwen2" and head_size * config.num_attention_heads != config.hidden_size:
        raise ConfigError("--format gguf: Qwen2 with heads of another size is not supported")
    return _FAMILIES[kind]


def _add_shape(writer: Any, config: Any) -> None:
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_rope_dimension_count(head_size)
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_vocab_size(config.vocab_size)


def _add_tokenizer(gguf: Any, writer: Any, tokenizer: Any, vocab_size: int) -> None:
    """Adds a byte-level BPE; raises ConfigError for any other tokenizer."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    model = content["model"]
    if model["type"] != "BPE" or model.get("byte_fallback"):
        raise ConfigError(f"--format gguf: tokenizers of type {model['type']} are not supported, only byte-level BPE")
    if not model["merges"]:
        raise ConfigError("--format gguf: the tokenizer has no merges, which readers of the file expect")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_pre_tokenizer(content.get("pre_tokenizer")))
    names = {i: token for token, i in model["vocab"].items()}
    added = {token["id"]: token for token in content["added_tokens"]}
    names |= {i: token["content"] for i, token in added.items()}
    if len(names) > vocab_size or max(names) >= vocab_size:
        raise ConfigError("--format gguf: the tokenizer has more tokens than the model has embeddings")
    kinds = gguf.TokenType
    types = [
        (kinds.CONTROL if added[i]["special"] else kinds.USER_DEFINED) if i in added
        else kinds.NORMAL if i in names else kinds.UNUSED
        for i in range(vocab_size)
    ]  # fmt: skip
    writer.add_token_list([names.get(i, f"[PAD{i}]") for i in range(vocab_size)])
    writer.add_token_types(types)
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]])
    for name in ("bos", "eos", "pad"):
        if (token := getattr(tokenizer, f"{name}_token_id")) is not None:
            getattr(writer, f"add_{name}_token_id")(token)
    starts = tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    writer.add_add_bos_token(starts)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _pre_tokenizer(content: Any) -> str:
    """Returns llama.cpp's name of the way in which a tokenizer splits texts before BPE."""
    steps = content.get("pretokenizers", [content]) if content else []
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") and steps[1].get("use_regex", True):
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and not steps[1].get("use_regex", True):
        pattern = steps[0]["pattern"].get("Regex")
        if pattern in _PRE_TOKENIZERS:
            return _PRE_TOKENIZERS[pattern]
    raise ConfigError(
        f"--format gguf: the tokenizer splits texts in a way that llama.cpp has no name for ({', '.join(kinds)})"
    )


def _tensors(gguf: Any, model: Any, family: str) -> Iterator[tuple[str, str, torch.Tensor]]:
    """Yields the weights of a model by their names in transformers and in GGUF, in the order of the model."""
    architecture = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == family)
    names = gguf.get_tensor_name_map(architecture, model.config.num_hidden_layers)
    is_tied = model.get_output_embeddings().weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    for name, tensor in model.state_dict().items():
        stem, _, suffix = name.rpartition(".")
        if stem == "lm_head" and is_tied:
            continue
        if (gguf_name := names.get_name(stem)) is None:
            raise ConfigError(f"--format gguf: no name for the weight {name}")
        yield name, f"{gguf_name}.{suffix}", tensor.detach().float()


def _permuted(tensor: torch.Tensor, name: str, config: Any, family: str) -> torch.Tensor:
    """Returns a weight with its rows as llama.cpp rotates them: pairs of neighbours, where transformers has halves."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    layer = name.split(".")[-2]
    if family != "llama" or layer not in heads:
        return tensor
    return tensor.unflatten(0, (heads[layer], 2, -1)).transpose(1, 2).flatten(0, 2)


def _stored(gguf: Any, tensor: torch.Tensor, kind: str) -> tuple[Any, npt.NDArray[Any]]:
    """Returns the type and the data of a weight in the file."""
    is_matrix = tensor.ndim > 1 and tensor.shape[-1] % 32 == 0  # blocks of Q8_0 have 32 numbers
    stored = gguf.GGMLQuantizationType[FORMATS[kind] if is_matrix else "F32"]
    return stored, gguf.quantize(np.ascontiguousarray(tensor.numpy()), stored)


@torch.no_grad()
def _difference(model: Any, tokenizer: Any, path: Path, rounded: dict[str, torch.Tensor]) -> str:
    """Returns how the model and the tokenizer in a file differ from those that were written, an empty text if not."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = str(path.parent)
    read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=path.name, dtype=torch.float32).eval()
    tokens = torch.arange(min(64, model.config.max_position_embeddings))[None] * 7 % model.config.vocab_size
    weights = {name: tensor.float() for name, tensor in model.named_parameters()} | rounded
    expected = torch.func.functional_call(model.float().eval(), weights, (tokens,)).logits
    error = float((read(tokens).logits - expected).abs().max() / expected.abs().max())
    if not error <= _TOLERANCE:
        return f"logits differ by {error:.1e} of the largest one"
    tokenizer_read = AutoTokenizer.from_pretrained(folder, gguf_file=path.name)
    for text in _TEXTS:
        ids = [each(text, add_special_tokens=False)["input_ids"] for each in (tokenizer, tokenizer_read)]
        if ids[0] != ids[1]:
            return f"other tokens of {text!r}"
    return ""
