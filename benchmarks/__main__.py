# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks`: every table that a CPU can fill; the peers' environments are made on first use."""

from benchmarks import data, sft_cpu

sft_cpu.main()
data.main()
