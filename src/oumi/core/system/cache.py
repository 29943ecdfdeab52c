# SPDX-License-Identifier: Apache-2.0
"""Where what can be made again is kept, and the digest by which it is found."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def cache_home() -> Path:
    """Returns where what can be made again is kept: OUMI_CACHE_DIR, else `oumi` in the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("OUMI_CACHE_DIR") or f"{home}/oumi").expanduser()


def token_cache() -> Path:
    """Returns where tables of tokens are kept."""
    return cache_home() / "tokens"


def digest_of_values(values: Mapping[str, Any]) -> str:
    """Returns the digest of JSON values; anything else counts as its text."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:32]
