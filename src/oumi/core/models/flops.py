# SPDX-License-Identifier: Apache-2.0
"""The useful arithmetic of a step: without padding, and without activations that are recomputed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from oumi.core.models.adapters import below_adapter
from oumi.core.models.custom import CustomModel
from oumi.core.models.quantization import num_numbers


@dataclass(frozen=True)
class ModelFlops:
    """Floating-point operations of a model's matrix products; a multiply and an add count as two."""

    token_forward: float
    """Per token in the layers, forward."""
    token: float
    """Per token in the layers, forward and backward; frozen weights need no weight gradient."""
    term_forward: float
    """Per trained position in the head, forward."""
    term: float
    """Per trained position in the head, forward and backward."""
    pairs_forward: tuple[tuple[int | None, float], ...]
    """Attention windows in tokens (None: unlimited), each with the operations per pair of query and key in all layers
    that have it, forward; backward takes twice as much."""

    def flops(self, lengths: Sequence[int], num_targets: int, full_squares: bool = False) -> float:
        """Returns the operations of a forward and backward pass.

        Args:
            lengths: Tokens of each document.
            num_targets: Trained positions of all documents.
            full_squares: Count attention as if it were not causal, as in PaLM (arXiv 2204.02311).
        """
        # The backward pass of attention takes twice its forward pass, hence 3.
        attention = 3 * self._attention(lengths) * (2 if full_squares else 1)
        return self.token * sum(lengths) + self.term * num_targets + attention

    def forward_flops(self, lengths: Sequence[int]) -> float:
        """Returns the operations of the layers' forward pass, which gradient checkpointing repeats."""
        return self.token_forward * sum(lengths) + self._attention(lengths)

    def _attention(self, lengths: Sequence[int]) -> float:
        return sum(
            per_pair * sum(visible_pairs(length, window) for length in lengths)
            for window, per_pair in self.pairs_forward
        )


def visible_pairs(length: int, window: int | None) -> float:
    """Returns the number of causal pairs of query and key in a document; a full triangle counts as half a square."""
    # Queries within the first window see a triangle, all later ones a band.
    visible = min(length, window or length)
    return visible * length - visible * visible / 2


def model_flops(model: Any) -> ModelFlops:
    """Returns the operations of a causal language model's text part, with or without an adapter."""
    if isinstance(model, CustomModel):  # whose modules say nothing of what they are for
        return ModelFlops(model.token_flops, 3 * model.token_flops, 0.0, 0.0, ())
    base = below_adapter(model)
    config, decoder, head = base.config.get_text_config(), base.get_decoder(), base.get_output_embeddings()
    # An embedding is a lookup, and the head is counted per trained position.
    skipped = {id(module.weight) for module in base.modules() if isinstance(module, torch.nn.Embedding)}
    skipped.add(id(getattr(head, "weight", None)))
    num_experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    active_share = getattr(config, "num_experts_per_tok", 1) / num_experts if num_experts else 1.0
    forward = trained = 0.0
    for parameter in decoder.parameters():
        if parameter.ndim < 2 or id(parameter) in skipped:  # biases and scales of norms
            continue
        size = float(num_numbers(parameter))
        size *= active_share if parameter.ndim == 3 else 1.0  # transformers stacks a layer's experts in one parameter
        forward += size
        trained += size if parameter.requires_grad else 0.0
    head_size = float(prod(head.weight.shape)) if head is not None else 0.0
    is_head_trained = head is not None and head.weight.requires_grad
    return ModelFlops(
        token_forward=2 * forward,
        token=4 * forward + 2 * trained,
        term_forward=2 * head_size,
        term=(6 if is_head_trained else 4) * head_size,
        pairs_forward=tuple(_pairs_forward(config).items()),
    )


def _pairs_forward(config: Any) -> dict[int | None, float]:
    """Returns the operations per pair of query and key, summed over the layers of each attention window."""
    kinds = getattr(config, "layer_types", None) or []
    num_layers = len(kinds) if len(kinds) > 1 else getattr(config, "num_hidden_layers", 0) or 1
    by_layer = getattr(config, "per_layer_config", None)  # the sizes of heads differ by layer in Gemma 4
    operations: dict[int | None, float] = {}
    for i in range(num_layers):
        layer = by_layer[i] if by_layer else config
        num_heads = getattr(layer, "num_attention_heads", None) or 0  # state-space models have none
        head_dim = num_heads and (getattr(layer, "head_dim", None) or layer.hidden_size // num_heads)
        # Layers called sliding have the window, all others see every token before them.
        is_sliding = kinds[i] == "sliding_attention" if len(kinds) > 1 else True
        window = getattr(layer, "sliding_window", None) if is_sliding else None
        operations[window] = operations.get(window, 0.0) + 4.0 * num_heads * head_dim
    return operations
