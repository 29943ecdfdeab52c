# SPDX-License-Identifier: Apache-2.0
"""Data sets of images with captions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oumi.core.data.records.fields import UnusableValue, field_of
from oumi.core.datasets import VisionLanguageSftDataset
from oumi.core.types.conversation import Conversation
from oumi.datasets.vision_language.question import question_chat

REQUEST = "Describe this image."


class CaptionDataset(VisionLanguageSftDataset):
    """A column of images and one of captions; of several captions, the first is used."""

    def __init__(self, *, image_column: str = "image", caption_column: str = "caption", **named: Any) -> None:
        """Sets the names of the columns."""
        super().__init__(**named)
        self.image_column = image_column
        self.caption_column = caption_column

    def transform_conversation(self, example: Mapping[str, Any]) -> Conversation:
        """Returns the request for a caption, and the caption."""
        caption = field_of(example, self.caption_column)
        if isinstance(caption, list) and caption:
            caption = caption[0]
        if isinstance(caption, Mapping):  # COCO has objects with the text in `raw`
            caption = caption.get("raw")
        if not isinstance(caption, str) or not caption:
            raise UnusableValue(f"'{self.caption_column}' must be text, and not empty")
        return question_chat(field_of(example, self.image_column), REQUEST, caption)
