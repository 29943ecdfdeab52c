# SPDX-License-Identifier: Apache-2.0
"""Every job file that Oumi ships is planned, on a machine with neither SkyPilot nor a scheduler."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from oumi.core.configs import JobConfig
from oumi.core.launcher.launcher import Launcher
from tests.core.launcher.oumi_jobs import jobs

TOOLS = ("git", "rsync", "ssh", "bash")


def test_every_job_file_that_oumi_ships_is_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in TOOLS:
        if (path := shutil.which(name)) is not None:
            (tools / name).symlink_to(path)
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("OUMI_SKY", raising=False)
    launcher, working_dir = Launcher(), tmp_path / "work"
    working_dir.mkdir()
    for content in jobs():
        job = JobConfig.from_str(yaml.safe_dump(content, sort_keys=False))
        job.working_dir = str(working_dir)
        if job.resources.cloud not in ("gcp", "lambda"):
            job.user = "me"
        plan = launcher.plan(job, f"me@{job.resources.cloud}.example" if job.resources.cloud == "slurm" else None)
        assert plan.steps, content
        assert content["run"].splitlines()[-1] in plan.script, content
        for name, value in job.envs.items():
            assert name in plan.script
            assert value in plan.script
