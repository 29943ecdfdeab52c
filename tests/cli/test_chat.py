# SPDX-License-Identifier: Apache-2.0
"""`oumi chat` and `oumi infer -i`, with questions piped in."""

from __future__ import annotations

import pytest
import typer
from typer.testing import CliRunner

from oumi.cli.chat import ChatSession, chat
from oumi.cli.config import EXTRA
from oumi.cli.infer import infer
from oumi.core.errors import ConfigError
from oumi.core.results.chat_model import answer, load_chat_model, load_untrained
from tests.tiny import save_tiny_model

app = typer.Typer()
app.command("chat")(chat)
app.command("infer", context_settings=EXTRA)(infer)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"), initializer_range=0.2)


def run(*arguments, lines=()):
    return CliRunner().invoke(app, [str(part) for part in arguments], input="".join(f"{line}\n" for line in lines))


def test_each_line_is_a_question_and_each_answer_goes_to_stdout(model_dir):
    result = run("chat", model_dir, "--max-new-tokens", "8", lines=["Hi", "", "/reset", "Why?"])
    alone = [[{"role": "user", "content": question}] for question in ("Hi", "Why?")]
    expected = answer(load_chat_model(model_dir), alone, 8)
    assert result.exit_code == 0
    assert result.stdout == "".join(f"{_shown(text)}\n" for text in expected)


def test_earlier_turns_are_remembered(model_dir):
    result = run("chat", model_dir, "--max-new-tokens", "8", lines=["Hi", "Why?"])
    model = load_chat_model(model_dir)
    turns = [{"role": "user", "content": "Hi"}]
    first = answer(model, [turns], 8)[0]
    turns += [{"role": "assistant", "content": first}, {"role": "user", "content": "Why?"}]
    assert result.stdout == f"{_shown(first)}\n{_shown(answer(model, [turns], 8)[0])}\n"


def test_system_message_changes_the_answer(model_dir):
    plain = run("chat", model_dir, "--max-new-tokens", "8", lines=["Hi"])
    instructed = run("chat", model_dir, "--max-new-tokens", "8", "--system", "Speak French.", lines=["Hi"])
    assert plain.stdout != instructed.stdout


def test_quit_ends_the_chat(model_dir):
    assert run("chat", model_dir, lines=["/quit", "Hi"]).stdout == ""


def test_unknown_command_is_reported_and_the_chat_goes_on(model_dir):
    result = run("chat", model_dir, "--max-new-tokens", "4", lines=["/rest", "Hi"])
    assert "unknown command /rest; the commands are /reset and /quit" in result.stderr
    assert result.stdout.endswith("\n")


def test_control_characters_of_an_answer_do_not_reach_the_terminal():
    result = run("chat", "--help")
    assert result.exit_code == 0
    assert _shown("a\x1b[2Jb\tc") == "a\ufffd[2Jb\tc"


def test_chat_forgets_its_oldest_turns_when_the_model_is_full():
    model = load_untrained("oumi://tiny", 0)
    session = ChatSession(model, "Be brief.", 16, 0.0)
    question = "How many letters are in abcdefgh?"
    for _ in range(8):
        session.ask(question, str)
        first = session.messages[0], session.messages[1]["content"]
        assert first == ({"role": "system", "content": "Be brief."}, question)
        assert len(session.messages) % 2 == 1
    assert len(session.messages) < 2 * 8


def test_question_that_is_too_long_is_refused_and_not_kept():
    session = ChatSession(load_untrained("oumi://tiny", 0), None, 4, 0.0)
    with pytest.raises(ConfigError, match="the model can process 128"):
        session.ask("x" * 500, str)
    assert session.messages == []


def test_infer_answers_like_chat(model_dir):
    result = run("infer", "-i", model_dir, "--max-new-tokens", "8", lines=["Hi"])
    assert result.stdout == run("chat", model_dir, "--max-new-tokens", "8", lines=["Hi"]).stdout != ""


def test_a_chat_names_the_keys_that_it_does_not_read(model_dir):
    flags = ["--temperature", "3", "--generation.use_sampling", "false", "--generation.top_p", "0.5", "--input", "x"]
    result = run("infer", "-i", model_dir, "--max-new-tokens", "8", *flags, lines=["Hi"])
    assert result.stdout == run("chat", model_dir, "--max-new-tokens", "8", lines=["Hi"]).stdout != ""
    lines = ["not read: generation.top_p: a chat does not read it", "not read: input_path: a chat does not read it"]
    assert result.stderr.splitlines() == lines


def test_infer_takes_the_model_that_a_config_trained(model_dir, tmp_path):
    config = tmp_path / "train.yaml"
    config.write_text(
        f"model: {{model_name: {model_dir}}}\n"
        "data: {train: {datasets: [{dataset_name: oumi/quickstart}]}}\n"
        f"training: {{trainer_type: OUMI, output_dir: {model_dir}}}\n"
    )
    result = run("infer", "-i", "-c", config, "--max-new-tokens", "8", lines=["Hi"])
    assert result.stdout == run("chat", model_dir, "--max-new-tokens", "8", lines=["Hi"]).stdout != ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x"], "input_path: required"),
        (["-i"], "expected either the directory of a model"),
        (["-i", "x", "-c", "y"], "expected either the directory of a model"),
    ],
)
def test_infer_names_the_missing_option(arguments, message):
    error = run("infer", *arguments).exception
    assert isinstance(error, ConfigError)
    assert message in str(error)


def _shown(text: str) -> str:
    return "".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in text)
