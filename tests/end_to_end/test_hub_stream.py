# SPDX-License-Identifier: Apache-2.0
"""A data set of the Hub that is read while it is trained: the same run, whole or resumed in the middle of a shard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from oumi.core.configs import DatasetParams
from oumi.core.configs.loading import dump
from tests.end_to_end.conftest import HOME
from tests.hub_server import HubServer
from tests.runs import losses, tiny_config

pytestmark = pytest.mark.xdist_group("hub")


def test_a_stream_of_the_hub_goes_on_where_it_stood(tmp_path: Path, hub: HubServer, python: Any) -> None:
    folder = hub.folder("datasets", "me/texts")
    folder.mkdir(parents=True)
    for shard in range(3):
        rows = [json.dumps({"text": f"Row {i} of {shard}. " * 4}) for i in range(150)]
        (folder / f"train-{shard}.jsonl").write_text("\n".join(rows))
    config = tiny_config(tmp_path, max_steps=130, save_steps=100)
    config.data.train.stream = True
    config.data.train.datasets = [DatasetParams(dataset_name="me/texts", shuffle=True, shuffle_buffer_size=40)]
    for name in ("whole", "again"):
        config.training.output_dir = str(tmp_path / name)
        (tmp_path / f"{name}.yaml").write_text(dump(config))
        result = python("-m", "oumi", "train", "-c", str(tmp_path / f"{name}.yaml"))
        assert result.returncode == 0, result.stderr
        config.training.resume_from_checkpoint = str(tmp_path / "whole" / "checkpoint-100")
    assert not list(HOME.rglob("*.arrow")), "nothing of it is kept"
    state = json.loads((tmp_path / "whole" / "checkpoint-100" / "state" / "progress.json").read_text())["loader"]
    assert state["parts"][0]["stream"]["place"]["row"] == 360, "where the block of rows begins in which it stands"
    assert losses(tmp_path / "again") == losses(tmp_path / "whole")[100:]
    assert len(set(losses(tmp_path / "whole"))) > 100
