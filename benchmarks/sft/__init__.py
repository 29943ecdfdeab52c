# SPDX-License-Identifier: Apache-2.0
"""The parts of `python -m benchmarks.sft_cpu`: its workload, its environments, its measuring and its tables."""
