# SPDX-License-Identifier: Apache-2.0
"""Arguments of torchrun are checked before any process is started."""

from __future__ import annotations

import pytest

from oumi.core.distributed.cluster import find_cluster
from oumi.core.distributed.launch import launch, parse
from oumi.core.errors import ConfigError


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--nproc-per-node=0", "--nproc-per-node is 0: expected a number > 0"),
        ("--nproc-per-node=-1", "--nproc-per-node is -1: expected a number > 0"),
        ("--nnodes=two", "--nnodes is 'two': expected a number > 0, or a range such as 1:4"),
        ("--nnodes=2:1", "--nnodes is '2:1': expected a number > 0, or a range such as 1:4"),
        ("--nnodes=2 --node-rank=2", "--node-rank is 2: expected a number from 0 to 1"),
        ("--node-rank=1", "--node-rank is 1: expected a number from 0 to 0"),
    ],
)
def test_a_number_that_no_run_can_have_is_refused(flag: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        launch([*flag.split(), "train.py"])


def test_processes_of_one_machine_do_not_need_its_name() -> None:
    assert parse(["--nproc-per-node=2", "train.py"], find_cluster({})).local_addr == "localhost"
