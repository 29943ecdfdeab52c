# SPDX-License-Identifier: Apache-2.0
"""The sizes of the tensors of a forward and backward pass, as the engine keeps them. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from oumi.core.plan.choices import NUM_RECOMPUTED
from oumi.core.plan.disk import BYTES
from oumi.core.plan.division import Division, adapted_modules
from oumi.core.plan.parts import Plan
from oumi.core.plan.shapes import ModelShape

_HOLES_TIGHT, _HOLES = 0.06, 0.38
"""Fragmentation as a share of what each step allocates and frees: measured.

glibc aligns a block for vector instructions by cutting off a few bytes before it. If its per-thread caches keep those
bytes, a freed block is too small for the next one of the same size; see `host.has_tight_heap`.
"""
_HOLES_SCORED = 0.06
"""Additional fragmentation where attention allocates scores of many sizes: measured."""
_HOLES_SHARED = 0.1
"""Additional fragmentation where prompts are shared, so that each micro-batch has another size: measured.

The gradients of all weights lie between freed blocks, which then cannot be joined. Those of an adapter are too small.
"""
_HOLES_GATHERED = 0.12
"""Additional fragmentation on a CPU where the weights of blocks are gathered and freed between activations: measured.
"""
_LEFT_TIGHT = 0.67
"""Share of the activations' memory that is still held at the end of backward, since gradients lie between the freed
blocks: measured. Without a tight heap it is all of it."""
_LAYERS_AGAIN_TIGHT, LAYERS_AGAIN = 2, 4
"""Recomputed layers that are held together: gradients lie between the freed blocks of the previous ones. Measured.

