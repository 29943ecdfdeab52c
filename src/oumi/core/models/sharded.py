# SPDX-License-Identifier: Apache-2.0
"""Models whose weights are divided over ranks: built without weights, divided, and filled with each rank's slices."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from transformers.modeling_layers import GradientCheckpointingLayer

from oumi.core.batch import empty_batch
from oumi.core.distributed.sharding import (
    SHARD,
    build_mesh,
    divided_like,
    free_gathered,
    local_rows,
    replace_parameters,
    shard_modules,
    with_local,
)
from oumi.core.distributed.world import World
from oumi.core.errors import ConfigError, did_you_mean
from oumi.core.log import logger
from oumi.core.models.adapters import base_weight_name, below_adapter, is_adapted
from oumi.core.models.build import base_source, build_model
from oumi.core.models.language_model import LanguageModel
from oumi.core.models.load import load_model
from oumi.core.plan.parts import Plan
from oumi.core.plan.sharding import ShardingPlan

_DRAWN = ".tmp-drawn-weights"


def base_weights(plan: Plan, world: World, checkpoint: Path | None = None) -> Path | None:
    """Returns the directory of a model's base weights if it is not the one that the plan names; else None.

    That is a checkpoint with all weights, or random weights of a divided model. These the main rank draws, as a single
    process would, and every rank reads its slices. Only the main rank has all of them, and only meanwhile.
    """
    if (source := base_source(plan, checkpoint)) is not None or plan.sharding is None or plan.model.pretrained:
        return source
    if plan.model.quantization is not None:  # each rank draws all of them
        return None
    folder = plan.output_dir / _DRAWN

    def draw() -> torch.Tensor:
        load_model(plan.model, torch.device("cpu")).save_pretrained(folder)
        return torch.get_rng_state()

    torch.set_rng_state(world.on_main(draw))  # an adapter is drawn next, the same on all ranks
    return folder


def shard_model(language_model: LanguageModel, plan: Plan, world: World, source: Path | None) -> None:
    """Divides a model without weights over the ranks as the plan says, and reads this rank's slices.

    Does nothing if the plan does not divide the model. Quantized weights are there already: each rank has read all of
    them, and keeps its slices.

    Args:
        language_model: The model, whose base weights are on the meta device, and whose adapter is drawn.
        plan: The plan of the run.
        world: This rank.
        source: Directory of the base weights, None for those that the plan names.

    Raises:
        ConfigError: The model has no such blocks, or ranks would run different numbers of passes.
    """
    if plan.sharding is None:
        return
    if language_model.takes_single_documents:
        raise ConfigError(
            "fsdp: the documents of this model are computed one at a time, so ranks would run different numbers of "
            "passes; set fsdp.sharding_strategy: NO_SHARD"
        )
    base = below_adapter(language_model.inner)
    is_read = plan.model.quantization is not None
    loaded = None if is_read else _load_slices(base, plan, source, _rows_mesh(plan.sharding))
    blocks, whole = blocks_of(base, plan.sharding), _parts_that_may_not_run(base)
    whole += _of_other_dtypes(base, blocks, whole)
    mesh = build_mesh(plan.sharding, world.device.type)
    shard_modules(language_model, blocks, plan.sharding, mesh, whole, world.traffic)
    if loaded is not None:
        _fill(language_model, base, loaded, world.device)
    with torch.no_grad():  # FSDP sets up its state, and pads slices, in the first pass
        language_model(empty_batch().to(world.device))
    free_gathered(language_model)
    if world.is_main and source is not None and source.name == _DRAWN:  # all ranks have read it
        shutil.rmtree(source)


def load_divided_weights(language_model: nn.Module, plan: Plan, checkpoint: Path) -> None:
    """Copies the weights or the adapter of a checkpoint into a divided model, in place.

    Does nothing if the checkpoint has them in slices, which are part of the training state.
    """
    assert plan.sharding is not None
    base = below_adapter(language_model.inner)
    if (source := base_source(plan, checkpoint)) is not None:
        loaded = _load_slices(base, plan, source, _rows_mesh(plan.sharding))
        weights = dict(loaded.named_parameters(remove_duplicate=False))
    elif is_adapted(language_model.inner):
        adapted = below_adapter(build_model(plan, torch.device("cpu"), checkpoint))
        weights = {name: weight for name, weight in adapted.named_parameters() if not weight.is_meta}
    else:
        return
    for name, parameter in base.named_parameters():
        if (weight := weights.get(name)) is not None:
            _copy(parameter, weight)


def _rows_mesh(plan: ShardingPlan) -> DeviceMesh:
    """Returns the ranks that hold one copy of the model, for tensors in the memory of the host."""
    mesh = build_mesh(plan, "cpu")
    return mesh if plan.num_replicas == 1 else mesh[SHARD]


def blocks_of(base: Any, plan: ShardingPlan) -> list[nn.Module]:
    """Returns the repeated layers of a decoder, in order, each of which is gathered as a whole.

    Raises:
        ConfigError: It has no layers of the classes that the config names.
    """
    modules = [module for module in base.get_decoder().modules() if module is not base.get_decoder()]
    kinds = {type(module).__name__ for module in modules}
    # transformers names the layers in the list of modules that must not be split among devices, of some models wrongly.
    layers = {type(module).__name__ for module in modules if isinstance(module, GradientCheckpointingLayer)}
    names = set(plan.block_classes) or kinds.intersection(base._no_split_modules or ()) or layers
    for name in plan.block_classes:
        if name not in kinds and name not in {type(module).__name__ for module in base.modules()}:
            hint = did_you_mean(name, kinds) or f"; it has {', '.join(sorted(base._no_split_modules or kinds))}"
            raise ConfigError(f"fsdp.transformer_layer_cls: the model has no layer of class '{name}'{hint}")
    blocks: list[nn.Module] = []
    within: set[int] = set()
    for module in modules:
        if type(module).__name__ not in names or id(module) in within:
            continue
        within.update(map(id, module.modules()))
        if plan.min_block_weights is None or sum(p.numel() for p in module.parameters()) >= plan.min_block_weights:
            blocks.append(module)
    if not blocks and plan.min_block_weights is None:
        logger.warning("fsdp: no layers of the model are known, so all weights are gathered at once; name the class of "
                       "the layers in fsdp.transformer_layer_cls")  # fmt: skip
    return blocks


def _parts_that_may_not_run(base: Any) -> list[nn.Parameter]:
    """Returns the weights outside of decoder, embedding and head, such as an image encoder's.

    A rank without images does not run them, so it would not take part in gathering them.
    """
    always = [base.get_decoder(), base.get_input_embeddings(), base.get_output_embeddings()]
    run = {id(parameter) for module in always if module is not None for parameter in module.parameters()}
    return [parameter for parameter in base.parameters() if id(parameter) not in run] if len(run) else []


def _of_other_dtypes(base: Any, blocks: list[nn.Module], whole: list[nn.Parameter]) -> list[nn.Parameter]:
    """Returns the trained weights of another dtype than most of those that are gathered with them.

    FSDP takes gradients of one dtype at a time. The router of DeepSeek V3 is in float32 within a bfloat16 model.
    """
    is_left = {id(parameter): parameter.requires_grad for parameter in base.parameters()}
    is_left |= {id(parameter): False for parameter in whole}
    others: list[nn.Parameter] = []
    for module in [*blocks, base]:
        group = [parameter for parameter in module.parameters() if is_left[id(parameter)]]
        is_left |= {id(parameter): False for parameter in group}
        counts: Counter[torch.dtype] = Counter()
        for parameter in group:
            counts[parameter.dtype] += parameter.numel()
        others += [parameter for parameter in group if parameter.dtype != counts.most_common(1)[0][0]]
    return others


def _load_slices(base: Any, plan: Plan, source: Path | None, mesh: DeviceMesh) -> Any:
    """Returns a second model of the same class with this rank's slices of the weights of files.

    transformers reads only the slice of a weight that is divided. (Before version 5.14 it reads all of it.)
    """
    original = type(base)

    def initialize(self: Any, *args: Any, **kwargs: Any) -> None:
        original.__init__(self, *args, **kwargs)
        divided = {id(p): divided_like(p, mesh) for p in self.parameters() if p.is_meta and p.ndim}
        replace_parameters(self, divided)

    # Of the same name, since transformers looks up some settings by the name of a class.
    sliced = type(original.__name__, (original,), {"__init__": initialize, "__module__": original.__module__})
    return load_model(plan.model, torch.device("cpu"), source, model_class=sliced)


def _fill(language_model: LanguageModel, base: Any, loaded: Any, device: torch.device) -> None:
    """Sets the parameters and buffers of a divided model from the slices of `loaded`."""
    weights = dict(loaded.named_parameters(remove_duplicate=False))
    buffers = dict(loaded.named_buffers(remove_duplicate=False))
    replacements: dict[int, nn.Parameter] = {}
    for name, parameter in base.named_parameters():
        weight = weights.get(base_weight_name(name))
        if weight is None or not parameter.is_meta:  # of an adapter, which has its weights
            if not isinstance(parameter, DTensor) and parameter.device.type != device.type:
                replacements[id(parameter)] = nn.Parameter(parameter.detach().to(device), parameter.requires_grad)
            continue
        if isinstance(parameter, DTensor):
            local = _rows_of(weight, parameter)
            replacements[id(parameter)] = with_local(parameter, local.to(parameter.device_mesh.device_type))
        else:
            whole = weight.full_tensor() if isinstance(weight, DTensor) else weight
            replacements[id(parameter)] = nn.Parameter(whole.detach().to(device), parameter.requires_grad)
    replace_parameters(language_model, replacements)
    for module_name, module in base.named_modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                path = base_weight_name(f"{module_name}.{name}" if module_name else name)
                module._buffers[name] = buffers[path].to(device)


def _rows_of(weight: torch.Tensor, like: DTensor) -> torch.Tensor:
    """Returns the slice of a weight that belongs to this rank's slice of `like`, copied."""
    if isinstance(weight, DTensor):
        return weight._local_tensor.detach().clone()
    start, count = local_rows(like)
    return weight.detach()[start : start + count].clone()


@torch.no_grad()
def _copy(parameter: torch.Tensor, weight: torch.Tensor) -> None:
    if isinstance(parameter, DTensor):
        parameter._local_tensor.copy_(_rows_of(weight, parameter))
    else:
        parameter.copy_(weight.full_tensor() if isinstance(weight, DTensor) else weight)
