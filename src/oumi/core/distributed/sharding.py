# SPDX-License-Identifier: Apache-2.0
"""Divides a model over ranks by FSDP2 of torch: a rank holds slices of the weights, and gathers one block at a time.

See PyTorch FSDP (arXiv 2304.11277) and ZeRO (arXiv 1910.02054).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from oumi.core.distributed.traffic import Traffic
from oumi.core.errors import ConfigError
from oumi.core.plan.sharding import ShardingPlan, rows_of_rank

SHARD = "shard"
"""Dimension of a mesh whose ranks hold one copy of the model together."""
_REPLICATE = "replicate"


def build_mesh(plan: ShardingPlan, device_type: str) -> DeviceMesh:
    """Returns the ranks as a mesh: [shard], or [replicate, shard] if there are several copies of the model."""
    if plan.num_replicas == 1:
        return init_device_mesh(device_type, (plan.num_shards,), mesh_dim_names=(SHARD,))
    return init_device_mesh(device_type, (plan.num_replicas, plan.num_shards), mesh_dim_names=(_REPLICATE, SHARD))


def shard_modules(
    root: nn.Module,
    blocks: Sequence[nn.Module],
    plan: ShardingPlan,
    mesh: DeviceMesh,
    whole: Iterable[nn.Parameter] = (),
    traffic: Traffic | None = None,
) -> None:
    """Divides the weights of a module over the ranks of a mesh.

    Args:
        root: The module that is called. Its weights outside of the blocks are gathered for a whole step.
        blocks: Modules whose weights are gathered one at a time, in the order in which they are called.
        plan: What is gathered when.
        mesh: The result of `build_mesh`.
        whole: Weights that each rank keeps as they are.
        traffic: Records the collective operations.
    """
    narrow = None if plan.compute_dtype is None else getattr(torch, plan.compute_dtype)
    is_narrow = narrow is not None or any(p.dtype in (torch.bfloat16, torch.float16) for p in root.parameters())
    # Gradients of many ranks are summed in float32: bfloat16 would lose the small ones.
    policy = MixedPrecisionPolicy(narrow, torch.float32 if is_narrow else None)
    offload = CPUOffloadPolicy() if plan.offload and mesh.device_type != "cpu" else OffloadPolicy()
    frees, ignored = plan.frees_after_forward, set(whole)
    for block in blocks:
        fully_shard(
            block,
            mesh=mesh,
            reshard_after_forward=frees,
            mp_policy=policy,
            offload_policy=offload,
            ignored_params=ignored,
        )
    # The loss reads the weight of the head after the forward pass of the root.
    fully_shard(
        root, mesh=mesh, reshard_after_forward=False, mp_policy=policy, offload_policy=offload, ignored_params=ignored
    )
    # The weight of a tied head is one; nothing writes to it.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)
    for module in root.modules():
        if isinstance(module, FSDPModule):
            # A loss is divided by the terms of all ranks, so the gradients of the ranks are added. Without the second
            # call, torch uses a scaled sum that only NCCL has.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
            if hasattr(module, "set_reduce_scatter_unused_params"):  # since torch 2.13
                module.set_reduce_scatter_unused_params(True)
            if traffic is not None:
                traffic.attach(module, mesh.get_group(_REPLICATE) if plan.num_replicas > 1 else None)
    if plan.gathers_ahead_in_forward:
        for block, following in pairwise(blocks):
            block.set_modules_to_forward_prefetch([following])  # type: ignore[operator]
    if not plan.gathers_ahead_in_backward:
        for block in blocks:
            # Without a list FSDP gathers the next block ahead; a block itself is there already.
            block.set_modules_to_backward_prefetch([block])  # type: ignore[operator]


def reset_passes(root: nn.Module) -> None:
    """Lets a divided model begin a new pass after one that failed; its ranks hold their slices only."""
    # Also of gathered weights, whose gradients FSDP would add to those of the next pass.
    root.zero_grad(set_to_none=True)
    if isinstance(root, FSDPModule):
        if not hasattr(root, "reset_iter_state"):
            raise ConfigError("out of memory on a rank of a divided model; with torch 2.13 it would go on in parts")
        root.reset_iter_state()


def free_gathered(root: nn.Module) -> None:
    """Frees the gathered weights that are kept between passes, so that a rank holds its slices only."""
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def local_rows(parameter: DTensor) -> tuple[int, int]:
    """Returns the first row of a rank's slice of a weight, and the number of its rows."""
    mesh = parameter.device_mesh
    return rows_of_rank(len(parameter), mesh.get_local_rank(SHARD), mesh.size(mesh.ndim - 1))


def with_local(parameter: DTensor, local: torch.Tensor) -> nn.Parameter:
    """Returns a weight that is divided as `parameter` is, with `local` as the rank's slice."""
    divided = DTensor.from_local(
        local,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
    return nn.Parameter(divided, requires_grad=parameter.requires_grad)


def divided_like(parameter: nn.Parameter, mesh: DeviceMesh) -> nn.Parameter:
    """Returns a weight on the meta device that is divided by rows over the ranks of a mesh."""
    _, count = rows_of_rank(len(parameter), mesh.get_local_rank(), mesh.size())
    local = torch.empty((count, *parameter.shape[1:]), dtype=parameter.dtype, device="meta")
    divided = DTensor.from_local(
        local, mesh, (Shard(0),), run_check=False, shape=parameter.shape, stride=parameter.stride()
    )
    return nn.Parameter(divided, requires_grad=parameter.requires_grad)


def replace_parameters(model: nn.Module, replacements: dict[int, nn.Parameter]) -> None:
    """Replaces parameters by others, wherever modules share them; `replacements` are by the id of the old one."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) in replacements:
                module._parameters[name] = replacements[id(parameter)]
