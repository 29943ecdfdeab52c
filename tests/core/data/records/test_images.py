# SPDX-License-Identifier: Apache-2.0
"""An image is read as it looks, and stands where its row says."""

from __future__ import annotations

import io
import random
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from oumi.core.data.records.conversations import chat_of
from oumi.core.data.records.fields import UnusableValue
from oumi.core.data.records.images import image_item, upright_rgb
from oumi.core.data.records.schemas import detect_shape, to_value
from oumi.core.data.tokenize.images import BadImage, load_image, locate_image
from oumi.core.types.conversation import ContentItem, Type
from oumi.core.types.example import RejectedRow, Row, Source

RAMP = np.tile(np.linspace(0, 65_535, 64).astype(np.uint16), (8, 1))
RAMP[:4] //= 2  # so that no inversion or rotation leaves it as it is
EIGHT_BITS = (RAMP / 257).round().astype(np.uint8)
# The values of each image, the format it is written in, and the arguments.
GRAY: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "PNG of 16 bits": (Image.fromarray(RAMP), "PNG", {}),
    "TIFF of 16 bits": (Image.fromarray(RAMP), "TIFF", {}),
    "TIFF of 16 bits, big-endian": (Image.frombytes("I;16B", (64, 8), RAMP.astype(">u2").tobytes()), "TIFF", {}),
    "TIFF of 16 bits, white is zero": (Image.fromarray(65_535 - RAMP), "TIFF", {"tiffinfo": {262: 0}}),
    "PGM of 16 bits": (Image.fromarray(RAMP), "PPM", {}),
    "JPEG 2000 of 16 bits": (Image.fromarray(RAMP), "JPEG2000", {}),
    "TIFF of floating-point values": (Image.fromarray((RAMP / 257).astype(np.float32)), "TIFF", {}),
    "TIFF of 32 bits with values of 8": (Image.fromarray(EIGHT_BITS.astype(np.int32)), "TIFF", {}),
    "PNG of 8 bits": (Image.fromarray(EIGHT_BITS), "PNG", {}),
}


def written(image: Any, form: str, **arguments: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **arguments)
    return buffer.getvalue()


def read_both_ways(content: bytes) -> list[Any]:
    """Returns an image read from its file, and as an object of Pillow that Python passes."""
    return [load_image(image_item(value)) for value in (content, Image.open(io.BytesIO(content)))]


@pytest.mark.parametrize("kind", GRAY)
def test_gray_looks_the_same_in_any_depth(kind: str) -> None:
    image, form, arguments = GRAY[kind]
    for result in read_both_ways(written(image, form, **arguments)):
        difference = np.asarray(result).astype(int) - EIGHT_BITS[..., None]
        assert np.abs(difference).max() <= 1
    if "white is zero" not in kind:  # only the file says so
        assert np.abs(np.asarray(upright_rgb(image)).astype(int) - EIGHT_BITS[..., None]).max() <= 1


