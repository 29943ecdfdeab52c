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


def test_a_repository_within_the_directory_is_told_and_not_uploaded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("committed", "untracked"):
        subprocess.run(["git", "init", "-q", tmp_path / name], check=True)
        (tmp_path / name / "x").touch()
        author = ["-c", "user.name=a", "-c", "user.email=a"]
        subprocess.run(["git", "-C", tmp_path / name, "add", "."], check=True)
        subprocess.run(["git", "-C", tmp_path / name, *author, "commit", "-qm", "x"], check=True)
    (tmp_path / "y").touch()
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    subprocess.run(["git", "-C", tmp_path, "add", "committed"], check=True, stderr=subprocess.DEVNULL)
    assert find_upload(str(tmp_path)).names == ("y",)
    assert "repository of its own: committed/, untracked/" in caplog.text


@pytest.mark.parametrize("is_repository", [True, False])
def test_variables_of_a_git_that_runs_around_it_do_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_repository: bool
) -> None:
    folder, other = tmp_path / "folder", tmp_path / "other"
    for path in (folder, other):
        path.mkdir()
        (path / path.name).touch()
    subprocess.run(["git", "init", "-q", other], check=True)
    subprocess.run(["git", "-C", other, "add", "."], check=True)
    if is_repository:
        subprocess.run(["git", "init", "-q", folder], check=True)
        subprocess.run(["git", "-C", folder, "add", "."], check=True)
        (folder / ".gitignore").write_text("*\n")  # which a file that is tracked already is not left out by
    config = (other / ".git" / "config").read_text()
    # As in a hook, where Git names the repository that it works on.
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / ".git" / "index"))
    assert find_upload(str(folder)).names == ("folder",)
    assert (other / ".git" / "config").read_text() == config
