# SPDX-License-Identifier: Apache-2.0
"""Law 6: whatever is planted in whatever mixture, the sums in `data_report.json` add up."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from oumi.core.configs import TrainingConfig
from oumi.core.data.training_data import load_training_data
from oumi.core.errors import DataError
from oumi.core.inspect import gather_facts
from oumi.core.plan.plan import make_plan
from oumi.core.trainers.resume import find_resume_point
from tests.runs import tiny_config

SOUND = (
    {"messages": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yo."}]},
    {"messages": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "word " * 40}]},
    {"messages": [{"role": "user", "content": "word " * 40}, {"role": "assistant", "content": "Yo."}]},
)
LINES = [
    *map(json.dumps, SOUND),
    "{nope",
    '{"messages": []}',
    '{"messages": null}',
    json.dumps(SOUND[0]).replace("user", "usr"),
    json.dumps(SOUND[0]).replace("Hi", "\\ud800"),
    '{"text": "a text"}',
    "",
]
FILES = st.lists(st.sampled_from(LINES), max_size=25)


@settings(deadline=None, max_examples=20)
@given(
    st.lists(FILES, min_size=1, max_size=3),
    st.sampled_from([None, "RIGHT", "LEFT", "REJECT", "SPLIT"]),
    st.sampled_from([None, "first_exhausted", "all_exhausted"]),
    st.booleans(),
)
def test_the_sums_of_the_report_add_up(
    files: list[list[str]], truncation: str | None, strategy: str | None, pack: bool
) -> None:
    with TemporaryDirectory() as folder:
        config = mixture_of(Path(folder), files, truncation, strategy)
        config.data.train.pack = pack
        (Path(folder) / "out").mkdir()
        plan = make_plan(config, gather_facts(config, counts_rows=False))
        try:
            num_rows = len(load_training_data(plan, find_resume_point(plan).began).train)
        except DataError as error:
            if "no row" not in str(error):  # to train on, or to draw from
                raise
            num_rows = None
        report = json.loads((Path(folder) / "out" / "data_report.json").read_text())
    for lines, account in zip(files, report["train"], strict=False):  # the first that has no row ends it
        check_account(account, sum(map(bool, lines)))
    if num_rows is not None:
        assert len(report["train"]) == len(files)
        drawn = sum(account["examples"]["drawn"] for account in report["train"])
        assert num_rows <= drawn if pack else num_rows == drawn
        if strategy is None:
            assert all(account["examples"]["drawn"] == account["examples"]["made"] for account in report["train"])


def mixture_of(folder: Path, files: list[list[str]], truncation: str | None, strategy: str | None) -> TrainingConfig:
    """Returns a run on files, all of whose rows may be rejected."""
    config = tiny_config(folder)
    config.model.model_max_length = 64
    datasets = []
    shares = np.random.default_rng(len(files)).dirichlet(np.ones(len(files))).tolist()
    for number, (lines, share) in enumerate(zip(files, shares, strict=True)):
        path = folder / f"{number}.jsonl"
        path.write_text("\n".join(lines) + "\n")
        datasets.append({"dataset_name": "text_sft", "dataset_path": str(path)})
        if strategy is not None:
            datasets[-1]["mixture_proportion"] = share
    split: dict[str, Any] = {"datasets": datasets, "truncation": truncation, "max_rejected_rows": 100}
    plain = config.model_dump(exclude_unset=True)
    return TrainingConfig.model_validate(
        {**plain, "data": {"train": {**split, **({"mixture_strategy": strategy} if strategy else {})}}}
    )


def check_account(account: dict[str, Any], num_lines: int) -> None:
    rows, tokens, targets = account["rows"], account["tokens"], account["targets"]
    assert rows["read"] == num_lines
    assert rows["read"] == rows["trained"] + rows["truncated"] + rows["rejected"]
    assert tokens["read"] == tokens["trained"] + tokens["prompt"] + tokens["cut"] + tokens["rejected"]
    assert targets["read"] == targets["trained"] + targets["cut"] + targets["rejected"]
    assert targets["trained"] == tokens["trained"]
    assert sum(account["reasons"].values()) == rows["rejected"] == len(account["rejected"])
    assert account["examples"]["made"] >= rows["trained"] + rows["truncated"]
