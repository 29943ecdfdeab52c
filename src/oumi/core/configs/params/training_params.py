# SPDX-License-Identifier: Apache-2.0
"""An import path that Oumi documents."""

from oumi.core.configs.training_params import MixedPrecisionDtype, SchedulerType, TrainerType, TrainingParams
