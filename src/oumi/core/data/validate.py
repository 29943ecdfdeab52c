# SPDX-License-Identifier: Apache-2.0
"""Finds all problems with the rows of a run, in every data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from oumi.core.data.build import TableSpec, open_table, specs_of
from oumi.core.data.checks.supervision import check_supervision, spread
from oumi.core.data.ledger import Ledger
from oumi.core.data.store.lazy_table import LazyTable
from oumi.core.data.tokenize.preprocessor import Preprocessor, load_preprocessor
from oumi.core.data.training_data import read_training_data
from oumi.core.errors import DataError
from oumi.core.plan.parts import Plan
from oumi.core.system.libraries import quiet_libraries


def problems_of(plan: Plan, began: datetime, ledgers: Mapping[str, list[Ledger]]) -> list[str]:
    """Returns every problem with the rows that would stop a run, and appends the ledger of each data set.

    Args:
        plan: Plan of the run.
        began: The date and time that chat templates write.
        ledgers: Empty lists for `train` and `validation`.
    """
    quiet_libraries(plan.logs.dependency_level, plan.device)
    preprocessor = load_preprocessor(plan.model)
    problems = []
    for split, split_ledgers in ledgers.items():
        for spec in specs_of(plan, split, began):
            split_ledgers.append(spec.ledger())
            problems += _problems_of_dataset(spec, preprocessor, split_ledgers[-1])
    if problems:
        return problems
    # The data sets are good on their own. What is left are problems of the mixture: no rows at all, or duplicates.
    try:
        read_training_data(plan, began).close(may_wait=True)
    except DataError as error:
        return [str(error)]
    return []


def _problems_of_dataset(spec: TableSpec, preprocessor: Preprocessor, ledger: Ledger) -> Sequence[str]:
    try:
        opened = open_table(spec, preprocessor, ledger)
        table = opened.table
        # Waits until every row is read, where a run would already train.
        if isinstance(table, LazyTable):
            ledger.counts = table.close(may_wait=True)
        if len(table):
            check_supervision(spread(table), preprocessor.tokenizer, opened.supervision)
    except DataError as error:
        counts = ledger.counts
        # Without the list of rows, which the caller prints from the ledger.
        if ledger.is_over:
            return [f"{ledger.dataset}: {counts.rejected} of {counts.read} rows cannot be used\n{ledger.advice}"]
        return [str(error)]
    return []
