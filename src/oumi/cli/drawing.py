# SPDX-License-Identifier: Apache-2.0
"""Draws rows and counts on a terminal: within its width, and readable without color."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from oumi.core.types.example import printable

if TYPE_CHECKING:
    from oumi.core.data.checks.statistics import Bin
    from oumi.core.types.example import Example

# Brackets beside color, for terminals and files without it.
LEGEND = "⟦trained⟧  not trained   ▸ start of a turn   ↵ new line"
_TARGET, _OTHER, _CONTROL, _MARK = ("bold green", "bold cyan"), ("default", "bright_black"), "magenta", "bold yellow"
"""Styles; the first two alternate from token to token, so that the boundaries of tokens are visible."""
_HEAD, _TAIL = 192, 64
"""Tokens that are drawn at the start and the end of a long document."""
_EIGHTHS = " ▏▎▍▌▋▊▉"
_MAX_BAR = 60


def console() -> Console:
    """Returns the console; its output is plain text unless it is a terminal."""
    # Text of rows is drawn unchanged: `[b]` is no markup, and `:smile:` no emoji.
    return Console(highlight=False, emoji=False, markup=False)


def rule(out: Console, title: str) -> None:
    """Prints a horizontal line with a title."""
    line = Text("── ", style="bright_black")
    line.append(title[: out.width - 4], style="bold")
    line.append(" " + "─" * max(out.width - len(line.plain) - 1, 0), style="bright_black")
    out.print(line, no_wrap=True, crop=True)


def shortened(text: str, width: int) -> str:
    """Returns the end of a text in at most `width` characters; a path is cut at a slash if enough of it remains."""
    if len(text) <= width:
        return text
    end = text[len(text) - max(width - 1, 1) :]
    _, slash, names = end.partition("/")
    return f"…/{names}" if slash and len(names) > width // 3 else f"…{end}"


def draw_document(out: Console, example: Example, tokenizer: Any, is_full: bool) -> None:
    """Prints the tokens of a document by turns; of a long document only start and end, unless `is_full`."""
    length = len(example.tokens)
    pieces = _pieces(example.tokens.tolist(), tokenizer)
    turns = turns_of(example, tokenizer)
    for first, last in zip(turns, [*turns[1:], length], strict=True):
        text, is_open = Text(), False
        for i in range(first, last):
            if not is_full and length > _HEAD + _TAIL + 1 and _HEAD <= i < length - _TAIL:
                if i in (_HEAD, first):  # one note for each turn
                    if is_open:
                        text.append("⟧", style=_MARK)
                    is_open, end = False, min(last, length - _TAIL)
                    omitted, num_targets = counted(end - i, "token"), int(example.is_target[i:end].sum())
                    note = f"\n… {omitted} omitted, {num_targets:,} of them trained: see --full …\n"
                    text.append(note, style="italic bright_black")
                continue
            is_target = bool(example.is_target[i])
            if is_target != is_open:
                text.append("⟦" if is_target else "⟧", style=_MARK)
                is_open = is_target
            is_control = int(example.tokens[i]) in tokenizer.all_special_ids
            style = _CONTROL if is_control and not is_target else (_TARGET if is_target else _OTHER)[i % 2]
            # Control characters are made visible, and a line break is drawn and made.
            text.append("↵\n".join(printable(part) for part in pieces[i].split("\n")), style=style)
        if is_open:
            text.append("⟧", style=_MARK)
        text.rstrip()
        mark = "▸ " if len(turns) > 1 else ""
        for line_number, line in enumerate(text.wrap(out, out.width - len(mark) - 1)):
            gutter = Text(mark if line_number == 0 else " " * len(mark), style=_MARK)
            out.print(gutter.append_text(line), no_wrap=True)


def turns_of(example: Example, tokenizer: Any) -> list[int]:
    """Returns the first token of each turn: those after the token that ends answers, or after the end token."""
    tokens, is_target = example.tokens.tolist(), example.is_target
    special = set(tokenizer.all_special_ids)
    last_targets = [i for i in range(len(tokens)) if is_target[i] and (i + 1 == len(tokens) or not is_target[i + 1])]
    # Templates have no common mark of a turn, but the end of an answer is trained.
    ends = {tokens[i] for i in last_targets if tokens[i] in special} | {tokenizer.eos_token_id}
    begins = [0]
    for i, token in enumerate(tokens[:-1]):
        if token in ends:
            start = i + 1
            while start < len(tokens) and tokens[start] not in special and not tokenizer.decode(tokens[start]).strip():
                start += 1  # white space between turns belongs to the first of them
            if start < len(tokens):
                begins.append(start)
    return begins


def draw_histogram(out: Console, bins: Sequence[Bin]) -> None:
    """Prints bins as bars with counts and shares."""
    total, most = sum(part.count for part in bins), max(part.count for part in bins)
    labels = [f"{part.low:,} or more" if part.high is None else f"{part.low:,} - {part.high:,}" for part in bins]
    wide, digits = max(map(len, labels)), len(f"{most:,}")
    width = max(min(out.width - wide - digits - 14, _MAX_BAR), 4)  # 14 characters of margins and share
    for label, part in zip(labels, bins, strict=True):
        line = Text(f"    {label:>{wide}}  {part.count:>{digits},} {part.count / total:>4.0%} ")
        # At least an eighth of a character, so that no bin with rows looks empty.
        num_full, rest = divmod(max(round(8 * width * part.count / most), 1) if part.count else 0, 8)
        line.append(("█" * num_full + _EIGHTHS[rest]).rstrip(), style="cyan")
        line.rstrip()
        out.print(line, no_wrap=True)


def sparkline(bins: Sequence[Bin]) -> str:
    """Returns one character per bin."""
    most = max((part.count for part in bins), default=0)
    # Rounded up, so that only empty bins are blank.
    return "".join(" ▁▂▃▄▅▆▇█"[-(-8 * part.count // most)] for part in bins)


def draw_table(out: Console, rows: Sequence[Sequence[str]]) -> None:
    """Prints a table whose first row is its header; the first column is shortened so that the others fit."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    rest = sum(widths[1:]) + 2 * len(widths[1:])
    widths[0] = max(min(widths[0], out.width - 2 - rest), 8)
    for number, row in enumerate(rows):
        cells = [f"{shortened(row[0], widths[0]):<{widths[0]}}"]
        cells += [f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)]
        style = "bright_black" if number == 0 else "default"
        out.print(Text(("  " + "  ".join(cells)).rstrip(), style=style), no_wrap=True, crop=True)


def draw_note(out: Console, text: str, indent: int = 2, style: str = "") -> None:
    """Prints text, wrapped and indented; breaks words that are too long."""
    for line in Text(text, style=style).wrap(out, out.width - indent):
        line.rstrip()
        out.print(Text(" " * indent).append_text(line))


def counted(number: int, noun: str) -> str:
    """Returns `1 row` or `2 rows`."""
    return f"{number:,} {noun}" + ("s" if number != 1 else "")


def _pieces(tokens: list[int], tokenizer: Any) -> list[str]:
    """Returns the text of each token; a character of several tokens is the text of its last token."""
    pieces: list[str] = []
    waiting: list[int] = []
    for i, token in enumerate(tokens):
        waiting.append(token)
        text = tokenizer.decode(waiting)
        # Bytes of an incomplete character decode to U+FFFD; no character of UTF-8 has more than 4.
        if text.endswith("\ufffd") and len(waiting) < 4 and i + 1 < len(tokens):
            pieces.append("")
            continue
        pieces.append(text)
        waiting = []
    return pieces
