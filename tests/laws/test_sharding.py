# SPDX-License-Identifier: Apache-2.0
"""Models that are divided over ranks train to the losses and weights of one rank, and their checkpoints fit any number.

The plain run has the cases of `PLAIN`; the campaign has every kind of run with every strategy on 2 and 4 ranks.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from oumi.core.configs import TrainingConfig
from oumi.core.train import train
from tests.end_to_end.test_images import config_of as vision_config
from tests.laws.test_families import build
from tests.laws.test_preference import config_of as preference_config
from tests.ranks import free_port, run_ranks
from tests.runs import records, tiny_config
from tests.tiny import save_tiny_model

DRIVER = Path(__file__).with_name("sharding_driver.py")
LORA = {"training.use_peft": True}
QUANTIZED = {"peft.q_lora": True, "peft.bnb_4bit_quant_type": "nf4", "peft.lora_target_modules": ["all-linear"]}
KINDS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": LORA,
    "head": {**LORA, "peft.lora_modules_to_save": ["lm_head"]},
    "part": {**LORA, "model.freeze_layers": ["model.layers.0"]},
    "mixed": {**LORA, "model.torch_dtype_str": "bfloat16", "peft.lora_modules_to_save": ["input_layernorm"]},
    "merged": {**LORA, "peft.peft_save_mode": "MERGED"},
    "both": {**LORA, "peft.peft_save_mode": "ADAPTER_AND_BASE_MODEL", "model.load_pretrained_weights": False},
    "packed": {"data.train.pack": True, "model.model_max_length": 256},
    "streamed": {"data.train.stream": True},
    "recomputed": {"training.enable_gradient_checkpointing": True},
    "random": {"model.load_pretrained_weights": False},
    "double": {"model.torch_dtype_str": "float64"},
    "sgd": {"training.optimizer": "sgd"},
    "untied": {},
    "pairs": {},
    "hybrid": {},
    "judged": {},
    "odds": {},
    "llava": {},
    "qwen2_vl": {},
    "gemma3": {},
    "frozen": {"model.freeze_layers": ["model.vision_tower"]},
    "nf4": {**LORA, **QUANTIZED},
    "nested": {**LORA, **QUANTIZED, "peft.use_bnb_nested_quant": True, "peft.peft_save_mode": "MERGED"},
    "int8": {
        **LORA,
        **QUANTIZED,
        "peft.q_lora_bits": 8,
        "model.load_pretrained_weights": False,
        "peft.peft_save_mode": "ADAPTER_AND_BASE_MODEL",
    },
}
"""Kinds of runs, by the keys in which they differ from full fine-tuning of a tied model on chats."""
VISION = {"llava": "llava", "qwen2_vl": "qwen2_vl", "gemma3": "gemma3", "frozen": "llava"}
"""The models of kinds of runs with images; some rows have none, so a rank may have none at a time."""
STRATEGIES: dict[str, dict[str, Any]] = {
    "FULL_SHARD": {},
    "SHARD_GRAD_OP": {"fsdp.sharding_strategy": "SHARD_GRAD_OP"},
    "HYBRID_SHARD": {"fsdp.sharding_strategy": "HYBRID_SHARD"},
    "HYBRID_SHARD_ZERO2": {"fsdp.sharding_strategy": "HYBRID_SHARD_ZERO2"},
    "NO_SHARD": {"fsdp.sharding_strategy": "NO_SHARD"},
    "SLICES": {"fsdp.state_dict_type": "SHARDED_STATE_DICT"},
    "SIZE": {"fsdp.auto_wrap_policy": "SIZE_BASED_WRAP", "fsdp.min_num_params": 100_000_000},
    "AHEAD": {
        "fsdp.forward_prefetch": True,
        "fsdp.backward_prefetch": "NO_PREFETCH",
        "fsdp.transformer_layer_cls": "transformers.models.llama.modeling_llama.LlamaDecoderLayer",
    },
}
QUANTIZED_KINDS = ["nf4", "nested", "int8"]
PREFERENCES = {"pairs": "dpo", "judged": "kto", "odds": "orpo"}
"""Methods of kinds with preferences, by the name of the kind."""
PLAIN = ["full-FULL_SHARD-2", "lora-SHARD_GRAD_OP-2", "untied-SLICES-2"]
ALL = [
    *PLAIN,
    *(f"{kind}-FULL_SHARD-2" for kind in KINDS if kind not in ("full", "mixed", *QUANTIZED_KINDS)),
    *(f"full-{strategy}-2" for strategy in STRATEGIES if strategy != "FULL_SHARD"),
    *(f"{kind}-{strategy}-4" for kind in ("full", "lora", "packed", "streamed", "untied", "pairs")
      for strategy in ("NO_SHARD", "FULL_SHARD", "SHARD_GRAD_OP", "HYBRID_SHARD")),
    "head-HYBRID_SHARD-4", "full-HYBRID_SHARD_ZERO2-4", "full-SLICES-4", "lora-SLICES-2",
]  # fmt: skip
STEPS = 20


def config_of(folder: Path, kind: str, ranks: int, keys: dict[str, Any], **training: Any) -> TrainingConfig:
    """Returns a run on 27 chats or 23 pairs, four at a time: the last step of an epoch has three, for one rank none."""
    if kind not in VISION:
        save_tiny_model(folder / "model", tie_word_embeddings=kind != "untied")
    if kind == "hybrid":
        build("lfm2").save_pretrained(folder / "model")
    training = {
        "per_device_train_batch_size": 1, "gradient_accumulation_steps": 4 // ranks, "max_steps": STEPS,
        "save_steps": 12, **training,
    }  # fmt: skip
    if kind in PREFERENCES:
        config = preference_config(PREFERENCES[kind], folder, **training)
        config.data.train.datasets[0].sample_count = 23
    elif kind in VISION:
        config = vision_config(folder, VISION[kind], **training)
    else:
        config = tiny_config(folder, num_rows=27, **training)
    values = config.model_dump(mode="json")
    for key, value in {**KINDS[kind], **keys}.items():
        *path, name = key.split(".")
        section = values
        for part in path:
            section = section[part]
        section[name] = value
    return TrainingConfig.model_validate(values)


class Runs:
    """Runs in a folder, each of which is carried out once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def on_one_rank(self, kind: str) -> Path:
        """Returns the output directory of a kind of run on one rank."""
        output = self._kind(kind) / "one"
        if not output.exists():
            train(config_of(output.parent, kind, 1, {}, output_dir=str(output)))
        return output

    def on_ranks(self, *names: str, resumes: Path | None = None) -> list[Path]:
        """Returns the output directories of runs `kind-strategy-ranks`, which are carried out by the same processes.

        With `resumes` they go on from the checkpoint of that directory, without what came after it.
        """
        outputs, arguments = [], []
        for name in names:
            kind, strategy, ranks = name.split("-")
            folder = self._kind(kind)
            output = folder / (name if resumes is None else f"{name}-after-{resumes.name}")
            outputs.append(output)
            if output.exists():
                continue
            keys = {"fsdp.enable_fsdp": True, **STRATEGIES[strategy]}
            config = config_of(folder, kind, int(ranks), keys, output_dir=str(output))
            if resumes is not None:
                copy_until_checkpoint(resumes, output)
                config.training.try_resume_from_last_checkpoint = True
            config.to_yaml(folder / f"{output.name}.yaml")
            arguments.append(f"{free_port()}:{folder / output.name}.yaml")
        if arguments:
            ends = run_ranks(int(ranks), str(DRIVER), *arguments, folder=DRIVER.parents[2], ranks_per_node=2)
            assert {code for code, _ in ends} == {0}, "".join(text for _, text in ends)
        return outputs

    def _kind(self, kind: str) -> Path:
        folder = self._folder / kind
        folder.mkdir(exist_ok=True)
        return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    folder = tmp_path_factory.mktemp("sharding")
    runs = Runs(folder)
    runs.on_ranks(*PLAIN)
    yield runs
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", [*PLAIN, *(pytest.param(name, marks=pytest.mark.slow) for name in ALL[len(PLAIN) :])])
def test_ranks_equal_one(runs: Runs, name: str) -> None:
    (output,) = runs.on_ranks(name)
    assert_equal(output, runs.on_one_rank(name.partition("-")[0]))


