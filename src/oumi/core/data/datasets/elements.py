# SPDX-License-Identifier: Apache-2.0
"""Values as the elements that code of one's own reads: token ids, or plain texts and turns."""

from __future__ import annotations

from typing import Any

from oumi.core.data.tokenize.chat_template import Template, chat_template_for
from oumi.core.data.tokenize.encoder import RowTokenizer
from oumi.core.data.tokenize.loss_mask import TokenizeSpec
from oumi.core.errors import ConfigError, DataError
from oumi.core.types.conversation import Conversation, Role
from oumi.core.types.example import Completion, Example, Judged, Preference, Prompt, RejectedRow, Row, Text

IGNORED = -100
"""The label of a token that is not trained."""
_UNLIMITED = 1_000_000_000
"""Tokenizers without a length of their own say some number above this."""


class ElementWriter:
    """Writes values as text and token ids, in the way in which a run does."""

    def __init__(self, tokenizer: Any, assistant_only: bool) -> None:
        """Takes a tokenizer with its chat template, and whether only the assistant's turns get labels."""
        if tokenizer is None:
            raise ConfigError("an element is made of tokens: pass tokenizer=..., or return_conversations=True")
        length = tokenizer.model_max_length if tokenizer.model_max_length < _UNLIMITED else None
        self._template = Template(tokenizer, chat_template_for(tokenizer, None))
        spec = TokenizeSpec("all_assistant_turns" if assistant_only else "all", length, "right")
        self._tokeniser = RowTokenizer(tokenizer, self._template, spec)
        self._tokenizer = tokenizer
        self._max_length = length
        self._has_labels = assistant_only

    def text(self, value: Any, asks: bool) -> str:
        """Returns a value as text; with `asks` it ends where the last answer begins."""
        if isinstance(value, Conversation):
            is_answered = asks and value.messages[-1].role == Role.ASSISTANT
            return self._template.render(value.messages[:-1] if is_answered else value.messages, asks, value.tools)
        if isinstance(value, Completion):
            return value.prompt + ("" if asks else value.completion)
        if isinstance(value, Text):
            return value.text
        raise ConfigError(f"only a chat or a text is written as text, not a {type(value).__name__}")

    def tokens(self, row: Row, asks: bool, as_tensors: bool) -> dict[str, Any]:
        """Returns `input_ids` and `attention_mask`, and `labels` where the assistant's turns get them."""
        if asks:
            is_chat = isinstance(row.value, Conversation)
            ids = self._tokenizer(self.text(row.value, asks), add_special_tokens=not is_chat)
            lists = {"input_ids": ids["input_ids"][: self._max_length]}
        else:
            example = self._example(row)
            if len(example.starts) > 1:
                raise DataError(
                    f"{row.source}: the chat template rewrites earlier turns, so that this chat is learned as several "
                    "texts, not as one element; leave assistant_only out, or let a run train on it"
                )
            lists = {"input_ids": example.tokens.tolist()}
            if self._has_labels:
                pairs = zip(example.tokens.tolist(), example.is_target.tolist(), strict=True)
                lists["labels"] = [token if is_target else IGNORED for token, is_target in pairs]
        lists["attention_mask"] = [1] * len(lists["input_ids"])
        return _as_tensors(lists) if as_tensors else lists

    def pair(self, row: Row, as_tensors: bool) -> dict[str, Any]:
        """Returns the ids of what both answers follow, and of each answer with its end mark.

        They are cut from the ids of the whole texts, so that joined they are what the model sees.
        """
        chosen, rejected = self._example(row).documents()
        lists = cut_pair(*((answer.tokens.tolist(), answer.is_target.tolist()) for answer in (chosen, rejected)))
        return _as_tensors(lists) if as_tensors else lists

    def _example(self, row: Row) -> Example:
        (tokenized,) = self._tokeniser.make([row])
        if isinstance(tokenized, RejectedRow):
            raise DataError(str(tokenized))
        return tokenized.examples[0]


def cut_pair(chosen: tuple[list[int], list[bool]], rejected: tuple[list[int], list[bool]]) -> dict[str, list[int]]:
    """Returns two texts, each as ids and which are trained, as the prompt that they share and their last answers."""
    ids = (chosen[0], rejected[0])
    answers = [_last_run(answer[1]) for answer in (chosen, rejected)]
    first_start = min(start for start, _ in answers)
    start = next((i for i, (a, b) in enumerate(zip(*ids, strict=False)) if a != b or i == first_start), first_start)
    return {
        "prompt_ids": ids[0][:start],
        "chosen_ids": ids[0][start : answers[0][1]],
        "rejected_ids": ids[1][start : answers[1][1]],
    }


def _last_run(is_target: list[bool]) -> tuple[int, int]:
    """Returns where the last tokens that are trained begin and end."""
    end = len(is_target) - is_target[::-1].index(True)
    start = end
    while start and is_target[start - 1]:
        start -= 1
    return start, end


def plain(value: Any) -> dict[str, Any]:
    """Returns a value as plain columns: texts, or turns as mappings of role and content."""
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
    assert isinstance(value, Prompt), "every other value is made of tokens"
    turns = Conversation(messages=list(value.messages)).to_dict()["messages"]
    return {"prompt": turns, **value.columns}


def _as_tensors(lists: dict[str, list[int]]) -> dict[str, Any]:
    import torch

    return {name: torch.tensor(values) for name, values in lists.items()}
