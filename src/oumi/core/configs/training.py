# SPDX-License-Identifier: Apache-2.0
"""The config of a training run, as `oumi train -c` reads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from oumi.core.configs.base import Complaint
from oumi.core.configs.data import DataParams
from oumi.core.configs.deepspeed import DeepSpeedParams
from oumi.core.configs.fsdp import FSDPParams
from oumi.core.configs.loading import BaseConfig
from oumi.core.configs.model import DTYPES, ModelParams
from oumi.core.configs.peft import PeftParams
from oumi.core.configs.training_params import MixedPrecisionDtype, TrainingParams
from oumi.core.log import current_rank, logger
from oumi.core.system.exits import requeue_count, restart_count


class TrainingConfig(BaseConfig):
    """The config of a training run."""

    other_kind = (
        frozenset({"run", "resources", "num_nodes"}),
        "a job file; expected a training config, such as the one that its `run` names",
    )

    data: DataParams = DataParams()
    """Training and validation data."""
    model: ModelParams = ModelParams.model_construct(_fields_set=set(), model_name="")
    """Model and tokenizer."""
    training: TrainingParams = TrainingParams()
    """Trainer, optimizer, checkpoints and logs."""
    peft: PeftParams = PeftParams()
    """Adapter."""
    fsdp: FSDPParams = FSDPParams()
    """Sharding by FSDP."""
    deepspeed: DeepSpeedParams = DeepSpeedParams()
    """Sharding by DeepSpeed."""

    def with_kwargs(self, model_kwargs: Mapping[str, Any], trainer_kwargs: Mapping[str, Any]) -> TrainingConfig:
        """Returns a copy with more `model.model_kwargs` and `training.trainer_kwargs`, or the config itself."""
        if not model_kwargs and not trainer_kwargs:
            return self
        config = self.model_copy(deep=True)
        config.model.model_kwargs = {**config.model.model_kwargs, **model_kwargs}
        config.training.trainer_kwargs = {**config.training.trainer_kwargs, **trainer_kwargs}
        return config

    def on_attempt(self) -> TrainingConfig:
        """Returns a copy that resumes the last checkpoint if a launcher or a scheduler has started the run before.

        The config itself on the first attempt.
        """
        num_restarts, num_requeues = restart_count(), requeue_count()
        if not num_restarts and not num_requeues:
            return self
        if current_rank() == 0:
            why = f"restart {num_restarts} after a failure" if num_restarts else f"back from the queue ({num_requeues})"
            logger.warning("%s: the run resumes from its last checkpoint, if any", why)
        config = self.model_copy(deep=True)
        config.training.try_resume_from_last_checkpoint = True
        return config

    def complaints(self) -> Iterator[Complaint]:
        training, fsdp, deepspeed = self.training, self.fsdp, self.deepspeed
        if self.model.compile:
            yield "model.compile", "must be false; set training.compile instead"
        if training.compile and fsdp.use_orig_params is False:
            yield "fsdp.use_orig_params", "must not be false with training.compile"
        if fsdp.enable_fsdp and deepspeed.enable_deepspeed:
            yield "deepspeed.enable_deepspeed", "fsdp.enable_fsdp is true as well; set one of them to false"
        if deepspeed.enable_deepspeed and training.trainer_type.spec.is_trl and deepspeed.train_batch_size != "auto":
            yield "deepspeed.train_batch_size", f"must be 'auto' with trainer {training.trainer_type.name}"
        # Mixed precision keeps float32 weights, so narrow weights would contradict it.
        mixed, dtype = training.mixed_precision_dtype, DTYPES.get(self.model.torch_dtype_str.lower(), "auto")
        if mixed != MixedPrecisionDtype.NONE and dtype not in ("auto", "float32"):
            yield (
                "training.mixed_precision_dtype",
                f"{mixed.name} is for float32 weights, but model.torch_dtype_str is '{self.model.torch_dtype_str}'",
            )
        if self.model.enable_liger_kernel and not training.trainer_type.spec.has_liger:
            yield "model.enable_liger_kernel", f"trainer {training.trainer_type.name} has no Liger kernels"
        if training.trainer_type.spec.needs_validation and not self.data.validation.datasets:
            yield "data.validation.datasets", f"required by trainer {training.trainer_type.name}, but empty"
        yield from self._vision_complaints()

    def _vision_complaints(self) -> Iterator[Complaint]:
        if self.data.train.collator_name != "vision_language_sft":
            return
        for split in ("train", "validation", "test"):
            for i, dataset in enumerate(getattr(self.data, split).datasets):
                if dataset.dataset_kwargs.get("return_conversations") is False:
                    key = f"data.{split}.datasets[{i}].dataset_kwargs.return_conversations"
                    yield key, "must be true with collator vision_language_sft"
        if self.training.trainer_type.spec.is_trl and self.training.trainer_kwargs.get("remove_unused_columns"):
            yield (
                "training.trainer_kwargs.remove_unused_columns",
                "must be false with collator vision_language_sft",
            )
