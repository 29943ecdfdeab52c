# SPDX-License-Identifier: Apache-2.0
"""The comparisons of preferences and of adapters: their rows and configs. No peer is needed."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest

from benchmarks import dpo_cpu, sft_cpu
from benchmarks.peers import ADAPTERS, DPO, ENVIRONMENTS, REFERENCES, Peer
from benchmarks.sft.measure import BATCH, DRIVERS, Task, write_config
from benchmarks.sft.workload import Shape, make_workload
from oumi.core.configs import TrainingConfig
from oumi.core.data.training_data import read_training_data
from oumi.core.inspect import gather_facts
from oumi.core.plan.plan import make_plan
from oumi.core.plan.refusals import refusals

PEERS = {**DPO, **{f"{kind}_{name}": peer for kind, peers in ADAPTERS.items() for name, peer in peers.items()}}
TINY = Shape(hidden=32, layers=1, heads=2, kv_heads=1, intermediate=48, vocabulary=300)


def test_a_pair_has_one_prompt_and_the_counted_tokens(tmp_path: Path) -> None:
    work = make_workload(tmp_path / "work", TINY, 2 * BATCH, are_pairs=True)
    (tmp_path / "run").mkdir()
    config = TrainingConfig.from_yaml(str(write_config(Task(work, 2, tmp_path / "run"), DPO["oumi"])))
    plan = make_plan(config, gather_facts(config))
    data = read_training_data(plan, datetime(2026, 1, 1))
    batches = [batch for step, batch in zip(range(2), data.loader(plan).from_step(0), strict=False) for batch in batch]
    assert [batch.num_tokens for batch in batches] == [
        sum(work.num_tokens[step * BATCH : (step + 1) * BATCH]) for step in range(2)
    ]
    for batch in batches:
        for chosen, rejected in zip(*(list(batch.documents())[i::2] for i in (0, 1)), strict=True):
            first = int(chosen.trained[0]) + 1
            assert first == int(rejected.trained[0]) + 1
            assert chosen.tokens[:first].equal(rejected.tokens[:first])
            assert int(chosen.trained[-1]) == len(chosen.tokens) - 2, "the last token is trained"


@pytest.mark.parametrize("name", PEERS)
def test_every_row_of_the_tables_can_be_run(name: str, tmp_path: Path) -> None:
    peer: Peer = PEERS[name]
    assert peer.reference in REFERENCES
    assert (peer.driver is None) == (peer.environment is None)
    if peer.driver is not None:
        assert (DRIVERS / peer.driver).exists()
        assert peer.environment in ENVIRONMENTS
    else:
        work = make_workload(tmp_path / "work", TINY, BATCH, are_pairs=name in DPO)
        (tmp_path / "run").mkdir()
        assert refusals(TrainingConfig.from_yaml(str(write_config(Task(work, 1, tmp_path / "run"), peer)))) == []


def test_options_select_the_peers() -> None:
    assert set(dpo_cpu.parse_options([]).peers) == set(DPO) - {"trl_stock"}
    assert sft_cpu.parse_options(["--peft", "lora"]).peers == ADAPTERS["lora"]
    with pytest.raises(SystemExit):
        sft_cpu.parse_options(["--peft", "lora", "--ablate"])
