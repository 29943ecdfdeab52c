# SPDX-License-Identifier: Apache-2.0
"""Trains a tokenizer on texts: byte-pair encoding (Sennrich et al., arXiv 1508.07909) by the library tokenizers."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from oumi.core.errors import ConfigError, DataError, OutputError
from oumi.core.log import logger
from oumi.core.system.filesystem import storage_errors
from oumi.core.types.example import RejectedRow, Row

_NUM_BYTES = 256
_MAX_CHARACTERS = 1000
"""Characters with a token of their own beside byte fallback, the most frequent ones; others are bytes."""


@dataclass(frozen=True)
class TokenizerSpec:
    """What is trained."""

    vocab_size: int
    """Tokens, special ones included; fewer if the texts have no more pairs to merge."""
    end_token: str = "<|endoftext|>"
    """Ends a document."""
    special_tokens: Sequence[str] = ()
    """Further tokens that no text is split into."""
    byte_fallback: bool = False
    """Characters, with bytes for rare ones, as in SentencePiece; otherwise bytes throughout, as in GPT-2."""
    max_length: int | None = None
    """Most tokens of a row, which training reads; None for no limit."""

    @property
    def all_special(self) -> list[str]:
        """Returns the end token and the other special tokens, in the order of their ids."""
        return [self.end_token, *self.special_tokens]

    def check(self) -> None:
        """Raises ConfigError for a vocabulary that cannot be built."""
        for token in self.all_special:
            if not token.strip():
                raise ConfigError("a special token is empty")
            if self.all_special.count(token) > 1:
                raise ConfigError(f"special token '{token}': given twice")
        fewest = _NUM_BYTES + len(self.all_special)
        if self.vocab_size < fewest:
            raise ConfigError(
                f"--vocab-size {self.vocab_size}: must be {fewest} or more, for the {_NUM_BYTES} bytes and "
                f"{len(self.all_special)} special tokens"
            )


@dataclass
class TextCounts:
    """The texts that a tokenizer was trained on."""

    texts: int = 0
    characters: int = 0
    rejected: int = 0
    first_rejected: RejectedRow | None = None


def train_tokenizer(rows: Iterable[Row | RejectedRow], spec: TokenizerSpec, counts: TextCounts) -> Any:
    """Returns a tokenizer of transformers that is trained on the texts of rows, which are read once, one by one.

    Args:
        rows: Rows with documents (Text); those that cannot be used are counted.
        spec: What is trained.
        counts: Counts the texts.

    Raises:
        ConfigError: The vocabulary cannot be built.
        DataError: There are no texts.
    """
    spec.check()
    tokenizer, trainer = _with_bytes(spec) if spec.byte_fallback else _of_bytes(spec)
    tokenizer.train_from_iterator(_texts(rows, counts), trainer)
    if not counts.texts:
        reason = f"; the first row: {counts.first_rejected}" if counts.first_rejected else ""
        raise DataError(f"there are no texts to train a tokenizer on{reason}")
    if counts.rejected:
        logger.warning("%d rows cannot be used, the first: %s", counts.rejected, counts.first_rejected)
    if spec.byte_fallback:
        tokenizer = _with_plain_bytes(tokenizer)
    if (size := tokenizer.get_vocab_size()) < spec.vocab_size:
        logger.warning("the texts have no more pairs to merge: %d tokens instead of %d", size, spec.vocab_size)
    named = {} if spec.max_length is None else {"model_max_length": spec.max_length}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=spec.end_token,
        additional_special_tokens=list(spec.special_tokens),
        clean_up_tokenization_spaces=False,
        **named,
    )


def save_tokenizer(tokenizer: Any, directory: Path) -> None:
    """Writes a tokenizer for `AutoTokenizer.from_pretrained`; the directory appears as a whole or not at all.

    Raises:
        OutputError: The directory has files.
        StorageError: Disk full, or another failure of the file system.
    """
    check_vacant(directory)
    with storage_errors(directory):
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}-") as folder:
            complete = Path(folder) / "tokenizer"
            tokenizer.save_pretrained(complete)
            complete.rename(directory)


def check_vacant(directory: Path) -> None:
    """Raises OutputError if a directory is a file or has files."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise OutputError(f"{directory} is not empty; choose another directory")


def _texts(rows: Iterable[Row | RejectedRow], counts: TextCounts) -> Iterator[str]:
    for row in rows:
        if isinstance(row, RejectedRow):
            counts.rejected += 1
            counts.first_rejected = counts.first_rejected or row
            continue
        counts.texts += 1
        counts.characters += len(row.value.text)
        yield row.value.text


def _of_bytes(spec: TokenizerSpec) -> tuple[Tokenizer, Any]:
    """Returns a tokenizer of bytes, and its trainer: GPT-2's words, none of which is merged with the next one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return tokenizer, trainers.BpeTrainer(
        vocab_size=spec.vocab_size,
        special_tokens=spec.all_special,
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )


def _with_bytes(spec: TokenizerSpec) -> tuple[Tokenizer, Any]:
    """Returns a tokenizer of characters that takes bytes for rare ones, and its trainer."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Fuse(), decoders.Replace("\u2581", " ")]  # the sign that stands for a space
    )
    num_left = spec.vocab_size - _NUM_BYTES - len(spec.all_special)
    return tokenizer, trainers.BpeTrainer(
        vocab_size=spec.vocab_size,
        special_tokens=[*spec.all_special, *(f"<0x{byte:02X}>" for byte in range(_NUM_BYTES))],
        limit_alphabet=max(min(_MAX_CHARACTERS, num_left), 0),
        show_progress=False,
    )


def _with_plain_bytes(tokenizer: Tokenizer) -> Tokenizer:
    """Returns a tokenizer whose tokens of bytes are no special ones: `<0x41>` in a text is not the byte."""
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if not token["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(state))
