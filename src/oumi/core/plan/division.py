# SPDX-License-Identifier: Apache-2.0
"""The weights of a model as FSDP2 divides and gathers them: in groups, a group for each block. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from oumi.core.configs.peft import ALL_LINEAR
from oumi.core.plan.disk import BYTES
from oumi.core.plan.lora import LoraPlan, is_target
from oumi.core.plan.parts import Plan
from oumi.core.plan.shapes import ModelShape
from oumi.core.plan.sharding import BUCKET_BYTES, rows_of_rank

USUAL_TARGETS = ("q_proj", "v_proj")
"""Modules that PEFT adapts by default in these families."""
_OF_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_LAYER = "DecoderLayer"
"""End of the names of the classes of layers in these families."""
_ODD_SETTINGS = ("target_parameters", "modules_to_save", "exclude_modules", "trainable_token_indices")
"""Settings of PEFT whose weights cannot be counted from the shape alone."""


@dataclass(frozen=True)
class Weight:
    """A weight of a model."""

    rows: int
    columns: int
    """Numbers of a row."""
    number_bytes: float
    """Bytes of a number as it is kept, with its share of the scales if it is quantized."""
    is_trained: bool

    @property
    def num_bytes(self) -> int:
        """Returns the bytes of the weight."""
        return int(self.rows * self.columns * self.number_bytes)

    def rows_of(self, rank: int, num_ranks: int) -> int:
        """Returns the number of rows of a rank's slice."""
        return rows_of_rank(self.rows, rank, num_ranks)[1]


