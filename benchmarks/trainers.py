# SPDX-License-Identifier: Apache-2.0
"""One config, one set of rows, three trainers: how fast each is, and whether the losses agree.

Each runs as a process of its own, by turns, several times; the table shows medians. A time is that of the steps alone,
without imports, loading and the first steps. The run is rejected if the losses differ by more than 0.1 %.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

TRAINERS = ("OUMI", "TRL_SFT", "HF")
NUM_SKIPPED_STEPS = 5
MAX_DIFFERENCE = 1e-3


@dataclass(frozen=True)
class Timing:
    """What one run of one trainer took."""

    tokens_per_second: float
    cpu_us_per_token: float
    peak_gb: float
    losses: tuple[float, ...]


def main() -> None:
    """Runs the trainers and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--hidden-size", type=int, default=256)
    arguments = parser.parse_args()
    timings: dict[str, list[Timing]] = {name: [] for name in TRAINERS}
    with tempfile.TemporaryDirectory() as folder:
        config = write_config(Path(folder), arguments.hidden_size, arguments.steps)
        for turn in range(arguments.repeats):
            for name in TRAINERS:
                timings[name].append(run(config, name, Path(folder) / f"{name}-{turn}"))
    check_losses(timings)
    print(table(timings))


def write_config(folder: Path, hidden_size: int, num_steps: int) -> Path:
    """Writes rows of uneven length and the config of a run on them, and returns its path."""
    dice = random.Random(0)
    words = ["river", "stone", "lantern", "because", "seven", "quiet", "of", "and", "to", "window"]
    rows = [
        {
            "prompt": " ".join(dice.choices(words, k=dice.randint(4, 30))) + "?",
            "completion": " ".join(dice.choices(words, k=min(200, int(dice.lognormvariate(3.2, 0.9)) + 1))),
        }
        for _ in range(2000)
    ]
    data, config = folder / "rows.jsonl", folder / "config.yaml"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shape = {
        "hidden_size": hidden_size, "intermediate_size": 4 * hidden_size, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": hidden_size // 4,
        "max_position_embeddings": 2048,
    }  # fmt: skip
    config.write_text(
        json.dumps(
            {
                "model": {
                    "model_name": "oumi://tiny",
                    "load_pretrained_weights": False,
                    "model_max_length": 2048,
                    "model_kwargs": shape,
                },
                "data": {
                    "train": {
                        "train_target": "ALL_ASSISTANT_TURNS",
                        "datasets": [{"dataset_name": "text_sft", "dataset_path": str(data)}],
                    }
                },
                "training": {
                    "per_device_train_batch_size": 8,
                    "max_steps": num_steps,
                    "learning_rate": 1e-3,
                    "save_steps": 0,
                    "save_final_model": False,
                    "enable_tensorboard": False,
                },
            }
        )
    )
    return config


def run(config: Path, trainer: str, output_dir: Path) -> Timing:
    """Runs a trainer in a process of its own and returns what its steps took."""
    command = [sys.executable, "-m", "oumi", "train", "-c", str(config)]
    command += ["--training.trainer_type", trainer, "--training.output_dir", str(output_dir)]
    subprocess.run(command, check=True, capture_output=True)
    steps = [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]
    timed = steps[NUM_SKIPPED_STEPS:]
    seconds, tokens = sum(one["step_time_s"] for one in timed), sum(one["num_tokens"] for one in timed)
    return Timing(
        tokens_per_second=tokens / seconds,
        cpu_us_per_token=1e6 * sum(one["cpu_time_s"] for one in timed) / tokens,
        peak_gb=max(one["peak_memory_bytes"] for one in steps) / 1e9,
        losses=tuple(one["loss"] for one in steps),
    )


def check_losses(timings: dict[str, list[Timing]]) -> None:
    """Ends the benchmark if a trainer did not do the same work."""
    wanted = timings[TRAINERS[0]][0].losses
    for name, runs in timings.items():
        difference = max(abs(a - b) / b for one in runs for a, b in zip(one.losses, wanted, strict=True))
        if difference > MAX_DIFFERENCE:
            sys.exit(f"{name}: losses differ by {difference:.1e} from those of {TRAINERS[0]}, so times say nothing")


def table(timings: dict[str, list[Timing]]) -> str:
    """Returns medians, and how many times each trainer takes what the first one takes."""
    lines = [
        f"{'trainer':<10}{'tokens/s':>10}{'CPU us/token':>14}{'peak GB':>9}{'time x':>8}{'CPU x':>7}{'memory x':>10}"
    ]
    first: tuple[float, float, float] | None = None
    for name, runs in timings.items():
        speed, cpu, peak = (
            statistics.median(getattr(one, key) for one in runs)
            for key in ("tokens_per_second", "cpu_us_per_token", "peak_gb")
        )
        first = first or (speed, cpu, peak)
        lines.append(
            f"{name:<10}{speed:>10,.0f}{cpu:>14.1f}{peak:>9.2f}"
            f"{first[0] / speed:>8.2f}{cpu / first[1]:>7.2f}{peak / first[2]:>10.2f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
