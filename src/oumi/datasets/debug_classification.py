# SPDX-License-Identifier: Apache-2.0
"""Random vectors with classes, to try out a custom training loop."""

from __future__ import annotations

import time

import torch
from torch.utils.data import Dataset


class DebugClassificationDataset(Dataset[dict[str, torch.Tensor]]):
    """Random features of shape [F] and a class; the same for the same arguments."""

    def __init__(
        self,
        dataset_size: int = 1000,
        feature_dim: int = 128,
        data_type: str = "float32",
        num_classes: int = 10,
        preprocessing_time_ms: float = 0,
    ) -> None:
        """Generates the vectors.

        Args:
            dataset_size: Number of vectors.
            feature_dim: Length F of a vector.
            data_type: Name of a torch dtype.
            num_classes: Number of classes.
            preprocessing_time_ms: Time to sleep for each item, which simulates slow preprocessing.
        """
        generator = torch.Generator().manual_seed(0)  # leaves the global seed of the run alone
        self.features = torch.randn(dataset_size, feature_dim, generator=generator).to(getattr(torch, data_type))
        self.labels = torch.randint(num_classes, (dataset_size,), generator=generator)
        self.preprocessing_time_ms = preprocessing_time_ms

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if self.preprocessing_time_ms > 0:
            time.sleep(self.preprocessing_time_ms / 1000)
        return {"features": self.features[index], "labels": self.labels[index]}
