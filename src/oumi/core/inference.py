# SPDX-License-Identifier: Apache-2.0
"""Asking a trained model: load a directory, answer chats in batches, or word by word.

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
from oumi.core.system.host import describe_host

Messages = Sequence[Mapping[str, str]]
"""A chat: `role` and `content` of each turn."""

_ADAPTER = "adapter_config.json"
_BATCH_SIZE = 64


@dataclass(frozen=True)
class Speaker:
    """A model that answers, and its tokenizer. Made by `make_speaker`."""

    model: Any
    tokenizer: Any
    stops: tuple[int, ...]
    """Tokens that end an answer."""

    @property
    def max_length(self) -> int:
        """Returns how many tokens the model takes, question and answer together."""
        config = self.model.config.get_text_config()
        return int(getattr(config, "max_position_embeddings", None) or 1 << 30)

    def prompt(self, messages: Messages) -> list[int]:
        """Returns the tokens of a chat up to where the answer begins."""
        return list(self.tokenizer.apply_chat_template(list(messages), add_generation_prompt=True)["input_ids"])


def make_speaker(model: Any, tokenizer: Any) -> Speaker:
    """Returns a model and its tokenizer as one that answers; raises ConfigError if it cannot be asked."""
    if tokenizer.chat_template is None:
        raise ConfigError(
            f"{tokenizer.name_or_path}: no chat template, so there is no telling how to ask; "
            "train with `model.chat_template`, which saves it"
        )
    return Speaker(model.to(describe_host().device).eval(), tokenizer, _stop_tokens(tokenizer))


def load_speaker(directory: Path | str) -> Speaker:
    """Returns the model of a directory: one that training left, a checkpoint, or an adapter with its base.

    Raises:
        ConfigError: The directory holds no model; names what is missing and where one is.
        RefusedError: Its weights are pickled, or it needs Python code of its own.
    """
    transformers_logging.disable_progress_bar()
    folder = Path(directory).expanduser()
    check_model_dir(folder)
    adapter = folder if (folder / _ADAPTER).is_file() else None
    base = folder if adapter is None else _base_of(folder)
    model = _load(AutoModelForCausalLM, base, dtype=_dtype(), use_safetensors=True)
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(adapter))
    has_tokenizer = any(folder.glob("tokenizer*"))
    tokenizer = _load(AutoTokenizer, folder if has_tokenizer else base)
    return make_speaker(model, tokenizer)


def load_untrained(name: str, seed: int) -> Speaker:
    """Returns the model called `name` with random weights drawn from `seed`."""
    source = resolve_asset(name)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(_load(AutoConfig, source), dtype=torch.float32)
    return make_speaker(model, _load(AutoTokenizer, source))


def answer(
    speaker: Speaker, chats: Sequence[Messages], max_new_tokens: int = 256, batch_size: int = _BATCH_SIZE
) -> list[str]:
    """Returns the most likely answer to each chat, as it would be alone: the batch changes none of them.

    Raises:
        ConfigError: A chat is longer than the model takes.
    """
    prompts = [speaker.prompt(chat) for chat in chats]
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers = [""] * len(prompts)
    for first in range(0, len(prompts), batch_size):
        rows = by_length[first : first + batch_size]
        for i, text in zip(rows, _generate(speaker, [prompts[i] for i in rows], max_new_tokens), strict=True):
            answers[i] = text
    return answers


def stream_answer(
    speaker: Speaker,
    chat: Messages,
    on_text: Callable[[str], None],
    max_new_tokens: int = 256,
    temperature: float = 0.0,
) -> str:
    """Returns the answer to one chat, and hands its words to `on_text` as they come.

    Args:
        speaker: Who answers.
        chat: The turns so far, the last one a question.
        on_text: Called with each new piece of text.
        max_new_tokens: Where the answer is cut off at the latest.
        temperature: 0 takes the most likely token each time; above, tokens are drawn.
    """
    prompt = speaker.prompt(chat)
    streamer = _Pieces(speaker.tokenizer, on_text)
    return _generate(speaker, [prompt], max_new_tokens, temperature, streamer)[0]


def check_model_dir(folder: Path) -> None:
    """Raises ConfigError or RefusedError unless `folder` holds a model or an adapter, with safe weights."""
    if not folder.is_dir():
        beside = [path.name for path in folder.parent.iterdir()] if folder.parent.is_dir() else []
        if folder.exists():
            raise ConfigError(f"{folder}: a file; name the directory of a model")
        raise ConfigError(f"{folder}: no such directory{did_you_mean(folder.name, beside)}")
    if (folder / _ADAPTER).is_file():
        return
    missing = "config.json" if not (folder / "config.json").is_file() else None
    if missing is None and not any(folder.glob("*.safetensors")):
        if any(folder.glob("*.bin")):
            raise RefusedError(f"{folder} holds pickled weights only (*.bin), which can run code when loaded")
        missing = "weights (model.safetensors)"
    if missing is not None:
        raise ConfigError(f"{folder} is not a model: it holds no {missing}{_models_below(folder)}")


def _models_below(folder: Path) -> str:
    """Returns where the models below `folder` are, the latest checkpoint first, as the end of a message."""
    markers = sorted([*folder.glob("*/config.json"), *folder.glob(f"*/{_ADAPTER}")])
    names = sorted({marker.parent.name for marker in markers}, key=_step_of, reverse=True)
    return f"; there is one in {', '.join(str(folder / name) for name in names[:3])}" if names else ""


def _step_of(name: str) -> int:
    number = name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1


def _base_of(adapter: Path) -> Path | str:
    """Returns where the model below an adapter is: beside it in `base/`, or as its config names it."""
    if (adapter / "base" / "config.json").is_file():
        return adapter / "base"
    name = json.loads((adapter / _ADAPTER).read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not name:
        raise ConfigError(f"{adapter / _ADAPTER} does not name the model below it (base_model_name_or_path)")
    base = resolve_asset(name)
    if isinstance(base, Path) or Path(base).is_dir():
        check_model_dir(Path(base))
    return base


def _load(kind: Any, source: Path | str, **settings: Any) -> Any:
    """Returns what transformers finds at `source`; a failure is told in its first line."""
    try:
        return kind.from_pretrained(str(source), **settings)
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        if "trust_remote_code" in str(error):
            raise RefusedError(f"{source} brings its own Python code, which `chat` and `infer` do not run") from None
        raise StorageError(f"{source}: cannot be loaded: {reason}") from error


def _dtype() -> Any:
    host = describe_host()
    return torch.float32 if host.device == "cpu" and not host.has_bf16 else "auto"


def _stop_tokens(tokenizer: Any) -> tuple[int, ...]:
    """Returns the end token, and the special token with which the chat template ends an answer."""
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
    speaker: Speaker,
    prompts: list[list[int]],
    max_new_tokens: int,
    temperature: float = 0.0,
    streamer: TextStreamer | None = None,
) -> list[str]:
    longest = max(len(prompt) for prompt in prompts)
    room = speaker.max_length - longest
    if room < 1:
        raise ConfigError(
            f"the question has {longest} tokens, and the model takes {speaker.max_length} with the answer"
        )
    pad = speaker.tokenizer.pad_token_id if speaker.tokenizer.pad_token_id is not None else speaker.stops[0]
    device = speaker.model.device
    tokens_BS = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts], device=device)
    is_token_BS = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    settings = GenerationConfig(
        max_new_tokens=min(max_new_tokens, room),
        eos_token_id=list(speaker.stops),
        pad_token_id=pad,
        **sampling,
    )
    # The model's own settings would fill what ours leave open: another temperature, a penalty.
    speaker.model.generation_config = settings
    output_BS = speaker.model.generate(
        input_ids=tokens_BS, attention_mask=is_token_BS, generation_config=settings, streamer=streamer
    )
    return [_text(speaker, row) for row in output_BS[:, longest:].tolist()]


def _text(speaker: Speaker, tokens: list[int]) -> str:
    end = next((i for i, token in enumerate(tokens) if token in speaker.stops), len(tokens))
    return str(speaker.tokenizer.decode(tokens[:end], skip_special_tokens=True))


class _Pieces(TextStreamer):
    """Hands text on as soon as it is whole."""

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._on_text = on_text

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Called by transformers with each new piece."""
        if text:
            self._on_text(text)
