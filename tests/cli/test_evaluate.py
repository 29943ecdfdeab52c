# SPDX-License-Identifier: Apache-2.0
"""`oumi eval`: the measures of a model on rows that it was not trained on."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from oumi.cli.evaluate import evaluate
from oumi.core.configs import TrainingConfig
from oumi.core.errors import ConfigError, DataError
from oumi.core.results.chat_model import answer, load_chat_model
from oumi.core.train import train
from tests.runs import tiny_config
from tests.tiny import byte_tokenizer, save_tiny_model, write_chats, write_pairs
from tests.tiny_vision import image, save_tiny_gemma3

app = typer.Typer()
app.command()(evaluate)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"), initializer_range=0.2)


def metrics(folder: Path, *arguments: Any) -> dict[str, Any]:
    output = folder / "results.json"
    result = CliRunner().invoke(app, [*map(str, arguments), "--output", str(output)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return json.loads(output.read_text())["metrics"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("training", [{}, {"use_peft": True}, {"trainer_type": "TRL_SFT"}])
def test_the_loss_is_the_one_that_the_training_reports(tmp_path: Path, training: dict[str, Any]) -> None:
    config = tiny_config(tmp_path, num_rows=8, max_steps=2, eval_strategy="steps", eval_steps=2, **training)
    others = write_chats(tmp_path / "others.jsonl", 12)
    config.data.validation.datasets = [config.data.train.datasets[0].model_copy(update={"dataset_path": str(others)})]
    reported = train(config).metrics
    config.to_yaml(tmp_path / "train.yaml")
    ours = [tmp_path / "out", "--data", others]
    # Without its config, the tokens count that trainer OUMI trains.
    for arguments in (["-c", tmp_path / "train.yaml"], [*ours, "-c", tmp_path / "train.yaml"], ours):
        if arguments is ours and "trainer_type" in training:
            continue
        measured = metrics(tmp_path, *arguments)
        assert measured["loss"] == pytest.approx(reported["eval_loss"], rel=1e-6)
        assert measured["perplexity"] == pytest.approx(reported["eval_perplexity"], rel=1e-5)
        assert measured["num_rows"] == 12


def test_exact_answers_are_counted(model_dir: Path, tmp_path: Path) -> None:
    chats = [[{"role": "user", "content": question}] for question in ("Hi", "Why?", "Sure?", "No?")]
    answers = answer(load_chat_model(model_dir), chats, 8)
    answers[1] = "something else"
    rows = [
        {"messages": [*chat, {"role": "assistant", "content": text}]} for chat, text in zip(chats, answers, strict=True)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    measured = metrics(tmp_path, model_dir, "--data", path, "--exact-match", "--max-new-tokens", 8)
    assert (measured["exact_match"], measured["num_answers"]) == (0.75, 4)


def test_answers_are_compared_for_the_rows_that_are_measured(model_dir: Path, tmp_path: Path) -> None:
    config, others = tiny_config(tmp_path, num_rows=4), write_chats(tmp_path / "others.jsonl", 5)
    others.write_text('{"messages": []}\n' + others.read_text())
    config.data.validation.datasets = [
        config.data.train.datasets[0].model_copy(update={"dataset_path": str(others), "sample_count": 3})
    ]
    config.data.validation.max_rejected_rows = 1
    config.to_yaml(tmp_path / "train.yaml")
    measured = metrics(tmp_path, model_dir, "-c", tmp_path / "train.yaml", "--exact-match", "--max-new-tokens", 1)
    assert (measured["num_rows"], measured["num_answers"]) == (3, 3)


def test_rows_that_cannot_be_used_are_told_with_what_a_user_can_do(model_dir: Path, tmp_path: Path) -> None:
    config, others = tiny_config(tmp_path, num_rows=4), write_chats(tmp_path / "others.jsonl", 5)
    others.write_text('{"messages": []}\n' + others.read_text())
    with pytest.raises(DataError, match=r"Fix them, or remove them from the file$"):
        metrics(tmp_path, model_dir, "--data", others)
    source = config.data.train.datasets[0].model_copy(update={"dataset_path": str(others)})
    config.data.validation.datasets = [source]
    config.to_yaml(tmp_path / "train.yaml")
    with pytest.raises(DataError, match=r"leave them out with data\.validation.max_rejected_rows: 1"):
        metrics(tmp_path, model_dir, "-c", tmp_path / "train.yaml")


def test_exact_answers_about_images_are_refused(tmp_path: Path) -> None:
    model, rows = save_tiny_gemma3(tmp_path / "model"), tmp_path / "rows.jsonl"
    image(0).save(tmp_path / "0.png")
    question = [{"type": "image_path", "content": "0.png"}, {"type": "text", "content": "What?"}]
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": "Dots."}]
    rows.write_text(json.dumps({"messages": turns}) + "\n")
    with pytest.raises(ConfigError, match="--exact-match: rows with images are not supported yet"):
        metrics(tmp_path, model, "--data", rows, "--exact-match", "--max-new-tokens", 1)


def test_preferences_are_those_of_the_log_probabilities(model_dir: Path, tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs.jsonl", 10)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(str(model_dir)), byte_tokenizer()
    sums, means = [], []
    for line in pairs.read_text().splitlines():
        values = []
        for key in ("chosen", "rejected"):
            turns = json.loads(line)[key]
            prompt = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True)["input_ids"]
            tokens = torch.tensor(tokenizer.apply_chat_template(turns)["input_ids"])[:-1]  # without the last line break
            with torch.no_grad():
                logits = model(tokens[None]).logits[0, len(prompt) - 1 : -1]
            log_probs = torch.log_softmax(logits, -1).gather(1, tokens[len(prompt) :, None])
            values.append((float(log_probs.sum()), float(log_probs.mean())))
        sums.append(values[0][0] > values[1][0])
        means.append(values[0][1] > values[1][1])
    measured = metrics(tmp_path, model_dir, "--data", pairs)
    assert measured["preference_accuracy"] == sum(sums) / 10
    assert measured["preference_accuracy_per_token"] == sum(means) / 10
    assert "reward_accuracy" not in measured


def test_a_reference_gives_the_reward_that_the_training_reports(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs.jsonl", 12)
    config = tiny_config(tmp_path, method="dpo", max_steps=4, eval_strategy="steps", eval_steps=4, learning_rate=1e-2)
    config.data.train.datasets[0].dataset_path = str(pairs)
    config.data.validation.datasets = list(config.data.train.datasets)
    for use_peft in (False, True):
        config.training.use_peft, config.training.output_dir = use_peft, str(tmp_path / f"out{use_peft}")
        reported = train(config).metrics["eval_rewards/accuracies"]
        reference = [] if use_peft else ["--reference", tmp_path / "model"]
        measured = metrics(tmp_path, config.training.output_dir, "--data", pairs, *reference)
        assert measured["reward_accuracy"] == pytest.approx(reported)


def test_arguments_of_a_method_have_no_part_in_the_measure(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs.jsonl", 4)
    config = tiny_config(tmp_path, method="simpo", trainer_kwargs={"simpo_gamma": 0.3}, eval_strategy="steps")
    config.data.validation.datasets = [config.data.train.datasets[0].model_copy(update={"dataset_path": str(pairs)})]
    config.to_yaml(tmp_path / "train.yaml")
    measured = metrics(tmp_path, tmp_path / "model", "-c", tmp_path / "train.yaml")
    assert measured["num_pairs"] == 4


def test_judged_completions_are_refused(model_dir: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "Hi", "completion": "Ho", "label": true}\n')
    with pytest.raises(ConfigError, match="judged completions"):
        metrics(tmp_path, model_dir, "--data", rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected the directory of a model"),
        (["{model}"], "nothing to evaluate on"),
        (["{model}", "--data", "gone.jsonl"], "--data: no file gone.jsonl"),
        (["gone", "--data", "{rows}"], "gone: no such directory"),
        (["{model}", "--data", "{rows}", "--limit", "3"], "are for --tasks"),
        (["{model}", "--data", "{rows}", "--tasks", "arc_easy"], "--tasks brings its own rows"),
        (["{model}", "--data", "{rows}", "--reference", "{model}"], "--reference is for pairs"),
        (["-c", "{config}"], r"data\.validation\.datasets: empty"),
    ],
)
def test_what_cannot_be_measured_is_reported(
    model_dir: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    rows, config = write_chats(tmp_path / "rows.jsonl", 2), tmp_path / "train.yaml"
    TrainingConfig.from_str(
        f"model: {{model_name: {model_dir}}}\ntraining: {{trainer_type: OUMI, output_dir: {model_dir}}}\n"
        "data: {train: {datasets: [{dataset_name: oumi/quickstart}]}}\n"
    ).to_yaml(config)
    texts = [text.format(model=model_dir, rows=rows, config=config) for text in arguments]
    with pytest.raises(ConfigError, match=message):
        metrics(tmp_path, *texts)


def test_rows_that_cannot_be_used_are_listed(model_dir: Path, tmp_path: Path) -> None:
    rows = write_chats(tmp_path / "rows.jsonl", 2)
    rows.write_text(rows.read_text() + '{"messages": []}\n')
    with pytest.raises(DataError, match=r"rows\.jsonl:3: the conversation is empty"):
        metrics(tmp_path, model_dir, "--data", rows)


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="lm-eval is installed")
def test_missing_lm_eval_names_the_command(model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"lm-eval is not installed: pip install 'oumi\[eval\]'"):
        metrics(tmp_path, model_dir, "--tasks", "arc_easy")
