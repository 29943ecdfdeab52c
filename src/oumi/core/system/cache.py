# SPDX-License-Identifier: Apache-2.0
"""The directory of cached files, and the digest that names their contents."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def cache_home() -> Path:
    """Returns the cache directory: OUMI_CACHE_DIR, or `oumi` in the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("OUMI_CACHE_DIR") or f"{home}/oumi").expanduser()


def token_cache() -> Path:
    """Returns the directory of cached tokens."""
    return cache_home() / "tokens"


def digest_of_values(values: Mapping[str, Any]) -> str:
    """Returns a digest of JSON values, 32 hexadecimal digits; other values are converted to text."""
    # Sorted, so that the digest does not depend on the order of keys.
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:32]
