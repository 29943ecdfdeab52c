# SPDX-License-Identifier: Apache-2.0
"""This machine: its device, memory and allocator. Imports torch only if nothing else can identify the GPU."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_GPU_DEVICES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
"""Device files of the drivers of NVIDIA, of WSL, and of AMD."""
_NO_TCACHE = "glibc.malloc.tcache_count=0"
_HUGE_PAGES = "glibc.malloc.hugetlb=1"
"""Requests pages of 2 MB by madvise; glibc has this setting since 2.35."""
# Parameters of glibc's mallopt(3), from <malloc.h>.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


@dataclass(frozen=True)
class Host:
    """The properties of the machine that a plan depends on."""

    device: str
    """The device of training: `cuda`, `mps` or `cpu`."""
    device_name: str
    has_bf16: bool
    """True if the device has hardware for products in bfloat16."""
    num_cpus: int
    memory_bytes: int
    """Memory of the machine, or of the first GPU."""
    has_fp8: bool = False
    """True if the device has hardware for products in 8-bit floating point."""


@lru_cache(maxsize=1)
def describe_host() -> Host:
    """Returns this machine as torch would describe it, in most cases without importing torch."""
    return _first_gpu() or describe_cpu()


def describe_cpu() -> Host:
    """Returns this machine without its GPUs of NVIDIA and AMD."""
    # In a container, the kernel kills a process that exceeds the limit, however much memory the machine has.
    memory = min(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), memory_limit() or 1 << 62)
    if os.uname().sysname == "Darwin" and os.uname().machine == "arm64":
        return Host("mps", "Apple GPU", True, num_cpus(), memory)
    names = (line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name"))
    name = next(names, os.uname().machine)  # ARM has no such line
    return Host("cpu", name, bool(cpu_flags() & {"avx512_bf16", "amx_bf16"}), num_cpus(), memory)


def memory_limit(path: Path = Path("/sys/fs/cgroup/memory.max")) -> int | None:
    """Returns the memory limit of this process's container in bytes, None if there is none."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None  # "max" if there is no limit


