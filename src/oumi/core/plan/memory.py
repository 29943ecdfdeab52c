# SPDX-License-Identifier: Apache-2.0
"""Memory that a training process needs at its peak, before it starts. Imports no torch.

It is counted what the engine keeps: of each layer what its backward pass reads, of the head one chunk of logits, and
the largest of the moments at which most of that stands together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from oumi.core.plan.choices import NUM_RECOMPUTED
from oumi.core.plan.disk import BYTES, state_bytes
from oumi.core.plan.parts import MemoryPlan, Plan
from oumi.core.plan.shapes import ModelShape

_PROCESS = {"cpu": 465 << 20, "cuda": 800 << 20}
"""Python, torch, transformers, the tokenizer and the ends of huge pages; on a GPU, its context and the workspaces of
matrix products."""
_PEFT = 30 << 20
_HOLES_TIGHT, _HOLES = 0.06, 0.38
"""Memory between blocks that no block fits into, as a share of what each step takes and frees: measured.

glibc's blocks for vectors are aligned by cutting off a few bytes before them. Where its per-thread caches keep those
bytes, a freed block is too small for the next one of its own size; see `host.has_tight_heap`.
"""
_HOLES_SCORED = 0.06
"""The same beside, where attention takes and frees scores of many sizes: measured."""
_LEFT_TIGHT = 0.67
"""Memory of activations that is still held at the end of backward, as gradients stand amid it; else all: measured."""
_LAYERS_AGAIN_TIGHT, LAYERS_AGAIN = 2, 4
"""Layers that are held where one is computed again: gradients of weights stand amid what the last one has left.

