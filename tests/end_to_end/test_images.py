# SPDX-License-Identifier: Apache-2.0
"""Chats with images, from files to a trained model."""

from __future__ import annotations

import base64
import contextlib
import http.server
import io
import json
import threading
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, List, Value
from transformers import AutoModelForImageTextToText, AutoTokenizer

from oumi.core.configs import TrainingConfig
from oumi.core.data.checks.supervision import draw
from oumi.core.data.tokenize.images import BadImage, load_image
from oumi.core.data.tokenize.processor import load_processor
from oumi.core.data.training_data import load_training_data
from oumi.core.errors import ConfigError, DataError
from oumi.core.inspect import gather_facts
from oumi.core.plan.plan import make_plan
from oumi.core.train import train
from oumi.core.types.conversation import ContentItem, Type
from oumi.core.types.example import Example
from tests.runs import losses, tiny_config
from tests.tiny_vision import SAVERS, image

NUM_ROWS = 12


def image_bytes(seed: int, **size: int) -> bytes:
    buffer = io.BytesIO()
    image(seed, **size).save(buffer, format="PNG")
    return buffer.getvalue()


def write_rows(folder: Path) -> Path:
    """Writes chats with none, one or two images each, by path, bytes and data URL, and returns the file."""
    rows = []
    for i in range(NUM_ROWS):
        (folder / f"{i}.png").write_bytes(image_bytes(i, width=20 + 4 * i, height=32))
        encoded = base64.b64encode(image_bytes(100 + i)).decode()
        parts: list[dict[str, Any]] = [{"type": "image_path", "content": f"{i}.png"}]
        if i % 3 == 1:
            parts.append({"type": "image_binary", "binary": encoded})
        if i % 3 == 2:
            parts = [{"type": "image_url", "content": f"data:image/png;base64,{encoded}"}]
        if i % 6 == 5:
            parts = []
        messages = [
            {"role": "user", "content": [*parts, {"type": "text", "content": f"What is {i}?"}]},
            {"role": "assistant", "content": f"It is {i}." + " Yes!" * (i % 3)},
        ]
        rows.append(json.dumps({"messages": messages}))
    path = folder / "rows.jsonl"
    path.write_text("\n".join(rows))
    return path


def config_of(folder: Path, kind: str, **training: Any) -> TrainingConfig:
    model = folder / "model"
    if not model.exists():
        SAVERS[kind](model)
    config = tiny_config(folder, **training)
    config.data.train.datasets[0].dataset_name = "vl_sft"
    config.data.train.datasets[0].dataset_path = str(write_rows(folder))
    return config


def examples(config: TrainingConfig) -> tuple[list[Example], Any]:
    plan = make_plan(config, gather_facts(config))
    Path(config.training.output_dir).mkdir(exist_ok=True)
    rows = load_training_data(plan, datetime.now())
    return [rows.train[i] for i in range(len(rows.train))], rows.preprocessor  # type: ignore[union-attr,index]


@pytest.mark.sample(1)
@pytest.mark.parametrize("kind", SAVERS)
def test_a_run_on_images_resumes_bitwise_and_saves_a_model_with_its_processor(tmp_path: Path, kind: str) -> None:
    shape = {"num_train_epochs": 3, "save_steps": 4}
    train(config_of(tmp_path, kind, **shape, output_dir=str(tmp_path / "whole")))
    all_losses = losses(tmp_path / "whole")
    assert all_losses[-1] < all_losses[0]
    checkpoint = str(tmp_path / "whole" / "checkpoint-4")
    train(config_of(tmp_path, kind, **shape, output_dir=str(tmp_path / "again"), resume_from_checkpoint=checkpoint))
    assert losses(tmp_path / "again") == all_losses[4:]
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "model.safetensors"
    ).read_bytes()
    config = config_of(tmp_path, kind, output_dir=str(tmp_path / "third"))
    config.model.model_name = str(tmp_path / "whole")
    plan = make_plan(config, gather_facts(config))
    processor = load_processor(plan.model, AutoTokenizer.from_pretrained(tmp_path / "whole"))
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "whole")
    mark = getattr(processor, "boi_token", None) or processor.image_token
    inputs = processor(text=[f"Hi {mark}?"], images=[[image(0)]], return_tensors="pt")
    assert torch.isfinite(model(**inputs).logits).all()