def num_cpus() -> int:
    """Returns the number of CPUs that this process may use."""
    # cpu_count alone ignores taskset and the cpusets of containers; macOS has no affinity.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def num_cores() -> int:
    """Returns the number of physical cores of those CPUs; hardware threads of one core count once."""
    if not hasattr(os, "sched_getaffinity"):
        return num_cpus()
    paths = [Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") for cpu in os.sched_getaffinity(0)]
    # Threads of one core list the same siblings. Virtual machines without topology: each CPU counts as a core.
    return len({path.read_text() if path.exists() else path.parts[5] for path in paths})


@lru_cache(maxsize=1)
def cpu_flags() -> frozenset[str]:
    """Returns the instruction set extensions of the CPU by their Linux names; empty on other systems."""
    for line in _cpuinfo():
        if line.startswith(("flags", "Features")):  # x86, ARM
            return frozenset(line.partition(":")[2].split())
    return frozenset()


@lru_cache(maxsize=1)
def multiplies_faster_by_onednn() -> bool:
    """Returns True if oneDNN multiplies float32 faster than MKL, which is the case on AMD processors.

    Decided by the vendor rather than by a measurement, so that a resumed run computes the same numbers.
    """
    return "products" not in disabled_optimizations() and any("AuthenticAMD" in line for line in _cpuinfo())


@lru_cache(maxsize=1)
def multiplies_twice_as_fast_by_onednn() -> bool:
    """Returns True if oneDNN uses AVX-512 and MKL does not, which is the case on AMD processors that have it."""
    return multiplies_faster_by_onednn() and "avx512f" in cpu_flags()


def disabled_optimizations() -> frozenset[str]:
    """Returns the optimizations in OUMI_WITHOUT, a comma-separated list of those to disable in benchmarks."""
    return frozenset(filter(None, os.environ.get("OUMI_WITHOUT", "").split(",")))


def free_bytes(path: Path) -> int:
    """Returns the free disk space in bytes at `path`, which need not exist yet."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def keep_freed_memory() -> bool:
    """Makes glibc reuse freed blocks instead of returning them to the system; returns True on success.

    Every training step allocates and frees the same blocks. By default glibc maps large blocks again each time, with a
    page fault for every page. Must be called before torch allocates memory.
    """
    if "allocator" in disabled_optimizations():
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return False
    settings = ((_M_MMAP_THRESHOLD, 1 << 30), (_M_TRIM_THRESHOLD, (1 << 31) - 1), (_M_TOP_PAD, 64 << 20))
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)


def limit_kernel_caches() -> None:
    """Limits the kernel caches of oneDNN and torch: oneDNN compiles a kernel per shape, about 1 MB of code.

    By default torch keeps 1,024 of them, so memory grows by 4 MB with every new number of tokens. Must be called before
    the first matrix product.
    """
    for cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):  # of oneDNN, and of torch
        os.environ.setdefault(cache, "32")


def tighten_heap() -> None:
    """Restarts this process with the same command, so that glibc caches no small blocks and uses huge pages.

    Cached small blocks fragment the heap, so that freed large blocks cannot be reused: a training process grows by 10
    to 50 %. Huge pages cause far fewer page faults. glibc reads these settings only at the start of a process. Does
    nothing if the user has set GLIBC_TUNABLES, under a debugger, or without glibc.
    """
    if "allocator" in disabled_optimizations() or "GLIBC_TUNABLES" in os.environ or sys.gettrace():
        return
    try:
        has_glibc = (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (OSError, ValueError):  # other C libraries do not have this name
        return
    # A program that calls the command line with changed sys.argv would be restarted with the wrong arguments.
    if not has_glibc or sys.orig_argv[-len(sys.argv) :][1:] != sys.argv[1:]:
        return
    os.environ["GLIBC_TUNABLES"] = f"{_NO_TCACHE}:glibc.malloc.mxfast=0:{_HUGE_PAGES}"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def has_tight_heap() -> bool:
    """Returns True if this process runs with the settings of `tighten_heap`."""
    return _NO_TCACHE in os.environ.get("GLIBC_TUNABLES", "").split(":")


def let_waiting_threads_sleep() -> None:
    """Makes waiting threads sleep after microseconds, not milliseconds. Must be called before torch is imported.

    A spinning thread occupies a core. On a busy machine, that may be the core on which the awaited thread should run,
    and a step can take ten times as long.
    """
    # GOMP_SPINCOUNT would override OMP_WAIT_POLICY, which only the user sets.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def peak_memory_bytes() -> int:
    """Returns the peak resident memory of this process in bytes."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
    # Not getrusage, whose peak a child process inherits from its parent.
    kib = next(line.split()[1] for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM:"))
    return int(kib) << 10


def _first_gpu() -> Host | None:
    """Returns this machine with its first visible GPU, None if it has none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        if visible in ("", "-1") or version("torch").endswith("+cpu"):
            return None
    except PackageNotFoundError:
        return None
    # Not by torch.cuda: the import of torch takes seconds, and a plan does not need it.
    command = ["nvidia-smi", "--query-gpu=name,compute_cap,memory.total", "--format=csv,noheader,nounits"]
    command += [f"--id={visible.split(',')[0]}"] if visible else []
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
        name, capability, memory_mib = (part.strip() for part in output.splitlines()[0].split(","))
        memory = int(float(memory_mib)) << 20
        return Host("cuda", name, float(capability) >= 8.0, num_cpus(), memory, float(capability) >= 8.9)
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return _gpu_of_torch() if any(Path(device).exists() for device in _GPU_DEVICES) else None


def _gpu_of_torch() -> Host | None:
    """Returns this machine with the GPU that torch reports; slow, for machines without nvidia-smi."""
    import torch

    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    has_fp8 = (properties.major, properties.minor) >= (8, 9)
    if torch.version.hip:  # gfx94 and gfx95 are the MI300 series and its successors, gfx12 is RDNA 4
        has_fp8 = properties.gcnArchName.startswith(("gfx94", "gfx95", "gfx12"))
    return Host("cuda", properties.name, torch.cuda.is_bf16_supported(), num_cpus(), properties.total_memory, has_fp8)


@lru_cache(maxsize=1)
def _cpuinfo() -> tuple[str, ...]:
    path = Path("/proc/cpuinfo")
    return tuple(path.read_text(encoding="utf-8").splitlines()) if path.exists() else ()
