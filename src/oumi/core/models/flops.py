# SPDX-License-Identifier: Apache-2.0
"""The arithmetic that a step needs: operations on real tokens, none on padding, none that is done twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from oumi.core.models.adapters import below_adapter


@dataclass(frozen=True)
class ModelFlops:
    """Operations of a model's matrix products, forward and backward: a multiply and an add are two."""

    token_forward: float
    """Of one token in the layers, forward."""
    token: float
    """The same, forward and backward: a frozen weight needs no gradient of its own."""
    term_forward: float
    """Of the head at one trained position."""
    term: float
    pair_forward: float
    """Of one token that sees one other in one layer, forward; backward takes twice as much."""
    windows: tuple[tuple[int | None, int], ...]
    """How far a token sees, None for all before it, and how many layers are so."""

    def flops(self, lengths: Sequence[int], num_targets: int, full_squares: bool = False) -> float:
        """Returns what documents of these lengths need, trained at so many positions.

        Args:
            lengths: Tokens of each document.
            num_targets: Trained positions of all of them.
            full_squares: Count attention as if every token saw all others, as some do.
        """
        attention = 3 * self._attention(lengths) * (2 if full_squares else 1)
        return self.token * sum(lengths) + self.term * num_targets + attention

    def forward_flops(self, lengths: Sequence[int]) -> float:
        """Returns what the layers need forward alone: what gradient checkpointing does again."""
        return self.token_forward * sum(lengths) + self._attention(lengths)

    def _attention(self, lengths: Sequence[int]) -> float:
        return self.pair_forward * sum(
            count * sum(visible_pairs(length, window) for length in lengths) for window, count in self.windows
        )


def visible_pairs(length: int, window: int | None) -> float:
    """Returns how many pairs of tokens see each other causally in a document, counted as half of a square."""
    # The first tokens see a triangle, those behind a full window a band.
    visible = min(length, window or length)
    return visible * length - visible * visible / 2


def model_flops(model: Any) -> ModelFlops:
    """Returns the work of a causal language model, with or without an adapter; of its text part only."""
    base = below_adapter(model)
    config, decoder, head = base.config.get_text_config(), base.get_decoder(), base.get_output_embeddings()
    # A table that embeds tokens is looked up, and the head is counted by trained positions.
    skipped = {id(module.weight) for module in base.modules() if isinstance(module, torch.nn.Embedding)}
    skipped.add(id(getattr(head, "weight", None)))
    num_experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    active_share = getattr(config, "num_experts_per_tok", 1) / num_experts if num_experts else 1.0
    forward = trained = 0.0
    for parameter in decoder.parameters():
        if parameter.ndim < 2 or id(parameter) in skipped:  # vectors take no matrix product
            continue
        # bitsandbytes packs two weights into a byte, and keeps their shape beside it.
        state = getattr(parameter, "quant_state", None)
        size = float(prod(parameter.shape if state is None else state.shape))
        size *= active_share if parameter.ndim == 3 else 1.0  # all experts of a layer are one parameter
        forward += size
        trained += size if parameter.requires_grad else 0.0
    head_size = float(prod(head.weight.shape)) if head is not None else 0.0
    num_heads = getattr(config, "num_attention_heads", None) or 0  # none in a state-space model
    head_dim = num_heads and (getattr(config, "head_dim", None) or config.hidden_size // num_heads)
    is_head_trained = head is not None and head.weight.requires_grad
    return ModelFlops(
        token_forward=2 * forward,
        token=4 * forward + 2 * trained,
        term_forward=2 * head_size,
        term=(6 if is_head_trained else 4) * head_size,
        pair_forward=4.0 * num_heads * head_dim,
        windows=_windows(config),
    )


def _windows(config: Any) -> tuple[tuple[int | None, int], ...]:
    """Returns how far the layers see: those that a config calls sliding by its window, all others without end."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention" if window else "full_attention"]
    # A config without a list of layers has layers of one kind.
    kinds = kinds if len(kinds) > 1 else kinds * (getattr(config, "num_hidden_layers", 0) or 1)
    sliding = sum(kind == "sliding_attention" for kind in kinds)
    counts = ((window, sliding), (None, len(kinds) - sliding))
    return tuple((window, count) for window, count in counts if count)
