# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks`: all tables that need only a CPU; environments of the peers are created on first use."""

from benchmarks import data, ranks_cpu, sft_cpu

sft_cpu.main()
ranks_cpu.main()
data.main()
