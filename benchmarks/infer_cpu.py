# SPDX-License-Identifier: Apache-2.0
"""Answers of a Llama to prompts of uneven length, beside `generate` of transformers on padded batches, on a CPU.

Weights are random and large, so that a greedy answer wanders through the vocabulary, and one token in 40 ends it: most
answers are short, a few are long. Each arm must give the same tokens. Arms take turns; the table shows medians of CPU
time, which other programs disturb less than the clock.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from oumi.core.system import host

host.keep_freed_memory()  # before torch is imported, as in `oumi infer`

import numpy as np  # noqa: E402
import torch  # noqa: E402
from transformers import LlamaForCausalLM  # noqa: E402

from benchmarks.sft.workload import SHAPES  # noqa: E402
from oumi.core.models.continuous import ContinuousBatch  # noqa: E402
from oumi.core.models.decoding import Decoding  # noqa: E402

NUM_ROWS, NUM_NEW = 48, 128
STOP_EVERY = 40
Answers = list[list[int]]


def main(words: Sequence[str] | None = None) -> None:
    """Prints the tokens of answers per second of CPU time of each arm, for each batch size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="14m")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32])
    options = parser.parse_args(words)
    model, prompts = make_model(options.shape), make_prompts()
    stops = list(range(0, model.config.vocab_size, STOP_EVERY))
    print(f"{host.describe_host().device_name}, {torch.get_num_threads()} threads, {options.shape}, float32\n")
    print("| batch size | | tokens/s of CPU time | ratio |\n|---:|---|---:|---:|")
    for size in options.batch_sizes:
        arms: dict[str, Callable[[], Answers]] = {
            "transformers": lambda: padded(model, prompts, stops, size),  # noqa: B023
            "transformers, prompts sorted by length": lambda: in_order_of_length(model, prompts, stops, size),  # noqa: B023
            "Oumi": lambda: continuous(model, prompts, stops, size),  # noqa: B023
        }
        speeds: dict[str, list[float]] = {name: [] for name in arms}
        expected: Answers = []
        for _ in range(options.rounds):
            for name, arm in arms.items():
                started = time.process_time()
                answers = arm()
                speeds[name].append(sum(map(len, answers)) / (time.process_time() - started))
                expected = expected or answers
                assert answers == expected, f"{name} gives other tokens"
        for name in arms:
            ratio = median(speeds[name]) / median(speeds["transformers"])
            print(f"| {size} | {name} | {median(speeds[name]):.0f} | {ratio:.2f} |", flush=True)
    print(f"\n{sum(map(len, prompts))} tokens of prompts, {sum(map(len, expected))} of answers")


def make_model(shape: str) -> Any:
    """Returns a Llama with weights that make every token as likely as any other."""
    torch.manual_seed(0)
    return LlamaForCausalLM(SHAPES[shape].config(initializer_range=0.1)).eval()


def make_prompts() -> list[list[int]]:
    """Returns prompts whose lengths are spread like those of questions."""
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.lognormal(4.3, 0.7, NUM_ROWS).astype(int), 8, 512)
    return [generator.integers(5, 32_000, length).tolist() for length in lengths]


def padded(model: Any, prompts: Sequence[Sequence[int]], stops: list[int], size: int) -> Answers:
    """Returns the answers by `generate`, in batches padded on the left."""
    answers: Answers = []
    for first in range(0, len(prompts), size):
        rows = prompts[first : first + size]
        longest = max(map(len, rows))
        tokens_BS = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows])
        mask_BS = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        settings = {"max_new_tokens": NUM_NEW, "do_sample": False, "eos_token_id": stops, "pad_token_id": 0}
        for row in model.generate(tokens_BS, attention_mask=mask_BS, **settings)[:, longest:].tolist():
            end = next((i for i, token in enumerate(row) if token in stops), len(row))
            answers.append(row[: end + 1])
    return answers


def in_order_of_length(model: Any, prompts: list[list[int]], stops: list[int], size: int) -> Answers:
    """Returns the answers by `generate`, with prompts of similar length in a batch."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers = dict(zip(order, padded(model, [prompts[i] for i in order], stops, size), strict=True))
    return [answers[i] for i in range(len(prompts))]


def continuous(model: Any, prompts: list[list[int]], stops: list[int], size: int) -> Answers:
    """Returns the answers by batches that are refilled."""
    return ContinuousBatch(model, None, Decoding(NUM_NEW, stop_tokens=tuple(stops)), size).answers(prompts, ())


if __name__ == "__main__":
    main()
