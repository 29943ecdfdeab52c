# SPDX-License-Identifier: Apache-2.0
"""Inference with a trained model: loads a directory, answers chats in batches, or streams one answer.

Shape letters: B chats, S tokens of the longest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, TextStreamer
from transformers.utils import logging as transformers_logging

from oumi.core.errors import ConfigError, RefusedError, StorageError, did_you_mean
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

    @property
    def max_length(self) -> int:
        """Returns the most tokens that the model can process, question and answer together."""
        config = self.model.config.get_text_config()
        return int(getattr(config, "max_position_embeddings", None) or 1 << 30)  # recurrent models have no limit

    def prompt(self, messages: Messages) -> list[int]:
        """Returns the tokens of a chat up to the start of the answer."""
        return list(self.tokenizer.apply_chat_template(list(messages), add_generation_prompt=True)["input_ids"])


def make_chat_model(model: Any, tokenizer: Any) -> ChatModel:
    """Returns a model ready to answer chats, on the device; raises ConfigError without a chat template."""
    if tokenizer.chat_template is None:
        raise ConfigError(
            f"{tokenizer.name_or_path}: the tokenizer has no chat template; train with `model.chat_template`, "
            "which saves it with the model"
        )
    return ChatModel(model.to(describe_host().device).eval(), tokenizer, _stop_tokens(tokenizer))


def load_chat_model(directory: Path | str) -> ChatModel:
    """Returns the model of a directory: a trained model, a checkpoint, or an adapter with its base model.

    Raises:
        ConfigError: The directory contains no model; names the missing file, and models below the directory.
        RefusedError: The weights are pickled, or the model needs its own Python code.
    """
    transformers_logging.disable_progress_bar()
    folder = expanded(str(directory))
    check_model_dir(folder)
    is_adapter = (folder / _ADAPTER_CONFIG).is_file()
    base = _base_of(folder) if is_adapter else folder
    host = describe_host()
    # A CPU without bfloat16 arithmetic emulates it, many times slower than float32.
    dtype = torch.float32 if host.device == "cpu" and not host.has_bf16 else "auto"
    model = _load(AutoModelForCausalLM, base, dtype=dtype, use_safetensors=True)
    if is_adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(folder))
    # Oumi saves the tokenizer with an adapter; other tools often do not.
    has_tokenizer = any(folder.glob("tokenizer*"))
    tokenizer = _load(AutoTokenizer, folder if has_tokenizer else base)
    return make_chat_model(model, tokenizer)


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
    # Chats of similar length in one batch, so that little padding is computed.
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers = [""] * len(prompts)
    for first in range(0, len(prompts), batch_size):
        rows = by_length[first : first + batch_size]
        for i, text in zip(rows, _generate(model, [prompts[i] for i in rows], max_new_tokens), strict=True):
            answers[i] = text
    return answers


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
    return _generate(model, [model.prompt(chat)], max_new_tokens, temperature, streamer)[0]


def check_model_dir(folder: Path) -> None:
    """Raises ConfigError or RefusedError unless `folder` contains a model or an adapter, with safe weights."""
    if not folder.is_dir():
        if folder.exists():
            raise ConfigError(f"{folder}: expected the directory of a model, got a file")
        names = [path.name for path in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise ConfigError(f"{folder}: no such directory{did_you_mean(folder.name, names)}")
    if (folder / _ADAPTER_CONFIG).is_file():
        return
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


def _base_of(adapter: Path) -> Path | str:
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
        raise StorageError(f"{source}: cannot be loaded: {reason}") from error


def _stop_tokens(tokenizer: Any) -> tuple[int, ...]:
    """Returns the end token, and the special token with which the chat template ends an answer."""
    # Often they differ: the template ends a turn with <|im_end|>, and the end token is <|endoftext|>.
    stops = [tokenizer.eos_token_id]
    content = "x"
    chat = [{"role": "user", "content": content}, {"role": "assistant", "content": content}]
    tail = tokenizer.apply_chat_template(chat, tokenize=False).rpartition(content)[2]
    specials = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    ids = tokenizer(tail, add_special_tokens=False)["input_ids"]
    stops += [token for token in ids if token in specials][:1]
    return tuple(dict.fromkeys(token for token in stops if token is not None))


@torch.inference_mode()
def _generate(
    model: ChatModel,
    prompts: list[list[int]],
    max_new_tokens: int,
    temperature: float = 0.0,
    streamer: TextStreamer | None = None,
) -> list[str]:
    longest = max(len(prompt) for prompt in prompts)
    max_answer = model.max_length - longest
    if max_answer < 1:
        raise ConfigError(
            f"the question has {longest} tokens; the model can process {model.max_length} with the answer"
        )
    # Any token will do, since the attention mask hides it.
    pad = model.tokenizer.pad_token_id if model.tokenizer.pad_token_id is not None else model.stops[0]
    device = model.model.device
    # Padded on the left: an answer is generated where the question ends.
    tokens_BS = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts], device=device)
    is_token_BS = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    settings = GenerationConfig(
        max_new_tokens=min(max_new_tokens, max_answer),
        eos_token_id=list(model.stops),
        pad_token_id=pad,
        **sampling,
    )
    # generate() takes what these settings leave open, such as a repetition penalty, from the model's own.
    model.model.generation_config = settings
    output_BS = model.model.generate(
        input_ids=tokens_BS, attention_mask=is_token_BS, generation_config=settings, streamer=streamer
    )
    answers = []
    for tokens in output_BS[:, longest:].tolist():
        # Rows go on until the last one of the batch ends.
        end = next((i for i, token in enumerate(tokens) if token in model.stops), len(tokens))
        answers.append(str(model.tokenizer.decode(tokens[:end], skip_special_tokens=True)))
    return answers


class _CallbackStreamer(TextStreamer):
    """Passes text to a function as soon as its words are complete."""

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._on_text = on_text

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Called by transformers with each new piece."""
        if text:
            self._on_text(text)
