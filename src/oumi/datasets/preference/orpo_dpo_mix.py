# SPDX-License-Identifier: Apache-2.0
"""ORPO-DPO-mix-40k by mlabonne, a mixture of preference data sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oumi.core.datasets import BaseDpoDataset


class OrpoDpoMixDataset(BaseDpoDataset):
    """Pairs of whole conversations."""

    default_dataset = "mlabonne/orpo-dpo-mix-40k"

    def transform_preference(self, sample: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns both conversations, without the column `prompt`: each of them begins with it."""
        return {"chosen": sample["chosen"], "rejected": sample["rejected"]}
