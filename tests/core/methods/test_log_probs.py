# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities without logits: equal to those of kept logits, gradients with any coefficients included."""

from __future__ import annotations

import pytest
import torch

from oumi.core.batch import LmHead
from oumi.core.methods.log_probs import linear_log_probs


@pytest.mark.parametrize("is_frozen", [False, True])
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("has_bias", [False, True])
def test_values_and_gradients_are_those_of_kept_logits(softcap: float | None, has_bias: bool, is_frozen: bool) -> None:
    torch.manual_seed(0)
    states, weight, bias = torch.randn(70, 8), torch.randn(37, 8), torch.randn(37)
    targets, coefficients = torch.randint(0, 37, (70,)), torch.randn(70)
    results = []
    for is_kept in (True, False):
        inputs = [tensor.double().requires_grad_(not is_frozen) for tensor in (states, weight, bias)]
        inputs[0].requires_grad_()
        head = LmHead(inputs[1], inputs[2] if has_bias else None, scale=0.7, softcap=softcap)
        if is_kept:
            log_probs = torch.log_softmax(head.logits(inputs[0]), -1).gather(1, targets[:, None])[:, 0]
        else:
            log_probs, _ = linear_log_probs(inputs[0], head, targets)
        (log_probs * coefficients).sum().backward()
        results.append([log_probs.detach(), *(tensor.grad for tensor in inputs if tensor.grad is not None)])
    for kept, chunked in zip(*results, strict=True):
        torch.testing.assert_close(chunked, kept, rtol=1e-12, atol=1e-12)


def test_no_position_reaches_every_weight() -> None:
    states, weight = torch.zeros(0, 8, requires_grad=True), torch.randn(37, 8, requires_grad=True)
    linear_log_probs(states, LmHead(weight), torch.zeros(0, dtype=torch.long))[0].sum().backward()
    assert torch.equal(weight.grad, torch.zeros_like(weight))
