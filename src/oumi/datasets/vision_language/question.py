# SPDX-License-Identifier: Apache-2.0
"""Data sets of questions about images."""

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
    """A column of images, one of questions, and optionally one of answers."""

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
        """Sets the columns and the system turn.

        Args:
            image_column: Column of an image, or of a list of images.
            question_column: Column of the question.
            answer_column: Column of the answer; None for a data set without answers.
            system_prompt: System turn of every row.
            system_prompt_column: Column of the system turn, instead of the same one for every row.
            named: Arguments of VisionLanguageSftDataset.

        Raises:
            ConfigError: Both forms of the system turn are set.
        """
        super().__init__(**named)
        if system_prompt and system_prompt_column:
            raise ConfigError("dataset_kwargs: system_prompt and system_prompt_column exclude each other")
        self.image_column = image_column
        self.question_column = question_column
        self.answer_column = answer_column
        self.system_prompt = system_prompt
        self.system_prompt_column = system_prompt_column

    def transform_conversation(self, example: Mapping[str, Any]) -> Conversation:
        """Returns the images with the question, and the answer if the data set has answers."""
        system = text_of(example, self.system_prompt_column) if self.system_prompt_column else self.system_prompt
        answer = text_of(example, self.answer_column) if self.answer_column else None
        if answer == "":
            raise UnusableValue(f"'{self.answer_column}' is empty, so there is nothing to learn")
        return question_chat(
            field_of(example, self.image_column), text_of(example, self.question_column), answer, system
        )


class HuggingFaceVisionDataset(ImageQuestionDataset):
    """Any data set on the Hub with such columns."""

    def __init__(
        self, *, hf_dataset_path: str = "", image_column: str = "", question_column: str = "", **named: Any
    ) -> None:
        """Sets the id on the Hub and the required columns; see ImageQuestionDataset for the other arguments."""
        # Their defaults let this error name the key of the config, unlike a missing argument.
        for key, value in (("image_column", image_column), ("question_column", question_column)):
            if not value:
                raise ConfigError(f"dataset_kwargs.{key}: required: the name of a column")
        super().__init__(image_column=image_column, question_column=question_column, **named_by(hf_dataset_path, named))


def question_chat(images: Any, question: str, answer: str | None, system: str | None = None) -> Conversation:
    """Returns a question about images as a conversation; raises UnusableValue if there is no image.

    Args:
        images: An image or a list of images, in any form that `image_item` accepts.
        question: The question, which follows the images.
        answer: The answer; None for a question alone.
        system: Text of a system turn.
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
