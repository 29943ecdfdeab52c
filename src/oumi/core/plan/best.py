# SPDX-License-Identifier: Apache-2.0
"""Plans which evaluation of a run is its best one, and what follows from it. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from oumi.core.configs import TrainerType, TrainingConfig, TrainingParams
from oumi.core.errors import did_you_mean
from oumi.core.plan.methods import METHODS, method_of

_LOWER = ("loss", "perplexity", "bits_per_byte")
_HIGHER = ("accuracies", "margins", "accuracy")
"""Last words of metrics whose better direction is known."""
_OF_TOKENS = ("perplexity", "bits_per_byte")
"""Metrics beside a loss per token; bits per byte only of texts, so an evaluation may report none."""
_OF_TRL_SFT = ("entropy", "mean_token_accuracy", "aux_loss")
"""What TRL's trainer reports beside."""


@dataclass(frozen=True)
class BestPlan:
    """Which evaluation is the best one, and what follows from it."""

    metric: str
    """The name that the evaluation reports, such as `eval_loss`."""
    is_greater_better: bool
    restores: bool
    """The final model is that of the best evaluation; its checkpoint is kept."""
    patience: int | None
    """Evaluations without an improvement after which the run ends, None to go on."""
    threshold: float
    """How much better than the best one an evaluation must be to count as an improvement for `patience`."""

    @property
    def text(self) -> str:
        """Returns it as a phrase of the plan."""
        order = "highest" if self.is_greater_better else "lowest"
        saved = ", whose model is saved" if self.restores else ""
        by = f" by more than {self.threshold:g}" if self.threshold else ""
        ends = f"; ends after {self.patience} without an improvement{by}" if self.patience is not None else ""
        return f"the best has the {order} {self.metric}{saved}{ends}"

    def is_better(self, value: float, best: float | None, by: float = 0.0) -> bool:
        """Returns True if `value` is better than `best` by more than `by`; anything is better than None."""
        if value != value:  # not a number
            return False
        return best is None or (value - best if self.is_greater_better else best - value) > by


def plan_best(training: TrainingParams) -> BestPlan | None:
    """Returns how the best evaluation is found, None if nothing asks for it."""
    if not _is_asked(training):
        return None
    metric = _metric(training)
    known = _is_greater_better(metric)
    return BestPlan(
        metric=metric,
        is_greater_better=bool(known if training.greater_is_better is None else training.greater_is_better),
        restores=training.load_best_model_at_end,
        patience=training.early_stopping_patience,
        threshold=training.early_stopping_threshold,
    )


def best_problems(config: TrainingConfig) -> Iterator[tuple[str, str]]:
    """Yields the problems of the keys that choose the best evaluation, as (key, message)."""
    training = config.training
    if training.early_stopping_threshold and training.early_stopping_patience is None:
        yield "training.early_stopping_threshold", "has no effect without training.early_stopping_patience"
    if not _is_asked(training):
        if training.greater_is_better is not None:
            yield "training.greater_is_better", "has no effect without training.metric_for_best_model"
        return
    asking = [key for key in _ASKING if getattr(training, key) not in (None, False)]
    if training.eval_strategy == "no":
        yield f"training.{asking[0]}", "needs evaluations: set training.eval_strategy to 'steps' or 'epoch'"
    if training.load_best_model_at_end and not training.save_final_model:
        yield "training.load_best_model_at_end", "needs the final model: set training.save_final_model to true"
    if training.load_best_model_at_end and not training.trainer_type.spec.is_native:
        for section in ("fsdp", "deepspeed"):
            if getattr(getattr(config, section), f"enable_{section}"):
                trainer = training.trainer_type.name
                yield (
                    "training.load_best_model_at_end",
                    f"not supported by {trainer} with {section}, whose checkpoints it loads only to resume; "
                    "trainer OUMI does it with fsdp",
                )
    metric, names = _metric(training), metrics_of(training)
    if names and metric not in names:
        short = [name.removeprefix("eval_") for name in names]  # with it, all names would be near
        hint = did_you_mean(metric.removeprefix("eval_"), short) or f"; the evaluation reports {', '.join(names)}"
        yield "training.metric_for_best_model", f"no metric '{training.metric_for_best_model}'{hint}"
    elif training.greater_is_better is None and _is_greater_better(metric) is None:
        yield (
            "training.metric_for_best_model",
            f"is {metric} better when it is greater? Set training.greater_is_better to true or false",
        )


def metrics_of(training: TrainingParams) -> list[str]:
    """Returns the metrics that an evaluation may report, an empty list if the trainer alone knows them."""
    spec = METHODS.get(method_of(training))
    is_native = training.trainer_type.spec.is_native
    if spec is None or (spec.loss is None if is_native else not spec.is_per_token):
        return []
    of_tokens = _OF_TOKENS if spec.is_per_token else ()
    of_trainer = _OF_TRL_SFT if training.trainer_type == TrainerType.TRL_SFT else ()
    return [f"eval_{name}" for name in ("loss", *of_tokens, *spec.metrics, *of_trainer)]


_ASKING = ("load_best_model_at_end", "early_stopping_patience", "metric_for_best_model")
"""Keys each of which makes the run look for its best evaluation."""


def _is_asked(training: TrainingParams) -> bool:
    return any(getattr(training, key) not in (None, False) for key in _ASKING)


def _metric(training: TrainingParams) -> str:
    """Returns the metric by the name that the evaluation reports; as in transformers, `eval_` may be left out."""
    name = training.metric_for_best_model or "loss"
    return name if name.startswith("eval_") else f"eval_{name}"


def _is_greater_better(metric: str) -> bool | None:
    """Returns the better direction of a metric, None if its name does not tell."""
    if metric.endswith(_LOWER):
        return False
    return True if metric.endswith(_HIGHER) else None
