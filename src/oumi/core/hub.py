# SPDX-License-Identifier: Apache-2.0
"""What went wrong with the Hub, and what to do about it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from oumi.core.errors import ConfigError, DataError, OumiError, RefusedError, StorageError

_DEFAULT_ENDPOINT = "https://huggingface.co"
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def hub_errors(what: str, name: str) -> Iterator[None]:
    """Turns failures of loading `name` into errors that say what to do.

    Args:
        what: `model`, `tokenizer`, `adapter` or `data set`.
        name: Its id, or a local path.

    Raises:
        ConfigError: No such model, or no access. DataError: the same of a data set, or the Hub is not reached.
        StorageError: The disk is full.
    """
    try:
        yield
    except OumiError:
        raise
    except (OSError, ValueError, TypeError, RuntimeError, ImportError, StrictDataclassError, SafetensorError) as error:
        explained = _explain(what, name, error)
        if explained is None:
            raise
        raise explained from error


@contextmanager
def remote_code_refused(name: str) -> Iterator[None]:
    """Turns transformers' question about code of the Hub into an error that says what to set."""
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise RefusedError(
            f"{name} brings its own Python code. Read it, and if you trust it, set `model.trust_remote_code: true`."
        ) from None


def _explain(what: str, name: str, error: BaseException) -> OumiError | None:
    chain = list(_chain(error))
    if any(isinstance(cause, OSError) and cause.errno in _DISK_FULL for cause in chain):
        home = os.environ.get("HF_HOME", "~/.cache/huggingface")
        return StorageError(
            f"{what} {name}: the disk of the cache is full. Free some, or set HF_HOME to another place than {home}"
        )
    kinds = {type(cause).__name__ for cause in chain}
    status = next((code for cause in chain if (code := _status(cause)) is not None), None)
    kind = DataError if what == "data set" else ConfigError
    if "GatedRepoError" in kinds or status == 403:
        return kind(
            f"{what} {name}: access must be granted. Ask for it at {_page(what, name)}, then log in: hf auth login"
        )
    if status == 401:
        return kind(
            f"{what} {name}: not found, or private. Check the spelling; for a private one log in with "
            "`hf auth login` or set HF_TOKEN"
        )
    if "HFValidationError" in kinds:
        return kind(f"{what} {name}: no such directory, and no name that the Hub could have")
    if kinds & {"RepositoryNotFoundError", "DatasetNotFoundError"} or status == 404:
        return kind(f"{what} {name}: not on the Hub ({_endpoint()}), and no such directory here. Check the spelling")
    if kinds & {"RevisionNotFoundError"}:
        return kind(f"{what} {name}: has no such revision on the Hub")
    if status is not None and status >= 500:
        return kind(f"{what} {name}: the Hub ({_endpoint()}) answered with error {status}. Try again later")
    if _is_unreachable(kinds, chain):
        return kind(
            f"{what} {name}: the Hub ({_endpoint()}) cannot be reached, and it is not in the cache. Check the network; "
            "HF_ENDPOINT names another Hub; with HF_HUB_OFFLINE=1 only the cache is used"
        )
    if what != "data set":
        reason = " ".join(line.strip() for line in str(error).strip().splitlines()[:2])
        return ConfigError(f"{what} {name}: {reason or type(error).__name__}")
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yields an error and everything that led to it; libraries hide the cause below their own."""
    visited: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        cause = waiting.pop(0)
        if cause is None or id(cause) in visited:
            continue
        visited.add(id(cause))
        yield cause
        waiting += [cause.__cause__, cause.__context__]


def _status(error: BaseException) -> int | None:
    code = getattr(getattr(error, "response", None), "status_code", None)
    return code if isinstance(code, int) and code >= 400 else None


def _is_unreachable(kinds: set[str], chain: list[BaseException]) -> bool:
    names = {
        "ConnectError", "ConnectTimeout", "ReadTimeout", "ConnectionError", "ConnectionRefusedError", "Timeout",
        "ReadError",
        "OfflineModeIsEnabled", "LocalEntryNotFoundError", "RemoteProtocolError",
    }  # fmt: skip
    texts = " ".join(str(cause) for cause in chain)
    return bool(kinds & names) or "offline mode" in texts.lower() or "couldn't connect to" in texts.lower()


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", _DEFAULT_ENDPOINT)


def _page(what: str, name: str) -> str:
    return f"{_endpoint()}/{'datasets/' if what == 'data set' else ''}{name}"
