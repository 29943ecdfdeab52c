# SPDX-License-Identifier: Apache-2.0
"""A run works with what its file system has, or says before step 1 what it needs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from oumi.core.checkpoint.store import newest_good
from oumi.core.errors import OutputError
from oumi.core.system.cache import cache_home
from oumi.core.system.filesystem import can_write
from oumi.core.train import train
from tests.runs import losses, tiny_config

HERE = Path(__file__).parent
ALL = "flock:none,symlink,hardlink,fsync:all,chmod,rename:over"
WORKS = ("OUMI symlink,flock:nfs,fsync:folder", f"OUMI {ALL}")
EACH = (
    "OUMI nothing", "OUMI flock:none", "OUMI flock:nfs", "OUMI flock:full", "OUMI symlink", "OUMI symlink,hardlink",
    "OUMI fsync:folder", "OUMI fsync:all", "OUMI chmod", "OUMI rename:over", f"HF {ALL}", f"TRL_SFT {ALL}",
)  # fmt: skip
REFUSED = {"OUMI rename:folder": "cannot rename folders", "OUMI rename:any": "cannot rename files"}


@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
@pytest.mark.parametrize("works", [WORKS, pytest.param(EACH, marks=pytest.mark.slow)], ids=["together", "each"])
def test_a_run_works_with_what_the_file_system_has(tmp_path: Path, works: tuple[str, ...]) -> None:
    folder = tmp_path / "Läufe [1] & mehr"
    folder.mkdir()
    config = tiny_config(folder, max_steps=4, save_steps=2, save_total_limit=1, enable_tensorboard=True)
    config.to_yaml(folder / "config.yaml")
    shim = tmp_path / "shim.so"  # LD_PRELOAD is cut at white space
    subprocess.run(["cc", "-shared", "-fPIC", "-o", shim, HERE / "odd_file_system.c", "-ldl"], check=True)
    command = [sys.executable, HERE / "odd_file_system_driver.py", folder / "config.yaml", *works, *REFUSED]
    environment = {**os.environ, "LD_PRELOAD": str(shim), "LC_ALL": "C", "LANG": "C"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    for name in works:
        code, message, left = results[name]
        assert code == 0, f"{name}: {message}"
        assert {"model.safetensors", "checkpoint-4", "run.json", "metrics.jsonl"} <= set(left), name
        assert ("metrics_rank0000.jsonl" in left) == ("hardlink" not in name)
        assert not [path for path in left if path.startswith(".tmp")]
        assert newest_good(folder / "out" / name, None) is not None
        assert len(losses(folder / "out" / name)) == 4
    for name, reason in REFUSED.items():
        assert results[name][:1] == [73]
        assert reason in results[name][1]
    assert "cannot be locked (Function not implemented)" in done.stderr


def test_a_cache_that_cannot_be_written_costs_only_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OUMI_CACHE_DIR", str(tmp_path / "file" / "cache"))
    train(tiny_config(tmp_path, max_steps=2))
    log = (tmp_path / "out" / "logs" / "rank_0000.log").read_text()
    assert f"{tmp_path / 'file' / 'cache' / 'tokens'} cannot be written" in log


@pytest.mark.parametrize("has_temporary", [False, True])
def test_a_process_without_any_place_for_a_cache_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_temporary: bool
) -> None:
    (tmp_path / "file").write_text("")
    for name in ("OUMI_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "~")
    if has_temporary:
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "file"))
    else:
        monkeypatch.setattr("tempfile.tempdir", None)
        monkeypatch.setattr("tempfile._candidate_tempdir_list", list)
    assert cache_home().name == f"oumi-{os.getuid()}"
    assert not has_temporary or not can_write(cache_home())


def test_a_process_without_a_home_has_a_cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OUMI_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "~")  # what expanduser returns where neither a home nor a user name is known
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert cache_home() == tmp_path / f"oumi-{os.getuid()}"
    assert cache_home().stat().st_mode & 0o777 == 0o700
    if os.getuid() == 0:
        os.chown(cache_home(), 12345, 12345)
        with pytest.raises(OutputError, match="belongs to another user"):
            cache_home()
