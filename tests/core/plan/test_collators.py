# SPDX-License-Identifier: Apache-2.0
"""What the collators of a config train, and that none of their arguments is ignored unseen."""

from __future__ import annotations

from typing import Any

import pytest

from oumi.core.configs import TrainingConfig
from oumi.core.plan import collators
from oumi.core.plan.collators import ARGUMENTS, COMPLETIONS_ONLY, VISION_SFT
from oumi.core.plan.facts import Facts, ModelFacts
from oumi.core.plan.parts import Plan
from oumi.core.plan.plan import make_plan
from oumi.core.plan.refusals import refusals

MODEL = ModelFacts(True, stored_dtype="float32", max_positions=2048, tokenizer_length=1024, sees_images=True)
FACTS = Facts("cpu", "CPU", False, 2, 24 << 30, 10**12, num_rows=103, model=MODEL)
PADDING, VISION = "text_with_padding", "vision_language_with_padding"


def config_of(
    collator: str | None, kwargs: dict[str, Any], target: str | None = None, trainer: str = "OUMI"
) -> TrainingConfig:
    train = {"datasets": [{"dataset_name": "a"}], "collator_name": collator, "collator_kwargs": kwargs}
    return TrainingConfig.model_validate(
        {"data": {"train": {**train, "train_target": target}}, "training": {"trainer_type": trainer}}
    )


def plan(*arguments: Any, **kwargs: Any) -> Plan:
    return make_plan(config_of(*arguments, **kwargs), FACTS)


ANSWER, QUESTION, END = (
    {"response_template": "<a>"}, {"instruction_template": "<u>"}, {"end_of_turn_template": "</s>"},
)  # fmt: skip
EVERY, FINAL = "all_assistant_turns", "final_assistant_turn"
TARGETS = [
    (None, {}, None, EVERY),
    (None, {}, "FINAL_ASSISTANT_TURN", FINAL),
    (PADDING, {}, None, "all"),
    (COMPLETIONS_ONLY, {}, "ALL_ASSISTANT_TURNS", EVERY),
    (COMPLETIONS_ONLY, {}, "final_assistant_turn", FINAL),
    (COMPLETIONS_ONLY, {}, None, EVERY),
    (COMPLETIONS_ONLY, ANSWER, None, FINAL),
    (COMPLETIONS_ONLY, {**ANSWER, **END}, None, EVERY),
    (COMPLETIONS_ONLY, {**ANSWER, **QUESTION}, None, EVERY),
    (COMPLETIONS_ONLY, {**ANSWER, **QUESTION, **END}, None, EVERY),
    (COMPLETIONS_ONLY, {**ANSWER, **END}, "FINAL_ASSISTANT_TURN", FINAL),
    (COMPLETIONS_ONLY, ANSWER, "ALL_ASSISTANT_TURNS", EVERY),
    (VISION, {}, None, "all"),
    (VISION_SFT, {}, None, "all"),
    (VISION_SFT, {"train_on_completions_only": False}, None, "all"),
    (VISION_SFT, {"train_on_completions_only": True}, None, FINAL),
    (VISION_SFT, {"train_on_completions_only": True, **ANSWER}, None, FINAL),
    (VISION_SFT, {"train_on_completions_only": True, **ANSWER, **QUESTION}, None, EVERY),
]


@pytest.mark.parametrize(("collator", "kwargs", "target", "expected"), TARGETS)
@pytest.mark.parametrize("trainer", ["OUMI", "TRL_SFT"])
def test_collator_and_target_say_what_is_trained(
    collator: str | None, kwargs: dict[str, Any], target: str | None, expected: str, trainer: str
) -> None:
    if collator is None and target is None and trainer != "OUMI":
        expected = "all"
    config = config_of(collator, kwargs, target, trainer)
    assert collators.train_on(config) == expected
    assert not list(collators.wrong_arguments(config.data.train))
    assert not [problem.key for problem in refusals(config) if "collator" in problem.key]


