# SPDX-License-Identifier: Apache-2.0
"""A rank that fails, is killed or hangs ends all of them within seconds, with its name; no rank waits for ever."""

from __future__ import annotations

import signal
import socket
import time
from pathlib import Path

import pytest

from oumi.core.checkpoint.store import read_facts
from oumi.core.configs import TrainingConfig
from tests.fork_server import run_python, start_python
from tests.ranks import ends_of, free_port, run_ranks, start_ranks
from tests.runs import tiny_config

DRIVER = Path(__file__).with_name("rank_fault_driver.py")
LIMIT_S = 15.0
"""Time for all ranks to end after one has failed, on a machine that is not busy with other tests."""


def faulty_config(folder: Path, **training: object) -> TrainingConfig:
    config = tiny_config(folder, **{"num_rows": 27, "per_device_train_batch_size": 1, "max_steps": 8, "save_steps": 3,
                                    "eval_strategy": "steps", "eval_steps": 4, **training})  # fmt: skip
    config.data.validation.datasets = list(config.data.train.datasets)
    config.to_yaml(folder / "train.yaml")
    return config


def run_with_fault(folder: Path, fault: str, **variables: str) -> list[tuple[int, str]]:
    """Returns the exit code of two ranks and what they printed, after a fault on one of them."""
    command = (str(DRIVER), "train", "-c", str(folder / "train.yaml"))
    began = time.monotonic()
    ends = run_ranks(2, *command, folder=Path(__file__).parents[2], FAULT=fault, **variables)
    assert time.monotonic() - began < 4 * LIMIT_S
    return ends


@pytest.fixture(scope="module", autouse=True)
def fork_server() -> None:
    """Starts the server of processes, so that no test measures how long that takes."""
    run_python("-c", "pass")


MOMENTS = {
    "forward": "modeling_llama.py:forward:9",
    "backward": "linear_cross_entropy.py:backward:5",
    "all-reduce": "world.py:agree:7",
    "save": "checkpointing.py:save:1",
}


@pytest.mark.sample(3)
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_rank_ends_the_others_with_its_name(tmp_path: Path, moment: str) -> None:
    faulty_config(tmp_path)
    (main, text), (other, _) = run_with_fault(tmp_path, f"1:{MOMENTS[moment]}:kill")
    assert other == -signal.SIGKILL
    assert main == 1, text
    assert "rank 0: stopped, since rank 1" in text.splitlines()[-1]
    assert "killed" in text.splitlines()[-1]
    assert "Traceback" not in text


PLACES = {
    "dataset": (1, "token_table.py:__getitem__:20"),
    "collate": (1, "batch.py:collate:9"),
    "loss": (1, "next_token.py:loss:7"),
    "callback": (0, "reporting.py:step_end:2"),
    "evaluation": (1, "evaluation.py:evaluate:1"),
    "save": (0, "state.py:save_state:1"),
    "save elsewhere": (1, "checkpointing.py:save:1"),
}


