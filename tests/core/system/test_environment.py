# SPDX-License-Identifier: Apache-2.0
"""The description of the environment of a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version

import pytest
import typer
from typer.testing import CliRunner

from oumi.cli.env import env
from oumi.core.system.environment import describe_environment, git_state, installed_packages

TOKEN = "hf_" + "aB3" * 11


@pytest.fixture
def terminal():
    app = typer.Typer()
    app.command()(env)
    return lambda *arguments: CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_the_description_is_json_and_names_versions_and_device():
    facts = json.loads(json.dumps(describe_environment(["oumi", "train"])))
    assert facts["command"] == ["oumi", "train"]
    assert facts["packages"]["torch"] == version("torch")
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert facts["device"]["num_cpus"] >= 1


def test_no_secret_of_the_environment_or_the_command_line_is_described(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    facts = describe_environment(["oumi", "train", "--hub.token", TOKEN, "0123456789" * 4])
    assert TOKEN not in str(facts)
    assert "0123456789" * 4 not in str(facts)
    assert facts["environment"]["HF_TOKEN"] == "***"


def test_every_package_is_listed_once_in_lower_case():
    names = list(installed_packages())
    assert names == sorted({name.lower() for name in names})
    assert "huggingface-hub" in names


def test_a_git_checkout_is_described_and_its_credentials_are_not(tmp_path):
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init", "-b", "work")
    git("commit", "--allow-empty", "-m", "first")
    git("remote", "add", "origin", "https://me:secret@example.org/x.git")
    facts = git_state(tmp_path)
    assert facts is not None
    assert len(facts["commit"]) == 40
    assert (facts["branch"], facts["is_changed"]) == ("work", False)
    assert facts["remote"] == "https://***@example.org/x.git"


def test_outside_git_and_without_git_there_is_no_commit(tmp_path, monkeypatch):
    assert git_state(tmp_path) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path) is None
    assert describe_environment()["gpus"] == []


def test_env_prints_versions_devices_and_variables(terminal, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    result = terminal()
    assert result.exit_code == 0
    for text in (version("torch"), "Device", "CUDA_VISIBLE_DEVICES", "HF_TOKEN", "***"):
        assert text in result.output
    assert TOKEN not in result.output


def test_env_as_json_is_the_full_description(terminal):
    assert set(json.loads(terminal("--json").output)) == set(describe_environment())


def test_env_loads_no_torch():
    code = "import sys; from oumi.cli.env import env; env(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=dict(os.environ))
