# SPDX-License-Identifier: Apache-2.0
"""Strings that a config names around turns must stand there, and results of tools within answers are not trained."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from oumi.core.data.checks.supervision import draw
from oumi.core.data.tokenize.chat_template import Template, bundled_template
from oumi.core.data.tokenize.encoder import RowTokenizer
from oumi.core.data.tokenize.loss_mask import TokenizeSpec
from oumi.core.data.tokenize.turns import check_landmarks, without_tool_results
from oumi.core.errors import ConfigError
from oumi.core.train import train
from oumi.core.types.conversation import Conversation, Message, Role
from oumi.core.types.example import Encoded, Row, Source
from tests.runs import tiny_config
from tests.tiny import CHATML, byte_tokenizer

RIGHT = {
    "chat_ml": ("<|im_start|>assistant\n", "<|im_start|>user\n", "<|im_end|>\n"),
    "llama3-instruct": (
        "<|start_header_id|>assistant<|end_header_id|>\n\n", "<|start_header_id|>user<|end_header_id|>\n\n",
        "<|eot_id|>",
    ),
    "phi3-instruct": ("<|assistant|>\n", "<|user|>\n", "<|end|>"),
    "gemma2-it": ("<start_of_turn>model\n", "<start_of_turn>user\n", "<end_of_turn>"),
    "default": ("ASSISTANT: ", "USER: ", "<|im_end|>"),
    "molmo": ("Assistant:", "User:", " "),
}  # fmt: skip
NAMES = ("response_template", "instruction_template", "end_of_turn_template")


def template_of(name: str) -> Template:
    return Template(byte_tokenizer(), bundled_template(name))


@pytest.mark.parametrize("name", RIGHT)
def test_what_the_template_writes_may_be_named(name: str) -> None:
    check_landmarks(template_of(name), dict(zip(NAMES, RIGHT[name], strict=True)))


@pytest.mark.parametrize("at", [0, 1, 2])
def test_what_stands_elsewhere_is_reported_with_what_stands_there(at: int) -> None:
    named = dict(zip(NAMES, RIGHT["chat_ml"], strict=True))
    named[NAMES[at]] = "<|assistant|>"
    with pytest.raises(ConfigError) as refused:
        check_landmarks(template_of("chat_ml"), named)
    (problem,) = refused.value.problems
    assert problem.key == f"data.train.collator_kwargs.{NAMES[at]}"
    where = ("before an answer", "before a question", "after an answer")[at]
    assert problem.message.startswith(f"expected '<|assistant|>' {where}, but the chat template writes '")
    assert RIGHT["chat_ml"][at].strip() in problem.message


def test_a_header_of_the_user_is_none_of_the_assistant() -> None:
    with pytest.raises(ConfigError, match="before an answer, but the chat template writes"):
        check_landmarks(template_of("chat_ml"), {"response_template": "<|im_start|>user\n"})


def test_every_wrong_one_is_reported_at_once() -> None:
    with pytest.raises(ConfigError) as refused:
        check_landmarks(template_of("chat_ml"), dict.fromkeys(NAMES, "###"))
    assert len(refused.value.problems) == 3


def test_a_run_whose_response_template_is_of_another_model_does_not_start(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    config.data.train.collator_name = "text_completions_only_with_padding"
    config.data.train.collator_kwargs = {"response_template": "### Response:"}
    with pytest.raises(ConfigError, match="expected '### Response:' before an answer"):
        train(config)


@pytest.mark.parametrize(
    ("collator", "kwargs", "trained"),
    [
        (None, {}, "Yo.<|im_end|>C.<|im_end|>"),
        ("text_completions_only_with_padding", {"response_template": "assistant\n"}, "C.<|im_end|>"),
        (
            "text_completions_only_with_padding",
            {"response_template": "assistant\n", "end_of_turn_template": "<|im_end|>"},
            "Yo.<|im_end|>C.<|im_end|>",
        ),
        ("text_with_padding", {"max_length": 30}, None),
    ],
)
def test_a_run_trains_what_its_collator_says(
    tmp_path: Path, collator: str | None, kwargs: dict[str, Any], trained: str | None
) -> None:
    from datetime import datetime

    from oumi.core.data.training_data import read_training_data
    from oumi.core.inspect import gather_facts
    from oumi.core.plan.plan import make_plan

    turns = [("user", "Hi?"), ("assistant", "Yo."), ("user", "B?"), ("assistant", "C.")]
    row = {"messages": [{"role": role, "content": text} for role, text in turns]}
    (tmp_path / "chats.jsonl").write_text(json.dumps(row) + "\n")
    config = tiny_config(tmp_path)
    config.data.train.collator_name, config.data.train.collator_kwargs = collator, kwargs
    example = read_training_data(make_plan(config, gather_facts(config)), datetime(2026, 1, 2)).train.group(0)[0]
    if trained is None:
        assert len(example.tokens) == 30
        assert example.is_target.all()
    else:
        assert byte_tokenizer().decode(example.tokens[example.is_target]) == trained


MARKS = ("<t>", "</t>")
CUT = {
    "none": ("say", ["say"]),
    "one": ("say <t>it</t> so", ["say ", " so"]),
    "two": ("a<t>b</t>c<t>d</t>e", ["a", "c", "e"]),
    "not closed": ("say <t>it so", ["say "]),
    "at the beginning": ("<t>it</t>so", ["so"]),
    "to the end": ("so <t>it</t>", ["so "]),
    "asked for": ("so <t>", ["so <t>"]),
    "empty": ("so <t></t>!", ["so ", "!"]),
    "closed alone": ("so </t>!", ["so </t>!"]),
}


@pytest.mark.parametrize("kind", CUT)
def test_results_of_tools_are_cut_out_of_an_answer(kind: str) -> None:
    answer, expected = CUT[kind]
    text = f"<t>before{answer}after</t>"
    span = (len("<t>before"), len("<t>before") + len(answer))
    assert [text[first:last] for first, last in without_tool_results(text, span, MARKS)] == expected


def test_results_of_tools_within_an_answer_are_not_trained() -> None:
    tokenizer = byte_tokenizer()
    answer = "I look. <t>rain</t> It rains."
    chat = Conversation(
        messages=[Message(role=Role.USER, content="<t>?</t>"), Message(role=Role.ASSISTANT, content=answer)]
    )
    row_tokenizer = RowTokenizer(
        tokenizer, Template(tokenizer, CHATML), TokenizeSpec("all_assistant_turns", tool_results=MARKS)
    )
    (encoded,) = row_tokenizer.make([Row(chat, Source("set", "x.jsonl", 1))])
    assert isinstance(encoded, Encoded)
    assert draw(encoded.examples[0], tokenizer).endswith("assistant\n[I look. ]<t>rain</t>[ It rains.<|im_end|>]\n")


def test_marks_of_tools_that_the_template_does_not_write_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("oumi").addHandler(caplog.handler)
    try:
        check_landmarks(template_of("chat_ml"), {"tool_response_template": "<t>"})
    finally:
        logging.getLogger("oumi").removeHandler(caplog.handler)
    assert "tool_response_template: the chat template does not write '<t>'" in caplog.text
