# SPDX-License-Identifier: Apache-2.0
"""TRL's preference trainers: batches like those of its own collators, and every argument sorted."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trl import DPOTrainer
from trl.experimental.utils import DPODataCollatorWithPadding
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

from oumi.core.distributed.world import World
from oumi.core.plan.preference_kwargs import has_no_effect, preference_notes
from oumi.core.plan.refusals import refusals
from oumi.core.plan.trainer_kwargs import OWN_KEYS, REFUSED
from oumi.core.trainers.trl import TrlTrainer
from oumi.core.trainers.trl_methods import METHODS, NEWER_NAMES, arguments
from oumi.core.trainers.trl_preferences import MeasuredMeans, counts_of
from tests.core.trainers.test_trl import PASSED, loaded, plan_of
from tests.laws.test_trl_preference import preference_config
from tests.runs import build

TRAINERS = ["TRL_DPO", "TRL_KTO", "TRL_ORPO", "TRL_CPO"]
PASSED_TO_PREFERENCES = {
    "beta", "disable_dropout", "label_smoothing", "precompute_ref_log_probs", "precompute_ref_batch_size",
    "loss_weights", "ld_alpha", "f_divergence_type", "f_alpha_divergence_coef", "use_weighting", "discopop_tau",
    "desirable_weight", "undesirable_weight", "cpo_alpha", "simpo_gamma", "alpha",
}  # fmt: skip


def inner_of(folder: Path, trainer: str) -> Any:
    return build(preference_config(folder, trainer), TrlTrainer).inner


def parts_of(inner: Any, index: int) -> list[tuple[list[int], list[int]]]:
    """Returns prompt and answer of each document of a row, as token ids, without the newline behind it."""
    (example,) = inner.seams.rows.train.group(index)
    parts = []
    for document in example.documents():
        (trained,) = np.nonzero(document.is_target)
        first, end = int(trained[0]), int(trained[-1]) + 1
        assert end - first == len(trained)
        parts.append((document.tokens[:first].tolist(), document.tokens[first:end].tolist()))
    return parts


def batch_of(inner: Any, numbers: list[int]) -> dict[str, Any]:
    return dict(inner._prepare_inputs(inner._collator(inner.seams.rows.train)(numbers)))


def assert_same(batch: dict[str, Any], expected: dict[str, Any], has_newlines: bool) -> None:
    """Checks that a batch is as TRL's own, but for a newline of the template behind each answer, and for padding."""
    positions = batch.pop("position_ids", None)
    if positions is not None:
        counted = (batch["attention_mask"].cumsum(1) - 1) * batch["attention_mask"]
        assert torch.equal(positions, counted)
    assert batch.keys() == expected.keys()
    for name in [name for name in batch if name.endswith("attention_mask")]:
        side = name.removesuffix("attention_mask")
        lengths = batch[name].sum(1) - int(has_newlines)
        assert torch.equal(lengths, expected[name].sum(1))
        for key in ("input_ids", "completion_mask", "labels"):
            ours, theirs = batch.get(f"{side}{key}"), expected.get(f"{side}{key}")
            if ours is None or theirs is None:
                assert ours is theirs is None
                continue
            for our_row, their_row, length in zip(ours, theirs, lengths.tolist(), strict=True):
                assert torch.equal(our_row[:length], their_row[:length]), key
                if key != "input_ids":
                    assert not (our_row[length:] > 0).any(), "neither padding nor the newline is trained"
    if "label" in expected:
        assert torch.equal(batch["label"], expected["label"])


def test_pairs_are_collated_as_trl_does(tmp_path: Path) -> None:
    inner = inner_of(tmp_path, "TRL_DPO")
    theirs = DataCollatorForPreference(pad_token_id=inner._tokenizer.pad_token_id)
    rows = []
    for i in range(5):
        (prompt, chosen), (same, rejected) = parts_of(inner, i)
        assert prompt == same
        rows.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected})
    assert_same(batch_of(inner, [0, 1, 2, 3, 4]), theirs(rows), has_newlines=True)


@pytest.mark.parametrize("trainer", ["TRL_ORPO", "TRL_CPO"])
def test_sides_are_collated_as_trl_does(tmp_path: Path, trainer: str) -> None:
    inner = inner_of(tmp_path, trainer)
    theirs = DPODataCollatorWithPadding(pad_token_id=inner.processing_class.pad_token_id)
    rows = []
    for i in range(5):
        row: dict[str, list[int]] = {}
        for side, (prompt, answer) in zip(("chosen", "rejected"), parts_of(inner, i), strict=True):
            row |= {
                f"{side}_input_ids": prompt + answer,
                f"{side}_attention_mask": [1] * len(prompt + answer),
                f"{side}_labels": [-100] * len(prompt) + answer,
            }
        rows.append(row)
    assert_same(batch_of(inner, [0, 1, 2, 3, 4]), theirs(rows), has_newlines=True)


