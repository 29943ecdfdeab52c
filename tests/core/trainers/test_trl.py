# SPDX-License-Identifier: Apache-2.0
"""The adapter to TRL and transformers: its table fits what is installed, its checkpoints are whole and of this run."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from transformers import MixtralConfig, MixtralForCausalLM

from oumi.core.batch import collate
from oumi.core.configs import TrainingConfig
from oumi.core.configs.loading import keys_of
from oumi.core.errors import ConfigError, DataError
from oumi.core.inspect import gather_facts
from oumi.core.models.acceleration.apply import accelerate
from oumi.core.plan.parts import Plan
from oumi.core.plan.plan import make_plan
from oumi.core.plan.refusals import check
from oumi.core.plan.trainer_kwargs import OWN_KEYS, REFUSED
from oumi.core.train import train
from oumi.core.trainers.trl import TrlTrainer
from oumi.core.trainers.trl_methods import METHODS, NEWER_NAMES, arguments
from oumi.core.trainers.trl_rows import RowCollator
from tests.runs import build, losses, tiny_config
from tests.tiny import byte_tokenizer, tiny_llama

OTHERS = ["TRL_SFT", "HF"]
SAVING = {"save_steps": 3, "try_resume_from_last_checkpoint": True, "max_steps": 9}

ROUTED = {
    "vocab_size": 260, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_local_experts": 4, "router_aux_loss_coef": 0.5, "bos_token_id": 0, "eos_token_id": 2,
}  # fmt: skip


@contextmanager
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Passes the log of oumi, which does not propagate, to `caplog`."""
    logger = logging.getLogger("oumi")
    logger.addHandler(caplog.handler)
    yield
    logger.removeHandler(caplog.handler)


def plan_of(config: TrainingConfig) -> Plan:
    return make_plan(config, gather_facts(config))


