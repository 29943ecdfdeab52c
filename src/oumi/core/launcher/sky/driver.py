# SPDX-License-Identifier: Apache-2.0
"""Calls SkyPilot. A program of its own that SkyPilot's Python runs, so it imports nothing of Oumi.

A request is a line of JSON on stdin, `{"call": name, "arguments": {...}, "shows_progress": bool}`. Lines on stdout
answer it: any number of `{"text": ...}`, then `{"result": ...}`. At an error the answer is `{"error": {"kind": ...,
"message": ...}}`, and the program ends. Secrets come by stdin and go to SkyPilot's server; no file is written here.
"""

from __future__ import annotations

import copy
import io
import json
import os
import signal
import sys
import threading
from contextlib import contextmanager
from queue import SimpleQueue

# The directory of this file, where SkyPilot would take our modules for its own.
sys.path.pop(0)

ANSWERS = os.fdopen(os.dup(1), "w", encoding="utf-8")
CONSOLE = os.dup(2)
NOWHERE = os.open(os.devnull, os.O_WRONLY)
CATALOG_SECONDS = 20
PRICELESS = ("kubernetes", "slurm")
"""Clusters without prices; asking for them would ask the clusters for their machines."""


def redirect(target):
    """Sends what SkyPilot prints to a file descriptor."""
    sys.stdout.flush()
    os.dup2(target, 1)
    os.dup2(target, 2)


redirect(NOWHERE)

import sky  # noqa: E402
from sky import exceptions  # noqa: E402
from sky.clouds.cloud import CloudCapability  # noqa: E402
from sky.clouds.cloud import CloudImplementationFeatures as Feature  # noqa: E402
from sky.server import common as server  # noqa: E402
from sky.utils import common, common_utils  # noqa: E402
from sky.utils.registry import CLOUD_REGISTRY  # noqa: E402

REFUSALS = (ValueError, TypeError, KeyError, AssertionError, exceptions.NotSupportedError, exceptions.StorageError)

KEYS = {
    Feature.SPOT_INSTANCE: "resources.use_spot",
    Feature.CUSTOM_DISK_TIER: "resources.disk_tier",
    Feature.DOCKER_IMAGE: "resources.image_id",
    Feature.IMAGE_ID: "resources.image_id",
    Feature.MULTI_NODE: "num_nodes",
    Feature.STORAGE_MOUNTING: "storage_mounts",
}
"""The key that asks for a feature of a cloud."""


def describe(task, cloud, cluster, stores):
    """Returns what is known of a task without an account: problems, price, and what is missing to launch it."""
    answer = {"version": sky.__version__, "problems": [], "missing": [], "price": None, "machine": None, "server": None}
    try:
        common_utils.check_cluster_name_is_valid(cluster)
    except exceptions.InvalidClusterNameError:
        rule = f"got {cluster!r}; SkyPilot expects a letter, then letters, digits, - _ and ., no mark at the end"
        answer["problems"].append(["--cluster", rule])
    try:
        checked = build(task)
    except REFUSALS as error:
        answer["problems"] += wrong_keys(task) or [["", str(error)]]
        return answer
    if cloud not in PRICELESS:
        answer["problems"] += unsupported(checked)
    if answer["problems"]:
        return answer
    if server.is_api_server_local():
        answer["missing"] = missing(cloud, stores)
    else:
        answer["server"] = server.get_server_url()
    if cloud not in PRICELESS:
        answer.update(offer(checked))
    return answer


def build(task, secrets=None):
    """Returns SkyPilot's task."""
    built = sky.Task.from_yaml_config(copy.deepcopy(task))  # which changes its argument
    if secrets:
        close_to_others(os.path.expanduser("~/.sky"))
        built.update_secrets(secrets)  # not in from_yaml_config(), which keeps its argument as text
    return built


def close_to_others(directory):
    """Takes the rights of other users away: SkyPilot's server keeps requests there, with their secrets."""
    if os.path.isdir(directory):
        os.chmod(directory, os.stat(directory).st_mode & ~0o077)


