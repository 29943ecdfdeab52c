# SPDX-License-Identifier: Apache-2.0
"""Two machines with two ranks each: one that is cut off or lost stops the other, and the run goes on afterwards.

The machines are network namespaces of this one, each with its own addresses, joined by a cable.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.test_ranks import DRIVER, faulty_config
from tests.ranks import run_ranks
from tests.runs import records, weights

ROOT = Path(__file__).parents[2]
LIMIT_S = 15.0
"""Time for the ranks of the other machine to end."""


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class Machines:
    """Two namespaces and the cable between them."""

    def __init__(self) -> None:
        self.names = [f"oumi{os.getpid()}{letter}" for letter in "ab"]
        self._cable = [f"o{os.getpid()}{letter}" for letter in "ab"]

    def create(self) -> None:
        for name in self.names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("link", "add", self._cable[0], "type", "veth", "peer", "name", self._cable[1])
        for i, (name, end) in enumerate(zip(self.names, self._cable, strict=True)):
            ip("link", "set", end, "netns", name)
            ip("-n", name, "addr", "add", f"10.77.0.{i + 1}/24", "dev", end)
            ip("-n", name, "link", "set", end, "up")

    def cut(self) -> None:
        ip("-n", self.names[1], "link", "set", self._cable[1], "down")

    def remove(self) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)

    def start(self, config: Path, *flags: str, **variables: str) -> list[subprocess.Popen[str]]:
        """Starts a launcher with two ranks on each machine."""
        launchers = []
        for i, name in enumerate(self.names):
            environment = os.environ | variables | {
                "NNODES": "2", "NODE_RANK": str(i), "MASTER_ADDR": "10.77.0.1", "MASTER_PORT": "8007",
                "NPROC_PER_NODE": "2", "GLOO_SOCKET_IFNAME": self._cable[i],
            }  # fmt: skip
            launch = [sys.executable, "-m", "oumi", "distributed", "torchrun", *flags]
            command = [*launch, str(DRIVER), "train", "-c", str(config)]
            # A namespace of process ids as well: nobody sees, or signals, the ranks of the other machine.
            isolated = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "--uts"]
            named = ["sh", "-c", f'hostname {"ab"[i]} && exec "$@"', "sh", *command]
            command = ["ip", "netns", "exec", name, *isolated, *named]
            launchers.append(
                subprocess.Popen(
                    command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
                )
            )
        return launchers


@pytest.fixture(scope="module")
def namespaces() -> None:
    """Skips the tests where namespaces are not permitted."""
    if shutil.which("ip") is None or shutil.which("unshare") is None:
        pytest.skip("needs ip and unshare")
    probe = Machines()
    try:
        probe.create()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"needs network namespaces: {error.stderr!r}")
    finally:
        probe.remove()


@pytest.fixture
def machines(namespaces: None) -> Iterator[Machines]:
    machines = Machines()
    machines.create()
    yield machines
    machines.remove()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with a config of four ranks, and the output of a run without a fault."""
    folder = tmp_path_factory.mktemp("four")
    config = faulty_config(folder, max_steps=30, gradient_accumulation_steps=1, eval_strategy="no")
    config.training.output_dir = str(folder / "whole")
    config.to_yaml(folder / "whole.yaml")
    ends = run_ranks(4, "-m", "oumi", "train", "-c", str(folder / "whole.yaml"), folder=folder)
    assert [code for code, _ in ends] == [0] * 4, ends
    return folder


@pytest.fixture
def config(uninterrupted: Path, tmp_path: Path) -> Path:
    text = (uninterrupted / "train.yaml").read_text().replace(str(uninterrupted / "out"), str(tmp_path / "out"))
    (tmp_path / "train.yaml").write_text(
        text.replace("try_resume_from_last_checkpoint: false", "try_resume_from_last_checkpoint: true")
    )
    assert "try_resume_from_last_checkpoint: true" in (tmp_path / "train.yaml").read_text()
    return tmp_path / "train.yaml"


def ends_of(launchers: list[subprocess.Popen[str]], timeout_s: float) -> list[tuple[int, str]]:
    try:
        outputs = [launcher.communicate(timeout=timeout_s)[0] for launcher in launchers]
    finally:
        for launcher in launchers:
            launcher.kill()
    return [(launcher.returncode, output) for launcher, output in zip(launchers, outputs, strict=True)]


def assert_trained(config: Path, uninterrupted: Path) -> None:
    expected, actual = weights(uninterrupted / "whole"), weights(config.parent / "out")
    assert all((actual[name] == expected[name]).all() for name in expected)
    losses = [record["loss"] for record in records(config.parent / "out")]
    assert losses == [record["loss"] for record in records(uninterrupted / "whole")]


def wait_for_steps(config: Path, count: int) -> None:
    path, deadline = config.parent / "out" / "metrics.jsonl", time.monotonic() + 120
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_two_machines_train_like_one(machines: Machines, uninterrupted: Path, config: Path) -> None:
    ends = ends_of(machines.start(config), 180)
    assert [code for code, _ in ends] == [0, 0], ends
    assert_trained(config, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["training", "save"])
@pytest.mark.parametrize("loss", ["cut", "killed"])
def test_a_lost_machine_stops_the_other_and_the_run_goes_on(
    machines: Machines, uninterrupted: Path, config: Path, loss: str, moment: str
) -> None:
    # The main rank stops within a save for a moment, so that the other machine is lost then.
    slow = {"FAULT": "0:state.py:save_state:3:pause"} if moment == "save" else {}
    launchers = machines.start(config, **slow)
    wait_for_steps(config, 8 if moment == "save" else 10)
    if moment == "save":
        time.sleep(0.5)
    if loss == "cut":
        machines.cut()
    else:
        launchers[1].send_signal(signal.SIGKILL)
    lost = time.monotonic()
    (main, text), (other, message) = ends_of(launchers, 60)
    assert time.monotonic() - lost < LIMIT_S + 5, "15 s for the ranks, and some for what started them"
    assert main not in (0, 75), text
    assert "rank 2 on b" in text or "rank 3 on b" in text, text
    if loss == "cut":
        assert other not in (0, 75), message
        assert "rank 0 on a cannot be reached any more" in message, message
    machines.remove()
    machines.create()
    ends = ends_of(machines.start(config), 180)
    assert [code for code, _ in ends] == [0, 0], ends
    assert_trained(config, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 3])
def test_two_machines_restart_together(machines: Machines, uninterrupted: Path, config: Path, rank: int) -> None:
    launchers = machines.start(config, "--max-restarts=2", FAULT=f"{rank}:linear_cross_entropy.py:backward:9:kill")
    ends = ends_of(launchers, 180)
    assert [code for code, _ in ends] == [0, 0], ends
    assert "restart 1 after a failure" in ends[0][1] + ends[1][1]
    assert_trained(config, uninterrupted)


WORLD = """
import time
from oumi.core.distributed.world import World
from oumi.core.system.exits import exits_explained
with exits_explained(), World.start() as world:
    world.agree(0)
"""


def test_machines_of_which_one_does_not_come_say_so(machines: Machines, tmp_path: Path) -> None:
    (tmp_path / "world.py").write_text(WORLD)
    place = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    environment = os.environ | place | {"MASTER_ADDR": "10.77.0.2", "MASTER_PORT": "8007", "OUMI_START_TIMEOUT_S": "1"}
    command = ["ip", "netns", "exec", machines.names[0], sys.executable, str(tmp_path / "world.py")]
    machines.cut()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    assert "rank 0 does not answer at 10.77.0.2:8007 within 1 s" in done.stderr
