# SPDX-License-Identifier: Apache-2.0
"""All that is wrong with the rows of a run, whichever data set it is in."""

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
    """Returns everything for which a run would not start on its rows, and enters what became of each in the ledgers.

    Args:
        plan: Of the run.
        began: The date and time that chat templates tell.
        ledgers: An empty list for each of `train` and `validation`.
    """
    quiet_libraries(plan.logs.dependency_level, plan.device)
    preprocessor = load_preprocessor(plan.model)
    problems = []
    for split, of_split in ledgers.items():
        for spec in specs_of(plan, split, began):
            of_split.append(spec.ledger())
            problems += _problems_of_dataset(spec, preprocessor, of_split[-1])
    if problems:
        return problems
    try:
        read_training_data(plan, began).close(may_wait=True)
    except DataError as error:  # of the mixture: no row at all, or rows that repeat others
        return [str(error)]
    return []


def _problems_of_dataset(spec: TableSpec, preprocessor: Preprocessor, ledger: Ledger) -> Sequence[str]:
    try:
        opened = open_table(spec, preprocessor, ledger)
        table = opened.table
        if isinstance(table, LazyTable):
            ledger.counts = table.close(may_wait=True)
        if len(table):
            check_supervision(spread(table), preprocessor.tokenizer, opened.supervision)
    except DataError as error:
        counts = ledger.counts
        if ledger.is_over:  # each row stands in the ledger
            return [f"{ledger.dataset}: {counts.rejected} of {counts.read} rows cannot be used\n{ledger.advice}"]
        return [str(error)]
    return []
