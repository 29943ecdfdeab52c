# SPDX-License-Identifier: Apache-2.0
"""Which weights `model.freeze_layers` freezes, by their names alone. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from itertools import accumulate

PARTS: dict[str, tuple[str, ...]] = {
    "vision_encoder": ("vision_tower", "visual", "vision_model", "vision_encoder", "vision_embed_tokens"),
    "audio_encoder": ("audio_tower", "audio_model", "audio_encoder"),
    "projector": (
        "multi_modal_projector", "mm_projector", "connector", "merger", "deepstack_merger_list", "aligner", "qformer",
        "embed_vision", "language_projection", "img_projection",
    ),
    "language_model": ("language_model", "text_model"),
    "embeddings": (),
    "head": (),
}  # fmt: skip
"""Parts of models -> the last names of their modules in the families of transformers."""
_HEAD = "lm_head"
_EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in")


def is_frozen(path: str, frozen: Sequence[str]) -> bool:
    """Returns True if a module is in one of the modules or parts that are frozen.

    Args:
        path: Path of the module, as the files of the model name its weight.
        frozen: Paths of modules, patterns of paths, and names of parts.
    """
    names = path.split(".")
    paths = list(accumulate(names, lambda above, name: f"{above}.{name}"))
    return any(any(fnmatchcase(p, name) for p in paths) or _is_in_part(names, name) for name in frozen)


def _is_in_part(names: Sequence[str], part: str) -> bool:
    if part == "head":
        return names[-1] == _HEAD
    if part == "embeddings":
        return names[-1] in _EMBEDDINGS
    others = {name for other in PARTS if other != "language_model" for name in PARTS[other]}
    if part == "language_model":  # in a text model, all but the head
        return not set(names) & (others | {_HEAD})
    # What projects images into the language model is a part of its own, also within the encoder.
    is_projected = part == "vision_encoder" and bool(set(names) & set(PARTS["projector"]))
    return bool(set(names) & set(PARTS.get(part, ()))) and not is_projected
