# SPDX-License-Identifier: Apache-2.0
"""A virtual environment for each peer, created once, and again after a change of its packages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.peers import TORCH, Environment


def ready_python(folder: Path, environment: Environment) -> Path:
    """Creates an environment unless it exists, and returns its Python."""
    python, done = folder / "bin" / "python", folder / "installed"
    recipe = repr((TORCH, environment))
    if done.exists() and done.read_text() == recipe:
        return python
    print(f"installing {folder.name} ...", flush=True)
    log = folder.with_suffix(".log")
    folder.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("")
    _run([sys.executable, "-m", "venv", "--clear", str(folder)], log)
    pip = [str(python), "-m", "pip"]
    # Torch first and pinned again after: pip would otherwise replace it to satisfy a peer.
    _run([*pip, "install", TORCH], log)
    _run([*pip, "install", TORCH, *environment.packages], log)
    if environment.without_dependencies:
        _run([*pip, "install", "--no-deps", *environment.without_dependencies], log)
    if environment.removed:
        _run([*pip, "uninstall", "-y", *environment.removed], log)
    for name in environment.empty_modules:
        (next((folder / "lib").glob("python*")) / "site-packages" / f"{name}.py").write_text("")
    done.write_text(recipe)  # last, so that an environment that failed is created again
    return python


def _run(command: list[str], log: Path) -> None:
    with log.open("a") as file:
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
    if code:
        sys.exit(f"{' '.join(command)} failed:\n" + "\n".join(log.read_text().splitlines()[-15:]))