@pytest.mark.narrow
@pytest.mark.parametrize("name", ["nf4-NO_SHARD-2", "nf4-FULL_SHARD-2", "nested-SHARD_GRAD_OP-2", "int8-NO_SHARD-2"])
def test_ranks_equal_one_on_quantized_weights(runs: Runs, name: str) -> None:
    test_ranks_equal_one(runs, name)


@pytest.mark.narrow
def test_a_checkpoint_on_quantized_weights_goes_on_in_one(runs: Runs) -> None:
    test_a_checkpoint_goes_on_under_other_ranks_and_strategies(runs, "nf4-FULL_SHARD-2", "nf4-NO_SHARD-1")


@pytest.mark.slow
def test_a_block_may_have_trained_weights_of_two_dtypes(runs: Runs) -> None:
    (output,) = runs.on_ranks("mixed-FULL_SHARD-2")
    losses, expected = (
        [s["loss"] for s in records(path) if "loss" in s] for path in (output, runs.on_one_rank("mixed"))
    )
    assert losses == pytest.approx(expected, rel=1e-3)  # as exact as bfloat16 is


PASSES = [
    ("full-FULL_SHARD-2", "full-NO_SHARD-1"), ("untied-SLICES-2", "untied-NO_SHARD-1"),
    ("lora-SHARD_GRAD_OP-2", "lora-FULL_SHARD-4"), ("full-FULL_SHARD-2", "full-FULL_SHARD-4"),
    ("full-FULL_SHARD-2", "full-NO_SHARD-2"), ("full-NO_SHARD-2", "full-FULL_SHARD-2"),
    ("full-HYBRID_SHARD-4", "full-FULL_SHARD-2"), ("untied-SLICES-2", "untied-HYBRID_SHARD-4"),
    ("head-FULL_SHARD-2", "head-NO_SHARD-1"), ("packed-FULL_SHARD-2", "packed-FULL_SHARD-4"),
    ("streamed-FULL_SHARD-2", "streamed-FULL_SHARD-4"), ("both-FULL_SHARD-2", "both-NO_SHARD-1"),
    ("part-FULL_SHARD-2", "part-FULL_SHARD-2"), ("lora-SLICES-2", "lora-NO_SHARD-1"),
    ("merged-FULL_SHARD-2", "merged-NO_SHARD-1"), ("random-FULL_SHARD-2", "random-SLICES-2"),
    ("pairs-FULL_SHARD-2", "pairs-NO_SHARD-1"),
]  # fmt: skip
"""A run, and another one that goes on from its checkpoint."""


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(*passed, id=" to ".join(passed), marks=[pytest.mark.slow] if i > 1 else [])
        for i, passed in enumerate(PASSES)
    ],
)
def test_a_checkpoint_goes_on_under_other_ranks_and_strategies(runs: Runs, first: str, second: str) -> None:
    kind = first.partition("-")[0]
    (before,) = runs.on_ranks(first)
    if second.endswith("-1"):
        after = before.with_name(f"{before.name}-then-one")
        copy_until_checkpoint(before, after)
        train(config_of(before.parent, kind, 1, {}, output_dir=str(after), try_resume_from_last_checkpoint=True))
    else:
        (after,) = runs.on_ranks(second, resumes=before)
    assert [step["step"] for step in records(after)][-1] == STEPS
    assert_equal(after, runs.on_one_rank(kind))


