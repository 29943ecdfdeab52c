# SPDX-License-Identifier: Apache-2.0
"""Flat batches of hybrid models beside padded ones, on a CPU.

Models with linear attention, state-space layers or convolutions, of small size and with random weights, take steps
(forward, loss and backward) on documents whose lengths are spread like those of chats. Arms take turns, in reverse
every other round. Tokens are those of the documents, without padding. The table shows the median over rounds of CPU
time, which other programs disturb less than the clock, and the largest difference of the loss.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from benchmarks.sft_cpu import RESULTS, commit, cpu_model
from oumi.core.batch import Batch, collate
from oumi.core.methods.next_token import next_token_loss
from oumi.core.models.acceleration.flat import make_flat
from oumi.core.models.attention.rows import Rows
from oumi.core.models.language_model import LanguageModel
from oumi.core.models.shared_prefixes import without_ends
from oumi.core.types.example import Example, Source

SIZES: dict[str, Any] = {
    "vocab_size": 2048, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 2048, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "num_experts": 8, "num_local_experts": 8, "n_routed_experts": 8, "num_experts_per_tok": 2,
    "moe_intermediate_size": 256, "shared_expert_intermediate_size": 256,
}  # fmt: skip
_MIXED = ["linear_attention", "linear_attention", "linear_attention", "full_attention"]
_LINEAR = {
    "layer_types": _MIXED, "linear_num_key_heads": 4, "linear_num_value_heads": 8, "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
}  # fmt: skip
_CONV = {"layer_types": ["conv", "conv", "full_attention", "conv"]}
_MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 64, "mamba_d_state": 32, "mamba_n_groups": 1, "mamba_chunk_size": 64}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3_5_text": _LINEAR,
    "qwen3_5_moe_text": _LINEAR,
    "qwen3_next": _LINEAR,
    "olmo_hybrid": {**_LINEAR, "linear_num_key_heads": 8},
    "lfm2": _CONV,
    "lfm2_moe": _CONV,
    "granitemoehybrid": {
        "layer_types": ["mamba", "mamba", "mamba", "attention"], "shared_intermediate_size": 768, **_MAMBA2,
    },
    "falcon_h1": {"mamba_d_ssm": 512, **_MAMBA2},
    "bamba": {"attn_layer_indices": [3], **_MAMBA2},
    "mamba2": {"num_heads": 8, "head_dim": 64, "state_size": 32, "n_groups": 1, "chunk_size": 64, "expand": 2},
    "nemotron_h": {
        "layers_block_type": ["mamba", "attention", "mamba", "mlp"], "mamba_num_heads": 8, "mamba_head_dim": 64,
        "ssm_state_size": 32, "n_groups": 1, "chunk_size": 64,
    },
    "minimax": {"block_size": 64},
}  # fmt: skip
"""Families, and what is peculiar to their shapes."""


@dataclass
class Outcome:
    """The measurements of a family."""

    family: str
    tokens: int
    padded_places: int
    row_places: int
    """Places of the rows that the mixers see in flat batches."""
    seconds: dict[str, list[float]] = field(default_factory=lambda: {"flat": [], "padded": []})
    """CPU time of the batches, by arm and round."""
    difference: float = 0.0
    """Largest relative difference of a loss between the arms."""

    def tokens_per_s(self, arm: str) -> float:
        """Returns the median over rounds."""
        return self.tokens / statistics.median(self.seconds[arm])


def main() -> None:
    """Measures each family, prints and writes the table."""
    options = parse_options()
    torch.set_num_threads(options.threads)
    logging.set_verbosity_error()
    batches = make_batches(options.batches, options.rows, options.median)
    outcomes = []
    for family in options.families:
        outcomes.append(measure(family, batches, options.rounds))
        print(row(outcomes[-1]), flush=True)
    text = report(options, batches, outcomes)
    print("\n" + text)
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "hybrid_cpu.md").write_text(text + "\n")
    values = [{**vars(outcome)} for outcome in outcomes]
    (options.results / "hybrid_cpu.json").write_text(json.dumps(values) + "\n")


def parse_options(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Returns the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", type=lambda text: text.split(","), default=list(FAMILIES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=3, help="of a round")
    parser.add_argument("--rows", type=int, default=8, help="documents of a batch")
    parser.add_argument("--median", type=int, default=120, help="tokens of a document")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder of the table")
    options = parser.parse_args(words)
    for name in options.families:
        if name not in FAMILIES:
            parser.error(f"unknown family '{name}', expected one of {', '.join(FAMILIES)}")
    return options


def make_batches(count: int, num_rows: int, median: int) -> list[Batch]:
    """Returns batches of documents whose lengths have a log-normal distribution, as those of chats."""
    random = np.random.default_rng(0)
    batches = []
    for _ in range(count):
        lengths = np.clip(random.lognormal(np.log(median), 0.8, num_rows), 8, 8 * median).astype(int)
        rows = [random.integers(3, 2000, length).astype(np.int32) for length in lengths]
        batches.append(collate([Example(row, np.ones(len(row), np.bool_), Source("", "", 0)) for row in rows]))
    return batches


def measure(family: str, batches: list[Batch], rounds: int) -> Outcome:
    """Returns the measurements of a family, whose weights are the same in both arms."""
    settings = {**SIZES, **FAMILIES[family]}
    torch.manual_seed(0)
    inner = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings))
    models = {"padded": LanguageModel(deepcopy(inner), is_flat=False), "flat": make_flat(inner, "sdpa")}
    assert models["flat"].is_flat, f"{family} has padded batches"
    outcome = Outcome(
        family,
        tokens=sum(batch.num_tokens for batch in batches),
        padded_places=sum(len(batch.lengths) * max(batch.lengths) for batch in batches),
        row_places=sum(row_places(batch) for batch in batches),
    )
    for turn in range(rounds + 1):  # the first one warms up
        losses = {}
        for arm in list(models)[:: 1 if turn % 2 else -1]:
            start = time.process_time()
            losses[arm] = [step(models[arm], batch) for batch in batches]
            if turn:
                outcome.seconds[arm].append(time.process_time() - start)
        pairs = zip(losses["flat"], losses["padded"], strict=True)
        outcome.difference = max(outcome.difference, *(abs(a - b) / abs(b) for a, b in pairs))
    return outcome


def step(model: LanguageModel, batch: Batch) -> float:
    """Computes the gradients of a batch, and returns its loss."""
    model.zero_grad(set_to_none=True)
    loss = next_token_loss(model, batch) / batch.num_targets
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return loss.item()


def row_places(batch: Batch) -> int:
    """Returns the places of the rows that mixers see in a flat batch."""
    offsets = without_ends(batch).offsets
    parts = [(slice(*ends), None) for ends in pairwise(offsets)]
    return Rows(parts, torch.device("cpu")).num_places


def row(outcome: Outcome) -> str:
    """Returns the row of a family in the table."""
    flat, padded = (outcome.tokens_per_s(arm) for arm in ("flat", "padded"))
    return f"| {outcome.family} | {flat:,.0f} | {padded:,.0f} | {flat / padded:.2f} | {outcome.difference:.0e} |"


def report(options: argparse.Namespace, batches: list[Batch], outcomes: list[Outcome]) -> str:
    """Returns the report: the setting and the table."""
    lengths = [length for batch in batches for length in batch.lengths]
    first = outcomes[0]
    return "\n".join(
        [
            "# Hybrid models on a CPU: flat batches beside padded ones",
            "",
            f"{datetime.now(UTC).isoformat(timespec='minutes')}, commit {commit()}; {cpu_model()}, {options.threads} "
            f"threads, fp32. 4 layers of 256, random weights; {len(batches)} batches of {options.rows} documents of "
            f"{min(lengths)} to {max(lengths)} tokens, median {statistics.median(lengths):.0f}; forward, loss and "
            f"backward; CPU time, median of {options.rounds} rounds. Padding to the longest document adds "
            f"{first.padded_places / first.tokens - 1:.0%} to the tokens of all layers, and in flat batches "
            f"{max(first.row_places / first.tokens - 1, 0):.0%} to those of the mixers alone.",
            "",
            "| family | flat, tokens/CPU s | padded, tokens/CPU s | x | difference of the loss |",
            "|---|---:|---:|---:|---:|",
            *map(row, outcomes),
        ]
    )


if __name__ == "__main__":
    main()
