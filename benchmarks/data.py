# SPDX-License-Identifier: Apache-2.0
"""Tokenization of a file of chats: the speed of each implementation, and whether training has to wait for it.

Each run is a process of its own, and implementations take turns; a time leaves out imports. `cold` starts with empty
caches, `warm` with those of the cold run. The peers tokenize only; ours also computes which tokens are trained, checks
every row and counts it. The second table has the time of a run of one step, without `import torch`, and the peak memory
of a run of twenty steps, on files of increasing size.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

IMPLEMENTATIONS = ("oumi 1", "oumi 2", "TRL 1", "TRL 2", "map 1", "map 2")
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_COMMON = """
import json, os, resource, sys, time
import torch, transformers
from transformers import AutoTokenizer
rows, model, workers = sys.argv[1], sys.argv[2], int(sys.argv[3])
tokenizer = AutoTokenizer.from_pretrained(model)
transformers.utils.logging.set_verbosity_error()
"""
_PRINT_RESULT = """
seconds = time.perf_counter() - started
print(json.dumps({"seconds": seconds, "tokens": int(tokens)}))
"""
_OURS = f"""{_COMMON}
from datetime import datetime
from oumi.core.configs import DatasetParams, ModelParams, TrainingConfig
from oumi.core.datasets import dataset_for
from oumi.core.plan.plan import make_plan
from oumi.core.inspect import gather_facts
from oumi.core.data.build import TableSpec, make_table
from oumi.core.data.tokenize.preprocessor import Preprocessor
config = TrainingConfig()
config.data.train.datasets = [DatasetParams(dataset_name="text_sft", dataset_path=rows)]
config.model.model_name = model
plan = make_plan(config, gather_facts(config))
from oumi.core.data.sources.jsonl import _index
# The plan has indexed the lines already, which is a part of the work.
_index.cache_clear()
started = time.perf_counter()
params, target = config.data.train.datasets[0], "all_assistant_turns"
spec = TableSpec(params, plan.model, target, None, "data.train", 0, datetime.now())
table = make_table(spec, dataset_for(spec.params), Preprocessor(tokenizer), spec.ledger(), workers)
tokens = table.ledger["num_tokens"]
{_PRINT_RESULT}"""
_TRL = f"""{_COMMON}
import datasets
from trl import SFTConfig, SFTTrainer
datasets.disable_progress_bars()
network = transformers.AutoModelForCausalLM.from_pretrained(model)
settings = SFTConfig(output_dir=os.environ["HF_DATASETS_CACHE"], dataset_num_proc=workers, max_length=512,
                     use_cpu=True, bf16=False, report_to="none")
started = time.perf_counter()
data = datasets.load_dataset("json", data_files=rows, split="train")
trainer = SFTTrainer(model=network, args=settings, train_dataset=data, processing_class=tokenizer)
seconds = time.perf_counter() - started
tokens = sum(len(tokens) for tokens in trainer.train_dataset["input_ids"])
print(json.dumps({{"seconds": seconds, "tokens": int(tokens)}}))
"""
_MAP = f"""{_COMMON}
import datasets
datasets.disable_progress_bars()
def tokenize_rows(batch):
    texts = tokenizer.apply_chat_template(batch["messages"], tokenize=False)
    return {{"input_ids": tokenizer(texts, add_special_tokens=False, truncation=True, max_length=512)["input_ids"]}}
