# SPDX-License-Identifier: Apache-2.0
"""Measures the share of the machine's peak that each step reaches, and how the rest of its time is spent."""

from __future__ import annotations

import resource
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from oumi.core.models.flops import ModelFlops
from oumi.core.monitoring.op_times import OpTimes, UpdateTime
from oumi.core.system.peaks import nominal_flops, peaks_of

Record = dict[str, float]
"""The measured values of a step, by name."""
_SAMPLED_STEP = 2
"""Index of the first step whose kernels are timed: the steps before it warm up caches and allocators."""
_SAMPLING_INTERVAL = 500
"""Steps between two samples of the kernels, whose costs drift during a run."""

WASTE = {
    "padding": "padding",
    "recompute": "recomputed activations",
    "head": "logits of what is not trained",
    "below_peak": "matrix products below peak",
    "memory": "memory-bound kernels",
    "page_faults": "page faults",
    "optimizer": "optimizer",
    "data": "waiting for data",
    "python": "Python and the rest",
    "unwatched": "kernels and Python, not measured apart",
}
"""Names and labels of the parts of a step's time other than useful arithmetic at the machine's peak."""
_EXTRA_ARITHMETIC = ("padding", "recompute", "head")
"""Arithmetic in addition to the useful one."""


@dataclass(frozen=True)
class Device:
    """The device that computes, and the dtype of its matrix products."""

    kind: str
    name: str
    dtype: str


@dataclass(frozen=True)
class MicroBatchSize:
    """The sizes that determine the operations of a micro-batch."""

    lengths: tuple[int, ...]
    """Tokens of each document."""
    num_targets: int
    """Trained positions."""
    num_positions: int
    """Tokens including padding."""


@dataclass(frozen=True)
class ComputeMode:
    """How a trainer computes a micro-batch."""

    has_full_head: bool
    """True if logits are also computed at positions that are not trained."""
    recomputed: float
    """Share of the layers that recompute their activations in the backward pass."""
    is_opaque: bool
    """True if kernels cannot be timed one by one, such as compiled ones."""


@dataclass(frozen=True)
class Sample:
    """Time of the kernels of one step, per unit of its work."""

    product_slowdown: float
    """Seconds of matrix products, divided by the seconds that their operations take at peak."""
    other_s_per_token: float
    """Seconds of all other kernels per token."""


