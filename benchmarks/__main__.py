# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks`: every table."""

from benchmarks import data, trainers

trainers.main()
data.main()
