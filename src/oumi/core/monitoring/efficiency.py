# SPDX-License-Identifier: Apache-2.0
"""How close each step comes to what the machine can do, and where the rest of its time went."""

from __future__ import annotations

import resource
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from oumi.core.models.flops import ModelFlops
from oumi.core.monitoring.op_times import OpTimes, UpdateTime
from oumi.core.system.peaks import Peaks, nominal_flops, peaks_of

Record = dict[str, float]
"""What is measured of a step, by name."""
_SAMPLED_STEP = 2
"""Of a run, counted from its start: the first one warms up."""
_SAMPLED_AGAIN = 500
"""Steps after which the kernels are watched again."""

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
    "unwatched": "kernels and Python, not yet told apart",
}
"""Where the time of a step goes that is not useful arithmetic at the machine's peak."""
_EXTRA = ("padding", "recompute", "head")
"""Arithmetic that is done beside what is useful."""


@dataclass(frozen=True)
class Device:
    """Which device computes, and in what."""

    kind: str
    name: str
    dtype: str

    @cached_property
    def peaks(self) -> Peaks:
        """Returns what it can do, which takes a second where it is not known yet."""
        return peaks_of(self.kind, self.name, self.dtype)

    @property
    def nominal_flops(self) -> float | None:
        """Returns what its maker says of it, None for what is no GPU or not known."""
        return nominal_flops(self.name) if self.kind == "cuda" else None


@dataclass(frozen=True)
class MicroBatchSize:
    """What a micro-batch asks to be computed."""

    lengths: tuple[int, ...]
    """Tokens of each document."""
    num_targets: int
    """Trained positions."""
    num_positions: int
    """Tokens, and what stands beside them as padding."""


@dataclass(frozen=True)
class ComputeMode:
    """How a trainer computes a micro-batch."""

    has_full_head: bool
    """Logits are computed where nothing is trained, too."""
    recomputed: float
    """Share of the layers whose activations are computed again in backward."""
    is_opaque: bool
    """Its kernels cannot be watched one by one: compiled ones, and those of other libraries."""


@dataclass(frozen=True)
class Sample:
    """What the kernels of one step took, per unit of its work."""

    product_slowdown: float
    """Seconds of matrix products, over what their operations take at peak."""
    other_s_per_token: float


