# SPDX-License-Identifier: Apache-2.0
"""The shape of a language model by its `config.json`, and its sizes. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_WITH_HEAD_NORMS = ("qwen3",)
"""Families that normalize queries and keys per head."""
_WITH_NORMS_AFTER = ("gemma2",)
"""Families that also normalize the outputs of attention and MLP."""
_WITH_SCALED_EMBEDDING = ("gemma", "gemma2")
"""Families whose embedding scales its output."""
_TIED = ("gemma", "gemma2")
"""Families that tie head and embedding by default."""
FAMILIES = ("llama", "mistral", "qwen2", *_WITH_HEAD_NORMS, *_TIED)
"""Families whose memory can be predicted: RMS norms, rotary embeddings, gated MLPs."""
_NAMES = {"layers": "num_hidden_layers", "hidden": "hidden_size", "heads": "num_attention_heads",
          "inner": "intermediate_size", "vocabulary": "vocab_size"}  # fmt: skip


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a decoder with gated MLPs."""

    family: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    inner: int
    """Width of the MLPs."""
    vocabulary: int
    is_tied: bool
    """Head and embedding share their weights."""
    has_softcap: bool = False
    """Attention scores are capped, which no fused kernel supports."""
    caps_logits: bool = False
    has_window: bool = False
    """Attention is limited to a sliding window."""
    drops_weights: bool = False
    """Attention has dropout."""

    @property
    def queries(self) -> int:
        """Returns the width of all queries of a token."""
        return self.heads * self.head_size

    @property
    def keys(self) -> int:
        """Returns the width of all keys of a token, which is also that of its values."""
        return self.kv_heads * self.head_size

    @property
    def has_head_norms(self) -> bool:
        """Returns True if queries and keys are normalized."""
        return self.family in _WITH_HEAD_NORMS

    @property
    def has_norms_after(self) -> bool:
        """Returns True if the outputs of attention and MLP are normalized."""
        return self.family in _WITH_NORMS_AFTER

    @property
    def scales_embedding(self) -> bool:
        """Returns True if the embedding scales its output, so that it is no plain table."""
        return self.family in _WITH_SCALED_EMBEDDING

    @property
    def matrices(self) -> Mapping[str, tuple[int, int]]:
        """Returns the linear modules of a layer as (inputs, outputs), by name."""
        hidden, queries, keys, inner = self.hidden, self.queries, self.keys, self.inner
        return {
            "q_proj": (hidden, queries),
            "k_proj": (hidden, keys),
            "v_proj": (hidden, keys),
            "o_proj": (queries, hidden),
            "gate_proj": (hidden, inner),
            "up_proj": (hidden, inner),
            "down_proj": (inner, hidden),
        }

    @property
    def embedding(self) -> int:
        """Returns the number of parameters of the embedding, which is also that of the head."""
        return self.vocabulary * self.hidden

    @property
    def num_parameters(self) -> int:
        """Returns the number of parameters of the model, without the few of biases."""
        # The norms of a layer, and those of its queries and keys per head, which all heads share.
        vectors = self.hidden * (4 if self.has_norms_after else 2) + 2 * self.head_size * self.has_head_norms
        layer = sum(a * b for a, b in self.matrices.values()) + vectors
        return self.layers * layer + self.embedding * (1 if self.is_tied else 2) + self.hidden


def shape_of(config: Mapping[str, Any]) -> ModelShape | None:
    """Returns the shape that a `config.json` describes, None if its family is unknown or a size is missing."""
    family = config.get("model_type")
    sizes: dict[str, int] = {name: config.get(key) or 0 for name, key in _NAMES.items()}
    values = [*sizes.values(), config.get("num_key_value_heads") or 1, config.get("head_dim") or 1]
    # A number that is wrong gets no error here: transformers reports it when the model is built.
    if family not in FAMILIES or not all(isinstance(size, int) and size > 0 for size in values):
        return None
    # The defaults of both caps in transformers; `null` in the file switches them off.
    has_softcap = family == "gemma2" and config.get("attn_logit_softcapping", 50.0) is not None
    return ModelShape(
        family=family,
        **sizes,
        # Both keys are missing in files of older models.
        kv_heads=config.get("num_key_value_heads") or sizes["heads"],
        head_size=config.get("head_dim") or sizes["hidden"] // sizes["heads"],
        is_tied=bool(config.get("tie_word_embeddings", family in _TIED)),
        has_softcap=has_softcap,
        # Qwen files name a window that is not used unless `use_sliding_window` is true.
        has_window=bool(config.get("sliding_window")) and bool(config.get("use_sliding_window", "qwen" not in family)),
        drops_weights=bool(config.get("attention_dropout")),
        caps_logits=family == "gemma2" and config.get("final_logit_softcapping", 30.0) is not None,
    )
