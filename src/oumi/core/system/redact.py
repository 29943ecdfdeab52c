# SPDX-License-Identifier: Apache-2.0
"""Masks secrets in logs, files and output: by their name, their format or their value."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

MASK = "***"

# `hf_token` and `WANDB_API_KEY` are secrets; `pad_token`, `max_new_tokens` and `sort_key` are not.
_SECRET_WORDS = frozenset(
    ("secret", "secrets", "password", "passwd", "passphrase", "credential", "credentials", "authorization", "apikey")
)
_KEY_OWNERS = frozenset({"api", "access", "secret", "private", "auth", "ssh", "signing", "encryption", "license"})
_TEXT_TOKENS = frozenset(
    ("pad", "eos", "bos", "unk", "cls", "sep", "mask", "stop", "special", "image", "video", "audio", "per", "decoder")
)
"""Words before `token` by which it is a token of text, not of access."""

_FORMATS = re.compile(
    r"""
    \b(?: hf_[A-Za-z0-9]{16,} | api_org_[A-Za-z0-9]{16,}      # Hugging Face
      | wandb_v\d+_[A-Za-z0-9_]{16,} | sk-[A-Za-z0-9_-]{16,}  # Weights & Biases, OpenAI and compatible
      | (?:AKIA|ASIA)[A-Z0-9]{16} | AIza[A-Za-z0-9_-]{30,}    # AWS, Google
      | gh[pousr]_[A-Za-z0-9]{20,} | github_pat_[A-Za-z0-9_]{20,} | glpat-[A-Za-z0-9_-]{16,}
      | xox[abprs]-[A-Za-z0-9-]{10,} )
    | -----BEGIN[ A-Z]*PRIVATE[ ]KEY-----.*?(?:-----END[ A-Z]*PRIVATE[ ]KEY-----|\Z)
    """,
    re.VERBOSE | re.DOTALL,
)
_USER_INFO = re.compile(r"(?P<scheme>\b[a-z][a-z0-9+.-]*://)[^/\s@'\"]+@", re.IGNORECASE)
_BEARER = re.compile(
    r"(?P<name>\bauthorization['\"]?\s*[:=]\s*['\"]?)(?:(?:bearer|basic|token)\s+)?[^\s'\",]+", re.IGNORECASE
)
# Possessive and bounded, so that scanning a long text takes linear time.
_NAME = r"(?<![\w.\[\]-])(?P<name>[\w.\[\]-]{1,200}+)"
_ASSIGNED = re.compile(rf"{_NAME}['\"]?\s*[=:]\s*['\"]?")
_FLAG = re.compile(rf"(?=--){_NAME}\s+(?!-)['\"]?")
_VALUE = re.compile(r"[^\s'\",;&{}\[\]]+")


def redact(value: Any) -> Any:
    """Returns text, a mapping or a sequence with every secret replaced by `***`; other values unchanged."""
    if isinstance(value, str):
        return _redact_text(value)
    if isinstance(value, Mapping):
        # Numbers and empty strings under a secret's name are no secrets: a limit, or a value that is not set.
        return {
            name: MASK
            if isinstance(name, str) and is_secret_name(name) and isinstance(inner, str) and inner
            else redact(inner)
            for name, inner in value.items()
        }
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [redact(inner) for inner in value]
    return value


def redact_command(arguments: Sequence[str]) -> list[str]:
    """Returns a command line with secrets masked, including a value in the argument after its flag."""
    shown: list[str] = []
    for argument in arguments:
        follows_secret = bool(shown) and shown[-1].startswith("-") and is_secret_name(shown[-1].lstrip("-"))
        shown.append(MASK if follows_secret and "=" not in shown[-1] else _redact_text(argument))
    return shown


@lru_cache(maxsize=4096)  # asked for each variable of the environment, for each text
def is_secret_name(name: str) -> bool:
    """Returns True if a value called `name` (a config key, flag or variable) is a secret."""
    words = [word for word in re.split(r"[^a-z0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()) if word]
    if not words:
        return False
    *before, last = words
    if _SECRET_WORDS & set(words) or last in ("signature", "sig"):
        return True
    owner = before[-1] if before else ""
    if last == "key":
        # Environment variables such as SOME_SERVICE_KEY are secrets for any service.
        return owner in _KEY_OWNERS or (name.isupper() and bool(before))
    return last == "token" and owner not in _TEXT_TOKENS


def _redact_text(text: str) -> str:
    # By value first, since the patterns below might match and mask only a part of such a secret.
    for secret in _long_secrets(tuple(value for name, value in os.environ.items() if is_secret_name(name))):
        text = text.replace(secret, MASK)
    text = _FORMATS.sub(MASK, text)
    text = _USER_INFO.sub(rf"\g<scheme>{MASK}@", text)
    text = _BEARER.sub(rf"\g<name>{MASK}", text)
    return _hide_named(_FLAG, _hide_named(_ASSIGNED, text))


def _hide_named(pattern: re.Pattern[str], text: str) -> str:
    """Returns `text` with the value masked after each secret name that `pattern` matches."""
    parts, end = [], 0
    for match in pattern.finditer(text):
        value = _VALUE.match(text, match.end()) if match.start() >= end and is_secret_name(match["name"]) else None
        if value is not None:
            parts += [text[end : match.end()], MASK]
            end = value.end()
    return "".join([*parts, text[end:]])


@lru_cache(maxsize=8)
def _long_secrets(values: tuple[str, ...]) -> list[str]:
    """Returns the values that are long enough to be replaced in any text, longest first."""
    # A short value ("1", "none") would mask many other words. Longest first, since a secret may contain another one.
    return sorted({value for value in values if len(value) >= 8}, key=len, reverse=True)