On a GPU one is held, and nothing of the activations is left: what was freed there is used again for other sizes.
"""
_MIXED_BYTES = {"cpu": 3.0}
_MIXED_BYTES_ELSEWHERE = 2.4
"""Of a number that a layer keeps in mixed precision, between the narrow and the wide ones: measured."""
_SCORES = 1.2
"""What matrices of scores take for each byte of theirs, as each document has its own small ones: measured."""
_CHUNK_ELEMENTS = {"cpu": 1 << 23}
"""Logits that are held at once: on a CPU, 32 MB of float32, which its caches serve."""
_CHUNK_ELEMENTS_ELSEWHERE = 1 << 28
_CHUNK_ROWS = {"cpu": (128, 1024)}
_CHUNK_ROWS_ELSEWHERE = (1024, 1 << 16)
"""Fewer would read and write the gradient of the head too often."""
_CHUNK_STEP = 64
"""Of the rows of a chunk: few different sizes, as oneDNN makes code for each (see `products.py`)."""
_SCORES_HELD = {"cpu": 1 << 19}
"""Scores of one block of queries, where they are altered: on a CPU, 2 MB of float32, which its caches serve."""
_SCORES_HELD_ELSEWHERE = 1 << 25
_FEWEST_QUERIES = 64
"""Of a block."""
_BLOCKS_HELD = 5
"""Matrices of the size of a block of scores, in backward."""
_USUAL_TARGETS = ("q_proj", "v_proj")
"""What PEFT adapts of these families where nothing is named."""


@dataclass(frozen=True)
class LargestMicroBatch:
    """The largest micro-batch of a run."""

    tokens: int
    longest: int
    """Tokens of the longest row among them."""


def num_recomputed(settings: Mapping[str, Any] | None, num_layers: int) -> int:
    """Returns how many layers compute their activations again, by what the plan says of it."""
    return 0 if settings is None else min(settings.get(NUM_RECOMPUTED, num_layers), num_layers)


def chunk_rows(num_rows: int, vocabulary: int, device: str) -> int:
    """Returns of how many positions logits are taken at once, so that they keep within their share of memory."""
    fewest, most = _CHUNK_ROWS.get(device, _CHUNK_ROWS_ELSEWHERE)
    fitting = _CHUNK_ELEMENTS.get(device, _CHUNK_ELEMENTS_ELSEWHERE) // vocabulary
    limit = min(max(fitting, fewest), most) // _CHUNK_STEP * _CHUNK_STEP
    count = max(-(-num_rows // limit), 1)
    return -(-num_rows // (count * _CHUNK_STEP)) * _CHUNK_STEP


def block_queries(heads: int, length: int, window: int | None, device: str) -> int:
    """Returns of how many queries of a document scores are held at once.

    A block of them sees the window of its first one and itself, so it is not much wider than the window.
    """
    held_elements = _SCORES_HELD.get(device, _SCORES_HELD_ELSEWHERE)
    if window is None or window >= length:
        return max(held_elements // (heads * length), _FEWEST_QUERIES)
    return max(min(held_elements // (heads * 2 * window), window), _FEWEST_QUERIES)


def plan_memory(
    plan: Plan, available: int, is_tight: bool = False, largest: LargestMicroBatch | None = None
) -> MemoryPlan | None:
    """Returns what the process holds at its peak, None where that is not known.

    Args:
        plan: Of the run; its trainer must be ours, since others keep other things.
        available: Bytes of the host or of the GPU.
        is_tight: Freed blocks are used again without holes between them.
        largest: The largest micro-batch, None if the rows are not read yet: then each is as long as it may be.
    """
    if plan.shape is None or not _can_be_predicted(plan):
        return None
    if largest is None and plan.model.max_length is None:
        return None
    length = largest.longest if largest else plan.model.max_length or 0
    documents = plan.steps.micro_batch_rows * plan.method.spec.documents_per_row
    padded = LargestMicroBatch(documents * length, length)
    micro_batch = largest if largest and plan.speed.flat_batches else padded
    moments = _moments(_Step(plan, plan.shape, micro_batch, is_tight or plan.device != "cpu"))
    peak = max(moments, key=lambda moment: moment.total)
    return replace(peak, available=available, is_tight=is_tight, is_bound=largest is None)


def _can_be_predicted(plan: Plan) -> bool:
    """Returns False where weights are frozen, adapted or exchanged in ways that are not counted here."""
    settings = {} if plan.lora is None else plan.lora.settings
    odd = ("target_parameters", "modules_to_save", "exclude_modules")
    is_plain = not plan.model.freeze and plan.model.adapter is None and not plan.model.sees_images
    # The mask of a padded batch is small beside scores that are kept, but not beside fused attention.
    has_mask = plan.shape is not None and plan.shape.has_window and not plan.shape.has_softcap
    is_plain &= plan.speed.flat_batches or not (has_mask or plan.data.train.pack)
    return plan.is_native and is_plain and not any(settings.get(name) for name in odd)


def _moments(step: _Step) -> Iterator[MemoryPlan]:
    """Yields what is held where most of it stands together: at the head, in the last layer, at the end of backward."""
    plan, shape = step.plan, step.shape
    device, number = plan.device, BYTES.get(plan.model.dtype, 4)
    trained = step.trained_bytes
    head = shape.embedding * number if step.adapted is None else 0
    states = 2 * step.largest.tokens * shape.hidden * number
    is_paged = device != "cpu" and plan.optimizer.name.startswith("paged")  # the host's memory, where the GPU's is full
    kept = MemoryPlan(
        process=_PROCESS.get(device, _PROCESS["cuda"]) + (_PEFT if plan.lora and device == "cpu" else 0),
        weights=step.weight_bytes,
        gradients=trained if plan.steps.accumulation > 1 else 0,
        optimizer=0 if is_paged else state_bytes(plan.optimizer, trained, step.trained_number),
        activations=0,
        loss=0,
        available=0,
        is_tight=step.is_tight,
        is_bound=False,
    )
    holes = 1 + (_HOLES_TIGHT if step.is_tight else _HOLES) + (_HOLES_SCORED if step.scores_in_blocks else 0)
    layers, layer = step.layers_bytes, step.layer_bytes
    anew = layer - states // 2  # what it was given is there
    loss = head + states + step.logits_bytes
    yield replace(kept, activations=int(layers * holes), loss=int(loss * holes))
    at_first, at_last = step.layers_again
    inner = int((layers + at_first * anew + step.backward_bytes) * holes)
    yield replace(kept, activations=inner, loss=int((head + states) * holes))
    # Made twice, the head's part of a tied gradient waits for the embedding's, and their sum is a third.
    all_gradients = trained + head * (2 * step.sums_tied + (plan.steps.accumulation > 1))
    left = min(layers, all_gradients) * (0 if device != "cpu" else _LEFT_TIGHT if step.is_tight else 1)
    yield replace(kept, gradients=all_gradients, activations=int(at_last * layer * holes + left))


@dataclass(frozen=True)
class _Step:
    """The sizes of one forward and backward pass."""

    plan: Plan
    shape: ModelShape
    largest: LargestMicroBatch
    is_tight: bool

    @property
    def adapted(self) -> tuple[str, ...] | None:
        """Returns the modules that have an adapter, None where all weights are trained."""
        if self.plan.lora is None:
            return None
        targets = self.plan.lora.settings["target_modules"]
        if targets is None:
            return _USUAL_TARGETS
        names = tuple(self.shape.matrices)
        return names if isinstance(targets, str) else tuple(n for n in names if any(t.endswith(n) for t in targets))

    @property
    def trained_number(self) -> int:
        """Returns the bytes of a number that moves; an adapter's are wide."""
        return BYTES.get(self.plan.model.dtype, 4) if self.adapted is None else 4

    @property
    def trained_bytes(self) -> int:
        """Returns the weights that move."""
        if self.adapted is None or self.plan.lora is None:
            return self.shape.num_parameters * self.trained_number
        sizes = sum(sum(self.shape.matrices[name]) for name in self.adapted)
        return self.trained_number * self.shape.layers * int(self.plan.lora.settings["r"]) * sizes

    @property
    def weight_bytes(self) -> int:
        """Returns the weights, their narrow copies where products take them, the adapter, and a frozen reference."""
        number = BYTES.get(self.plan.model.dtype, 4) + (2 if self.plan.precision.autocast else 0)
        if self.plan.method.spec.has_reference and self.adapted is None:  # an adapter's base is its own reference
            number *= 2
        return self.shape.num_parameters * number + (0 if self.adapted is None else self.trained_bytes)

    @property
    def number(self) -> float:
        """Returns the bytes of a number that a layer keeps; in mixed precision, of the narrow and wide ones between."""
        if self.plan.precision.autocast:
            return _MIXED_BYTES.get(self.plan.device, _MIXED_BYTES_ELSEWHERE)
        return BYTES.get(self.plan.model.dtype, 4)

    @property
    def has_scores(self) -> bool:
        """Returns True if attention computes its scores itself."""
        return self.shape.has_softcap or self.plan.model.attention == "eager"

    @property
    def scores_in_blocks(self) -> bool:
        """Returns True if it computes them again in backward, a block at a time, as ours does without dropout."""
        drops_weights = self.shape.drops_weights and not self.plan.model.disable_dropout
        return self.has_scores and self.plan.speed.flat_batches and not drops_weights

    @property
    def keeps_scores(self) -> bool:
        """Returns True if it keeps them: the model's own does, and ours for dropout."""
        return self.has_scores and not self.scores_in_blocks

    @property
    def sums_tied(self) -> bool:
        """Returns True if head and embedding make a gradient each of the weights they share."""
        speed = self.plan.speed
        is_once = speed.fused_layers and speed.fused_loss and not self.shape.scales_embedding
        return self.shape.is_tied and not is_once

    @property
    def shares_output(self) -> bool:
        """Returns True if attention keeps the very tensor that the layer after it keeps."""
        is_plain = not self.has_scores and not self.shape.has_window
        return is_plain and self.plan.speed.flat_batches and self.plan.device == "cpu"

    @property
    def layers_bytes(self) -> float:
        """Returns what all layers keep until their backward pass: of those with checkpointing, what each was given."""
        streams = self.largest.tokens * self.shape.hidden * self.number
        again = num_recomputed(self.plan.gradient_checkpointing, self.shape.layers)
        num_kept = self.shape.layers - again
        kept = num_kept * self.layer_bytes + (again + 2) * streams
        if self.plan.steps.accumulation == 1 or self.plan.device != "cpu":
            return kept
        # The gradients of the first micro-batch stand amid the widest blocks that it has left.
        return kept + 2 * self.largest.tokens * self.shape.inner * self.number * num_kept

    @property
    def layers_again(self) -> tuple[int, int]:
        """Returns how many layers are held anew in backward, where the first one is computed again and at its end.

        They take the place of those above them that kept all. Without checkpointing, one layer is held at the end.
        """
        again = num_recomputed(self.plan.gradient_checkpointing, self.shape.layers)
        held_layers = 1 if self.plan.device != "cpu" else _LAYERS_AGAIN_TIGHT if self.is_tight else LAYERS_AGAIN
        beyond = max(held_layers - (self.shape.layers - again), 0) if again else 0
        return beyond, max(beyond, 1)

    @property
    def layer_bytes(self) -> float:
        """Returns what one layer keeps."""
        shape, tokens, longest = self.shape, self.largest.tokens, self.largest.longest
        num_norms = 4 if shape.has_norms_after else 2
        floats = tokens * (num_norms + shape.heads * (2 if shape.has_head_norms else 1))
        scores = 0.0
        if self.keeps_scores:
            matrices = shape.heads * self.number * (2 if shape.has_softcap else 1)
            scores = _SCORES * tokens * longest * (matrices + 1)
        return tokens * self._numbers * self.number + 4 * floats + scores

    @property
    def _numbers(self) -> int:
        """Returns how many numbers a layer keeps of a token, beside scores."""
        shape, is_fused = self.shape, self.plan.speed.fused_layers
        is_full, adapted = self.adapted is None, self.adapted or ()
        mlp_parts = ("gate_proj", "up_proj", "down_proj")
        has_fused_mlp = is_fused and not any(part in adapted for part in mlp_parts)
        stream = 2 * shape.hidden
        if shape.has_norms_after:
            stream += 2 * shape.hidden
        if not is_fused and is_full:  # the normed states before they are scaled
            stream += shape.hidden * (4 if shape.has_norms_after else 2)
        if is_full or any(name in adapted for name in ("q_proj", "k_proj", "v_proj")):
            stream += shape.hidden
        if is_full or has_fused_mlp or any(name in adapted for name in ("gate_proj", "up_proj")):
            stream += shape.hidden
        attention = 3 * shape.queries if self.keeps_scores else 2 * (shape.queries + shape.keys)
        if (is_full or "o_proj" in adapted) and not self.shares_output:
            attention += shape.queries
        if shape.has_head_norms:
            attention += (shape.queries + shape.keys) * (2 if not is_fused and is_full else 1)
        inner = 2 if has_fused_mlp else 4 if is_full or "down_proj" in adapted else 3
        return stream + attention + inner * shape.inner

    @property
    def backward_bytes(self) -> float:
        """Returns what the backward pass of one layer takes beside."""
        shape, tokens, longest = self.shape, self.largest.tokens, self.largest.longest
        scores = 4.0 * shape.heads * longest * longest * self.number if self.keeps_scores else 0.0
        if self.scores_in_blocks:
            queries = min(block_queries(shape.heads, longest, None, self.plan.device), longest)
            scores = 4.0 * _BLOCKS_HELD * queries * shape.heads * longest
        return max(tokens * (3 * shape.inner + 2 * shape.hidden) * self.number, scores)

    @property
    def logits_bytes(self) -> int:
        """Returns the logits that are held together: of a chunk, or all of them with their gradients."""
        tokens, vocabulary = self.largest.tokens, self.shape.vocabulary
        if not self.plan.speed.fused_loss:
            return 3 * tokens * vocabulary * 4
        return chunk_rows(tokens, vocabulary, self.plan.device) * vocabulary * 4 * (2 if self.shape.caps_logits else 1)
