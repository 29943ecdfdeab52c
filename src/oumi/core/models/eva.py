# SPDX-License-Identifier: Apache-2.0
"""Adapters that begin with the directions in which the inputs of their layers vary most: EVA (arXiv 2410.07170)

A begins with the principal components of a layer's inputs on rows of the run, B with zeros, so the model begins as it
was and the adapter fits the unchanged base. Layers whose components explain more of the variance get a higher rank, up
to rho times that of the config, others a lower one or none; the sum of the ranks stays.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from peft import EvaConfig, initialize_lora_eva_weights
from peft.functional import cast_adapter_dtype
from peft.utils.incremental_pca import IncrementalPCA
from torch import distributed

from oumi.core.batch import Batch
from oumi.core.errors import ConfigError
from oumi.core.log import logger
from oumi.core.models.initialization import adapted_layers, check_rank
from oumi.core.models.language_model import LanguageModel
from oumi.core.models.lm_head import find_head

_SEED = 42
"""Of the approximate decomposition; that of PEFT."""
_MIN_TOKENS = 256
"""Tokens that are decomposed together, at least: fewer would be slow, more take memory in each layer."""


@torch.no_grad()
def begin_with_inputs(adapted: Any, documents: Iterable[Batch]) -> None:
    """Sets a new adapter to the principal components of the inputs of its layers.

    Args:
        adapted: A model with a new adapter.
        documents: Batches of one document each, since padding would be an input, too.

    Raises:
        ConfigError: A layer is not linear, or smaller than the rank, or there are too few tokens.
    """
    layers = dict(adapted_layers(adapted))
    for path, layer in layers.items():
        check_rank(path, layer)
    config, settings = adapted.peft_config["default"], EvaConfig()
    count = round(settings.rho * config.r)
    inputs = _Inputs({path: _Components(min(count, layer.in_features)) for path, layer in layers.items()})
    hooks = [layer.register_forward_pre_hook(partial(inputs.see, path)) for path, layer in layers.items()]
    model = LanguageModel(adapted, is_flat=False, head=find_head(adapted), one_at_a_time=True)
    try:
        for document in documents:
            model(document.to(adapted.device))
    finally:
        for hook in hooks:
            hook.remove()
    components = inputs.components()
    ranks = _divided_ranks(components, config.r)
    directions = _of_main_rank(
        {path: components[path].pca.components_[:rank].cpu().clone() for path, rank in ranks.items()}
    )
    ranks = {path: len(rows) for path, rows in directions.items()}
    config.init_lora_weights, config.eva_config = "eva", settings
    _set(adapted, directions)
    # What is saved is an adapter as any other.
    config.init_lora_weights, config.eva_config = True, None
    num_tokens = max(part.num_tokens for part in components.values())
    logger.info(
        "EVA: the adapters of %d layers begin with the inputs of %d tokens, with ranks from %d to %d",
        len(ranks), num_tokens, min(ranks.values()), max(ranks.values()),
    )  # fmt: skip
    if others := sorted(layers.keys() - ranks.keys()):
        logger.warning("EVA: %d layers had too few inputs, such as %s; they begin at random", len(others), others[0])


def _of_main_rank(directions: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the directions of the main rank: a decomposition need not give the same bits on every GPU."""
    if not distributed.is_initialized():
        return directions
    shared = [directions]
    distributed.broadcast_object_list(shared, src=0)
    return shared[0]


def _set(adapted: Any, directions: dict[str, torch.Tensor]) -> None:
    """Sets the adapter of each layer to its directions, and removes those without any."""
    layers = dict(adapted_layers(adapted))
    initialize_lora_eva_weights(
        adapted, eva_state_dict={f"base_model.model.{path}": rows for path, rows in directions.items()}
    )
    # PEFT makes layers of another rank anew, in the dtype of their base, which rounds them.
    cast_adapter_dtype(adapted, "default")
    for path, layer in layers.items():
        if len(directions.get(path, ())):
            layer.lora_A["default"].weight.copy_(directions[path])


class _Components:
    """The principal components of vectors that are seen a few at a time."""

    def __init__(self, count: int) -> None:
        self.pca = IncrementalPCA(count, lowrank=True, lowrank_seed=_SEED)
        self.num_tokens = 0
        self._waiting: list[torch.Tensor] = []

    def add(self, inputs_Td: torch.Tensor) -> None:
        self._waiting.append(inputs_Td.clone())  # layers after it may write into their input
        self.num_tokens += len(inputs_Td)
        if sum(map(len, self._waiting)) >= max(_MIN_TOKENS, 2 * self.pca.n_components):
            self.finish()

    def finish(self) -> None:
        if not self._waiting:
            return
        vectors_Td = torch.cat(self._waiting).float()
        self._waiting = []
        # The approximation computes twice as many components, of which a small matrix has too few.
        self.pca.lowrank = 2 * self.pca.n_components <= min(vectors_Td.shape)
        self.pca.partial_fit(vectors_Td, check_input=False)


class _Inputs:
    """Collects the inputs of layers; those that several layers have in common, such as q, k and v, are seen once."""

    def __init__(self, components: dict[str, _Components]) -> None:
        self._components = components
        self._same: dict[str, str] = {}
        """Layer -> the layer before it that gets the same input."""
        self._last: tuple[str, torch.Tensor | None] = "", None

    def see(self, path: str, _: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        """Adds the inputs of a layer, as a hook of it."""
        before, last = self._last
        if inputs[0] is last:
            self._same[path] = before
            return
        self._last = path, inputs[0]
        self._components[path].add(inputs[0].flatten(0, -2))

    def components(self) -> dict[str, _Components]:
        """Returns the components of each layer that had enough inputs.

        Raises:
            ConfigError: None had.
        """
        self._last = "", None
        parts = {path: self._components[self._same.get(path, path)] for path in self._components}
        most = max(parts.values(), key=lambda part: part.num_tokens)
        if most.num_tokens < most.pca.n_components:
            raise ConfigError(
                f"peft.lora_init_weights: EVA needs {most.pca.n_components} tokens for peft.lora_r, and the first rows "
                f"have only {most.num_tokens}; lower peft.lora_r, or take another initialization"
            )
        # Such as layers of an image encoder, where rows have no images, or few.
        enough = {path: part for path, part in parts.items() if part.num_tokens >= part.pca.n_components}
        for part in enough.values():
            part.finish()
        return enough


def _divided_ranks(components: dict[str, _Components], rank: int) -> dict[str, int]:
    """Returns the rank of each layer: of the components of all, the number of those that explain most variance."""
    paths = list(components)
    ratios = [part.pca.explained_variance_ratio_.nan_to_num() for part in components.values()]  # of equal inputs
    layer_of = torch.repeat_interleave(torch.arange(len(paths)), torch.tensor([len(part) for part in ratios]))
    order = torch.cat(ratios).argsort(descending=True, stable=True)[: rank * len(paths)]
    counts = torch.bincount(layer_of[order.cpu()], minlength=len(paths))
    return dict(zip(paths, counts.tolist(), strict=True))
