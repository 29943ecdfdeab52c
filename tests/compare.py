# SPDX-License-Identifier: Apache-2.0
"""Shows that a refactor changed no number: `python -m tests.compare OLD_CHECKOUT [NEW_CHECKOUT]`.

Both checkouts train the same tiny models on the same files through the command line, each with an empty token cache.
Equal means: every number of `metrics.jsonl` that is no time, speed or memory, and every bit of the saved weights.
The exit status is 1 on any difference.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.checkouts import HERE, check_source, run_in

Record = dict[str, Any]
"""A line of `metrics.jsonl`."""

MEASURED = re.compile(r"time|per_second|memory|peak|page_faults")
"""Names of numbers that no two runs share."""


def write_inputs(folder: Path) -> None:
    """Writes the models and the data sets of all configurations."""
    from tests.tiny import save_tiny_model, write_chats
    from tests.tiny_vision import save_tiny_llava

    save_tiny_model(folder / "llama")
    save_tiny_llava(folder / "llava")
    write_chats(folder / "short.jsonl", num_rows=24)
    write_chats(folder / "long.jsonl", num_rows=40)
    write_image_chats(folder / "images.jsonl", num_rows=12)


def write_image_chats(path: Path, num_rows: int) -> None:
    """Writes chats about images of several sizes, and the images beside them."""
    from tests.tiny_vision import image

    lines = []
    for i in range(num_rows):
        file = path.with_name(f"image-{i}.png")
        image(i, width=20 + 4 * i, height=32).save(file)
        question = [{"type": "image_path", "content": file.name}, {"type": "text", "content": f"What is {i}?"}]
        answer = f"It is {i}." + " Yes!" * (i % 3)
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"messages": messages}) + "\n")
    path.write_text("".join(lines))


def full(inputs: Path) -> Record:
    """Full fine-tuning, with a validation set."""
    config = configuration(inputs)
    config["data"]["validation"] = {"datasets": [dataset(inputs / "long.jsonl")]}
    config["training"] |= {"eval_strategy": "steps", "eval_steps": 5}
    return config


def lora(inputs: Path) -> Record:
    """An adapter, with dropout."""
    config = configuration(inputs, use_peft=True)
    config["peft"] = {"lora_r": 4, "lora_dropout": 0.1, "lora_target_modules": ["q_proj", "v_proj", "down_proj"]}
    return config


def packed(inputs: Path) -> Record:
    """A shuffled mixture of two data sets by proportion, in packed rows."""
    config = configuration(inputs)
    config["model"]["model_max_length"] = 256
    config["data"]["train"] = {"datasets": mixture(inputs), "pack": True}
    return config


def stream(inputs: Path) -> Record:
    """A stream of the same mixture."""
    config = configuration(inputs)
    config["data"]["train"] = {"datasets": mixture(inputs, shuffle_buffer_size=16), "stream": True}
    return config


def images(inputs: Path) -> Record:
    """A model that sees images."""
    config = configuration(inputs)
    config["model"]["model_name"] = str(inputs / "llava")
    config["data"]["train"]["datasets"] = [dataset(inputs / "images.jsonl", dataset_name="vl_sft")]
    return config


def trl(inputs: Path) -> Record:
    """Another trainer on the same rows."""
    return configuration(inputs, trainer_type="TRL_SFT")


CONFIGURATIONS: dict[str, Callable[[Path], Record]] = {
    "full fine-tuning": full,
    "LoRA": lora,
    "packed mixture": packed,
    "stream": stream,
    "images": images,
    "TRL_SFT": trl,
}


def configuration(inputs: Path, **training: Any) -> Record:
    """Returns full fine-tuning of a tiny model on a few chats."""
    return {
        "model": {"model_name": str(inputs / "llama")},
        "data": {"train": {"datasets": [dataset(inputs / "short.jsonl")]}},
        "training": {
            "trainer_type": "OUMI",
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "learning_rate": 1e-3,
            "warmup_steps": 2,
            "save_steps": 0,
            "logging_steps": 1,
            "enable_tensorboard": False,
            **training,
        },
    }


def dataset(path: Path, **params: Any) -> Record:
    return {"dataset_name": "text_sft", "dataset_path": str(path), **params}


def mixture(inputs: Path, **params: Any) -> list[Record]:
    shares = {"short.jsonl": 0.25, "long.jsonl": 0.75}
    return [dataset(inputs / name, mixture_proportion=share, shuffle=True, **params) for name, share in shares.items()]


def train(checkout: Path, config: Record, folder: Path, num_steps: int) -> Path:
    """Trains with the code of a checkout through the command line, and returns the directory of the run.

    Raises:
        RuntimeError: The run failed; the end of what it printed.
    """
    folder.mkdir(parents=True)
    output = folder / "out"
    training = config["training"] | {"output_dir": str(output), "max_steps": num_steps}
    (folder / "train.yaml").write_text(json.dumps(config | {"training": training}, indent=1))  # JSON is YAML
    process = run_in(checkout, ["-m", "oumi", "train", "-c", "train.yaml"], folder)
    if process.returncode:
        raise RuntimeError(f"{checkout}: exit status {process.returncode}\n{process.stderr[-2000:]}")
    return output


def difference_of_runs(old: Path, new: Path) -> str | None:
    """Returns the first difference between the directories of two runs, None if there is none."""
    records = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (old, new)]
    return difference_of_records(*records) or difference_of_weights(old, new)


def difference_of_records(old: Iterable[Record], new: Iterable[Record]) -> str | None:
    """Returns the first number that is not the same, None if there is none."""
    for number, (before, after) in enumerate(zip_longest(old, new, fillvalue={}), start=1):
        for name in dict.fromkeys([*before, *after]):
            # As text, so that NaN equals NaN, and 1 is not 1.0.
            values = [json.dumps(record[name]) if name in record else "absent" for record in (before, after)]
            if not MEASURED.search(name) and values[0] != values[1]:
                return f"metrics.jsonl line {number}: {name} {values[0]} became {values[1]}"
    return None


def difference_of_weights(old: Path, new: Path) -> str | None:
    """Returns the first saved tensor that is not the same bit for bit, None if there is none."""
    names = sorted({path.name for run in (old, new) for path in run.glob("*.safetensors")})
    if not names:
        return "no weights were saved"
    for name in names:
        if not ((old / name).exists() and (new / name).exists()):
            return f"{name} was saved by one of the runs only"
        tensors = [_read_tensors(run / name) for run in (old, new)]
        for tensor in sorted(tensors[0].keys() | tensors[1].keys()):
            if tensors[0].get(tensor) != tensors[1].get(tensor):
                return f"{name}: tensor {tensor} differs"
    return None


def _read_tensors(path: Path) -> dict[str, tuple[str, str, bytes]]:
    """Returns dtype, shape and bytes of each tensor, without what the header says of where they are."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        first, last = (start + offset for offset in entry["data_offsets"])
        tensors[name] = (entry["dtype"], str(entry["shape"]), content[first:last])
    return tensors