class Efficiency:
    """Measures steps. The training loop calls `step_start`, `before_update`, `step_end` and `wait` in this order."""

    def __init__(self, work: ModelFlops, device: Device, mode: ComputeMode) -> None:
        self._work, self._device, self._mode = work, device, mode
        # Measured here and not in the first step, since it takes up to a second, and memory.
        self._peaks = peaks_of(device.kind, device.name, device.dtype)
        self._nominal_flops = nominal_flops(device.name) if device.kind == "cuda" else None
        self._running_times: OpTimes | None = None
        """Kernels of the current step, while they are timed."""
        self._op_times: OpTimes | None = None
        """Kernels of the current step, once its gradients are complete."""
        self._sample: Sample | None = None
        self._update = UpdateTime(device.kind)
        self._step = 0
        self._flops: Record = {}
        self._num_tokens = 0
        self._total_s = 0.0
        self._seconds: Counter[str] = Counter()
        """Seconds of all steps in the summary, by part."""
        self.restart()

    def restart(self) -> None:
        """Starts the clock of the next step now, for example after an evaluation, which belongs to no step."""
        self._began = time.perf_counter()
        self._waits_from = self._started_at = self._began
        self._faults = _page_faults()

    def wait(self) -> None:
        """Marks the end of reporting, before the rows of the next step are fetched."""
        self._waits_from = time.perf_counter()

    def step_start(self) -> None:
        """Marks the start of computation, after the rows of the step were fetched."""
        self._started_at = time.perf_counter()
        # Timing each kernel slows a step down, so only few steps are sampled.
        if not self._mode.is_opaque and self._step % _SAMPLING_INTERVAL == _SAMPLED_STEP:
            self._running_times = OpTimes()
            self._running_times.__enter__()

    def before_update(self, micro_batches: Sequence[MicroBatchSize]) -> None:
        """Marks the start of the update, after the gradients of the step, and counts the step's operations."""
        self.close()
        self._update.begin()
        flops = dict.fromkeys(("useful", "full_squares", *_EXTRA_ARITHMETIC), 0.0)
        for batch in micro_batches:
            lengths = batch.lengths
            flops["useful"] += self._work.flops(lengths, batch.num_targets)
            flops["full_squares"] += self._work.flops(lengths, batch.num_targets, full_squares=True)
            flops["padding"] += (batch.num_positions - sum(lengths)) * self._work.token
            if self._mode.has_full_head:
                flops["head"] += (batch.num_positions - batch.num_targets) * self._work.term
            flops["recompute"] += self._mode.recomputed * self._work.forward_flops(lengths)
        self._flops = flops
        self._num_tokens = sum(sum(batch.lengths) for batch in micro_batches)

    def step_end(self) -> Record:
        """Returns the measured values of the step that ends now, and starts the clock of the next one."""
        now, faults = time.perf_counter(), _page_faults() - self._faults
        wall, peaks = max(now - self._began, 1e-9), self._peaks
        # Page faults of the threads that share the work run in parallel, so the wall time is a fraction.
        fault_s = faults * peaks.page_fault_s / peaks.num_cores
        # Seconds that the operations would take at the machine's peak.
        arithmetic = {name: self._flops[name] / peaks.flops for name in ("useful", *_EXTRA_ARITHMETIC)}
        arithmetic_s = sum(arithmetic.values())
        op_times, self._op_times = self._op_times, None
        if op_times is not None and arithmetic_s > 0:  # a rank without rows computes nothing
            other_s = max(op_times.others_s - fault_s, 0.0)  # page faults are a part of their own
            self._sample = Sample(op_times.products_s / arithmetic_s, other_s / max(self._num_tokens, 1))
        seconds = {
            **arithmetic,
            "page_faults": fault_s,
            "optimizer": self._update.end(),
            "data": self._started_at - self._waits_from,
        }
        if self._sample is not None:  # assumes that kernels run at the speed of the last sampled step
            seconds["below_peak"] = max(self._sample.product_slowdown - 1, 0.0) * arithmetic_s
            seconds["memory"] = self._sample.other_s_per_token * self._num_tokens
        # What no part explains is Python, or unknown while nothing was sampled.
        shares = shares_of(wall, seconds, "python" if self._sample else "unwatched")
        if self._step > _SAMPLED_STEP and op_times is None:  # without sampled steps, which timing slows down
            self._total_s += wall
            for name, share in shares.items():
                self._seconds[name] += share * wall
        record = {
            "flops_per_second": self._flops["useful"] / wall,
            "fraction_of_peak": shares["useful"],
            "page_faults": faults,
            **{f"time_{name}": share for name, share in shares.items()},
        }
        if self._nominal_flops is not None:
            # Model FLOPs utilization. Causal attention counts as half a square in `mfu`, and as a full one in
            # `mfu_full_attention`, as in PaLM (arXiv 2204.02311).
            record["mfu"] = self._flops["useful"] / wall / self._nominal_flops
            record["mfu_full_attention"] = self._flops["full_squares"] / wall / self._nominal_flops
        self._step += 1
        self.restart()
        return record

    def summary(self) -> str:
        """Returns how the time of the steps was spent as one sentence, or "" after too few steps."""
        if not self._total_s:
            return ""
        shares = {name: self._seconds[name] / self._total_s for name in self._seconds}
        # Largest first, without parts that would be shown as 0 %.
        wasted = sorted(((share, WASTE[name]) for name, share in shares.items() if name in WASTE), reverse=True)
        parts = ", ".join(f"{label} {share:.0%}" for share, label in wasted if share >= 0.005)
        peak = f"{self._peaks.flops / 1e9:,.0f} GFLOP/s in {self._device.dtype}"
        return f"{shares['useful']:.0%} of this machine's peak ({peak}) went into useful arithmetic; the rest: {parts}"

    def close(self) -> None:
        """Stops timing kernels; does nothing if they are not timed. Also called after a step that failed."""
        if self._running_times is not None:
            self._running_times.__exit__(None, None, None)
            self._op_times, self._running_times = self._running_times, None


def shares_of(wall_s: float, seconds: Mapping[str, float], rest: str = "python") -> Record:
    """Returns the share of useful arithmetic and of each part of WASTE in the time of a step; they add up to 1.

    Args:
        wall_s: Seconds of the step.
        seconds: Seconds by part, 0 for missing parts. They are estimates; if their sum exceeds the step, all parts but
            useful arithmetic are scaled down.
        rest: The part to which the remaining time is added.
    """
    parts = {name: seconds.get(name, 0.0) for name in ("useful", *WASTE)}
    left = max(wall_s - parts["useful"], 0.0)
    wasted = sum(parts.values()) - parts["useful"]
    scale = min(1.0, left / wasted) if wasted > 0 else 1.0
    shares = {name: value * (1.0 if name == "useful" else scale) / wall_s for name, value in parts.items()}
    shares[rest] += max(1.0 - sum(shares.values()), 0.0)
    return shares


def _page_faults() -> int:
    # Minor faults: the first touch of a page that the kernel has to map, without reading from disk.
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
