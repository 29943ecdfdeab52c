# SPDX-License-Identifier: Apache-2.0
"""Every test runs on few threads, offline, and away from the user's home."""

from __future__ import annotations

import os

# Two workers of pytest-xdist share two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
