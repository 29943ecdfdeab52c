# SPDX-License-Identifier: Apache-2.0
"""A full disk is reported, whatever is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from oumi.core.errors import StorageError
from oumi.core.train import train
from tests.runs import tiny_config


@pytest.mark.parametrize("trainer", ["OUMI", "HF"])
@pytest.mark.parametrize("name", ["plan.json", "data_report.json", "environment.json", "metrics.tmp"])
def test_a_full_disk_is_reported_with_the_file(tmp_path: Path, trainer: str, name: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).symlink_to("/dev/full")
    with pytest.raises(StorageError, match=r"No space left on device; [\d,]+ MB are free there"):
        train(tiny_config(tmp_path, trainer_type=trainer, max_steps=2, logging_steps=1))
