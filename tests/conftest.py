# SPDX-License-Identifier: Apache-2.0
"""Every test runs on few threads, offline, and away from the user's home."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import signal
import zlib
from collections import defaultdict
from tempfile import mkdtemp

import pytest

# A shell ignores SIGINT in what it starts in the background, and so would the runs that the tests start and signal.
signal.signal(signal.SIGINT, signal.default_int_handler)
gc.disable()  # until all is imported, of which nothing can be freed
# Two workers of pytest-xdist share two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_DISABLE_TELEMETRY"):
    os.environ.pop(name, None)
os.environ["HF_HOME"] = mkdtemp(prefix="oumi-test-home-")  # of this worker: tests of the Hub empty it
atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)
if "OUMI_CACHE_DIR" not in os.environ:
    os.environ["OUMI_CACHE_DIR"] = mkdtemp(prefix="oumi-test-cache-")
    atexit.register(shutil.rmtree, os.environ["OUMI_CACHE_DIR"], ignore_errors=True)


_NOT_PLAIN = ("slow", "narrow", "gpu", "multi_gpu", "network")


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what is slow
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the cases of a test as slow, but for the few that its marker `sample` keeps in the plain run.

    `sample` keeps so many that each value of each parameter comes once, `sample(count)` so many. Which ones is decided
    by a hash of their names, so it is the same everywhere.
    """
    cases = defaultdict[str, list[pytest.Function]](list)
    for item in items:
        is_plain = not any(item.get_closest_marker(name) for name in _NOT_PLAIN)
        if is_plain and item.get_closest_marker("sample") and isinstance(item, pytest.Function):
            cases[item.nodeid.partition("[")[0]].append(item)
    for of_test in cases.values():
        of_test.sort(key=lambda item: zlib.crc32(item.name.encode()))
        covered = set[tuple[str, int]]()
        first, others = [], []
        for item in of_test:
            values = {(name, id(value)) for name, value in item.callspec.params.items()}
            (others if values <= covered else first).append(item)
            covered |= values
        count = next(iter(of_test[0].get_closest_marker("sample").args), len(first))
        for item in (first + others)[count:]:
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """Leaves what was imported out of later collections, which cost most in forked processes: each copies its pages."""
    gc.freeze()
    gc.enable()
