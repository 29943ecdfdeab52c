# SPDX-License-Identifier: Apache-2.0
"""SkyPilot itself, without an account or a network: it accepts our tasks, and has the interface that we call.

It is the `sky` of OUMI_SKY or on the PATH.
"""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from oumi.core.configs import JobConfig
from oumi.core.errors import ConfigError
from oumi.core.launcher.launcher import Launcher
from oumi.core.launcher.sky import cloud as sky_cloud
from oumi.core.launcher.sky.process import find_python
from oumi.core.launcher.sky.staging import find_uploads, staged
from oumi.core.launcher.sky.task import make_task, reason_not_to_stop
from oumi.core.recipes import list_recipes
from tests.core.launcher.oumi_jobs import jobs
from tests.core.launcher.sky_tools import FAKE
from tests.core.launcher.test_sky_task import FULL

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_python() is None, reason="SkyPilot is not installed: uv tool install skypilot"),
]
CATALOG = """InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,Price,Region,GpuInfo,SpotPrice
gpu-h100_1gpu,H100,1,16,200,2.95,eu-north1,,1.25
gpu-h100_8gpu,H100,8,128,1600,23.60,eu-north1,,10.00
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("HOME", str(tmp_path))
    sky_cloud.SKY.close()
    yield tmp_path
    sky_cloud.SKY.close()


def ask(code: str) -> object:
    """Returns what a program prints in SkyPilot's Python, as JSON."""
    python = find_python()
    assert python is not None
    output = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout
    return json.loads(output.splitlines()[-1])


def test_every_job_file_of_a_cloud_is_accepted(home: Path) -> None:
    launcher = Launcher()
    accepted = 0
    for content in jobs():
        job = JobConfig.from_str(yaml.safe_dump(content, sort_keys=False))
        if job.resources.cloud in ("gcp", "lambda"):
            job.working_dir = str(home)
            if job.resources.cloud == "lambda":
                job.resources.use_spot = False
            assert launcher.plan(job, "one").script.startswith("# accepted by SkyPilot 0.14")
            accepted += 1
    assert accepted == 124
    for recipe in list_recipes():
        if recipe.kind == "job" and (job := JobConfig.from_yaml(recipe.path)).resources.cloud == "gcp":
            job.working_dir = str(home)
            assert launcher.plan(job, "one").script.startswith("# accepted by SkyPilot 0.14")


def test_all_keys_together_are_accepted(home: Path) -> None:
    job = JobConfig.from_str(FULL)
    job.working_dir = str(home)
    job.resources.instance_type = None  # which SkyPilot looks up in a catalog
    assert "accepted" in Launcher().plan(job, "one").script


