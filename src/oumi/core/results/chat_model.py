# SPDX-License-Identifier: Apache-2.0
"""Inference with a trained model: loads a directory, answers chats in batches, or streams one answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, TextStreamer
from transformers.utils import logging as transformers_logging

from oumi.core.data.tokenize.chat_template import Template, chat_template_for
from oumi.core.errors import ConfigError, RefusedError, StorageError, did_you_mean
from oumi.core.log import logger
from oumi.core.models.adapters import load_adapter
from oumi.core.models.decoding import Decoding
from oumi.core.models.generation import generate, generate_all, max_positions
from oumi.core.plan.custom import saved_class
from oumi.core.recipes import resolve_asset
from oumi.core.system.filesystem import expanded
from oumi.core.system.host import describe_host

Messages = Sequence[Mapping[str, str]]
"""A chat: `role` and `content` of each message."""

_ADAPTER_CONFIG = "adapter_config.json"
_BATCH_SIZE = 64


@dataclass(frozen=True)
class ChatModel:
    """A model with its tokenizer, ready to answer chats. See `make_chat_model`."""

    model: Any
    tokenizer: Any
    stops: tuple[int, ...]
    """Tokens that end an answer."""
    template: Template | None
    """The chat template, None for a model that only continues texts."""
    max_length: int
    """Most tokens of question and answer together."""

    def prompt(self, messages: Messages) -> list[int]:
        """Returns the tokens of a chat up to the start of the answer."""
        return list(self.tokenizer.apply_chat_template(list(messages), add_generation_prompt=True)["input_ids"])

    def decoding(self, **settings: Any) -> Decoding:
        """Returns how answers are generated: `settings`, and the end tokens of the model.

        Raises:
            ConfigError: A token of `settings` is not one of the model.
        """
        num_tokens = self.model.config.get_text_config().vocab_size
        for name, key in (("logit_bias", "logit_bias"), ("stop_tokens", "stop_token_ids")):
            if wrong := [token for token in settings.get(name, ()) if not 0 <= token < num_tokens]:
                raise ConfigError(f"generation.{key}: no token {wrong[0]}; the model has 0 to {num_tokens - 1}")
        return Decoding(
            **{
                **settings,
                "stop_tokens": (*self.stops, *settings.get("stop_tokens", ())),
                "max_length": self.max_length,
            }
        )


@dataclass(frozen=True)
class LoadSettings:
    """How a model is loaded; the defaults take what its directory says."""

    adapter: str | None = None
    """An adapter to load on top: a directory or a name on the Hub."""
    tokenizer: str | None = None
    revision: str | None = None
    """Branch, tag or commit on the Hub."""
    dtype: str = "auto"
    attention: str | None = None
    chat_template: str | None = None
    """Name of a bundled template or path of a file; None takes the tokenizer's."""


def make_chat_model(model: Any, tokenizer: Any) -> ChatModel:
    """Returns a model ready to answer chats, on the device; raises ConfigError without a chat template."""
    if tokenizer.chat_template is None:
        raise ConfigError(
            f"{tokenizer.name_or_path}: the tokenizer has no chat template; train with `model.chat_template`, "
            "which saves it with the model"
        )
    return make_answering_model(model, tokenizer)


def make_answering_model(model: Any, tokenizer: Any, max_length: int | None = None) -> ChatModel:
    """Returns a model ready to answer, on the device; without a chat template it only continues texts."""
    if not getattr(model, "quantization_method", None):  # quantized weights are on their device already
        model = model.to(describe_host().device)
    template = Template(tokenizer, tokenizer.chat_template) if tokenizer.chat_template is not None else None
    length = min(max_positions(model), max_length or 1 << 30)
    return ChatModel(model.eval(), tokenizer, _stop_tokens(model, tokenizer), template, length)


def load_chat_model(directory: Path | str) -> ChatModel:
    """Returns the model of a directory: a trained model, a checkpoint, or an adapter with its base model.

    Raises:
        ConfigError: The directory contains no model; names the missing file, and models below the directory.
        RefusedError: The weights are pickled, or the model needs its own Python code.
    """
    check_model_dir(expanded(str(directory)))
    return make_chat_model(*load_with_tokenizer(str(directory)))