def wrong_keys(task):
    """Returns [key, message] of each key that makes a task invalid on its own."""
    resources = task["resources"]
    parts = {key: {key: value} for key, value in task.items() if key not in ("resources", "file_mounts")}
    for key, value in resources.items():
        parts[f"resources.{key}"] = {"resources": {"infra": resources["infra"], key: value}}
    for key, value in task.get("file_mounts", {}).items():
        parts[f"file_mounts.{key}"] = {"file_mounts": {key: value}}
    # What is wrong with the cloud is wrong in each part that names it.
    problems = []
    for key, part in sorted(parts.items(), key=lambda item: item[0] != "resources.infra"):
        try:
            build({"run": "true", **part})
        except REFUSALS as error:
            problems.append([key, str(error)])
            if key == "resources.infra":
                break
    return problems


def unsupported(task):
    """Returns [key, message] of each key that the cloud of a task does not support."""
    resources = next(iter(task.resources))
    required = resources.get_required_cloud_features()
    if task.num_nodes > 1:
        required.add(Feature.MULTI_NODE)
    if task.storage_mounts:
        required.add(Feature.STORAGE_MOUNTING)
    problems = []
    for feature in sorted(required, key=lambda item: item.value):
        try:
            resources.cloud.check_features_are_supported(resources, {feature})
        except exceptions.NotSupportedError as error:
            reason = str(error).strip().splitlines()[-1].partition(feature.value)[2].strip()  # a row of a table
            problems.append([KEYS.get(feature, ""), reason or str(error)])
    return problems


def missing(cloud, stores):
    """Returns a message for each account that SkyPilot cannot use from here."""
    capabilities = [(cloud, CloudCapability.COMPUTE)] + [(store, CloudCapability.STORAGE) for store in stores]
    names = {}  # by their reason, which is often the same for machines and buckets
    for name, capability in capabilities:
        if name == "cloudflare":
            from sky.adaptors import cloudflare

            works, reason = cloudflare.check_credentials(capability)
        else:
            works, reason = CLOUD_REGISTRY.from_str(name).check_credentials(capability)
        if not works:
            names.setdefault(str(reason), []).append(f"{name} ({capability.value})")
    return [
        "\n  ".join([", ".join(named) + ":", *(line.strip() for line in reason.strip().splitlines())])
        for reason, named in names.items()
    ]


@contextmanager
def time_limit():
    """Ends what takes too long with a TimeoutError: SkyPilot downloads its catalog of prices without a limit."""

    def give_up(number, frame):
        raise TimeoutError("the catalog did not come")

    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(CATALOG_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)


def offer(task):
    """Returns the cheapest machine for a task and its price, or why there is none; nothing without a catalog."""
    resources = next(iter(task.resources))
    try:
        with time_limit():
            offers = resources.cloud.get_feasible_launchable_resources(resources, task.num_nodes)
            if not offers.resources_list:
                similar = ", ".join(offers.fuzzy_candidate_list)
                reason = offers.hint or "has no machine with these resources" + (
                    f"; it has {similar}" if similar else ""
                )
                return {"problems": [["resources", f"{resources.cloud}: {reason}"]]}
            cheapest = min(offers.resources_list, key=lambda item: item.get_cost(3600))
            return {"price": cheapest.get_cost(3600) * task.num_nodes, "machine": cheapest.instance_type}
    except OSError:  # what requests raises, and a TimeoutError
        return {}


def clusters():
    """Returns all clusters, stopped ones too."""
    # AUTO asks the cloud where a cluster may have changed by itself: with autostop or on spot machines.
    records = sky.get(sky.status(refresh=common.StatusRefreshMode.AUTO))
    return [
        {
            "name": record["name"],
            "state": record["status"].value,
            "cloud": cloud_of(record),
            "price": price_of(record) if record["status"].value == "UP" else None,
        }
        for record in records
    ]


def cloud_of(record):
    """Returns SkyPilot's name of the cloud of a cluster."""
    cloud, handle = record["cloud"], record["handle"]
    return str(cloud or (handle and handle.launched_resources.cloud)).lower()