@pytest.mark.parametrize(
    "values",
    [RAMP / 65_535, RAMP / 16, -(RAMP / 257), np.full((4, 4), np.nan)],
    ids=["up to 1", "of 12 bits", "negative", "not numbers"],
)
@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_gray_of_an_unknown_white_is_refused(values: Any, dtype: Any) -> None:
    if dtype == np.int32 and not np.abs(values).max() > 1:
        pytest.skip("whole numbers of at most 1 are nearly black")
    image = Image.fromarray(values.astype(dtype))
    with pytest.raises(UnusableValue, match=r"has gray values from .*, of which none is known to be white"):
        image_item(image)
    with pytest.raises(BadImage, match="save the image with 8 or 16 bits"):
        load_image(image_item(written(image, "TIFF")))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_an_image_is_turned_as_its_exif_data_say(form: str, mode: str) -> None:
    upright = Image.fromarray(np.kron(EIGHT_BITS[:, ::16], np.ones((16, 16), np.uint8))).convert(mode)
    ways = {
        1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    for orientation, way in ways.items():
        stored = upright if way is None else upright.transpose(way)
        exif = stored.getexif()
        exif[0x0112] = orientation
        for result in read_both_ways(written(stored, form, exif=exif)):
            assert result.size == upright.size
            difference = np.asarray(result).astype(int) - np.asarray(upright.convert("RGB"))
            assert np.abs(difference).mean() < 3  # some formats lose detail


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow
def test_broken_exif_data_are_ignored_or_refused() -> None:
    image = Image.fromarray(EIGHT_BITS)
    exif = image.getexif()
    exif[0x0112] = 6
    content = written(image, "JPEG", exif=exif)
    start, rng = content.index(b"Exif"), random.Random(0)
    sizes = {image.size, image.size[::-1]}
    for _ in range(200):
        broken = bytearray(content)
        for _ in range(rng.randint(1, 4)):
            broken[start + rng.randrange(4, 36)] = rng.randrange(256)
        with suppress(BadImage):
            assert load_image(image_item(bytes(broken))).size in sizes


def test_base64_in_place_of_a_path_is_no_image_and_no_fault_of_the_file_system(tmp_path: Path) -> None:
    item = ContentItem(type=Type.IMAGE_PATH, content="iVBORw0KGgo" * 500)
    with pytest.raises(BadImage, match="no image at iVBORw0KGgo"):
        locate_image(item, tmp_path / "rows.jsonl", {})


def chat(contents: list[Any], record: dict[str, Any]) -> list[str]:
    """Returns the content of each turn, with an image as `[path]`; the roles are user and assistant in turn."""
    turns = [{"role": "user" if i % 2 == 0 else "assistant", "content": content} for i, content in enumerate(contents)]
    messages = chat_of(turns, record).messages
    return [
        "".join(f"[{item.content}]" if item.is_image() else str(item.content) for item in message.content_items)
        for message in messages
    ]


def test_images_stand_where_the_marks_stand() -> None:
    rng = random.Random(0)
    for _ in range(200):
        names = [f"{i}.png" for i in range(rng.randint(1, 4))]
        questions = ["q"] * rng.randint(1, 4)
        places = sorted(rng.randrange(len(questions)) for _ in names)
        as_parts = rng.random() < 0.5
        contents, expected = list[Any](), list[str]()
        for i, question in enumerate(questions):
            own = [name for name, place in zip(names, places, strict=True) if place == i]
            parts = [{"type": "image"} for _ in own]
            text = [{"type": "text", "text": question}]
            contents += [[*parts, *text] if as_parts and own else "<image>" * len(own) + question, "a"]
            expected += ["".join(f"[{name}]" for name in own) + question, "a"]
        assert chat(contents, {"images": names}) == expected
        for wrong in (names[:-1], [*names, "more.png"]):
            with pytest.raises(UnusableValue, match=r"refers to image|refer to"):
                chat(contents, {"images": wrong})


ROWS: dict[str, tuple[list[Any], dict[str, Any], list[str] | str]] = {
    "no marks": (["q", "a", "r", "b"], {"images": ["0", "1"]}, ["[0][1]q", "a", "r", "b"]),
    "a list without marks": ([[{"type": "text", "text": "q"}], "a"], {"image": "0"}, ["[0]q", "a"]),
    "a mark in a part of text": ([[{"type": "text", "text": "<image>q"}], "a"], {"image": "0"}, ["[0]q", "a"]),
    "only the second question": (["q", "a", "<image>r", "b"], {"images": ["0"]}, ["q", "a", "[0]r", "b"]),
    "by index, in another order": (
        [[{"type": "image", "index": 1}, {"type": "image", "index": 0}, {"type": "text", "text": "q"}], "a"],
        {"images": ["0", "1"]},
        ["[1][0]q", "a"],
    ),
    "by index, one left out": ([[{"type": "image", "index": 1}], "a"], {"images": ["0", "1"]}, "refer to 1"),
    "an index that is no number": ([[{"type": "image", "index": 0.5}], "a"], {"images": ["0"]}, "whole number"),
    "a mark and an image of a part": (
        [[{"type": "image_path", "content": "x"}, {"type": "text", "text": "<image>q"}], "a"],
        {"images": []},
        "refers to image 0, but the row has 0",
    ),
    "an image of a part, others beside the turns": (
        [[{"type": "image_path", "content": "x"}], "a"], {"images": ["0"]}, "refer to 0",
    ),
    "a mark without an image": (["<image>q", "a"], {"images": None}, "refers to image 0, but the row has 0"),
    "a mark in an answer": (["q", "<image>"], {"images": ["0"]}, "turn 1: an image in an answer"),
    "a part in an answer": (["q", [{"type": "image"}]], {"images": ["0"]}, "turn 1: an image in an answer"),
    "two columns": (["q", "a"], {"images": ["0"], "image": "1"}, "has 'images' and 'image'"),
    "marks with numbers": (["<image_2> or <image 1>?", "a"], {"images": ["0", "1"]}, ["[1] or [0]?", "a"]),
    "marks with numbers from 0": (["<image_1> or <image_0>?", "a"], {"images": ["0", "1"]}, ["[1] or [0]?", "a"]),
    "numbers in an answer": (["q", "See <image 1>."], {"images": ["0"]}, ["[0]q", "See <image 1>."]),
    "a number where there are no images": (["What is <image 1>?", "a"], {"image": None}, ["What is <image 1>?", "a"]),
    "a number without an image": (["<image_3><image_1>", "a"], {"images": ["0", "1"]}, "refers to image 2"),
    "a mark where there is no column": (["What is <image>?", "a"], {}, ["What is <image>?", "a"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", ROWS)
def test_each_image_has_one_place_or_the_row_is_refused(kind: str) -> None:
    contents, record, expected = ROWS[kind]
    if isinstance(expected, list):
        assert chat(contents, record) == expected
        return
    with pytest.raises(UnusableValue, match=expected):
        chat(contents, record)


def test_turns_of_any_role_but_the_assistant_show_images() -> None:
    turns = [
        {"role": "system", "content": "<image>s"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "tool_calls": [{"function": {"name": "look"}}]},
        {"role": "tool", "content": "<image>"},
        {"role": "assistant", "content": "a"},
    ]
    messages = chat_of(turns, {"images": ["0", "1"]}).messages
    assert [len(message.image_content_items) for message in messages] == [1, 0, 0, 1, 0]


@pytest.mark.parametrize(
    "record",
    [
        {"text": "A cat.", "image": "a.png"},
        {"text": "A cat.", "images": ["a.png"]},
        {"prompt": "What?", "completion": "A cat.", "image": "a.png"},
        {"messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A."}], "video": "a.mp4"},
        *(
            {"messages": [{"role": "user", "content": "What?", key: "a"}, {"role": "assistant", "content": "A."}]}
            for key in ("image", "images", "video", "videos", "audio", "audios")
        ),
    ],
)
def test_media_that_would_not_be_trained_are_refused(record: dict[str, Any]) -> None:
    result = to_value(Row(record, Source("set", "x.jsonl", 1)), detect_shape(record))
    assert isinstance(result, RejectedRow)
    assert re.search("has '(image|video|audio)s?'", result.reason)


def test_columns_that_say_that_there_are_no_media_are_none() -> None:
    turns = [{"role": "user", "content": "What?", "image": False}, {"role": "assistant", "content": "A."}]
    for record in ({"messages": turns, "video": False, "audio": {}}, {"text": "As said.", "audio": {"path": "a"}}):
        assert isinstance(to_value(Row(record, Source("set", "x.jsonl", 1)), detect_shape(record)), Row)
