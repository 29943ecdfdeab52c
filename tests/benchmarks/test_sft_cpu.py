# SPDX-License-Identifier: Apache-2.0
"""The comparison of peers: the same rows for all, and a peer with other losses is rejected. No peer is needed."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.peers import ADAPTERS, DPO, ENVIRONMENTS, PEERS, REFERENCES, TECHNIQUES, Peer, ablations
from benchmarks.sft.measure import DRIVERS, Run, Steps, Task, busy_s, contention, write_config
from benchmarks.sft.tables import NUM_SKIPPED_STEPS, Outcome, corrected, loss_difference, median, summary, table
from benchmarks.sft.workload import (
    MAX_LENGTH,
    MEAN_LENGTH,
    Workload,
    make_rows,
    placed,
    row_lengths,
    vocabulary_words,
    write_rows,
)
from benchmarks.sft_cpu import in_turn, parse_options, report
from oumi.core.data.pipeline.mixture import permute

NUM_STEPS = NUM_SKIPPED_STEPS + 2
TOKENS = [100] * NUM_STEPS


def run(step_s: float = 1.0, losses: list[float] | None = None, peak: int = 2**30) -> Run:
    steps = Steps(
        walls_s=(9.0,) * NUM_SKIPPED_STEPS + (step_s, step_s),
        cpus_s=(9.0,) * NUM_SKIPPED_STEPS + (2 * step_s, 2 * step_s),
        losses=tuple(losses or [10.0] * NUM_STEPS),
        peak_bytes=peak,
        first_step_s=3.0,
        versions={"torch": "1"},
    )
    return Run(steps, wall_s=20.0, cpu_s=30.0, contention=0.0)


def rows_of(outcomes: dict[str, Outcome]) -> dict[str, dict[str, Any]]:
    return summary(outcomes, {"plain": [10.0] * NUM_STEPS}, TOKENS, 8)


def test_lengths_are_those_of_short_chats_and_the_same_each_time() -> None:
    lengths = row_lengths(4000, random.Random(1))
    assert lengths == row_lengths(4000, random.Random(1))
    assert lengths[:100] == row_lengths(100, random.Random(1))
    assert max(lengths) == MAX_LENGTH
    assert abs(sum(lengths) / len(lengths) - MEAN_LENGTH) < 4


def test_a_row_has_the_expected_number_of_tokens() -> None:
    words = vocabulary_words(1000)
    assert len(set(words)) == 1000
    for length, row in zip((18, 119, 512), make_rows((18, 119, 512), words), strict=True):
        user, assistant = (message["content"].split() for message in row["messages"])
        assert user
        assert assistant
        assert len(user) + len(assistant) + 2 * 5 == length


def test_rows_are_rearranged_for_an_order() -> None:
    rows, order = list("abcde"), [3, 0, 4, 1, 2]
    rearranged = placed(rows, order)
    assert [rearranged[place] for place in order] == rows


def test_the_file_for_this_repository_makes_the_steps_of_the_reference(tmp_path: Path) -> None:
    work = Workload(tmp_path, (20,) * 24)
    write_rows(work.rows, [{"messages": [{"role": "user", "content": str(i)}]} for i in range(24)])
    (tmp_path / "run").mkdir()
    config = json.loads(write_config(Task(work, 3, tmp_path / "run"), PEERS["oumi"]).read_text())
    lines = (tmp_path / "run" / "rows.jsonl").read_text().splitlines()
    order = permute(np.arange(24), 24, config["training"]["data_seed"], 0)
    assert [json.loads(lines[i])["messages"][0]["content"] for i in order] == [str(i) for i in range(24)]


def test_contention_is_the_work_of_other_programs() -> None:
    assert contention(ours_s=9.0, busy=10.0) == pytest.approx(0.1)
    assert contention(ours_s=10.1, busy=10.0) == 0.0
    assert contention(ours_s=0.0, busy=0.0) == 0.0


def test_busy_time_is_all_but_idle_and_waiting() -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    assert busy_s("cpu  100 1 20 5000 700 3 4 5 0 0\ncpu0 ...") == pytest.approx(133 / ticks)


def test_medians_leave_out_the_first_steps() -> None:
    medians = median([run(1.0), run(4.0), run(2.0)], TOKENS)
    assert (medians.step_s, medians.step_cpu_s) == (2.0, 4.0)
    assert medians.tokens_per_second == 50
    assert medians.cpu_ms_per_token == 40


def test_the_table_relates_each_row_to_its_base() -> None:
    slow = Outcome(Peer("Slow", "slow.py", "slow", note="see below"), [run(2.0, peak=2**31)], num_discarded=1)
    text = table(rows_of({"oumi": Outcome(PEERS["oumi"], [run(1.0)]), "slow": slow})).splitlines()
    assert [cell.strip() for cell in text[3].split("|")[1:]] == [
        "Slow [1]", "0.500", "50", "40.00", "2.00", "2.00", "2.00", "2,048", "3.0", "20.0", "0.0e+00",
        "1, 1 discarded", "",
    ]  # fmt: skip
    assert text[-1] == "[1] see below."
    assert len({line.count("|") for line in text[:4]}) == 1


def test_a_peer_whose_losses_differ_is_rejected() -> None:
    off = Outcome(Peer("Other", "other.py", "other"), [run(), run(losses=[10.0] * (NUM_STEPS - 1) + [10.02])])
    near = Outcome(Peer("Near", "near.py", "near"), [run(losses=[10.005] * NUM_STEPS)])
    rows = rows_of({"off": off, "near": near})
    assert "rejected: losses differ by 2.0e-03" in table(rows)
    assert (rows["off"]["is_rejected"], rows["near"]["is_rejected"]) == (True, False)


def test_losses_that_were_divided_by_all_labels_are_corrected_first() -> None:
    theirs = [10.0 * 92 / 100] * NUM_STEPS
    assert corrected(theirs, TOKENS, batch=8) == pytest.approx([10.0] * NUM_STEPS)
    peer = Peer("Labels", "labels.py", "labels", divides_by_labels=True)
    assert rows_of({"labels": Outcome(peer, [run(losses=theirs)])})["labels"]["losses_differ_by"] < 1e-9
    assert loss_difference(theirs, [10.0] * NUM_STEPS) == pytest.approx(0.08)


def test_a_peer_without_a_run_says_why() -> None:
    busy = Outcome(Peer("Busy", "busy.py", "busy"), num_discarded=3)
    broken = Outcome(Peer("Broken", "broken.py", "broken"), failure="failed: ended with 1")
    text = table(rows_of({"busy": busy, "broken": broken}))
    assert "| Busy | no quiet run in 3 |" in text
    assert "| Broken | failed: ended with 1 |" in text


def test_every_other_round_is_reversed() -> None:
    assert [in_turn("abc", turn) for turn in range(3)] == [list("abc"), list("cba"), list("abc")]


def test_every_row_of_the_table_of_peers_can_be_run() -> None:
    for peers in (PEERS, DPO, *ADAPTERS.values()):
        for peer in [*peers.values(), *REFERENCES.values()]:
            assert peer.driver is None or (DRIVERS / peer.driver).exists()
            assert peer.environment is None or peer.environment in ENVIRONMENTS
            assert peer.reference in REFERENCES
        assert {peer.base for peer in peers.values()} <= {*peers}


def test_an_ablation_disables_a_technique_at_a_time() -> None:
    switched = [peer.variables.get("OUMI_WITHOUT") for peer in ablations().values()]
    assert switched == [None, *TECHNIQUES]


def test_an_older_checkout_runs_with_its_own_source(tmp_path: Path) -> None:
    (tmp_path / "src/oumi").mkdir(parents=True)
    peers = parse_options(["--before", str(tmp_path)]).peers
    sources = [peer.variables.get("PYTHONPATH") for peer in peers.values()]
    assert sources == [None, str(tmp_path / "src"), None, str(tmp_path / "src")]
    assert [peer.base for peer in peers.values()] == ["oumi", "oumi", "oumi_answers", "oumi_answers"]
    with pytest.raises(SystemExit):
        parse_options(["--before", str(tmp_path / "src")])


def test_options_refuse_unknown_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(parse_options(["--peers", "oumi,plain"]).peers) == ["oumi", "plain"]
    assert "oumi_hf" not in parse_options([]).peers
    for words in (["--peers", "nobody"], ["--shapes", "7b"], ["--steps", "5"], ["--rows", "8"]):
        with pytest.raises(SystemExit):
            parse_options(words)
    assert "unknown name 'nobody'" in capsys.readouterr().err


def test_the_report_has_a_table_for_each_job() -> None:
    outcomes = {name: Outcome(PEERS[name], [run()]) for name in ("oumi", "oumi_answers")}
    losses = [10.0] * NUM_STEPS
    rows = summary(outcomes, {"plain": losses, "plain_answers": losses}, TOKENS, 8)
    shape = {"name": "14m", "layers": 8, "hidden": 256, "vocabulary": 32000}
    facts = {
        "date": "today", "commit": "abc", "cpu": "some", "cores": 2, "shape": shape, "steps": NUM_STEPS,
        "rows_per_step": 8, "tokens_per_step": TOKENS, "versions": {"oumi": {"torch": "1"}},
    }  # fmt: skip
    text = report(facts, rows)
    assert text.index("## Every token is trained") < text.index("## Only answers are trained")
    assert "- oumi: torch 1" in text
