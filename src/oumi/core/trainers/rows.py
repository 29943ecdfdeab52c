# SPDX-License-Identifier: Apache-2.0
"""The rows of a run, read, rendered, tokenised and accounted for; the same for every trainer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from oumi.core.data.ledger import Ledger
from oumi.core.data.mixture import Mixture, Part
from oumi.core.data.supervision import check_supervision, draw
from oumi.core.data.targets import Renderer
from oumi.core.data.templates import Template, chat_template_for
from oumi.core.data.tokens import tokenise
from oumi.core.datasets import dataset_for
from oumi.core.errors import ConfigError, DataError
from oumi.core.log import logger
from oumi.core.models.tokenizers import load_tokenizer
from oumi.core.plan.parts import Plan
from oumi.core.trainers.listeners import quiet_libraries

_NUM_CHECKED = 64
"""Rows whose supervision is verified before the first step."""


@dataclass(frozen=True)
class Rows:
    """What is trained and what is measured."""

    train: Mixture
    validation: Mixture
    tokenizer: Any
    """With the chat template of the plan."""
    fingerprint: str
    """Digest of the training rows."""

    def check_vocabulary(self, model: Any) -> None:
        """Raises ConfigError if a token of the rows has no embedding."""
        num_embeddings = model.get_input_embeddings().num_embeddings
        highest = max(
            part.table.highest_token for part in (*self.train.parts, *self.validation.parts) if len(part.table)
        )
        if highest >= num_embeddings:
            token = self.tokenizer.convert_ids_to_tokens(highest)
            raise ConfigError(
                f"model.tokenizer_name: token {highest} ('{token}') of the rows has no embedding: the model knows "
                f"{num_embeddings} tokens. Is this the tokenizer of the model?"
            )


def load_rows(plan: Plan, began: datetime) -> Rows:
    """Returns the rows of a plan, and writes the ledger of what became of each to `data_report.json`.

    Args:
        plan: Of the run.
        began: The date and time that chat templates tell.

    Raises:
        DataError: Rows that cannot be used, more than the plan allows, or rows that teach the wrong thing.
    """
    quiet_libraries(plan)
    tokenizer = load_tokenizer(plan.model)
    tokenizer.chat_template = chat_template_for(tokenizer, plan.model.chat_template)
    template = Template(tokenizer, tokenizer.chat_template, began)
    renderer = Renderer(tokenizer, template, plan.data.train_on, plan.model.max_length)
    ledgers: dict[str, list[Ledger]] = {"train": [], "validation": []}
    try:
        train = _read(plan, "train", renderer, ledgers["train"])
        validation = _read(plan, "validation", renderer, ledgers["validation"])
    finally:
        _write_report(plan.output_dir, ledgers)
    if len(train) == 0:
        raise DataError("data.train: there is no row to train on")
    for part in (*train.parts, *validation.parts):
        check_supervision(part.table, tokenizer, _NUM_CHECKED, plan.data.train_on, plan.model.max_length)
    if plan.logs.examples:
        logger.info("first row, trained tokens in brackets:\n%s", draw(train[0], tokenizer))
    return Rows(train, validation, tokenizer, train.fingerprint())


def _read(plan: Plan, split: str, renderer: Renderer, ledgers: list[Ledger]) -> Mixture:
    params = plan.data.train if split == "train" else plan.data.validation
    max_rejected = plan.data.max_rejected_rows if split == "train" else plan.data.max_rejected_validation_rows
    key, seed = f"data.{split}", plan.data.seed
    parts = []
    for one in params:
        ledger = Ledger(one.dataset_path or one.dataset_name, key, max_rejected)
        ledgers.append(ledger)
        table = tokenise(dataset_for(one).rows(), renderer, ledger)
        parts.append(Part(table, (one.seed if one.seed is not None else seed) if one.shuffle else None))
    return Mixture(parts)


def _write_report(output_dir: Path, ledgers: dict[str, list[Ledger]]) -> None:
    report = {split: [ledger.to_dict() for ledger in of_split] for split, of_split in ledgers.items() if of_split}
    (output_dir / "data_report.json").write_text(json.dumps(report, indent=1) + "\n")