def loaded(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


@pytest.mark.parametrize("trainer", OTHERS)
def test_every_argument_is_one_of_the_installed_version(tmp_path: Path, trainer: str) -> None:
    passed = arguments(plan_of(tiny_config(tmp_path, trainer_type=trainer)))
    fields = {field.name for field in dataclasses.fields(loaded(METHODS[trainer].config))}
    assert {NEWER_NAMES.get(name, name) if NEWER_NAMES.get(name) in fields else name for name in passed} <= fields
    assert callable(loaded(METHODS[trainer].trainer))


@pytest.mark.parametrize(
    ("training", "name", "value"),
    [
        ({"optimizer": "sgd"}, "optim", "sgd"),
        ({"warmup_ratio": 0.25}, "warmup_steps", 3),
        ({"warmup_ratio": 0.25, "warmup_steps": 3}, "warmup_steps", 3),
        ({"max_grad_norm": None}, "max_grad_norm", 0.0),
        ({"save_steps": 7}, "save_strategy", "steps"),
        ({"save_steps": 0, "save_epoch": True}, "save_strategy", "epoch"),
        ({"save_steps": 0, "save_epoch": False}, "save_strategy", "no"),
        ({"dep_log_level": "error"}, "log_level", "error"),
        ({"use_deterministic": True}, "use_cpu", True),
        ({"trainer_kwargs": {"neftune_noise_alpha": 5.0}}, "neftune_noise_alpha", 5.0),
        ({"trainer_kwargs": {"optim": "paged_adamw"}}, "optim", "paged_adamw_32bit"),
        ({"trainer_kwargs": {"max_length": 64}}, "max_length", None),
        ({"optimizer": "adamw"}, "optim", "adamw_torch"),
        ({}, "bf16", False),
        ({}, "remove_unused_columns", False),
        ({}, "report_to", "none"),
    ],
)
def test_a_key_becomes_the_argument_that_means_the_same(
    tmp_path: Path, training: dict[str, Any], name: str, value: object
) -> None:
    assert arguments(plan_of(tiny_config(tmp_path, trainer_type="TRL_SFT", **training)))[name] == value


def test_automatic_workers_need_no_cpu_affinity_which_macos_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(tiny_config(tmp_path, trainer_type="TRL_SFT", dataloader_num_workers="auto"))
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    assert arguments(plan)["dataloader_num_workers"] == 2


# Arguments that are passed on, since they act on what the trainers still do by themselves.
PASSED = {
    "optim_args", "optim_target_modules", "label_smoothing_factor", "tf32", "use_cache", "neftune_noise_alpha",
    "eval_delay", "eval_on_start", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph",
    "dataloader_multiprocessing_context", "label_names", "debug", "skip_memory_metrics",
    "router_aux_loss_coef", "loss_type", "activation_offloading",
}  # fmt: skip


@pytest.mark.parametrize("trainer", OTHERS)
def test_every_argument_is_decided_by_us_or_passed_on(trainer: str) -> None:
    names = {field.name for field in dataclasses.fields(loaded(METHODS[trainer].config))}
    decided = OWN_KEYS.keys() | REFUSED.keys()
    assert names - PASSED - decided == set()
    assert not PASSED & decided


def test_every_argument_that_we_set_is_decided_by_us(tmp_path: Path) -> None:
    ours = arguments(plan_of(tiny_config(tmp_path, trainer_type="TRL_SFT")))
    assert ours.keys() <= OWN_KEYS.keys() | REFUSED.keys()


@pytest.mark.parametrize("key", sorted({name.removeprefix("set ") for name in REFUSED.values() if "set " in name[:4]}))
def test_the_key_that_is_named_instead_is_there(key: str) -> None:
    keys = {key for key, _ in keys_of(TrainingConfig)}
    first = re.split(" or |, | and ", key)[0]
    assert any(name == first or name.startswith(f"{first}.") or name.startswith(f"{first}[") for name in keys)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"report_to": "wandb"},
            r"trainer_kwargs\.report_to: the adapter decides it: set training\.enable_tensorboard",
        ),
        ({"dataloader_drop_last": True}, r"dataloader_drop_last: .* the seed decides the order of the rows"),
        ({"pakcing": True}, r"trainer_kwargs\.pakcing: SFTConfig has no .* did you mean 'packing'"),
        ({"loss_type": "nlll"}, r"training: TRL_SFT rejects the config: .*nlll"),
        (
            {"label_smoothing_factor": "much"},
            r"trainer_kwargs\.label_smoothing_factor: got 'much', expected float",
        ),
    ],
)
def test_an_argument_that_cannot_be_given_is_reported(tmp_path: Path, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train(tiny_config(tmp_path, trainer_type="TRL_SFT", trainer_kwargs=kwargs, max_steps=1))


def test_text_as_of_the_environment_has_the_type_of_its_argument(tmp_path: Path) -> None:
    losses = []
    for i, kwargs in enumerate(
        [{"neftune_noise_alpha": 5, "use_cache": False}, {"neftune_noise_alpha": "5", "use_cache": "false"}]
    ):
        out = str(tmp_path / str(i))
        train(tiny_config(tmp_path, trainer_type="TRL_SFT", trainer_kwargs=kwargs, max_steps=1, output_dir=out))
        losses.append(json.loads((tmp_path / str(i) / "metrics.jsonl").read_text())["loss"])
    assert losses[0] == losses[1]


@pytest.mark.parametrize("trainer", OTHERS)
@pytest.mark.parametrize("optimizer", ["galore_adamw", "lomo"])
def test_an_optimizer_that_is_not_there_is_reported(tmp_path: Path, trainer: str, optimizer: str) -> None:
    with pytest.raises(ConfigError, match=f"training: {trainer} rejects the config: "):
        train(tiny_config(tmp_path, trainer_type=trainer, optimizer=optimizer, max_steps=1))


def test_other_arguments_are_another_run(tmp_path: Path) -> None:
    train(tiny_config(tmp_path, trainer_type="TRL_SFT", **SAVING))
    with pytest.raises(ConfigError, match=r"trainer_kwargs\.neftune_noise_alpha: not set -> 5\.0"):
        train(tiny_config(tmp_path, trainer_type="TRL_SFT", trainer_kwargs={"neftune_noise_alpha": 5.0}, **SAVING))


@pytest.mark.parametrize("trainer", OTHERS)
def test_a_run_goes_on_from_the_newest_checkpoint_that_is_whole(tmp_path: Path, trainer: str) -> None:
    config = tiny_config(tmp_path, trainer_type=trainer, **SAVING)
    train(config)
    uninterrupted, out = losses(tmp_path / "out"), tmp_path / "out"
    (out / "checkpoint-9" / "MANIFEST.json").unlink()  # as a kill in the middle of saving would leave it
    (out / "run.json").unlink()
    assert train(config).steps == 9
    assert losses(out) == pytest.approx(uninterrupted, rel=1e-6)


def test_a_checkpoint_of_another_run_is_not_taken_for_this_one(tmp_path: Path) -> None:
    train(tiny_config(tmp_path, trainer_type="HF", **SAVING))
    (tmp_path / "out" / "run.json").unlink()
    with pytest.raises(ConfigError, match=r"optimizer\.learning_rate: 0\.001 -> 0\.5"):
        train(tiny_config(tmp_path, trainer_type="HF", learning_rate=0.5, **SAVING))
    chats = tmp_path / "chats.jsonl"
    chats.write_text(chats.read_text().replace("Sure?", "Pure?"))
    with pytest.raises(DataError, match="trained on other rows"):
        train(tiny_config(tmp_path, trainer_type="HF", **SAVING))


@pytest.mark.parametrize("trainer", OTHERS)
def test_the_same_files_are_left_as_by_our_own_trainer(tmp_path: Path, trainer: str) -> None:
    ours = tiny_config(tmp_path, max_steps=2, output_dir=str(tmp_path / "ours"))
    theirs = tiny_config(tmp_path, max_steps=2, trainer_type=trainer)
    train(ours)
    train(theirs)
    names = [{path.name for path in (tmp_path / folder).iterdir()} for folder in ("ours", "out")]
    assert names[0] == names[1] - {"training_args.bin"}
    records = [
        json.loads((tmp_path / folder / "metrics.jsonl").read_text().splitlines()[0]) for folder in ("ours", "out")
    ]
    assert records[0].keys() <= records[1].keys()


def test_the_loss_of_a_router_is_told_and_its_setting_is_not_exported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = MixtralForCausalLM(MixtralConfig(**ROUTED))
    model.save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    config = tiny_config(tmp_path, trainer_type="TRL_SFT", max_steps=1, save_steps=1)
    with logged(caplog):
        train(config)
    assert [message for message in caplog.messages if "router_aux_loss_coef 0.5" in message]
    for folder in (tmp_path / "out", tmp_path / "out" / "checkpoint-1"):
        assert MixtralConfig.from_pretrained(folder).output_router_logits is False


def test_our_own_trainer_refuses_the_loss_of_a_router_or_says_that_it_has_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny_config(tmp_path, max_steps=1)
    config.model.model_kwargs = {"output_router_logits": True}
    with pytest.raises(
        ConfigError, match=r"output_router_logits: trainer OUMI adds no router loss: use trainer TRL_SFT"
    ):
        check(config)
    model = MixtralForCausalLM(MixtralConfig(**ROUTED, output_router_logits=True))
    with logged(caplog):
        accelerate(model, plan_of(tiny_config(tmp_path, max_steps=1)))
    assert [message for message in caplog.messages if "the router's auxiliary loss" in message]


@pytest.mark.parametrize("trainer", OTHERS)
def test_a_loss_depends_on_no_row_before_or_beside_it(tmp_path: Path, trainer: str) -> None:
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0}
    tiny_llama(max_position_embeddings=16, rope_parameters=rope).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    config = tiny_config(tmp_path, trainer_type=trainer)
    config.model.model_max_length = 512
    inner = build(config, TrlTrainer).inner
    rows = inner.seams.rows.train
    short, *_, long = sorted(range(len(rows)), key=lambda i: rows.lengths()[i])

    def loss_sum(numbers: list[int]) -> float:
        item = RowCollator(rows, collate)(numbers)
        loss = inner.compute_loss(inner.model, inner._prepare_inputs(item))
        return float(loss.detach()) * item["batch"].num_targets

    first, beside_another = loss_sum([short]), loss_sum([short, long])
    assert loss_sum([short]) == pytest.approx(first, rel=1e-6)
    assert beside_another == pytest.approx(first + loss_sum([long]), rel=1e-6)


@pytest.mark.sample(1)
@pytest.mark.parametrize("trainer", OTHERS)
def test_the_validation_loss_is_the_mean_over_all_terms_as_in_our_own_trainer(tmp_path: Path, trainer: str) -> None:
    losses_of_trainers = []
    for name in ("OUMI", trainer):
        config = tiny_config(tmp_path, trainer_type=name, max_steps=20, eval_strategy="steps", eval_steps=10)
        config.training.output_dir = str(tmp_path / name)
        config.training.per_device_eval_batch_size = 5
        config.data.train.train_target = "ALL_ASSISTANT_TURNS"
        config.data.validation.datasets = list(config.data.train.datasets)
        train(config)
        records = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        losses_of_trainers.append({record["step"]: record["eval_loss"] for record in records if "eval_loss" in record})
    assert losses_of_trainers[0].keys() == {10, 20}
    assert losses_of_trainers[1] == pytest.approx(losses_of_trainers[0], rel=1e-6)
