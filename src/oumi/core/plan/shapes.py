# SPDX-License-Identifier: Apache-2.0
"""The shape of a language model as its `config.json` tells it, and the sizes that follow. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_WITH_HEAD_NORMS = ("qwen3",)
"""Families that norm queries and keys, head by head."""
_WITH_NORMS_AFTER = ("gemma2",)
"""Families that norm what attention and MLP give, too."""
_WITH_SCALED_EMBEDDING = ("gemma", "gemma2")
"""Families whose embedding multiplies its rows itself."""
_TIED = ("gemma", "gemma2")
"""Families whose head shares the embedding's weights where their files do not say."""
FAMILIES = ("llama", "mistral", "qwen2", *_WITH_HEAD_NORMS, *_TIED)
"""Those that are known well enough to say what a training step keeps: RMS norms, rotations, gated MLPs."""
_NAMES = {"layers": "num_hidden_layers", "hidden": "hidden_size", "heads": "num_attention_heads",
          "inner": "intermediate_size", "vocabulary": "vocab_size"}  # fmt: skip


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a decoder of gated MLPs."""

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
    """The head shares the embedding's weights."""
    has_softcap: bool = False
    """Scores of attention are capped, which no fused kernel does."""
    caps_logits: bool = False
    has_window: bool = False
    """Attention looks back within a window."""
    drops_weights: bool = False
    """Attention drops some of its weights at random."""

    @property
    def queries(self) -> int:
        """Returns the width of all queries of a token."""
        return self.heads * self.head_size

    @property
    def keys(self) -> int:
        """Returns the width of all keys of a token, which is that of its values."""
        return self.kv_heads * self.head_size

    @property
    def has_head_norms(self) -> bool:
        """Returns True if queries and keys are normed."""
        return self.family in _WITH_HEAD_NORMS

    @property
    def has_norms_after(self) -> bool:
        """Returns True if what attention and MLP give is normed."""
        return self.family in _WITH_NORMS_AFTER

    @property
    def scales_embedding(self) -> bool:
        """Returns True if the embedding multiplies its rows, so that it is no plain table."""
        return self.family in _WITH_SCALED_EMBEDDING

    @property
    def matrices(self) -> Mapping[str, tuple[int, int]]:
        """Returns the linear modules of a layer, each with the width of what it takes and gives."""
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
        """Returns how many numbers the embedding has, and so the head."""
        return self.vocabulary * self.hidden

    @property
    def num_parameters(self) -> int:
        """Returns how many numbers the model has; biases are left out, which are few."""
        vectors = self.hidden * (4 if self.has_norms_after else 2) + 2 * self.head_size * self.has_head_norms
        layer = sum(a * b for a, b in self.matrices.values()) + vectors
        return self.layers * layer + self.embedding * (1 if self.is_tied else 2) + self.hidden


def shape_of(config: Mapping[str, Any]) -> ModelShape | None:
    """Returns the shape that the values of a `config.json` tell, None of a family that is not known or incomplete."""
    family = config.get("model_type")
    sizes: dict[str, int] = {name: config.get(key) or 0 for name, key in _NAMES.items()}
    values = [*sizes.values(), config.get("num_key_value_heads") or 1, config.get("head_dim") or 1]
    if family not in FAMILIES or not all(isinstance(size, int) and size > 0 for size in values):
        return None  # what is wrong with a number is told where the model is made
    has_softcap = family == "gemma2" and config.get("attn_logit_softcapping", 50.0) is not None
    return ModelShape(
        family=family,
        **sizes,
        kv_heads=config.get("num_key_value_heads") or sizes["heads"],
        head_size=config.get("head_dim") or sizes["hidden"] // sizes["heads"],
        is_tied=bool(config.get("tie_word_embeddings", family in _TIED)),
        has_softcap=has_softcap,
        has_window=_has_window(config),
        drops_weights=bool(config.get("attention_dropout")),
        caps_logits=family == "gemma2" and config.get("final_logit_softcapping", 30.0) is not None,
    )


def _has_window(config: Mapping[str, Any]) -> bool:
    """Returns True if attention looks back within a window."""
    return bool(config.get("sliding_window")) and bool(
        config.get("use_sliding_window", "qwen" not in config["model_type"])
    )
