# SPDX-License-Identifier: Apache-2.0
"""The clusters with a scheduler that jobs were started on from this machine."""

from __future__ import annotations

from pathlib import Path

from oumi.core.system.filesystem import storage_errors


class KnownClusters:
    """Names of clusters, each an empty file of one folder, so that two launches at once do no harm."""

    def __init__(self, folder: Path) -> None:
        """Initializes the list, which is empty while there is no folder."""
        self._folder = folder

    def names(self) -> list[str]:
        """Returns the names, sorted."""
        files = self._folder.iterdir() if self._folder.is_dir() else ()
        return sorted(file.name for file in files if not file.name.startswith("."))  # which network file systems leave

    def add(self, name: str) -> None:
        """Adds a name, which may be known; raises StorageError if it cannot be written."""
        with storage_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / name).touch()

    def remove(self, name: str) -> None:
        """Removes a name, which may be unknown."""
        with storage_errors(self._folder):
            (self._folder / name).unlink(missing_ok=True)
