# SPDX-License-Identifier: Apache-2.0
"""The weights that the optimizer of a rank updates: whole ones, or its slices of those that are divided over ranks."""

from __future__ import annotations

import torch
from torch import distributed, nn
from torch.distributed.tensor import DTensor

from oumi.core.distributed.sharding import SHARD
from oumi.core.distributed.world import World


class Parameters:
    """The trained weights of a model on this rank, and their gradients over all ranks.

    An optimizer gets the slice of a divided weight as a plain parameter: each of its numbers is updated on its own.
    """

    def __init__(self, model: nn.Module, world: World) -> None:
        """Takes the slices of a model whose weights are in place, which must not be replaced afterwards."""
        self._model = model
        self._world = world
        self.by_name: dict[str, nn.Parameter] = {}
        """What the optimizer updates, by the name of the weight."""
        self.divided: dict[str, DTensor] = {}
        """The weights of which this rank has slices, by name."""
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            if isinstance(parameter, DTensor):
                self.divided[name] = parameter
                self.by_name[name] = nn.Parameter(parameter._local_tensor)
            else:
                self.by_name[name] = parameter

    def sum_gradients(self) -> None:
        """Replaces the gradients by their sums over all ranks; those of divided weights are sums already."""
        self._world.sum_gradients([p for name, p in self.by_name.items() if name not in self.divided])
        for name, parameter in self.divided.items():
            gradient = parameter.grad
            self.by_name[name].grad = gradient._local_tensor if isinstance(gradient, DTensor) else None
            parameter.grad = None

    def clip_gradients(self, optimizer: torch.optim.Optimizer, limit: float | None) -> torch.Tensor:
        """Scales the gradients down to a norm, unless `limit` is None, and returns the norm of them all before."""
        bound = float("inf") if limit is None else limit
        if not self.divided:
            trained = (parameter for group in optimizer.param_groups for parameter in group["params"])
            return nn.utils.clip_grad_norm_([p for p in trained if p.grad is not None], bound)
        gradients = {name: p.grad for name, p in self.by_name.items() if p.grad is not None}
        slices = [gradient for name, gradient in gradients.items() if name in self.divided]
        whole = [gradient for name, gradient in gradients.items() if name not in self.divided]
        # In float64 on all ranks, so that weights of that dtype keep their digits.
        squares = _square_of_norm(slices).to(self._world.device)
        # Copies of the model have equal gradients, so only the ranks of one copy are added.
        distributed.all_reduce(squares, group=next(iter(self.divided.values())).device_mesh.get_group(SHARD))
        if whole:
            squares = squares + _square_of_norm(whole).to(squares.device)
        norm = squares.sqrt()
        nn.utils.clip_grads_with_norm_([self.by_name[name] for name in gradients], bound, norm)
        return norm

    def drop_gradients(self) -> None:
        """Forgets the gradients of a step, as if it had not begun."""
        self._model.zero_grad(set_to_none=True)
        for parameter in self.by_name.values():
            parameter.grad = None


def _square_of_norm(gradients: list[torch.Tensor]) -> torch.Tensor:
    return nn.utils.get_total_norm(gradients).double().square()
