# SPDX-License-Identifier: Apache-2.0
"""The part of SkyPilot's interface that Oumi calls, with machines that are directories and jobs that are processes.

`test_sky_real.py` compares its signatures with those of SkyPilot where that is installed.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from enum import Enum
from pathlib import Path
from types import SimpleNamespace

from sky import exceptions
from sky.utils import common

__version__ = "0.14.1"
HOME = Path(os.environ["FAKE_SKY_HOME"])
(HOME / "pid").write_text(str(os.getpid()))


class State(Enum):
    UP = "UP"
    STOPPED = "STOPPED"
    INIT = "INIT"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    RUNNING = "RUNNING"
    CANCELLED = "CANCELLED"
    FAILED_SETUP = "FAILED_SETUP"
    HIBERNATING = "HIBERNATING"


class Resources:
    def __init__(self, infra, **values):
        if infra.partition("/")[0] not in ("gcp", "lambda"):
            raise ValueError(f"{infra!r} does not match")
        if values.get("cpus") == "eight":
            raise ValueError('The "cpus" field should be a number')
        self.values, self.cloud = values, Cloud(infra.partition("/")[0])

    def get_required_cloud_features(self):
        from sky.clouds.cloud import CloudImplementationFeatures as Feature

        return {Feature.SPOT_INSTANCE} if self.values.get("use_spot") else set()

    def get_cost(self, seconds):
        if not (HOME / "prices.json").exists():
            raise ConnectionError("no network")
        return json.loads((HOME / "prices.json").read_text())[self.values["accelerators"]] * seconds / 3600


class Cloud:
    def __init__(self, name):
        self.name = name

    def __str__(self):
        return self.name.upper()

    def check_credentials(self, capability):
        return (HOME / "account").exists(), "Run: gcloud init"

    def check_features_are_supported(self, resources, requested_features):
        if self.name == "lambda" and requested_features:
            raise exceptions.NotSupportedError("Feature Reason\nspot_instance  Not on Lambda. ")

    def get_feasible_launchable_resources(self, resources, num_nodes=1):
        resources.get_cost(3600)
        resources.instance_type = "big-machine"
        return SimpleNamespace(resources_list=[resources], fuzzy_candidate_list=[], hint=None)


class Task:
    def __init__(self, config):
        self.resources = {Resources(**config.get("resources", {"infra": "gcp"}))}
        self.num_nodes, self.config, self.secrets = config.get("num_nodes", 1), config, {}
        self.storage_mounts = {}

    @staticmethod
    def from_yaml_config(config):
        return Task(config)

    def update_secrets(self, secrets):
        self.secrets = dict(secrets)


def read(name):
    return json.loads((HOME / name / "record.json").read_text())


def write(name, **values):
    record = (read(name) if (HOME / name / "record.json").exists() else {}) | values
    (HOME / name / "record.json").write_text(json.dumps(record))


def require(name, state="UP"):
    if not (HOME / name / "record.json").exists():
        raise exceptions.ClusterDoesNotExist(f"Cluster {name!r} does not exist.")
    if read(name)["state"] != state:
        raise exceptions.ClusterNotUpError(f"Cluster {name!r} is not up.")


def launch(task, cluster_name=None, idle_minutes_to_autostop=None):
    name = cluster_name or "sky-1234"
    print("starting machines")
    (HOME / name).mkdir(exist_ok=True, parents=True)
    if not (HOME / name / "record.json").exists():
        write(name, jobs=[])
    cloud = next(iter(task.resources)).cloud
    write(name, state="UP", autostop=idle_minutes_to_autostop, cloud=str(cloud))
    if (reason := task.config.get("envs", {}).get("FAIL")) is not None:
        raise RuntimeError(reason)
    return start_job(task, name, task.config.get("setup", ""))


def exec(task, cluster_name=None):
    require(cluster_name)
    return start_job(task, cluster_name, "")


def start_job(task, name, setup):
    jobs = read(name)["jobs"]
    folder = HOME / name / str(len(jobs) + 1)
    folder.mkdir()
    if "workdir" in task.config:
        subprocess.run(["cp", "-a", task.config["workdir"], folder / "workdir"], check=True)
    for remote, local in task.config.get("file_mounts", {}).items():
        if isinstance(local, str):
            subprocess.run(["cp", "-a", local, folder / remote.strip("/~").replace("/", "_")], check=True)
    (folder / "workdir").mkdir(exist_ok=True)
    environment = {"PATH": os.environ["PATH"], **task.config.get("envs", {}), **task.secrets}
    with (folder / "log").open("w") as log:
        script = f"{setup}\n{task.config['run']}"
        code = subprocess.run(["bash", "-c", script], cwd=folder / "workdir", env=environment, stdout=log).returncode
    state = task.config.get("envs", {}).get("STATE") or ("FAILED" if code else "SUCCEEDED")
    write(name, jobs=[*jobs, {"id": len(jobs) + 1, "name": task.config.get("name"), "state": state}])
    return (len(jobs) + 1, SimpleNamespace(cluster_name=name))


def status(cluster_names=None, refresh=common.StatusRefreshMode.NONE):
    records = [(path.parent.name, json.loads(path.read_text())) for path in sorted(HOME.glob("*/record.json"))]
    with (HOME / "calls").open("a") as calls:
        calls.write("status\n")
    return [
        {"name": name, "status": State(record["state"]), "cloud": record["cloud"], "handle": None}
        for name, record in records
        if cluster_names is None or name in cluster_names
    ]


def start(cluster_name):
    require(cluster_name, "STOPPED")
    write(cluster_name, state="UP")


def stop(cluster_name):
    require(cluster_name)
    write(cluster_name, state="STOPPED")


def down(cluster_name):
    subprocess.run(["rm", "-r", HOME / cluster_name], check=True)


def autostop(cluster_name, idle_minutes):
    write(cluster_name, autostop=idle_minutes)


def queue(cluster_name):
    require(cluster_name)
    return [
        {
            "job_id": job["id"], "job_name": job["name"], "status": State(job["state"]), "submitted_at": 1.0,
            "start_at": 2.0, "end_at": None,
        }
        for job in reversed(read(cluster_name)["jobs"])
    ]  # fmt: skip


def cancel(cluster_name, job_ids=None):
    jobs = read(cluster_name)["jobs"]
    write(cluster_name, jobs=[job | {"state": "CANCELLED"} if job["id"] in job_ids else job for job in jobs])


def tail_logs(cluster_name, job_id, follow, output_stream=None):
    for line in (HOME / cluster_name / str(job_id) / "log").read_text().splitlines(keepends=True):
        print(f"\x1b[32m{line}\x1b[0m", end="", file=output_stream, flush=True)
    if follow and os.environ.get("FAKE_SKY_ENDLESS"):
        time.sleep(600)


def api_cancel(request_ids):
    (HOME / "taken_back").touch()


def get(request_id):
    return request_id


def stream_and_get(request_id):
    if os.environ.get("FAKE_SKY_SLOW"):
        (HOME / "waiting").touch()
        time.sleep(600)
    return request_id
