# SPDX-License-Identifier: Apache-2.0
"""What is trained of seven chats under the chat templates of the field, against texts that were written by hand."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from oumi.core.data.checks.supervision import check_supervision
from oumi.core.data.tokenize.chat_template import FOLDER, Template
from oumi.core.data.tokenize.encoder import RowTokenizer
from oumi.core.data.tokenize.loss_mask import Document, Rendered, TokenizeSpec
from oumi.core.types.conversation import Role
from oumi.core.types.example import Encoded, Example, RejectedRow, Row, Source
from tests.core.data.tokenize.families import bundled, llama, others, qwen
from tests.core.data.tokenize.families.family import CHATS, NOW, Expected, Family, Refused

FAMILIES: dict[str, Family] = {**bundled.FAMILIES, **llama.FAMILIES, **qwen.FAMILIES, **others.FAMILIES}
SOURCE = Source("set", "x.jsonl", 1)
EVERY = [(name, case) for name in FAMILIES for case in CHATS]
EXPRESSED = [(name, case) for name, case in EVERY if not isinstance(FAMILIES[name].expected(case), Refused)]
MANY = [name for name, case in EXPRESSED if case == "many"]


@cache
def template_of(family: Family) -> Template:
    """Returns the template of a family, compiled once: that takes longer than any test of it."""
    return Template(family.tokenizer(), family.template(), NOW)


def tokeniser_of(family: Family, tokenizer: Any, train_on: str = "all_assistant_turns", **kwargs: Any) -> RowTokenizer:
    return RowTokenizer(tokenizer, template_of(family), TokenizeSpec(train_on, **kwargs))


def rendered(family: Family, case: str, train_on: str = "all_assistant_turns") -> tuple[RowTokenizer, Rendered]:
    row_tokenizer = tokeniser_of(family, family.tokenizer(), train_on)
    result = row_tokenizer.renderer.render(Row(CHATS[case], SOURCE))
    assert isinstance(result, Rendered), result
    return row_tokenizer, result


def examples(row_tokenizer: RowTokenizer, row: Rendered) -> list[Example]:
    """Returns each document of a row as tokens."""
    (result,) = row_tokenizer.encoder.encode([row])
    assert isinstance(result, Encoded), result
    return [document for example in result.examples for document in example.documents()]


def drawn(example: Example, tokenizer: Any) -> str:
    """Returns a document with the tokens that are trained in brackets."""
    edges = np.flatnonzero(np.diff(example.is_target.astype(np.int8))) + 1
    parts = [part for part in np.split(np.arange(len(example.tokens)), edges) if len(part)]
    texts = [tokenizer.decode(example.tokens[part].tolist()) for part in parts]
    return "".join(f"⟦{text}⟧" if example.is_target[part[0]] else text for part, text in zip(parts, texts, strict=True))


def spelled(document: Document) -> str:
    """Returns a document with the characters that are trained in brackets."""
    text = document.text
    for first, last in reversed(document.spans):
        text = f"{text[:first]}⟦{text[first:last]}⟧{text[last:]}"
    return text


def documents(expected: Expected) -> list[str]:
    assert not isinstance(expected, Refused), "it is expressed"
    return [expected] if isinstance(expected, str) else list(expected)


def test_every_bundled_template_is_a_family() -> None:
    assert {path.stem for path in FOLDER.glob("*.jinja")} == set(bundled.FAMILIES)


@pytest.mark.parametrize(("name", "case"), EVERY)
def test_a_chat_is_trained_as_it_is_written_down(name: str, case: str) -> None:
    family = FAMILIES[name]
    expected, tokenizer = family.expected(case), family.tokenizer()
    if isinstance(expected, Refused):
        result = tokeniser_of(family, tokenizer).renderer.render(Row(CHATS[case], SOURCE))
        assert isinstance(result, RejectedRow), result
        assert expected.reason in result.reason
        return
    row_tokenizer, row = rendered(family, case)
    assert [spelled(document) for document in row.documents] == documents(expected)
    encoded = examples(row_tokenizer, row)
    assert [drawn(document, tokenizer) for document in encoded] == documents(expected)
    for example, document in zip(encoded, row.documents, strict=True):
        assert example.tokens.tolist() == tokenizer(document.text, add_special_tokens=False)["input_ids"]
    check_supervision(encoded, tokenizer, TokenizeSpec("all_assistant_turns"))


def test_deepseek_writes_calls_of_tools_that_are_defined_elsewhere() -> None:
    family = FAMILIES["deepseek-v3"]
    row_tokenizer = tokeniser_of(family, family.tokenizer())
    row = row_tokenizer.renderer.render(Row(CHATS["tools"].model_copy(update={"tools": None}), SOURCE))
    assert isinstance(row, Rendered), row
    assert [spelled(document) for document in row.documents] == [
        "<｜begin▁of▁sentence｜><｜User｜>Rain?<｜Assistant｜>⟦<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function"
        '<｜tool▁sep｜>weather\n```json\n{"city": "Bonn"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
        "<｜end▁of▁sentence｜>⟧<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>no<｜tool▁output▁end｜>"
        "<｜tool▁outputs▁end｜>⟦No.<｜end▁of▁sentence｜>⟧"
    ]


@pytest.mark.parametrize("name", MANY)
def test_the_final_turn_is_trained_alone(name: str) -> None:
    *_, last = documents(FAMILIES[name].many)
    *_, start, answer = last.split("⟦")
    before = last[: -len(f"{start}⟦{answer}")] + start
    row_tokenizer, row = rendered(FAMILIES[name], "many", "final_assistant_turn")
    expected = [f"{before.replace('⟦', '').replace('⟧', '')}⟦{answer}"]
    assert [spelled(document) for document in row.documents] == expected
    assert [drawn(document, FAMILIES[name].tokenizer()) for document in examples(row_tokenizer, row)] == expected


@pytest.mark.parametrize("name", FAMILIES)
def test_a_chat_is_trained_entirely(name: str) -> None:
    row_tokenizer, row = rendered(FAMILIES[name], "many", "all")
    *_, last = documents(FAMILIES[name].many)
    (example,) = examples(row_tokenizer, row)
    assert row.documents[0].text.startswith(last.replace("⟦", "").replace("⟧", "").rstrip())
    assert example.is_target.all()


@pytest.mark.parametrize("name", FAMILIES)
def test_an_answer_that_is_cut_is_trained_up_to_the_cut(name: str) -> None:
    family, tokenizer = FAMILIES[name], FAMILIES[name].tokenizer()
    before, _, answer = documents(family.single)[0].partition("⟦")
    first, second = (
        tokenizer.decode([token]) for token in tokenizer(answer, add_special_tokens=False)["input_ids"][:2]
    )
    length = len(tokenizer(before, add_special_tokens=False)["input_ids"])
    for room, expected in ((2, f"{before}⟦{first}{second}⟧"), (1, f"{before}⟦{first}⟧"), (0, None)):
        row_tokenizer = tokeniser_of(family, tokenizer, max_length=length + room)
        (result,) = row_tokenizer.make([Row(CHATS["single"], SOURCE)])
        if expected is None:
            assert isinstance(result, RejectedRow)
            assert result.reason == f"every trained token lies beyond model_max_length {length}"
        else:
            assert isinstance(result, Encoded)
            assert drawn(result.examples[0], tokenizer) == expected


@pytest.mark.parametrize(("name", "case"), EXPRESSED)
def test_the_end_of_an_answer_is_trained_though_it_pads(name: str, case: str) -> None:
    tokenizer = FAMILIES[name].tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    row_tokenizer = tokeniser_of(FAMILIES[name], tokenizer)
    row = row_tokenizer.renderer.render(Row(CHATS[case], SOURCE))
    assert isinstance(row, Rendered)
    assert [drawn(document, tokenizer) for document in examples(row_tokenizer, row)] == documents(
        FAMILIES[name].expected(case)
    )


@pytest.mark.parametrize(("name", "case"), EXPRESSED)
def test_before_each_answer_stands_the_prompt_of_inference(name: str, case: str) -> None:
    family, chat = FAMILIES[name], CHATS[case]
    tokenizer = family.tokenizer()
    row_tokenizer = tokeniser_of(family, tokenizer, "final_assistant_turn")
    for turn, message in enumerate(chat.messages):
        if message.role != Role.ASSISTANT:
            continue
        part = chat.model_copy(update={"messages": chat.messages[: turn + 1]})
        row = row_tokenizer.renderer.render(Row(part, SOURCE))
        assert isinstance(row, Rendered), row
        (example,) = examples(row_tokenizer, row)
        before = example.tokens[: int(example.is_target.argmax())].tolist()
        prompt = template_of(family).render(chat.messages[:turn], add_generation_prompt=True, tools=chat.tools)
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        # Where the prompt holds more than the finished chat does, the user is told.
        is_met, remarks = before == ids, row.documents[0].remarks
        assert is_met or (family.opens_thought and ids[: len(before)] == before and "at inference" in remarks[0])
        assert not (is_met and remarks)


def shifted(row: Rendered) -> Iterator[tuple[Rendered, str, int]]:
    """Yields a row with one border of what is trained moved by one character, with the text and the new border."""
    for d, document in enumerate(row.documents):
        for s, span in enumerate(document.spans):
            for border, step in ((0, -1), (0, 1), (1, -1), (1, 1)):
                moved = tuple(at + step * (i == border) for i, at in enumerate(span))
                if 0 <= moved[0] < moved[1] <= len(document.text):
                    spans = (*document.spans[:s], moved, *document.spans[s + 1 :])
                    changed = replace(document, spans=spans)
                    yield (
                        replace(row, documents=(*row.documents[:d], changed, *row.documents[d + 1 :])),
                        document.text,
                        moved[border],
                    )


@pytest.mark.parametrize(("name", "case"), EXPRESSED)
def test_a_border_that_is_off_by_one_is_seen(name: str, case: str) -> None:
    row_tokenizer, row = rendered(FAMILIES[name], case)
    expected, tokenizer = documents(FAMILIES[name].expected(case)), FAMILIES[name].tokenizer()
    tokens = re.compile("|".join(re.escape(str(token)) for token in tokenizer.added_tokens_decoder.values()))
    num_shifts = 0
    for changed, text, border in shifted(row):
        num_shifts += 1
        assert [spelled(document) for document in changed.documents] != expected
        if not any(match.start() < border < match.end() for match in tokens.finditer(text)):
            assert [drawn(document, tokenizer) for document in examples(row_tokenizer, changed)] != expected
    assert num_shifts >= 2