def load_with_tokenizer(name: str, settings: LoadSettings = LoadSettings()) -> tuple[Any, Any]:
    """Returns a model and its tokenizer, from a directory or the Hub; raises as `load_chat_model`."""
    transformers_logging.disable_progress_bar()
    folder = expanded(str(resolve_asset(name)))
    is_adapter = (folder / _ADAPTER_CONFIG).is_file()
    if folder.is_dir():
        check_model_dir(folder)
    base = base_of_adapter(folder) if is_adapter else folder if folder.is_dir() else name
    host = describe_host()
    # A CPU without bfloat16 arithmetic emulates it, many times slower than float32.
    dtype = torch.float32 if host.device == "cpu" and not host.has_bf16 else settings.dtype
    options = {} if settings.attention is None else {"attn_implementation": settings.attention}
    revision = {} if settings.revision is None or is_adapter else {"revision": settings.revision}
    model = _load(AutoModelForCausalLM, base, dtype=dtype, use_safetensors=True, **options, **revision)
    adapters = [str(folder)] if is_adapter else []
    for adapter in [*adapters, *([settings.adapter] if settings.adapter else [])]:
        model = load_adapter(model, resolve_asset(adapter), is_trained=False)
        if (number_format := _trained_on(expanded(str(resolve_asset(adapter))))) is not None:
            logger.warning(
                "%s was trained on weights quantized to %s; its base is in full precision here, as `oumi merge` writes "
                "it, so answers can differ from those of the training", adapter, number_format,
            )  # fmt: skip
    # Oumi saves the tokenizer with an adapter; other tools often do not.
    has_tokenizer = not folder.is_dir() or any(folder.glob("tokenizer*"))
    source = settings.tokenizer or (name if not folder.is_dir() else folder if has_tokenizer else base)
    tokenizer = _load(AutoTokenizer, source, **(revision if source == name else {}))
    if settings.chat_template is not None:
        tokenizer.chat_template = chat_template_for(tokenizer, settings.chat_template)
    return model, tokenizer


def _trained_on(adapter: Path) -> str | None:
    """Returns the number format of the quantized weights below which a run trained an adapter, None if unknown."""
    # A checkpoint lies in the directory of its run.
    runs = (adapter, adapter.parent) if adapter.name.startswith("checkpoint-") else (adapter,)
    plan = next((run / "plan.json" for run in runs if (run / "plan.json").is_file()), None)
    if plan is None:
        return None
    try:
        quantization = json.loads(plan.read_text(encoding="utf-8"))["model"]["quantization"]
        # Files with quantized weights are read as they are, here as in training.
        return str(quantization["number_format"]) if quantization["bits"] else None
    except (ValueError, KeyError, TypeError):  # its weights were in full, or the file is not a plan of Oumi
        return None


def load_untrained(name: str, seed: int) -> ChatModel:
    """Returns the model called `name` with random weights drawn from `seed`."""
    source = resolve_asset(name)
    # Leaves the random state of the caller unchanged.
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(_load(AutoConfig, source), dtype=torch.float32)
    return make_chat_model(model, _load(AutoTokenizer, source))


def answer(
    model: ChatModel, chats: Sequence[Messages], max_new_tokens: int = 256, batch_size: int = _BATCH_SIZE
) -> list[str]:
    """Returns the greedy answer to each chat. It does not depend on the other chats of its batch.

    Raises:
        ConfigError: A chat is longer than the model can process.
    """
    prompts = [model.prompt(chat) for chat in chats]
    decoding = model.decoding(max_new_tokens=max_new_tokens)
    return [answer.text for answer in generate_all(model.model, model.tokenizer, prompts, decoding, batch_size)]


def stream_answer(
    model: ChatModel,
    chat: Messages,
    on_text: Callable[[str], None],
    max_new_tokens: int = 256,
    temperature: float = 0.0,
) -> str:
    """Returns the answer to one chat, and passes its words to `on_text` as they are generated.

    Args:
        model: The model that answers.
        chat: The messages so far, the last of them a question.
        on_text: Called with each new piece of text.
        max_new_tokens: Maximum length of the answer in tokens.
        temperature: 0 takes the most likely token each time; above 0, tokens are sampled.
    """
    streamer = _CallbackStreamer(model.tokenizer, on_text)
    decoding = model.decoding(max_new_tokens=max_new_tokens, temperature=temperature)
    seeds = [int(torch.randint(1 << 62, ()))]
    return generate(model.model, model.tokenizer, [model.prompt(chat)], decoding, seeds, streamer)[0].text


