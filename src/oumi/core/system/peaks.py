# SPDX-License-Identifier: Apache-2.0
"""Peak speeds: those of this machine, measured once and cached, and the specified ones of GPUs.

Imports torch only to measure.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version

from oumi.core.system import host
from oumi.core.system.cache import cache_home

NOMINAL_TFLOPS = {
    "B300": 2250, "B200": 2250, "GB200": 2500, "H200": 989, "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "H20": 148,
    "A100": 312, "A800": 312, "A40": 149.7, "A30": 165, "A10G": 70, "A10": 125, "L40S": 362, "L40": 181, "L4": 121,
    "RTX PRO 6000": 503.8, "RTX 6000 Ada": 364.2, "RTX A6000": 154.8, "RTX 5090": 209.5, "RTX 5080": 112.6,
    "RTX 4090": 165.2, "RTX 4080": 97.5, "RTX 3090": 71, "T4": 65, "V100": 125,
    "MI355X": 2516, "MI350X": 2307, "MI325X": 1307, "MI300X": 1307, "MI300A": 980,
    "MI250X": 383, "MI250": 362, "MI210": 181,
}  # fmt: skip
"""Specified TFLOP/s of dense 16-bit matrix products, by a part of a GPU's name; the longest matching part counts."""
_EDGE = {"cpu": 1024, "cuda": 8192, "mps": 2048}
"""Rows and columns of the measured matrices, by device."""
_SECONDS = 0.4
"""Duration of a measurement of matrix products, of which the fastest counts."""
_FAULT_BYTES = 8 << 20
"""Memory whose page faults are measured."""


@dataclass(frozen=True)
class Peaks:
    """The peak speed of a device for one dtype."""

    flops: float
    """Operations per second of matrix products on all cores."""
    num_cores: int
    """Number of CPU cores, or 1 for a GPU."""
    page_fault_s: float
    """Seconds of processor time for the first touch of a page."""


def peaks_of(device: str, device_name: str, dtype: str) -> Peaks:
    """Returns the peaks of this machine, measured on first use (about a second) and cached on disk.

    Args:
        device: `cpu`, `cuda` or `mps`.
        device_name: Name of the processor, a part of the cache key, since machines may share a cache.
        dtype: The dtype of the matrix products, by its name in torch.
    """
    num_cores = host.num_cores() if device == "cpu" else 1
    library = " oneDNN" if device == "cpu" and host.multiplies_faster_by_onednn() else ""
    name = f"{device_name} {num_cores} {dtype} torch {version('torch')}{library}"
    path = cache_home() / f"peaks-{hashlib.sha256(name.encode()).hexdigest()[:16]}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):  # a file that is missing or incomplete is replaced
        values = json.loads(path.read_text())
        return Peaks(**{field: values[field] for field in ("flops", "num_cores", "page_fault_s")})
    peaks = measure_peaks(device, dtype, num_cores)
    with suppress(OSError):  # a cache that cannot be written only costs another measurement
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}")
        unfinished.write_text(json.dumps({"of": name, **asdict(peaks)}) + "\n")
        unfinished.replace(path)  # atomic, so that another process never reads a part of it
    return peaks


def measure_peaks(device: str, dtype: str, num_cores: int) -> Peaks:
    """Returns the speed that the device reaches now.

    On a CPU it takes only 20 MB, since that counts into the peak memory of a run.
    """
    import torch

    kind, edge = getattr(torch, dtype), _EDGE[device]
    # With a generator of its own: the first run on a machine, which measures it, draws the same numbers as later ones.
    generator = torch.Generator(device).manual_seed(0)
    left, right = (torch.randn(edge, edge, device=device, generator=generator).to(kind) for _ in range(2))
    result = torch.empty_like(left)
    num_threads = torch.get_num_threads()
    wait = torch.cuda.synchronize if device == "cuda" else torch.mps.synchronize if device == "mps" else lambda: None
    # On a CPU, one core is measured by its processor time, since other programs may use the machine.
    clock = time.thread_time if device == "cpu" else time.perf_counter
    try:
        torch.set_num_threads(1)
        # With `out`, since page faults of a new result would count as time of the product.
        products_s = _best(lambda: torch.mm(left, right, out=result), wait, clock)
        if device == "cpu" and host.multiplies_faster_by_onednn() and dtype == "float32":
            by_onednn = torch.ops.mkldnn._linear_pointwise
            products_s = min(products_s, _best(lambda: by_onednn(left, right, None, "none", [], ""), wait, clock))
    finally:
        torch.set_num_threads(num_threads)
    return Peaks(
        flops=2 * edge**3 / products_s * num_cores,
        num_cores=num_cores,
        page_fault_s=measure_page_fault(),
    )


def measure_page_fault() -> float:
    """Returns the seconds of processor time for the first touch of a page."""
    page = mmap.PAGESIZE
    memory = mmap.mmap(-1, _FAULT_BYTES)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):  # Linux, where one fault may otherwise map 2 MB
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    started = time.thread_time()
    memory[::page] = b"\1" * (_FAULT_BYTES // page)
    seconds = time.thread_time() - started
    memory.close()
    return seconds / (_FAULT_BYTES // page)


def nominal_flops(device_name: str) -> float | None:
    """Returns the specified FLOP/s of a GPU for dense 16-bit matrix products, None for an unknown GPU."""
    names = [name for name in NOMINAL_TFLOPS if name.lower() in device_name.lower()]
    return NOMINAL_TFLOPS[max(names, key=len)] * 1e12 if names else None


def _best(work: Callable[[], object], wait: Callable[[], None], clock: Callable[[], float]) -> float:
    """Returns the seconds of the fastest call."""
    work()  # warm-up: the first call loads kernels and allocates memory
    wait()
    times: list[float] = []
    ends = time.perf_counter() + _SECONDS
    while time.perf_counter() < ends or len(times) < 3:  # on a slow machine, one call may exceed the duration
        started = clock()
        work()
        wait()
        times.append(clock() - started)
    return min(times)