@pytest.mark.sample(3)
@pytest.mark.parametrize("place", PLACES)
def test_an_error_on_one_rank_is_shown_once_and_ends_all(tmp_path: Path, place: str) -> None:
    faulty_config(tmp_path)
    rank, where = PLACES[place]
    ends = run_with_fault(tmp_path, f"{rank}:{where}:raise")
    assert [code for code, _ in ends] == [1, 1]
    texts = [text for _, text in ends]
    assert texts[rank].count("Traceback (most recent call last)") == 1, texts[rank]
    assert "RuntimeError: planted" in texts[rank].splitlines()[-1]
    assert "Traceback" not in texts[1 - rank]
    message = f"rank {1 - rank}: stopped, since rank {rank} on {socket.gethostname()} failed: RuntimeError: planted"
    assert message in texts[1 - rank].splitlines()[-1]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_full_disk_while_a_checkpoint_is_saved_leaves_the_previous_one_to_all(tmp_path: Path, rank: int) -> None:
    config = faulty_config(tmp_path, eval_strategy="no")
    config.fsdp.enable_fsdp = bool(rank)  # then each rank saves a part
    config.to_yaml(tmp_path / "train.yaml")
    ends = run_with_fault(tmp_path, f"{rank}:{'slices.py:write_slices' if rank else 'state.py:save_state'}:2:full")
    assert [code for code, _ in ends] == [74, 74], ends
    assert "No space left on device" in ends[rank][1]
    assert f"rank {1 - rank}: stopped, since rank {rank}" in ends[1 - rank][1]
    assert "Traceback" not in ends[0][1] + ends[1][1]
    read_facts(tmp_path / "out" / "checkpoint-3")
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-3"]


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_stopped_rank_is_found_and_all_show_where_they_are(tmp_path: Path, rank: int) -> None:
    faulty_config(tmp_path)
    began = time.monotonic()
    ends = run_with_fault(tmp_path, f"{rank}:world.py:agree:7:stop", OUMI_RANK_TIMEOUT_S="2")
    assert time.monotonic() - began < 4 * LIMIT_S
    for i, (code, text) in enumerate(ends):
        assert code == 1, text
        assert f"rank {i}: all threads, as they are" in text
        assert "Thread 0x" in text
        assert "has been stopped (SIGSTOP or a debugger) for 2 s" in text


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_signal_to_one_rank_stops_all_after_the_same_step(tmp_path: Path, rank: int) -> None:
    faulty_config(tmp_path, save_steps=0)
    ends = run_with_fault(tmp_path, f"{rank}:world.py:sum_gradients:2:term")
    assert [code for code, _ in ends] == [75, 75], ends
    assert "stopped after step 2 of 8" in ends[0][1]
    assert "stopped after step 2 of 8" in ends[1][1]
    read_facts(tmp_path / "out" / "checkpoint-2")


WORLD = """
import time
from oumi.core.distributed.world import World
from oumi.core.system.exits import exits_explained
with exits_explained(), World.start() as world:
    print("met", world.agree(world.rank))
"""