@pytest.mark.parametrize("kind", SAVERS)
def test_the_first_loss_is_that_of_the_model_on_inputs_of_its_processor(tmp_path: Path, kind: str) -> None:
    config = config_of(tmp_path, kind, num_train_epochs=1, per_device_train_batch_size=NUM_ROWS)
    config.training.gradient_accumulation_steps = 1
    rows, preprocessor = examples(config)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    total, count = 0.0, 0
    with torch.no_grad():
        for row in rows:
            items = row.images[0] if row.images else ()
            tokens = torch.from_numpy(row.tokens.astype(np.int64))[None]
            inputs: dict[str, Any] = {"input_ids": tokens}
            if items:
                text = preprocessor.tokenizer.decode(row.tokens)
                for item in items:
                    run = preprocessor.tokenizer.decode(preprocessor.image_encoder.expansion(load_image(item)))
                    assert run in text
                    text = text.replace(run, "\0", 1)
                text = text.replace("\0", preprocessor.image_encoder.mark)
                images = [load_image(item) for item in items]
                inputs = dict(preprocessor.image_encoder.inputs([text], [images]))
                assert inputs["input_ids"].tolist() == tokens.tolist(), "the ids are those at inference"
            elif kind == "gemma3":
                inputs["token_type_ids"] = torch.zeros_like(tokens)
            logits = model(**inputs).logits[0, :-1].float()
            targets = torch.from_numpy(np.where(row.is_target, row.tokens, -100).astype(np.int64))[1:]
            total += torch.nn.functional.cross_entropy(logits, targets, ignore_index=-100, reduction="sum").item()
            count += int((targets != -100).sum())
    train(config)
    assert losses(tmp_path / "out")[0] == pytest.approx(total / count, rel=1e-5)


def test_answers_are_trained_and_images_are_not_also_where_all_is(tmp_path: Path) -> None:
    rows, preprocessor = examples(config_of(tmp_path, "llava"))
    assert draw(rows[1], preprocessor.tokenizer) == (
        "<|im_start|>user\n" + "<image>" * 8 + "What is 1?<|im_end|>\n<|im_start|>assistant\n"
        "[It is 1. Yes!<|im_end|>]\n"
    )
    config = config_of(tmp_path, "llava")
    config.data.train.collator_name = "vision_language_with_padding"
    (row, *_), _ = examples(config)
    assert not row.is_target[row.tokens == preprocessor.image_encoder.token_id].any()
    assert row.is_target[row.tokens != preprocessor.image_encoder.token_id].all()


@pytest.mark.sample(4)
@pytest.mark.parametrize("length", range(36, 72, 3))
@pytest.mark.parametrize("side", ["RIGHT", "LEFT"])
def test_truncation_never_cuts_an_image(tmp_path: Path, length: int, side: str) -> None:
    config = config_of(tmp_path, "llava")
    config.model.model_max_length = length
    config.data.train = type(config.data.train).model_validate(
        {**config.data.train.model_dump(), "truncation": side, "max_rejected_rows": NUM_ROWS - 1}
    )
    rows, preprocessor = examples(config)
    for row in rows:
        assert len(row.tokens) <= length
        images = sum(map(len, row.images))
        assert int((row.tokens == preprocessor.image_encoder.token_id).sum()) == 4 * images
    report = json.loads((tmp_path / "out" / "data_report.json").read_text())["train"][0]["rows"]
    assert report["read"] == NUM_ROWS == report["trained"] + report["truncated"] + report["rejected"]


BAD = {
    "gone": ({"type": "image_path", "content": "none.png"}, "no image at none.png"),
    "no image": ({"type": "image_path", "content": "rows.jsonl"}, "rows.jsonl is not an image in a known format"),
    "cut": ({"type": "image_path", "content": "cut.png"}, "cut.png cannot be decoded"),
    "no server": ({"type": "image_url", "content": "http://127.0.0.1:9/a.png"}, "http://127.0.0.1:9/a.png: "),
}


@pytest.mark.parametrize("kind", BAD)
def test_an_image_that_cannot_be_loaded_is_reported_with_its_row(tmp_path: Path, kind: str) -> None:
    item, message = BAD[kind]
    config = config_of(tmp_path, "llava")
    (tmp_path / "cut.png").write_bytes(image_bytes(0)[:-40])
    path = tmp_path / "rows.jsonl"
    bad = {"messages": [{"role": "user", "content": [item]}, {"role": "assistant", "content": "So."}]}
    path.write_text(path.read_text() + "\n" + json.dumps(bad))
    with pytest.raises(DataError, match=rf"rows\.jsonl:{NUM_ROWS + 1}: .*") as refused:
        train(config)
    assert message in str(refused.value)


