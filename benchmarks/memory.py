# SPDX-License-Identifier: Apache-2.0
"""Accuracy of the predicted peak memory of a run: predicted and measured, each run a process of its own."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.hybrid_cpu import FAMILIES, SIZES
from benchmarks.sft.workload import SHAPES, make_rows, make_workload, pairs_of, vocabulary_words, write_rows

STEPS = 2
"""The second one has the state of the optimizer, and the same largest micro-batch as any other."""
LOOSE = "glibc.malloc.tcache_count=7"
"""The default of glibc; a process with any setting is left alone, see `oumi.core.system.host.tighten_heap`."""
_NUM_OTHERS = 9
"""Tokens of the tokenizer that are no words."""


@dataclass(frozen=True)
class Case:
    """A run whose memory is predicted and measured."""

    model: str
    rows: int
    length: int
    training: Mapping[str, Any] = field(default_factory=dict)
    pack: bool = False
    """Documents of `text` in packed rows, instead of chats."""
    without: str = ""
    """Optimizations that are disabled."""
    peft: Mapping[str, Any] = field(default_factory=dict)
    fsdp: Mapping[str, Any] | None = None
    """Arguments of `fsdp` for two ranks; None for a single process."""

    @property
    def dataset(self) -> str:
        """Returns the name of the data set of its rows: documents, judged answers, pairs or chats."""
        if self.pack:
            return "text"
        return "kto_jsonl" if self.method == "kto" else "preference_pairs_jsonl" if self.is_pair else "text_sft"

    @property
    def method(self) -> str:
        """Returns the method, which the config or its trainer names."""
        trainer: str = self.training.get("trainer_type", "OUMI")
        return self.training.get("method") or trainer.removeprefix("TRL_").lower()

    @property
    def is_pair(self) -> bool:
        """Returns True if a row is a pair."""
        return self.method in ("dpo", "orpo", "cpo", "simpo")

    @property
    def has_files(self) -> bool:
        """Returns True if the weights are read from files.

        Random ones are whole before they are quantized, and of a hybrid model only files tell how many there are.
        """
        return bool(self.peft.get("q_lora")) or self.model in HYBRID

    @property
    def name(self) -> str:
        """Returns the case in a few words."""
        changes = [f"{key}: {value}" for key, value in (*self.training.items(), *self.peft.items())]
        parts = [self.model, f"{self.rows} x {self.length}", "pack" if self.pack else "chat", *changes]
        fsdp = [] if self.fsdp is None else ["two ranks", *(f"{key}: {value}" for key, value in self.fsdp.items())]
        return ", ".join([*parts, *fsdp, *([f"without {self.without}"] if self.without else [])])


MODELS: dict[str, dict[str, Any]] = {
    name: {
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "intermediate_size": shape.intermediate,
        "vocab_size": shape.vocabulary,
        "tie_word_embeddings": True,
    }
    for name, shape in SHAPES.items()
}
MODELS["untied"] = {**MODELS["14m"], "tie_word_embeddings": False}
MODELS["qwen3"] = {
    **MODELS["14m"],
    "model_type": "qwen3",
    "hidden_size": 320,
    "head_dim": 64,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 960,
    "vocab_size": 40_000,
}
MODELS["gemma2"] = {
    **MODELS["14m"],
    "model_type": "gemma2",
    "head_dim": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 1024,
    "sliding_window": 256,
    "hidden_activation": "gelu_pytorch_tanh",
}
MODELS["mistral"] = {**MODELS["31m"], "model_type": "mistral", "sliding_window": 256}
MODELS["wide"] = {**MODELS["untied"], "hidden_size": 640, "intermediate_size": 1720, "vocab_size": 64_000}
MODELS["250k"] = {**MODELS["14m"], "vocab_size": 250_000, "max_position_embeddings": 4096}
HYBRID = ("lfm2", "qwen3_5_text")
MODELS |= {name: {**SIZES, "vocab_size": 32_000, **FAMILIES[name], "model_type": name} for name in HYBRID}
_LORA = {"use_peft": True}
_WIDE = {"lora_r": 64, "lora_target_modules": ["all-linear"]}
_ATTENTION = {"lora_r": 8, "lora_target_modules": ["q_proj", "v_proj"]}
_DPO = {"method": "dpo"}
_KTO, _ORPO, _SIMPO = ({"method": name} for name in ("kto", "orpo", "simpo"))
_KEPT = {**_DPO, "trainer_kwargs": {"precompute_ref_log_probs": True}}
_QLORA = {"q_lora": True, "bnb_4bit_quant_type": "nf4", "lora_target_modules": ["all-linear"]}
_DORA = {"lora_use_dora": True}
_DROPOUT = {"lora_dropout": 0.1}
_RECOMPUTED = {"enable_gradient_checkpointing": True}
CASES = (
    Case("14m", 1, 1024),
    Case("14m", 8, 128),
    Case("14m", 8, 512),
    Case("14m", 16, 512, {"gradient_accumulation_steps": 2}),
    Case("14m", 8, 512, {**_RECOMPUTED, "optimizer": "sgd"}, pack=True),
    Case("31m", 8, 512),
    Case("31m", 8, 1024, _RECOMPUTED),
    Case("31m", 8, 1024, {**_RECOMPUTED, "gradient_checkpointing_kwargs": {"recompute_num_layers": 4}}),
    Case("31m", 8, 512, _LORA),
    Case("14m", 8, 512, _LORA, peft=_WIDE),
    Case("untied", 4, 512, _LORA, peft=_ATTENTION),
    Case("31m", 4, 256, _DPO),
    Case("14m", 8, 512, _DPO),
    Case("31m", 4, 256, _KEPT),
    Case("31m", 4, 256, {**_DPO, **_LORA}),
    Case("31m", 2, 300, {**_DPO, **_LORA, "gradient_accumulation_steps": 2}, peft=_ATTENTION),
    Case("qwen3", 4, 256, _DPO),
    Case("qwen3", 4, 256, {**_DPO, **_RECOMPUTED}),
    Case("31m", 4, 256, {**_DPO, **_RECOMPUTED}),
    Case("14m", 16, 256, _KTO),
    Case("31m", 8, 256, {**_KTO, **_LORA}),
    Case("31m", 4, 256, _ORPO),
    Case("14m", 8, 256, _SIMPO),
    Case("31m", 8, 512, {**_LORA, **_RECOMPUTED}, peft=_WIDE),
    Case("14m", 8, 512, _LORA, peft={**_WIDE, **_DORA}),
    Case("31m", 8, 256, _LORA, peft={**_ATTENTION, **_DORA}),
    Case("31m", 4, 256, {**_DPO, **_LORA}, peft={**_WIDE, **_DORA}),
    Case("14m", 8, 512, _LORA, peft={**_WIDE, **_DROPOUT}),
    Case("31m", 4, 512, _LORA, peft={**_QLORA, **_DROPOUT}),
    Case("14m", 4, 512, _LORA, peft={**_QLORA, **_DORA, **_DROPOUT}),
    Case("31m", 4, 256, {**_DPO, **_LORA}, peft=_QLORA),
    Case("250k", 1, 4096),
    Case("250k", 1, 4096, _LORA, peft=_ATTENTION),
    Case("250k", 2, 256, {**_DPO, **_LORA}),
    Case("lfm2", 8, 256),
    Case("qwen3_5_text", 8, 256),
    Case("14m", 4, 256, {"trainer_type": "TRL_DPO"}),
    Case("14m", 8, 256, {"trainer_type": "TRL_KTO"}),
    Case("14m", 8, 256, {"trainer_type": "TRL_SFT"}),
    Case("31m", 8, 512, _LORA, peft=_QLORA),
    Case("135m", 2, 256, _LORA, peft={**_QLORA, "lora_r": 16}),
    Case("31m", 4, 512, {**_LORA, **_RECOMPUTED}, peft={**_QLORA, "q_lora_bits": 8}),
    Case("31m", 1, 512, {"optimizer": "sgd"}, pack=True),
    Case("qwen3", 8, 512),
    Case("gemma2", 8, 512),
    Case("gemma2", 2, 2048),
    Case("gemma2", 4, 512, pack=True),
    Case("mistral", 2, 2048),
    Case("untied", 16, 128),
)
_FULL, _GRADIENTS = {"sharding_strategy": "FULL_SHARD"}, {"sharding_strategy": "SHARD_GRAD_OP"}
_ACCUMULATED = {"gradient_accumulation_steps": 2}
RANKS_CASES = (
    Case("135m", 2, 256, fsdp={}),
    Case("135m", 2, 256, fsdp=_FULL),
    Case("135m", 2, 256, _ACCUMULATED, fsdp=_FULL),
    Case("135m", 4, 512, _RECOMPUTED, fsdp=_FULL),
    Case("135m", 2, 256, {"optimizer": "sgd"}, fsdp=_FULL),
    Case("135m", 2, 256, fsdp=_GRADIENTS),
    Case("135m", 2, 256, _LORA, fsdp=_FULL),
    Case("31m", 4, 512, _LORA, peft=_WIDE, fsdp=_FULL),
    Case("31m", 4, 256, _LORA, peft={**_WIDE, **_DORA}, fsdp=_FULL),
    Case("31m", 4, 512, fsdp=_FULL),
    Case("31m", 4, 512, fsdp={}),
    Case("wide", 2, 256, fsdp=_FULL),
    Case("wide", 2, 256, fsdp={}),
)
PHASES = ("load", "train", "save")


def main(words: Sequence[str] | None = None) -> None:
    """Runs the cases, and prints predicted and measured peak of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="the cases that contain this")
    parser.add_argument("--loose", action="store_true", help="let glibc cache small blocks, as in a process of Python")
    parser.add_argument("--ranks", action="store_true", help="the runs of two ranks, by phase")
    parser.add_argument("--folder", type=Path, default=Path("~/.cache/oumi/benchmarks/memory"), help="for files")
    arguments = parser.parse_args(words)
    if arguments.loose:
        os.environ["GLIBC_TUNABLES"] = LOOSE
    folder = arguments.folder.expanduser().absolute()
    if arguments.ranks:
        _print_ranks([case for case in RANKS_CASES if arguments.only in case.name], folder)
        return
    print("| run | predicted MB | measured MB | error |\n|---|---:|---:|---:|")
    for case in CASES:
        if arguments.only not in case.name:
            continue
        if case.peft.get("q_lora") and find_spec("bitsandbytes") is None:
            print(f"{case.name}: left out, since bitsandbytes is not installed", file=sys.stderr)
            continue
        memory, measured = run_case(case, folder)
        predicted, limit = memory.get("total", 0), "at least " if memory.get("uncounted") else ""
        error = "" if limit else f"{predicted / measured - 1:+.1%}"
        print(f"| {case.name} | {limit}{predicted / 1e6:,.0f} | {measured / 1e6:,.0f} | {error} |", flush=True)


