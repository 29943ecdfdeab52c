# SPDX-License-Identifier: Apache-2.0
"""This machine: its device, its precision, its memory, its allocator. Imports no torch if it can be helped."""

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
"""Of the drivers of NVIDIA, of NVIDIA below Windows, and of AMD."""
_NO_TCACHE = "glibc.malloc.tcache_count=0"
_HUGE_PAGES = "glibc.malloc.hugetlb=1"
"""Of 2 MB, where Linux gives them on request; glibc knows of them since 2.35."""
# Parameters of glibc's mallopt(3), by their numbers in <malloc.h>.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


@dataclass(frozen=True)
class Host:
    """What a plan must know of the machine."""

    device: str
    """`cuda`, `mps` or `cpu`: where training runs."""
    device_name: str
    has_bf16: bool
    """True if the device multiplies bfloat16 in hardware."""
    num_cpus: int
    memory_bytes: int
    """Memory of the machine, or of the first GPU."""
    has_fp8: bool = False
    """True if the device multiplies 8-bit floating point in hardware."""


@lru_cache(maxsize=1)
def describe_host() -> Host:
    """Returns this machine as torch will see it, found without importing torch."""
    gpu = _first_gpu()
    if gpu is not None:
        return gpu
    memory = min(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), memory_limit() or 1 << 62)
    if os.uname().sysname == "Darwin" and os.uname().machine == "arm64":
        return Host("mps", "Apple GPU", True, num_cpus(), memory)
    return Host("cpu", _cpu_name(), bool(cpu_flags() & {"avx512_bf16", "amx_bf16"}), num_cpus(), memory)


def memory_limit(path: Path = Path("/sys/fs/cgroup/memory.max")) -> int | None:
    """Returns the bytes that the container of this process may hold, None if it is not limited."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def num_cpus() -> int:
    """Returns how many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def num_cores() -> int:
    """Returns how many cores those CPUs are: two that share the units of one core count once."""
    if not hasattr(os, "sched_getaffinity"):
        return num_cpus()
    places = (
        Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") for cpu in os.sched_getaffinity(0)
    )
    return len({place.read_text() if place.exists() else place.parts[5] for place in places})


@lru_cache(maxsize=1)
def cpu_flags() -> frozenset[str]:
    """Returns the instruction sets of the CPU as Linux names them, or an empty set elsewhere."""
    for line in _cpuinfo():
        if line.startswith(("flags", "Features")):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


@lru_cache(maxsize=1)
def multiplies_faster_by_onednn() -> bool:
    """Returns True where oneDNN multiplies float32 faster than MKL: on AMD's processors.

    It goes by the maker, not by a measurement, so that a run computes the same after it is resumed.
    """
    return "products" not in without() and any("AuthenticAMD" in line for line in _cpuinfo())


@lru_cache(maxsize=1)
def multiplies_twice_as_fast_by_onednn() -> bool:
    """Returns True where oneDNN multiplies 16 floats at once and MKL 8: on AMD's processors that have AVX-512."""
    return multiplies_faster_by_onednn() and "avx512f" in cpu_flags()


def without() -> frozenset[str]:
    """Returns the means of speed that OUMI_WITHOUT switches off, by their names with commas between: for benchmarks."""
    return frozenset(filter(None, os.environ.get("OUMI_WITHOUT", "").split(",")))


def free_bytes(path: Path) -> int:
    """Returns the free disk space where `path` is, or will be."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def keep_freed_memory() -> bool:
    """Tells glibc to reuse freed blocks rather than return them to the system; True if it took the setting.

    A training step frees and takes the same blocks again. By default glibc maps large blocks afresh each
    time, and every page of them faults anew. Must be called before torch allocates.
    """
    if "allocator" in without():
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return False
    settings = ((_M_MMAP_THRESHOLD, 1 << 30), (_M_TRIM_THRESHOLD, (1 << 31) - 1), (_M_TOP_PAD, 64 << 20))
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)


def keep_little_code() -> None:
    """Makes oneDNN keep the code of few products: it makes some for each size that it meets, a megabyte each.

    torch keeps what it asks oneDNN for beside, by default of 1,024 sizes: 4 MB more with each number of tokens that a
    step has for the first time. Must be called before it multiplies first.
    """
    for cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):  # oneDNN's own, and torch's for it
        os.environ.setdefault(cache, "32")


def tighten_heap() -> None:
    """Starts this process anew, as the same command, so that glibc keeps no small blocks aside and takes huge pages.

    What is kept aside stands between large blocks, which then do not fit again where they were: a training process
    grows by a tenth to a half. Huge pages fault far less often. glibc takes the settings only before a process
    starts. Nothing is done where the user has settings of his own, where a debugger looks on, where there is no
    glibc, or where a program calls the command line with arguments of its own.
    """
    if "allocator" in without() or "GLIBC_TUNABLES" in os.environ or sys.gettrace() or not _has_glibc():
        return
    if sys.orig_argv[-len(sys.argv) :][1:] != sys.argv[1:]:
        return
    os.environ["GLIBC_TUNABLES"] = f"{_NO_TCACHE}:glibc.malloc.mxfast=0:{_HUGE_PAGES}"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def has_tight_heap() -> bool:
    """Returns True if this process keeps no small blocks aside, see `tighten_heap`."""
    return _NO_TCACHE in os.environ.get("GLIBC_TUNABLES", "").split(":")


def let_waiting_threads_sleep() -> None:
    """Makes threads that wait for others sleep after microseconds, not milliseconds. Before torch is imported.

    A thread that spins holds a core. Where other programs want cores too, that may be the very core which the
    awaited thread needs, and a step can take ten times as long. What the user set is left alone.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def peak_memory_bytes() -> int:
    """Returns the most memory that this process has held."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
    # Not getrusage, whose peak a new process takes over from the one that started it.
    kib = next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(kib) << 10


def _has_glibc() -> bool:
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (OSError, ValueError):  # another C library, which knows no such name
        return False


def _first_gpu() -> Host | None:
    """Returns this machine with its first visible GPU, None if it has none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible in ("", "-1") or not _torch_has_gpus():
        return None
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
    """Returns this machine as torch sees its GPU: the slow way, where nvidia-smi is not there to ask."""
    import torch

    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    has_fp8 = (properties.major, properties.minor) >= (8, 9)
    if torch.version.hip:  # MI300 and its successors, RDNA 4
        has_fp8 = properties.gcnArchName.startswith(("gfx94", "gfx95", "gfx12"))
    return Host("cuda", properties.name, torch.cuda.is_bf16_supported(), num_cpus(), properties.total_memory, has_fp8)


def _torch_has_gpus() -> bool:
    try:
        return not version("torch").endswith("+cpu")
    except PackageNotFoundError:
        return False


def _cpu_name() -> str:
    for line in _cpuinfo():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return os.uname().machine


@lru_cache(maxsize=1)
def _cpuinfo() -> tuple[str, ...]:
    path = Path("/proc/cpuinfo")
    return tuple(path.read_text().splitlines()) if path.exists() else ()
