# SPDX-License-Identifier: Apache-2.0
"""The matrix products of a training step by MKL and by oneDNN: the basis of the choice in `oumi.core.system.matmul`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from statistics import median

from oumi.core.system import host

host.keep_freed_memory()  # before torch is imported, as in training

import torch  # noqa: E402

SHAPES = {
    "14m, MLP": (884, 256, 688),
    "31m, MLP": (884, 384, 1024),
    "135m, MLP": (884, 576, 1536),
    "14m, head": (512, 256, 32_000),
    "31m, head": (512, 384, 32_000),
    "135m, head": (320, 576, 49_152),
}
"""Rows, inputs and outputs."""


def main(words: Sequence[str] | None = None) -> None:
    """Prints GFLOP/s of both libraries for each shape, forward and backward."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args(words).repeats
    print(f"{host.describe_host().device_name}, {torch.get_num_threads()} threads, float32, GFLOP/s\n")
    print("| shape | product | MKL | oneDNN | ratio |\n|---|---|---:|---:|---:|")
    for name, (rows, inputs, outputs) in SHAPES.items():
        x, weight, gradient = torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(rows, outputs)
        flops = 2 * rows * inputs * outputs
        kinds = (
            ("x W^T", x, weight),
            ("gradient W", gradient, weight.t()),
            ("gradient^T x", gradient.t(), x.t()),
        )
        for kind, left, right in kinds:
            mkl, onednn = rates(left, right, flops, repeats)
            print(f"| {name} | {kind} | {mkl:.0f} | {onednn:.0f} | {onednn / mkl:.2f} |", flush=True)


def rates(left: torch.Tensor, right: torch.Tensor, flops: int, repeats: int) -> tuple[float, float]:
    """Returns the GFLOP/s of left right^T by MKL and by oneDNN: medians of turns."""
    libraries: tuple[Callable[[], torch.Tensor], ...] = (
        lambda: left @ right.t(),
        lambda: torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], ""),
    )
    times: tuple[list[float], ...] = ([], [])
    for _ in range(repeats):
        for multiply, seconds in zip(libraries, times, strict=True):
            started = time.perf_counter()
            multiply()
            seconds.append(time.perf_counter() - started)
    # The first product of a shape compiles or loads its kernel.
    mkl, onednn = (flops / median(seconds[1:]) / 1e9 for seconds in times)
    return mkl, onednn


if __name__ == "__main__":
    main()
