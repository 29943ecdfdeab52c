# SPDX-License-Identifier: Apache-2.0
"""The fused loss equals the plain one, gradients too, in float64."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from oumi.core.batch import LmHead
from oumi.core.methods.linear_cross_entropy import chunks, linear_cross_entropy
from oumi.core.plan.parts import LossPlan

VOCABULARY = 37
PLANS = [LossPlan(), LossPlan(label_smoothing=0.1), LossPlan(z_loss=1e-2), LossPlan(0.2, 1e-2)]
HEADS: list[dict[str, Any]] = [{}, {"softcap": 3.0}, {"scale": 0.25}, {"softcap": 3.0, "scale": 2.0}]


def plain(states: torch.Tensor, head: LmHead, targets: torch.Tensor, plan: LossPlan) -> torch.Tensor:
    logits = head.logits(states)
    loss = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=plan.label_smoothing)
    return loss + plan.z_loss * logits.logsumexp(-1).square().sum()


def gradients(
    loss: Any,
    num_rows: int,
    plan: LossPlan,
    has_bias: bool = False,
    dtype: torch.dtype = torch.float64,
    width: int = 8,
    vocabulary: int = VOCABULARY,
    **head: Any,
) -> list[torch.Tensor]:
    """Returns the loss and its gradients by states, weight and bias."""
    torch.manual_seed(num_rows)
    shapes = ((num_rows, width), (vocabulary, width), (vocabulary,))
    inputs = [torch.randn(*shape, dtype=torch.float64) for shape in shapes]
    inputs = [tensor.to(dtype).requires_grad_() for tensor in inputs[: 3 if has_bias else 2]]
    targets = torch.randint(vocabulary, (num_rows,))
    value = loss(inputs[0], LmHead(*inputs[1:], **head), targets, plan)
    return [value.detach(), *torch.autograd.grad(value * 0.5, inputs)]


@pytest.mark.parametrize("num_rows", [0, 1, 64, 2100])  # the last takes three chunks
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("head", HEADS, ids=str)
@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_loss_and_gradients_equal_those_of_the_logits(
    num_rows: int, has_bias: bool, head: dict[str, Any], plan: LossPlan
) -> None:
    results = gradients(linear_cross_entropy, num_rows, plan, has_bias, **head)
    references = gradients(plain, num_rows, plan, has_bias, **head)
    for tensor, other in zip(results, references, strict=True):
        torch.testing.assert_close(tensor, other, rtol=1e-10, atol=1e-10)


# By either library, where the other one is faster for large weights, and there in one block or in three.
@pytest.mark.parametrize(("width", "vocabulary"), [(8, VOCABULARY), (1024, VOCABULARY), (16, 4100)])
@pytest.mark.parametrize("num_rows", [0, 1, 2100])
@pytest.mark.parametrize("has_bias", [False, True])
def test_in_float32_it_is_that_of_float64_but_for_rounding(
    num_rows: int, has_bias: bool, width: int, vocabulary: int
) -> None:
    plan = LossPlan(0.2, 1e-2)
    results = gradients(linear_cross_entropy, num_rows, plan, has_bias, torch.float32, width, vocabulary)
    references = gradients(plain, num_rows, plan, has_bias, torch.float64, width, vocabulary)
    for tensor, other in zip(results, references, strict=True):
        assert tensor.is_contiguous()
        torch.testing.assert_close(tensor.double(), other, rtol=1e-3, atol=1e-3)


@pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="torch 2.12 or newer")
def test_it_equals_the_one_of_torch() -> None:
    def of_torch(states: torch.Tensor, head: LmHead, targets: torch.Tensor, _: LossPlan) -> torch.Tensor:
        return F.linear_cross_entropy(states, head.weight, targets, reduction="sum")

    results, references = (gradients(tensor, 50, LossPlan()) for tensor in (linear_cross_entropy, of_torch))
    for tensor, other in zip(results, references, strict=True):
        torch.testing.assert_close(tensor, other, rtol=1e-10, atol=1e-10)


def test_a_tied_weight_gets_both_of_its_gradients() -> None:
    weight = torch.randn(VOCABULARY, 8, dtype=torch.float64, requires_grad=True)
    tokens = torch.arange(5)
    results, references = (
        torch.autograd.grad(loss(F.embedding(tokens, weight), LmHead(weight), tokens + 1, LossPlan()), weight)[0]
        for loss in (linear_cross_entropy, plain)
    )
    torch.testing.assert_close(results, references)


def test_a_frozen_weight_gets_no_gradient_and_none_is_taken_where_none_is_expected() -> None:
    weight, states = torch.randn(VOCABULARY, 8), torch.randn(4, 8, requires_grad=True)
    loss = linear_cross_entropy(states, LmHead(weight), torch.arange(4), LossPlan())
    loss.backward()
    assert weight.grad is None
    assert states.grad is not None
    with torch.no_grad():
        assert not linear_cross_entropy(states, LmHead(weight), torch.arange(4), LossPlan()).requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_sums_in_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    states, weight = torch.randn(40, 8).to(dtype), torch.randn(VOCABULARY, 8).to(dtype)
    targets = torch.randint(VOCABULARY, (40,))
    wide = [tensor.double().requires_grad_() for tensor in (states, weight)]
    narrow = [tensor.requires_grad_() for tensor in (states, weight)]
    results = linear_cross_entropy(narrow[0], LmHead(narrow[1]), targets, LossPlan())
    references = plain(wide[0], LmHead(wide[1]), targets, LossPlan())
    assert results.dtype == torch.float32
    assert abs(results.item() / references.item() - 1) < 1e-3
    for tensor, other in zip(torch.autograd.grad(results, narrow), torch.autograd.grad(references, wide), strict=True):
        assert tensor.dtype == dtype
        assert float((tensor - other).norm() / other.norm()) < 0.02


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("num_rows", [0, 1, 127, 128, 900, 100_000])
@pytest.mark.parametrize("vocabulary", [65, 32_000, 262_144])
def test_chunks_join_without_gaps_and_are_of_one_size_but_the_last(device: str, num_rows: int, vocabulary: int) -> None:
    parts = list(chunks(num_rows, vocabulary, device))
    assert sum(part.stop - part.start for part in parts) == num_rows
    assert all(a.stop == b.start for a, b in pairwise(parts))
    sizes = [part.stop - part.start for part in parts]
    assert len(set(sizes[:-1])) <= 1
    assert all(size % 64 == 0 for size in sizes[:-1])
    assert not sizes or 0 < sizes[-1] <= max(sizes)


def test_mixed_precision_multiplies_in_its_own_dtype() -> None:
    torch.manual_seed(0)
    states, weight = torch.randn(40, 8), torch.randn(VOCABULARY, 8)
    targets = torch.randint(VOCABULARY, (40,))
    results, references, wide = [], [], []
    for loss, into, is_mixed in (
        (linear_cross_entropy, results, True),
        (plain, references, True),
        (plain, wide, False),
    ):
        inputs = [tensor.clone().requires_grad_() for tensor in (states, weight)]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_mixed):
            value = loss(inputs[0], LmHead(inputs[1]), targets, LossPlan())
        into += [value.detach(), *torch.autograd.grad(value, inputs)]
    assert [tensor.dtype for tensor in results] == [torch.float32] * 3
    for tensor, same, other in zip(results, references, wide, strict=True):
        error, difference = (float((tensor - another).norm() / another.norm()) for another in (same, other))
        assert error < 4e-3, "gradients are rounded at other places"
        assert difference > 1e-5, "float32 products would come closer"
    assert abs(results[0] / references[0] - 1) < 1e-5
