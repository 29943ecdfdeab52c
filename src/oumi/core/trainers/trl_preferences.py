# SPDX-License-Identifier: Apache-2.0
"""What our runs change in TRL's preference trainers: their rows, and means over the pairs of a whole step or set.

TRL averages the means of micro-batches, so a smaller last one weighs as much as the others, and a rank without rows as
much as one with. Here every pair weighs the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from oumi.core.batch import IGNORED, Batch
from oumi.core.data.build_stream import StreamedRows
from oumi.core.data.pipeline.loader import Epoch
from oumi.core.distributed.world import World
from oumi.core.log import logger
from oumi.core.plan.preference_kwargs import is_reference_free
from oumi.core.trainers.trl_adapter import AdaptedTrainer
from oumi.core.trainers.trl_methods import METHODS
from oumi.core.trainers.trl_pairs import PreferenceCollator, preference_inputs
from oumi.core.trainers.trl_rows import Collator, RankBatches


class MeasuredMeans:
    """Means of what a loss measures, over the rows or the tokens that each measure is of."""

    def __init__(self) -> None:
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._weights: defaultdict[str, float] = defaultdict(float)

    def add(self, means: Mapping[str, float], counts: Mapping[str, int]) -> None:
        """Adds the means of a micro-batch; `counts` are its rows and tokens, see `counts_of`."""
        for name, mean in means.items():
            weight = counts[_counted(name)]
            self._sums[name] += mean * weight if weight else 0.0  # a mean over nothing is not a number
            self._weights[name] += weight

    def take(self, world: World) -> dict[str, float]:
        """Returns the means over all ranks since the last call; all ranks call it with the same names."""
        names = list(self._sums)
        own = torch.tensor([[self._sums[name], self._weights[name]] for name in names], dtype=torch.float64)
        self._sums.clear()
        self._weights.clear()
        sums = world.sum(own.reshape(-1, 2)).tolist()
        means = {name: total / weight for name, (total, weight) in zip(names, sums, strict=True) if weight}
        if "rewards/margins" in means:  # of judged completions, each side has its own count
            means["rewards/margins"] = means["rewards/chosen"] - means["rewards/rejected"]
        return means


def counts_of(inputs: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Returns the rows and the trained tokens of a micro-batch: all of them, the chosen and the rejected ones."""
    if "chosen_labels" in inputs:
        sides = [inputs[f"{side}_labels"] != IGNORED for side in ("chosen", "rejected")]
    elif "label" in inputs:
        is_chosen, mask = inputs["label"].bool(), inputs["completion_mask"]
        sides = [mask[is_chosen], mask[~is_chosen]]
    else:
        sides = list(inputs["completion_mask"].chunk(2))
    chosen, rejected = (int(side.sum()) for side in sides)
    return {
        # A pair is one row, a judged completion is chosen or rejected.
        "rows": sum(map(len, sides)) if "label" in inputs else len(sides[0]),
        "chosen rows": len(sides[0]),
        "rejected rows": len(sides[1]),
        "tokens": chosen + rejected,
        "chosen tokens": chosen,
        "rejected tokens": rejected,
    }


def _counted(name: str) -> str:
    """Returns what a measure of TRL is a mean over, a key of `counts_of`."""
    kind, _, side = name.partition("/")
    if kind == "entropy":
        return "tokens"
    if kind in ("mean_token_accuracy", "nll_loss"):
        return "chosen tokens"
    unit = "tokens" if kind == "logits" else "rows"
    return f"{side} {unit}" if side in ("chosen", "rejected") else unit


