# SPDX-License-Identifier: Apache-2.0
"""Attention of documents on a CPU: what torch's attention gives for each alone, kept once."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from oumi.core.models.attention.cpu import DocumentAttention, takes_cpu_kernel

OFFSETS = (0, 5, 6, 40, 57)
PARTS = tuple((slice(*ends), None) for ends in pairwise(OFFSETS))


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("num_keys", [6, 2, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_document_attends_as_it_does_alone(dtype: torch.dtype, num_keys: int, scale: float | None) -> None:
    inputs = _inputs(num_keys, dtype=dtype)
    assert takes_cpu_kernel(*inputs)
    out = DocumentAttention.apply(*inputs, PARTS, scale)
    expected = _joined(inputs, scale)
    upstream = torch.randn_like(out)
    results = (out, *torch.autograd.grad(out, inputs, upstream))
    references = (expected, *torch.autograd.grad(expected, inputs, upstream))
    for tensor, reference in zip(results, references, strict=True):
        assert tensor.dtype == dtype
        assert torch.equal(tensor, reference)


def test_gradients_are_those_of_the_definition() -> None:
    inputs = _inputs(2, size=4, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda *x: DocumentAttention.apply(*x, ((slice(0, 3), None), (slice(3, 7), None)), None),
        [x[:, :, :7] for x in inputs],
    )


def test_gradients_of_continued_prefixes_are_those_of_the_definition() -> None:
    inputs = _inputs(2, size=4, dtype=torch.float64)
    parts = ((slice(0, 4), None), (slice(4, 6), slice(0, 3)), (slice(6, 9), slice(0, 2)))
    assert torch.autograd.gradcheck(lambda *x: DocumentAttention.apply(*x, parts, None), [x[:, :, :9] for x in inputs])


def test_keeps_its_output_once_and_where_the_next_layer_reads_it() -> None:
    inputs, kept = _inputs(2), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        out = DocumentAttention.apply(*inputs, PARTS, None)
    beside = {
        tensor.untyped_storage().data_ptr(): tensor for tensor in kept if all(tensor is not own for own in inputs)
    }
    assert out.data_ptr() in beside
    num_sums = inputs[0].shape[1] * OFFSETS[-1]
    assert sum(tensor.untyped_storage().nbytes() for tensor in beside.values()) == 4 * (out.numel() + num_sums)


def test_leaves_what_the_kernel_does_not_take() -> None:
    query, key, value = _inputs(2)
    assert not takes_cpu_kernel(query, key, value[..., :4])
    assert not takes_cpu_kernel(query[:, :5], key, value)
    assert not takes_cpu_kernel(query.mT.contiguous().mT, key, value)


def _inputs(num_keys: int, size: int = 8, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, OFFSETS[-1], heads, size) for heads in (6, num_keys, num_keys)]
    drawn = (torch.randn(*shape, generator=generator, dtype=dtype) for shape in shapes)
    return tuple(tensor.transpose(1, 2).requires_grad_() for tensor in drawn)


def _joined(inputs: tuple[torch.Tensor, ...], scale: float | None) -> torch.Tensor:
    parts = []
    for first, end in pairwise(OFFSETS):
        document = (tensor[:, :, first:end] for tensor in inputs)
        parts.append(F.scaled_dot_product_attention(*document, is_causal=True, scale=scale, enable_gqa=True))
    return torch.cat(parts, dim=2).transpose(1, 2)
