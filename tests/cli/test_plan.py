# SPDX-License-Identifier: Apache-2.0
"""`oumi plan` for machines that are not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from oumi.cli.main import app
from oumi.core.errors import ConfigError
from oumi.core.system.devices import DEVICES, find_device, find_machine
from oumi.core.system.host import describe_cpu, describe_host
from oumi.core.system.peaks import nominal_flops
from tests.runs import tiny_config


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the config of a divided run of a tiny model."""
    folder = tmp_path_factory.mktemp("plan")
    config = tiny_config(folder)
    config.fsdp = config.fsdp.model_validate({"enable_fsdp": True, "sharding_strategy": "HYBRID_SHARD"})
    config.to_yaml(folder / "config.yaml")
    return folder / "config.yaml"


def plan(config: Path, *options: str) -> str:
    result = CliRunner().invoke(app, ["plan", "-c", str(config), *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_plan_is_that_of_the_ranks_and_devices_that_are_named(config: Path) -> None:
    options = ["--world-size", "256", "--gpus-per-node", "8", "--device", "h100-80gb"]
    text = plan(config, *options)
    assert "of 1,024 rows = 2 rows x 2 x 256 processes" in text.replace("1024", "1,024")
    assert "cuda, NVIDIA H100 80GB HBM3" in text
    assert "256 on 32 nodes of 8, each of 32 copies of the model divided over 8" in text
    assert "8 x NVIDIA H100 80GB HBM3 a node, NVLink 450 GB/s each way, 400 Gb/s a GPU between nodes" in text
    record = json.loads(plan(config, *options, "--json"))
    assert record["steps"]["rows_per_step"] == 1024
    assert record["memory"]["available"] == DEVICES["h100-80gb"].memory_bytes
    assert record["sharding"] == {**record["sharding"], "num_shards": 8, "num_replicas": 32}
    sent = record["communication"]
    assert sent["total_bytes"] == sent["gathered_bytes"] + sent["reduced_bytes"] + sent["between_copies_bytes"] > 0
    assert 0 < sent["share"] < 1


def test_without_a_device_a_plan_is_for_devices_like_this_one(config: Path) -> None:
    record = json.loads(plan(config, "--world-size", "4", "--json"))
    assert (record["steps"]["ranks_per_node"], record["device_name"]) == (4, describe_host().device_name)
    single = json.loads(plan(config, "--json"))
    assert (single["steps"]["ranks_per_node"], single["sharding"]) == (1, None)
    assert "communication" not in single


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--world-size", "0"], "--world-size: expected a number > 0, got 0"),
        (["--world-size", "-8"], "--world-size: expected a number > 0, got -8"),
        (["--gpus-per-node", "0"], "--gpus-per-node: expected a number > 0, got 0"),
        (["--world-size", "250"], "expected a multiple of --gpus-per-node, 8, got 250; the nearest are 248 and 256"),
        (["--world-size", "4", "--gpus-per-node", "8"], "got 4; the nearest is 8"),
        (["--device", "h100"], "--device: unknown device 'h100', did you mean 'h100-80gb'?"),
        (["--device", "abacus"], "available: a100-40gb"),
    ],
)
def test_what_cannot_be_planned_is_refused(config: Path, options: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        CliRunner().invoke(app, ["plan", "-c", str(config), *options], catch_exceptions=False)
    assert message in str(refused.value)


@pytest.mark.parametrize("name", DEVICES)
def test_every_device_has_a_speed_and_is_found_by_the_name_that_torch_reports(name: str) -> None:
    machine, device = find_machine(name.upper()), DEVICES[name]
    assert find_device(machine.device_name) is device
    assert nominal_flops(device.name) is not None
    assert machine.device == "cuda"
    assert 20e9 < machine.memory_bytes < 200e9
    assert device.network_bandwidth < device.link_bandwidth < device.memory_bandwidth


def test_a_plan_for_a_cpu_is_for_this_one() -> None:
    assert find_machine("cpu") == describe_cpu()
    assert find_device("some GPU") is None