class PreferenceTrainer(AdaptedTrainer):
    """The methods that replace those of TRL's trainers for preferences and judged completions."""

    gathers_means = False
    """The loss itself depends on a mean over the ranks, as that of KTO on its estimate of the KL."""

    def __init__(self, *rest: Any, **named: Any) -> None:
        self._means = MeasuredMeans()
        self._has_rows = True
        """The micro-batch that is computed has rows, not the blank one."""
        self._references: dict[bool, torch.Tensor] = {}
        """Log-probabilities of the reference for each row [R, 1 or 2], of the training (True) and the validation."""
        super().__init__(*rest, **named)

    @property
    def _form(self) -> str:
        return METHODS[self.seams.plan.trainer].form

    def _collator(self, rows: Epoch) -> Collator:
        return PreferenceCollator(rows, self._form, self.seams.join, self.seams.plan.model.max_length)

    def _prepare_inputs(self, inputs: Any) -> Any:
        if "error" in inputs:
            raise inputs["error"]
        self._has_rows = bool(inputs["batch"].num_rows)
        prepared = preference_inputs(inputs, self._form, self.seams.inputs, self.args.device)
        reference = self._references.get(bool(self.model.training))
        if reference is not None:
            names = ("ref_logps",) if self._form == "judged" else ("ref_chosen_logps", "ref_rejected_logps")
            columns = reference[inputs["numbers"]].T.to(self.args.device)
            prepared |= dict(zip(names, columns, strict=True))
        return prepared

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset  # it would tokenize the rows again, and drop long ones

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        """Computes the log-probabilities of the reference on all ranks, and returns the data set as it is.

        TRL's own would go through a file in the cache of data sets, whose name differs from rank to rank.
        """
        is_training, world, num_columns = name == "train", self._world, 1 if self._form == "judged" else 2
        rows = self.seams.rows.train if is_training else self.seams.rows.validation
        assert not isinstance(rows, StreamedRows), "refused for streams"
        values = torch.zeros(len(rows) + 1, num_columns)  # with the blank row
        if not is_reference_free(self.seams.plan.config.training):
            logger.info("computes the log-probabilities of the reference for %d rows", len(rows))
            batches, collator = RankBatches(len(rows), batch_size, world, seed=None), self._collator(rows)
            for numbers in batches:
                inputs = self._prepare_inputs(collator(numbers))
                parts = self.compute_ref_log_probs(self.ref_model or self.model, inputs)
                if self._has_rows:
                    values[numbers] = torch.stack([part.cpu().float() for part in parts[:num_columns]], dim=1)
            values = world.sum(values)
        self._references[is_training] = values
        return dataset

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **named: Any) -> torch.Tensor:
        """Returns the loss of a micro-batch: in training, its part of the mean over the pairs of the step."""
        is_training, counts = bool(self.model.training), counts_of(inputs)
        if not self._has_rows:
            counts = dict.fromkeys(counts, 0)
        with self._own_gather(self._has_rows):
            loss: torch.Tensor = super().compute_loss(model, inputs)
        self._means.add(self._pop_measures(is_training), counts)
        if not is_training:
            return loss
        # TRL divides it by the micro-batches, and Accelerate by the ranks.
        num_means = self.current_gradient_accumulation_steps * self._world.size
        share = counts["rows"] * num_means / self.seams.bridge.num_rows
        return loss if share == 1 else loss * share

    def _pop_measures(self, is_training: bool) -> dict[str, float]:
        """Returns what TRL has measured of the last micro-batch, and leaves it nothing to average."""
        if (stored := getattr(self, "_stored_metrics", None)) is not None:  # ORPO and CPO
            means = {name: values[-1] for name, values in stored["train"].items()}
            stored["train"].clear()
            return means
        measured = self._metrics["train" if is_training else "eval"]
        means = {name: values[-1] for name, values in measured.items() if name != "num_tokens"}
        measured.clear()
        return means

    @contextmanager
    def _own_gather(self, has_rows: bool) -> Iterator[None]:
        """Replaces the gathering of Accelerate, which requires as many rows on each rank and counts the blank ones."""
        accelerator = self.accelerator

        def gather(value: torch.Tensor) -> torch.Tensor:
            if not self.gathers_means or self._world.size == 1:
                return value.reshape(-1) if value.ndim == 0 else value
            own = torch.zeros(self._world.size, 2, dtype=torch.float64)
            own[self._world.rank] = torch.tensor([float(value), float(has_rows)])
            values, filled = self._world.sum(torch.where(own[:, 1:] > 0, own, 0.0)).T
            return values[filled > 0].to(value)

        accelerator.gather = accelerator.gather_for_metrics = gather
        try:
            yield
        finally:
            del accelerator.gather, accelerator.gather_for_metrics

    def log(self, logs: dict[str, float], *rest: Any, **named: Any) -> None:
        """Adds the means of the step."""
        if "loss" in logs:
            logs |= self._means.take(self._world)
        super().log(logs, *rest, **named)

    def _num_terms(self, batch: Batch) -> int:
        return batch.num_rows

    def _take_means(self) -> dict[str, float]:
        return self._means.take(self._world)


class JudgedTrainer(PreferenceTrainer):
    """Of KTO: the estimate of the KL is a mean over the ranks."""

    gathers_means = True


ADAPTERS: Mapping[str, type[AdaptedTrainer]] = {
    "labels": AdaptedTrainer,
    "pair": PreferenceTrainer,
    "sides": PreferenceTrainer,
    "judged": JudgedTrainer,
}
"""The class that replaces methods of a trainer, by the form of its inputs."""
