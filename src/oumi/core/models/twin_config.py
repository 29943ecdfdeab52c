# SPDX-License-Identifier: Apache-2.0
"""The config of a shrunken model: the same switches, and sizes that fit each other as before."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

from transformers import PreTrainedConfig

SIZES: dict[str, tuple[str, ...]] = {
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth", "encoder_layers", "decoder_layers"),
    "shared layers": ("num_kv_shared_layers",),
    "dense layers": ("first_k_dense_replace",),
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads", "decoder_attention_heads"),
    "key heads": ("num_key_value_heads", "num_kv_heads", "n_head_kv"),
    "linear key heads": ("linear_num_key_heads",),
    "linear value heads": ("linear_num_value_heads",),
    "widths": (
        "embed_dim", "n_embd", "d_model", "hidden_size", "out_hidden_size", "text_hidden_size", "projection_dim",
        "projector_hidden_size", "projector_input_dim", "projector_output_dim", "vision_output_dim",
        "word_embed_proj_dim", "encoder_hidden_size",
    ),
    "inner widths": (
        "intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size",
        "intermediate_size_mlp", "dense_intermediate_size", "ffn_hidden_size", "n_inner", "ffn_dim", "decoder_ffn_dim",
    ),
    "ranks": ("q_lora_rank", "kv_lora_rank", "laurel_rank", "hidden_size_per_layer_input"),
    "experts": ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"),
    "experts of a token": ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts"),
    "groups of experts": ("n_group",),
    "groups of a token": ("topk_group",),
    "vocabularies": ("vocab_size", "vocab_size_per_layer_input", "unpadded_vocab_size"),
}  # fmt: skip
"""How the configs of transformers name their sizes, by what they are sizes of."""
_ROLES = {name: role for role, names in SIZES.items() for name in names}
_LIMITS = {
    "dense layers": 1, "linear key heads": 2, "linear value heads": 4, "widths": 64, "inner widths": 64, "ranks": 32,
    "experts": 4, "experts of a token": 2, "groups of experts": 2, "groups of a token": 1, "vocabularies": 256,
}  # fmt: skip
_HEADS = 2
"""Keys that heads share, and heads that share one, at most."""
_WIDEST = 512


def levels_of(config: Any) -> list[Any]:
    """Returns a config and those within it: of the text part, of the part that sees images."""
    parts = [value for value in vars(config).values() if isinstance(value, PreTrainedConfig)]
    return [config, *(level for part in parts for level in levels_of(part))]


def size_of(config: Any, role: str) -> int:
    """Returns the first size of a role that a config names, 0 if there is none."""
    return next((size for name in SIZES[role] if type(size := vars(config).get(name)) is int), 0)


def pattern_length(config: Any, num_layers: int) -> int:
    """Returns how many layers have all the values that a config lists by layer; twice as many where layers share."""
    lists = [value for value in vars(config).values() if isinstance(value, list) and value and type(value[0]) is str]
    by_layer = [value for value in lists if len(value) == size_of(config, "layers")]
    length = max([2, *(values.index(value) + 1 for values in by_layer for value in values)])
    return min(length * (2 if size_of(config, "shared layers") else 1), num_layers)


def shrunken(config: Any, depth: int) -> Any:
    """Returns a copy of a config whose sizes fit each other as they did, with `depth` layers at most."""
    config = deepcopy(config)
    # To be loaded in fewer bits is for weights of files; here they are drawn.
    vars(config).pop("quantization_config", None)
    levels = levels_of(config)
    own_sizes = [_sizes_of_heads(level) for level in levels]
    # A part names the width of another one that it hands on to; where two are alike, that of the text part counts.
    widths = {old: new for sizes in own_sizes for old, new in sizes["widths"].items()}
    widths |= _sizes_of_heads(config.get_text_config())["widths"]
    vocabulary = min(size_of(config.get_text_config(), "vocabularies"), _LIMITS["vocabularies"])
    # Tokens for images and the like keep numbers of their own, at the end of the small vocabulary.
    beyond = sorted(token for token in set(special_tokens(levels)) if token >= vocabulary)
    tokens = {token: vocabulary - 1 - i for i, token in enumerate(reversed(beyond))}
    limits = {**_LIMITS, "layers": depth, "shared layers": depth // 2}
    for level, sizes in zip(levels, own_sizes, strict=True):
        renamed = {**sizes, "widths": {**widths, **sizes["widths"]}, "tokens": tokens}
        num_layers = size_of(level, "layers")
        for name, value in list(vars(level).items()):
            role = "tokens" if _is_token(name) else _ROLES.get(name, "")
            limit, own = limits.get(role), renamed.get(role, {})
            values = list(value) if isinstance(value, list | tuple) else [value]
            if len(values) == num_layers and role != "tokens":  # one for each layer
                values = values[:depth]
            smaller = [v if type(v) is not int else own.get(v, v if limit is None else min(v, limit)) for v in values]
            if isinstance(value, list | tuple):
                setattr(level, name, type(value)(smaller))
            elif smaller[0] is not value:
                setattr(level, name, smaller[0])
    return config


def _sizes_of_heads(config: Any) -> dict[str, dict[int, int]]:
    """Returns what becomes of a config's numbers of heads and of its width; heads stay as wide, as rotations need it.

    Raises:
        ValueError: Heads do not share keys evenly.
    """
    width, heads = size_of(config, "widths"), size_of(config, "heads")
    if not heads:
        return {"widths": {width: min(width, _LIMITS["widths"])}}
    key_heads = size_of(config, "key heads") or heads
    if heads % key_heads:
        raise ValueError(f"{heads} heads do not share {key_heads} key heads evenly")
    few_keys = min(key_heads, _HEADS)
    few = few_keys * min(heads // key_heads, _HEADS)
    head_dim = vars(config).get("head_dim")
    narrow = few * (head_dim or width // heads)
    if head_dim and (width != heads * head_dim or narrow > _WIDEST):  # then the width does not follow from the heads
        narrow = min(width, _LIMITS["widths"])
    return {"widths": {width: narrow}, "heads": {heads: few}, "key heads": {key_heads: few_keys}}


def _is_token(name: str) -> bool:
    return name.endswith(("_token_id", "_token_ids", "_token_index"))


def special_tokens(levels: list[Any]) -> Iterator[int]:
    for level in levels:
        for name, value in vars(level).items():
            if _is_token(name):
                yield from (token for token in (value if isinstance(value, list) else [value]) if type(token) is int)
