# SPDX-License-Identifier: Apache-2.0
"""The losses of pairs where the closed forms of `tests/laws` do not look: at answers that are far off."""

from __future__ import annotations

import pytest
import torch

from oumi.core.configs.methods import DpoSettings
from oumi.core.methods.pair_losses import PAIR_LOSSES, Ratios, scored


@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"])
@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_losses_and_gradients_are_finite_far_from_the_reference(name: str, divergence: str) -> None:
    settings = DpoSettings(
        loss_type=name, beta=0.5, label_smoothing=0.1, f_divergence_type=divergence, f_alpha_divergence_coef=0.5
    )
    ratios = torch.tensor([[-5000.0, 5000.0, 0.3], [5000.0, -5000.0, -0.2]], dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([9, 9, 9])
    losses = PAIR_LOSSES[name](scored(Ratios(ratios[0], ratios[1], lengths, lengths), settings))
    losses.sum().backward()
    assert losses.isfinite().all()
    assert ratios.grad is not None
    assert ratios.grad.isfinite().all()
    assert ratios.grad[:, 2].any()