@pytest.mark.slow
def test_a_run_goes_from_one_rank_to_two_and_back(runs: Runs) -> None:
    config = partial(config_of, runs.on_one_rank("full").parent, "full", 1, {}, try_resume_from_last_checkpoint=True)
    there = runs.on_one_rank("full").with_name("one-then")
    train(config(output_dir=str(there), save_steps=5))
    for checkpoint in ("checkpoint-10", "checkpoint-15", "checkpoint-20"):
        shutil.rmtree(there / checkpoint)
    (two,) = runs.on_ranks("full-FULL_SHARD-2", resumes=there)  # from step 5, with a checkpoint at step 12
    back = two.with_name("back")
    copy_until_checkpoint(two, back)
    train(config(output_dir=str(back)))
    assert_equal(back, runs.on_one_rank("full"))


@pytest.mark.sample(1)
@pytest.mark.parametrize("strategy", ["FULL_SHARD-2", "SHARD_GRAD_OP-2", "HYBRID_SHARD-4"])
@pytest.mark.parametrize("place", ["backward", "forward"])
def test_ranks_cut_their_micro_batches_alike_where_one_is_out_of_memory(
    tmp_path: Path, place: str, strategy: str
) -> None:
    assert_cut_alike(tmp_path, "full", place, strategy)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["FULL_SHARD-2", "SHARD_GRAD_OP-2"])