def test_judged_completions_are_collated_as_trl_does(tmp_path: Path) -> None:
    inner = inner_of(tmp_path, "TRL_KTO")
    theirs = DataCollatorForUnpairedPreference(pad_token_id=inner._tokenizer.pad_token_id)
    parts = [parts_of(inner, i)[0] for i in range(5)]
    labels = [i % 3 > 0 for i in range(5)]
    rows = [
        {"prompt_ids": prompt, "completion_ids": answer, "KL_completion_ids": parts[i - 1][1], "label": labels[i]}
        for i, (prompt, answer) in enumerate(parts)
    ]
    assert_same(batch_of(inner, [0, 1, 2, 3, 4]), theirs(rows), has_newlines=False)


def test_a_judged_row_alone_is_compared_with_the_completion_of_the_next_one(tmp_path: Path) -> None:
    inner = inner_of(tmp_path, "TRL_KTO")
    last = len(inner.train_dataset) - 1
    batch = batch_of(inner, [last])
    (prompt, _), (_, answer) = parts_of(inner, last)[0], parts_of(inner, 0)[0]
    assert batch["KL_input_ids"].tolist() == [prompt + answer]


@pytest.mark.parametrize("trainer", TRAINERS)
def test_every_argument_is_decided_by_us_or_passed_on(tmp_path: Path, trainer: str) -> None:
    config = preference_config(tmp_path, trainer)
    names = {field.name for field in dataclasses.fields(loaded(METHODS[trainer].config))}
    decided = {*OWN_KEYS, *REFUSED, *(name for name in names if has_no_effect(name, config.training))}
    for name in names - decided - PASSED - PASSED_TO_PREFERENCES:  # among them the limits of length, here of no type
        config.training.trainer_kwargs = {name: "x"}
        assert [problem.key for problem in refusals(config)] == [f"training.trainer_kwargs.{name}"]


@pytest.mark.parametrize("trainer", TRAINERS)
def test_every_argument_that_we_set_is_one_of_the_installed_version(tmp_path: Path, trainer: str) -> None:
    passed = arguments(plan_of(preference_config(tmp_path, trainer)))
    fields = {field.name for field in dataclasses.fields(loaded(METHODS[trainer].config))}
    assert {NEWER_NAMES.get(name, name) if NEWER_NAMES.get(name) in fields else name for name in passed} <= fields
    assert passed.keys() <= OWN_KEYS.keys() | REFUSED.keys() | {"beta"}


@pytest.mark.parametrize(
    ("trainer", "kwargs", "message"),
    [
        ("TRL_DPO", {"loss_type": "sigmiod"}, "TRL_DPO has no loss 'sigmiod', did you mean 'sigmoid'?"),
        ("TRL_KTO", {"loss_type": "sigmoid"}, "TRL_KTO has no loss 'sigmoid'; it has kto, apo_zero_unpaired"),
        ("TRL_CPO", {"loss_type": ["simpo", "hinge"]}, "TRL_CPO takes a single loss"),
        ("TRL_DPO", {"label_smoothing": 0.1}, "loss sigmoid of TRL ignores it; aot, aot_unpaired, exo_pair, robust"),
        ("TRL_DPO", {"sync_ref_model": True}, "a checkpoint does not contain the changed reference"),
        ("TRL_DPO", {"rpo_alpha": 0.5, "loss_weights": [1.0]}, "write it as a weight of the loss sft"),
        ("TRL_DPO", {"rpo_alpha": "much"}, "got 'much', must be a number, 0 or more"),
        ("TRL_DPO", {"beta": None}, "got None, must be a number, above 0"),
        ("TRL_DPO", {"beta": True}, "got True, must be a number, above 0"),
        ("TRL_DPO", {"loss_type": []}, "names no loss"),
        ("TRL_DPO", {"loss_type": None}, "TRL_DPO has no loss 'None'"),
        ("TRL_DPO", {"loss_weights": "a"}, "got 'a', must be a list of numbers, one for each loss"),
        ("TRL_DPO", {"f_divergence_type": "js"}, "unknown divergence 'js'"),
        ("TRL_DPO", {"reference_free": "maybe"}, "got 'maybe', must be true or false"),
        ("TRL_DPO", {"loss_type": "robust", "label_smoothing": 0.5}, "got 0.5, must be a number, 0 to below 0.5"),
        ("TRL_CPO", {"cpo_alpha": -1}, "got -1, must be a number, 0 or more"),
        ("TRL_DPO", {"tools": ["x"]}, "rows bring their own tools"),
        ("TRL_KTO", {"precompute_ref_log_probs": True}, "the completion with which loss kto compares a prompt"),
        ("TRL_KTO", {"train_sampling_strategy": "random"}, "the seed decides the order of the rows"),
        ("TRL_KTO", {"max_prompt_length": "long"}, "got 'long', must be a whole number of tokens, 1 or more"),
        ("TRL_ORPO", {"generate_during_eval": True}, "samples during an evaluation are not supported"),
    ],
)
def test_what_cannot_be_carried_out_is_refused(
    tmp_path: Path, trainer: str, kwargs: dict[str, Any], message: str
) -> None:
    (problem,) = refusals(preference_config(tmp_path, trainer, trainer_kwargs=kwargs))
    assert problem.key in [f"training.trainer_kwargs.{name}" for name in kwargs]
    assert message in problem.message


