# SPDX-License-Identifier: Apache-2.0
"""Measures a model on rows that it was not trained on: their loss, exact answers, preferences.

Shape letters: D documents, P pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from oumi.core.batch import Batch, Prediction
from oumi.core.configs import DatasetSplitParams, TrainerType, TrainingConfig
from oumi.core.configs.methods import AnswerSettings
from oumi.core.data.datasets import dataset_for
from oumi.core.data.pipeline.loader import in_order
from oumi.core.data.training_data import TrainingData, bytes_per_token, read_training_data
from oumi.core.errors import ConfigError
from oumi.core.inspect import gather_facts
from oumi.core.methods.log_probs import document_log_probs
from oumi.core.methods.next_token import next_token_loss
from oumi.core.models.acceleration.apply import accelerate
from oumi.core.models.build import build_model
from oumi.core.models.generation import generate_all
from oumi.core.plan.parts import Plan
from oumi.core.plan.plan import make_plan
from oumi.core.results.chat_model import ChatModel
from oumi.core.types.conversation import Conversation, Role
from oumi.core.types.example import Completion, Judged, Preference, RejectedRow

Predict = Callable[[Batch], Prediction]


@dataclass(frozen=True)
class HeldOut:
    """Rows to measure on, and how they are read."""

    config: TrainingConfig
    plan: Plan
    data: TrainingData

    @property
    def holds_pairs(self) -> bool:
        """Returns True if a row is a chosen and a rejected answer."""
        return self.plan.method.spec.term == "pair"

    def batches(self) -> Iterable[Batch]:
        """Yields the rows in their order."""
        size = self.plan.steps.micro_batch_rows
        return in_order(self.data.train, size, self.data.preprocessor.collate, 0, 1)


def held_out_config(model: str, path: Path, batch_size: int = 8) -> TrainingConfig:
    """Returns the config that reads a file of rows for a model: chats, texts, completions or pairs."""
    split = {"datasets": [{"dataset_name": "text_sft", "dataset_path": str(path)}]}
    training = {"trainer_type": "OUMI", "per_device_train_batch_size": batch_size}
    return TrainingConfig.model_validate(
        {"model": {"model_name": model}, "data": {"train": split}, "training": training}
    )


def with_targets_of(split: DatasetSplitParams, training: TrainingConfig) -> DatasetSplitParams:
    """Returns a split for trainer OUMI in which the tokens count that a training config trains."""
    trained = training.data.train
    names = ("train_target", "collator_name", "collator_kwargs")
    targets = {name: getattr(trained, name) for name in names}
    is_open = trained.train_target is None and trained.collator_name is None
    if is_open and training.training.trainer_type.spec.trains_prompts:
        targets |= {"collator_name": "text_with_padding", "collator_kwargs": {}}  # trains all tokens
    return split.model_copy(update=targets)


def validation_config(config: TrainingConfig, model: str) -> TrainingConfig:
    """Returns the config that reads the validation set of a training config for a model.

    Raises:
        ConfigError: It has no validation set.
    """
    if not config.data.validation.datasets:
        raise ConfigError(
            "data.validation.datasets: empty, so there is nothing to evaluate on; name a file with --data"
        )
    held_out = config.model_copy(deep=True)
    # Which tokens are trained is a matter of the training split, all else of the validation split.
    split = held_out.data.validation.model_copy(
        update={"stream": False, "pack": False, "mixture_strategy": "first_exhausted", "seed": held_out.data.train.seed}
    )
    held_out.data.train = with_targets_of(split, config)
    held_out.data.validation = DatasetSplitParams()
    held_out.model.model_name, held_out.model.adapter_model = model, None
    held_out.model.load_pretrained_weights = True
    training = held_out.training
    training.trainer_type, training.eval_strategy, training.use_peft = TrainerType.OUMI, "no", False
    training.load_best_model_at_end, training.early_stopping_patience = False, None
    training.metric_for_best_model = training.greater_is_better = None
    training.per_device_train_batch_size = config.training.per_device_eval_batch_size
    return held_out


def read_held_out(config: TrainingConfig, section: str = "") -> HeldOut:
    """Returns the rows of a config from `held_out_config` or `validation_config`.

    Args:
        config: The config, whose training split are the rows.
        section: Section of the user's config with the split, empty for a file.

    Raises:
        DataError: A row cannot be used; all of them are listed.
    """
    kinds = {dataset_for(params).holds for params in config.data.train.datasets}
    if Judged in kinds or (Preference in kinds and len(kinds) > 1):
        raise ConfigError("judged completions, and pairs beside other rows, have no measure here: name a file of pairs")
    config = config.model_copy(deep=True)
    training, are_pairs = config.training, kinds == {Preference}
    # For any method of pairs: its loss and its arguments have no part in what is measured, but for the lengths.
    lengths = {key: value for key, value in training.trainer_kwargs.items() if key in AnswerSettings.model_fields}
    training.method, training.trainer_kwargs = ("dpo", lengths) if are_pairs else ("next_token", {})
    plan = make_plan(config, gather_facts(config, may_download=True))
    plan = replace(plan, data=replace(plan.data, train=replace(plan.data.train, section=section)))
    return HeldOut(config, plan, read_training_data(plan, datetime.now().astimezone()))


@torch.no_grad()
def measure(rows: HeldOut, reference: str | None = None) -> dict[str, float]:
    """Returns the loss of the trained tokens and its perplexity, or for pairs how often the chosen answer is preferred.

    For texts also the loss in bits per byte.

    Args:
        rows: What to measure on.
        reference: For pairs, a model before its training, whose log-probabilities are subtracted; None for the base
            of an adapter, and for a model without adapter none at all.
    """
    predict = _predict(rows.plan, rows.plan)
    if not rows.holds_pairs:
        metrics = _loss(predict, rows.batches())
        ratio = bytes_per_token(rows.data.train, rows.data.preprocessor.tokenizer)
        return metrics if ratio is None else {**metrics, "bits_per_byte": metrics["loss"] / math.log(2) / ratio}
    inner = predict.inner
    context = getattr(inner, "disable_adapter", None)
    reference_predict: Predict | None = predict if context is not None else None
    if reference is not None:
        config = rows.config.model_copy(deep=True)
        config.model.model_name, context = reference, nullcontext
        reference_predict = _predict(make_plan(config, gather_facts(config, may_download=True)), rows.plan)
    return _preferences(predict, reference_predict, context or nullcontext, rows.batches())


def exact_match(rows: HeldOut, model: ChatModel, max_new_tokens: int, batch_size: int) -> dict[str, float]:
    """Returns the share of rows whose greedy answer is the reference, the last turn of the row, but for outer spaces.

    Of rows that are drawn more than once, each counts once.

    Raises:
        ConfigError: A row has no answer to compare with, or no room for one.
    """
    train = rows.data.train
    measured = {source for i in range(len(train)) for row in train.group(i) for source in row.sources}
    prompts: list[list[int]] = []
    references: list[str] = []
    for params in rows.config.data.train.datasets:
        for row in dataset_for(params).rows():
            if isinstance(row, RejectedRow) or row.source not in measured:
                continue
            tokens, reference = _asked(row.value, model)
            if len(tokens) >= model.max_length:
                raise ConfigError(f"{row.source}: its prompt has {len(tokens)} tokens, too long for an answer")
            prompts.append(tokens)
            references.append(reference)
    answers = generate_all(
        model.model, model.tokenizer, prompts, model.decoding(max_new_tokens=max_new_tokens), batch_size
    )
    pairs = zip(answers, references, strict=True)
    num_exact = sum(answer.text.strip() == reference.strip() for answer, reference in pairs)
    return {"exact_match": num_exact / len(prompts), "num_answers": len(prompts)}


def _predict(plan: Plan, rows: Plan) -> Any:
    """Returns the model of a plan for evaluation, with the settings of speed of the rows' plan."""
    model = build_model(plan, torch.device(plan.device))
    return accelerate(model, replace(plan, speed=rows.speed)).eval()


