# SPDX-License-Identifier: Apache-2.0
"""The directory of cached files, and the digest that names their contents."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from oumi.core.errors import OutputError


def cache_home() -> Path:
    """Returns the cache directory: OUMI_CACHE_DIR, or `oumi` in the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    path = Path(os.path.expanduser(os.environ.get("OUMI_CACHE_DIR") or f"{home}/oumi"))
    return _cache_without_home() if path.parts[0].startswith("~") else path


def _cache_without_home() -> Path:
    """Returns a cache for a process whose user has no home, as in containers with any number for a user.

    It may be one that cannot be written, as other caches may: what keeps files there goes on without.
    """
    path = Path("/tmp") / f"oumi-{os.getuid()}"
    with suppress(OSError):
        path = Path(tempfile.gettempdir()) / path.name  # raises if no temporary directory can be written
        path.mkdir(mode=0o700, exist_ok=True)
    if os.path.exists(path) and path.stat().st_uid != os.getuid():  # another user could put tokens there
        raise OutputError(f"{path} belongs to another user: set OUMI_CACHE_DIR to a directory for cached tokens")
    return path


def token_cache() -> Path:
    """Returns the directory of cached tokens."""
    return cache_home() / "tokens"


def digest_of_values(values: Mapping[str, Any]) -> str:
    """Returns a digest of JSON values, 32 hexadecimal digits; other values are converted to text."""
    # Sorted, so that the digest does not depend on the order of keys.
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:32]
