# SPDX-License-Identifier: Apache-2.0
"""Inference with trained models: directories, adapters, and all that is not a model."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from oumi.core.errors import ConfigError, RefusedError, StorageError
from oumi.core.results.chat_model import answer, load_chat_model, load_untrained, make_chat_model, stream_answer
from tests.tiny import byte_tokenizer, save_tiny_model, tiny_llama

QUESTIONS = [
    "Hi",
    "What is 3 plus 4? Please think of it for a while.",
    "Why?",
    "Tell me of Zürich.",
    "x" * 60,
    "One",
]
CHATS = [[{"role": "user", "content": question}] for question in QUESTIONS]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"), initializer_range=0.2)


def test_answers_in_a_batch_are_those_of_plain_transformers_for_each_chat(model_dir):
    model = AutoModelForCausalLM.from_pretrained(str(model_dir))
    tokenizer = AutoTokenizer.from_pretrained(str(model_dir))
    expected = []
    for chat in CHATS:
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        output = model.generate(prompt, max_new_tokens=24, do_sample=False, eos_token_id=2, pad_token_id=3)
        expected.append(tokenizer.decode(output[0, prompt.shape[1] :], skip_special_tokens=True))
    chat_model = load_chat_model(model_dir)
    assert answer(chat_model, CHATS, max_new_tokens=24) == expected
    assert answer(chat_model, CHATS, max_new_tokens=24, batch_size=2) == expected
    assert len(set(expected)) == len(expected)


def test_answer_ends_with_the_turn(model_dir):
    model, tokenizer = tiny_llama(), byte_tokenizer()
    chat_model = make_chat_model(model, tokenizer)
    assert chat_model.stops == (tokenizer.convert_tokens_to_ids("<|im_end|>"),)
    with torch.no_grad():  # a model that ends every answer at once
        model.lm_head.weight.zero_()
        model.model.norm.weight.zero_()
    stopped = make_chat_model(_with_bias_to(model, chat_model.stops[0]), tokenizer)
    assert answer(stopped, CHATS[:2]) == ["", ""]


def test_end_of_turn_may_differ_from_the_end_token():
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = "<|endoftext|>"
    stops = make_chat_model(tiny_llama(), tokenizer).stops
    assert tokenizer.convert_ids_to_tokens(list(stops)) == ["<|endoftext|>", "<|im_end|>"]


def test_a_special_token_of_the_generation_config_ends_an_answer():
    model, tokenizer = tiny_llama(), byte_tokenizer()
    for own, expected in ((7, []), (0, [0]), ([0, 2, 7], [0]), (None, [])):  # 7 is the byte of a character
        model.generation_config.eos_token_id = own
        assert make_chat_model(model, tokenizer).stops == (2, *expected)


@pytest.mark.parametrize(
    ("plan", "number_format"),
    [
        ({"model": {"quantization": {"number_format": "nf4", "bits": 4}}}, "nf4"),
        ({"model": {"quantization": {"number_format": "as stored", "bits": 0}}}, None),
        ({"model": {"quantization": None}}, None),
        (["of another program"], None),
        (None, None),
    ],
)
def test_an_adapter_of_quantized_weights_on_a_base_in_full_is_warned_of(
    model_dir, tmp_path, caplog, plan, number_format
):
    _save_adapter(model_dir, tmp_path)
    (tmp_path / "plan.json").write_text("{broken" if plan is None else json.dumps(plan))
    load_chat_model(tmp_path)
    assert ("quantized" in caplog.text) == (number_format is not None)


def test_streamed_pieces_add_up_to_the_answer(model_dir):
    chat_model, pieces = load_chat_model(model_dir), []
    streamed = stream_answer(chat_model, CHATS[1], pieces.append, max_new_tokens=24)
    assert "".join(pieces) == streamed == answer(chat_model, [CHATS[1]], max_new_tokens=24)[0]


def test_temperature_draws_other_answers(model_dir):
    chat_model = load_chat_model(model_dir)
    torch.manual_seed(0)
    drawn = {stream_answer(chat_model, CHATS[0], str, 24, temperature=5.0) for _ in range(3)}
    assert len(drawn) == 3


def test_settings_that_the_model_ships_change_nothing(model_dir, tmp_path):
    model, tokenizer = load_chat_model(model_dir).model, byte_tokenizer()
    model.generation_config.update(do_sample=True, temperature=5.0, top_k=50, repetition_penalty=3.0)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert answer(load_chat_model(tmp_path), CHATS, 24) == answer(load_chat_model(model_dir), CHATS, 24)


def test_adapter_is_loaded_on_its_base(model_dir, tmp_path):
    adapter_dir = tmp_path / "adapter"
    adapted = _save_adapter(model_dir, adapter_dir)
    byte_tokenizer().save_pretrained(adapter_dir)
    with_adapter = answer(load_chat_model(adapter_dir), CHATS, 24)
    assert with_adapter == answer(make_chat_model(adapted.merge_and_unload(), byte_tokenizer()), CHATS, 24)
    assert with_adapter != answer(load_chat_model(model_dir), CHATS, 24)


def test_adapter_without_tokenizer_takes_that_of_its_base(model_dir, tmp_path):
    _save_adapter(model_dir, tmp_path)
    assert load_chat_model(tmp_path).tokenizer.get_vocab() == byte_tokenizer().get_vocab()


def test_adapter_whose_base_lies_beside_it_needs_no_other(model_dir, tmp_path):
    adapted = _save_adapter(model_dir, tmp_path)
    adapted.unload().save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": "gone/away"}))
    assert answer(load_chat_model(tmp_path), CHATS[:1], 4)


def test_same_seed_gives_the_same_untrained_model_and_leaves_the_generator_alone():
    torch.manual_seed(1)
    first, drawn = load_untrained("oumi://tiny", 5), torch.rand(1)
    torch.manual_seed(1)
    assert drawn == torch.rand(1)
    second, other = load_untrained("oumi://tiny", 5), load_untrained("oumi://tiny", 6)
    weights = [chat_model.model.lm_head.weight for chat_model in (first, second, other)]
    assert weights[0].equal(weights[1])
    assert not weights[0].equal(weights[2])


def test_question_longer_than_the_model_is_refused():
    chat_model = load_untrained("oumi://tiny", 0)
    with pytest.raises(ConfigError, match="the question has 203 tokens; the model can process 128"):
        answer(chat_model, [[{"role": "user", "content": "x" * 200}]])


def test_answer_stops_where_the_model_ends():
    chat_model = load_untrained("oumi://tiny", 0)
    tokens = len(chat_model.prompt(CHATS[0])) + len(
        chat_model.tokenizer(answer(chat_model, CHATS[:1], max_new_tokens=1000)[0], add_special_tokens=False)[
            "input_ids"
        ]
    )
    assert tokens <= 3 * chat_model.max_length  # a broken byte becomes three


def test_missing_directory_names_the_nearest(tmp_path):
    (tmp_path / "quickstart").mkdir()
    with pytest.raises(ConfigError, match=r"quikstart: no such directory, did you mean 'quickstart'\?"):
        load_chat_model(tmp_path / "quikstart")


def test_file_is_not_a_directory(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ConfigError, match="expected the directory of a model, got a file"):
        load_chat_model(tmp_path / "model.safetensors")


def test_run_that_only_has_checkpoints_names_the_latest_first(tmp_path):
    for step in (50, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "config.json").write_text("{}")
    with pytest.raises(
        ConfigError, match=r"contains no config.json; there is one in \S*checkpoint-100, \S*checkpoint-50$"
    ):
        load_chat_model(tmp_path)


def test_config_without_weights_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"contains no weights \(model.safetensors\)"):
        load_chat_model(tmp_path)


def test_pickled_weights_are_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(RefusedError, match="pickled"):
        load_chat_model(tmp_path)


def test_broken_weights_are_refused(model_dir, tmp_path):
    for path in model_dir.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(StorageError, match="cannot be loaded"):
        load_chat_model(tmp_path)


def test_tokenizer_without_chat_template_is_refused():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match="no chat template"):
        make_chat_model(tiny_llama(), tokenizer)


def _with_bias_to(model, token):
    bias = torch.zeros(model.config.vocab_size)
    bias[token] = 1.0
    model.lm_head = torch.nn.Linear(model.config.hidden_size, model.config.vocab_size)
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.bias.copy_(bias)
    return model


def _save_adapter(model_dir, directory):
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(str(model_dir))
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    adapted.save_pretrained(directory)
    return adapted
