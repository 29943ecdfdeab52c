# SPDX-License-Identifier: Apache-2.0
"""Writes the model of a run with its tokenizer, in checkpoints and at the end, in the same way under every trainer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from oumi.core.checkpoint.export import publish_model
from oumi.core.checkpoint.store import UNFINISHED
from oumi.core.data.tokenize.preprocessor import Preprocessor
from oumi.core.distributed.world import World
from oumi.core.errors import ExportError
from oumi.core.models.adapters import adapter_names, is_adapted
from oumi.core.models.build import with_full_weights
from oumi.core.models.merging import write_with_base
from oumi.core.models.saving import ModelWriter
from oumi.core.models.whole import empty_copy, free_whole, plain_name, read_whole, write_whole
from oumi.core.plan.parts import Plan
from oumi.core.system.filesystem import storage_errors


class Exporter:
    """Writes a model and its tokenizer as Hugging Face files."""

    def __init__(self, plan: Plan, model: Any, preprocessor: Preprocessor) -> None:
        """Initializes the exporter; call it before a trainer changes the settings of the model for itself."""
        self._plan = plan
        self._model = model
        # A divided model is written through a copy, which has no weights until then.
        is_divided = plan.sharding is not None or plan.accelerate.divides_weights
        self._copy = empty_copy(model) if is_divided else None
        self._writer = ModelWriter(model if self._copy is None else self._copy, plan.model)
        self._preprocessor = preprocessor

    @property
    def shapes(self) -> Any:
        """Returns the model, or its copy without weights if it is divided: DeepSpeed leaves empty weights in place."""
        return self._model if self._copy is None else self._copy

    @contextmanager
    def gathered(self, world: World) -> Iterator[None]:
        """Makes the weights that are written whole on the main rank, in a file; does nothing unless they are divided.

        Collective, and so outside of what the main rank does alone.

        Raises:
            StorageError: On the main rank, if the file cannot be written.
            OtherRankError: On the others.
        """
        if self._copy is None:
            yield
            return
        path = self._plan.output_dir / f"{UNFINISHED}whole-weights"
        weights = {plain_name(name): parameter for name, parameter in self._model.named_parameters()}
        if is_adapted(self._copy):
            kept = adapter_names(self._copy)
            weights = {name: weight for name, weight in weights.items() if name in kept}
        problem = write_whole(weights, path if world.is_main else None)
        try:
            world.on_main(partial(self._read_whole, path, problem))
            yield
        finally:
            if world.is_main:
                free_whole(self._copy)  # a deleted file takes up the disk until nothing maps it
                path.unlink(missing_ok=True)

    def write(self, directory: Path, mode: str = "ADAPTER_ONLY") -> None:
        """Writes all weights, or the adapter, into a directory; for other modes, the base weights are read again."""
        if mode == "ADAPTER_ONLY" or not is_adapted(self.shapes):
            self._writer.write(directory)
        else:
            with TemporaryDirectory(dir=directory.parent, prefix=UNFINISHED) as folder:
                self._writer.write(Path(folder))
                write_with_base(with_full_weights(self._plan, Path(folder)), self._plan.model, directory, mode)
        self._preprocessor.save(directory)

    def publish(self, directory: Path, world: World) -> None:
        """Writes the final model, if the plan saves one, in place of that of an earlier run; collective.

        Raises:
            ExportError: A merged model does not compute what the adapter does on its base; the adapter is saved alone.
        """
        if not self._plan.checkpoints.final_model:
            return
        with self.gathered(world):
            world.on_main(lambda: self._publish(directory))

    def _publish(self, directory: Path) -> None:
        mode = self._plan.save_mode
        try:
            publish_model(directory, partial(self.write, mode=mode))
        except ExportError as error:
            publish_model(directory, self.write)
            raise ExportError(f"{error}. The adapter alone is in {directory}") from error

    def _read_whole(self, path: Path, problem: OSError | None) -> None:
        with storage_errors(path.parent):
            if problem is not None:
                raise problem
        read_whole(self._copy, path, self._model)