def price_of(record):
    """Returns the price of a cluster in US dollars an hour, None if it is not known."""
    handle = record["handle"]
    if handle is None or cloud_of(record) in PRICELESS:
        return None
    try:
        with time_limit():
            return handle.launched_resources.get_cost(3600) * handle.launched_nodes
    except (OSError, ValueError, AssertionError):  # no catalog, or a machine that is no longer in it
        return None


def up(task, secrets, cluster, autostop, sets_autostop):
    """Launches a task on a cluster, or runs it there if that is up. Returns the job's id, and the cluster's name."""
    built = build(task, secrets)
    is_reused = cluster is not None and state_of(cluster) == "UP"
    if is_reused:
        if sets_autostop:
            sky.get(sky.autostop(cluster, autostop))
        request = sky.exec(built, cluster_name=cluster)
    else:
        request = sky.launch(built, cluster_name=cluster, idle_minutes_to_autostop=autostop)
    try:
        job_id, handle = sky.stream_and_get(request)
    except KeyboardInterrupt:  # which ends this program, and would not end the launch
        sky.get(sky.api_cancel(request))
        raise
    return {"id": job_id, "cluster": handle.cluster_name, "is_reused": is_reused}


def state_of(cluster):
    """Returns the state of a cluster, None if there is none of the name."""
    records = sky.get(sky.status([cluster], refresh=common.StatusRefreshMode.AUTO))
    return records[0]["status"].value if records else None


def run(task, secrets, cluster):
    """Runs a task on a cluster, which is started first if it is stopped."""
    if state_of(cluster) == "STOPPED":
        sky.stream_and_get(sky.start(cluster))
    job_id, _ = sky.stream_and_get(sky.exec(build(task, secrets), cluster_name=cluster))
    return {"id": job_id, "cluster": cluster}


def queue(cluster):
    """Returns the jobs of a cluster."""
    return [
        {
            "id": record["job_id"],
            "name": record["job_name"],
            "status": record["status"].value,
            "submitted": record["submitted_at"],
            "start": record["start_at"],
            "end": record["end_at"],
        }
        for record in sky.get(sky.queue(cluster))
    ]


def cancel(cluster, job_id):
    """Ends a job and waits for it."""
    sky.get(sky.cancel(cluster, job_ids=[job_id]))


def stop(cluster):
    """Stops a cluster and waits for it."""
    sky.stream_and_get(sky.stop(cluster))


def down(cluster):
    """Gives a cluster back and waits for it."""
    sky.stream_and_get(sky.down(cluster))


def logs(cluster, job_id, follow):
    """Sends the output of a job."""
    sky.tail_logs(cluster, job_id, follow, output_stream=Output())


class Output(io.TextIOBase):
    """A text file whose lines become answers."""

    def write(self, text):
        answer(text=text)
        return len(text)


def answer(**values):
    """Sends a line."""
    ANSWERS.write(json.dumps(values) + "\n")
    ANSWERS.flush()


def report(kind, error, traceback):
    """Sends the error that ends the program."""
    answer(error={"kind": kind.__name__, "message": str(error)})
    os._exit(1)  # at once: a thread waits for stdin


def read_requests():
    """Puts what comes by stdin into the queue, and ends the program with it: whoever asked is gone."""
    for line in sys.stdin:
        REQUESTS.put(json.loads(line))
    os._exit(0)


CALLS = {call.__name__: call for call in (describe, clusters, up, run, queue, cancel, stop, down, logs)}
REQUESTS = SimpleQueue()

if __name__ == "__main__":
    # What the server writes on this machine for the first time is for the user alone.
    os.umask(0o077)
    sys.excepthook = report
    threading.Thread(target=read_requests, daemon=True).start()
    while True:
        request = REQUESTS.get()
        redirect(CONSOLE if request["shows_progress"] else NOWHERE)
        answer(result=CALLS[request["call"]](**request["arguments"]))
        redirect(NOWHERE)
