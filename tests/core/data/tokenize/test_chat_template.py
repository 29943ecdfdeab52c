# SPDX-License-Identifier: Apache-2.0
"""Which chat template serves, and that a bundled one writes nothing that is not meant."""

from __future__ import annotations

import logging
from datetime import datetime
from pathlib import Path

import pytest

from oumi.core.data.tokenize.chat_template import FOLDER, Template, TemplateError, bundled_template, chat_template_for
from oumi.core.errors import ConfigError
from oumi.core.types.conversation import ContentItem, Message, Role, Type
from tests.tiny import CHATML, byte_tokenizer

NAMES = sorted(path.stem for path in FOLDER.glob("*.jinja"))
USER_TURN = [Message(role=Role.USER, content="Q")]
CHAT = [*USER_TURN, Message(role=Role.ASSISTANT, content="A")]

# What each template writes around a question, and before the answer that is asked for.
PROMPTS = {
    "chat_ml": "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n",
    "default": "USER: Q\nASSISTANT:",
    "default_gen": "USER: Q\nASSISTANT:",
    "gemma2-it": "<start_of_turn>user\nQ<end_of_turn>\n<start_of_turn>model\n",
    "gpt2": "Q<|im_end|>",
    "internvl3": "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n",
    "llama3-instruct": "<|start_header_id|>user<|end_header_id|>\n\nQ<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "llava": "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the human's questions. USER: Q ASSISTANT:",
    "molmo": "User: Q Assistant:",
    "phi3-instruct": "<|user|>\nQ<|end|>\n<|assistant|>\n",
    "qwen2-vl-instruct": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n",
    "qwen3-vl-instruct": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n",
    "zephyr": "<|user|>\nQ<|im_end|>\n<|assistant|>\n",
}
IMAGE = ContentItem(type=Type.IMAGE_PATH, content="a.png")
QUESTION_WITH_IMAGE = [Message(role=Role.USER, content=[IMAGE, ContentItem(type=Type.TEXT, content="Q")])]
# What a template writes for an image before a question.
IMAGE_PLACES = {
    "internvl3": "<IMG_CONTEXT>\nQ",
    "llama3-instruct": "<|image|>Q",
    "llava": "USER: <image>Q ",
    "molmo": "User: Q ",
    "phi3-instruct": "<|image_1|>Q",
    "qwen2-vl-instruct": "<|vision_start|><|image_pad|><|vision_end|>Q",
    "qwen3-vl-instruct": "<|vision_start|><|image_pad|><|vision_end|>Q",
}


def test_the_tokenizers_own_template_serves_unless_another_is_named() -> None:
    tokenizer = byte_tokenizer()
    assert chat_template_for(tokenizer, None) == CHATML
    assert chat_template_for(tokenizer, "auto") == CHATML
    assert chat_template_for(tokenizer, "zephyr") == bundled_template("zephyr")


def test_a_tokenizer_without_a_template_takes_the_default_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    logging.getLogger("oumi").addHandler(caplog.handler)
    try:
        assert chat_template_for(tokenizer, None) == bundled_template("default")
    finally:
        logging.getLogger("oumi").removeHandler(caplog.handler)
    assert "the bundled 'default' is used" in caplog.text
    with pytest.raises(ConfigError, match="'auto', but the tokenizer has no chat template"):
        chat_template_for(tokenizer, "auto")


