# SPDX-License-Identifier: Apache-2.0
"""The mixture of preferences by mlabonne."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oumi.core.datasets import BaseDpoDataset


class OrpoDpoMixDataset(BaseDpoDataset):
    """Pairs of whole chats: each holds the prompt already, so the column of that name is not read."""

    default_dataset = "mlabonne/orpo-dpo-mix-40k"

    def transform_preference(self, sample: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns both chats."""
        return {"chosen": sample["chosen"], "rejected": sample["rejected"]}
