# SPDX-License-Identifier: Apache-2.0
"""Turns failures of the Hugging Face Hub into errors that say what to do."""

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
_UNREACHABLE = {
    "ConnectError", "ConnectTimeout", "ReadTimeout", "ConnectionError", "ConnectionRefusedError", "Timeout",
    "ReadError", "OfflineModeIsEnabled", "LocalEntryNotFoundError", "RemoteProtocolError", "WriteError",
    "WriteTimeout", "PoolTimeout", "ProxyError",
}  # fmt: skip
"""Names of the errors of httpx, httpx2, requests and huggingface_hub without an answer of the Hub."""
_OF_LOADING = (OSError, ValueError, TypeError, RuntimeError, ImportError, StrictDataclassError, SafetensorError)
"""Errors of files, and of transformers."""


@contextmanager
def hub_errors(kind: str, name: str) -> Iterator[None]:
    """Converts failures of loading `name` into errors that say what to do.

    Args:
        kind: `model`, `tokenizer`, `adapter` or `data set`.
        name: Its id on the Hub, or a local path.

    Raises:
        ConfigError: The model does not exist or is not accessible, or the Hub is not reachable.
        DataError: The same for a data set.
        StorageError: The disk is full.
    """
    try:
        yield
    except OumiError:  # already explained; some of these are ValueErrors
        raise
    except Exception as error:
        # The HTTP client of huggingface_hub has changed twice, so its errors are recognized by name.
        if not isinstance(error, _OF_LOADING) and type(error).__name__ not in _UNREACHABLE:
            raise
        explanation = _explain(kind, name, error)
        if explanation is None:
            raise
        raise explanation from error


@contextmanager
def remote_code_refused(name: str) -> Iterator[None]:
    """Converts the ValueError of transformers about code from the Hub into an error that names the config key."""
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise RefusedError(
            f"{name} contains its own Python code. Read it, and if you trust it, set `model.trust_remote_code: true`."
        ) from None


def _explain(kind: str, name: str, error: BaseException) -> OumiError | None:
    """Returns the error to raise instead of `error`, None if `error` says it all."""
    chain = list(_chain(error))
    if any(isinstance(cause, OSError) and cause.errno in _DISK_FULL for cause in chain):
        home = os.environ.get("HF_HOME", "~/.cache/huggingface")
        return StorageError(
            f"{kind} {name}: the disk of the cache is full. Free some space, or set HF_HOME to another path than {home}"
        )
    # By name: the classes come from three libraries, and `datasets` would have to be imported for its own.
    types = {type(cause).__name__ for cause in chain}
    codes = (getattr(getattr(cause, "response", None), "status_code", None) for cause in chain)
    status = next((code for code in codes if isinstance(code, int) and code >= 400), None)
    error_class = DataError if kind == "data set" else ConfigError
    endpoint = os.environ.get("HF_ENDPOINT", _DEFAULT_ENDPOINT)
    if "GatedRepoError" in types or status == 403:
        page = f"{endpoint}/{'datasets/' if kind == 'data set' else ''}{name}"
        return error_class(f"{kind} {name}: access must be granted. Request it at {page}, then log in: hf auth login")
    if status == 401:
        # The Hub does not say which, so as not to reveal the names of private repositories.
        return error_class(
            f"{kind} {name}: not found, or private. Check the spelling; for a private one log in with "
            "`hf auth login` or set HF_TOKEN"
        )
    if "HFValidationError" in types:
        return error_class(f"{kind} {name}: no such directory, and not a valid name on the Hub")
    if types & {"RepositoryNotFoundError", "DatasetNotFoundError"} or status == 404:
        return error_class(
            f"{kind} {name}: not on the Hub ({endpoint}), and no such local directory. Check the spelling"
        )
    if "RevisionNotFoundError" in types:
        return error_class(f"{kind} {name}: no such revision on the Hub")
    if status is not None and status >= 500:
        return error_class(f"{kind} {name}: the Hub ({endpoint}) answered with error {status}. Try again later")
    texts = " ".join(str(cause) for cause in chain).lower()
    # transformers raises a plain OSError for some of these, with nothing but its text to go by.
    if types & _UNREACHABLE or "offline mode" in texts or "couldn't connect to" in texts:
        return error_class(
            f"{kind} {name}: the Hub ({endpoint}) cannot be reached, and it is not in the cache. Check the network; "
            "HF_ENDPOINT names another Hub; with HF_HUB_OFFLINE=1 only the cache is used"
        )
    if kind != "data set":
        reason = " ".join(line.strip() for line in str(error).strip().splitlines()[:2])
        return ConfigError(f"{kind} {name}: {reason or type(error).__name__}")
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yields an error and all errors that led to it; libraries hide the cause below errors of their own."""
    visited: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        cause = waiting.pop(0)
        if cause is None or id(cause) in visited:
            continue
        visited.add(id(cause))
        yield cause
        waiting += [cause.__cause__, cause.__context__]
