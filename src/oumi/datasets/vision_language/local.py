# SPDX-License-Identifier: Apache-2.0
"""Conversations and preferences with images, in known shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oumi.core.datasets import VisionLanguageDpoDataset, VisionLanguageSftDataset


class ImagedTurnsDataset(VisionLanguageSftDataset):
    """Conversations of any known shape, with images in the turns or in a column `images`."""

    def transform_conversation(self, example: Mapping[str, Any]) -> Any:
        """Returns the row itself, which is converted by its shape."""
        return example


class VLJsonlinesDataset(ImagedTurnsDataset):
    """Local files of such conversations."""

    is_local = True


class VisionDpoJsonlinesDataset(VisionLanguageDpoDataset):
    """Local files of rows with `prompt`, `images`, `chosen` and `rejected`."""

    is_local = True
