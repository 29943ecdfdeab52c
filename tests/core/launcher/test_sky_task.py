# SPDX-License-Identifier: Apache-2.0
"""A job as a task of SkyPilot: each key arrives, is told to be left out, or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from oumi.core.configs import JobConfig
from oumi.core.errors import ConfigError
from oumi.core.launcher.sky.task import make_task, reason_not_to_stop, task_text, task_warnings
from oumi.core.launcher.upload import without_absent_credentials
from tests.core.launcher.oumi_jobs import ACCELERATORS, CLOUDS, ENVS, NODES, jobs

FULL = """
name: llama
working_dir: .
num_nodes: 2
resources:
  cloud: GCP
  region: us-central1
  zone: us-central1-a
  accelerators: A100:4
  cpus: 8+
  memory: 32+
  instance_type: a2-highgpu-4g
  use_spot: true
  disk_size: 200
  disk_tier: high
  image_id: docker:ubuntu
  image_id_map: {us-central1: projects/x}
  config_overrides: {kubernetes: {pod_config: {spec: {}}}}
envs: {FLAG: false, TEXT: "a $(b)\\n'c'"}
secrets: [HF_TOKEN]
file_mounts: {/data: s3://public/rows}
storage_mounts: {/out: {source: gs://bucket/runs, store: gcs}}
setup: |
  set -e
run: |
  oumi train -c ${CONFIG}
"""


def make_job(text: str) -> JobConfig:
    return JobConfig.from_str(text)


def test_every_key_of_a_job_arrives_in_its_task() -> None:
    assert make_task(make_job(FULL)) == {
        "name": "llama",
        "num_nodes": 2,
        "workdir": ".",
        "resources": {
            "infra": "gcp/us-central1/us-central1-a", "accelerators": "A100:4", "cpus": "8+", "memory": "32+",
            "instance_type": "a2-highgpu-4g", "use_spot": True, "disk_size": 200, "disk_tier": "high",
            "image_id": "docker:ubuntu",
        },
        "config": {"kubernetes": {"pod_config": {"spec": {}}}},
        "envs": {"FLAG": "false", "TEXT": "a $(b)\n'c'"},
        "file_mounts": {
            "/data": "s3://public/rows",
            "/out": {"source": "gs://bucket/runs", "store": "gcs", "mode": "MOUNT"},
        },
        "setup": "set -e\n",
        "run": "oumi train -c ${CONFIG}\n",
    }  # fmt: skip


def test_the_text_of_a_task_is_read_back_the_same_and_has_only_names_of_secrets() -> None:
    task = make_task(make_job(FULL))
    read = yaml.safe_load(task_text(task, ["HF_TOKEN"]))
    assert read.pop("secrets") == {"HF_TOKEN": None}
    assert read == task


@pytest.mark.parametrize(
    ("resources", "infra"),
    [
        ("cloud: k8s, region: context", "kubernetes/context"),
        ("cloud: sky-slurm, region: cluster, zone: gpus", "slurm/cluster/gpus"),
        ("cloud: aws, zone: us-east-1a", "aws/*/us-east-1a"),
        ("cloud: lambda", "lambda"),
    ],
)
def test_a_place_is_written_as_skypilot_names_it(resources: str, infra: str) -> None:
    assert make_task(make_job(f"resources: {{{resources}}}\nrun: echo"))["resources"]["infra"] == infra


def test_the_image_of_a_region_is_used_without_an_image_for_all() -> None:
    resources = make_task(make_job("resources: {cloud: aws, image_id_map: {us-east-1: ami-1}}\nrun: echo"))["resources"]
    assert resources["image_id"] == {"us-east-1": "ami-1"}


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        ("storage_mounts: {/o: {source: s3://b, store: gcs}}", "storage_mounts./o.source", "expected gs://... for"),
        ("storage_mounts: {/o: {source: ./here, store: s3}}", "storage_mounts./o.source", "expected s3://..."),
        ("storage_mounts: {/o: {source: 's3://b/$(x)', store: s3}}", "storage_mounts./o.source", "expected s3://..."),
        ("file_mounts: {/o: /nowhere/rows}", "file_mounts./o", "/nowhere/rows: no such file or directory"),
        ("file_mounts: {\"/it's $(x)\": s3://b}", "file_mounts./it's $(x)", "passes paths to shells"),
        ("file_mounts: {/o: 's3://b/`x`'}", "file_mounts./o", "not the URL of a bucket"),
        ("envs: {A-B: x}", "envs.A-B", "expected letters, digits and _"),
        ("envs: {A: \"\\0\"}", "envs.A", "NUL"),
    ],
)  # fmt: skip
def test_what_no_shell_or_bucket_takes_is_refused(text: str, key: str, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        make_task(make_job(f"resources: {{cloud: gcp}}\nrun: echo\n{text}\n"))
    (problem,) = refused.value.problems
    assert problem.key == key
    assert words in problem.message


def test_hostile_names_are_plain_and_told() -> None:
    job = make_job('name: "a b\'; $(touch x)"\nresources: {cloud: gcp}\nrun: echo')
    assert make_task(job)["name"] == "a-b-touch-x"
    assert any(warning.startswith("name: SkyPilot is given 'a-b-touch-x'") for warning in task_warnings(job))


def test_a_file_of_credentials_that_does_not_exist_is_left_out_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    job = make_job("resources: {cloud: gcp}\nrun: echo\nfile_mounts: {~/.netrc: ~/.netrc, /rows: s3://rows}")
    with pytest.raises(ConfigError, match=r"file_mounts.~/.netrc: ~/.netrc: no such file"):
        make_task(job)
    changed, warnings = without_absent_credentials(job)
    assert make_task(changed)["file_mounts"] == {"/rows": "s3://rows"}
    assert warnings == ["file_mounts.~/.netrc: not copied: ~/.netrc does not exist here"]
    assert list(job.file_mounts) == ["~/.netrc", "/rows"]
    (tmp_path / ".netrc").touch()
    assert without_absent_credentials(job) == (job, [])


@pytest.mark.parametrize(
    ("run", "mount", "is_kept"),
    [
        ("oumi train -c x --training.output_dir /out/run", "/out", True),
        ("oumi train -c x --training.output_dir=/output/run", "/out", False),
        ("oumi train -c x --training.output_dir runs/a", "~/sky_workdir/runs", True),
        ("oumi train -c x --training.output_dir runs/a", "runs", True),
        ("oumi train -c x --training.output_dir $OUT", "/out", False),
        ("oumi distributed torchrun -m oumi train -c configs/recipes/quickstart/train.yaml", "output", True),
        ("oumi distributed torchrun -m oumi train -c configs/recipes/quickstart/train.yaml", "/output", False),
        ("./train.sh", "/out", False),
    ],
)
def test_spot_machines_without_a_bucket_for_checkpoints_are_told(run: str, mount: str, is_kept: bool) -> None:
    storage = f"storage_mounts: {{'{mount}': {{source: gs://b, store: gcs}}}}"
    job = make_job(f"resources: {{cloud: gcp, use_spot: true}}\nrun: {run}\n{storage}\n")
    assert any("Checkpoints are kept only below" in warning for warning in task_warnings(job)) != is_kept
    job.resources.use_spot = False
    assert list(task_warnings(job)) == []


def test_clouds_that_cannot_stop_machines_are_known() -> None:
    def reason(resources: str) -> str | None:
        return reason_not_to_stop(make_job(f"resources: {{{resources}}}\nrun: echo"))

    assert [reason(f"cloud: {cloud}") is None for cloud in ("gcp", "aws", "azure", "nebius")] == [True] * 4
    assert [reason(f"cloud: {cloud}") is None for cloud in ("lambda", "runpod", "k8s", "sky-slurm")] == [False] * 4
    assert reason("cloud: aws, use_spot: true") == "aws cannot stop spot machines"
    assert reason("cloud: gcp, use_spot: true") is None


def test_every_job_file_that_oumi_ships_loads_and_becomes_a_task() -> None:
    counted: dict[str, dict[Any, int]] = {"cloud": {}, "accelerators": {}, "num_nodes": {}}
    files = list(jobs())
    for content in files:
        job = JobConfig.from_str(yaml.safe_dump(content, sort_keys=False))
        for key, value in (
            ("cloud", job.resources.cloud),
            ("accelerators", job.resources.accelerators),
            ("num_nodes", job.num_nodes),
        ):
            counted[key][value] = counted[key].get(value, 0) + 1
        missing = [problem.key for problem in job.missing_at_launch()]
        assert missing in ([], ["user"])
        if job.resources.cloud in ("gcp", "lambda"):
            task = make_task(without_absent_credentials(job)[0])
            assert missing == []
            assert task["run"] == content["run"]
            assert all(isinstance(value, str) for value in task.get("envs", {}).values())
    assert counted["cloud"] == CLOUDS
    assert {key: value for key, value in counted["accelerators"].items() if key} == ACCELERATORS
    assert counted["num_nodes"] == NODES
    assert {name: sum(name in content.get("envs", {}) for content in files) for name in ENVS} == {
        name: count for name, (count, _) in ENVS.items()
    }


@pytest.mark.parametrize(
    ("key", "text", "reason"),
    [
        ("name", "a\0b", "contains a NUL byte"),
        ("working_dir", "\0", "NUL"),
        ("setup", "\0", "NUL"),
        ("run", "\ud800", "D800"),
    ],
)
def test_a_text_that_no_script_can_hold_is_refused(key: str, text: str, reason: str) -> None:
    job = make_job("resources: {cloud: gcp}\nrun: echo").model_copy(update={key: text})
    with pytest.raises(ConfigError, match=f"{key}: .*{reason}"):
        make_task(job)
