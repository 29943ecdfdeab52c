# SPDX-License-Identifier: Apache-2.0
"""What `.oumiignore` names is not uploaded, wherever its directory is in a repository."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from oumi.core.launcher.upload import find_upload


@pytest.mark.parametrize("is_repository", [True, False])
@pytest.mark.parametrize("working_dir", [".", "project"])
def test_a_pattern_with_a_slash_is_anchored_at_its_file(tmp_path: Path, working_dir: str, is_repository: bool) -> None:
    folder = tmp_path / working_dir
    for name in ("data/private", "sub/data/kept", "sub/private/x", "sub/y", "tracked/x"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / ".oumiignore").write_text("/data\ntracked/\n.oumiignore\n")
    (folder / "sub" / ".oumiignore").write_text("/private\n")
    if is_repository:
        subprocess.run(["git", "init", "-q", tmp_path], check=True)
        subprocess.run(["git", "-C", folder, "add", "tracked"], check=True)
    assert find_upload(str(folder)).names == ("sub/data/kept", "sub/y")
