# SPDX-License-Identifier: Apache-2.0
"""What code of one's own asks of a data set: the snippets that are documented."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oumi.core.configs import DatasetParams
from oumi.core.datasets import (
    BaseDpoDataset,
    BaseExperimentalGrpoDataset,
    BaseExperimentalKtoDataset,
    BaseMapDataset,
    BaseRubricDataset,
    BaseSftDataset,
    dataset_for,
)
from oumi.core.errors import ConfigError, DataError
from oumi.core.registry import REGISTRY, RegistryType, register, register_dataset
from oumi.core.types.conversation import Conversation, Message, Role
from oumi.core.types.example import RejectedRow
from oumi.datasets import (
    AlpacaDataset,
    LetterCountGrpoDataset,
    TextSftJsonLinesDataset,
    VisionDpoJsonlinesDataset,
    VLJsonlinesDataset,
)
from tests.shown import shown
from tests.tiny import byte_tokenizer

ROWS = [{"instruction": f"Add {i}.", "input": "", "output": str(i)} for i in range(3)]
PROMPT = "<|im_start|>user\nAdd 1.<|im_end|>\n<|im_start|>assistant\n"
ANSWER = "1<|im_end|>"


@pytest.fixture
def path(tmp_path: Path) -> str:
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS))
    return str(tmp_path / "rows.jsonl")


def alpaca(path: str, **named: Any) -> AlpacaDataset:
    return AlpacaDataset(tokenizer=byte_tokenizer(), dataset_path=path, include_system_prompt=False, **named)


def test_a_chat_a_prompt_a_raw_row_and_their_number_are_found(path: str) -> None:
    chats = alpaca(path)
    assert len(chats) == 3
    assert chats.raw(1) == ROWS[1]
    assert shown(chats.conversation(-1)) == ["user: Add 2.", "assistant: 2"]
    assert [shown(chat)[1] for chat in chats.conversations()] == ["assistant: 0", "assistant: 1", "assistant: 2"]
    assert chats.prompt(1) == f"{PROMPT}{ANSWER}\n"
    assert alpaca(path, task="generation").prompt(1) == PROMPT
    with pytest.raises(IndexError):
        chats[3]


@pytest.mark.parametrize(
    ("named", "text", "labels"),
    [
        ({}, f"{PROMPT}{ANSWER}\n", None),
        ({"task": "generation"}, PROMPT, None),
        ({"assistant_only": True}, f"{PROMPT}{ANSWER}\n", ANSWER),
        (
            {"assistant_only": True, "response_template": "x", "instruction_template": "y"},
            f"{PROMPT}{ANSWER}\n",
            ANSWER,
        ),
    ],
)
def test_an_element_is_token_ids_and_labels_are_the_assistants(
    path: str, named: dict[str, Any], text: str, labels: str | None
) -> None:
    element = alpaca(path, **named)[1]
    assert byte_tokenizer().decode(element["input_ids"]) == text
    assert element["attention_mask"] == [1] * len(element["input_ids"])
    if labels is None:
        assert "labels" not in element
    else:
        assert byte_tokenizer().decode([label for label in element["labels"] if label != -100]) == labels
    tensors = alpaca(path, return_tensors=True, **named)[1]
    assert {name: label.tolist() for name, label in tensors.items()} == element


def test_an_element_is_no_longer_than_the_model_takes(path: str) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.model_max_length = 10
    assert len(AlpacaDataset(tokenizer=tokenizer, dataset_path=path)[0]["input_ids"]) == 10


@pytest.mark.parametrize("as_dict", [False, True])
def test_an_element_is_a_chat_where_that_is_requested(path: str, as_dict: bool) -> None:
    named = {"return_conversations": True, "return_conversations_format": "dict" if as_dict else "json"}
    element = AlpacaDataset(dataset_path=path, include_system_prompt=False, **named)[2]
    chat = Conversation.from_dict(element) if as_dict else Conversation.from_json(element["conversation_json"])
    assert shown(chat) == ["user: Add 2.", "assistant: 2"]


def test_elements_are_a_table_of_the_library_datasets(path: str) -> None:
    chats = alpaca(path, assistant_only=True)
    elements = list(chats.as_generator())
    assert chats.to_hf().to_list() == elements
    assert list(chats.to_hf(return_iterable=True)) == elements


def test_a_chat_or_a_text_that_is_no_row_is_tokenised_alike(path: str) -> None:
    chats = alpaca(path)
    sample = {"messages": chats.conversation(1).to_dict()["messages"]}
    assert chats.tokenize(sample) == chats.tokenize(chats.conversation(1)) == chats[1]
    assert chats.tokenize(sample, tokenize=False) == {"text": f"{PROMPT}{ANSWER}\n"}
    assert byte_tokenizer().decode(chats.tokenize({"text": "Hi"})["input_ids"]) == "Hi<|im_end|>"


def test_what_cannot_be_an_element_is_reported_with_its_place(tmp_path: Path, path: str) -> None:
    with pytest.raises(ConfigError, match="pass tokenizer="):
        AlpacaDataset(dataset_path=path)[0]
    with pytest.raises(ConfigError, match="task: unknown 'sfd', did you mean 'sft'"):
        alpaca(path, task="sfd")
    (tmp_path / "bad.jsonl").write_text('{"instruction": "Add."}\n{"instruction": ')
    bad = alpaca(str(tmp_path / "bad.jsonl"))
    for index, message in enumerate(["bad.jsonl:1: has no column 'output'", "bad.jsonl:2: not valid JSON"]):
        with pytest.raises(DataError, match=message):
            bad[index]
    with_image = VLJsonlinesDataset(data=[{"messages": ROWS}], tokenizer=byte_tokenizer())
    with pytest.raises(DataError, match="has no 'role'"):
        with_image[0]


def test_a_local_file_of_any_shape_has_chats(path: str) -> None:
    assert shown(TextSftJsonLinesDataset(dataset_path=path).conversation(0)) == ["user: Add 0.", "assistant: 0"]
    texts = TextSftJsonLinesDataset(data=[{"text": "Once."}], tokenizer=byte_tokenizer())
    assert texts.prompt(0) == "Once."
    with pytest.raises(ConfigError, match="row 0 is a Text, not a chat"):
        texts.conversation(0)


def test_pairs_are_prompt_and_both_answers_as_they_are_seen_in_the_chat() -> None:
    rows = [{"prompt": "Hi", "chosen": [{"role": "assistant", "content": "Ho"}], "rejected": "No"}]
    element = BaseDpoDataset(data=rows, tokenizer=byte_tokenizer())[0]
    assert {name: byte_tokenizer().decode(ids) for name, ids in element.items()} == {
        "prompt_ids": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
        "chosen_ids": "Ho<|im_end|>",
        "rejected_ids": "No<|im_end|>",
    }
    tensors = BaseDpoDataset(data=rows, tokenizer=byte_tokenizer(), return_tensors=True)[0]
    assert tensors["chosen_ids"].tolist() == element["chosen_ids"]


def test_pairs_may_come_from_a_table_of_pandas() -> None:
    import pandas

    answers = [np.array([{"role": "assistant", "content": text}], dtype=object) for text in ("Ho", "No")]
    table = pandas.DataFrame({"prompt": ["Hi"], "chosen": [answers[0]], "rejected": [answers[1]]})
    (row,) = BaseDpoDataset(data=table).rows()
    assert shown(row.value) == (["user: Hi", "assistant: Ho"], ["user: Hi", "assistant: No"])


@pytest.mark.parametrize("completion", ["Ho", [{"role": "assistant", "content": "Ho"}], np.array(["turn"])])
def test_judged_completions_are_texts_or_turns(completion: Any) -> None:
    if isinstance(completion, np.ndarray):  # as pandas reads lists of Parquet files
        completion = np.array([{"role": "assistant", "content": "Ho"}], dtype=object)
    row = {"prompt": "Hi", "completion": completion, "label": np.bool_(True)}
    element = BaseExperimentalKtoDataset(data=[row])[0]
    if isinstance(completion, str):
        assert element == row
    else:
        turns = [[{"role": role, "content": text}] for role, text in (("user", "Hi"), ("assistant", "Ho"))]
        assert [element["prompt"], element["completion"], element["label"]] == [*turns, True]


def test_prompts_are_rows_with_what_a_reward_needs() -> None:
    assert BaseExperimentalGrpoDataset(data=[{"prompt": " a ", "completion": "b ", "x": 1}])[0] == {
        "prompt": "a",
        "completion": "b",
        "x": 1,
    }
    letters = LetterCountGrpoDataset(data=[{"prompt": "How many r?", "letter_count": 3}])
    assert letters[0]["letter_count"] == 3
    chat = letters.conversation(0)
    assert [chat.messages[-1].content, chat.metadata] == ["How many r?", {"letter_count": 3}]
    assert list(letters.conversations()) == [chat]


@pytest.mark.parametrize("lacking", ["name", "description", "weight"])
def test_a_rubric_that_lacks_something_is_reported(lacking: str) -> None:
    rubric = {key: 1 for key in ("name", "description", "weight") if key != lacking}
    (row,) = BaseRubricDataset(data=[{"prompt": "Why?", "rubrics": [rubric]}]).rows()
    assert isinstance(row, RejectedRow)
    assert row.reason == "rubric 0 must have a name, a description and a weight"


def test_ones_own_code_may_change_the_rows_that_the_class_loads(path: str) -> None:
    class Last(AlpacaDataset):
        def _load_data(self) -> Any:
            return super()._load_data()[-1:]

    assert shown(Last(dataset_path=path, include_system_prompt=False).conversation(0)) == [
        "user: Add 2.",
        "assistant: 2",
    ]


class NpzDataset(BaseMapDataset):
    """Images and classes of a file of numpy, as the documentation reads them."""

    def __init__(self, *, npz_split_col: str = "labels", **named: Any) -> None:
        super().__init__(**named)
        self.npz_split_col = npz_split_col
        self._data = self._load_data()

    def _load_data(self) -> Any:
        import pandas

        assert self.dataset_path is not None
        arrays = np.load(self.dataset_path)
        return pandas.DataFrame({"images": list(arrays["images"]), "labels": arrays[self.npz_split_col]})

    def transform(self, sample: Any) -> dict[str, Any]:
        return {"images": sample["images"], "labels": int(sample["labels"])}


def test_rows_of_any_kind_are_loaded_by_custom_code(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.arange(8).reshape(2, 4), labels=np.array([1, 0]))
    register_dataset("tests/npz")(NpzDataset)
    params = DatasetParams(dataset_name="tests/npz", dataset_path=str(tmp_path / "a.npz"))
    vectors = dataset_for(params)
    assert len(vectors) == vectors.count() == 2
    assert vectors[1]["images"].tolist() == [4, 5, 6, 7]
    assert vectors.to_hf().to_list() == [{"images": [0, 1, 2, 3], "labels": 1}, {"images": [4, 5, 6, 7], "labels": 0}]
    assert vectors.content() is None
    assert all("no known shape: its keys are images, labels" in str(row) for row in vectors.rows())


def test_custom_chats_are_registered_by_name_and_read_under_their_id() -> None:
    @register_dataset("tests/greetings")
    class Greetings(BaseSftDataset):
        default_dataset = "me/greetings-on-the-hub"

        def transform_conversation(self, example: Any) -> Conversation:
            return Conversation(messages=[Message(role=Role.USER, content=example["q"])])

    @register("tests/greetings/loud", RegistryType.DATASET)
    class Loud(Greetings): ...

    dataset = dataset_for(DatasetParams(dataset_name="tests/greetings", dataset_kwargs={"data": [{"q": "Hi"}]}))
    assert (type(dataset), dataset.dataset_name) == (Greetings, "me/greetings-on-the-hub")
    assert isinstance(dataset_for(DatasetParams(dataset_name="Tests/Greetings", subset="loud")), Loud)
    assert REGISTRY.get_dataset("tests/greetings") is REGISTRY.get_dataset("tests/greetings", "quiet") is Greetings
    assert REGISTRY.get_dataset("tests/greetings", "loud") is Loud
    assert REGISTRY.get_dataset("tatsu-lab/alpaca") is AlpacaDataset
    assert REGISTRY.get_dataset("no/such") is None
    assert REGISTRY.contains("tests/greetings", RegistryType.DATASET)
    assert REGISTRY.get_all(RegistryType.DATASET)["tests/greetings"] is Greetings
    with pytest.raises(ValueError, match="is registered already"):
        REGISTRY.register("tests/greetings", RegistryType.DATASET, Greetings)


TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_processor() -> Any:
    """Returns a processor that makes four tokens of an image."""
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    size = {"height": 8, "width": 8}
    images = CLIPImageProcessorPil(size=size, crop_size=size)
    return LlavaProcessor(
        images, tokenizer, patch_size=4, vision_feature_select_strategy="full", chat_template=TEMPLATE
    )


@pytest.mark.parametrize(
    ("named", "text", "labels"),
    [
        ({}, "user\n<image><image><image><image>Hi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>\n", None),
        ({"assistant_only": True}, None, "Ho<|im_end|>"),
        ({"task": "generation"}, "user\n<image><image><image><image>Hi<|im_end|>\n<|im_start|>assistant\n", None),
    ],
)
@pytest.mark.parametrize("is_saved", [False, True])
def test_an_element_with_images_is_what_a_processor_makes_of_it(
    tmp_path: Path, named: dict[str, Any], text: str | None, labels: str | None, is_saved: bool
) -> None:
    from PIL import Image

    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    processor = tiny_processor()
    if is_saved:
        processor.save_pretrained(tmp_path / "processor")
    which = {"processor_name": str(tmp_path / "processor")} if is_saved else {"processor": processor}
    turns = [{"role": "user", "content": "<image>Hi"}, {"role": "assistant", "content": "Ho"}]
    row = {"messages": turns, "images": [str(tmp_path / "a.png")]}
    element = VLJsonlinesDataset(data=[row], return_tensors=True, **which, **named)[0]
    ids, decode = element["input_ids"], processor.tokenizer.decode
    assert element["pixel_values"].shape == (1, 3, 8, 8)
    if text is not None:
        assert decode(ids) == f"<|im_start|>{text}"
    trained = ids[element["labels"] != -100]
    assert decode(trained) == (labels or decode(ids).replace("<image>", ""))
    lists = VLJsonlinesDataset(data=[row], **which, **named)[0]
    assert lists["labels"] == element["labels"].tolist()
    with pytest.raises(ConfigError, match="made by a processor: pass processor="):
        VLJsonlinesDataset(data=[row])[0]


def test_pairs_with_images_have_them_beside_their_tokens(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (4, 8)).save(tmp_path / "a.png")
    row = {"prompt": "<image>Hi", "images": [str(tmp_path / "a.png")], "chosen": "Ho", "rejected": "No"}
    processor = tiny_processor()
    for as_tensors in (False, True):
        pairs = VisionDpoJsonlinesDataset(data=[row], processor=processor, max_size=2, return_tensors=as_tensors)
        element = pairs[0]
        assert element.pop("pixel_values").shape == (1, 3, 8, 8)
        assert {name: processor.tokenizer.decode(ids) for name, ids in element.items()} == {
            "prompt_ids": "<|im_start|>user\n<image><image><image><image>Hi<|im_end|>\n<|im_start|>assistant\n",
            "chosen_ids": "Ho<|im_end|>",
            "rejected_ids": "No<|im_end|>",
        }
    with pytest.raises(ValueError, match="made by a processor"):
        VisionDpoJsonlinesDataset(data=[row])[0]
