# SPDX-License-Identifier: Apache-2.0
"""Caches of keys, values and recurrent states of several rows as the cache of one batch.

A row of a batch begins on the right of others that are longer, so its last token is where theirs is. Shape letters:
B rows, K key heads, S tokens, E head size.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from transformers import DynamicCache, cache_utils
from transformers.cache_utils import DynamicLayer

_ROOM = 64
"""Tokens for which a layer gets room at once."""


_WITHOUT_POSITIONS = {"bloom", "mpt"}
"""Families whose attention knows only distances, which it takes from the mask (ALiBi)."""


class GrowingLayer(DynamicLayer):
    """Keys and values of attention with room for the next tokens, which are written there.

    The layer of transformers copies all keys and values for each new token.
    """

    _room: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Adds keys and values [B, K, S, E], and returns all of them."""
        if not self.is_initialized:
            return super().update(key_states, value_states, *args, **kwargs)
        num_before, end = self.keys.shape[-2], self.keys.shape[-2] + key_states.shape[-2]
        if self._room is None or self._room[0].shape[-2] < end:
            self._room = self._with_room(self.keys, end), self._with_room(self.values, end)
        for part, new in zip(self._room, (key_states, value_states), strict=True):
            part[..., num_before:end, :] = new
        self.keys, self.values = (part[..., :end, :] for part in self._room)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Keeps the rows of these indices."""
        super().reorder_cache(beam_idx)
        self.free_room()

    def free_room(self) -> None:
        """Frees the room after the keys and values are copied; else it would stay beside those of all layers."""
        self._room = None

    @staticmethod
    def _with_room(keys_BKSE: torch.Tensor, num_tokens: int) -> torch.Tensor:
        *rows, num_before, size = keys_BKSE.shape
        room = keys_BKSE.new_empty(*rows, num_tokens + _ROOM, size)
        room[..., :num_before, :] = keys_BKSE
        return room


_NAMES = (
    "DynamicSlidingWindowLayer", "LinearAttentionLayer", "LinearAttentionAndFullAttentionLayer",
    "LinearAttentionAndSlidingWindowAttentionLayer", "DummyLayer",
)  # fmt: skip
# By name, since earlier versions of transformers lack some of them.
_JOINED = {GrowingLayer, *(getattr(cache_utils, name, None) for name in _NAMES)}


def new_cache(model: Any) -> DynamicCache:
    """Returns an empty cache for a model of transformers."""
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def cache_argument(model: Any) -> str | None:
    """Returns the name by which a model takes its cache, which changed with the versions; None if it takes none."""
    names = inspect.signature(model.forward).parameters
    return next((name for name in ("cache", "past_key_values") if name in names), None)


@torch.inference_mode()
def has_joinable_cache(model: Any) -> bool:
    """Returns True if a cache of the model holds nothing but keys, values, and states without a dimension of tokens."""
    name, cache = cache_argument(model), new_cache(model)
    is_known = all(type(layer) in _JOINED for layer in cache.layers)
    if name is None or not is_known or not model._supports_default_dynamic_cache():
        return False
    # Others, such as RoFormer, count from the length of the cache, which changes when rows join.
    has_positions = "position_ids" in inspect.signature(model.forward).parameters
    may_join = has_positions or model.config.model_type in _WITHOUT_POSITIONS or all(map(has_states, cache.layers))
    return may_join and _keeps_states(model, cache)


def _keeps_states(model: Any, cache: DynamicCache) -> bool:
    """Returns True if a model keeps the states of its layers in the cache."""
    # A trial of one token, since some keep their states elsewhere, such as RecurrentGemma in its modules.
    token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    model(input_ids=token, use_cache=True, **{str(cache_argument(model)): cache})
    states = [list(layer.conv_states.values()) for layer in cache.layers if has_states(layer)]
    return all(any(state is not None for state in of_layer) for of_layer in states)


def has_states(layer: Any) -> bool:
    """Returns True if a layer of a cache keeps a state of all tokens before, not keys and values of each."""
    return hasattr(layer, "conv_states")


def join(caches: Sequence[DynamicCache], width: int) -> DynamicCache:
    """Returns the first cache with the rows of all caches.

    Args:
        caches: Caches of the same model.
        width: Tokens of the longest row. Keys of shorter rows are padded on the left, to be hidden by a mask.
    """
    for layer, *others in zip(*(cache.layers for cache in caches), strict=True):
        if getattr(layer, "keys", None) is not None:  # of Gemma's last layers, which share those of others, it is None
            _join_keys(layer, others, width)
        for states in ("conv_states", "recurrent_states"):
            for i, state in getattr(layer, states, {}).items():
                if state is not None:
                    getattr(layer, states)[i] = torch.cat([state, *(getattr(other, states)[i] for other in others)])
    return caches[0]


def _join_keys(layer: Any, others: Sequence[Any], width: int) -> None:
    num_kept = width
    if hasattr(layer, "sliding_window"):
        # A layer with a window stores what the next token sees beside itself, and counts what it has dropped.
        num_kept, layer.cumulative_length = min(width, layer.sliding_window - 1), width
    layer.keys = torch.cat([_right_aligned(part.keys, num_kept) for part in (layer, *others)])
    layer.values = torch.cat([_right_aligned(part.values, num_kept) for part in (layer, *others)])
    if isinstance(layer, GrowingLayer):
        layer.free_room()


def _right_aligned(keys_BKSE: torch.Tensor, width: int) -> torch.Tensor:
    """Returns the last `width` tokens, with zeros before them if there are fewer."""
    num_tokens = keys_BKSE.shape[-2]
    if num_tokens >= width:
        return keys_BKSE[..., num_tokens - width :, :]
    return F.pad(keys_BKSE, (0, 0, width - num_tokens, 0))