def test_cached_tokens_are_those_of_the_images_as_they_are_now(tmp_path: Path) -> None:
    config = config_of(tmp_path, "qwen2_vl", num_train_epochs=1)
    config.data.train.max_rejected_rows = 1
    before, _ = examples(config)
    (tmp_path / "0.png").write_bytes(image_bytes(0, width=64, height=64))
    larger, _ = examples(config)
    assert [len(row.tokens) for row in larger[1:]] == [len(row.tokens) for row in before[1:]]
    assert len(larger[0].tokens) > len(before[0].tokens)
    (tmp_path / "3.png").unlink()
    assert len(examples(config)[0]) == NUM_ROWS - 1
    (tmp_path / "3.png").write_bytes(image_bytes(3))
    assert len(examples(config)[0]) == NUM_ROWS
    # Relative paths are looked for in the working directory first.
    (tmp_path / "elsewhere").mkdir()
    with contextlib.chdir(tmp_path / "elsewhere"):
        assert len(examples(config)[0][0].tokens) == len(larger[0].tokens)
        Path("0.png").write_bytes(image_bytes(0, width=20, height=32))
        assert len(examples(config)[0][0].tokens) == len(before[0].tokens)
    # The rows of this run are read already.
    rows, preprocessor = examples(config)
    (tmp_path / "0.png").write_bytes(image_bytes(0, width=40, height=64))
    with pytest.raises(DataError, match=r"changed its size since it was tokenized: .*rows\.jsonl:1\n"):
        preprocessor.collate(rows[:1])


def test_an_image_that_could_not_be_downloaded_is_tried_again(tmp_path: Path) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Half)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Half.num_requests = 0
    config = config_of(tmp_path, "llava")
    config.data.train.max_rejected_rows = 1
    place = f"http://127.0.0.1:{server.server_port}/a.png"
    question = {"role": "user", "content": [{"type": "image_url", "content": place}]}
    path = tmp_path / "rows.jsonl"
    row = json.dumps({"messages": [question, {"role": "assistant", "content": "So."}]})
    path.write_text(f"{path.read_text()}\n{row}")
    try:
        assert [len(examples(config)[0]) for _ in range(3)] == [NUM_ROWS, NUM_ROWS + 1, NUM_ROWS + 1]
    finally:
        server.shutdown()


def test_an_image_that_the_processor_refuses_rejects_its_row(tmp_path: Path) -> None:
    config = config_of(tmp_path, "qwen2_vl")
    path = tmp_path / "rows.jsonl"
    (tmp_path / "wide.png").write_bytes(image_bytes(0, width=2000, height=4))
    path.write_text(path.read_text().replace('"3.png"', '"wide.png"'))
    message = r"rows\.jsonl:4: the processor of the model refuses an image \(2000 x 4 pixels\): absolute aspect ratio"
    with pytest.raises(DataError, match=message):
        examples(config)
    config.data.train.max_rejected_rows = 1
    rows, preprocessor = examples(config)
    assert len(rows) == NUM_ROWS - 1
    preprocessor.collate(rows)


