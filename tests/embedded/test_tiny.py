# SPDX-License-Identifier: Apache-2.0
"""The tiny model that ships: its files, its tokenizer, its chat template."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from oumi.core.recipes import resolve_asset
from oumi.embedded.build import CHAT_TEMPLATE, MAX_LENGTH, TINY, build_tiny

TOKENIZER = AutoTokenizer.from_pretrained(str(TINY))
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Spell tac backwards."},
    {"role": "assistant", "content": "cat"},
    {"role": "user", "content": "How many letters are in cat?"},
    {"role": "assistant", "content": "3"},
]


def test_name_oumi_tiny_means_the_files_that_ship():
    assert resolve_asset("oumi://tiny") == TINY


def test_files_are_what_the_build_script_writes(tmp_path):
    build_tiny(tmp_path)
    assert sorted(path.name for path in TINY.iterdir()) == sorted(path.name for path in tmp_path.iterdir())
    for path in tmp_path.iterdir():
        written, shipped = path.read_text(), (TINY / path.name).read_text()
        if path.suffix == ".json":
            written, shipped = (_without_version(json.loads(text)) for text in (written, shipped))
        assert shipped == written, path.name


def test_no_weights_ship_and_the_config_makes_a_small_model():
    assert not [*TINY.glob("*.safetensors"), *TINY.glob("*.bin")]
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(str(TINY)))
    assert model.num_parameters() < 300_000
    assert model.config.vocab_size == len(TOKENIZER)


@given(st.text(max_size=40))
@settings(max_examples=200, deadline=None)
def test_any_text_comes_back_from_its_tokens(text):
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    assert TOKENIZER.decode(ids) == text


def test_padding_is_not_the_end_of_a_turn():
    assert TOKENIZER.pad_token_id != TOKENIZER.eos_token_id
    assert TOKENIZER.bos_token_id is None
    assert TOKENIZER.model_max_length == MAX_LENGTH


def test_roles_and_ends_are_one_token_each():
    ids = TOKENIZER.apply_chat_template(CHAT[:3])["input_ids"]
    specials = [TOKENIZER.convert_ids_to_tokens(i) for i in ids if i in TOKENIZER.all_special_ids]
    assert specials == ["<|system|>", "<|end|>", "<|user|>", "<|end|>", "<|assistant|>", "<|end|>"]


@pytest.mark.parametrize("number", [3, 5])
def test_template_only_appends(number):
    rendered = TOKENIZER.apply_chat_template(CHAT[:number])["input_ids"]
    prompt = TOKENIZER.apply_chat_template(CHAT[: number - 1], add_generation_prompt=True)["input_ids"]
    before = TOKENIZER.apply_chat_template(CHAT[: number - 1])["input_ids"]
    assert rendered[: len(prompt)] == prompt
    assert rendered[: len(before)] == before
    assert rendered[-1] == TOKENIZER.eos_token_id


def test_template_refuses_a_role_that_it_has_no_token_for():
    assert TOKENIZER.chat_template == CHAT_TEMPLATE
    with pytest.raises(Exception, match="a role is system, user or assistant"):
        TOKENIZER.apply_chat_template([{"role": "tool", "content": "x"}])


def _without_version(value):
    return {key: part for key, part in value.items() if key != "transformers_version"}
