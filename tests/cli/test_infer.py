# SPDX-License-Identifier: Apache-2.0
"""`oumi infer`: a file of questions becomes a file of answers."""

from __future__ import annotations

import json
import math
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import typer
from pyarrow import parquet
from typer.testing import CliRunner

from oumi.cli.config import EXTRA
from oumi.cli.infer import infer
from oumi.core.errors import ConfigError, DataError
from oumi.core.results.chat_model import answer, load_chat_model
from tests.tiny import byte_tokenizer, save_tiny_model, tiny_llama

app = typer.Typer()
app.command("infer", context_settings=EXTRA)(infer)
app.command("other")(lambda: None)  # so that typer keeps the name of the first
QUESTIONS = [f"What is {i} plus {i * 7 % 5}?" + " Please." * (i % 4) for i in range(9)]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"), initializer_range=0.2)


def run(*arguments: Any) -> Any:
    result = CliRunner().invoke(app, ["infer", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def written(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def chats() -> list[dict[str, Any]]:
    return [{"messages": [{"role": "user", "content": question}], "id": i} for i, question in enumerate(QUESTIONS)]


def test_each_row_gets_its_answer_and_keeps_its_place(model_dir: Path, tmp_path: Path) -> None:
    source, target = written(tmp_path / "in.jsonl", chats()), tmp_path / "out" / "answers.jsonl"
    run(model_dir, "--input", source, "--output", target, "--max-new-tokens", 8)
    expected = answer(load_chat_model(model_dir), [row["messages"] for row in chats()], 8)
    rows = read(target)
    assert [row["messages"][-1] for row in rows] == [{"role": "assistant", "content": text} for text in expected]
    assert [row["id"] for row in rows] == list(range(9))
    assert [row["provenance"]["source"] for row in rows] == [f"{source}:{i + 1}" for i in range(9)]
    assert {row["provenance"]["model"] for row in rows} == {str(model_dir)}


@pytest.mark.parametrize("settings", [[], ["--temperature", "1.5", "--generation.seed", "3"]])
def test_answers_do_not_depend_on_the_batch(model_dir: Path, tmp_path: Path, settings: list[str]) -> None:
    source = written(tmp_path / "in.jsonl", chats())
    files = []
    for size in (1, 4):
        files.append(tmp_path / f"{size}.jsonl")
        flags = ["--max-new-tokens", 12, "--generation.batch_size", size, *settings]
        run(model_dir, "--input", source, "--output", files[-1], *flags)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_samples_differ_by_seed_and_row(model_dir: Path, tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", [{"prompt": "Hi"}] * 4)
    answers = []
    for seed in (0, 1):
        target = tmp_path / f"{seed}.jsonl"
        run(model_dir, "--input", source, "--output", target, "--temperature", 2, "--generation.seed", seed)
        answers += [row["answer"] for row in read(target)]
    assert len(set(answers)) == 8


def test_a_stopped_try_goes_on_where_it_ended(model_dir: Path, tmp_path: Path) -> None:
    source, whole, target = written(tmp_path / "in.jsonl", chats()), tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    run(model_dir, "--input", source, "--output", whole, "--max-new-tokens", 8)
    lines = whole.read_bytes().splitlines(keepends=True)
    target.write_bytes(b"".join(lines[:4]) + lines[4][:30])  # killed while it wrote
    result = run(model_dir, "--input", source, "--output", target, "--max-new-tokens", 8)
    assert "5 rows answered, 4 were answered before" in result.stderr
    assert target.read_bytes() == whole.read_bytes()
    assert "0 rows answered, 9" in run(model_dir, "--input", source, "--output", target, "--max-new-tokens", 8).stderr


def test_answers_of_other_settings_are_not_mixed(model_dir: Path, tmp_path: Path) -> None:
    source, target = written(tmp_path / "in.jsonl", chats()), tmp_path / "out.jsonl"
    run(model_dir, "--input", source, "--output", target, "--max-new-tokens", 2)
    before = target.read_bytes()
    with pytest.raises(ConfigError, match=r"out.jsonl has 9 answers to other rows, of another model or with other"):
        run(model_dir, "--input", source, "--output", target, "--max-new-tokens", 3)
    assert target.read_bytes() == before


def test_answers_of_another_precision_are_not_mixed(model_dir: Path, tmp_path: Path) -> None:
    source, target = written(tmp_path / "in.jsonl", chats()[:1]), tmp_path / "out.jsonl"
    flags = ["--input", source, "--output", target, "--max-new-tokens", 1]
    run(model_dir, *flags, "--model.torch_dtype_str", "float32")
    with pytest.raises(ConfigError, match=r"out.jsonl has 1 answers to other rows"):
        run(model_dir, *flags, "--model.torch_dtype_str", "float64")


@pytest.mark.parametrize("content", ["notes without an end", '{"a": 1}', "{a}", "first\nsecond", '{"a": 1}\n{"b"'])
def test_a_file_of_something_else_is_left_as_it_is(model_dir: Path, tmp_path: Path, content: str) -> None:
    source, target = written(tmp_path / "in.jsonl", chats()[:1]), tmp_path / "notes.txt"
    target.write_text(content)
    with pytest.raises(ConfigError, match=r"notes\.txt:1: not an answer of `oumi infer`; name another output file"):
        run(model_dir, "--input", source, "--output", target, "--max-new-tokens", 1)
    assert target.read_text() == content


def test_a_missing_file_is_called_missing_whatever_its_name(model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"questions: no such file"):
        run(model_dir, "--input", tmp_path / "questions", "--output", tmp_path / "out.jsonl")


def test_values_of_parquet_that_json_does_not_have(model_dir: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "in.parquet", tmp_path / "out.jsonl"
    columns = {"prompt": ["a", "b", "c"], "when": [datetime(2026, 1, 2)] * 3, "raw": [None, b"x", None]}
    parquet.write_table(pyarrow.table({**columns, "score": [0.5, 0.5, math.nan]}), source)
    with pytest.raises(DataError, match="2 rows have no answer") as caught:
        run(model_dir, "--input", source, "--output", target, "--max-new-tokens", 1)
    assert "in.parquet:1: has a value that JSON cannot store, of type bytes" in str(caught.value)
    assert [(row["prompt"], row["when"]) for row in read(target)] == [("a", "2026-01-02T00:00:00")]


@pytest.mark.parametrize(("key", "value"), [("logit_bias", "{260: 5}"), ("stop_token_ids", "[-1]")])
def test_a_token_that_the_model_does_not_have(model_dir: Path, tmp_path: Path, key: str, value: str) -> None:
    source = written(tmp_path / "in.jsonl", chats()[:1])
    with pytest.raises(ConfigError, match=rf"generation\.{key}: no token .*; the model has 0 to 259"):
        run(model_dir, "--input", source, "--output", tmp_path / "out.jsonl", f"--generation.{key}", value)


def test_rows_without_an_answer_are_listed_after_the_others_are_answered(model_dir: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": "Hi"},
        "{broken",
        {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]},
        {"question": "x" * 600},
        {"label": 1},
        {"prompt": "Hi", "provenance": {}},
        {"text": "Once"},
        {"text": ""},
    ]
    source, target = written(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    with pytest.raises(DataError) as caught:
        run(model_dir, "--input", source, "--output", target, "--max-new-tokens", 2)
    lines = str(caught.value).splitlines()
    assert lines[0] == "6 rows have no answer:"
    for line, expected in zip(
        lines[1:],
        ("in.jsonl:2: not valid JSON", "in.jsonl:3: its last message is an answer", "in.jsonl:4: too long: it has 6",
         "in.jsonl:5: no question: expected 'messages', 'prompt' or 'text'; its keys are label",
         "in.jsonl:6: has 'provenance' already", "in.jsonl:8: is empty: it has no tokens"),
        strict=True,
    ):  # fmt: skip
        assert expected in line
    assert [row["provenance"]["source"][-2:] for row in read(target)] == [":1", ":7"]


def test_a_file_configures_all_of_it(model_dir: Path, tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", chats()[:2])
    config = tmp_path / "infer.yaml"
    config.write_text(
        f"model: {{model_name: {model_dir}, trust_remote_code: true}}\n"
        "generation: {max_new_tokens: 8, temperature: 0.0, batch_size: 2, top_p: 0.9, use_cache: true}\n"
        f"input_path: {source}\noutput_path: {tmp_path / 'out.jsonl'}\nengine: NATIVE\n"
    )
    result = run("-c", config)
    for line in (
        "model.trust_remote_code",
        "generation.use_cache: keys and values are always cached",
        "generation.top_p: nothing is sampled, since the temperature is 0",
    ):
        assert f"not read: {line}\n" in result.stderr
    expected = answer(load_chat_model(model_dir), [row["messages"] for row in chats()[:2]], 8)
    assert [row["messages"][-1]["content"] for row in read(tmp_path / "out.jsonl")] == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("engine: VLLM", "engine: VLLM: not supported, only NATIVE"),
        ("generation: {max_new_token: 3}", "max_new_token: unknown key, did you mean 'max_new_tokens'"),
        ("generation: {use_sampling: true}", "use_sampling: needs a temperature above 0"),
        ("remote_params: {api_url: x}", "remote_params: not supported"),
        ("training: {max_steps: 1}", "expected an inference config"),
    ],
)
def test_what_a_file_cannot_ask_for_is_reported(tmp_path: Path, text: str, message: str) -> None:
    config = tmp_path / "infer.yaml"
    config.write_text(text + ("\nmodel: {model_name: m}\n" if "training" not in text else "\n"))
    with pytest.raises(ConfigError, match=message):
        run("-c", config)


def test_a_base_model_continues_texts_and_prompts(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "model")
    tiny_llama(initializer_range=0.2).save_pretrained(tmp_path / "model")
    rows = [{"text": "Once upon"}, {"prompt": "Once upon"}, {"messages": [{"role": "user", "content": "Once"}]}]
    source, target = written(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    with pytest.raises(DataError, match=r"in\.jsonl:3: a chat, but the tokenizer has no chat template"):
        run(tmp_path / "model", "--input", source, "--output", target, "--max-new-tokens", 6)
    first, second = (row["answer"] for row in read(target))
    assert first == second != ""


def test_settings_of_a_generation_act(model_dir: Path, tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", chats()[:3])

    def answers(*flags: Any) -> list[dict[str, Any]]:
        target = tmp_path / f"{len(list(tmp_path.iterdir()))}.jsonl"
        run(model_dir, "--input", source, "--output", target, "--max-new-tokens", 16, *flags)
        return read(target)

    texts = [row["messages"][-1]["content"] for row in answers()]
    stopped = answers("--generation.stop_strings", f'["{texts[0][2]}"]')[0]
    assert stopped["messages"][-1]["content"] == texts[0][: texts[0].index(texts[0][2])]
    assert stopped["provenance"]["finish"] == "stop"
    biased = answers("--generation.logit_bias", json.dumps({byte_tokenizer()("A")["input_ids"][0]: 100}))
    assert biased[0]["messages"][-1]["content"] == "A" * 16
    assert biased[0]["provenance"]["finish"] == "length"
    penalized = answers("--generation.presence_penalty", 2, "--generation.frequency_penalty", 2)
    assert [row["messages"][-1]["content"] for row in penalized] != texts
    assert len(answers("--generation.num_beams", 3)) == 3