@dataclass(frozen=True)
class Division:
    """The groups of weights that are gathered together, and how many ranks hold one copy of them."""

    block: tuple[Weight, ...]
    """The weights of a layer."""
    num_blocks: int
    root: tuple[Weight, ...]
    """The weights outside of the layers, which are gathered for a whole step."""
    num_shards: int
    """1 if each rank has all of them."""
    compute_bytes: int | None
    """Bytes of a number as it is gathered and multiplied, None for those of the weight."""
    reduce_bytes: int | None
    """Bytes of a number of a gradient while it is summed, None for those of the weight."""

    def gathered_bytes(self, weights: Iterable[Weight]) -> int:
        """Returns the bytes of weights as they are gathered; the slices of all ranks are padded to equal rows."""
        return sum(int(self._padded(weight) * (self.compute_bytes or weight.number_bytes)) for weight in weights)

    def reduced_bytes(self, weights: Iterable[Weight]) -> int:
        """Returns the bytes of the gradients of weights as they are summed over the ranks."""
        return sum(
            int(self._padded(weight) * (self.reduce_bytes or weight.number_bytes))
            for weight in weights
            if weight.is_trained
        )

    def gradient_bytes(self, weights: Iterable[Weight]) -> int:
        """Returns the bytes of the gradients of weights as the backward pass computes them."""
        return self.gathered_bytes(weight for weight in weights if weight.is_trained)

    def slice_bytes(self, rank: int = 0, only_trained: bool = False) -> int:
        """Returns the bytes of a rank's slices of all weights; the first rank has most."""
        return self._slices(self.root, rank, only_trained) + self.num_blocks * self._slices(
            self.block, rank, only_trained
        )

    def _slices(self, weights: Iterable[Weight], rank: int, only_trained: bool) -> int:
        return sum(
            int(weight.rows_of(rank, self.num_shards) * weight.columns * weight.number_bytes)
            for weight in weights
            if weight.is_trained or not only_trained
        )

    def _padded(self, weight: Weight) -> int:
        return -(-weight.rows // self.num_shards) * self.num_shards * weight.columns


def divide(plan: Plan) -> Division | None:
    """Returns how the weights of a plan's model are divided, None if they cannot be counted before it is built."""
    shape, sharding = plan.shape, plan.sharding
    if shape is None or not can_count_weights(plan):
        return None
    number = BYTES.get(plan.model.dtype, 4)
    block, root = _block(shape, plan, number), _root(shape, plan.lora, number)
    if sharding is None:
        return Division(block, shape.layers, root, 1, None, None)
    if sharding.block_classes and not any(name.endswith(_LAYER) for name in sharding.block_classes):
        return None
    compute = None if sharding.compute_dtype is None else BYTES[sharding.compute_dtype]
    is_narrow = number < 4 or (compute or 4) < 4
    least = sharding.min_block_weights or 0
    if sum(weight.rows * weight.columns for weight in block) < least:  # no layer is a group of its own
        block, root, num_blocks = (), (*root, *block * shape.layers), 0
    else:
        num_blocks = shape.layers
    return Division(block, num_blocks, root, sharding.num_shards, compute, 4 if is_narrow else None)


def gathered_bytes(plan: Plan, division: Division, sums_tied: bool) -> tuple[int, int, int]:
    """Returns the bytes of whole weights and gradients that a rank holds: at the head, in backward, and at its end.

    Args:
        plan: The plan of the run.
        division: How its weights are divided.
        sums_tied: Head and embedding each make a gradient of the weights that they share.
    """
    sharding, on_cpu = plan.sharding, plan.device == "cpu"
    if sharding is None:
        # The gradients of a bucket are copied to be summed; large ones are a bucket of their own.
        largest = max(weight.num_bytes for weight in division.root if weight.is_trained) if plan.lora is None else 0
        return 0, 0, max(BUCKET_BYTES, largest) if plan.steps.world_size > 1 else 0
    block, root = division.gathered_bytes(division.block), division.gathered_bytes(division.root)
    num_kept = 0 if sharding.frees_after_forward else division.num_blocks
    # What the last block was copied from when it was gathered is freed by the next one.
    at_head = root + (max(num_kept, 1) + 1) * block
    # The weights of a block and of the next, and its gradients as they are computed and as they are sent.
    sent = division.gradient_bytes(division.block) + division.reduced_bytes(division.block)
    in_backward = root + max(num_kept, 1 + sharding.gathers_ahead_in_backward) * block + sent
    # The gradients of the root come last; gloo copies what it sums. Freed blocks lie between gradients on a CPU.
    at_end = root + division.gradient_bytes(division.root) + division.reduced_bytes(division.root) * (1 + on_cpu)
    if sums_tied:
        at_end += 2 * division.gradient_bytes(division.root[:1])
    at_end += num_kept * block * on_cpu
    # A checkpoint makes one weight whole at a time; on a CPU, it does not fit between what is left of the step.
    whole = max(weight.num_bytes for weight in division.root) if on_cpu and saves_whole_model(plan) else 0
    return at_head + whole, in_backward + whole, at_end + whole


def saves_whole_model(plan: Plan) -> bool:
    """Returns True if a run of a divided model ever makes its base weights whole to save them."""
    saving = plan.checkpoints
    if plan.lora is not None:  # those below an adapter are read from the files again
        return False
    has_checkpoints = bool(saving.every_steps or saving.every_epoch)
    whole_checkpoints = has_checkpoints and plan.sharding is not None and plan.sharding.saves_whole_model
    return whole_checkpoints or saving.final_model


def can_count_weights(plan: Plan) -> bool:
    """Returns True if weights are frozen, adapted or replaced only in ways that the shape of the model shows."""
    settings = {} if plan.lora is None else plan.lora.settings
    is_plain = (
        not plan.model.freeze
        and (plan.model.quantization is None or plan.model.quantization.bits > 0)
        and plan.model.adapter is None
        and not plan.model.sees_images
    )
    return plan.shape is not None and is_plain and not any(settings.get(name) for name in _ODD_SETTINGS)


def quantized_bytes(plan: Plan) -> float | None:
    """Returns the bytes of a quantized number with its share of the scales, None if no weight is quantized."""
    quantization = plan.model.quantization
    if quantization is None:
        return None
    if quantization.bits == 8:
        return 1.0  # and a scale per row
    # Blocks of 64 numbers share a scale of 4 bytes. Nested, it is a byte, and 256 scales share another one.
    return 0.5 + (1 + 4 / 256 if quantization.nested else 4) / 64


def adapted_modules(shape: ModelShape, lora: LoraPlan) -> tuple[str, ...]:
    """Returns the names of the modules of a layer that have an adapter."""
    targets: Sequence[str] | str | None = lora.settings["target_modules"]
    if targets is None:
        return USUAL_TARGETS
    if targets == ALL_LINEAR:
        return tuple(shape.matrices)
    if isinstance(targets, str):  # which may name some layers only; this is at most
        return tuple(name for name in shape.matrices if any(is_target(targets, path) for path in _paths(shape, name)))
    return tuple(name for name in shape.matrices if any(target.endswith(name) for target in targets))


def _paths(shape: ModelShape, name: str) -> list[str]:
    """Returns the paths of a module of every layer, as these families name them."""
    part = "self_attn" if name in _OF_ATTENTION else "mlp"
    return [f"model.layers.{i}.{part}.{name}" for i in range(shape.layers)]


def _block(shape: ModelShape, plan: Plan, number: int) -> tuple[Weight, ...]:
    lora, is_full = plan.lora, plan.lora is None
    skipped = plan.model.quantization.skipped if plan.model.quantization else ()
    weights = [
        Weight(outputs, inputs, number if name in skipped else quantized_bytes(plan) or number, is_full)
        for name, (inputs, outputs) in shape.matrices.items()
    ]
    weights += [Weight(shape.hidden, 1, number, is_full)] * (4 if shape.has_norms_after else 2)
    weights += [Weight(shape.head_size, 1, number, is_full)] * (2 * shape.has_head_norms)
    if lora is not None:
        rank = int(lora.settings["r"])
        for name in adapted_modules(shape, lora):
            inputs, outputs = shape.matrices[name]
            weights += [Weight(rank, inputs, 4, True), Weight(outputs, rank, 4, True)]  # PEFT keeps them in float32
            weights += [Weight(outputs, 1, 4, True)] * bool(lora.settings.get("use_dora"))  # a magnitude of each row
    return tuple(weights)


def _root(shape: ModelShape, lora: LoraPlan | None, number: int) -> tuple[Weight, ...]:
    tables = [Weight(shape.vocabulary, shape.hidden, number, lora is None)] * (1 if shape.is_tied else 2)
    return (*tables, Weight(shape.hidden, 1, number, lora is None))
