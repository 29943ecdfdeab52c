# SPDX-License-Identifier: Apache-2.0
"""The commands that start several processes."""

from __future__ import annotations

from pathlib import Path

from tests.fork_server import run_python
from tests.runs import tiny_config

SKY = {"SKYPILOT_NODE_RANK": "1", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_GPUS_PER_NODE": "8"}


def test_accelerate_is_told_the_machines_and_its_exit_code_is_kept(tmp_path: Path) -> None:
    program = tmp_path / "accelerate"
    program.write_text('#!/bin/sh\necho "$@"\nexit 7\n')
    program.chmod(0o755)
    command = ("distributed", "accelerate", "launch", "--mixed_precision=bf16", "-m", "oumi", "train", "--help")
    done = run_python("-m", "oumi", *command, folder=tmp_path, PATH=f"{tmp_path}:/usr/bin:/bin", **SKY)
    assert done.returncode == 7, done.stderr
    assert done.stdout.split() == [
        "launch", "--num_machines=2", "--machine_rank=1", "--num_processes=16", "--main_process_ip=10.0.0.1",
        "--main_process_port=8007", "--mixed_precision=bf16", "-m", "oumi", "train", "--help",
    ]  # fmt: skip


def test_a_job_that_expects_other_machines_is_refused(tmp_path: Path) -> None:
    command = ("distributed", "torchrun", "-m", "oumi", "train", "-c", "none.yaml")
    done = run_python("-m", "oumi", *command, folder=tmp_path, OUMI_NUM_NODES="4", **SKY)
    assert done.returncode == 2
    assert done.stderr == "Error: OUMI_NUM_NODES is 4, but SkyPilot gives 2 nodes\n"


def test_a_typo_is_reported_once_and_starts_no_processes(tmp_path: Path) -> None:
    tiny_config(tmp_path).to_yaml(tmp_path / "train.yaml")
    command = ("train", "-c", "train.yaml", "--nproc-per-node", "2", "--training.max_stepz", "3")
    done = run_python("-m", "oumi", *command, folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("max_stepz: unknown key, did you mean 'max_steps'?") == 1
    assert "rank" not in done.stderr


def test_a_log_level_that_is_none_is_refused(tmp_path: Path) -> None:
    done = run_python("-m", "oumi", "distributed", "torchrun", "x.py", folder=tmp_path, LOGLEVEL="loud")
    assert done.returncode == 2
    assert done.stderr.startswith("Error: the log level (--log-level or LOGLEVEL) is 'loud': expected one of debug")


def test_a_number_of_processes_that_is_none_is_refused(tmp_path: Path) -> None:
    tiny_config(tmp_path).to_yaml(tmp_path / "train.yaml")
    done = run_python("-m", "oumi", "train", "-c", "train.yaml", "--nproc-per-node", "many", folder=tmp_path)
    assert done.returncode == 2
    assert "--nproc-per-node is 'many'" in done.stderr
    assert "Traceback" not in done.stderr