def test_a_judged_completion_alone_in_its_micro_batch_is_refused(tmp_path: Path) -> None:
    config = preference_config(tmp_path, "TRL_KTO", per_device_train_batch_size=1)
    (problem,) = refusals(config)
    assert problem.key == "training.per_device_train_batch_size"
    assert "set 2 or more, or training.trainer_kwargs.loss_type: apo_zero_unpaired" in problem.message
    config.training.trainer_kwargs = {"loss_type": "apo_zero_unpaired"}
    assert not refusals(config)


@pytest.mark.parametrize(
    ("trainer", "kwargs", "note"),
    [
        ("TRL_DPO", {"label_pad_token_id": -100}, "not read: training.trainer_kwargs.label_pad_token_id: a mask marks"),
        ("TRL_DPO", {"padding_free": True}, "not read: training.trainer_kwargs.padding_free: TRL has switched it off"),
        ("TRL_DPO", {"discopop_tau": 0.1}, "not read: training.trainer_kwargs.discopop_tau: only loss_type discopop"),
        ("TRL_DPO", {"precompute_ref_batch_size": 2}, "only precompute_ref_log_probs true reads it"),
        ("TRL_DPO", {"rpo_alpha": "0.5"}, "loss: sigmoid plus 0.5 times sft, as training.trainer_kwargs.rpo_alpha"),
        ("TRL_DPO", {"reference_free": "true"}, "reference: none, as training.trainer_kwargs.reference_free says"),
        ("TRL_DPO", {"loss_type": "sft", "beta": 0.2}, "training.trainer_kwargs.beta: loss sft alone has no reference"),
        (
            "TRL_DPO",
            {"max_prompt_length": 1024},
            "rows: longer prompts keep their last 1,024 tokens, as training.train",
        ),
        (
            "TRL_ORPO",
            {"max_completion_length": 9},
            "rows: longer answers keep their first 9 tokens, as training.trainer",
        ),
        ("TRL_CPO", {"simpo_gamma": 0.3}, "not read: training.trainer_kwargs.simpo_gamma: only loss_type simpo reads"),
        ("TRL_ORPO", {"padding_value": 0}, "not read: training.trainer_kwargs.padding_value: padded positions"),
    ],
)
def test_what_has_no_effect_or_another_name_is_noted(
    tmp_path: Path, trainer: str, kwargs: dict[str, Any], note: str
) -> None:
    config = preference_config(tmp_path, trainer, trainer_kwargs=kwargs)
    assert not refusals(config)
    (message,) = preference_notes(config.training)
    assert note in message
    fields = {field.name for field in dataclasses.fields(loaded(METHODS[trainer].config))}
    assert arguments(plan_of(config)).keys() - NEWER_NAMES.keys() <= fields


def test_means_weigh_each_row_and_each_token_the_same() -> None:
    means = MeasuredMeans()
    mask = torch.tensor([[0, 1, 1], [0, 1, 0], [0, 1, 1], [0, 0, 1]])
    two = counts_of({"completion_mask": mask})
    one = counts_of({"completion_mask": mask[:2]})
    assert (two["rows"], two["chosen tokens"], two["rejected tokens"]) == (2, 3, 3)
    assert (one["rows"], one["chosen tokens"], one["rejected tokens"]) == (1, 2, 1)
    means.add({"rewards/chosen": 1.0, "logits/chosen": 1.0, "entropy": 1.0}, two)
    means.add({"rewards/chosen": 4.0, "logits/chosen": 4.0, "entropy": 4.0}, one)
    means.add({"rewards/chosen": float("nan")}, dict.fromkeys(one, 0))
    with World.start() as world:
        assert means.take(world) == {"rewards/chosen": 2.0, "logits/chosen": 11 / 5, "entropy": 2.0}
        assert means.take(world) == {}


def test_nothing_is_reported_to_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", lambda *rest, **named: sent.append(rest))
    inner = inner_of(tmp_path, "TRL_DPO")
    assert not sent
    DPOTrainer._send_telemetry(inner)  # which the construction would have called
    assert len(sent) == 1