class Efficiency:
    """Measures steps; asked at the moments of a step, by who reports it."""

    def __init__(self, work: ModelFlops, device: Device, way: ComputeMode) -> None:
        self._work, self._device, self._way = work, device, way
        self._peaks = device.peaks  # now, since finding them out takes time and memory
        self._watch: OpTimes | None = None
        """Of the step that is computed now."""
        self._watched: OpTimes | None = None
        """Of the gradients that are done."""
        self._sample: Sample | None = None
        self._update = UpdateTime(device.kind)
        self._step = 0
        self._flops: Record = {}
        self._num_tokens = 0
        self._total_s = 0.0
        self._spent: Counter[str] = Counter()
        self.restart()

    def restart(self) -> None:
        """Begins a step: what lies between two steps counts for neither."""
        self._began = time.perf_counter()
        self._waits_from = self._started_at = self._began
        self._faults = _page_faults()

    def wait(self) -> None:
        """After a step was shown, before the rows of the next one are asked for."""
        self._waits_from = time.perf_counter()

    def step_start(self) -> None:
        """After the rows of a step are there, before it is computed."""
        self._started_at = time.perf_counter()
        if not self._way.is_opaque and self._step % _SAMPLED_AGAIN == _SAMPLED_STEP:
            self._watch = OpTimes()
            self._watch.__enter__()

    def before_update(self, micro_batches: Sequence[MicroBatchSize]) -> None:
        """After the gradients of a step, before its update."""
        self.close()
        self._update.begin()
        self._flops = self._count(micro_batches)
        self._num_tokens = sum(sum(batch.lengths) for batch in micro_batches)

    def step_end(self) -> Record:
        """Returns what is to be known of the step that ends here; the next one begins."""
        now, faults = time.perf_counter(), _page_faults() - self._faults
        wall, peaks = max(now - self._began, 1e-9), self._peaks
        fault_s = faults * peaks.page_fault_s / peaks.num_cores
        is_watched = self._watched is not None
        if self._watched is not None:
            self._sample, self._watched = self._sampled(self._watched, fault_s), None
        arithmetic = {name: self._flops[name] / peaks.flops for name in ("useful", *_EXTRA)}
        seconds = {
            **arithmetic,
            "page_faults": fault_s,
            "optimizer": self._update.end(),
            "data": self._started_at - self._waits_from,
        }
        rest = "python" if self._sample else "unwatched"
        shares = shares_of(wall, {**seconds, **self._kernels(sum(arithmetic.values()))}, rest)
        if self._step > _SAMPLED_STEP and not is_watched:  # until then nothing is told apart, and watching takes time
            self._total_s += wall
            for name, share in shares.items():
                self._spent[name] += share * wall
        self._step += 1
        self.restart()
        return {
            "flops_per_second": self._flops["useful"] / wall,
            "fraction_of_peak": shares["useful"],
            "page_faults": faults,
            **{f"time_{name}": share for name, share in shares.items()},
            **self._mfu(wall),
        }

    def summary(self) -> str:
        """Returns where the time of the steps went, as one sentence; nothing if there were too few."""
        if not self._total_s:
            return ""
        shares = {name: self._spent[name] / self._total_s for name in self._spent}
        wasted = sorted(((share, WASTE[name]) for name, share in shares.items() if name in WASTE), reverse=True)
        listed = ", ".join(f"{what} {share:.0%}" for share, what in wasted if share >= 0.005)
        peak = f"{self._peaks.flops / 1e9:,.0f} GFLOP/s in {self._device.dtype}"
        return f"{shares['useful']:.0%} of this machine's peak ({peak}) went into useful arithmetic; the rest: {listed}"

    def close(self) -> None:
        """Stops watching, also where a step broke off."""
        if self._watch is not None:
            self._watch.__exit__(None, None, None)
            self._watched, self._watch = self._watch, None

    def _count(self, micro_batches: Sequence[MicroBatchSize]) -> Record:
        """Returns the operations of a step by what they are for."""
        flops = dict.fromkeys(("useful", "full_squares", *_EXTRA), 0.0)
        for batch in micro_batches:
            lengths = batch.lengths
            flops["useful"] += self._work.flops(lengths, batch.num_targets)
            flops["full_squares"] += self._work.flops(lengths, batch.num_targets, full_squares=True)
            flops["padding"] += (batch.num_positions - sum(lengths)) * self._work.token
            if self._way.has_full_head:
                flops["head"] += (batch.num_positions - batch.num_targets) * self._work.term
            flops["recompute"] += self._way.recomputed * self._work.forward_flops(lengths)
        return flops

    def _sampled(self, watch: OpTimes, fault_s: float) -> Sample:
        at_peak = sum(self._flops[name] for name in ("useful", *_EXTRA)) / self._peaks.flops
        return Sample(watch.products_s / at_peak, max(watch.others_s - fault_s, 0.0) / max(self._num_tokens, 1))

    def _mfu(self, wall_s: float) -> Record:
        """Returns the model FLOPs utilisation of a GPU: useful operations over what its maker says of it.

        `mfu` counts causal attention as half a square, as `fraction_of_peak` does; `mfu_full_attention` as a whole
        one (PaLM, arXiv 2204.02311).
        """
        nominal = self._device.nominal_flops
        if nominal is None:
            return {}
        return {
            "mfu": self._flops["useful"] / wall_s / nominal,
            "mfu_full_attention": self._flops["full_squares"] / wall_s / nominal,
        }

    def _kernels(self, arithmetic_s: float) -> Record:
        """Returns what the kernels of this step take beyond its arithmetic at peak, as those that were watched."""
        if self._sample is None:
            return {}
        return {
            "below_peak": max(self._sample.product_slowdown - 1, 0.0) * arithmetic_s,
            "memory": self._sample.other_s_per_token * self._num_tokens,
        }


def shares_of(wall_s: float, seconds: Mapping[str, float], rest: str = "python") -> Record:
    """Returns the share of each part in a step, of useful arithmetic and of all of WASTE, which add up to one.

    What is left is that of `rest`. Where the parts come to more than the step took, as their estimates may, they are
    scaled down; useful arithmetic is not.
    """
    parts = {name: seconds.get(name, 0.0) for name in ("useful", *WASTE)}
    left = max(wall_s - parts["useful"], 0.0)
    wasted = sum(parts.values()) - parts["useful"]
    scale = min(1.0, left / wasted) if wasted > 0 else 1.0
    shares = {name: value * (1.0 if name == "useful" else scale) / wall_s for name, value in parts.items()}
    shares[rest] += max(1.0 - sum(shares.values()), 0.0)
    return shares


def _page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
