# SPDX-License-Identifier: Apache-2.0
"""What a file system refuses leaves the files that are there."""

from __future__ import annotations

import errno
import os
from contextlib import nullcontext
from pathlib import Path

import pytest

from oumi.core.system.filesystem import replace


@pytest.mark.parametrize("refuses", ["every rename", "the new file", "to rename over a file", "nothing"])
def test_a_file_is_replaced_or_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuses: str) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("1")
    new.write_text("2")
    if refuses == "to rename over a file":  # and a process was killed here before
        (tmp_path / ".replaced-old").write_text("0")
    rename = os.rename

    def odd(source: Path, target: Path) -> None:
        is_refused = {
            "every rename": True, "the new file": source == new, "to rename over a file": target.exists(),
        }  # fmt: skip
        if is_refused.get(refuses):
            raise OSError(errno.EACCES, "Permission denied")
        rename(source, target)

    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, odd)
    is_replaced = refuses in ("to rename over a file", "nothing")
    with nullcontext() if is_replaced else pytest.raises(PermissionError):
        replace(new, old)
    contents = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert contents == ({"old": "2"} if is_replaced else {"old": "1", "new": "2"})
