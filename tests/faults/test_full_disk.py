# SPDX-License-Identifier: Apache-2.0
"""A full disk is reported, whatever is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from oumi.core.errors import StorageError
from oumi.core.train import train
from tests.fork_server import run_python
from tests.runs import tiny_config


@pytest.mark.parametrize("trainer", ["OUMI", "HF"])
@pytest.mark.parametrize("name", ["plan.json", "data_report.json", "environment.json", "metrics.tmp"])
def test_a_full_disk_is_reported_with_the_file(tmp_path: Path, trainer: str, name: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).symlink_to("/dev/full")
    with pytest.raises(StorageError, match=r"No space left on device; [\d,]+ MB are free there"):
        train(tiny_config(tmp_path, trainer_type=trainer, max_steps=2, logging_steps=1))


@pytest.mark.parametrize("trainer", ["OUMI", "HF"])
def test_a_checkpoint_that_does_not_fit_is_reported_and_leaves_nothing(tmp_path: Path, trainer: str) -> None:
    config = tiny_config(tmp_path, trainer_type=trainer, save_steps=1, max_steps=2)
    config.to_yaml(tmp_path / "train.yaml")
    # Room for the weights, but not for the optimizer, which HF writes with `torch.save`.
    limit = int(1.5 * (tmp_path / "model" / "model.safetensors").stat().st_size)
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
    command = (
        f"{limited}; import sys; sys.argv[1:] = ['train', '-c', 'train.yaml']; from oumi.cli.main import run; run()"
    )
    result = run_python("-c", command, folder=tmp_path)
    assert result.returncode == StorageError.exit_code, result.stderr[-2000:]
    assert "Traceback" not in result.stderr
    assert "could not be saved" in result.stderr or "File too large" in result.stderr
    assert not [path.name for path in (tmp_path / "out").iterdir() if "checkpoint" in path.name]
