# SPDX-License-Identifier: Apache-2.0
"""The speed of a machine."""

from __future__ import annotations

import torch

from oumi.core.system.peaks import measure_peaks


def test_measuring_a_machine_draws_no_random_number_of_the_run() -> None:
    state = torch.get_rng_state()
    peaks = measure_peaks("cpu", "float32", 1)
    # Else a run with dropout on a machine that was never measured would not be resumed to the same numbers.
    assert torch.equal(torch.get_rng_state(), state)
    assert peaks.flops > 1e8