def test_a_model_that_sees_no_images_refuses_them(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    config.data.train.datasets[0].dataset_name = "vl_sft"
    config.data.train.datasets[0].dataset_path = str(write_rows(tmp_path))
    with pytest.raises(DataError, match="turn 0: holds an image, which the model or this trainer does not support"):
        train(config)


def test_an_unknown_argument_of_the_processor_is_reported_with_the_nearest(tmp_path: Path) -> None:
    config = config_of(tmp_path, "llava", max_steps=1)
    config.model.processor_kwargs = {"patchsize": 3}
    with pytest.raises(ConfigError, match=r"processor_kwargs\.patchsize: .*did you mean 'patch_size'"):
        train(config)
    (tmp_path / "qwen").mkdir()
    config = config_of(tmp_path / "qwen", "qwen2_vl", max_steps=1)
    config.model.processor_kwargs = {"min_pixels": 100, "max_pixles": 400}
    with pytest.raises(ConfigError, match=r"processor_kwargs\.max_pixles: .*did you mean 'max_pixels'"):
        train(config)
    config.model.processor_kwargs = {"min_pixels": 100, "max_pixels": 400}
    train(config)


@pytest.mark.parametrize("kind", ["llava", "qwen2_vl"])
@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_a_mark_without_an_image_is_refused(tmp_path: Path, role: str, kind: str) -> None:
    config = config_of(tmp_path, kind, max_steps=1)
    texts = {"system": "s", "user": "q", "assistant": "a"}
    rows = []
    for mark in ("<image>", "<|image_pad|>"):
        if mark == "<image>" or kind == "qwen2_vl":
            turns = {**texts, role: f"What is {mark}?"}
            rows.append(json.dumps({"messages": [{"role": name, "content": text} for name, text in turns.items()]}))
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    with pytest.raises(DataError, match=rf"{len(rows)} of {len(rows)} rows cannot be used"):
        examples(config)
    report = (tmp_path / "out" / "data_report.json").read_text()
    assert f"writes {mark} for an image, but the row has no image for it" in report or kind == "llava"


@pytest.mark.sample(2)
@pytest.mark.parametrize("split", [{"pack": True}, {"stream": True}, {"stream": True, "pack": True}])
def test_rows_with_images_are_packed_and_streamed(tmp_path: Path, split: dict[str, bool]) -> None:
    config = config_of(tmp_path, "qwen2_vl", max_steps=4, save_steps=2, output_dir=str(tmp_path / "whole"))
    config.data.train = type(config.data.train).model_validate({**config.data.train.model_dump(), **split})
    train(config)
    config.training.output_dir = str(tmp_path / "again")
    config.training.resume_from_checkpoint = str(tmp_path / "whole" / "checkpoint-2")
    train(config)
    assert losses(tmp_path / "again") == losses(tmp_path / "whole")[2:]


def test_images_of_another_folder_are_other_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        config = config_of(folder, "llava", max_steps=2)
        for i in range(NUM_ROWS):
            (folder / f"{i}.png").write_bytes(image_bytes(i + 50 * len(runs)))
        monkeypatch.chdir(folder)
        config.data.train.datasets[0].dataset_path = "rows.jsonl"
        config.model.model_name = str(tmp_path / "a" / "model")
        train(config)
        runs.append(losses(folder / "out"))
    assert runs[0] != runs[1]


class Half(http.server.BaseHTTPRequestHandler):
    """Answers with half of an image at first, then with all of it. Other places break the protocol."""

    num_requests = 0

    def do_GET(self) -> None:
        if self.path != "/a.png":
            self.wfile.write(b"what?\r\n\r\n")
            return
        content = image_bytes(0)
        Half.num_requests += 1
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if Half.num_requests == 1 else content)

    def log_message(self, *_: Any) -> None:
        pass


def test_a_download_that_breaks_off_is_reported_and_not_kept() -> None:
    Half.num_requests = 0
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Half)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    place = f"http://127.0.0.1:{server.server_port}"
    item = ContentItem(type=Type.IMAGE_URL, content=f"{place}/a.png")
    try:
        with pytest.raises(BadImage, match="breaks off"):
            load_image(item)
        assert load_image(item).size == (40, 56)
        with pytest.raises(BadImage, match=f"{place}/a b.png"):
            load_image(item.model_copy(update={"content": f"{place}/a b.png"}))
    finally:
        server.shutdown()
    assert load_image(item).size == (40, 56), "a complete image is kept"


@pytest.mark.parametrize("streams", [False, True])
def test_an_image_in_a_list_that_cannot_be_decoded_is_a_bad_row(tmp_path: Path, streams: bool) -> None:
    config = config_of(tmp_path, "llava", max_steps=2)
    chat = [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "It."}]
    rows = [{"messages": chat, "images": [{"bytes": image_bytes(i), "path": None}]} for i in range(4)]
    rows[2]["images"][0]["bytes"] = b"junk"  # type: ignore[index]  # it is a list
    kinds = {"messages": List({"role": Value("string"), "content": Value("string")}), "images": List(Image())}
    Dataset.from_list(rows, features=Features(kinds)).save_to_disk(tmp_path / "saved")
    split = {**config.data.train.model_dump(), "stream": streams, "max_rejected_rows": 1}
    config.data.train = type(config.data.train).model_validate(split)
    config.data.train.datasets[0].dataset_path = str(tmp_path / "saved")
    train(config)
    report = json.loads((tmp_path / "out" / "data_report.json").read_text())["train"][0]
    assert report["rows"]["rejected"] == 1
