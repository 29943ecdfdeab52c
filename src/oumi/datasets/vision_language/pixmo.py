# SPDX-License-Identifier: Apache-2.0
"""PixMo: questions that were generated from captions."""

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
    """Images, a text of turns marked with `[USER]` and `[ASSISTANT]`, and the last answer."""

    default_dataset = "allenai/pixmo-cap-qa"

    def transform_conversation(self, example: Mapping[str, Any]) -> Conversation:
        """Returns the turns with the image, and the answer."""
        # Splitting yields speakers and texts in turn, after the text before the first mark, usually an empty one.
        first, *rest = _SPEAKER.split(text_of(example, "question").strip())
        spoken = [("USER", first), *zip(rest[::2], rest[1::2], strict=True)]
        turns = [{"role": speaker.lower(), "content": text} for speaker, text in spoken if text]
        turns.append({"role": "assistant", "content": text_of(example, "answer").strip()})
        return taught(chat_of(turns, {"images": [field_of(example, "image_url")]}))
