# SPDX-License-Identifier: Apache-2.0
"""An import path that Oumi documents."""

from oumi.core.configs.trainers import TrainerType
from oumi.core.configs.training_params import MixedPrecisionDtype, SchedulerType, TrainingParams