@pytest.mark.parametrize(
    ("kind", "place"), [("pairs", "backward"), ("judged", "backward"), ("judged", "forward"), ("odds", "forward")]
)
def test_ranks_cut_alike_though_passes_also_gather_the_reference_or_take_no_gradients(
    tmp_path: Path, kind: str, place: str, strategy: str
) -> None:
    assert_cut_alike(tmp_path, kind, place, strategy)


def assert_cut_alike(tmp_path: Path, kind: str, place: str, strategy: str) -> None:
    """Asserts that ranks, of which one has little memory, train to the losses and weights of one rank."""
    name, _, ranks = strategy.partition("-")
    keys = {"fsdp.enable_fsdp": True, **STRATEGIES[name]}
    rows = {"per_device_train_batch_size": 8 // int(ranks), "gradient_accumulation_steps": 1, "max_steps": 3}
    config = config_of(tmp_path, kind, int(ranks), keys, output_dir=str(tmp_path / "two"), save_steps=0, **rows)
    config.to_yaml(tmp_path / f"short_{place}.yaml")
    command = [str(DRIVER), f"{free_port()}:{tmp_path / f'short_{place}.yaml'}"]
    ends = run_ranks(int(ranks), *command, folder=DRIVER.parents[2], ranks_per_node=2)
    assert {code for code, _ in ends} == {0}, "".join(text for _, text in ends)
    rows["per_device_train_batch_size"] = 8
    train(config_of(tmp_path, kind, 1, {}, output_dir=str(tmp_path / "one"), save_steps=0, **rows))
    assert_equal(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full-FULL_SHARD", "head-SHARD_GRAD_OP", "untied-SLICES", "recomputed-FULL_SHARD"])
def test_ranks_go_back_to_a_checkpoint_in_place(tmp_path: Path, kind: str) -> None:
    kind, _, strategy = kind.partition("-")
    keys = {"fsdp.enable_fsdp": True, **STRATEGIES[strategy]}
    steps = {"max_steps": 8, "save_steps": 3}
    config_of(tmp_path, kind, 2, keys, output_dir=str(tmp_path / "two"), **steps).to_yaml(tmp_path / "back.yaml")
    ends = run_ranks(2, str(DRIVER), f"{free_port()}:{tmp_path / 'back.yaml'}", folder=DRIVER.parents[2])
    assert {code for code, _ in ends} == {0}, "".join(text for _, text in ends)
    train(config_of(tmp_path, kind, 1, {}, output_dir=str(tmp_path / "one"), **steps))
    assert [step["step"] for step in records(tmp_path / "two")] == [*range(1, 8), *range(4, 9)]
    assert_equal(tmp_path / "two", tmp_path / "one")


def copy_until_checkpoint(before: Path, after: Path) -> None:
    """Copies a run as it was when its first checkpoint was saved, without its final model."""
    shutil.copytree(before, after)
    last = max(after.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    if len(list(after.glob("checkpoint-*"))) > 1:
        shutil.rmtree(last)
    for path in [*after.glob("*.safetensors"), *after.glob("*/*.safetensors")]:
        if not path.parent.name.startswith("checkpoint-"):
            path.unlink()


def assert_equal(output: Path, expected: Path) -> None:
    """Asserts that two runs have the same losses at each step, and the same weights in the same files."""
    steps, expected_steps = ([step for step in records(path) if "loss" in step] for path in (output, expected))
    losses = {step["step"]: step["loss"] for step in steps}
    assert losses == pytest.approx({step["step"]: step["loss"] for step in expected_steps}, rel=1e-6)
    norms = {step["step"]: step["grad_norm"] for step in steps}
    assert norms == pytest.approx({step["step"]: step["grad_norm"] for step in expected_steps}, rel=1e-5, abs=1e-5)
    weights, expected_weights = weights_of(output), weights_of(expected)
    assert weights.keys() == expected_weights.keys()
    for name, weight in expected_weights.items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-5, atol=1e-5, msg=name)


def weights_of(output: Path) -> dict[str, torch.Tensor]:
    """Returns the weights of all files of a final model: the model, its adapter, and the base of that."""
    files = [path for path in output.rglob("*.safetensors") if "checkpoint-" not in str(path.relative_to(output))]
    return {f"{path.relative_to(output)}: {name}": weight for path in files for name, weight in load_file(path).items()}
