# SPDX-License-Identifier: Apache-2.0
"""Data sets of chats."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from oumi.core.data.datasets.base import BaseMapDataset
from oumi.core.errors import ConfigError, did_you_mean
from oumi.core.types.conversation import Conversation, Message
from oumi.core.types.example import Completion, Row, Source, Text

if TYPE_CHECKING:
    from oumi.core.data.datasets.elements import ElementWriter
    from oumi.core.data.datasets.image_elements import ImageElementWriter

TASKS = ("sft", "generation", "auto")
FORMATS = ("json", "dict")


class BaseSftDataset(BaseMapDataset):
    """A data set of conversations. Override `transform_conversation`.

    A run trains on the conversations. The arguments change only the elements `self[i]`, which user code reads.
    """

    of_elements = frozenset(
        {
            "task", "return_tensors", "text_col", "assistant_only", "response_template", "instruction_template",
            "return_conversations", "return_conversations_format",
        }
    )  # fmt: skip
    _hook = "transform_conversation"

    def __init__(
        self,
        *,
        tokenizer: Any = None,
        task: str = "sft",
        return_tensors: bool = False,
        text_col: str = "text",
        assistant_only: bool = False,
        response_template: str | None = None,
        instruction_template: str | None = None,
        return_conversations: bool = False,
        return_conversations_format: str = "json",
        **named: Any,
    ) -> None:
        """Sets the form of the elements.

        Args:
            tokenizer: Tokenizer with a chat template, which makes elements token ids.
            task: `generation` ends the text where the answer begins; `sft` and `auto` use the whole chat.
            return_tensors: Return token ids as tensors instead of lists.
            text_col: Key of the text that `tokenize` reads or returns.
            assistant_only: Add labels: the tokens of the assistant, and -100 elsewhere.
            response_template: Not used: the chat template determines where an answer begins.
            instruction_template: Not used either.
            return_conversations: Return conversations instead of token ids.
            return_conversations_format: `json` for JSON text below `conversation_json`, `dict` for plain values.
            named: Arguments of BaseMapDataset.

        Raises:
            ConfigError: `task` or `return_conversations_format` is unknown.
        """
        super().__init__(**named)
        for key, value, choices in (
            ("task", task, TASKS),
            ("return_conversations_format", return_conversations_format, FORMATS),
        ):
            if value not in choices:
                hint = did_you_mean(value, choices) or f"; known: {', '.join(choices)}"
                raise ConfigError(f"dataset_kwargs.{key}: unknown '{value}'{hint}")
        self.task = task
        self.return_tensors = return_tensors
        self.text_col = text_col
        self.assistant_only = assistant_only
        self.response_template = response_template
        self.instruction_template = instruction_template
        self.return_conversations = return_conversations
        self.return_conversations_format = return_conversations_format
        self._tokenizer = tokenizer

    def transform(self, sample: Mapping[str, Any]) -> Any:
        """Returns a row as a conversation."""
        return self.transform_conversation(sample)

    def transform_conversation(self, example: Mapping[str, Any]) -> Conversation:
        """Returns a row as a conversation."""
        raise NotImplementedError(f"{type(self).__name__} must define transform_conversation")

    def conversation(self, idx: int) -> Conversation:
        """Returns the conversation of a row; raises ConfigError for another kind, DataError if it cannot be used."""
        value = self.value_at(idx)
        if not isinstance(value, Conversation):
            raise ConfigError(f"data set '{self.dataset_name}': row {idx} is a {type(value).__name__}, not a chat")
        return value

    def conversations(self) -> Iterator[Conversation]:
        """Yields the conversation of each row."""
        return (self.conversation(index) for index in range(len(self)))

    def prompt(self, idx: int) -> str:
        """Returns the text of a row, formatted with the chat template."""
        return self._writer.text(self.value_at(idx), self.task == "generation")

    def tokenize(self, sample: Any, tokenize: bool = True) -> dict[str, Any]:
        """Returns a conversation as token ids, or as text.

        Args:
            sample: A conversation, a mapping with `messages`, or a mapping with text below `text_col`.
            tokenize: If False, return the text below `text_col`.
        """
        value: Conversation | Text
        if isinstance(sample, Conversation):
            value = sample
        elif "messages" in sample:
            value = Conversation(messages=[Message.model_validate(message) for message in sample["messages"]])
        else:
            value = Text(sample[self.text_col])
        is_prompt = self.task == "generation"
        if not tokenize:
            return {self.text_col: self._writer.text(value, is_prompt)}
        return self._writer.tokens(Row(value, Source(self.dataset_name, "sample", 0)), is_prompt, self.return_tensors)

    def element(self, row: Row) -> Any:
        """Returns a row as token ids, as a conversation, or as plain columns if it is neither a chat nor text."""
        checked = self._checked(row)
        value = checked.value
        if self.return_conversations and isinstance(value, Conversation):
            as_json = self.return_conversations_format == "json"
            return {"conversation_json": value.to_json()} if as_json else value.to_dict()
        if isinstance(value, (Conversation, Completion, Text)):
            return self._writer.tokens(checked, self.task == "generation", self.return_tensors)
        from oumi.core.data.datasets.elements import plain

        return plain(value)

    @cached_property
    def _writer(self) -> ElementWriter:
        # Only elements need a tokenizer, so a run does not fail without one, nor import torch and transformers here.
        from oumi.core.data.datasets.elements import ElementWriter

        return ElementWriter(self._tokenizer, self.assistant_only)


class VisionLanguageSftDataset(BaseSftDataset):
    """A data set of conversations with images. Override `transform_conversation`."""

    of_elements = BaseSftDataset.of_elements | {"processor_name", "processor_kwargs", "model_revision"}

    def __init__(
        self,
        *,
        processor: Any = None,
        processor_name: str | None = None,
        processor_kwargs: Mapping[str, Any] | None = None,
        model_revision: str | None = None,
        limit: int | None = None,
        max_images: int | None = None,
        **named: Any,
    ) -> None:
        """Sets the processor of the elements, and how many rows and images are kept.

        Args:
            processor: Processor of the elements. A run uses that of its model instead.
            processor_name: Name or path of the processor to load if `processor` is None.
            processor_kwargs: Arguments to load it with.
            model_revision: Revision to load.
            limit: Maximum number of rows; the first ones are kept.
            max_images: Maximum number of images of a row; the first ones are kept, all if None or negative.
            named: Arguments of BaseSftDataset.

        Raises:
            ConfigError: `limit` is less than 1.
        """
        super().__init__(**named)
        if limit is not None and limit < 1:
            raise ConfigError(f"dataset_kwargs.limit: got {limit}, must be 1 or more")
        self.processor = processor
        self.processor_name = processor_name
        self.processor_kwargs = dict(processor_kwargs or {})
        self.model_revision = model_revision
        self.limit = limit
        self.max_images = max_images if max_images is not None and max_images >= 0 else None

    def value_of(self, row: Any) -> Any:
        """Returns a row converted, with at most `max_images` images, or the reason why it cannot be used."""
        converted = super().value_of(row)
        if self.max_images is None or not isinstance(converted, Row) or not isinstance(converted.value, Conversation):
            return converted
        # Only now: the conversion rejects a row whose turns do not refer to all of its images.
        return Row(with_fewer_images(converted.value, self.max_images), converted.source)

    def element(self, row: Row) -> Any:
        """Returns a row with images as the output of the processor, any other as BaseSftDataset does."""
        value = self._checked(row).value
        # A row without images needs no processor.
        has_images = isinstance(value, Conversation) and value.contains_images()
        if self.return_conversations or not has_images:
            return super().element(row)
        return self._image_writer.features(value, self.task == "generation", self.return_tensors)

    @cached_property
    def _image_writer(self) -> ImageElementWriter:
        from oumi.core.data.datasets.image_elements import ImageElementWriter, processor_of

        return ImageElementWriter(processor_of(self), self.assistant_only)


def with_fewer_images(chat: Conversation, max_images: int) -> Conversation:
    """Returns a conversation with only its first `max_images` images."""
    messages, num_left = [], max_images
    for message in chat.messages:
        if not isinstance(message.content, list):
            messages.append(message)
            continue
        kept = []
        for item in message.content:
            if item.is_text() or num_left > 0:
                kept.append(item)
            num_left -= item.is_image()
        messages.append(message.model_copy(update={"content": kept}))
    return chat.model_copy(update={"messages": messages})
