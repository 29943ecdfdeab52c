# SPDX-License-Identifier: Apache-2.0
"""Arguments of the data sets that ship, and what they do to a row."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from oumi.core.configs import DatasetParams
from oumi.core.datasets import dataset_for
from oumi.core.errors import ConfigError
from oumi.core.inspect import gather_facts
from oumi.core.plan.plan import make_plan
from oumi.core.types.example import RejectedRow, Row
from oumi.datasets.vision_language import geometry3k
from tests.core.data.datasets.test_table import CASES, HI, HI_TEXTS, ONLY
from tests.hub_server import HubServer
from tests.runs import tiny_config
from tests.shown import shown

TOOL = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": None, "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{}"}}]},
    {"role": "tool", "content": "1", "tool_call_id": "a"},
    {"role": "assistant", "content": "Ho"},
]
DOLLY = {"original-instruction": "Hi", "original-context": "", "original-response": "Ho"}
TAGGED = ["user: <context>\nD\n</context>\n\nHi", "assistant: Ho"]
CHATQA = CASES["nvidia/ChatQA-Training-Data"].row
NULL = [{"role": "user", "content": None}, HI[1]]
QUESTION = {"image_column": "p", "question_column": "q"}


def dataset(name: str, *rows: Any, subset: str | None = None, split: str = "train", **kwargs: Any) -> Any:
    kwargs = {**kwargs, **({"data": list(rows)} if rows else {})}
    return dataset_for(DatasetParams(dataset_name=name, subset=subset, split=split, dataset_kwargs=kwargs))


def shown_row(*args: Any, **named: Any) -> Any:
    (row,) = dataset(*args, **named).rows()
    return row.reason if isinstance(row, RejectedRow) else shown(row.value)


def test_a_column_of_turns_may_hold_any_role_and_nothing() -> None:
    assert shown_row("HuggingFaceDataset", {"messages": TOOL}) == [
        "user: Hi", "assistant: ", "tool: 1", "assistant: Ho",
    ]  # fmt: skip
    assert shown_row("HuggingFaceDataset", {"messages": NULL}) == ["user: ", "assistant: Ho"]
    assert shown_row("HuggingFaceDataset", {"messages": HI[:1]}).startswith("no turn of the assistant")
    asks = {"exclude_final_assistant_message": True}
    assert shown_row("HuggingFaceDataset", {"messages": HI}, **asks) == HI_TEXTS[:1]
    assert shown_row("HuggingFaceDataset", {"messages": HI[:1]}, **asks) == HI_TEXTS[:1]


@pytest.mark.parametrize("answer", [None, ""])
def test_a_question_may_have_no_answer(answer: str | None) -> None:
    assert shown_row("PromptResponseDataset", {"instruction": "Hi", "output": answer}) == ["user: Hi"]


def test_the_original_columns_of_dolly_are_read_where_requested() -> None:
    assert shown_row("argilla/databricks-dolly-15k-curated-en", DOLLY, use_new_fields=False) == HI_TEXTS


@pytest.mark.parametrize(
    ("subset", "system"),
    [
        (None, []),
        ("sft", []),
        ("synthetic_convqa", [f"{ONLY} Please give a full and complete answer for the question."]),
        *[
            (subset, [f"{ONLY} Answer the following question with a short span."])
            for subset in ("drop", "narrativeqa", "quoref", "ropes", "squad1.1", "squad2.0", "newsqa")
        ],
    ],
)
def test_each_part_of_chatqa_says_how_to_answer(subset: str | None, system: list[str]) -> None:
    assert shown_row("nvidia/ChatQA-Training-Data", CHATQA, subset=subset) == [*(system or [ONLY]), *TAGGED]


def test_chatqa_without_a_document_has_no_context_and_another_part_is_refused() -> None:
    assert shown_row("nvidia/ChatQA-Training-Data", {**CHATQA, "document": ""}) == HI_TEXTS
    led = [{"role": "system", "content": "Be."}, HI[0]]
    assert shown_row("nvidia/ChatQA-Training-Data", {**CHATQA, "messages": led}) == [
        f"system: Be. {ONLY.removeprefix('system: ')}",
        *TAGGED,
    ]
    assert shown_row("nvidia/ChatQA-Training-Data", {**CHATQA, "answers": []}).startswith("'answers' must hold a text")
    with pytest.raises(ConfigError, match="unknown subset 'squad', did you mean 'squad"):
        dataset("nvidia/ChatQA-Training-Data", CHATQA, subset="squad")
    with pytest.raises(ConfigError, match="got split 'train'; there is only 'test'"):
        dataset("nvidia/ChatRAG-Bench", {})


def test_geometry_asks_for_reasoning_as_the_system_where_configured() -> None:
    row = {"images": ["a.png"], "problem": "<image>Find x.", "answer": "3"}
    instructed = shown_row("hiyouga/geometry3k", row, add_system_instruction=True)
    assert instructed == [f"system: {geometry3k.INSTRUCTION}", "user: [image_path a.png]Find x.", "assistant: 3"]
    assert shown_row("hiyouga/geometry3k", {**row, "images": []}) == "has 0 images, expected 1"


def image() -> Any:
    return Image.new("RGB", (1, 1))


def png() -> bytes:
    image().save(buffer := io.BytesIO(), format="PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (image(), "image_binary"),
        (png(), "image_binary"),
        ({"bytes": png(), "path": "a.png"}, "image_binary"),
        ({"bytes": None, "path": "a.png"}, "image_path"),
        ("a.png", "image_path"),
        ("https://a/b.png", "image_url"),
        (["a.png", "b.png"], "image_path"),
    ],
)
def test_a_image_may_be_anything_that_holds_one(value: Any, kind: str) -> None:
    (row,) = dataset("hf_vision", {"p": value, "q": "Hi"}, **QUESTION).rows()
    assert isinstance(row, Row), row
    items = row.value.messages[0].image_content_items
    assert {item.type for item in items} == {kind}
    assert len(items) == (len(value) if isinstance(value, list) else 1)
    if kind == "image_binary":
        assert items[0].binary == png()


def test_what_the_system_says_is_the_same_in_each_row_or_a_column() -> None:
    row = {"p": "a.png", "q": "Hi", "s": "Be."}
    assert shown_row("hf_vision", row, **QUESTION, system_prompt="Do.")[0] == "system: Do."
    assert shown_row("hf_vision", row, **QUESTION, system_prompt_column="s")[0] == "system: Be."
    with pytest.raises(ConfigError, match="exclude each other"):
        dataset("hf_vision", row, **QUESTION, system_prompt="Do.", system_prompt_column="s")


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("HuggingFaceDataset", {}, "hf_dataset_path: required"),
        ("hf_vision", {"image_column": "p", "question_column": "q"}, "hf_dataset_path: required"),
        ("hf_vision", {"hf_dataset_path": "a/b", "question_column": "q"}, "image_column: required"),
        ("hf_vision", {"hf_dataset_path": "a/b", "image_column": "q"}, "question_column: required"),
        ("vl_sft", {"data": [{}], "return_conversation": True}, "did you mean 'return_conversations'"),
        ("vl_sft", {"data": [{}], "tokenizer": "x"}, "dataset_kwargs.tokenizer: unknown"),
        ("vl_sft", {"data": [{}], "limit": 0}, "limit: got 0, must be 1 or more"),
    ],
)
def test_arguments_that_are_wrong_are_reported(name: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataset(name, **kwargs)


def test_only_the_first_rows_and_images_are_taken_where_configured() -> None:
    rows = [{"messages": HI, "images": ["a.png", "b.png", "c.png"]} for _ in range(3)]
    few = dataset("vl_sft", *rows, limit=2, max_images=1)
    assert [shown(row.value)[0] for row in few.rows()] == ["user: [image_path a.png]Hi"] * 2
    assert len(few) == few.count() == len(few.indexed()) == 2
    assert few.content() != dataset("vl_sft", *rows, max_images=1).content()
    for max_images, kept in ((0, 0), (-1, 3), (None, 3)):
        (row, *_) = dataset("vl_sft", *rows, max_images=max_images).rows()
        assert len(row.value.messages[0].image_content_items) == kept


def test_what_a_run_does_not_read_is_reported_in_the_plan(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    config.data.train.datasets[0].dataset_kwargs = {"return_tensors": True, "format": "messages"}
    config.data.validation.datasets = [DatasetParams(dataset_name="vl_sft", dataset_kwargs={"processor_name": "x"})]
    notes = [note for note in make_plan(config, gather_facts(config)).notes if "that your own code reads" in note]
    assert notes == [
        f"not read: {key}: it only changes the elements that your own code reads"
        for key in (
            "data.train.datasets[0].dataset_kwargs.return_tensors",
            "data.validation.datasets[0].dataset_kwargs.processor_name",
        )
    ]


def test_a_data_set_that_a_script_made_is_reported_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("oumi"), "propagate", True)  # the console of another test ends it
    with caplog.at_level(logging.WARNING, logger="oumi"):
        for _ in range(2):
            dataset("EleutherAI/pile")
    messages = {id(record): record.message for record in caplog.records}  # another test may have its handler here, too
    assert [message.partition(":")[0] for message in messages.values()] == ["EleutherAI/pile"]


@pytest.mark.parametrize(
    ("name", "kwargs", "id_on_hub"),
    [
        ("cerebras/SlimPajama-627B", {}, "gmongaras/SlimPajama-627B_Reupload"),
        ("YAHMA/alpaca-cleaned", {}, "yahma/alpaca-cleaned"),
        ("rar-science", {}, "anisha2102/RaR-Science"),
        ("mnist_sft", {}, "ylecun/mnist"),
        ("HuggingFaceDataset", {"hf_dataset_path": "me/chats"}, "me/chats"),
        ("PromptResponseDataset", {}, "O1-OPEN/OpenO1-SFT"),
        ("tatsu-lab/alpaca", {"dataset_name_override": "me/alpaca"}, "me/alpaca"),
        ("not/registered", {}, "not/registered"),
    ],
)
def test_a_name_stands_for_an_id_on_the_hub(name: str, kwargs: dict[str, Any], id_on_hub: str) -> None:
    assert dataset(name, **kwargs).dataset_name == id_on_hub


READ_HALF = """
from oumi.core.configs import DatasetParams
from oumi.core.datasets import dataset_for

params = DatasetParams(dataset_name="nvidia/ChatQA-Training-Data", subset="tatqa-others")
print([row.value.messages[-1].content for row in dataset_for(params).rows()])
"""


def test_half_of_a_subset_is_a_file_of_its_own_on_the_hub(tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "datasets" / "nvidia" / "ChatQA-Training-Data" / "tatqa"
    folder.mkdir(parents=True)
    for half in ("arithmetic", "others"):
        answer = f'"{half}"'
        (folder / f"train_{half}.json").write_text(
            f'[{{"document": "D", "messages": [{{"role": "user", "content": "Q"}}], "answers": [{answer}]}}]'
        )
    with HubServer(tmp_path / "hub") as hub:
        result = subprocess.run(
            [sys.executable, "-c", READ_HALF],
            env={**os.environ, **hub.environment(tmp_path / "home"), "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
    assert result.stdout == "['others']\n", result.stderr
    with pytest.raises(ConfigError, match="has only the split 'train'"):
        list(dataset("nvidia/ChatQA-Training-Data", subset="tatqa-others", split="test").rows())
