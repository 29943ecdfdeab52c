# SPDX-License-Identifier: Apache-2.0
"""Memory that runs out in mid-run: micro-batches are cut, and the run goes on as if there had been enough."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from oumi.core.configs import TrainingConfig
from oumi.core.engine.gradients import is_out_of_memory
from tests.runs import tiny_config

DRIVER = """
import resource, sys
from oumi.core.configs import TrainingConfig
from oumi.core.train import train
import oumi.core.trainers.native
config = TrainingConfig.from_yaml(sys.argv[1])
if int(sys.argv[2]):
    pages = int(open("/proc/self/statm").read().split()[0])
    limit = pages * resource.getpagesize() + (int(sys.argv[2]) << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    train(config)
except Exception as error:
    print(type(error).__name__, error, file=sys.stderr)
    sys.exit(2)
"""


def long_chats(folder: Path, num_rows: int = 32) -> TrainingConfig:
    """Returns a run whose micro-batches of 16 long rows take far more memory than the model."""
    config = tiny_config(folder, max_steps=3, per_device_train_batch_size=16, gradient_accumulation_steps=1)
    config.model.model_kwargs = {"hidden_size": 256, "intermediate_size": 4096, "num_attention_heads": 4}
    config.model.load_pretrained_weights = False
    rows = [
        {
            "messages": [
                {"role": "user", "content": "?"},
                {"role": "assistant", "content": f"{i} " + "ab " * (140 + i // 2)},
            ]
        }
        for i in range(num_rows)
    ]
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return config


def run(config: TrainingConfig, name: str, limit_mib: int) -> tuple[subprocess.CompletedProcess[str], list[float]]:
    folder = Path(config.training.output_dir).parent
    config.training.output_dir = str(folder / name)
    config.to_yaml(folder / f"{name}.yaml")
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(folder / f"{name}.yaml"), str(limit_mib)], capture_output=True, text=True
    )
    metrics = folder / name / "metrics.jsonl"
    steps = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
    return done, [step["loss"] for step in steps]


@pytest.mark.skipif(sys.platform != "linux", reason="limits of address space")
def test_a_run_short_of_memory_cuts_its_micro_batches_and_gives_the_same_losses(tmp_path: Path) -> None:
    plenty, wanted = run(long_chats(tmp_path), "plenty", 0)
    short, found = run(long_chats(tmp_path), "short", 800)
    assert (plenty.returncode, short.returncode) == (0, 0), short.stderr
    logs = [(tmp_path / name / "logs" / "rank_0000.log").read_text() for name in ("plenty", "short")]
    assert ["each micro-batch is computed in 2 parts" in log for log in logs] == [False, True]
    assert found == pytest.approx(wanted, rel=1e-6)


def test_memory_that_ran_out_is_told_from_other_errors() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
