# SPDX-License-Identifier: Apache-2.0
"""A data set of the Hub that is read while it is trained: the same run, whole or resumed in the middle of a shard."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from oumi.core.configs import DatasetParams
from oumi.core.configs.loading import dump
from tests.hub_server import HubServer
from tests.runs import losses, tiny_config


@pytest.mark.slow
def test_a_stream_of_the_hub_goes_on_where_it_stood(tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "datasets" / "me" / "texts"
    folder.mkdir(parents=True)
    for shard in range(3):
        rows = [json.dumps({"text": f"Row {i} of {shard}. " * 4}) for i in range(150)]
        (folder / f"train-{shard}.jsonl").write_text("\n".join(rows))
    config = tiny_config(tmp_path, max_steps=130, save_steps=100)
    config.data.train.stream = True
    config.data.train.datasets = [DatasetParams(dataset_name="me/texts", shuffle=True, shuffle_buffer_size=40)]
    with HubServer(tmp_path / "hub") as hub:
        environment = {**os.environ, **hub.environment(tmp_path / "home"), "HOME": str(tmp_path)}
        for name in ("whole", "again"):
            config.training.output_dir = str(tmp_path / name)
            (tmp_path / f"{name}.yaml").write_text(dump(config))
            command = [sys.executable, "-m", "oumi", "train", "-c", str(tmp_path / f"{name}.yaml")]
            result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            assert result.returncode == 0, result.stderr
            config.training.resume_from_checkpoint = str(tmp_path / "whole" / "checkpoint-100")
        assert not list((tmp_path / "home").rglob("*.arrow")), "nothing of it is kept"
    state = json.loads((tmp_path / "whole" / "checkpoint-100" / "state" / "progress.json").read_text())["loader"]
    assert state["parts"][0]["stream"]["place"]["row"] == 360, "where the block of rows begins in which it stands"
    assert losses(tmp_path / "again") == losses(tmp_path / "whole")[100:]
    assert len(set(losses(tmp_path / "whole"))) > 100
