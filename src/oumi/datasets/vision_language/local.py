# SPDX-License-Identifier: Apache-2.0
"""Chats and preferences with images, in local files or as turns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oumi.core.datasets import VisionLanguageDpoDataset, VisionLanguageSftDataset


class ImagedTurnsDataset(VisionLanguageSftDataset):
    """Chats of any known shape, whose images stand in the turns or beside them in `images`."""

    def transform_conversation(self, example: Mapping[str, Any]) -> Any:
        """Returns the row itself: its shape says what it is."""
        return example


class VLJsonlinesDataset(ImagedTurnsDataset):
    """Local files of such chats."""

    is_local = True


class VisionDpoJsonlinesDataset(VisionLanguageDpoDataset):
    """Local files of `prompt`, `images`, `chosen` and `rejected`."""

    is_local = True