def _print_ranks(cases: Sequence[Case], folder: Path) -> None:
    """Prints the predicted peak of the ranks, and the measured peaks while they load, train and save.

    The error is that of the last rank. The first one also maps the file of whole weights while it saves, which the
    kernel frees when memory is short.
    """
    print("| run | rank | predicted MB | load | train | save | error |\n|---|---:|---:|---:|---:|---:|---:|")
    for case in cases:
        for rank, peaks in enumerate(run_ranks(case, folder)):
            phases = " | ".join(f"{peaks[phase] / 1e6:,.0f}" for phase in PHASES)
            error = f"{peaks['predicted'] / max(peaks[phase] for phase in PHASES) - 1:+.1%}" if rank else ""
            print(f"| {case.name} | {rank} | {peaks['predicted'] / 1e6:,.0f} | {phases} | {error} |", flush=True)


def run_ranks(case: Case, folder: Path, num_ranks: int = 2) -> list[dict[str, Any]]:
    """Returns the predicted peak of each rank of a run, and its peaks by phase, in bytes."""
    output = folder / "out"
    shutil.rmtree(output, ignore_errors=True)
    config = folder / "config.json"
    write_model(case.model, folder)
    config.write_text(json.dumps(make_config(case, folder, output)))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    ranks = []
    for rank in range(num_ranks):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_ranks, "LOCAL_WORLD_SIZE": num_ranks}
        environment = {**os.environ, **address, **{name: str(value) for name, value in place.items()}}
        command = [sys.executable, "-m", "benchmarks.ranks", str(config)]
        ranks.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    outputs = [rank.communicate() for rank in ranks]
    for rank, (_, errors) in zip(ranks, outputs, strict=True):
        if rank.returncode:
            raise SystemExit(f"{case.name}: {errors[-2000:]}")
    return [json.loads(text.splitlines()[-1]) for text, _ in outputs]