def _loss(predict: Any, batches: Iterable[Batch]) -> dict[str, float]:
    total, num_tokens, num_rows = 0.0, 0, 0
    for batch in batches:
        total += float(next_token_loss(predict, batch.to(predict.inner.device)))
        num_tokens += batch.num_targets
        num_rows += batch.num_rows
    loss = total / max(num_tokens, 1)
    return {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "num_tokens": num_tokens, "num_rows": num_rows}


def _preferences(
    predict: Any, reference: Any, context: Callable[[], Any], batches: Iterable[Batch]
) -> dict[str, float]:
    """Returns shares of pairs: by log-probability, by that of a token, and by the gain over the reference."""
    sums = {"preference_accuracy": 0.0, "preference_accuracy_per_token": 0.0}
    if reference is not None:
        sums |= {"reward_accuracy": 0.0}
    num_pairs = 0
    for batch in batches:
        batch = batch.to(predict.inner.device)
        log_probs_D = document_log_probs(predict(batch), batch)
        ends = torch.tensor(batch.offsets[1:], device=log_probs_D.device)
        lengths_D = torch.bincount(torch.bucketize(batch.trained, ends, right=True), minlength=len(ends))
        margins = {
            "preference_accuracy": log_probs_D,
            "preference_accuracy_per_token": log_probs_D / lengths_D.clamp(min=1),
        }
        if reference is not None:
            with context():
                margins["reward_accuracy"] = log_probs_D - document_log_probs(reference(batch), batch)
        for name, values_D in margins.items():
            sums[name] += int((values_D[0::2] > values_D[1::2]).sum())
        num_pairs += batch.num_rows
    return {**{name: value / max(num_pairs, 1) for name, value in sums.items()}, "num_pairs": num_pairs}


def _asked(value: Any, model: ChatModel) -> tuple[list[int], str]:
    """Returns the tokens of a row up to its last answer, and this answer."""
    if isinstance(value, Completion):
        return list(model.tokenizer(value.prompt)["input_ids"]), value.completion
    if isinstance(value, Conversation) and value.contains_images():
        raise ConfigError("--exact-match: rows with images are not supported yet")
    if not isinstance(value, Conversation) or value.messages[-1].role != Role.ASSISTANT:
        raise ConfigError("--exact-match needs rows that end with an answer: chats, or prompt and completion")
    if model.template is None:
        raise ConfigError("--exact-match: the tokenizer has no chat template")
    text = model.template.render(value.messages[:-1], True, value.tools)
    return list(model.tokenizer(text, add_special_tokens=False)["input_ids"]), value.messages[-1].text
