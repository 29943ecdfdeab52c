# SPDX-License-Identifier: Apache-2.0
"""Every test runs on few threads, offline, and away from the user's home."""

from __future__ import annotations

import atexit
import os
import shutil
import zlib
from collections import defaultdict
from tempfile import mkdtemp

import pytest

# Two workers of pytest-xdist share two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
if "OUMI_CACHE_DIR" not in os.environ:
    os.environ["OUMI_CACHE_DIR"] = mkdtemp(prefix="oumi-test-cache-")
    atexit.register(shutil.rmtree, os.environ["OUMI_CACHE_DIR"], ignore_errors=True)


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what is slow
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the cases of a test as slow, but for the few that its marker `sample(count)` keeps in the plain run.

    Which ones is decided by a hash of their names, so it is the same everywhere and spread over all kinds.
    """
    cases = defaultdict[str, list[pytest.Item]](list)
    for item in items:
        if item.get_closest_marker("sample") is not None:
            cases[item.nodeid.partition("[")[0]].append(item)
    for of_test in cases.values():
        marker = of_test[0].get_closest_marker("sample")
        assert marker is not None, "only such tests are listed"
        # A case that names a parameter of its own slow is left as it is.
        for item in sorted(of_test, key=lambda item: zlib.crc32(item.name.encode()))[marker.args[0] :]:
            item.add_marker(pytest.mark.slow)