@pytest.mark.parametrize(
    ("resources", "keys"),
    [
        ("cloud: gcp, cpus: eight, accelerators: 'A100:x'", ["resources.accelerators", "resources.cpus"]),
        ("cloud: lambda, use_spot: true, disk_tier: high", ["resources.disk_tier", "resources.use_spot"]),
        ("cloud: gcp, region: a/b/c/d", ["resources.region"]),
    ],
)
def test_wrong_values_are_named(resources: str, keys: list[str], home: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        Launcher().plan(JobConfig.from_str(f"resources: {{{resources}}}\nrun: echo"), "one")
    assert sorted(problem.key for problem in refused.value.problems) == keys


def test_the_price_is_that_of_the_cheapest_machine_in_a_catalog(home: Path) -> None:
    catalog = home / ".sky" / "catalogs" / "v8" / "nebius" / "vms.csv"
    catalog.parent.mkdir(parents=True)
    catalog.write_text(CATALOG)
    job = JobConfig.from_str("resources: {cloud: nebius, accelerators: 'H100:8'}\nnum_nodes: 2\nrun: echo")
    plan = Launcher().plan(job, "one")
    assert plan.cost_per_hour == pytest.approx(47.2)
    assert any("gpu-h100_8gpu" in step for step in plan.steps)
    job.resources.accelerators = "H100:4"
    with pytest.raises(ConfigError, match=r"Nebius: .*H100:8"):
        Launcher().plan(job, "one")


def test_clouds_that_cannot_stop_are_those_of_skypilot() -> None:
    code = """
import json, sky
from sky.clouds.cloud import CloudImplementationFeatures as F
from sky.utils.registry import CLOUD_REGISTRY
def stops(name, spot):
    cloud = CLOUD_REGISTRY.from_str(name)
    try:
        cloud.check_features_are_supported(sky.Resources(infra=name, use_spot=spot), {F.STOP, F.AUTOSTOP})
    except sky.exceptions.NotSupportedError:
        return False
    return True
names = ["gcp", "aws", "azure", "nebius", "lambda", "runpod"]
print(json.dumps([[name, spot, stops(name, spot)] for name in names for spot in (False, True)]))
"""
    for name, is_spot, stops in ask(code):  # type: ignore[attr-defined]  # a list
        job = JobConfig.from_str(f"resources: {{cloud: {name}, use_spot: {str(is_spot).lower()}}}\nrun: echo")
        assert (reason_not_to_stop(job) is None) == stops, (name, is_spot)


def test_the_stand_in_has_the_parameters_of_skypilot() -> None:
    functions = [
        node for node in ast.parse((FAKE / "sky" / "__init__.py").read_text()).body if isinstance(node, ast.FunctionDef)
    ]
    own = {"read", "write", "require", "start_job"}
    names = {node.name: [argument.arg for argument in node.args.args] for node in functions if node.name not in own}
    code = f"""
import inspect, json, sky
print(json.dumps({{name: list(inspect.signature(getattr(sky, name)).parameters) for name in {sorted(names)}}}))
"""
    real = ask(code)
    assert isinstance(real, dict)
    for name, parameters in names.items():
        assert [parameter for parameter in real[name] if parameter in parameters] == parameters, name


def test_states_of_jobs_and_clusters_are_those_of_skypilot() -> None:
    code = """
import json
from sky.skylet.job_lib import JobStatus
from sky.schemas.api import responses
print(json.dumps([[state.value for state in JobStatus], sorted(responses.ClusterJobRecord.model_fields),
    sorted(responses.StatusResponse.model_fields)]))
"""
    states, of_jobs, of_clusters = ask(code)  # type: ignore[misc]  # a list
    assert set(states) == set(sky_cloud.STATES)
    assert {"job_id", "job_name", "status", "submitted_at", "start_at", "end_at"} <= set(of_jobs)
    assert {"name", "status", "cloud", "handle"} <= set(of_clusters)


def test_values_arrive_byte_for_byte_in_skypilots_script() -> None:
    code = r"""
import json, subprocess
from sky.skylet.log_lib import make_task_bash_script
values = {"A": "$(touch pwned) `x` 'q' \"d\" \\ \n new", "B": "x" * 100_000, "C": "é\t*;&|"}
show = 'python3 -c "import os,json; print(json.dumps([os.environ[k] for k in \'ABC\']))"'
script = make_task_bash_script(show, values)
script = script.replace("cd ~/sky_workdir", "cd /")
output = subprocess.run(["bash", "-c", script], capture_output=True, text=True).stdout
print(json.dumps(json.loads(output.splitlines()[-1]) == list(values.values())))
"""
    assert ask(code) is True


@pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is not installed")
def test_skypilot_copies_exactly_the_files_that_the_plan_counts(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUMI_CACHE_DIR", str(home / "cache"))
    source, target = home / "it's $(touch pwned)", home / "target"
    subprocess.run(["git", "init", "-q", source], check=True)
    target.mkdir()
    (source / "sub").mkdir()
    for name in ("a b.py", "kept.log", "left.log", "big.bin", "sub/.skyignore", "sub/x.py", "sub/it's $(touch pwned)"):
        (source / name).write_text(name)
    (source / ".gitignore").write_text("*.log\n")
    (source / ".oumiignore").write_text("*.bin\n")
    (source / "sub" / ".skyignore").write_text("*.py\n")
    subprocess.run(["git", "-C", source, "add", "-f", "kept.log"], check=True)
    job = JobConfig.from_str("resources: {cloud: gcp}\nrun: echo")
    job.working_dir = str(source)
    uploads = find_uploads(job)
    with staged(make_task(job), uploads) as task:
        code = f"""
from sky.utils.command_runner import LocalProcessCommandRunner
LocalProcessCommandRunner().rsync({task["workdir"]!r}, {str(target)!r}, up=True, stream_logs=False)
print(1)
"""
        assert ask(code) == 1
    copied = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
    assert copied == set(uploads["working_dir"].names) - {"sub/.skyignore"}
    assert copied == {".gitignore", ".oumiignore", "a b.py", "kept.log", "sub/it's $(touch pwned)", "sub/x.py"}
    assert not list(home.rglob("pwned"))