def compare(checkouts: tuple[Path, Path], folder: Path, num_steps: int) -> bool:
    """Prints a line for each configuration, and returns True if all are equal.

    Args:
        checkouts: The old one and the new one.
        folder: Where everything is written.
        num_steps: Optimizer steps of each run.
    """
    is_equal = True
    inputs = folder / "inputs"
    inputs.mkdir()
    write_inputs(inputs)
    for checkout in checkouts:
        check_source(checkout, folder)
    for name, build in CONFIGURATIONS.items():
        config, place = build(inputs), folder / name.replace(" ", "-")
        try:
            old, new = (
                train(checkout, config, place / side, num_steps)
                for checkout, side in zip(checkouts, ("old", "new"), strict=True)
            )
            difference = difference_of_runs(old, new)
        except RuntimeError as error:
            difference = str(error)
        print(f"{name}: {difference or f'equal, {num_steps} steps'}", flush=True)
        is_equal &= difference is None
    return is_equal


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.compare", description="Compare the numbers of two checkouts."
    )
    parser.add_argument("old", type=Path, help="root of a checkout")
    parser.add_argument("new", type=Path, nargs="?", default=HERE, help="root of another, this one by default")
    parser.add_argument("--steps", type=int, default=12, help="optimizer steps of each run")
    arguments = parser.parse_args()
    with TemporaryDirectory(prefix="oumi-compare-") as name:
        checkouts = arguments.old.resolve(), arguments.new.resolve()
        sys.exit(not compare(checkouts, Path(name).resolve(), arguments.steps))


if __name__ == "__main__":
    main()
