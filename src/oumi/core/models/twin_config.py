# SPDX-License-Identifier: Apache-2.0
"""The config of a shrunken model: the same switches, and small sizes that are consistent with each other."""

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
    "linear value heads": ("linear_num_value_heads", "linear_num_heads"),
    "state heads": ("mamba_num_heads",),
    "expanded heads": ("mamba_n_heads", "n_mamba_heads"),
    "groups of states": ("n_groups", "mamba_n_groups", "mamba_ngroups"),
    "expanded head sizes": ("mamba_d_head", "mamba_headdim"),
    "widths": (
        "embed_dim", "n_embd", "d_model", "hidden_size", "out_hidden_size", "text_hidden_size", "projection_dim",
        "projector_hidden_size", "projector_input_dim", "projector_output_dim", "vision_output_dim",
        "word_embed_proj_dim", "encoder_hidden_size", "lru_width",
    ),
    "inner widths": (
        "intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size",
        "intermediate_size_mlp", "dense_intermediate_size", "moe_shared_expert_intermediate_size", "ffn_hidden_size",
        "n_inner", "ffn_dim", "decoder_ffn_dim",
    ),
    "ranks": ("q_lora_rank", "kv_lora_rank", "laurel_rank", "hidden_size_per_layer_input"),
    "experts": ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"),
    "experts of a token": ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts"),
    "groups of experts": ("n_group", "num_expert_group"),
    "groups of a token": ("topk_group",),
    "states": ("state_size", "ssm_state_size", "mamba_d_state"),
    "chunks": ("chunk_size", "mamba_chunk_size"),
    "vocabularies": ("vocab_size", "vocab_size_per_layer_input", "unpadded_vocab_size"),
}  # fmt: skip
"""The names of sizes in the configs of transformers, by their role."""
_ROLES = {name: role for role, names in SIZES.items() for name in names}
_LIMITS = {
    "dense layers": 1, "linear key heads": 2, "linear value heads": 4, "widths": 64, "inner widths": 64, "ranks": 32,
    "experts": 4, "experts of a token": 2, "groups of experts": 2, "groups of a token": 1, "vocabularies": 256,
    "states": 16, "chunks": 16, "state heads": 4, "groups of states": 2,
}  # fmt: skip
_HEADS = 2
"""Maximum number of key heads, and of query heads per key head."""
_WIDEST = 512
_TOKEN_SUFFIXES = ("_token_id", "_token_ids", "_token_index")


def levels_of(config: Any) -> list[Any]:
    """Returns a config and all nested ones, such as those of the text part and the vision part."""
    parts = [value for value in vars(config).values() if isinstance(value, PreTrainedConfig)]
    return [config, *(level for part in parts for level in levels_of(part))]


def size_of(config: Any, role: str) -> int:
    """Returns the first size of a role that a config names, 0 if there is none."""
    # `type is int` excludes booleans. vars() skips attribute_map, through which one size would have several names.
    return next((size for name in SIZES[role] if type(size := vars(config).get(name)) is int), 0)


def pattern_length(config: Any, num_layers: int) -> int:
    """Returns how many layers contain every value of the config's per-layer lists; twice that if layers share keys."""
    lists = [value for value in vars(config).values() if isinstance(value, list) and value and type(value[0]) is str]
    by_layer = [value for value in lists if len(value) == size_of(config, "layers")]
    length = max([2, *(values.index(value) + 1 for values in by_layer for value in values)])
    return min(length * (2 if size_of(config, "shared layers") else 1), num_layers)


def shrunken(config: Any, depth: int) -> Any:
    """Returns a copy of a config with at most `depth` layers and small sizes that keep their relations."""
    config = deepcopy(config)
    # Quantization applies to weights from files; here they are random.
    vars(config).pop("quantization_config", None)
    levels = levels_of(config)
    own_sizes = [_sizes_of_heads(level) for level in levels]
    # A part also names the width of the part that reads its output, so all levels share one table of widths. Where
    # two parts have the same width, the text part decides.
    widths = {old: new for sizes in own_sizes for old, new in sizes["widths"].items()}
    widths |= _sizes_of_heads(config.get_text_config())["widths"]
    vocabulary = min(size_of(config.get_text_config(), "vocabularies"), _LIMITS["vocabularies"])
    # Special tokens beyond the small vocabulary move to its end, each with an id of its own.
    beyond = sorted(token for token in set(special_tokens(levels)) if token >= vocabulary)
    tokens = {token: vocabulary - 1 - i for i, token in enumerate(reversed(beyond))}
    limits = {**_LIMITS, "layers": depth, "shared layers": depth // 2}
    for level, sizes in zip(levels, own_sizes, strict=True):
        renamed = {**sizes, "widths": {**widths, **sizes["widths"]}, "tokens": tokens}
        num_layers = size_of(level, "layers")
        for name, value in list(vars(level).items()):
            role = "tokens" if name.endswith(_TOKEN_SUFFIXES) else _ROLES.get(name, "")
            limit, own = limits.get(role), renamed.get(role, {})
            values = list(value) if isinstance(value, list | tuple) else [value]
            if len(values) == num_layers and role != "tokens":  # one value per layer
                values = values[:depth]
            smaller = [v if type(v) is not int else own.get(v, v if limit is None else min(v, limit)) for v in values]
            if isinstance(value, list | tuple):
                setattr(level, name, type(value)(smaller))
            elif smaller[0] is not value:
                setattr(level, name, smaller[0])
    return config


def _sizes_of_heads(config: Any) -> dict[str, dict[int, int]]:
    """Returns the small sizes by role and by original size: width, heads, key heads, heads of states.

    The size of an attention head stays, since rotary embeddings depend on it.

    Raises:
        ValueError: The number of heads is not a multiple of the number of key heads.
    """
    width, heads = size_of(config, "widths"), size_of(config, "heads")
    if not heads:
        return {"widths": {width: min(width, _LIMITS["widths"])}}
    key_heads = size_of(config, "key heads") or heads
    if heads % key_heads:
        raise ValueError(f"{heads} heads are not a multiple of {key_heads} key heads")
    few_keys = min(key_heads, _HEADS)
    few = few_keys * min(heads // key_heads, _HEADS)
    head_dim = vars(config).get("head_dim")
    narrow = few * (head_dim or width // heads)
    # A config with `head_dim` may have a width that does not follow from its heads.
    if head_dim and (width != heads * head_dim or narrow > _WIDEST):
        narrow = min(width, _LIMITS["widths"])
    sizes = {"widths": {width: narrow}, "heads": {heads: few}, "key heads": {key_heads: few_keys}}
    # State-space layers whose heads together are a multiple of the width.
    expanded = getattr(config, "mamba_expand", 0) * width
    state_heads, head_size = size_of(config, "expanded heads"), size_of(config, "expanded head sizes")
    if expanded and state_heads * head_size == expanded:
        few_states = min(state_heads, _LIMITS["state heads"])
        small_size = expanded // width * narrow // few_states
        sizes |= {"expanded heads": {state_heads: few_states}, "expanded head sizes": {head_size: small_size}}
    return sizes


def special_tokens(levels: list[Any]) -> Iterator[int]:
    """Yields the ids of all special tokens that the configs name."""
    for level in levels:
        for name, value in vars(level).items():
            if name.endswith(_TOKEN_SUFFIXES):
                yield from (token for token in (value if isinstance(value, list) else [value]) if type(token) is int)
