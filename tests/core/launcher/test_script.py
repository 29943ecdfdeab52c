# SPDX-License-Identifier: Apache-2.0
"""What a job file contains arrives byte for byte in the shell of a job, and none of it is executed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oumi.core.configs import JobConfig, JobResources
from oumi.core.errors import ConfigError
from oumi.core.launcher.script import job_script, secret_values

_HOSTILE = [
    "$(touch hit)", "`touch hit`", ";touch hit;", "|touch hit", "\ntouch hit\n", "&& touch hit", "a[$(touch hit)]",
    "'", '"', "\\", "\\\n", "\r\n", "$HOME", "${PATH}", "~", "*", "{a,b}", "!!", "#", " ", "\t", "\x01", "\x7f", "-n",
    "EOF\n", "é", "日本", "😀", "\u202e", "\udcff", "%s", "<(touch hit)", "=", "",
]  # fmt: skip
TEXTS = st.lists(
    st.sampled_from(_HOSTILE) | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), max_size=6
).map("".join)
NAMES = st.from_regex(r"\AV[A-Za-z0-9_]{0,8}\Z")


def job(**keys: object) -> JobConfig:
    return JobConfig.model_validate({"resources": {"cloud": "local"}, "run": "env -0", **keys})


def run_script(config: JobConfig, folder: Path, working_dir: Path) -> dict[bytes, bytes]:
    """Returns the environment that the script of a job hands on, in which nothing else must have happened."""
    path = folder / "script.sh"
    path.write_bytes(os.fsencode(job_script(config, str(working_dir))))
    result = subprocess.run(["bash", path], capture_output=True, check=True, cwd=folder)
    assert result.stderr == b""
    assert not list(folder.rglob("hit"))
    return dict(line.split(b"=", 1) for line in result.stdout.split(b"\0") if line)  # type: ignore[misc]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.dictionaries(NAMES, TEXTS, max_size=4), title=TEXTS)
def test_values_arrive_byte_for_byte(tmp_path: Path, values: dict[str, str], title: str) -> None:
    environment = run_script(job(envs=values, name=title), tmp_path, tmp_path)
    assert {name: environment[name.encode()] for name in values} == {
        name: os.fsencode(value) for name, value in values.items()
    }


@pytest.mark.parametrize(
    "name", ["it's", 'say "hi"', "$(touch hit)", "-n", "a b\n", "`touch hit`", "~", "é\udcff", "*"]
)
def test_a_working_directory_may_have_any_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    assert run_script(job(), tmp_path, tmp_path / name)[b"PWD"] == os.fsencode(tmp_path / name)


def test_a_value_of_100_kb_arrives_and_one_that_no_process_can_have_is_refused(tmp_path: Path) -> None:
    value = "$(touch hit) '\"\n" * 6600
    assert run_script(job(envs={"BIG": value}), tmp_path, tmp_path)[b"BIG"] == value.encode()
    with pytest.raises(ConfigError, match=r"envs.BIG: has 132,004 bytes; a process takes at most 131,071"):
        job_script(job(envs={"BIG": "x" * 132_000}), None)


@pytest.mark.parametrize("name", ["A-B", "1A", "", "A B", "a;touch hit", "A=B", "$(touch hit)", "é"])
def test_a_name_that_no_shell_takes_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="expected letters, digits and _, with no digit first"):
        job_script(job(envs={name: "1"}), None)


@pytest.mark.parametrize("name", ["UID", "RANDOM", "PWD", "_", "BASH_ARGV0", "SHELLOPTS"])
def test_a_variable_of_bash_itself_is_refused(name: str) -> None:
    # `export RANDOM='a[$(command)]'` runs the command, and UID keeps its value.
    with pytest.raises(ConfigError, match=f"envs.{name}: is set by bash itself"):
        job_script(job(envs={name: "a[$(touch hit)]"}), None)


@pytest.mark.parametrize("key", ["setup", "run"])
def test_what_no_file_can_hold_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key}: contains a NUL byte"):
        job_script(job(**{key: "echo \0"}), None)
    with pytest.raises(ConfigError, match=r"envs.A: contains U\+D800"):
        job_script(job(envs={"A": "\ud800"}), None)


def test_the_first_command_that_fails_ends_a_script(tmp_path: Path) -> None:
    (tmp_path / "script.sh").write_text(job_script(job(setup="false", run="touch hit"), str(tmp_path)))
    assert subprocess.run(["bash", tmp_path / "script.sh"], check=False).returncode == 1
    assert not (tmp_path / "hit").exists()


def test_secrets_come_from_the_environment_and_are_in_no_script(monkeypatch: pytest.MonkeyPatch) -> None:
    config = job(secrets=["TOKEN_A", "TOKEN_B"])
    monkeypatch.setenv("TOKEN_A", "s3cret")
    with pytest.raises(ConfigError, match=r"1 problem\n  secrets.TOKEN_B: not set in your environment"):
        secret_values(config)
    monkeypatch.setenv("TOKEN_B", "$(touch hit)")
    assert secret_values(config) == {"TOKEN_A": "s3cret", "TOKEN_B": "$(touch hit)"}
    assert "s3cret" not in job_script(config, None)


def test_a_variable_is_a_secret_or_not() -> None:
    config = JobConfig(resources=JobResources(cloud="local"), run="true", secrets=["A"], envs={"A": "1"})
    with pytest.raises(ConfigError, match=r"secrets.A: is a variable of envs, too"):
        config.finalize_and_validate()
