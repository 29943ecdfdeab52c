# SPDX-License-Identifier: Apache-2.0
"""Every test runs on few threads, offline, and away from the user's home."""

from __future__ import annotations

import atexit
import os
import shutil
from tempfile import mkdtemp

# Two workers of pytest-xdist share two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
if "OUMI_CACHE_DIR" not in os.environ:
    os.environ["OUMI_CACHE_DIR"] = mkdtemp(prefix="oumi-test-cache-")
    atexit.register(shutil.rmtree, os.environ["OUMI_CACHE_DIR"], ignore_errors=True)
