# SPDX-License-Identifier: Apache-2.0
"""Data sets of one question about items."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oumi.core.data.records.fields import UnusableValue, field_of, text_of
from oumi.core.data.records.images import image_item
from oumi.core.datasets import VisionLanguageSftDataset
from oumi.core.errors import ConfigError
from oumi.core.types.conversation import ContentItem, Conversation, Message, Role, Type
from oumi.datasets.sft.turns import named_by


class ImageQuestionDataset(VisionLanguageSftDataset):
    """A column of items, one of questions, and perhaps one of answers."""

    def __init__(
        self,
        *,
        image_column: str,
        question_column: str,
        answer_column: str | None = None,
        system_prompt: str | None = None,
        system_prompt_column: str | None = None,
        **named: Any,
    ) -> None:
        """Takes how the columns are called, and what the system says: the same in each row, or a column."""
        super().__init__(**named)
        if system_prompt and system_prompt_column:
            raise ConfigError("dataset_kwargs: system_prompt and system_prompt_column exclude each other")
        self.image_column = image_column
        self.question_column = question_column
        self.answer_column = answer_column
        self.system_prompt = system_prompt
        self.system_prompt_column = system_prompt_column

    def transform_conversation(self, example: Mapping[str, Any]) -> Conversation:
        """Returns the items with the question, and the answer if the data set has any."""
        system = text_of(example, self.system_prompt_column) if self.system_prompt_column else self.system_prompt
        answer = text_of(example, self.answer_column) if self.answer_column else None
        if answer == "":
            raise UnusableValue(f"'{self.answer_column}' is empty, so there is nothing to learn")
        return question_chat(
            field_of(example, self.image_column), text_of(example, self.question_column), answer, system
        )


class HuggingFaceVisionDataset(ImageQuestionDataset):
    """Any data set of the Hub with such columns."""

    def __init__(
        self, *, hf_dataset_path: str = "", image_column: str = "", question_column: str = "", **named: Any
    ) -> None:
        """Takes its id on the Hub, and the columns; the rest as ImageQuestionDataset does."""
        for key, value in (("image_column", image_column), ("question_column", question_column)):
            if not value:
                raise ConfigError(f"dataset_kwargs.{key}: required: the name of a column")
        super().__init__(image_column=image_column, question_column=question_column, **named_by(hf_dataset_path, named))


def question_chat(images: Any, question: str, answer: str | None, system: str | None = None) -> Conversation:
    """Returns a question about items, with its answer if there is one.

    Args:
        images: An image, or a list of them: an image of Pillow, bytes, a path, a URL, or an object that holds one.
        question: What is asked.
        answer: What is to be learned; None waits for it.
        system: What the system says before.
    """
    items = [image_item(image) for image in (images if isinstance(images, list) else [images])]
    if not items:
        raise UnusableValue("has no image")
    content = [*items, ContentItem(type=Type.TEXT, content=question)]
    messages = [Message(role=Role.SYSTEM, content=system)] if system else []
    messages.append(Message(role=Role.USER, content=content))
    if answer is not None:
        messages.append(Message(role=Role.ASSISTANT, content=answer))
    return Conversation(messages=messages)