On a GPU it is one, and no memory of activations remains: its allocator reuses freed blocks for other sizes.
"""
_MIXED_BYTES = {"cpu": 3.0}
_MIXED_BYTES_ELSEWHERE = 2.4
"""Average bytes of a number that a layer keeps in mixed precision, where some are wide and some narrow: measured."""
_SCORES = 1.2
"""Memory of attention scores as a multiple of their size, since each document has small matrices of its own: measured.
"""
_CHUNK_ELEMENTS = {"cpu": 1 << 23}
"""Logits of a chunk: on a CPU, 32 MB of float32, which fit into its caches."""
_CHUNK_ELEMENTS_ELSEWHERE = 1 << 28
_CHUNK_ROWS = {"cpu": (128, 1024)}
_CHUNK_ROWS_ELSEWHERE = (1024, 1 << 16)
"""Fewest and most rows of a chunk. With fewer, the gradient of the head is read and written too often."""
_CHUNK_STEP = 64
"""The rows of a chunk are a multiple of it: few different sizes, since oneDNN compiles a kernel for each."""
_SCORES_HELD = {"cpu": 1 << 19}
"""Attention scores of a block of queries: on a CPU, 2 MB of float32, which fit into its caches."""
_SCORES_HELD_ELSEWHERE = 1 << 25
_FEWEST_QUERIES = 64
"""Fewest queries of a block."""
_BLOCKS_HELD = 5
"""Matrices of the size of a block of scores that the backward pass holds."""


@dataclass(frozen=True)
class LargestMicroBatch:
    """The largest micro-batch of a run."""

    tokens: int
    longest: int
    """Tokens of the longest row among them."""


def num_recomputed(settings: Mapping[str, Any] | None, num_layers: int) -> int:
    """Returns how many layers are recomputed by the arguments of gradient checkpointing."""
    # None is no checkpointing; without a number, all layers are recomputed.
    return 0 if settings is None else min(settings.get(NUM_RECOMPUTED, num_layers), num_layers)


def chunk_rows(num_rows: int, vocabulary: int, device: str) -> int:
    """Returns the number of rows of a chunk of logits, a multiple of 64."""
    fewest, most = _CHUNK_ROWS.get(device, _CHUNK_ROWS_ELSEWHERE)
    fitting = _CHUNK_ELEMENTS.get(device, _CHUNK_ELEMENTS_ELSEWHERE) // vocabulary
    limit = min(max(fitting, fewest), most) // _CHUNK_STEP * _CHUNK_STEP
    # Equal chunks instead of full ones and a small rest.
    count = max(-(-num_rows // limit), 1)
    return -(-num_rows // (count * _CHUNK_STEP)) * _CHUNK_STEP


def block_queries(heads: int, length: int, window: int | None, device: str) -> int:
    """Returns the number of queries of a block of attention scores."""
    held_elements = _SCORES_HELD.get(device, _SCORES_HELD_ELSEWHERE)
    if window is None or window >= length:
        return max(held_elements // (heads * length), _FEWEST_QUERIES)
    # A block attends to the window before it and to itself, so one wider than the window would waste scores.
    return max(min(held_elements // (heads * 2 * window), window), _FEWEST_QUERIES)


@dataclass(frozen=True)
class StepSizes:
    """The sizes of the tensors of one forward and backward pass, in bytes."""

    plan: Plan
    shape: ModelShape
    division: Division
    largest: LargestMicroBatch
    is_tight: bool

    @property
    def adapted(self) -> tuple[str, ...] | None:
        """Returns the names of the modules with an adapter, None if all weights are trained."""
        return None if self.plan.lora is None else adapted_modules(self.shape, self.plan.lora)

    @property
    def trained_number(self) -> int:
        """Returns the bytes of a single trained number; PEFT keeps adapters in float32."""
        return BYTES.get(self.plan.model.dtype, 4) if self.adapted is None else 4

    @property
    def trained_bytes(self) -> int:
        """Returns the bytes of the trained weights, or of this rank's slices of them."""
        return self.division.slice_bytes(only_trained=True)

    @property
    def weight_bytes(self) -> int:
        """Returns the bytes of all weights, or of this rank's slices: of the model, the adapter, a frozen reference."""
        adapter = 0 if self.adapted is None else self.trained_bytes
        base = self.division.slice_bytes() - adapter
        # Autocast keeps a 16-bit copy of each weight that it multiplies: of whole weights, once they are gathered.
        is_cast = self.plan.precision.autocast and self.division.compute_bytes is None
        copies = self.shape.num_parameters * 2 if is_cast else 0
        return (base + copies) * (2 if self.plan.method.holds_copy else 1) + adapter

    @property
    def number(self) -> float:
        """Returns the bytes of a number that a layer keeps, on average in mixed precision."""
        if self.plan.precision.autocast:
            return _MIXED_BYTES.get(self.plan.device, _MIXED_BYTES_ELSEWHERE)
        return BYTES.get(self.plan.model.dtype, 4)

    @property
    def holes(self) -> float:
        """Returns the memory of activations as a multiple of their size, with fragmentation."""
        gathers = self.plan.sharding is not None and self.plan.device == "cpu"
        return (
            1
            + (_HOLES_TIGHT if self.is_tight else _HOLES)
            + (_HOLES_SCORED if self.scores_in_blocks else 0)
            + (_HOLES_SHARED if self.plan.shares_prefixes and self.adapted is None else 0)
            + (_HOLES_GATHERED if gathers else 0)
        )

    def left_bytes(self, gradients: int) -> float:
        """Returns the bytes of activations that are still held at the end of backward, between gradients."""
        if self.plan.device != "cpu":
            return 0.0
        if self.plan.sharding is not None:
            # Whole gradients come and go between the slices that stay; recomputed layers leave no blocks between them.
            whole = self.division.gradient_bytes(self.division.block) * self.division.num_blocks
            again = num_recomputed(self.plan.gradient_checkpointing, self.shape.layers)
            return min(self.layers_bytes if again < self.shape.layers else 0, whole)
        return min(self.layers_bytes, gradients) * (_LEFT_TIGHT if self.is_tight else 1)

    @property
    def has_scores(self) -> bool:
        """Returns True if attention computes a matrix of scores, which fused kernels avoid."""
        return self.shape.has_softcap or self.plan.model.attention == "eager"

    @property
    def scores_in_blocks(self) -> bool:
        """Returns True if the scores are recomputed in backward, block by block."""
        # Our attention does so, but not with dropout: it would have to draw the same numbers again.
        drops_weights = self.shape.drops_weights and not self.plan.model.disable_dropout
        return self.has_scores and self.plan.speed.flat_batches and not drops_weights

    @property
    def keeps_scores(self) -> bool:
        """Returns True if all scores are kept for the backward pass."""
        return self.has_scores and not self.scores_in_blocks

    @property
    def sums_tied(self) -> bool:
        """Returns True if head and embedding each make a gradient of the weights that they share."""
        speed = self.plan.speed
        # The fused embedding adds its gradient to that of the fused head.
        is_once = speed.fused_layers and speed.fused_loss and not self.shape.scales_embedding
        return self.shape.is_tied and not is_once

    @property
    def shares_output(self) -> bool:
        """Returns True if attention and the projection after it keep the same tensor."""
        is_plain = not self.has_scores and not self.shape.has_window
        return is_plain and self.plan.speed.flat_batches and self.plan.device == "cpu"

    @property
    def layers_bytes(self) -> float:
        """Returns the bytes that all layers keep until their backward pass."""
        # A recomputed layer keeps only its input.
        streams = self.largest.tokens * self.shape.hidden * self.number
        again = num_recomputed(self.plan.gradient_checkpointing, self.shape.layers)
        num_kept = self.shape.layers - again
        kept = num_kept * self.layer_bytes + (again + 2) * streams
        if self.plan.steps.accumulation == 1 or self.plan.device != "cpu":
            return kept
        # On a CPU, gradients of the first micro-batch lie in its largest freed blocks, which cannot be reused then.
        return kept + 2 * self.largest.tokens * self.shape.inner * self.number * num_kept

    @property
    def layers_again(self) -> tuple[int, int]:
        """Returns how many recomputed layers are held in backward: at the first recomputed layer, and at the end."""
        again = num_recomputed(self.plan.gradient_checkpointing, self.shape.layers)
        held_layers = 1 if self.plan.device != "cpu" else _LAYERS_AGAIN_TIGHT if self.is_tight else LAYERS_AGAIN
        # They reuse the memory of the layers above that kept everything and are done.
        beyond = max(held_layers - (self.shape.layers - again), 0) if again else 0
        return beyond, max(beyond, 1)  # without checkpointing, the last layer is still held at the end

    @property
    def layer_bytes(self) -> float:
        """Returns the bytes that one layer keeps if it is not recomputed."""
        shape, tokens, longest = self.shape, self.largest.tokens, self.largest.longest
        num_norms = 4 if shape.has_norms_after else 2
        # Always float32: a statistic per token and norm, and the log-sum-exp per head of attention.
        floats = tokens * (num_norms + shape.heads * (2 if shape.has_head_norms else 1))
        scores = 0.0
        if self.keeps_scores:
            matrices = shape.heads * self.number * (2 if shape.has_softcap else 1)
            scores = _SCORES * tokens * longest * (matrices + 1)
        per_token = self._numbers * self.number + self._adapter_bytes
        return tokens * per_token + 4 * floats + scores + self._adapter_copies

    @property
    def _numbers(self) -> int:
        """Returns how many numbers a layer keeps per token, without scores."""
        shape, is_fused = self.shape, self.plan.speed.fused_layers
        # The gradient of a trained weight needs the input of its layer, so trained layers keep it.
        is_full, adapted = self.adapted is None, self.adapted or ()
        # Those that copy their input keep the copy instead.
        with_input = () if self._copies_inputs else adapted
        mlp_parts = ("gate_proj", "up_proj", "down_proj")
        has_fused_mlp = is_fused and not any(part in adapted for part in mlp_parts)
        # The residual stream, at the inputs of the norms.
        stream = 2 * shape.hidden
        if shape.has_norms_after:
            stream += 2 * shape.hidden
        if not is_fused and is_full:  # the normalized states, for the gradient of the norm's scale
            stream += shape.hidden * (4 if shape.has_norms_after else 2)
        # Norms compute in float32, and keep what they read so; measured on a CPU, and not seen on a GPU.
        if not is_fused and self.plan.device == "cpu" and not self.plan.precision.autocast:
            stream += int((4 if shape.has_norms_after else 2) * shape.hidden * max(4 / self.number - 1, 0))
        if is_full or any(name in with_input for name in ("q_proj", "k_proj", "v_proj")):
            stream += shape.hidden
        if is_full or has_fused_mlp or any(name in with_input for name in ("gate_proj", "up_proj")):
            stream += shape.hidden
        # Fused attention keeps queries, keys, values and output. Eager attention keeps no output, but its keys and
        # values are repeated for every query head.
        attention = 3 * shape.queries if self.keeps_scores else 2 * (shape.queries + shape.keys)
        if (is_full or "o_proj" in with_input) and not self.shares_output:
            attention += shape.queries
        if shape.has_head_norms:
            attention += (shape.queries + shape.keys) * (2 if not is_fused and is_full else 1)
        # The outputs of gate and up; unfused, also that of the activation, and the input of down if it is trained.
        inner = 2 if has_fused_mlp else 4 if is_full or "down_proj" in with_input else 3
        return stream + attention + inner * shape.inner

    @property
    def _copies_inputs(self) -> bool:
        """Returns True if each adapter keeps an input of its own: after dropout, or in the dtype of the adapter."""
        if self.plan.lora is None:
            return False
        is_cast = not self.plan.precision.autocast and self.number != self.trained_number
        return is_cast or bool(self.plan.lora.settings.get("lora_dropout"))

    @property
    def _adapter_bytes(self) -> float:
        """Returns the bytes per token that the adapters of a layer keep, without inputs that are kept as they are."""
        if self.plan.lora is None:
            return 0
        settings, wide = self.plan.lora.settings, self.trained_number
        total = 0.0
        for name in self.adapted or ():
            inputs, outputs = self.shape.matrices[name]
            total += int(settings["r"]) * wide
            if self._copies_inputs:
                total += inputs * wide
            if settings.get("lora_dropout"):  # the factors of dropout; a GPU keeps a byte of each
                total += inputs * (wide if self.plan.device == "cpu" else 1)
            if settings.get("use_dora"):  # the outputs of base and adapter, whose sum is scaled
                total += outputs * ((wide if settings.get("lora_dropout") else self.number) + wide)
        return total

    @property
    def _adapter_copies(self) -> int:
        """Returns the bytes of the copies of base weights that a layer keeps, whatever the number of tokens."""
        if self.plan.lora is None:
            return 0
        settings, wide = self.plan.lora.settings, self.trained_number
        is_copied = self.plan.model.quantization is not None or BYTES.get(self.plan.model.dtype, 4) != wide
        # After dropout, DoRA multiplies by the base weight a second time, in the dtype of the adapter.
        if not (is_copied and settings.get("use_dora") and settings.get("lora_dropout")):
            return 0
        return wide * sum(a * b for a, b in (self.shape.matrices[name] for name in self.adapted or ()))

    @property
    def adapter_forward_bytes(self) -> float:
        """Returns the bytes that an adapter allocates in the forward pass, whatever the number of tokens."""
        if self.plan.lora is None or not self.plan.lora.settings.get("use_dora"):
            return 0
        # DoRA measures the rows of W + B A: it multiplies an identity by the adapter, scales that and adds the weight.
        sizes = [self.shape.matrices[name] for name in self.adapted or ()]
        copies = 4 if self.plan.model.quantization else 3
        return self.trained_number * max(inputs * (inputs + copies * outputs) for inputs, outputs in sizes)

    @property
    def backward_bytes(self) -> float:
        """Returns the bytes that the backward pass of one layer allocates on top."""
        shape, tokens, longest = self.shape, self.largest.tokens, self.largest.longest
        scores = 4.0 * shape.heads * longest * longest * self.number if self.keeps_scores else 0.0
        if self.scores_in_blocks:
            queries = min(block_queries(shape.heads, longest, None, self.plan.device), longest)
            scores = 4.0 * _BLOCKS_HELD * queries * shape.heads * longest
        # A quantized weight is in full only for the product with it.
        in_full = max(a * b for a, b in shape.matrices.values()) * self.number if self.plan.model.quantization else 0
        return max(tokens * (3 * shape.inner + 2 * shape.hidden) * self.number, scores) + in_full

    @property
    def logits_bytes(self) -> int:
        """Returns the bytes of the logits that are held together: of one chunk if the loss is fused."""
        tokens, vocabulary = self.largest.tokens, self.shape.vocabulary
        if not self.plan.speed.fused_loss:
            return 3 * tokens * vocabulary * 4  # all logits and their gradients
        # Log-probabilities of answers take the logits and their softmax, softcaps their slope.
        num_matrices = 1 + self.shape.caps_logits + (not self.plan.method.spec.is_per_token)
        return chunk_rows(tokens, vocabulary, self.plan.device) * vocabulary * 4 * num_matrices
