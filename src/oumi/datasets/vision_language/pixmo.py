# SPDX-License-Identifier: Apache-2.0
"""PixMo: questions that were made of captions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from oumi.core.data.records.conversations import chat_of, taught
from oumi.core.data.records.fields import field_of, text_of
from oumi.core.datasets import VisionLanguageSftDataset
from oumi.core.types.conversation import Conversation

_SPEAKER = re.compile(r"\s*\[(USER|ASSISTANT)\]\s*")


class PixmoCapQaDataset(VisionLanguageSftDataset):
    """An image, turns in one text with `[USER]` and `[ASSISTANT]` before each, and the last answer."""

    default_dataset = "allenai/pixmo-cap-qa"

    def transform_conversation(self, example: Mapping[str, Any]) -> Conversation:
        """Returns the turns and the answer."""
        first, *rest = _SPEAKER.split(text_of(example, "question").strip())
        spoken = [("USER", first), *zip(rest[::2], rest[1::2], strict=True)]
        turns = [{"role": speaker.lower(), "content": text} for speaker, text in spoken if text]
        turns.append({"role": "assistant", "content": text_of(example, "answer").strip()})
        return taught(chat_of(turns, {"images": [field_of(example, "image_url")]}))
