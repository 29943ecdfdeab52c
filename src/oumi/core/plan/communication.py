# SPDX-License-Identifier: Apache-2.0
"""Predicts what the ranks of a run send to each other in a step, and how long that takes. Imports no torch.

Counted are the bytes that a rank sends with the ring algorithm, which sends least: (n-1)/n of what n ranks gather or
scatter, and twice that of what they sum. See "Bandwidth optimal all-reduce" (Patarasuk and Yuan 2009).
"""

from __future__ import annotations

from dataclasses import dataclass

from oumi.core.plan.division import Division, divide
from oumi.core.plan.parts import Plan
from oumi.core.system.devices import Device, find_device
from oumi.core.system.peaks import nominal_flops

ASSUMED_EFFICIENCY = 0.4
"""Share of the specified FLOP/s that training of a large model usually reaches."""
_PASSES_OF_UPDATE, _TENSORS_OF_UPDATE = 2, 3
"""The optimizer reads and writes the weights and two moments of Adam."""


@dataclass(frozen=True)
class Communication:
    """What a rank sends in an optimizer step, in bytes, and the time of it."""

    gathered_bytes: int
    """Slices of weights, which each pass gathers."""
    reduced_bytes: int
    """Gradients, which are summed over the ranks that hold one copy of the model, or over all."""
    between_copies_bytes: int
    """Slices of gradients, which are summed over the copies of a model that is divided within each node."""
    seconds: float | None
    """Time of sending at the assumed bandwidth, None if the device is not in the table of devices."""
    compute_seconds: float | None
    """Time of the rest of the step at the assumed efficiency, None if the speed of the device is unknown; an upper
    bound until the rows are read."""

    @property
    def total_bytes(self) -> int:
        """Returns the sum of all bytes."""
        return self.gathered_bytes + self.reduced_bytes + self.between_copies_bytes

    @property
    def share(self) -> float | None:
        """Returns the time of sending as a share of a step in which nothing else is done meanwhile."""
        if self.seconds is None or self.compute_seconds is None:
            return None
        return self.seconds / (self.seconds + self.compute_seconds)


def plan_communication(plan: Plan) -> Communication | None:
    """Returns what a rank sends in a step; None with one process, under other trainers, or if weights are unknown."""
    division = divide(plan)
    world_size = plan.steps.world_size
    if world_size == 1 or not plan.is_native or division is None:
        return None
    within, copies = division.num_shards, 1
    if plan.sharding is None:
        reduced = 2 * _ring(world_size, division.slice_bytes(only_trained=True))
        gathered = between = 0
        within = world_size
    else:
        copies = plan.sharding.num_replicas
        gathered = _ring(within, _num_gathered_bytes(plan, division))
        passes = plan.steps.accumulation
        all_reduced = division.reduced_bytes(division.root)
        all_reduced += division.num_blocks * division.reduced_bytes(division.block)
        reduced = passes * _ring(within, all_reduced)
        between = passes * 2 * _ring(copies, all_reduced // within)
    device = find_device(plan.device_name)
    seconds = None
    if device is not None:
        # Ranks of one copy are neighbors; with several copies, a rank sums with those at its place on other nodes.
        within_speed = _bandwidth(device, min(within, plan.steps.ranks_per_node), within > plan.steps.ranks_per_node)
        seconds = (gathered + reduced) / within_speed + between / _bandwidth(device, 1, True)
    return Communication(gathered, reduced, between, seconds, _compute_seconds(plan, division, device))


def _ring(num_ranks: int, num_bytes: int) -> int:
    """Returns the bytes that a rank sends so that `num_ranks` gather or scatter `num_bytes`."""
    return num_bytes * (num_ranks - 1) // num_ranks


def _num_gathered_bytes(plan: Plan, division: Division) -> int:
    """Returns the bytes of all weights that are gathered in a step."""
    assert plan.sharding is not None
    frees = plan.sharding.frees_after_forward
    blocks = division.num_blocks * division.gathered_bytes(division.block)
    root = division.gathered_bytes(division.root)
    # Of a block that is freed after the forward pass, the backward pass gathers it again.
    passes = root + blocks * (2 if frees else 1)
    if plan.method.runs_reference and frees:
        # The forward pass of the reference. What it keeps gathered, it finds gathered in the next one.
        passes += blocks
    return plan.steps.accumulation * passes


def _bandwidth(device: Device, ranks_of_node: int, leaves_node: bool) -> float:
    """Returns the bytes per second that a rank sends in a ring through all ranks of each node."""
    # Several rings use all network cards of the node, so that its ranks share what they send to the next node.
    network = device.network_bandwidth * ranks_of_node if leaves_node else float("inf")
    return min(network, device.link_bandwidth) if ranks_of_node > 1 else device.network_bandwidth


def _compute_seconds(plan: Plan, division: Division, device: Device | None) -> float | None:
    """Returns the time of matrix products and of the update in a step."""
    speed, length, shape = nominal_flops(plan.device_name), plan.model.max_length, plan.shape
    if device is None or speed is None or length is None or shape is None:
        return None
    tokens = plan.steps.micro_batch_rows * plan.steps.accumulation * length * plan.method.spec.documents_per_row
    # A forward pass multiplies each weight once, the backward pass twice: for the gradients of inputs and of weights.
    passes = 3 if plan.lora is None else 2
    passes += (plan.gradient_checkpointing is not None) + plan.method.runs_reference
    weights = shape.num_parameters - (0 if shape.is_tied else shape.embedding)
    # Of the scores with all tokens of a row, half are of later ones, which are left out.
    flops = 2 * tokens * (weights + shape.layers * shape.queries * length) * passes
    moved = _PASSES_OF_UPDATE * _TENSORS_OF_UPDATE * division.slice_bytes(only_trained=True)
    return flops / (ASSUMED_EFFICIENCY * speed) + moved / device.memory_bandwidth
