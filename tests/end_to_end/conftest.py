# SPDX-License-Identifier: Apache-2.0
"""The Hub on loopback, and Python whose clients take it for the Hub."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fork_server import ForkServer
from tests.hub_server import HubServer, fill

HOME = Path(os.environ["HF_HOME"])
"""Of the clients of the Hub, also of those that are offline."""


@pytest.fixture(scope="session")
def _online(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[HubServer, ForkServer]]:
    root = tmp_path_factory.mktemp("hub")
    fill(root)
    with HubServer(root) as hub:
        # Nobody has declined to be reported on, so that whoever reports is seen.
        telemetry = dict.fromkeys(("DISABLE_TELEMETRY", "DO_NOT_TRACK"), "0")
        with ForkServer(**hub.environment(HOME), **telemetry, CI="") as server:
            yield hub, server


@pytest.fixture
def hub(_online: tuple[HubServer, ForkServer]) -> Iterator[HubServer]:
    hub, _ = _online
    yield hub
    hub.mode, hub.refused_repo = "ok", ""
    hub.requests.clear()


@pytest.fixture
def python(
    _online: tuple[HubServer, ForkServer], hub: HubServer, tmp_path: Path
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs Python with arguments in the folder `work`, which is empty as the caches are."""
    shutil.rmtree(HOME, ignore_errors=True)
    (tmp_path / "work").mkdir()
    variables = {"folder": tmp_path / "work", "HOME": str(tmp_path)}
    return lambda *arguments, **more: _online[1].run(*arguments, **variables, **more)
