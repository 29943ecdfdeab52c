# SPDX-License-Identifier: Apache-2.0
"""The loss on a GPU equals that by torch in float64, and its gradients do: by our kernel, or without in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from oumi.core.batch import LmHead
from oumi.core.methods.linear_cross_entropy import linear_cross_entropy
from oumi.core.plan.parts import LossPlan

WIDTH, VOCABULARY = 64, 40_000


def by_torch(states: torch.Tensor, head: LmHead, targets: torch.Tensor, plan: LossPlan) -> torch.Tensor:
    logits = head.logits(states)
    loss = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=plan.label_smoothing)
    return loss + plan.z_loss * logits.logsumexp(-1).square().sum()


@pytest.mark.gpu
@pytest.mark.parametrize("plan", [LossPlan(), LossPlan(label_smoothing=0.1, z_loss=1e-3)])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-10), (torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_loss_and_gradients_are_those_of_the_definition(
    plan: LossPlan, softcap: float | None, dtype: torch.dtype, close: float
) -> None:
    torch.manual_seed(0)
    states = torch.randn(9_000, WIDTH, device="cuda").to(dtype).requires_grad_()
    weight = (torch.randn(VOCABULARY, WIDTH, device="cuda") * 0.2).to(dtype).requires_grad_()
    targets = torch.randint(VOCABULARY, (len(states),), device="cuda")
    loss = linear_cross_entropy(states, LmHead(weight, None, 1.5, softcap), targets, plan)
    loss.backward()
    wide = [tensor.detach().double().requires_grad_() for tensor in (states, weight)]
    expected = by_torch(wide[0], LmHead(wide[1], None, 1.5, softcap), targets, plan)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=close)
    for actual, reference in zip((states, weight), wide, strict=True):
        assert actual.grad is not None
        assert reference.grad is not None
        assert float((actual.grad - reference.grad).norm() / reference.grad.norm()) < close
