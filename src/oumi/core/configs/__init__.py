# SPDX-License-Identifier: Apache-2.0
"""What a run is. Imports no torch."""

from oumi.core.configs.base import Params as BaseParams
from oumi.core.configs.data import (
    DataParams,
    DatasetParams,
    DatasetSplit,
    DatasetSplitParams,
    MixtureStrategy,
    TrainTarget,
)
from oumi.core.configs.deepspeed import DeepSpeedParams
from oumi.core.configs.distill import GkdParams, GoldParams
from oumi.core.configs.fsdp import (
    AutoWrapPolicy,
    BackwardPrefetch,
    FSDPParams,
    ShardingStrategy,
    StateDictType,
)
from oumi.core.configs.grpo import GrpoParams
from oumi.core.configs.inference import GenerationParams, InferenceConfig
from oumi.core.configs.job import JobConfig, JobResources, StorageMount
from oumi.core.configs.loading import BaseConfig
from oumi.core.configs.model import ModelParams
from oumi.core.configs.peft import LoraWeightInitialization, PeftParams, PeftSaveMode
from oumi.core.configs.profiler import ProfilerParams, ProfilerScheduleParams, TelemetryParams
from oumi.core.configs.trainers import TrainerType
from oumi.core.configs.training import TrainingConfig
from oumi.core.configs.training_params import MixedPrecisionDtype, SchedulerType, TrainingParams
from oumi.core.errors import ConfigError as OumiConfigError

__all__ = [
    "AutoWrapPolicy", "BackwardPrefetch", "BaseConfig", "BaseParams", "DataParams", "DatasetParams", "DatasetSplit",
    "DatasetSplitParams", "DeepSpeedParams", "FSDPParams", "GenerationParams", "GkdParams", "GoldParams",
    "GrpoParams", "InferenceConfig", "JobConfig", "JobResources", "LoraWeightInitialization", "MixedPrecisionDtype",
    "MixtureStrategy", "ModelParams", "OumiConfigError", "PeftParams", "PeftSaveMode", "ProfilerParams",
    "ProfilerScheduleParams", "SchedulerType", "ShardingStrategy", "StateDictType", "StorageMount", "TelemetryParams",
    "TrainTarget", "TrainerType", "TrainingConfig", "TrainingParams",
]  # fmt: skip
