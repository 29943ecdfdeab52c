# SPDX-License-Identifier: Apache-2.0
"""The Cauldron, and data sets with its columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oumi.core.data.records.conversations import chat_of, taught
from oumi.core.data.records.fields import list_of
from oumi.core.datasets import VisionLanguageSftDataset
from oumi.core.types.conversation import Conversation


class CauldronDataset(VisionLanguageSftDataset):
    """Images, and questions with answers about them."""

    default_dataset = "HuggingFaceM4/the_cauldron"

    def transform_conversation(self, example: Mapping[str, Any]) -> Conversation:
        """Returns the exchanges as a conversation, with all images before the first question."""
        turns = [
            {"role": role, "content": exchange[role]}
            for exchange in list_of(example, "texts")
            for role in ("user", "assistant")
        ]
        return taught(chat_of(turns, {"images": list_of(example, "images")}))
