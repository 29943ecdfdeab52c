# SPDX-License-Identifier: Apache-2.0
"""The properties and settings of the machine."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from oumi.core.system import host
from oumi.core.system.host import peak_memory_bytes


def test_the_peak_of_memory_is_that_of_this_process_alone() -> None:
    ballast = bytearray(400_000_000)
    ballast[::4096] = b"x" * len(ballast[::4096])
    code = "from oumi.core.system.host import peak_memory_bytes; print(peak_memory_bytes())"
    child = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert 1_000_000 < child < 200_000_000
    assert peak_memory_bytes() > len(ballast)


def test_waiting_threads_sleep_soon_unless_the_user_set_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    host.let_waiting_threads_sleep()
    assert "GOMP_SPINCOUNT" not in os.environ
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    host.let_waiting_threads_sleep()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    host.let_waiting_threads_sleep()
    assert int(os.environ["GOMP_SPINCOUNT"]) > 0


def test_products_of_ever_new_sizes_do_not_fill_the_memory() -> None:
    code = (
        "from oumi.core.system import host; host.limit_kernel_caches(); import torch; "
        "from oumi.core.system.matmul import product; weight = torch.zeros(256, 256)\n"
        "def peak(sizes):\n"
        "    for size in sizes: product(torch.zeros(size, 256), weight, by_onednn=True)\n"
        "    return host.peak_memory_bytes()\n"
        "print(-peak(range(1, 60)) + peak(range(60, 260)))"
    )
    environment = {key: value for key, value in os.environ.items() if not key.endswith("_CACHE_CAPACITY")}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert int(result.stdout) < 30_000_000, "without a bound it is three times that"


def test_optimizations_are_disabled_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUMI_WITHOUT", "allocator,flat")
    assert host.disabled_optimizations() == {"allocator", "flat"}
    assert not host.keep_freed_memory()
    monkeypatch.delenv("OUMI_WITHOUT")
    assert host.disabled_optimizations() == set()


def test_a_training_process_starts_itself_anew_once_as_the_same_command_with_a_tight_heap(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["oumi", "train"])
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    code = (
        "import os, sys; from oumi.core.system import host; print(os.getpid(), host.has_tight_heap(), flush=True); "
        "host.tighten_heap(); print(sys.argv)"
    )
    assert not host.has_tight_heap()
    host.tighten_heap()  # these arguments are not those of this process
    environment = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"}
    for variables, tight in (
        (environment, "True"),
        ({**environment, "GLIBC_TUNABLES": "glibc.malloc.check=1"}, "False"),
    ):
        command = [sys.executable, "-c", code, "--key", "a b"]
        lines = subprocess.run(command, capture_output=True, text=True, check=True, env=variables).stdout.splitlines()
        *states, arguments = lines
        assert arguments == "['-c', '--key', 'a b']"
        assert len({state.split()[0] for state in states}) == 1, "the process stays the same"
        assert states[-1].split()[1] == tight
        assert len(states) == (2 if tight == "True" else 1)
