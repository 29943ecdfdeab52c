# SPDX-License-Identifier: Apache-2.0
"""Elements of data sets, for user code: converted rows as token ids, or as plain columns."""

from __future__ import annotations

from typing import Any

from oumi.core.data.tokenize.chat_template import Template, chat_template_for
from oumi.core.data.tokenize.encoder import RowTokenizer
from oumi.core.data.tokenize.loss_mask import TokenizeSpec
from oumi.core.errors import ConfigError, DataError
from oumi.core.types.conversation import Conversation, Role
from oumi.core.types.example import Completion, Example, Judged, Preference, Prompt, RejectedRow, Row, Text

IGNORED = -100
"""Label of a token that is not trained, the `ignore_index` of PyTorch's cross entropy."""
_UNLIMITED = 1_000_000_000
"""A larger `model_max_length` means none: transformers sets 1e30 if the tokenizer has no limit."""


class ElementWriter:
    """Formats converted rows as text and token ids, the same as a run does."""

    def __init__(self, tokenizer: Any, assistant_only: bool) -> None:
        """Sets a tokenizer with a chat template, and whether there are labels, for the tokens of the assistant."""
        if tokenizer is None:
            raise ConfigError("an element is made of tokens: pass tokenizer=..., or return_conversations=True")
        length = tokenizer.model_max_length if tokenizer.model_max_length < _UNLIMITED else None
        self._template = Template(tokenizer, chat_template_for(tokenizer, None))
        spec = TokenizeSpec("all_assistant_turns" if assistant_only else "all", length, "right")
        self._row_tokenizer = RowTokenizer(tokenizer, self._template, spec)
        self._tokenizer = tokenizer
        self._max_length = length
        self._has_labels = assistant_only

    def text(self, value: Any, is_prompt: bool) -> str:
        """Returns a converted row as text; if `is_prompt`, it ends where the last answer begins."""
        if isinstance(value, Conversation):
            is_answered = is_prompt and value.messages[-1].role == Role.ASSISTANT
            return self._template.render(value.messages[:-1] if is_answered else value.messages, is_prompt, value.tools)
        if isinstance(value, Completion):
            return value.prompt + ("" if is_prompt else value.completion)
        if isinstance(value, Text):
            return value.text
        raise ConfigError(f"only a chat or a text can be formatted as text, got {type(value).__name__}")

    def tokens(self, row: Row, is_prompt: bool, as_tensors: bool) -> dict[str, Any]:
        """Returns `input_ids`, `attention_mask` and, if the writer has them, `labels`, each of shape [T]."""
        if is_prompt:
            is_chat = isinstance(row.value, Conversation)  # whose template writes the special tokens
            ids = self._tokenizer(self.text(row.value, is_prompt), add_special_tokens=not is_chat)
            lists = {"input_ids": ids["input_ids"][: self._max_length]}
        else:
            example = self._example(row)
            if len(example.starts) > 1:
                raise DataError(
                    f"{row.source}: the chat template rewrites earlier turns, so this chat is several sequences, not "
                    "one element; remove assistant_only, or train on it with a run"
                )
            lists = {"input_ids": example.tokens.tolist()}
            if self._has_labels:
                pairs = zip(example.tokens.tolist(), example.is_target.tolist(), strict=True)
                lists["labels"] = [token if is_target else IGNORED for token, is_target in pairs]
        lists["attention_mask"] = [1] * len(lists["input_ids"])
        return _as_tensors(lists) if as_tensors else lists

    def pair(self, row: Row, as_tensors: bool) -> dict[str, Any]:
        """Returns the ids of the prompt that both answers share, and of each answer with its end token.

        The whole texts are tokenized and then cut. A prompt and an answer that are tokenized alone may join to other
        tokens than the model sees.
        """
        chosen, rejected = self._example(row).documents()
        lists = cut_pair(*((answer.tokens.tolist(), answer.is_target.tolist()) for answer in (chosen, rejected)))
        return _as_tensors(lists) if as_tensors else lists

    def _example(self, row: Row) -> Example:
        """Returns a row as tokens; raises DataError if it cannot be used."""
        (tokenized,) = self._row_tokenizer.make([row])
        if isinstance(tokenized, RejectedRow):
            raise DataError(str(tokenized))
        return tokenized.examples[0]


def cut_pair(chosen: tuple[list[int], list[bool]], rejected: tuple[list[int], list[bool]]) -> dict[str, list[int]]:
    """Returns the ids of a shared prompt and of two last answers.

    Args:
        chosen: Ids of the whole text, and which of them are trained.
        rejected: The same for the other answer.
    """
    ids = (chosen[0], rejected[0])
    answers = [_last_run(is_target) for _, is_target in (chosen, rejected)]
    # Tokens may merge over the border of prompt and answer, so the prompt ends where the texts differ.
    first_start = min(start for start, _ in answers)
    start = next((i for i, (a, b) in enumerate(zip(*ids, strict=False)) if a != b or i == first_start), first_start)
    return {
        "prompt_ids": ids[0][:start],
        "chosen_ids": ids[0][start : answers[0][1]],
        "rejected_ids": ids[1][start : answers[1][1]],
    }


def _last_run(is_target: list[bool]) -> tuple[int, int]:
    """Returns the start and the end of the last consecutive tokens that are trained."""
    end = len(is_target) - is_target[::-1].index(True)
    start = end
    while start and is_target[start - 1]:
        start -= 1
    return start, end


def plain(value: Any) -> dict[str, Any]:
    """Returns a converted row as plain columns: texts, or turns as mappings with role and content."""
    if isinstance(value, Judged):
        if isinstance(value.value, Completion):
            return {"prompt": value.value.prompt, "completion": value.value.completion, "label": value.is_good}
        turns = value.value.to_dict()["messages"]
        return {"prompt": turns[:-1], "completion": turns[-1:], "label": value.is_good}
    if isinstance(value, Preference):
        both = {"chosen": value.chosen, "rejected": value.rejected}
        return {
            name: answer.completion if isinstance(answer, Completion) else answer.to_dict()["messages"]
            for name, answer in both.items()
        }
    assert isinstance(value, Prompt), "other kinds are tokenized"
    turns = Conversation(messages=list(value.messages)).to_dict()["messages"]
    return {"prompt": turns, **value.columns}


def _as_tensors(lists: dict[str, list[int]]) -> dict[str, Any]:
    import torch

    return {name: torch.tensor(values) for name, values in lists.items()}
