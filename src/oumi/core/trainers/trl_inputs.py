# SPDX-License-Identifier: Apache-2.0
"""The arguments of a model for a batch of ours, and the loss, as trainers of TRL and transformers compute them."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch.nn.utils.rnn import pad_sequence

from oumi.core.batch import IGNORED, Batch
from oumi.core.errors import ConfigError
from oumi.core.log import logger
from oumi.core.models.acceleration.flat import make_flat
from oumi.core.models.adapters import below_adapter
from oumi.core.models.language_model import LanguageModel
from oumi.core.plan.parts import Plan


def labels_of(batch: Batch) -> torch.Tensor:
    """Returns the labels [T] of a batch as transformers wants them: each token itself where it is trained."""
    # Ours are those of the next token, so the last one of a document is none; nothing predicts the first one.
    return torch.cat([batch.targets.new_full((1,), IGNORED), batch.targets[:-1]])


class ModelInputs:
    """Turns batches into arguments: documents as one flat row that are kept apart, or as padded rows, with labels."""

    def __init__(self, language_model: LanguageModel, pad_to_multiple_of: int) -> None:
        """Sets the model, and the number of which the length of padded rows is a multiple."""
        self.language_model = language_model
        self._multiple = pad_to_multiple_of
        # Transformers' own loops pass none; models that count positions by themselves may reject them.
        forward = below_adapter(language_model.inner).forward
        self._takes_positions = "position_ids" in inspect.signature(forward).parameters

    @classmethod
    def build(cls, plan: Plan, model: Any) -> ModelInputs:
        """Returns the inputs for a model; rows of many documents are flat if its numbers stay the same.

        The attention of a model for flat rows is replaced by one that keeps documents apart.

        Raises:
            ConfigError: Documents of a row would change each other's numbers.
        """
        language_model = LanguageModel(model, is_flat=False)
        if plan.data.joins_documents:
            language_model = make_flat(model, plan.model.attention, replace(plan.speed, fused_loss=False))
        if language_model.takes_single_documents:
            raise ConfigError(
                f"data.train.pack: {plan.trainer} computes the documents of a row together, which changes the numbers "
                f"of {model.config.model_type}; trainer OUMI computes them one at a time"
            )
        multiple = plan.config.data.train.collator_kwargs.get("pad_to_multiple_of", 1)
        if language_model.is_flat and multiple > 1:
            logger.warning("not read: data.train.collator_kwargs.pad_to_multiple_of: packed rows are not padded")
        return cls(language_model, multiple)

    def num_positions(self, batch: Batch) -> int:
        """Returns the tokens of a batch including padding."""
        if self.language_model.is_flat:
            return len(batch.tokens)
        longest = max(batch.lengths)
        return len(batch.lengths) * (longest + -longest % self._multiple)

    def __call__(self, batch: Batch) -> dict[str, Any]:
        """Returns the arguments of the forward pass for a batch on the device of the model."""
        inputs = self.language_model.inputs(batch)
        if self.language_model.is_flat:
            return {**inputs, "labels": labels_of(batch)[None]}
        labels = torch.split(labels_of(batch), batch.lengths)
        inputs["labels"] = pad_sequence(list(labels), batch_first=True, padding_value=IGNORED)
        if not self._takes_positions:
            del inputs["position_ids"]
        missing = -inputs["labels"].shape[-1] % self._multiple
        for name in inputs.keys() - batch.features.keys() if missing else ():
            inputs[name] = F.pad(inputs[name], (0, missing), value=IGNORED if name == "labels" else 0)
        return inputs


def average_over_step(trainer: Any, has_own_loss: bool) -> None:
    """Makes the loss of a trainer the mean over the trained tokens of a step, whatever its micro-batches.

    Some models, most of them with images, declare that they average over a micro-batch alone.

    Args:
        trainer: A trainer of transformers or TRL.
        has_own_loss: It computes the loss itself, from the number of tokens.
    """
    if trainer.model_accepts_loss_kwargs:
        return
    if has_own_loss:
        trainer.model_accepts_loss_kwargs = True
    else:
        trainer.compute_loss_func = MeanLoss(trainer.args.label_smoothing_factor)


class MeanLoss:
    """The loss for models that divide theirs by the tokens of a micro-batch instead of those of the step."""

    def __init__(self, label_smoothing: float) -> None:
        self._label_smoothing = label_smoothing

    def __call__(self, outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        """Returns the sum over the trained tokens of a micro-batch, divided by their number in the whole step."""
        labels, logits = labels[..., 1:].flatten(), outputs.logits[..., :-1, :].flatten(0, -2).float()
        total = F.cross_entropy(
            logits, labels, ignore_index=IGNORED, reduction="sum", label_smoothing=self._label_smoothing
        )
        count = (labels != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        return total / torch.as_tensor(count, device=total.device).clamp(min=1)
