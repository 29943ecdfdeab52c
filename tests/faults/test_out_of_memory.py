# SPDX-License-Identifier: Apache-2.0
"""Memory that runs out in mid-run: micro-batches are cut, and the run goes on as if there had been enough."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from oumi.core.batch import Batch
from oumi.core.configs import TrainingConfig
from oumi.core.engine.gradients import add_gradients, is_out_of_memory, try_largest_micro_batch
from oumi.core.errors import ConfigError
from oumi.core.methods.method import Loss, StepSums
from oumi.core.methods.next_token import NextToken
from oumi.core.plan.step_sizes import LargestMicroBatch
from oumi.core.run import Run
from oumi.core.trainers.native import NativeTrainer
from tests.fork_server import run_python
from tests.runs import build, tiny_config

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


def long_chats(folder: Path, num_rows: int = 16) -> TrainingConfig:
    """Returns a run whose micro-batches of 16 long rows take far more memory than the model."""
    config = tiny_config(folder, max_steps=1, per_device_train_batch_size=16, gradient_accumulation_steps=1)
    config.model.model_kwargs = {"hidden_size": 64, "intermediate_size": 2048, "num_attention_heads": 4}
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
    done = run_python("-c", DRIVER, str(folder / f"{name}.yaml"), str(limit_mib))
    metrics = folder / name / "metrics.jsonl"
    steps = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
    return done, [step["loss"] for step in steps]


@pytest.mark.skipif(sys.platform != "linux", reason="limits of address space")
def test_a_run_short_of_memory_cuts_its_micro_batches_and_gives_the_same_losses(tmp_path: Path) -> None:
    plenty, expected = run(long_chats(tmp_path), "plenty", 0)
    short, losses = run(long_chats(tmp_path), "short", 450)
    assert (plenty.returncode, short.returncode) == (0, 0), short.stderr
    logs = [(tmp_path / name / "logs" / "rank_0000.log").read_text() for name in ("plenty", "short")]
    assert ["each micro-batch is computed in 2 parts" in log for log in logs] == [False, True]
    assert losses == pytest.approx(expected, rel=1e-6)


def test_a_lack_of_memory_is_distinguished_from_other_errors() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


class SmallMemory(NextToken):
    """The loss on a device with room for so many tokens at once."""

    def __init__(self, run: Run, most_tokens: int) -> None:
        super().__init__(run.plan, lambda: pytest.fail("this method has no reference"))
        self._most_tokens = most_tokens

    def loss(self, model: torch.nn.Module, batch: Batch, step: StepSums) -> Loss:
        loss = super().loss(model, batch, step)
        if batch.num_tokens > self._most_tokens:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss


def short_run(folder: Path, name: str, most_tokens: int) -> Run:
    """Returns a run whose device is full with so many tokens."""
    sizes: dict[str, Any] = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
    run = build(tiny_config(folder, output_dir=str(folder / name), **sizes), NativeTrainer).run
    run.method = SmallMemory(run, most_tokens)
    return run


def gradient(run: Run, batches: list[Batch]) -> torch.Tensor:
    add_gradients(run, batches, sum(batch.num_targets for batch in batches))
    return torch.cat([weight.grad.flatten() for weight in run.model.parameters() if weight.grad is not None])


def test_a_step_in_smaller_parts_has_the_same_gradient_and_later_steps_start_so(tmp_path: Path) -> None:
    plenty = short_run(tmp_path, "plenty", 1 << 20)
    batches = next(plenty.loader.from_step(0))
    longest = max(document.num_tokens for batch in batches for document in batch.documents())
    expected = gradient(plenty, batches)
    run = short_run(tmp_path, "short", longest)  # uneven documents are cut until the longest stands alone
    torch.testing.assert_close(gradient(run, batches), expected, rtol=1e-5, atol=1e-7)
    assert run.state.parts > 1
    before = run.state.parts
    run.model.zero_grad()
    gradient(run, batches)
    assert run.state.parts == before


def test_the_largest_micro_batch_is_tried_without_a_trace_but_the_cut(tmp_path: Path) -> None:
    run = short_run(tmp_path, "short", 100)
    weights, random = [weight.clone() for weight in run.model.parameters()], torch.get_rng_state()
    try_largest_micro_batch(run, LargestMicroBatch(250, 60))
    assert run.state.parts == 4, "documents of 60 tokens, two in a part"
    assert torch.equal(torch.get_rng_state(), random)
    assert all(weight.grad is None for weight in run.model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(weights, run.model.parameters(), strict=True))
    with pytest.raises(ConfigError, match=r"step 1: out of memory with one row at a time; the largest .* 101 tokens"):
        try_largest_micro_batch(run, LargestMicroBatch(101, 101))


def test_a_row_that_does_not_fit_alone_is_named(tmp_path: Path) -> None:
    run = short_run(tmp_path, "short", 20)
    batches = next(run.loader.from_step(0))
    with pytest.raises(
        ConfigError, match=r"out of memory with one row at a time; the largest begins with .*chats.jsonl"
    ):
        gradient(run, batches)