def check_model_dir(folder: Path) -> None:
    """Raises ConfigError or RefusedError unless `folder` contains a model or an adapter, with safe weights."""
    if not folder.is_dir():
        if folder.exists():
            raise ConfigError(f"{folder}: expected the directory of a model, got a file")
        names = [path.name for path in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise ConfigError(f"{folder}: no such directory{did_you_mean(folder.name, names)}")
    if (folder / _ADAPTER_CONFIG).is_file():
        return
    if (model_class := saved_class(str(folder))) is not None:
        raise ConfigError(
            f"{folder} holds a registered model, which this command does not read, only models of transformers; load "
            f"it with {model_class}.from_pretrained"
        )
    # The base model of an adapter is checked when it is loaded; anything else needs a config and safe weights.
    missing = "config.json" if not (folder / "config.json").is_file() else None
    if missing is None and not any(folder.glob("*.safetensors")):
        if any(folder.glob("*.bin")):
            raise RefusedError(f"{folder} contains only pickled weights (*.bin), which can run code when loaded")
        missing = "weights (model.safetensors)"
    if missing is not None:
        raise ConfigError(f"{folder} is not a model: it contains no {missing}{_models_below(folder)}")


def _models_below(folder: Path) -> str:
    """Returns the models below `folder`, the latest checkpoint first, as the end of a message."""
    configs = sorted([*folder.glob("*/config.json"), *folder.glob(f"*/{_ADAPTER_CONFIG}")])
    steps = {config.parent.name: config.parent.name.rpartition("-")[2] for config in configs}
    names = sorted(steps, key=lambda name: int(steps[name]) if steps[name].isdigit() else -1, reverse=True)
    return f"; there is one in {', '.join(str(folder / name) for name in names[:3])}" if names else ""


def base_of_adapter(adapter: Path) -> Path | str:
    """Returns the base model of an adapter: its folder `base/`, or the model that its config names."""
    # Training from random weights leaves the base there: no other place has these weights.
    if (adapter / "base" / "config.json").is_file():
        return adapter / "base"
    name = json.loads((adapter / _ADAPTER_CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not name:
        raise ConfigError(f"{adapter / _ADAPTER_CONFIG} does not name the base model (base_model_name_or_path)")
    base = resolve_asset(name)
    if isinstance(base, Path) or Path(base).is_dir():
        check_model_dir(Path(base))
    return base


def _load(kind: Any, source: Path | str, **settings: Any) -> Any:
    """Returns `kind.from_pretrained(source)`; raises StorageError with the first line of a failure."""
    try:
        return kind.from_pretrained(str(source), **settings)
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        if "trust_remote_code" in str(error):
            raise RefusedError(f"{source} contains its own Python code, which `chat` and `infer` do not run") from None
        if "Unrecognized configuration class" in str(error):
            raise ConfigError(f"{source} is not a model of text alone, which `chat` and `infer` need") from None
        raise StorageError(f"{source}: cannot be loaded: {reason}") from error


def _stop_tokens(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Returns the end token, the special token with which the chat template ends an answer, and those of the model."""
    specials = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    stops = [tokenizer.eos_token_id]
    if tokenizer.chat_template is not None:
        # Often they differ: the template ends a turn with <|im_end|>, and the end token is <|endoftext|>.
        content = "x"
        chat = [{"role": "user", "content": content}, {"role": "assistant", "content": content}]
        tail = tokenizer.apply_chat_template(chat, tokenize=False).rpartition(content)[2]
        ids = tokenizer(tail, add_special_tokens=False)["input_ids"]
        stops += [token for token in ids if token in specials][:1]
    # GLM 4 ends a turn with the token that begins the next one, which only these name. Defaults may be any token.
    own = model.generation_config.eos_token_id
    stops += [token for token in (own if isinstance(own, list) else [own]) if token in specials]
    return tuple(dict.fromkeys(token for token in stops if token is not None))


class _CallbackStreamer(TextStreamer):
    """Passes text to a function as soon as its words are complete."""

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._on_text = on_text

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Called by transformers with each new piece."""
        if text:
            self._on_text(text)