def run_case(case: Case, folder: Path) -> tuple[dict[str, Any], int]:
    """Returns the memory of the plan of a run, and the measured peak in bytes."""
    output = folder / "out"
    # A run that finds a checkpoint or tokens of another case would take less memory.
    shutil.rmtree(output, ignore_errors=True)
    config = folder / "config.json"
    target = write_model(case.model, folder)
    if case.has_files and not (target / "model.safetensors").exists():
        from transformers import AutoConfig, AutoModelForCausalLM

        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(target)).save_pretrained(target)
    config.write_text(json.dumps(make_config(case, folder, output)))
    command = [sys.executable, "-m", "oumi", "train", "-c", str(config)]
    environment = {**os.environ, "OUMI_WITHOUT": case.without}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{case.name}: {done.stderr[-2000:]}")
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    plan = json.loads((output / "plan.json").read_text())
    return plan["memory"] or plan["least_memory"] or {}, max(line["peak_memory_bytes"] for line in lines)


def make_config(case: Case, folder: Path, output: Path) -> dict[str, Any]:
    """Returns the config of a case, after writing its rows."""
    return {
        "model": {
            "model_name": str(folder / case.model),
            "load_pretrained_weights": case.has_files,
            "model_max_length": case.length,
        },
        "data": {
            "train": {
                "pack": case.pack,
                "datasets": [{"dataset_name": case.dataset, "dataset_path": str(_rows(case, folder))}],
            }
        },
        "peft": {"peft_save_mode": "MERGED", **case.peft},
        "fsdp": {"enable_fsdp": bool(case.fsdp), **(case.fsdp or {})},
        "training": {
            "trainer_type": "OUMI",
            "output_dir": str(output),
            "per_device_train_batch_size": case.rows,
            "max_steps": STEPS,
            "save_steps": 0,
            "save_final_model": case.fsdp is not None,
            "enable_tensorboard": False,
            "logging_steps": 1,
            **case.training,
        },
    }


