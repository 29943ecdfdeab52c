# SPDX-License-Identifier: Apache-2.0
"""Writes the model of a run with its tokenizer, in checkpoints and at the end, in the same way under every trainer."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from oumi.core.checkpoint.export import publish_model
from oumi.core.data.tokenize.preprocessor import Preprocessor
from oumi.core.models.saving import ModelWriter
from oumi.core.plan.parts import Plan


class Exporter:
    """Writes a model and its tokenizer as Hugging Face files."""

    def __init__(self, plan: Plan, model: Any, preprocessor: Preprocessor) -> None:
        """Initializes the exporter; call it before a trainer changes the settings of the model for itself."""
        self._plan = plan
        self._writer = ModelWriter(model, plan.model)
        self._preprocessor = preprocessor

    def write(self, directory: Path, mode: str = "ADAPTER_ONLY") -> None:
        """Writes all weights, or the adapter, into a directory; the other modes of `ModelWriter` end the training."""
        self._writer.write(directory, mode)
        self._preprocessor.save(directory)

    def publish(self, directory: Path) -> None:
        """Writes the final model, if the plan saves one, in place of that of an earlier run."""
        if self._plan.checkpoints.final_model:
            publish_model(directory, partial(self.write, mode=self._plan.save_mode))