SAMPLES: dict[str, Any] = {
    "max_length": 17, "truncation": True, "label_ignore_index": -1, "max_variable_sized_dims": 2, "debug": True,
    "pad_to_multiple_of": 8, "ignore_index": -1, "response_template": "<a>", "instruction_template": "<u>",
    "end_of_turn_template": "</s>", "tool_response_template": "<t>", "end_of_tool_response_template": "</t>",
    "allow_multi_image_inputs": False, "main_image_feature": "images", "processor_name": "p",
    "processor_kwargs": {"x": 1}, "truncation_side": "left", "trust_remote_code": True, "model_revision": "r",
    "train_on_completions_only": True, "process_individually": True,
}  # fmt: skip
NEEDS = {
    "instruction_template": {"response_template": "<a>"}, "end_of_turn_template": {"response_template": "<a>"},
    "tool_response_template": {"end_of_tool_response_template": "</t>"},
    "end_of_tool_response_template": {"tool_response_template": "<t>"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("collator", "name"), [(collator, name) for collator in (PADDING, COMPLETIONS_ONLY) for name in ARGUMENTS[collator]]
)
@pytest.mark.parametrize("trainer", ["OUMI", "TRL_SFT"])
def test_an_argument_changes_the_plan_or_is_reported_as_not_read(collator: str, name: str, trainer: str) -> None:
    if (name, trainer) == ("pad_to_multiple_of", "TRL_SFT"):
        return  # the collator of that trainer reads it
    needs = NEEDS.get(name, {})
    without = plan(collator, needs, trainer=trainer) if not needs or "response" in str(needs) else plan(collator, {})
    result = plan(collator, {**needs, name: SAMPLES[name]}, trainer=trainer)
    assert not refusals(result.config)
    is_noted = any(
        f"data.train.collator_kwargs.{name}:" in note for note in result.notes if note.startswith("not read")
    )
    changed = (result.data, result.model, result.logs) != (without.data, without.model, without.logs)
    assert changed != is_noted


def test_what_arguments_come_to() -> None:
    result = plan(PADDING, {"max_length": 17, "debug": True})
    assert (result.model.max_length, result.logs.examples) == (17, True)
    assert plan(PADDING, {}).model.max_length == 1024
    result = plan(VISION_SFT, {"truncation_side": "left"})
    assert result.data.train.truncation == "left"
    marks = {"tool_response_template": "<t>", "end_of_tool_response_template": "</t>"}
    assert plan(COMPLETIONS_ONLY, marks).data.tool_results == ("<t>", "</t>")
    assert plan(COMPLETIONS_ONLY, ANSWER).data.landmarks == ANSWER
    assert plan(COMPLETIONS_ONLY, {}).data.tool_results is None


WRONG = [
    (PADDING, ANSWER, "response_template", "text_with_padding does not take it; text_completions_only_with_padding"),
    (PADDING, {"train_on_completions_only": True}, "train_on_completions_only", "vision_language_sft does"),
    (PADDING, {"truncation": False}, "truncation", "data.train.truncation: REJECT refuses such rows"),
    (PADDING, {"truncation": 1}, "truncation", "got 1, must be true or false"),
    (PADDING, {"max_length": 0}, "max_length", "got 0, must be a whole number, 1 or more"),
    (PADDING, {"max_lenght": 8}, "max_lenght", "no collator reads it, did you mean 'max_length'?"),
    (COMPLETIONS_ONLY, {"max_length": 8}, "max_length", "text_completions_only_with_padding does not take it"),
    (COMPLETIONS_ONLY, QUESTION, "instruction_template", "needs response_template beside it"),
    (COMPLETIONS_ONLY, END, "end_of_turn_template", "needs response_template beside it, or data.train.train_target"),
    (COMPLETIONS_ONLY, {"response_template": ""}, "response_template", "got '', must be text"),
    (COMPLETIONS_ONLY, {"ignore_index": "x"}, "ignore_index", "got 'x', must be a whole number"),
    (COMPLETIONS_ONLY, {"tool_response_template": "<t>"}, "tool_response_template", "needs end_of_tool_response_temp"),
    (COMPLETIONS_ONLY, {"train_target": "x"}, "train_target", "as data.train.train_target"),
    (VISION_SFT, ANSWER, "response_template", "needs train_on_completions_only: true beside it"),
    (VISION_SFT, {"truncation_side": "up"}, "truncation_side", "got 'up', must be left or right"),
    (VISION, {"allow_multi_image_inputs": "no"}, "allow_multi_image_inputs", "must be true or false"),
    (VISION, {"process_individually": True}, "process_individually", "vision_language_sft does"),
]


@pytest.mark.parametrize(("collator", "kwargs", "name", "message"), WRONG)
def test_an_argument_that_cannot_be_is_refused_with_the_reason(
    collator: str, kwargs: dict[str, Any], name: str, message: str
) -> None:
    messages = {problem.key: problem.message for problem in refusals(config_of(collator, kwargs))}
    assert message in messages[f"data.train.collator_kwargs.{name}"]


def test_end_marks_may_be_named_for_a_target() -> None:
    assert not refusals(config_of(COMPLETIONS_ONLY, {**END, **QUESTION}, "ALL_ASSISTANT_TURNS"))


def test_arguments_without_a_collator_are_reported_as_not_read() -> None:
    notes = plan(None, {"response_template": "<a>", "max_length": 7}).notes
    reason = "no collator is set, see data.train.collator_name"
    keys = "data.train.collator_kwargs.response_template, data.train.collator_kwargs.max_length"
    assert f"not read: {keys}: {reason}" in notes
    assert plan(None, {"max_length": 7}).model.max_length == 1024


def test_a_plan_says_that_assistant_turns_are_trained_where_nothing_asks_for_it() -> None:
    note = "targets: assistant turns only; set `data.train.train_target` to change it"
    assert note in plan(None, {}).notes
    assert note in plan(COMPLETIONS_ONLY, {}).notes
    assert note not in plan(COMPLETIONS_ONLY, {**ANSWER, **END}).notes
    assert note not in plan(PADDING, {}).notes
