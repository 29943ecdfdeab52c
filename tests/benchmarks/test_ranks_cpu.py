# SPDX-License-Identifier: Apache-2.0
"""The comparison of one rank and two: configs, results of several ranks, and the table. No peer is run."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.peers import ENVIRONMENTS, RANKS, REFERENCES, Peer
from benchmarks.peers.clock import loopback_bytes, result_path
from benchmarks.ranks_cpu import of_ranks, parse_options, report
from benchmarks.sft.measure import (
    BATCH,
    DRIVERS,
    NUM_THREADS,
    PeerError,
    Run,
    Steps,
    Task,
    ended,
    launcher,
    read_results,
    write_config,
)
from benchmarks.sft.tables import NUM_SKIPPED_STEPS, Outcome, summary
from benchmarks.sft.workload import Workload, write_rows
from oumi.core.configs import TrainingConfig
from oumi.core.plan.facts import Facts
from oumi.core.plan.plan import make_plan
from oumi.core.plan.refusals import refusals

NUM_STEPS = NUM_SKIPPED_STEPS + 2
CPU = Facts("cpu", "CPU", False, 2, 24 << 30, 10**12, num_rows=NUM_STEPS * BATCH)


def outcome(peer: Peer, step_s: float, *peaks: int) -> Outcome:
    steps = Steps(
        walls_s=(9.0,) * NUM_SKIPPED_STEPS + (step_s, step_s),
        cpus_s=(9.0,) * NUM_SKIPPED_STEPS + (2 * step_s, 2 * step_s),
        losses=(10.0,) * NUM_STEPS,
        peak_bytes=max(peaks),
        first_step_s=3.0,
        versions={"torch": "1"},
        rank_peaks_bytes=peaks,
        sent_bytes=(2**40,) * NUM_SKIPPED_STEPS + (2**22, 2**22),
    )
    return Outcome(peer, [Run(steps, wall_s=20.0, cpu_s=30.0, contention=0.0)])


def write_result(path: Path, marks: list[tuple[float, float, int, int]], losses: list[float], peak: int) -> None:
    path.write_text(json.dumps({"marks": marks, "losses": losses, "peak_bytes": peak, "versions": {"torch": "1"}}))


def test_ranks_divide_rows_and_model_as_their_peer_says(tmp_path: Path) -> None:
    work = Workload(tmp_path, (20,) * NUM_STEPS * BATCH)
    write_rows(work.rows, [{"messages": []}] * NUM_STEPS * BATCH)
    (tmp_path / "run").mkdir()
    sharding = {}
    for name, peer in RANKS.items():
        if peer.environment is None:
            config = TrainingConfig.from_yaml(str(write_config(Task(work, NUM_STEPS, tmp_path / "run"), peer)))
            assert refusals(config) == []
            plan = make_plan(config, CPU, peer.num_ranks, peer.num_ranks)
            assert plan.steps.rows_per_step == BATCH
            sharding[name] = plan.sharding and plan.sharding.frees_after_forward
    assert sharding == {"oumi": None, "oumi_ddp": None, "oumi_full_shard": True, "oumi_shard_grad_op": False}


def test_every_row_of_the_table_can_be_run() -> None:
    for peer in RANKS.values():
        assert peer.driver is not None
        assert (DRIVERS / peer.driver).exists()
        assert peer.environment is None or peer.environment in ENVIRONMENTS
        assert (peer.reference in REFERENCES, peer.base in RANKS) == (True, True)
        assert (BATCH % peer.num_ranks, NUM_THREADS % peer.num_ranks) == (0, 0)
    assert launcher(1) == []
    assert launcher(2)[-2:] == ["--nproc-per-node", "2"]


def test_each_rank_has_a_result_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = {"result": str(tmp_path / "result.json")}
    monkeypatch.delenv("RANK", raising=False)
    assert result_path(job).name == "result.json"
    monkeypatch.setenv("RANK", "0")
    assert result_path(job).name == "result.json"
    monkeypatch.setenv("RANK", "1")
    assert result_path(job).name == "result.1.json"


def test_cpu_time_is_that_of_all_ranks_and_peaks_are_kept_by_rank(tmp_path: Path) -> None:
    write_result(tmp_path / "result.json", [(12.0, 3.0, 1, 100), (13.5, 5.0, 2, 180)], [3.0, 2.0], 7)
    write_result(tmp_path / "result.1.json", [(12.5, 4.0, 1, 100), (13.6, 4.5, 2, 190)], [], 9)
    steps = read_results(tmp_path, started=10.0, num_ranks=2)
    assert (steps.walls_s, steps.cpus_s) == ((2.0, 1.5), (7.0, 2.5))
    assert (steps.losses, steps.first_step_s, steps.sent_bytes[1]) == ((3.0, 2.0), 2.0, 80)
    assert (steps.peak_bytes, steps.rank_peaks_bytes) == (9, (7, 9))
    assert read_results(tmp_path, started=10.0).cpus_s == (3.0, 2.0)


def test_ranks_that_took_different_steps_are_a_failure(tmp_path: Path) -> None:
    write_result(tmp_path / "result.json", [(12.0, 3.0, 1, 100)], [3.0], 7)
    write_result(tmp_path / "result.1.json", [], [], 9)
    with pytest.raises(PeerError, match="expected as many steps on each rank, got 1, 0"):
        read_results(tmp_path, started=10.0, num_ranks=2)
    write_result(tmp_path / "result.json", [], [], 7)
    with pytest.raises(PeerError, match="got 0"):
        read_results(tmp_path, started=10.0)


def test_what_processes_of_this_machine_send_to_each_other_is_counted() -> None:
    before = loopback_bytes()
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        accepted, _ = server.accept()
        with accepted:
            client.sendall(bytes(2**16))
            left = 2**16
            while left:
                left -= len(accepted.recv(left))
    assert loopback_bytes() - before >= 2**16


def test_a_run_that_is_interrupted_ends_with_its_children() -> None:
    # The shell waits for a process of its own; it ends by the signal that both of them got.
    child = subprocess.Popen(["sh", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE, process_group=0)
    assert child.stdout is not None
    assert int(child.stdout.readline()) > 0
    with pytest.raises(KeyboardInterrupt), ended(child):
        raise KeyboardInterrupt
    assert child.returncode == -signal.SIGTERM
    assert child.stdout.read() == b"", "both ends of the pipe are closed"
    child.stdout.close()


def test_the_report_shows_memory_of_each_rank_and_what_a_step_sends() -> None:
    outcomes = {
        "oumi": outcome(RANKS["oumi"], 1.0, 2**30),
        "oumi_ddp": outcome(RANKS["oumi_ddp"], 0.5, 2**29, 2**28),
        "trl": Outcome(RANKS["trl"], num_discarded=3),
        "trl_ddp": outcome(RANKS["trl_ddp"], 2.0, 2**30, 2**31),
    }
    off = outcomes["trl_ddp"].runs[0]
    outcomes["trl_ddp"].runs[0] = replace(off, steps=replace(off.steps, losses=(10.1,) * NUM_STEPS))
    rows = summary(outcomes, {"plain": [10.0] * NUM_STEPS}, [100] * NUM_STEPS, BATCH)
    shape = {"name": "14m", "layers": 8, "hidden": 256, "vocabulary": 32000}
    facts = {
        "date": "today", "commit": "abc", "cpu": "some", "cores": 2, "shape": shape, "steps": NUM_STEPS,
        "rows_per_step": BATCH, "tokens_per_step": [100] * NUM_STEPS, "versions": {"oumi": {"torch": "1"}},
    }  # fmt: skip
    lines = report(facts, {name: {**row, **of_ranks(outcomes[name])} for name, row in rows.items()}).splitlines()
    table = [[cell.strip() for cell in line.split("|")[2:-1]] for line in lines if line.startswith("|")]
    assert table[2] == ["1 x 2", "100", "1.00", "20.00", "1.00", "1,024", "4.0", "3.0", "0.0e+00", "1"]
    assert table[3] == ["2 x 1", "200", "0.50", "10.00", "0.50", "512, 256", "4.0", "3.0", "0.0e+00", "1"]
    assert table[4][0] == "no quiet run in 3"
    assert table[5][0] == "rejected: losses differ by 1.0e-02"
    assert {len(cells) for cells in table} == {10}
    assert lines[-1] == "- oumi: torch 1"


def test_options_refuse_peers_of_other_comparisons(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(parse_options([]).peers) == list(RANKS)
    assert list(parse_options(["--peers", "oumi_ddp,trl_ddp"]).peers) == ["oumi_ddp", "trl_ddp"]
    with pytest.raises(SystemExit):
        parse_options(["--peers", "litgpt"])
    assert "unknown name 'litgpt', expected one of oumi, oumi_ddp" in capsys.readouterr().err
