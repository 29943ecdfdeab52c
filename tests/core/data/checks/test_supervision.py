# SPDX-License-Identifier: Apache-2.0
"""Rows that teach the wrong thing are drawn for the user, and the run does not start."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from oumi.core.data.checks.supervision import check_supervision, draw, spread
from oumi.core.data.tokenize.loss_mask import TokenizeSpec
from oumi.core.errors import DataError
from oumi.core.train import train
from oumi.core.types.example import Example, Source
from tests.runs import table_of, tiny_config
from tests.tiny import byte_tokenizer

TOKENIZER = byte_tokenizer()


def example(drawing: str, line: int = 3) -> Example:
    """Returns a row from its drawing: what stands in brackets is trained."""
    tokens: list[int] = []
    is_target: list[bool] = []
    for i, part in enumerate(drawing.replace("]", "[").split("[")):
        ids = TOKENIZER(part, add_special_tokens=False)["input_ids"]
        tokens += ids
        is_target += [i % 2 == 1] * len(ids)
    return Example(np.array(tokens, np.int32), np.array(is_target), Source("set", "x.jsonl", line))


def check(
    *drawings: str, num_checked: int = 64, train_on: str = "all_assistant_turns", max_length: int | None = None
) -> None:
    table = table_of([example(drawing, i + 1) for i, drawing in enumerate(drawings)])
    check_supervision(spread(table, num_checked), TOKENIZER, TokenizeSpec(train_on, max_length))


def test_a_row_is_drawn_as_it_is_trained() -> None:
    drawing = "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n[Yo.<|im_end|>]\n"
    assert draw(example(drawing), TOKENIZER) == drawing


@pytest.mark.parametrize(
    ("drawing", "problem"),
    [
        ("Hi? Yo.", "no token is trained"),
        ("[Hi? Yo.<|im_end|>]", "every token is trained, but train_target is `all_assistant_turns`"),
        ("Hi? [Yo.]", "an answer ends without a special token"),
        ("Hi? [Yo.] More", "an answer ends without a special token"),
    ],
)
def test_a_row_that_teaches_the_wrong_thing_is_reported_and_drawn(drawing: str, problem: str) -> None:
    with pytest.raises(DataError) as stopped:
        check("Hi? [Yo.<|im_end|>]", drawing)
    message = str(stopped.value)
    assert message.startswith(f"x.jsonl:2: {problem}")
    assert message.endswith(f"Trained tokens are in brackets:\n{drawing}")


def test_a_row_that_begins_twice_is_reported() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = "<|endoftext|>"
    table = table_of([example("<|endoftext|><|endoftext|>Hi? [Yo.<|im_end|>]")])
    with pytest.raises(DataError, match="begins with two start tokens"):
        check_supervision(spread(table, 64), tokenizer, TokenizeSpec("all_assistant_turns"))


def test_sound_rows_and_rows_that_are_trained_entirely_pass() -> None:
    check("Hi? [Yo.<|im_end|>]\n", "Hi? [A long answer that was cut", max_length=30)
    check("[Hi? Yo.]", train_on="all")


def test_an_answer_that_is_trained_in_parts_ends_with_its_last_one() -> None:
    parts = "Hi? [I look. ]It rains. [It does.<|im_end|>]\n"
    with pytest.raises(DataError, match="an answer ends without a special token"):
        check(parts)
    check_supervision([example(parts)], TOKENIZER, TokenizeSpec("all_assistant_turns", tool_results=("<r>", "</r>")))
    unended = [example("Hi? [I look. ]It rains. [It does.]\n")]
    with pytest.raises(DataError, match="an answer ends without a special token"):
        check_supervision(unended, TOKENIZER, TokenizeSpec("all_assistant_turns", tool_results=("<r>", "</r>")))


def test_the_checked_rows_are_spread_over_the_table() -> None:
    sound = ["Hi? [Yo.<|im_end|>]"] * 99
    with pytest.raises(DataError, match=r"x\.jsonl:100: no token"):
        check(*sound, "Hi? Yo.", num_checked=2)


def test_a_run_whose_template_has_no_end_does_not_start(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    template = tmp_path / "endless.jinja"
    template.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    config.model.chat_template = str(template)
    with pytest.raises(DataError, match=r"chats\.jsonl:\d+: an answer ends without a special token"):
        train(config)
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert json.loads((tmp_path / "out" / "data_report.json").read_text())["train"][0]["rows"]["read"] == 24