started = time.perf_counter()
data = datasets.load_dataset("json", data_files=rows, split="train")
data = data.map(tokenize_rows, batched=True, remove_columns=data.column_names, num_proc=workers)
seconds = time.perf_counter() - started
tokens = sum(len(tokens) for tokens in data["input_ids"])
print(json.dumps({{"seconds": seconds, "tokens": int(tokens)}}))
"""
_CODE = {"oumi": _OURS, "TRL": _TRL, "map": _MAP}
_RUN = """
import json, resource, sys, time
import torch
started = time.perf_counter()
from oumi.core.configs import TrainingConfig
from oumi.core.train import train
train(TrainingConfig.from_yaml(sys.argv[1]))
print(json.dumps({"seconds": time.perf_counter() - started,
                  "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))
"""


@dataclass(frozen=True)
class Timing:
    """Result of a run."""

    seconds: float
    tokens: int


def main() -> None:
    """Runs every implementation and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=50_000, help="of the first table")
    parser.add_argument("--most-rows", type=int, default=1_000_000, help="of the second table")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        rows = write_rows(folder / "rows.jsonl", arguments.rows)
        model = write_model(folder / "model", rows)
        timings: dict[str, list[tuple[Timing, Timing]]] = {name: [] for name in IMPLEMENTATIONS}
        for turn in range(arguments.repeats):
            for name in IMPLEMENTATIONS:
                caches = folder / f"{name.replace(' ', '-')}-{turn}"
                # The first run leaves its caches to the second.
                timings[name].append((run(name, rows, model, caches), run(name, rows, model, caches)))
        check_tokens(timings)  # before any time is shown
        print(table(timings, arguments.rows, rows.stat().st_size))
        for num_rows in (arguments.most_rows // 10, arguments.most_rows):
            print(first_step(folder, model, num_rows))


def write_rows(path: Path, num_rows: int) -> Path:
    """Writes chats of one to three exchanges, of uneven length, and returns the path."""
    generator = random.Random(0)
    letters = "etaoinshrdlucmfw"
    words = ["".join(generator.choices(letters, k=generator.randint(2, 9))) for _ in range(5000)]
    with path.open("w") as file:
        for _ in range(num_rows):
            turns = []
            for _ in range(generator.choice((1, 1, 1, 2, 3))):
                for role, most in (("user", 20), ("assistant", 60)):
                    turns.append(
                        {"role": role, "content": " ".join(generator.choices(words, k=generator.randint(3, most)))}
                    )
            file.write(json.dumps({"messages": turns}) + "\n")
    return path


def write_model(folder: Path, rows: Path) -> Path:
    """Writes a tiny Llama with a tokenizer that was trained on the rows, and returns the folder."""
    from itertools import islice

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = ["<|im_start|>", "<|im_end|>"]
    kind: Any = trainers.BpeTrainer(
        vocab_size=4000,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    with rows.open() as file:
        inner.train_from_iterator(islice(file, 5000), kind)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|im_end|>", model_max_length=512
    )
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=512, num_key_value_heads=2, **shape)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def run(implementation: str, rows: Path, model: Path, caches: Path) -> Timing:
    """Runs an implementation in a process of its own, with caches of its own."""
    name, _, workers = implementation.partition(" ")
    environment = {**os.environ, "OUMI_CACHE_DIR": str(caches), "HF_DATASETS_CACHE": str(caches)}
    result = _child(_CODE[name], [str(rows), str(model), workers], environment)
    return Timing(result["seconds"], result["tokens"])


def first_step(folder: Path, model: Path, num_rows: int) -> str:
    """Returns a line with the time of a run of one step on a number of rows, cold, and the memory of twenty steps."""
    rows = write_rows(folder / f"{num_rows}.jsonl", num_rows)
    results = {}
    for num_steps in (1, 20):
        config, caches = folder / "run.yaml", folder / f"caches-{num_rows}-{num_steps}"
        config.write_text(
            json.dumps(
                {
                    "model": {"model_name": str(model)},
                    "data": {"train": {"datasets": [{"dataset_name": "text_sft", "dataset_path": str(rows)}]}},
                    "training": {
                        "trainer_type": "OUMI",
                        "output_dir": str(folder / f"out-{num_rows}-{num_steps}"),
                        "max_steps": num_steps,
                        "save_steps": 0,
                        "save_final_model": False,
                        "enable_tensorboard": False,
                    },
                }
            )
        )
        results[num_steps] = _child(_RUN, [str(config)], {**os.environ, "OUMI_CACHE_DIR": str(caches)})
    seconds, peak = results[1]["seconds"], results[20]["peak"] / 1e6
    return f"{num_rows:>9,} rows: a run of one step takes {seconds:.2f} s; peak memory of twenty steps {peak:.0f} MB"


def check_tokens(timings: dict[str, list[tuple[Timing, Timing]]]) -> None:
    """Ends the benchmark if implementations made different numbers of tokens."""
    counts = {name: {timing.tokens for pair in pairs for timing in pair} for name, pairs in timings.items()}
    if len(set().union(*counts.values())) != 1:
        sys.exit(f"numbers of tokens differ, so times cannot be compared: {counts}")


def table(timings: dict[str, list[tuple[Timing, Timing]]], num_rows: int, num_bytes: int) -> str:
    """Returns medians, and their ratios to those of the first implementation."""
    lines = [f"{'':<8}{'rows/s':>10}{'MB/s':>8}{'cold s':>9}{'warm s':>9}{'cold x':>9}{'warm x':>9}"]
    first: tuple[float, float] | None = None
    for name, pairs in timings.items():
        cold, warm = (statistics.median(pair[i].seconds for pair in pairs) for i in (0, 1))
        first = first or (cold, warm)
        lines.append(
            f"{name:<8}{num_rows / cold:>10,.0f}{num_bytes / cold / 1e6:>8.1f}{cold:>9.2f}{warm:>9.2f}"
            f"{cold / first[0]:>9.2f}{warm / first[1]:>9.2f}"
        )
    return "\n".join(lines)


def _child(code: str, arguments: list[str], environment: dict[str, str]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])  # libraries may print before it
    return result


if __name__ == "__main__":
    main()
