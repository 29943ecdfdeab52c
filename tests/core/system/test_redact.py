# SPDX-License-Identifier: Apache-2.0
"""Secrets are masked, and nothing else."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oumi.core.system.redact import is_secret_name, redact, redact_command

# Put together here, so that no scanner takes this file for a leak.
HF = "hf_" + "aB3" * 11
AWS_ID = "AKIA" + "IOSFODNN7EXAMPLE"
WANDB = "0123456789abcdef" * 2 + "01234567"
OPENAI = "sk-" + "proj-" + "x9" * 20
GITHUB = "ghp_" + "Zz9" * 12


@pytest.mark.parametrize("secret", [HF, AWS_ID, OPENAI, GITHUB, "wandb_v1_" + "q7" * 20, "hunter2hunter2"])
@pytest.mark.parametrize(
    "text",
    [
        "HF_TOKEN={}",
        "export WANDB_API_KEY='{}'",
        "oumi train --hub.token {} --training.seed 1",
        "Authorization: Bearer {}",
        'headers={{"authorization": "Basic {}"}}',
        "git clone https://user:{}@example.org/x.git",
        "https://{}@example.org/x.git",
        "https://example.org/file?X-Amz-Signature={}&part=2",
        "aws_secret_access_key = {}",
        '{{"password": "{}"}}',
    ],
)
def test_a_secret_does_not_survive(text, secret):
    shown = redact(text.format(secret))
    assert secret not in shown
    assert "***" in shown


@pytest.mark.parametrize("secret", [HF, AWS_ID, OPENAI, GITHUB])
def test_a_secret_is_recognized_by_its_format_alone(secret):
    assert redact(f"the model said {secret}, and stopped") == "the model said ***, and stopped"


def test_a_private_key_is_hidden_completely():
    begin, end = "-----BEGIN RSA " + "PRIVATE KEY-----", "-----END RSA " + "PRIVATE KEY-----"
    assert redact(f"a {begin}\nMIIE\nabc\n{end} b") == "a *** b"
    assert redact(f"cut {begin}\nMIIE") == "cut ***"


def test_the_value_of_a_secret_variable_is_hidden_wherever_it_stands(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", WANDB)
    assert redact(f"login failed for {WANDB}") == "login failed for ***"
    assert redact({"notes": [f"see {WANDB}", 3]}) == {"notes": ["see ***", 3]}


def test_a_short_value_of_a_secret_variable_does_not_blank_the_log(monkeypatch):
    monkeypatch.setenv("MY_SECRET", "step")
    assert redact("step 3: loss 1.2") == "step 3: loss 1.2"


def test_a_mapping_is_masked_by_its_names():
    values = {
        "HF_TOKEN": "x",
        "model": {"api_key": "y", "pad_token": "<pad>"},
        "seed": 42,
        "password": None,
    }
    assert redact(values) == {
        "HF_TOKEN": "***",
        "model": {"api_key": "***", "pad_token": "<pad>"},
        "seed": 42,
        "password": None,
    }


@pytest.mark.parametrize(
    "text",
    [
        "--model.tokenizer_pad_token <pad>",
        "tokenizer_kwargs: {pad_token: <|pad|>, eos_token: </s>}",
        "max_new_tokens=256 num_tokens: 12 tokens_per_second=3.5",
        "profiler.sort_key: cuda_time",
        "TOKENIZERS_PARALLELISM=false",
        "the key is: patience; the password was forgotten",
        "commit ec061e95ad41004b6399eab613114d40238f9c63",
        "https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
        "step 12: loss 2.31, mail me@example.org",
        "unknown key 'max_grad_nrm'",
        "",
    ],
)
def test_other_text_is_unchanged(text):
    assert redact(text) == text


def test_a_command_line_is_masked_where_name_and_value_are_apart():
    command = [
        "oumi",
        "train",
        "--hub-token",
        "abc",
        "--api_key=def",
        "--training.seed",
        "1",
        "https://a:b@c/d",
    ]
    assert redact_command(command) == [
        *("oumi", "train", "--hub-token", "***", "--api_key=***", "--training.seed", "1", "https://***@c/d")
    ]


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "hfToken", "WANDB_API_KEY", "SSH_KEY", "aws.secret_access_key", "DB_PASSWORD"]
)
def test_names_of_secrets(name):
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name", ["pad_token", "key", "sort_key", "tokens", "tokenizer", "TOKENIZERS_PARALLELISM", "", "keyboard"]
)
def test_names_of_other_things(name):
    assert not is_secret_name(name)


@given(st.text())
def test_redacting_twice_is_redacting_once(text):
    assert redact(redact(text)) == redact(text)


@pytest.mark.parametrize("piece", ["a", "token", "key ", "x://", "token='", "a=", "--token ", "x@"])
def test_long_text_is_redacted_in_linear_time(piece):
    started = time.perf_counter()
    redact(piece * (200_000 // len(piece)))
    assert time.perf_counter() - started < 2
