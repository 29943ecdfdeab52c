# SPDX-License-Identifier: Apache-2.0
"""Devices by name, for plans of machines that are not there: their memory, and how fast they exchange data."""

from __future__ import annotations

from dataclasses import dataclass

from oumi.core.errors import ConfigError, did_you_mean
from oumi.core.system import host
from oumi.core.system.host import Host

_MIB = 1 << 20


@dataclass(frozen=True)
class Device:
    """A GPU and its usual machine. Its speed of matrix products is in `peaks.NOMINAL_TFLOPS`."""

    name: str
    """The name that nvidia-smi and torch report."""
    memory_bytes: int
    """Bytes that nvidia-smi reports, which is not the number in the name of the product."""
    memory_bandwidth: float
    """Bytes per second between the chip and its memory."""
    link: str
    """What connects the GPUs of a node."""
    link_bandwidth: float
    """Bytes per second that a GPU sends to the others of its node, in one direction."""
    network_bandwidth: float
    """Bytes per second that a GPU sends to other nodes, in one direction: its share of the network of its node."""
    has_fp8: bool = False


_A100, _HOPPER = ("NVLink", 300e9, 25e9), ("NVLink", 450e9, 50e9)
_PCIE_4 = ("PCIe 4.0 x16", 32e9, 12.5e9)
DEVICES = {
    "a100-40gb": Device("NVIDIA A100-SXM4-40GB", 40_960 * _MIB, 1.555e12, *_A100),
    "a100-80gb": Device("NVIDIA A100-SXM4-80GB", 81_920 * _MIB, 2.039e12, *_A100),
    "h100-80gb": Device("NVIDIA H100 80GB HBM3", 81_559 * _MIB, 3.35e12, *_HOPPER, has_fp8=True),
    "h200-141gb": Device("NVIDIA H200", 143_771 * _MIB, 4.8e12, *_HOPPER, has_fp8=True),
    "b200-180gb": Device("NVIDIA B200", 180 * 10**9, 8e12, "NVLink", 900e9, 50e9, has_fp8=True),
    "a10g-24gb": Device("NVIDIA A10G", 23_028 * _MIB, 0.6e12, *_PCIE_4),
    "l4": Device("NVIDIA L4", 23_034 * _MIB, 0.3e12, *_PCIE_4, has_fp8=True),
    "l40s": Device("NVIDIA L40S", 46_068 * _MIB, 0.864e12, *_PCIE_4, has_fp8=True),
    "rtx-4090": Device("NVIDIA GeForce RTX 4090", 24_564 * _MIB, 1.008e12, *_PCIE_4, has_fp8=True),
}
"""Devices by the name that a user gives.

Sources: memory as nvidia-smi reports it (thundergolfer.com/blog/nvidia-gpu-memory-capacity; of a B200 and an RTX 4090,
the data sheet and nvidia-smi). Bandwidths of memory and NVLink from NVIDIA's data sheets, half of their sums over both
directions. Networks from the data sheets of DGX A100 (200 Gb/s a GPU), and of DGX H100, H200 and B200 (400 Gb/s); for
cards in PCIe slots, 100 Gb/s a GPU is an assumption.
"""
CPU = "cpu"


def find_machine(name: str) -> Host:
    """Returns a machine with the device of a name, otherwise like this one.

    Raises:
        ConfigError: There is no device of that name.
    """
    if name.lower() == CPU:
        return host.describe_cpu()
    device = DEVICES.get(name.lower())
    if device is None:
        names = [*DEVICES, CPU]
        hint = did_you_mean(name.lower(), names)
        raise ConfigError(f"--device: unknown device '{name}'{hint}; available: {', '.join(names)}")
    return Host("cuda", device.name, True, host.num_cpus(), device.memory_bytes, device.has_fp8)


def find_device(device_name: str) -> Device | None:
    """Returns the device with the name that torch reports, None if it is not in the table."""
    return next((device for device in DEVICES.values() if device.name == device_name), None)
