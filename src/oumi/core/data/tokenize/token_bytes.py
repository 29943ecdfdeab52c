# SPDX-License-Identifier: Apache-2.0
"""The bytes of text that tokens stand for, so that losses of models with different tokenizers can be compared."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import numpy.typing as npt

_SPACE = "\u2581"
"""Stands for a space in tokens of SentencePiece."""
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def token_bytes(tokenizer: Any) -> npt.NDArray[np.int64] | None:
    """Returns the bytes of UTF-8 of each token [V], 0 for special ones; None where tokens do not spell the text.

    A space that a tokenizer adds before a text counts as a byte of it.
    """
    decoder = json.loads(tokenizer.backend_tokenizer.to_str())["decoder"] or {}
    kinds = {part["type"] for part in decoder.get("decoders", [decoder]) if "type" in part}
    if not kinds or kinds & {"WordPiece", "CTC", "BPEDecoder"}:  # tokens of these have marks beside the text
        return None
    vocabulary = tokenizer.get_vocab()
    lengths = np.zeros(max(vocabulary.values()) + 1, dtype=np.int64)
    special = set(tokenizer.all_special_ids)
    for token, number in vocabulary.items():
        if number in special:
            continue
        if number in tokenizer.added_tokens_decoder:
            lengths[number] = len(token.encode())
        elif "ByteLevel" in kinds:  # a character of a token is a byte
            lengths[number] = len(token)
        else:
            lengths[number] = 1 if _BYTE.fullmatch(token) else len(token.replace(_SPACE, " ").encode())
    return lengths
