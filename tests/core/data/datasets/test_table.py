# SPDX-License-Identifier: Apache-2.0
"""Every data set that ships, read from a little file with the columns it has on the Hub."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

import oumi.datasets
from oumi.core.configs import DatasetParams
from oumi.core.datasets import DATASETS, NAMES, dataset_for
from oumi.core.errors import ConfigError
from oumi.core.types.example import RejectedRow, Row
from oumi.datasets.grpo import berry_bench, countdown, gsm8k, letter_count
from oumi.datasets.vision_language import caption, geometry3k, mnist
from tests.shown import shown


@dataclass(frozen=True)
class Case:
    """A row as it is stored, what it stands for, and what is told where a column is missing."""

    row: dict[str, Any]
    expected: Any
    without: str
    message: str = ""
    kwargs: dict[str, Any] = field(default_factory=dict)
    subset: str | None = None
    split: str = "train"


IMAGE_FILE = {"bytes": b"\x89PNG", "path": None}
IMAGE = "[image_binary \\x89PNG]"
HI = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
HI_TEXTS = ["user: Hi", "assistant: Ho"]
HUMAN = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]
MESSAGES = Case({"messages": HI}, HI_TEXTS, "messages", "no known shape: its keys are other")
TURNS = Case({"messages": [{"role": "system", "content": "Be."}, *HI]}, ["system: Be.", *HI_TEXTS], "messages")
ALPACA = Case(
    {"instruction": "Add.", "input": "1, 2", "output": "3"},
    ["user: Add.\n\n### Input:\n1, 2", "assistant: 3"],
    "output",
    "has no column 'output'",
    {"include_system_prompt": False},
)
EXCHANGE = Case({"instruction": "Hi", "output": "Ho"}, HI_TEXTS, "instruction")
IMAGE_QUESTION = ["user: " + IMAGE + "Hi", "assistant: Ho"]
IMAGE_CASE = Case(
    {"messages": [{"role": "user", "content": [{"type": "image_url", "content": "http://a/b.png"},
                                               {"type": "text", "content": "Hi"}]}, HI[1]]},
    ["user: [image_url http://a/b.png]Hi", "assistant: Ho"], "messages", "no known shape",
)  # fmt: skip
CAULDRON = Case(
    {"images": [IMAGE_FILE], "texts": [{"user": "Hi", "assistant": "Ho"}, {"user": "1", "assistant": "2"}]},
    [*IMAGE_QUESTION, "user: 1", "assistant: 2"],
    "texts",
)
PAIR = Case({"prompt": "Hi", "chosen": "Ho", "rejected": "No"}, (HI_TEXTS, ["user: Hi", "assistant: No"]), "chosen")
JUDGED = Case({"prompt": "Hi ", "completion": "Ho", "label": True}, ("Hi |Ho", True), "label", "no column 'label'")
CHATQA = {"document": "D", "messages": [HI[0]], "answers": ["Ho", "Hey"]}
ONLY = "system: Use only what stands between <context> and </context>; say so if the answer is not there."
ABOUT = "user: <context>\nD\n</context>\n\nHi"
COUNTED = {"role": "system", "content": letter_count.INSTRUCTION}
LETTERS = Case(
    {"messages": [{"role": "user", "content": "How many r?"}], "metadata": {"letter_count_integer": 3}},
    ([f"system: {letter_count.INSTRUCTION}", "user: How many r?"], {"letter_count": 3}),
    "metadata",
)
RUBRIC = {"name": "right", "description": "Is right", "weight": 1}
RAR = Case(
    {"question": "Why?", "reference_answer": "So.", "rubric": [{"title": "right", "description": "Is", "weight": 5}]},
    (["user: Why?"], {"rubrics": [{"name": "right", "description": "Is", "weight": 5}],
                      "metadata": {"reference_answer": "So."}}),
    "rubric",
)  # fmt: skip


def documents(column: str = "text") -> Case:
    return Case({column: "Once."}, "Once.", column, f"has no column '{column}'")


def tatqa(instruction: str, subset: str) -> Case:
    return Case(CHATQA, [f"{ONLY} {instruction}", ABOUT, "assistant: Ho"], "answers", subset=subset)


NUMBER = "Answer the following question with a number from context or the math arithmetic."

CASES = {
    "text_sft": MESSAGES,
    "text_sft_jsonl": Case({"instruction": "Hi", "output": "Ho"}, HI_TEXTS, "output", "no known shape"),
    "text": Case({"text": "Once."}, "Once.", "text"),
    "HuggingFaceDataset": Case({"chat": TURNS.row["messages"]}, TURNS.expected, "chat", "has no 'chat'",
                               {"hf_dataset_path": "me/chats", "messages_column": "chat"}),
    "PromptResponseDataset": Case({"q": "Hi", "a": "Ho"}, HI_TEXTS, "q", "has no 'q'",
                                  {"prompt_column": "q", "response_column": "a"}),
    "O1-OPEN/OpenO1-SFT": EXCHANGE,
    "yahma/alpaca-cleaned": ALPACA,
    "tatsu-lab/alpaca": ALPACA,
    "uiuc-convai/CoALM-IT": ALPACA,
    "tatsu-lab/alpaca_eval": Case({"instruction": "Hi", "output": "x"}, ["user: Hi"], "instruction"),
    "CohereForAI/aya_dataset": Case({"inputs": "Hi", "targets": "Ho"}, HI_TEXTS, "targets"),
    "argilla/databricks-dolly-15k-curated-en": Case(
        {"new-instruction": {"value": ["Hi"]}, "new-context": {"value": ["C"]}, "new-response": {"value": ["Ho"]}},
        ["user: Hi\n\nContext: C", "assistant: Ho"], "new-response"),
    "argilla/magpie-ultra-v0.1": Case({"instruction": "Hi", "response": "Ho"}, HI_TEXTS, "response"),
    "Magpie-Align/Llama-3-Magpie-Pro-1M-v0.1": Case({"conversations": HUMAN}, HI_TEXTS, "conversations"),
    "Magpie-Align/Magpie-Pro-300K-Filtered": Case({"conversations": HUMAN}, HI_TEXTS, "conversations"),
    "allenai/tulu-3-sft-mixture": TURNS,
    "HuggingFaceH4/ultrachat_200k": TURNS,
    "allenai/WildChat-1M": Case({"conversation": [{**turn, "toxic": False} for turn in HI]}, HI_TEXTS, "conversation"),
    "nvidia/ChatQA-Training-Data": Case(CHATQA, [ONLY, ABOUT, "assistant: Ho"], "answers"),
    "nvidia/ChatQA-Training-Data/tatqa-arithmetic": tatqa(NUMBER, "tatqa-arithmetic"),
    "nvidia/ChatQA-Training-Data/tatqa-others": tatqa(
        "Answer the following question with a short span, or a full and complete answer.", "tatqa-others"),
    "nvidia/ChatRAG-Bench": Case(
        {"messages": [HI[0]], "ctxs": [{"title": "T", "text": str(i)} for i in range(3)]},
        [ONLY, "user: <context>\nT\n0\n\nT\n1\n</context>\n\nHi"], "ctxs", "has no 'ctxs'",
        {"num_context_docs": 2}, split="test"),
    "allenai/c4": documents(),
    "allenai/dolma": documents(),
    "tiiuae/falcon-refinedweb": documents("content"),
    "HuggingFaceFW/fineweb-edu": documents(),
    "EleutherAI/pile": documents(),
    "togethercomputer/RedPajama-Data-1T": documents(),
    "togethercomputer/RedPajama-Data-V2": documents("raw_content"),
    "gmongaras/SlimPajama-627B_Reupload": documents(),
    "cerebras/SlimPajama-627B": documents(),
    "bigcode/starcoderdata": documents("content"),
    "bigcode/the-stack": documents("content"),
    "roneneldan/TinyStories": documents(),
    "nampdn-ai/tiny-textbooks": documents("textbook"),
    "wikimedia/wikipedia": documents(),
    "Salesforce/wikitext": documents(),
    "PleIAs/YouTube-Commons": documents(),
    "preference_pairs_jsonl": PAIR,
    "text_dpo_jsonl": Case({"prompt": "Hi ", "chosen": "Ho", "rejected": "No"}, ("Hi |Ho", "Hi |No"), "chosen"),
    "mlabonne/orpo-dpo-mix-40k": Case(
        {"prompt": " Hi", "question": "Hi", "chosen": HI, "rejected": [HI[0], {"role": "assistant", "content": "No"}]},
        PAIR.expected, "chosen"),
    "kto_jsonl": JUDGED,
    "trl-lib/kto-mix-14k": Case({"prompt": HI[:1], "completion": HI[1:], "label": False}, (HI_TEXTS, False),
                                "completion"),
    "vision_dpo_jsonl": Case(
        {**PAIR.row, "images": ["a.png"]},
        (["user: [image_path a.png]Hi", "assistant: Ho"], ["user: [image_path a.png]Hi", "assistant: No"]), "rejected"),
    "openbmb/RLAIF-V-Dataset": Case(
        {"question": "Hi", "chosen": "Ho", "rejected": "No", "image": IMAGE_FILE},
        (IMAGE_QUESTION, [IMAGE_QUESTION[0], "assistant: No"]), "question"),
    "vl_sft": IMAGE_CASE,
    "vl_sft_jsonl": IMAGE_CASE,
    "vision_language_jsonl": IMAGE_CASE,
    "hf_vision": Case(
        {"photo": "a.png", "q": "Hi", "a": "Ho", "s": "Be."},
        ["system: Be.", "user: [image_path a.png]Hi", "assistant: Ho"], "photo", "has no 'photo'",
        {"hf_dataset_path": "me/photos", "image_column": "photo", "question_column": "q", "answer_column": "a",
         "system_prompt_column": "s"}),
    "HuggingFaceM4/the_cauldron": CAULDRON,
    "HuggingFaceM4/Docmatix": CAULDRON,
    "HuggingFaceH4/llava-instruct-mix-vsft": Case(
        {"messages": [
            {"role": "user", "content": [{"type": "text", "text": "Hi", "index": None},
                                         {"type": "image", "text": None, "index": 0}]},
            {"role": "assistant", "content": [{"type": "text", "text": "Ho", "index": None}]}],
         "images": [IMAGE_FILE]}, ["user: Hi" + IMAGE, "assistant: Ho"], "messages", "no known shape"),
    "merve/vqav2-small": Case({"image": IMAGE_FILE, "question": "Hi", "multiple_choice_answer": "Ho"}, IMAGE_QUESTION,
                              "multiple_choice_answer"),
    "lmms-lab/multimodal-open-r1-8k-verified": Case({"image": IMAGE_FILE, "problem": "Hi", "solution": "Ho"},
                                                    IMAGE_QUESTION, "solution"),
    "hiyouga/geometry3k": Case(
        {"images": [IMAGE_FILE], "problem": "<image>Find x.", "answer": "3"},
        [f"user: {IMAGE}Find x. {geometry3k.INSTRUCTION}", "assistant: 3"], "images"),
    "coco_captions": Case({"image": IMAGE_FILE, "sentences": {"raw": "A cat."}},
                          [f"user: {IMAGE}{caption.REQUEST}", "assistant: A cat."], "sentences"),
    "nlphuji/flickr30k": Case({"image": IMAGE_FILE, "caption": ["A cat.", "Cats."]},
                              [f"user: {IMAGE}{caption.REQUEST}", "assistant: A cat."], "caption"),
    "allenai/pixmo-ask-model-anything": Case(
        {"image_url": "http://a/b.png", "question": "Hi", "answer": "Ho"}, IMAGE_CASE.expected, "answer"),
    "allenai/pixmo-cap": Case({"image_url": "http://a/b.png", "caption": "A cat."},
                              [f"user: [image_url http://a/b.png]{caption.REQUEST}", "assistant: A cat."], "caption"),
    "allenai/pixmo-cap-qa": Case(
        {"image_url": "http://a/b.png", "question": "[USER] Hi [ASSISTANT] Ho [USER] And? [ASSISTANT]",
         "answer": " No."}, [*IMAGE_CASE.expected, "user: And?", "assistant: No."], "answer"),
    "mnist_sft": Case({"image": IMAGE_FILE, "label": 7}, [f"user: {IMAGE}{mnist.QUESTION}", "assistant: 7"], "label"),
    "prompts_jsonl": Case({"prompt": "Hi ", "target": 1}, (["user: Hi"], {"target": 1}), "prompt"),
    "trl-lib/tldr": Case({"prompt": " Hi", "completion": "Ho "}, (["user: Hi"], {"completion": "Ho"}), "prompt"),
    "openai/gsm8k": Case(
        {"question": "1000 + 1?", "answer": "It is\n#### 1,001"},
        ([f"user: 1000 + 1? {gsm8k.INSTRUCTION}"],
         {"data_source": "openai/gsm8k", "ability": "math", "reward_model": {"style": "rule", "ground_truth": "1001"},
          "extra_info": {"split": "train", "question": "1000 + 1?", "answer": "It is\n#### 1,001"}}), "answer"),
    "d1shs0ap/countdown": Case(
        {"nums": [1, 2], "target": 3},
        (["user: " + countdown.INSTRUCTION.format(numbers="1, 2", target=3)],
         {"data_source": "countdown", "ability": "math", "extra_info": {"split": "train"},
          "reward_model": {"style": "rule", "ground_truth": {"target": 3, "numbers": [1, 2]}}}), "target"),
    "oumi-ai/oumi-letter-count": LETTERS,
    "oumi-ai/oumi-letter-count-clean": LETTERS,
    "oumi-ai/berrybench-v0.1.1": Case(
        {"messages": [{"role": "user", "content": "Count."}], "metadata": {"word": "see"}},
        ([f"system: {berry_bench.INSTRUCTION}", "user: Count."], {"metadata": {"word": "see"}}), "metadata"),
    "rar-medicine": RAR,
    "rar-science": RAR,
    "oumi-rlvr-rubric": Case(
        {"prompt": "Why?", "rubrics": [RUBRIC], "system_prompt": "Be."},
        (["system: Be.", "user: Why?"], {"rubrics": [RUBRIC], "system_prompt": "Be."}), "rubrics"),
}  # fmt: skip
GENERATED = {
    "oumi/quickstart",
    "oumi/quickstart_preferences",
    "oumi/quickstart_texts",
    "debug_sft",
    "debug_pretraining",
    "debug_dpo",
    "debug_kto",
    "debug_classfication",
}
"""Read from no file; see `test_made.py`."""


def test_every_name_is_tested() -> None:
    assert CASES.keys() | GENERATED == NAMES.keys()


def test_every_class_is_where_its_name_says() -> None:
    assert all(isinstance(DATASETS.get(name), type) for name in NAMES)
    assert all(isinstance(getattr(oumi.datasets, name), type) for name in oumi.datasets._CLASSES)


@pytest.mark.parametrize("name", CASES)
def test_a_row_stands_for_what_it_says(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    (row,) = read(tmp_path, name, case, case.row)
    assert isinstance(row, Row), row
    assert shown(row.value) == case.expected


@pytest.mark.parametrize("name", CASES)
def test_a_row_without_a_column_is_reported(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    rest = {key: value for key, value in case.row.items() if key != case.without} or {"other": 1}
    (row,) = read(tmp_path, name, case, rest)
    assert isinstance(row, RejectedRow), row
    assert (case.message or f"'{case.without}'") in row.reason
    assert row.source.path.startswith(str(tmp_path))


@pytest.mark.parametrize("name", [name for name in CASES if "jsonl" in name or "rubric" in name])
def test_a_local_data_set_takes_a_path_or_rows_and_not_both(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    (row,) = dataset_for(DatasetParams(dataset_name=name, dataset_kwargs={"data": [case.row]})).rows()
    assert isinstance(row, Row), row
    assert shown(row.value) == case.expected
    with pytest.raises(ConfigError, match=f"data set '{name}': needs dataset_path"):
        dataset_for(DatasetParams(dataset_name=name))
    with pytest.raises(ConfigError, match="takes 'data' or dataset_path, and got both"):
        read(tmp_path, name, Case(case.row, None, "", kwargs={"data": [case.row]}), case.row)


def read(folder: Path, name: str, case: Case, row: dict[str, Any]) -> list[Row | RejectedRow]:
    """Returns the rows of a file with one row: JSON where it can say it, else Parquet."""
    try:
        path = folder / "rows.jsonl"
        path.write_text(json.dumps(row))
    except TypeError:
        path = folder / "rows.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), path)
    of_subset = f"/{case.subset}" if case.subset else ""
    params = DatasetParams(
        dataset_name=name.removesuffix(of_subset),
        subset=case.subset,
        split=case.split,
        dataset_path=str(path),
        dataset_kwargs=case.kwargs,
    )
    return list(dataset_for(params).rows())