def test_a_template_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text("{{ messages[0]['content'] }}")
    assert chat_template_for(byte_tokenizer(), str(path)) == "{{ messages[0]['content'] }}"
    with pytest.raises(ConfigError, match=r"model\.chat_template: no file .*gone\.jinja"):
        chat_template_for(byte_tokenizer(), str(tmp_path / "gone.jinja"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("chatml", "unknown template 'chatml', did you mean 'chat_ml'?"),
        ("llama3-instuct", "unknown template 'llama3-instuct', did you mean 'llama3-instruct'?"),
        ("zzz", "unknown template 'zzz'; known: chat_ml, default, default_gen"),
        ("qwen2-vl", "unknown template 'qwen2-vl', did you mean 'qwen2-vl-instruct'?"),
    ],
)
def test_an_unknown_template_is_reported_with_the_nearest(name: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        bundled_template(name)
    assert str(refused.value).startswith("model.chat_template: ")
    assert message in str(refused.value)


def test_a_bundled_template_is_found_in_any_case() -> None:
    assert bundled_template("Llama3-Instruct") == bundled_template("llama3-instruct")


def test_every_bundled_template_has_its_prompt_written_down() -> None:
    assert list(PROMPTS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_prompt_of_inference_is_as_written_by_hand(name: str) -> None:
    template = Template(byte_tokenizer(), bundled_template(name))
    assert template.render(USER_TURN, add_generation_prompt=True) == PROMPTS[name]
    assert template.render(CHAT).startswith(PROMPTS[name])


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_ends_where_a_token_does(name: str) -> None:
    assert not PROMPTS[name].endswith(" "), "a word takes the space before it into its token"


@pytest.mark.parametrize("name", NAMES)
def test_a_text_within_a_chat_is_never_run_as_a_template(name: str) -> None:
    text = "{{ 7 * 6 }}{% if true %}{# x #}"
    messages = [Message(role=Role.USER, content=text), Message(role=Role.ASSISTANT, content=text)]
    rendered = Template(byte_tokenizer(), bundled_template(name)).render(messages)
    assert rendered.count(text) == 2
    assert "42" not in rendered


@pytest.mark.parametrize("name", ["gpt2", "zephyr"])
def test_a_template_that_ends_turns_with_the_end_token_needs_one(name: str) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(TemplateError, match="eos_token"):
        Template(tokenizer, bundled_template(name)).render(CHAT)


@pytest.mark.parametrize("roles", ["UU", "A", "UAA", "SA"])
def test_gemma_refuses_those_who_do_not_take_turns(roles: str) -> None:
    kinds = {"U": Role.USER, "A": Role.ASSISTANT, "S": Role.SYSTEM}
    messages = [Message(role=kinds[role], content="x") for role in roles]
    with pytest.raises(TemplateError, match="user and assistant must take turns"):
        Template(byte_tokenizer(), bundled_template("gemma2-it")).render(messages)


@pytest.mark.parametrize("name", NAMES)
def test_a_image_is_written_as_its_place_or_refused(name: str) -> None:
    template = Template(byte_tokenizer(), bundled_template(name))
    if name not in IMAGE_PLACES:
        with pytest.raises(TemplateError):
            template.render(QUESTION_WITH_IMAGE)
        return
    text = template.render(QUESTION_WITH_IMAGE, add_generation_prompt=True)
    place = IMAGE_PLACES[name].removesuffix(" ").removesuffix("Q")
    assert IMAGE_PLACES[name] in text
    assert text.replace(place, place.partition("<")[0], 1) == PROMPTS[name]


def test_images_are_numbered_where_they_are_numbered() -> None:
    template = Template(byte_tokenizer(), bundled_template("phi3-instruct"))
    two = [
        Message(role=Role.USER, content=[IMAGE, IMAGE]),
        Message(role=Role.ASSISTANT, content="A"),
        *QUESTION_WITH_IMAGE,
    ]
    assert template.render(two) == (
        "<|user|>\n<|image_1|><|image_2|><|end|>\n<|assistant|>\nA<|end|>\n<|user|>\n<|image_3|>Q<|end|>\n"
    )


def test_a_message_reaches_the_template_as_text_unless_it_holds_a_image() -> None:
    template = Template(byte_tokenizer(), "{{ messages | map(attribute='content') | list | tojson }}")
    assert (
        template.render([*QUESTION_WITH_IMAGE, *CHAT])
        == '[[{"type": "image"}, {"type": "text", "text": "Q"}], "Q", "A"]'
    )


def test_where_only_lists_of_parts_are_read_each_message_is_one() -> None:
    reads = "{% for m in messages %}{% for part in m.content %}{{ part.text }}{{ part.type }}{% endfor %};{% endfor %}"
    assert Template(byte_tokenizer(), reads).render(CHAT) == "Qtext;Atext;"
    first = "{% for m in messages %}{{ m.content[0].text + ';' }}{% endfor %}"
    assert Template(byte_tokenizer(), first).render(CHAT) == "Q;A;"


def test_a_template_that_would_print_the_list_of_parts_is_refused() -> None:
    with pytest.raises(TemplateError, match="does not support images"):
        Template(byte_tokenizer(), CHATML).render(QUESTION_WITH_IMAGE)


DATES = "%d %b %Y|%A %-d %B %y|%Y-%m-%dT%H:%M:%S.%f|%I %p|%j|%%d|%F %T|100%"


@pytest.mark.parametrize(
    "start", ["", "\n", "  ", "  {% if true %}\n  x\n  {% endif %}\n", "{%- if true -%} y{% endif %}"]
)
def test_a_template_states_the_date_that_it_is_given(start: str) -> None:
    now = datetime(2024, 2, 9, 15, 4, 5, 678)
    calls = "{% macro at(format) %}{{ strftime_now(format) }}{% endmacro %}{{ strftime_now is defined }}"
    calls += "".join(f"[{{{{ at('{code}') }}}}]" for code in DATES.split("|"))
    literal = "{% if true %}True{% endif %}" + "".join(f"[{now.strftime(code)}]" for code in DATES.split("|"))
    tokenizer = byte_tokenizer()
    assert Template(tokenizer, start + calls, now).render(CHAT) == Template(tokenizer, start + literal).render(CHAT)


@pytest.mark.parametrize("text", ["{% if %}", "{{ 'a' | nothing }}", "{% for x in y %}"])
def test_what_is_no_template_is_reported_once_with_its_line(text: str) -> None:
    with pytest.raises(ConfigError, match=r"model\.chat_template: line 2: "):
        Template(byte_tokenizer(), f"\n{text}").render(CHAT)


@pytest.mark.parametrize("text", ["{{ messages + 1 }}", "{{ 1 / 0 }}", "{% include 'x' %}", "{{ nothing() }}"])
def test_a_template_that_fails_on_a_chat_refuses_it(text: str) -> None:
    with pytest.raises(TemplateError):
        Template(byte_tokenizer(), text).render(CHAT)


def test_a_template_that_is_no_text_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "mine.jinja"
    path.write_bytes(b"{{\xff")
    with pytest.raises(ConfigError, match=r"mine\.jinja is not UTF-8 text \(byte 2\)"):
        chat_template_for(byte_tokenizer(), str(path))