def write_model(name: str, folder: Path) -> Path:
    """Returns the folder of a model's config and tokenizer, written unless they exist."""
    target, words = folder / name, folder / "words"
    if not (target / "config.json").exists():
        workload = make_workload(words, SHAPES["14m"], 1)
        target.mkdir(parents=True, exist_ok=True)
        # Only its tokenizer: the weights are drawn by each run.
        for path in workload.model.iterdir():
            if "token" in path.name or path.suffix == ".jinja":
                shutil.copy(path, target)
        config = {"max_position_embeddings": 2048, "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 3}
        (target / "config.json").write_text(json.dumps({**config, **MODELS[name]}))
    return target


def _rows(case: Case, folder: Path) -> Path:
    """Writes rows of the case's length, enough for all its steps."""
    count = case.rows * STEPS * case.training.get("gradient_accumulation_steps", 1)
    words = vocabulary_words(SHAPES["14m"].vocabulary - _NUM_OTHERS)
    rows: list[Any] = make_rows([case.length] * count * (1 + case.is_pair), words)
    if case.is_pair:
        rows = pairs_of(rows[:count], rows[count:])
    if case.method == "kto":
        turns = [[turn["content"] for turn in row["messages"]] for row in rows]
        rows = [{"prompt": turns[i][0], "completion": turns[i][1], "label": i % 2 == 0} for i in range(count)]
    if case.pack:
        rows = [{"text": " ".join(turn["content"] for turn in row["messages"])} for row in rows]
    return write_rows(folder / "rows.jsonl", rows)


if __name__ == "__main__":
    main()