def start_worlds(folder: Path, *places: dict[str, object]) -> list[tuple[int, str, float]]:
    """Starts ranks with the variables that are given, and returns their exit codes, output and seconds."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "OUMI_START_TIMEOUT_S": 2}
    began = time.monotonic()
    ranks = []
    for place in places:
        variables = {"LOCAL_RANK": place["RANK"], "LOCAL_WORLD_SIZE": 2, "WORLD_SIZE": 2, **address, **place}
        texts = {name: str(value) for name, value in variables.items()}
        ranks.append(start_python("-c", WORLD, folder=folder, **texts))
    ends = ends_of(ranks)
    assert time.monotonic() - began < 2 * LIMIT_S
    return [(code, text, time.monotonic() - began) for code, text in ends]


def test_ranks_that_meet_and_end_say_nothing(tmp_path: Path) -> None:
    ends = start_worlds(tmp_path, {"RANK": 0}, {"RANK": 1})
    assert [(code, text) for code, text, _ in ends] == [(0, "met 1\n"), (0, "met 1\n")]


def test_a_rank_that_does_not_come_is_named(tmp_path: Path) -> None:
    places = [{"RANK": rank, "WORLD_SIZE": 4, "LOCAL_WORLD_SIZE": 4} for rank in (0, 2)]
    for code, text, _ in start_worlds(tmp_path, *places):
        assert code == 2
        assert "ranks 1, 3 of 4 did not come to" in text


def test_a_main_rank_that_does_not_come_is_named(tmp_path: Path) -> None:
    ((code, text, _),) = start_worlds(tmp_path, {"RANK": 1})
    assert code == 2
    assert "rank 0 does not answer at 127.0.0.1:" in text
    assert "Connection refused" in text
    assert "what listens" not in text


def test_an_address_that_is_unknown_is_named(tmp_path: Path) -> None:
    ((code, text, _),) = start_worlds(tmp_path, {"RANK": 1, "MASTER_ADDR": "no-such-host.invalid"})
    assert code == 2
    assert "rank 0 does not answer at no-such-host.invalid:" in text


def test_ranks_that_disagree_on_their_number_are_named(tmp_path: Path) -> None:
    for code, text, _ in start_worlds(tmp_path, {"RANK": 0}, {"RANK": 1, "WORLD_SIZE": 4}):
        assert code == 2
        assert "has WORLD_SIZE=4, rank 0 on" in text


def test_two_processes_with_one_rank_are_refused(tmp_path: Path) -> None:
    ends = start_worlds(
        tmp_path, {"RANK": 0, "WORLD_SIZE": 3}, {"RANK": 1, "WORLD_SIZE": 3}, {"RANK": 1, "WORLD_SIZE": 3}
    )
    assert all(code == 2 for code, _, _ in ends)
    assert any("rank 1 is there twice" in text for _, text, _ in ends)


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        ends = start_worlds(tmp_path, {"RANK": 0, "MASTER_PORT": port}, {"RANK": 1, "MASTER_PORT": port})
    assert [code for code, _, _ in ends] == [2, 2]
    assert f"port {port} of" in ends[0][1]
    assert "is in use by another process" in ends[0][1]
    assert f"what listens at 127.0.0.1:{port} is no rank 0 of a run" in ends[1][1]


def test_a_rank_that_works_alone_for_long_is_not_called_silent(tmp_path: Path) -> None:
    code = WORLD + "    if world.rank:\n        time.sleep(4)\n    world.agree(0)\n"
    ranks = start_ranks(2, "-c", code, folder=tmp_path, OUMI_RANK_TIMEOUT_S="2")
    assert [(end, text) for end, text in ends_of(ranks)] == [(0, "met 1\n"), (0, "met 1\n")]


def test_a_rank_that_waits_elsewhere_leaves_after_a_failure(tmp_path: Path) -> None:
    code = WORLD + "    if world.rank:\n        raise ValueError('boom')\n    time.sleep(60)\n"
    began = time.monotonic()
    (main, text), (other, _) = run_ranks(2, "-c", code, folder=tmp_path)
    assert time.monotonic() - began < 2 * LIMIT_S
    assert (main, other) == (1, 1)
    assert text.splitlines()[-1].endswith("failed: ValueError: boom")
    assert "all threads" not in text, "it waits for no other rank"


TURNS = """
import os, time
from oumi.core.distributed.world import World
with World.start() as world:
    with world.run_first():
        began = time.time()
        time.sleep(0.3)
        ended = time.time()
    times = world.gather((began, ended))
    if world.is_main:
        ends = [end for _, end in times]
        assert all(times[0][1] <= times[rank][0] for rank in (1, 2, 3)), times
        assert times[2][1] <= min(times[1][0], times[3][0]), times
"""


def test_the_first_rank_of_each_machine_goes_before_its_others(tmp_path: Path) -> None:
    port = str(free_port())
    ranks = []
    for rank in range(4):
        place = {"RANK": rank, "WORLD_SIZE": 4, "LOCAL_RANK": rank % 2, "LOCAL_WORLD_SIZE": 2}
        texts = {name: str(value) for name, value in place.items()}
        ranks.append(start_python("-c", TURNS, folder=tmp_path, MASTER_ADDR="127.0.0.1", MASTER_PORT=port, **texts))
    assert [code for code, _ in ends_of(ranks)] == [0] * 4


def test_a_forked_worker_that_lives_on_does_not_hide_that_its_rank_is_gone(tmp_path: Path) -> None:
    code = WORLD + (
        "    import os, signal\n"
        "    if world.rank and os.fork() == 0:\n        time.sleep(40)\n        os._exit(0)\n"
        "    if world.rank:\n        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    world.agree(0)\n    time.sleep(90)\n"
    )
    began = time.monotonic()
    (main, text), _ = run_ranks(2, "-c", code, folder=tmp_path)
    assert time.monotonic() - began < 2 * LIMIT_S
    assert main == 1
    assert "rank 1" in text
    assert "ended without a message" in text
