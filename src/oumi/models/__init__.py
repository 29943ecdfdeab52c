# SPDX-License-Identifier: Apache-2.0
"""Small classifiers for training loops of your own. They do not predict tokens, so `oumi train` refuses them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from oumi.core.models.base_model import BaseModel


class _Classifier(BaseModel):
    @property
    def criterion(self) -> Callable[..., torch.Tensor]:
        return F.cross_entropy

    def _outputs(self, logits_BC: torch.Tensor, labels_B: torch.Tensor | None) -> dict[str, torch.Tensor]:
        outputs = {"logits": logits_BC}
        return outputs if labels_B is None else {"loss": self.criterion(logits_BC, labels_B), **outputs}


class MLPEncoder(_Classifier):
    """Classifies vectors by a network with one hidden layer, registered as `MlpEncoder`."""

    def __init__(self, input_dim: int = 768, hidden_dim: int = 128, output_dim: int = 10) -> None:
        super().__init__(input_dim=input_dim, hidden_dim=hidden_dim, output_dim=output_dim)
        self.layers = nn.Sequential(nn.Linear(input_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, output_dim))

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Returns the logits [B, output_dim] of vectors [B, input_dim], and with labels [B] the loss."""
        return self._outputs(self.layers(input_ids.to(self.layers[0].weight.dtype)), labels)


class CNNClassifier(_Classifier):
    """Classifies images by two convolutions, each followed by pooling, registered as `CnnClassifier`."""

    def __init__(
        self, image_width: int, image_height: int, in_channels: int = 3, output_dim: int = 10, kernel_size: int = 5
    ) -> None:
        super().__init__(
            image_width=image_width, image_height=image_height, in_channels=in_channels, output_dim=output_dim,
            kernel_size=kernel_size,
        )  # fmt: skip
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, 32, kernel_size, padding="same"), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, kernel_size, padding="same"), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(64 * (image_width // 4) * (image_height // 4), output_dim),
        )  # fmt: skip

    def forward(self, images: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Returns the logits [B, output_dim] of images [B, C, H, W], and with labels [B] the loss."""
        return self._outputs(self.layers(images), labels)
